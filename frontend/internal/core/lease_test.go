package core

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crakefs/crake/frontend/internal/fake"
	"github.com/crakefs/crake/frontend/internal/locks"
	"github.com/crakefs/crake/wire"
)

// Claim: what a lease allows to cache costs no request, and is not used any more after the recall.
func TestCachedUnderLease(t *testing.T) {
	f := fake.New(t)
	a, b := client(t, f, 1, Config{}), client(t, f, 2, Config{})
	h := create(t, a, "f")
	write(t, a, h, 0, random(50000), 0)
	fsync(t, a, h)
	read(t, a, h, 0, 50000, 0)
	before := f.Count(wire.MGetAttr) + f.Count(wire.MExtents)
	for range 10 {
		stat(t, a, h.Ino())
		read(t, a, h, 100, 5000, openDirect)
	}
	if n := f.Count(wire.MGetAttr) + f.Count(wire.MExtents) - before; n > 0 {
		t.Errorf("%d requests though all was cached", n)
	}
	if _, err := b.SetAttr(context.Background(), h.Ino(), SetAttr{Valid: wire.SetMode, Mode: 0o600}); err != nil {
		t.Fatal(err)
	}
	if m := stat(t, a, h.Ino()).Mode; m != modeFile|0o600 {
		t.Errorf("mode %o after another client's chmod", m)
	}
}

// Claim: a grant whose answer is overtaken by its recall is void: nothing is cached under it.
func TestLateGrant(t *testing.T) {
	f := fake.New(t)
	a, b := client(t, f, 1, Config{}), client(t, f, 2, Config{})
	h := create(t, b, "f")
	write(t, b, h, 0, []byte("old"), 0)
	fsync(t, b, h)
	ino := h.Ino()
	var once sync.Once
	f.Mu.Lock()
	f.After = func(s wire.SessionID, _ wire.BucketID, m wire.Method, _ wire.Message) error {
		if s == 1 && m == wire.MGetAttr {
			once.Do(func() { // a's answer is on its way: b takes the write lease and changes the size
				write(t, b, h, 0, []byte("newer"), 0)
				fsync(t, b, h)
			})
		}
		return nil
	}
	f.Mu.Unlock()
	if got := stat(t, a, ino).Size; got != 3 {
		t.Errorf("the answer itself says %d", got)
	}
	if got := stat(t, a, ino).Size; got != 5 {
		t.Errorf("size %d was cached under a void grant, want 5", got)
	}
}

// Claim: close and unlink of a file whose attributes are cached show in the next stat.
func TestLinkCounts(t *testing.T) {
	f := fake.New(t)
	fs := client(t, f, 1, Config{})
	ctx := context.Background()
	h := create(t, fs, "a")
	if _, err := fs.Link(ctx, h.Ino(), fs.Root(), "b"); err != nil {
		t.Fatal(err)
	}
	if n := stat(t, fs, h.Ino()).Nlink; n != 2 {
		t.Errorf("%d links, want 2", n)
	}
	if err := fs.Unlink(ctx, fs.Root(), "a"); err != nil {
		t.Fatal(err)
	}
	if n := stat(t, fs, h.Ino()).Nlink; n != 1 {
		t.Errorf("%d links, want 1", n)
	}
	other := create(t, fs, "c")
	stat(t, fs, other.Ino())
	if err := fs.Rename(ctx, fs.Root(), "b", fs.Root(), "c", 0); err != nil {
		t.Fatal(err)
	}
	if n := stat(t, fs, other.Ino()).Nlink; n != 0 {
		t.Errorf("%d links of what was replaced, want 0", n)
	}
}

// Claim: an unlinked file can be used until its last close; then its owner is told.
func TestUnlinkedOpen(t *testing.T) {
	f := fake.New(t)
	fs := client(t, f, 1, Config{})
	ctx := context.Background()
	h := create(t, fs, "f")
	write(t, fs, h, 0, random(10000), 0)
	if err := fs.Unlink(ctx, fs.Root(), "f"); err != nil {
		t.Fatal(err)
	}
	write(t, fs, h, 5000, []byte("still"), 0)
	fsync(t, fs, h)
	if got := read(t, fs, h, 5000, 5, openDirect); string(got) != "still" {
		t.Errorf("read %q", got)
	}
	ino := h.Ino()
	fs.Release(ctx, h, false)
	eventually(t, "the inode is deleted", func() bool {
		f.Mu.Lock()
		defer f.Mu.Unlock()
		return f.Inodes[ino] == nil
	})
}

