package meta

import (
	"context"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/crakefs/crake/wire"
	"golang.org/x/sys/unix"
)

// prepared sets up a directory in bucket 1 whose next name is prepared by a transaction of bucket 0 that nobody decides.
func prepared(t *testing.T, r *rig) (dir wire.Ino, req *wire.TxnPrepareReq) {
	t.Helper()
	root := r.makeRoot()
	dir = r.dirIn(root, "d", 1)
	id, err := r.bucket(0).newTxn() // open: queries are told to wait
	ok(t, err)
	req = &wire.TxnPrepareReq{ID: id, Session: r.session, Bucket: 1, Ops: []wire.TxnOp{
		{Kind: opAddEntry, Ino: dir, Name: "x", Other: wire.MakeIno(0, wire.FirstInoSeq+7), Mode: unix.S_IFREG, FS: rootFS, Time: 9},
	}}
	_, err = r.bucket(1).TxnPrepare(ctxT(t), req)
	ok(t, err)
	return dir, req
}

func briefly(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

// What a transaction in doubt touches stays locked, for readers too, also across a restart of the participant, until the
// coordinator has decided.
func TestDoubtLocksAcrossRestart(t *testing.T) {
	r := newRig(t, 4, rigOptions{})
	dir, req := prepared(t, r)
	blocked := func() {
		t.Helper()
		b := r.bucket(1)
		_, err := b.Lookup(briefly(t), &wire.LookupReq{Session: r.session, Parent: dir, Name: "x"})
		wantKind(t, err, wire.KindTimeout)
		_, err = b.Create(briefly(t), &wire.CreateReq{Op: r.op(), Parent: dir, Name: "y", Mode: unix.S_IFREG})
		wantKind(t, err, wire.KindTimeout)
		_, err = b.TxnPrepare(ctxT(t), &wire.TxnPrepareReq{ID: wire.TxnID{Coordinator: 2, Epoch: 1, Seq: 1}, Bucket: 1,
			Ops: []wire.TxnOp{{Kind: opRemoveDir, Ino: dir}}})
		wantKind(t, err, wire.KindWouldBlock)
	}
	blocked()
	r.node(1).crash(0)
	r.restart()
	time.Sleep(50 * time.Millisecond) // it asks, and is told to wait
	blocked()
	// The same prepare again gives the same answer.
	resp, err := r.bucket(1).TxnPrepare(ctxT(t), req)
	if err != nil || len(resp.Attrs) != 1 || resp.Attrs[0].Ino != dir || resp.Attrs[0].Size != 1 {
		t.Fatalf("%+v, %v", resp, err)
	}
	b := r.bucket(0)
	b.mu.Lock()
	b.coord.Commit(req.ID, []wire.BucketID{1})
	b.mu.Unlock()
	if l, err := r.lookup(dir, "x"); err != nil || l.Ino != req.Ops[0].Other {
		t.Fatalf("%+v, %v", l, err)
	}
}

// A decision once carried out stays the last word: late and doubled prepares and decisions change nothing.
func TestLateMessages(t *testing.T) {
	r := newRig(t, 4, rigOptions{})
	dir, req := prepared(t, r)
	b := r.bucket(1)
	decide := &wire.TxnDecideReq{ID: req.ID, Bucket: 1, Commit: true}
	ok(t, b.TxnDecide(ctxT(t), decide))
	ok(t, b.TxnDecide(ctxT(t), decide))
	ok(t, b.TxnDecide(ctxT(t), &wire.TxnDecideReq{ID: req.ID, Bucket: 1, Commit: false}))
	_, err := b.TxnPrepare(ctxT(t), req)
	wantKind(t, err, wire.KindRefused)
	if _, err := r.lookup(dir, "x"); err != nil {
		t.Fatal(err)
	}
	// An abort that overtakes its prepare.
	other := *req
	other.ID.Seq += 1000
	other.Ops = []wire.TxnOp{{Kind: opAddEntry, Ino: dir, Name: "z", Other: 99, Mode: unix.S_IFREG, FS: rootFS}}
	ok(t, b.TxnDecide(ctxT(t), &wire.TxnDecideReq{ID: other.ID, Bucket: 1}))
	_, err = b.TxnPrepare(ctxT(t), &other)
	wantKind(t, err, wire.KindRefused)
	// A query about a transaction of a newer epoch than the one asked.
	_, err = r.bucket(0).TxnQuery(ctxT(t), &wire.TxnQueryReq{ID: wire.TxnID{Coordinator: 0, Epoch: 99, Seq: 1}, Bucket: 1})
	wantKind(t, err, wire.KindMoved)
	// Unknown is aborted.
	q, err := r.bucket(0).TxnQuery(ctxT(t), &wire.TxnQueryReq{ID: wire.TxnID{Coordinator: 0, Epoch: 1, Seq: 1 << 40}, Bucket: 1})
	if err != nil || q.Outcome != wire.TxnUnknown {
		t.Fatalf("%+v, %v", q, err)
	}
}

// Steps that no coordinator of ours sends are refused, whatever they hold.
func TestBadSteps(t *testing.T) {
	r := newRig(t, 4, rigOptions{})
	root := r.makeRoot()
	b := r.bucket(root.Bucket())
	id := wire.TxnID{Coordinator: 1, Epoch: 1, Seq: 1}
	here := root.Bucket()
	for _, ops := range [][]wire.TxnOp{
		nil,
		{{Kind: 0, Ino: root}},
		{{Kind: 99, Ino: root}},
		{{Kind: opAddEntry, Ino: root, Name: "a/b", Other: 1, Mode: unix.S_IFREG}},
		{{Kind: opAddEntry, Ino: root, Name: "a", Other: 0, Mode: unix.S_IFREG}},
		{{Kind: opAddEntry, Ino: root, Name: "a", Other: 1, Mode: 0644}},
		{{Kind: opAddEntry, Ino: wire.MakeIno(1, 5), Name: "a", Other: 1, Mode: unix.S_IFREG}},
		{{Kind: opReplaceEntry, Ino: root, Name: "a", Other: 1, Mode: unix.S_IFREG, Extra: []byte("short")}},
		{{Kind: opMakeInode, Ino: wire.MakeIno(1, 5), Mode: unix.S_IFREG}},
		{{Kind: opMakeInode, Mode: 0}},
		{{Kind: opPeekEntry, Ino: root, Name: "a"}, {Kind: opTouch, Ino: root}},
		make([]wire.TxnOp, maxTxnOps+1),
	} {
		if _, err := b.TxnPrepare(ctxT(t), &wire.TxnPrepareReq{ID: id, Bucket: here, Ops: ops}); err == nil {
			t.Errorf("%+v is accepted", ops)
		}
	}
	_, err := b.TxnPrepare(ctxT(t), &wire.TxnPrepareReq{ID: id, Bucket: here + 1, Ops: []wire.TxnOp{{Kind: opTouch, Ino: root}}})
	wantKind(t, err, wire.KindMoved)
	if n := b.PendingWork(); n != 0 {
		t.Errorf("%d pending", n)
	}
	r.check()
}

// Two directories that are moved into each other at once: one wins, nothing hangs.
func TestRenamesThatCross(t *testing.T) {
	r := newRig(t, 4, rigOptions{})
	root := r.makeRoot()
	for i := range 30 {
		a, b := r.dirIn(root, "a", 0), r.dirIn(root, "b", 1)
		done := make(chan error, 2)
		go func() { done <- r.rename(root, "a", b, "a", 0) }()
		go func() { done <- r.rename(root, "b", a, "b", 0) }()
		x, y := <-done, <-done
		if (x == nil) == (y == nil) {
			t.Fatalf("round %d: %v and %v", i, x, y)
		}
		r.settle()
		r.check()
		if _, err := r.lookup(b, "a"); err == nil {
			ok(t, r.unlink(b, "a", true))
			ok(t, r.unlink(root, "b", true))
		} else {
			ok(t, r.unlink(a, "b", true))
			ok(t, r.unlink(root, "a", true))
		}
	}
}

// gateFS holds back every sync while the gate is shut.
type gateFS struct {
	vfs.FS
	gate chan struct{} // a token lets all through; nil: open
}

type gateFile struct {
	vfs.File
	fs *gateFS
}

func (g *gateFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := g.FS.Create(name, c)
	return &gateFile{f, g}, err
}

func (g *gateFS) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := g.FS.ReuseForWrite(oldname, newname, c)
	return &gateFile{f, g}, err
}

