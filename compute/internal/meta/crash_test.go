package meta

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/crakefs/crake/wire"
	"golang.org/x/sys/unix"
)

// A scenario is one operation across buckets, with what must be there before it.
type scenario struct {
	name  string
	setup func(r *rig, s *scene)
	run   func(r *rig, s *scene, b *Bucket) error // the same request every time
	at    func(s *scene) wire.BucketID            // the coordinator
}

// scene is what a scenario has set up.
type scene struct {
	root, a, b, c, f, g wire.Ino
	op                  wire.OpID
}

func renaming2(from, to func(s *scene) wire.Ino, oldName, newName string, flags uint32) func(*rig, *scene, *Bucket) error {
	return func(r *rig, s *scene, b *Bucket) error {
		_, err := b.Rename(ctxT(r.t), &wire.RenameReq{Op: s.op, OldParent: from(s), NewParent: to(s), OldName: oldName, NewName: newName, Flags: flags})
		return err
	}
}

func inA(s *scene) wire.Ino    { return s.a }
func inB(s *scene) wire.Ino    { return s.b }
func inRoot(s *scene) wire.Ino { return s.root }

// base makes directories a, b and c in three buckets, none of them that of the root, with a file in a and one in b.
func base(r *rig, s *scene) {
	s.root = r.makeRoot()
	s.a, s.b, s.c = r.dirIn(s.root, "a", 0), r.dirIn(s.root, "b", 1), r.dirIn(s.root, "c", 2)
	s.f, s.g = r.file(s.a, "f"), r.create(s.b, "g", unix.S_IFREG|0600).Ino
}

func scenarios() []scenario {
	atA := func(*scene) wire.BucketID { return 0 }
	atRoot := func(s *scene) wire.BucketID { return s.root.Bucket() }
	create := func(mode uint32) func(*rig, *scene, *Bucket) error {
		return func(r *rig, s *scene, b *Bucket) error {
			_, err := b.Create(ctxT(r.t), &wire.CreateReq{Op: s.op, Parent: s.a, Name: "new", Mode: mode, Excl: true})
			return err
		}
	}
	remove := func(dir bool, parent func(*scene) wire.Ino, name string) func(*rig, *scene, *Bucket) error {
		return func(r *rig, s *scene, b *Bucket) error {
			_, err := b.Unlink(ctxT(r.t), &wire.UnlinkReq{Op: s.op, Parent: parent(s), Name: name, Dir: dir})
			return err
		}
	}
	return []scenario{
		{"create", base, create(unix.S_IFREG | 0644), atA},
		{"mkdir", base, create(unix.S_IFDIR | 0755), atA},
		{"rmdir", base, remove(true, inRoot, "c"), atRoot},
		{"link", func(r *rig, s *scene) { base(r, s) }, func(r *rig, s *scene, b *Bucket) error {
			_, err := b.Link(ctxT(r.t), &wire.LinkReq{Op: s.op, Ino: s.g, Parent: s.a, Name: "g2"})
			return err
		}, atA},
		{"unlink of an inode elsewhere", func(r *rig, s *scene) {
			base(r, s)
			mustNot(r, r.rename(s.b, "g", s.a, "g", 0))
		}, remove(false, inA, "g"), atA},
		{"unlink of an open inode elsewhere", func(r *rig, s *scene) {
			base(r, s)
			mustNot(r, r.rename(s.b, "g", s.a, "g", 0))
			r.Opened(r.session, s.g)
		}, remove(false, inA, "g"), atA},
		{"rename", base, renaming2(inA, inB, "f", "h", 0), atA},
		{"rename over a file", base, renaming2(inA, inB, "f", "g", 0), atA},
		{"rename over a file elsewhere", func(r *rig, s *scene) {
			base(r, s)
			mustNot(r, r.rename(s.b, "g", s.c, "g", 0))
			mustNot(r, r.link(s.g, s.b, "g"))
		}, renaming2(inA, inB, "f", "g", 0), atA},
		{"rename no replace", base, renaming2(inA, inB, "f", "h", wire.RenameNoReplace), atA},
		{"exchange", base, renaming2(inA, inB, "f", "g", wire.RenameExchange), atA},
		{"rename of a directory", func(r *rig, s *scene) {
			base(r, s)
			r.file(r.dirIn(s.a, "d", 2), "x")
		}, renaming2(inA, inB, "d", "d2", 0), atA},
		{"rename of a directory over another", func(r *rig, s *scene) {
			base(r, s)
			r.file(r.dirIn(s.a, "d", 1), "x")
			r.dirIn(s.b, "e", 2)
		}, renaming2(inA, inB, "d", "e", 0), atA},
		{"exchange of a directory and a file", func(r *rig, s *scene) {
			base(r, s)
			r.dirIn(s.a, "d", 2)
		}, renaming2(inA, inB, "d", "g", wire.RenameExchange), atA},
	}
}