// Claim: a mutation whose answer is lost is not done twice.
func TestExactlyOnce(t *testing.T) {
	f := fake.New(t)
	fs := client(t, f, 1, Config{})
	var lose atomic.Bool
	f.Mu.Lock()
	f.After = func(_ wire.SessionID, _ wire.BucketID, m wire.Method, _ wire.Message) error {
		if lose.Swap(false) {
			return fake.Err(wire.KindConnLost)
		}
		return nil
	}
	f.Mu.Unlock()
	lose.Store(true)
	h := create(t, fs, "f")
	lose.Store(true)
	if _, err := fs.Link(context.Background(), h.Ino(), fs.Root(), "g"); err != nil {
		t.Fatal(err)
	}
	if n := stat(t, fs, h.Ino()).Nlink; n != 2 {
		t.Errorf("%d links", n)
	}
	lose.Store(true)
	if err := fs.Unlink(context.Background(), fs.Root(), "g"); err != nil {
		t.Errorf("unlink: %v", err)
	}
}

// Claim: a new owner of a bucket is told of leases, open files and locks, and every owner gets a claim, also an empty one.
func TestNewOwner(t *testing.T) {
	f := fake.New(t)
	fs := client(t, f, 1, Config{})
	h := create(t, fs, "f")
	write(t, fs, h, 0, []byte("dirty"), 0)
	if err := fs.SetLock(context.Background(), h.Ino(), locks.Held{Owner: 9, Start: 3, End: 5, Type: wire.LockWrite}, false); err != nil {
		t.Fatal(err)
	}
	f.Mu.Lock()
	for i := range f.Map.Owners {
		f.Map.Owners[i].Epoch = 2
	}
	f.Map.Generation++
	m := f.Map
	for _, in := range f.Inodes { // the new owner knows of no lease
		clear(in.Leases)
	}
	f.Mu.Unlock()
	fs.OnMap(&m)
	eventually(t, "claims are there", func() bool {
		f.Mu.Lock()
		defer f.Mu.Unlock()
		return len(f.Claims) == fake.Buckets
	})
	var leases, opens, held int
	seen := map[wire.BucketID]bool{}
	f.Mu.Lock()
	for _, c := range f.Claims {
		seen[c.Bucket] = true
		opens += len(c.Opens)
		held += len(c.Locks)
		for _, l := range c.Leases {
			if l.Ino == h.Ino() && l.Mode == wire.LeaseWrite {
				leases++
			}
		}
	}
	f.Mu.Unlock()
	if len(seen) != fake.Buckets || leases != 1 || opens != 1 || held != 1 {
		t.Errorf("%d buckets, %d leases, %d opens, %d locks", len(seen), leases, opens, held)
	}
	fsync(t, fs, h)
	if got := f.Content(h.Ino()); string(got) != "dirty" {
		t.Errorf("after the move the cluster has %q", got)
	}
}

// Claim: data whose lease a new owner does not know is not lost: the lease is taken again.
func TestLeaseLost(t *testing.T) {
	f := fake.New(t)
	fs := client(t, f, 1, Config{})
	h := create(t, fs, "f")
	write(t, fs, h, 0, []byte("kept"), 0)
	f.Mu.Lock()
	clear(f.Inodes[h.Ino()].Leases)
	f.Mu.Unlock()
	fsync(t, fs, h)
	if got := f.Content(h.Ino()); string(got) != "kept" {
		t.Errorf("the cluster has %q", got)
	}
}