func (f *gateFile) wait() {
	if g := f.fs.gate; g != nil {
		<-g
	}
}

func (f *gateFile) Sync() error     { f.wait(); return f.File.Sync() }
func (f *gateFile) SyncData() error { f.wait(); return f.File.SyncData() }

// Nobody is told of a change before it is durable: neither who made it, nor who reads it, nor who fails because of it.
// And the lock is free meanwhile: changes of one directory share a flush.
func TestReadersWaitForDurability(t *testing.T) {
	r := newRig(t, 1, rigOptions{})
	r.stop(0)
	gate := &gateFS{FS: r.fs[0]}
	r.wrapFS = func(vfs.FS) vfs.FS { return gate }
	r.start(0)
	root := r.makeRoot()
	r.file(root, "warm") // numbers are reserved, sessions known
	gate.gate = make(chan struct{})
	b := r.bucket(0)
	ctx := ctxT(t)
	answers := make(chan string, 8)
	ask := func(what string, f func() error) {
		go func() {
			_ = f()
			answers <- what
		}()
		time.Sleep(20 * time.Millisecond)
	}
	create := func(name string) func() error {
		req := &wire.CreateReq{Op: r.op(), Parent: root, Name: name, Mode: unix.S_IFREG, Excl: true}
		return func() error { return errOf(b.Create(ctx, req)) }
	}
	ask("create", create("f"))
	ask("second create", create("g"))
	ask("create of an existing name", create("f"))
	ask("lookup", func() error {
		return errOf(b.Lookup(ctx, &wire.LookupReq{Session: 1, Parent: root, Name: "f"}))
	})
	ask("readdir", func() error { return errOf(b.ReadDir(ctx, &wire.ReadDirReq{Session: 1, Ino: root})) })
	ask("unlink of no name", func() error {
		return errOf(b.Unlink(ctx, &wire.UnlinkReq{Op: wire.OpID{Session: 1, Seq: 1}, Parent: root, Name: "none"}))
	})
	select {
	case what := <-answers:
		t.Fatalf("%s was answered before anything was durable", what)
	default:
	}
	if r := b.Stat(); r.Inodes != 4 { // root, warm, f and g are all applied
		t.Errorf("%d inodes", r.Inodes)
	}
	close(gate.gate)
	for range 6 {
		select {
		case <-answers:
		case <-time.After(5 * time.Second):
			t.Fatal("no answer")
		}
	}
}

// A database that cannot write any more fails its bucket, with an error for everybody, and nothing panics.
func TestFailedDatabase(t *testing.T) {
	for _, what := range []string{"write", "sync"} {
		t.Run(what, func(t *testing.T) {
			r := newRig(t, 1, rigOptions{})
			r.stop(0)
			broken := &brokenFS{FS: r.fs[0], what: what}
			r.wrapFS = func(vfs.FS) vfs.FS { return broken }
			r.start(0)
			root := r.makeRoot()
			r.file(root, "f")
			broken.on.Store(true)
			b := r.bucket(0)
			for i := range 20 {
				_, err := b.Create(ctxT(t), &wire.CreateReq{Op: r.op(), Parent: root, Name: string(rune('a' + i)), Mode: unix.S_IFREG})
				if i > 3 {
					wantKind(t, err, wire.KindUnavailable)
				}
			}
			if b.Err() == nil {
				t.Fatal("the bucket has not failed")
			}
			_, err := b.Lookup(ctxT(t), &wire.LookupReq{Session: 1, Parent: root, Name: "f"})
			wantKind(t, err, wire.KindUnavailable)
		})
	}
}