func mustNot(r *rig, err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// crashAt arms a crash at the nth crash point from now on. who is called with the node to crash; hit tells where it was.
func (r *rig) crashAt(nth int, all bool) (hit func() string) {
	var mu sync.Mutex
	count, where := 0, ""
	r.mu.Lock()
	r.onPoint = func(n *node, point string) bool {
		mu.Lock()
		count++
		mine := count == nth
		if mine {
			where = fmt.Sprintf("bucket %d %s", n.bucket, point)
		}
		mu.Unlock()
		if mine && all {
			for i := range r.n {
				if o := r.node(wire.BucketID(i)); o != nil && o != n {
					o.crash(r.keep)
				}
			}
		}
		return mine
	}
	r.mu.Unlock()
	return func() string {
		mu.Lock()
		defer mu.Unlock()
		return where
	}
}

func (r *rig) disarm() {
	r.mu.Lock()
	r.onPoint = nil
	r.mu.Unlock()
}

// runOnce sends the request once, while crashed participants come back; the coordinator stays down.
func (r *rig) runOnce(bucket wire.BucketID, f func(b *Bucket) error) error {
	done := make(chan error, 1)
	n := r.node(bucket)
	go func() { done <- n.guard(func() error { return f(n.b) }) }()
	for {
		select {
		case err := <-done:
			return err
		case <-time.After(2 * time.Millisecond):
			for i := range r.n {
				if wire.BucketID(i) != bucket && r.node(wire.BucketID(i)) == nil {
					r.start(i)
				}
			}
		}
	}
}

// Issue 2, point 5: rename (and mkdir, rmdir, link, unlink) across buckets is all or nothing, and happens exactly once,
// when the coordinator, a participant or both crash at any step, whatever of their unsynced writes survives.
func TestCrashAtEveryStep(t *testing.T) {
	for _, sc := range scenarios() {
		t.Run(sc.name, func(t *testing.T) {
			t.Parallel()
			after := sc.outcome(t)
			for _, mode := range []struct {
				name        string
				keep        int
				all, settle bool
			}{
				{"one/lost/settle", 0, false, true},
				{"one/kept/retry", 100, false, false},
				{"all/lost/retry", 0, true, false},
				{"all/half/settle", 50, true, true},
			} {
				points := map[string]bool{}
				for nth := 1; ; nth++ {
					where := sc.crash(t, nth, mode.keep, mode.all, mode.settle, after)
					if where == "" {
						break
					}
					points[where] = true
				}
				if len(points) < 2 {
					t.Errorf("%s: only %d crash points were met", mode.name, len(points))
				}
			}
		})
	}
}

// outcome runs the scenario without a crash, and gives the tree after it.
func (sc *scenario) outcome(t *testing.T) string {
	r := newRig(t, 4, rigOptions{})
	s := &scene{}
	sc.setup(r, s)
	s.op = r.opAcked()
	before := r.tree()
	if err := r.do(sc.at(s), func(b *Bucket) error { return sc.run(r, s, b) }); err != nil {
		t.Fatalf("without a crash: %v", err)
	}
	r.settle()
	r.check()
	after := r.tree()
	if after == before {
		t.Fatal("the scenario changes nothing")
	}
	return after
}

// crash runs the scenario with a crash at the nth point; where is empty when there is no such point.
func (sc *scenario) crash(t *testing.T, nth, keep int, all, settle bool, after string) (where string) {
	r := newRig(t, 4, rigOptions{})
	r.keep = keep
	s := &scene{}
	sc.setup(r, s)
	r.settle()
	s.op = r.opAcked()
	before := r.tree()
	hit := r.crashAt(nth, all)
	err := r.runOnce(sc.at(s), func(b *Bucket) error { return sc.run(r, s, b) })
	r.disarm()
	if where = hit(); where == "" && err != nil {
		t.Fatalf("no crash, and %v", err)
	}
	defer func() {
		if t.Failed() {
			t.Logf("the crash was at point %d, %s, keep %d%%, all %v, settle %v", nth, where, keep, all, settle)
		}
	}()
	if settle {
		r.settle()
		switch now := r.tree(); {
		case now == after:
		case now == before && err != nil:
		default:
			t.Fatalf("crash at %s, answer %v: neither before nor after:\n%s\n\nbefore:\n%s\n\nafter:\n%s", where, err, now, before, after)
		}
		r.check()
	}
	if err := r.retry(sc.at(s), func(b *Bucket) error { return sc.run(r, s, b) }); err != nil {
		t.Fatalf("crash at %s: again: %v", where, err)
	}
	r.settle()
	if now := r.tree(); now != after {
		t.Fatalf("crash at %s: after a retry:\n%s\n\nshould be:\n%s", where, now, after)
	}
	r.check()
	for i := range r.n {
		r.stop(i)
	}
	return where
}
