package meta

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/crakefs/crake/wire"
	"golang.org/x/sys/unix"
)

// A name keeps its cookie while others come and go, over restarts, and a listing that goes on from a cookie tells every
// name that stays exactly once. With a hash of few values names collide all the time.
func TestReaddirStable(t *testing.T) {
	for _, hash := range []func(string) uint64{
		wire.NameHash,
		func(s string) uint64 { return 3 + wire.NameHash(s)%150 },
		func(s string) uint64 { return 3 + wire.NameHash(s)%8*16 },
	} {
		r := newRig(t, 2, rigOptions{nameHash: hash})
		dir := r.makeRoot()
		rng := rand.New(rand.NewPCG(5, 5))
		for i := range 60 {
			r.file(dir, fmt.Sprintf("stay%d", i))
			r.file(dir, fmt.Sprintf("go%d", i))
		}
		cookies := map[string]uint64{}
		for _, e := range r.list(dir) {
			cookies[e.Name] = e.Cookie
		}
		if len(cookies) != 120 {
			t.Fatalf("%d names", len(cookies))
		}
		seen := map[string]int{}
		req := &wire.ReadDirReq{Session: r.session, Ino: dir, Limit: 7}
		for i := 0; ; i++ {
			resp, err := r.bucket(dir.Bucket()).ReadDir(ctxT(t), req)
			ok(t, err)
			for _, e := range resp.Entries {
				seen[e.Name]++
				if c, known := cookies[e.Name]; known && c != e.Cookie {
					t.Fatalf("%s had cookie %d, has %d", e.Name, c, e.Cookie)
				}
				if e.Cookie < 3 {
					t.Fatalf("cookie %d", e.Cookie)
				}
			}
			if resp.EOF {
				break
			}
			req.Cookie = resp.Entries[len(resp.Entries)-1].Cookie
			name := fmt.Sprintf("go%d", rng.IntN(60))
			if rng.IntN(2) == 0 {
				_ = r.unlink(dir, name, false)
				delete(cookies, name)
			} else {
				_, _ = r.tryCreate(r.op(), dir, fmt.Sprintf("new%d", i), unix.S_IFREG)
			}
			if i == 5 {
				r.node(dir.Bucket()).crash(100)
				r.restart()
			}
		}
		for i := range 60 {
			name := fmt.Sprintf("stay%d", i)
			if seen[name] != 1 {
				t.Errorf("%s was told %d times", name, seen[name])
			}
			if _, err := r.lookup(dir, name); err != nil {
				t.Error(err)
			}
			ok(t, r.unlink(dir, name, false))
			wantKind(t, errOf(r.lookup(dir, name)), wire.KindNotFound)
		}
		r.settle()
		r.check()
	}
}

// When all slots of a hash are taken a name is refused, and nothing else happens.
func TestTooManyCollisions(t *testing.T) {
	r := newRig(t, 1, rigOptions{nameHash: func(string) uint64 { return 1000 }})
	dir := r.makeRoot()
	for i := range probeWindow {
		r.file(dir, fmt.Sprint(i))
	}
	_, err := r.tryCreate(r.op(), dir, "one more", unix.S_IFREG)
	wantKind(t, err, wire.KindNoSpace)
	ok(t, r.unlink(dir, "7", false))
	r.file(dir, "one more")
	ok(t, r.rename(dir, "8", dir, "9", 0))
	r.check()
}

// Directories of one parent go to all other buckets alike.
func TestDirectoriesSpread(t *testing.T) {
	r := newRig(t, 5, rigOptions{})
	root := r.makeRoot()
	count := map[wire.BucketID]int{}
	for i := range 40 {
		count[r.dir(root, fmt.Sprint(i)).Bucket()]++
	}
	for i := range wire.BucketID(5) {
		want := 10
		if i == root.Bucket() {
			want = 0
		}
		if count[i] != want {
			t.Errorf("bucket %d has %d directories", i, count[i])
		}
	}
}