// Claim: when the session may be dead nothing cached is used, and it is again after a heartbeat.
func TestSessionExpires(t *testing.T) {
	f := fake.New(t)
	fs := client(t, f, 1, Config{})
	h := create(t, fs, "f")
	stat(t, fs, h.Ino())
	fs.Renew(time.Now().Add(-time.Second))
	before := f.Count(wire.MGetAttr)
	stat(t, fs, h.Ino())
	if f.Count(wire.MGetAttr) == before {
		t.Error("attributes from the cache of a dead session")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := fs.Write(ctx, h, Write{Data: []byte("x")}); !errors.Is(err, wire.KindInterrupted) {
		t.Errorf("a write was buffered by a dead session: %v", err)
	}
	fs.Renew(time.Now().Add(time.Hour))
	write(t, fs, h, 0, []byte("x"), 0)
}

// Claim: a lock that is waited for is granted when it becomes free; an interrupted wait leaves nothing behind.
func TestLockWait(t *testing.T) {
	f := fake.New(t)
	fs := client(t, f, 1, Config{})
	ino := create(t, fs, "f").Ino()
	ctx := context.Background()
	all := func(owner uint64, typ uint8) locks.Held { return locks.Held{Owner: owner, End: lastByte, Type: typ} }
	if err := fs.SetLock(ctx, ino, all(1, wire.LockWrite), false); err != nil {
		t.Fatal(err)
	}
	if err := fs.SetLock(ctx, ino, all(2, wire.LockRead), false); !errors.Is(err, wire.KindWouldBlock) {
		t.Errorf("a lock in the way: %v", err)
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if err := fs.SetLock(short, ino, all(2, wire.LockRead), true); !errors.Is(err, wire.KindInterrupted) {
		t.Errorf("interrupted wait: %v", err)
	}
	got := make(chan error)
	go func() { got <- fs.SetLock(ctx, ino, all(3, wire.LockRead), true) }()
	time.Sleep(10 * time.Millisecond)
	if err := fs.SetLock(ctx, ino, all(1, wire.LockUnlock), false); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Errorf("wait: %v", err)
	}
	eventually(t, "only the granted lock is held", func() bool {
		f.Mu.Lock()
		defer f.Mu.Unlock()
		l := f.Inodes[ino].Locks
		return len(l) == 1 && l[0].Owner == 3
	})
}

// Claim: a listing gives every name once, in order of cookies, from any cookie on, and attributes of inodes in other buckets.
func TestReadDir(t *testing.T) {
	f := fake.New(t)
	fs := client(t, f, 1, Config{})
	ctx := context.Background()
	want := map[string]bool{".": true, "..": true}
	for i := range 50 {
		name := string(rune('a'+i%26)) + string(rune('a'+i/26))
		mode := uint32(modeFile)
		if i%3 == 0 {
			mode = modeDir
		}
		if _, err := fs.Make(ctx, Create{Parent: fs.Root(), Name: name, Mode: mode | 0o755}); err != nil {
			t.Fatal(err)
		}
		want[name] = true
	}
	for _, step := range []int{1, 5, 1000} {
		d := fs.OpenDir(fs.Root())
		got := map[string]bool{}
		cookie := uint64(0)
		for {
			n := 0
			err := d.Read(ctx, cookie, true, func(e *wire.DirEntry) bool {
				if n == step {
					return false
				}
				n++
				if got[e.Name] || e.Cookie <= cookie {
					t.Fatalf("%q with cookie %d after %d", e.Name, e.Cookie, cookie)
				}
				if e.Name[0] != '.' && !e.HasAttr {
					t.Errorf("%q without attributes", e.Name)
				}
				got[e.Name], cookie = true, e.Cookie
				return true
			})
			if err != nil {
				t.Fatal(err)
			}
			if n == 0 {
				break
			}
		}
		if len(got) != len(want) {
			t.Errorf("step %d: %d names, want %d", step, len(got), len(want))
		}
	}
}

// Claim: more inodes than the bound are given back to their owners, and can be used again.
func TestEvict(t *testing.T) {
	f := fake.New(t)
	fs := client(t, f, 1, Config{})
	for i := range maxIdleInodes + 1000 {
		f.Mu.Lock()
		in := f.NewInode(wire.MakeIno(wire.BucketID(i%fake.Buckets), uint64(1<<20+i)), modeFile)
		f.Mu.Unlock()
		stat(t, fs, in.Attr.Ino)
	}
	eventually(t, "inodes are forgotten", func() bool {
		fs.table.mu.Lock()
		defer fs.table.mu.Unlock()
		return len(fs.table.m) <= maxIdleInodes
	})
	if f.Count(wire.MLeaseDrop) == 0 {
		t.Error("no lease was given back")
	}
	stat(t, fs, wire.MakeIno(0, 1<<20))
}

// Claim: names, and their absence, are remembered under the directory's lease: no request for what is known; our own changes and those of
// other clients are seen at once. A model of one directory, changed by two clients, looked at by both.
func TestNames(t *testing.T) {
	f := fake.New(t)
	a, b := client(t, f, 1, Config{}), client(t, f, 2, Config{})
	ctx := context.Background()
	d, err := a.Make(ctx, Create{Parent: a.Root(), Name: "d", Mode: modeDir | 0o755})
	if err != nil {
		t.Fatal(err)
	}
	names := []string{"p", "q", "r", "s"}
	model := map[string]wire.Ino{}
	r := rand.New(rand.NewPCG(3, 4))
	for step := range 600 {
		fs := []*FS{a, b}[r.IntN(2)]
		n, m := names[r.IntN(len(names))], names[r.IntN(len(names))]
		var err error
		switch r.IntN(6) {
		case 0:
			var at wire.Attr
			if at, err = fs.Make(ctx, Create{Parent: d.Ino, Name: n, Mode: modeFile | 0o644}); err == nil {
				model[n] = at.Ino
			}
		case 1:
			if err = fs.Unlink(ctx, d.Ino, n); err == nil {
				delete(model, n)
			}
		case 2:
			if n != m {
				if err = fs.Rename(ctx, d.Ino, n, d.Ino, m, 0); err == nil {
					model[m] = model[n]
					delete(model, n)
				}
			}
		case 3:
			stat(t, fs, d.Ino)
		case 4:
			if err := fs.OpenDir(d.Ino).Read(ctx, 0, false, func(*wire.DirEntry) bool { return true }); err != nil {
				t.Fatal(err)
			}
		}
		if err != nil && !refused(err) {
			t.Fatal(err)
		}
		for i, fs := range []*FS{a, b} {
			for _, n := range names {
				at, err := fs.Lookup(ctx, d.Ino, n)
				if want, ok := model[n]; ok && (err != nil || at.Ino != want) || !ok && !errors.Is(err, wire.KindNotFound) {
					t.Fatalf("step %d: client %d finds %q: %d, %v; want %d", step, i, n, at.Ino, err, want)
				}
			}
		}
	}
	before := f.Count(wire.MLookup)
	for range 10 {
		for _, n := range names {
			_, _ = a.Lookup(ctx, d.Ino, n)
		}
	}
	if n := f.Count(wire.MLookup) - before; n > 0 {
		t.Errorf("%d requests for names that are known", n)
	}
}

// Claim: an answer about a name that our own mutation overtook is not kept.
func TestLateLookup(t *testing.T) {
	f := fake.New(t)
	fs, other := client(t, f, 1, Config{}), client(t, f, 2, Config{})
	create(t, other, "first") // so that the directory is not known to be empty
	ctx := context.Background()
	stat(t, fs, fs.Root())
	var once sync.Once
	f.Mu.Lock()
	f.After = func(s wire.SessionID, _ wire.BucketID, m wire.Method, _ wire.Message) error {
		if s == 1 && m == wire.MLookup {
			once.Do(func() { create(t, fs, "x") }) // the answer, that there is none, is on its way
		}
		return nil
	}
	f.Mu.Unlock()
	if _, err := fs.Lookup(ctx, fs.Root(), "x"); !errors.Is(err, wire.KindNotFound) {
		t.Fatalf("the answer itself: %v", err)
	}
	if _, err := fs.Lookup(ctx, fs.Root(), "x"); err != nil {
		t.Errorf("absence was remembered though the name was made meanwhile: %v", err)
	}
}
