package lock

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/crakefs/crake/wire"
)

const testIno = wire.Ino(1<<48 | 77)

func req(session, owner uint64, typ uint8, start, end uint64) *wire.LockReq {
	return &wire.LockReq{
		Op: wire.OpID{Session: wire.SessionID(session)}, Ino: testIno, Owner: owner, Type: typ, Start: start, End: end, PID: 1,
	}
}

// model is the plain truth: who has which type on each of 16 bytes, and on all that follow.
type model [17]map[Owner]uint8

func (m *model) conflict(r *wire.LockReq) bool {
	o := Owner{r.Op.Session, r.Owner}
	for i := r.Start; i <= min(r.End, 16); i++ {
		for h, t := range m[i] {
			if h != o && (t == wire.LockWrite || r.Type == wire.LockWrite) {
				return true
			}
		}
	}
	return false
}

func (m *model) set(r *wire.LockReq) {
	o := Owner{r.Op.Session, r.Owner}
	for i := r.Start; i <= min(r.End, 16); i++ {
		if m[i] == nil {
			m[i] = map[Owner]uint8{}
		}
		if r.Type == wire.LockUnlock {
			delete(m[i], o)
		} else {
			m[i][o] = r.Type
		}
	}
}

// TestRangesAgainstModel: setting, converting and dropping ranges splits and merges them as POSIX says, and conflicts
// are exactly those of single bytes.
func TestRangesAgainstModel(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		tab := NewTable()
		var m model
		for step := range 300 {
			a, b := rnd.Uint64N(16), rnd.Uint64N(16)
			r := req(1+rnd.Uint64N(2), rnd.Uint64N(2), uint8(rnd.IntN(3)), min(a, b), max(a, b))
			if rnd.IntN(10) == 0 {
				r.End = math.MaxUint64
			}
			test, err := tab.Test(r)
			if err != nil {
				t.Fatal(err)
			}
			want := r.Type != wire.LockUnlock && m.conflict(r)
			if (test.Type != wire.LockUnlock) != want {
				t.Fatalf("seed %d step %d: test says %+v, model says conflict %v", seed, step, test, want)
			}
			_, err = tab.Set(r)
			if want != errors.Is(err, wire.KindWouldBlock) || !want && err != nil {
				t.Fatalf("seed %d step %d: %v, model says conflict %v", seed, step, err, want)
			}
			if !want {
				m.set(r)
			}
			compare(t, tab, &m)
		}
	}
}

// compare checks every byte, that a table's ranges are minimal, and the session counts.
func compare(t *testing.T, tab *Table, m *model) {
	t.Helper()
	var rs ranges
	if f := tab.files[testIno]; f != nil {
		rs = f.posix
	}
	got := model{}
	counts := map[wire.SessionID]int{}
	for i, r := range rs {
		counts[r.Owner.Session]++
		if i > 0 && rs[i-1].Start > r.Start {
			t.Fatalf("not in order: %+v", rs)
		}
		for _, o := range rs {
			if o.Owner == r.Owner && o.Type == r.Type && adjacent(&o, &r) {
				t.Fatalf("not merged: %+v and %+v", o, r)
			}
		}
		for b := r.Start; b <= min(r.End, 16); b++ {
			if got[b] == nil {
				got[b] = map[Owner]uint8{}
			}
			if _, twice := got[b][r.Owner]; twice {
				t.Fatalf("byte %d is locked twice by %v: %+v", b, r.Owner, rs)
			}
			got[b][r.Owner] = r.Type
		}
	}
	for b := range m {
		if len(got[b]) != len(m[b]) {
			t.Fatalf("byte %d: %v, want %v", b, got[b], m[b])
		}
		for o, typ := range m[b] {
			if got[b][o] != typ {
				t.Fatalf("byte %d: %v, want %v", b, got[b], m[b])
			}
		}
	}
	for s, n := range counts {
		if tab.held[s] != n {
			t.Fatalf("session %d counts %d locks, has %d", s, tab.held[s], n)
		}
	}
	if len(counts) != len(tab.held) {
		t.Fatalf("counts %v, want %v", tab.held, counts)
	}
}

// TestEveryPair: two owners, every pair of types and every position of two ranges of up to 3 bytes.
func TestEveryPair(t *testing.T) {
	for typ1 := range uint8(2) {
		for typ2 := range uint8(2) {
			for s1 := range uint64(4) {
				for e1 := s1; e1 < 4; e1++ {
					for s2 := range uint64(4) {
						for e2 := s2; e2 < 4; e2++ {
							tab := NewTable()
							if _, err := tab.Set(req(1, 1, typ1, s1, e1)); err != nil {
								t.Fatal(err)
							}
							overlap := s1 <= e2 && s2 <= e1
							want := overlap && (typ1 == wire.LockWrite || typ2 == wire.LockWrite)
							_, err := tab.Set(req(2, 1, typ2, s2, e2))
							if errors.Is(err, wire.KindWouldBlock) != want {
								t.Fatalf("%d [%d,%d] then %d [%d,%d]: %v", typ1, s1, e1, typ2, s2, e2, err)
							}
						}
					}
				}
			}
		}
	}
}

func wait(r *wire.LockReq) *wire.LockReq { r.Wait = true; return r }

func mustSet(t *testing.T, tab *Table, r *wire.LockReq) *Waiter {
	t.Helper()
	w, err := tab.Set(r)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// TestWaitersInOrder: waiters get their turn in order of arrival, readers together.
func TestWaitersInOrder(t *testing.T) {
	tab := NewTable()
	mustSet(t, tab, req(1, 1, wire.LockWrite, 0, 9))
	r1 := mustSet(t, tab, wait(req(2, 1, wire.LockRead, 0, 9)))
	r2 := mustSet(t, tab, wait(req(2, 2, wire.LockRead, 5, 9)))
	w1 := mustSet(t, tab, wait(req(3, 1, wire.LockWrite, 0, 0)))
	w2 := mustSet(t, tab, wait(req(3, 2, wire.LockWrite, 9, 9)))
	if r1 == nil || r2 == nil || w1 == nil || w2 == nil || len(tab.Take()) != 0 {
		t.Fatal("somebody did not wait")
	}
	mustSet(t, tab, req(1, 1, wire.LockUnlock, 0, 9))
	same(t, tab.Take(), r1, r2)
	mustSet(t, tab, req(2, 1, wire.LockUnlock, 0, 4))
	same(t, tab.Take(), w1)
	mustSet(t, tab, req(2, 1, wire.LockUnlock, 0, math.MaxUint64))
	same(t, tab.Take())
	mustSet(t, tab, req(2, 2, wire.LockUnlock, 0, math.MaxUint64))
	same(t, tab.Take(), w2)
	tab.EndSession(3)
	if len(tab.files) != 0 || tab.Locks() != 0 || len(tab.waiting) != 0 || len(tab.waits) != 0 {
		t.Fatalf("something is left: %+v", tab)
	}
}

func same(t *testing.T, got []*Waiter, want ...*Waiter) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d woken, want %d", len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] || got[i].Err != nil {
			t.Fatalf("waiter %d: %+v, want %+v", i, got[i], want[i])
		}
	}
}

// TestDeadlock: a circle of two and of three owners over two inodes is refused, a chain is not, and a circle that comes
// about by a grant is broken.
func TestDeadlock(t *testing.T) {
	tab := NewTable()
	at := func(ino wire.Ino, r *wire.LockReq) *wire.LockReq { r.Ino = ino; return r }
	mustSet(t, tab, req(1, 1, wire.LockWrite, 0, 0))
	mustSet(t, tab, at(5, req(2, 1, wire.LockWrite, 0, 0)))
	mustSet(t, tab, at(6, req(3, 1, wire.LockWrite, 0, 0)))
	mustSet(t, tab, wait(at(5, req(1, 1, wire.LockWrite, 0, 0)))) // 1 waits for 2
	mustSet(t, tab, wait(at(6, req(2, 1, wire.LockRead, 0, 0))))  // 2 waits for 3
	if _, err := tab.Set(wait(req(3, 1, wire.LockRead, 0, 0))); !errors.Is(err, wire.KindDeadlock) {
		t.Fatalf("circle of three: %v", err)
	}
	if w := mustSet(t, tab, wait(req(4, 1, wire.LockRead, 0, 0))); w == nil {
		t.Fatal("a chain is no circle")
	}

	// Owner 1 holds a, 2 threads of owner 2 wait for a and (held by 1 too) b; owner 3 waits for a behind. When 2 gets a
	// and still waits for b of 1, and 1 then waits for a: a circle.
	tab = NewTable()
	mustSet(t, tab, at(7, req(1, 1, wire.LockWrite, 0, 0)))
	mustSet(t, tab, at(8, req(1, 1, wire.LockWrite, 0, 0)))
	mustSet(t, tab, wait(at(7, req(2, 1, wire.LockWrite, 0, 0))))
	mustSet(t, tab, wait(at(8, req(2, 1, wire.LockWrite, 0, 0))))
	mustSet(t, tab, at(7, req(1, 1, wire.LockUnlock, 0, 0)))
	if _, err := tab.Set(wait(at(7, req(1, 1, wire.LockWrite, 0, 0)))); !errors.Is(err, wire.KindDeadlock) {
		t.Fatalf("circle through a thread that still waits: %v", err)
	}
	// 9: held for reading by 1 and 3; 2 waits to write. 1 waits for what 2 holds (8 is of 2 now)...
	tab = NewTable()
	mustSet(t, tab, at(9, req(1, 1, wire.LockWrite, 0, 0)))
	x := mustSet(t, tab, wait(at(9, req(2, 1, wire.LockWrite, 0, 0)))) // 2 waits for 1
	y := mustSet(t, tab, wait(at(9, req(3, 1, wire.LockWrite, 0, 0)))) // 3 waits for 1
	mustSet(t, tab, at(10, req(3, 1, wire.LockWrite, 0, 0)))
	z := mustSet(t, tab, wait(at(10, req(2, 1, wire.LockWrite, 0, 0)))) // 2 waits for 3 too
	mustSet(t, tab, at(9, req(1, 1, wire.LockUnlock, 0, 0)))            // 2 gets 9; so 3 waits for 2, and 2 for 3
	got := tab.Take()
	if len(got) != 2 || got[0] != x || got[1] != y || !errors.Is(y.Err, wire.KindDeadlock) || z.ended {
		t.Fatalf("circle by a grant: %+v", got)
	}
}

// TestFlock: a flock is of the whole file, apart from fcntl locks, and changes type by dropping the old one first.
func TestFlock(t *testing.T) {
	tab := NewTable()
	fl := func(s uint64, typ uint8) *wire.LockReq { r := req(s, 1, typ, 3, 4); r.Flock = true; return r }
	mustSet(t, tab, req(9, 1, wire.LockWrite, 0, 100)) // fcntl: no conflict
	mustSet(t, tab, fl(1, wire.LockRead))
	mustSet(t, tab, fl(2, wire.LockRead))
	mustSet(t, tab, fl(2, wire.LockRead)) // again
	if _, err := tab.Set(fl(1, wire.LockWrite)); !errors.Is(err, wire.KindWouldBlock) {
		t.Fatal(err)
	}
	mustSet(t, tab, fl(2, wire.LockWrite)) // 1 has lost its lock by trying
	w := mustSet(t, tab, wait(fl(1, wire.LockRead)))
	mustSet(t, tab, fl(2, wire.LockRead)) // down to a read lock
	same(t, tab.Take(), w)
	tab.EndSession(1)
	tab.EndSession(2)
	tab.EndSession(9)
	if len(tab.files) != 0 {
		t.Fatalf("left: %+v", tab.files)
	}
}

// TestInvalid: a range that ends before it starts and an unknown type are refused; the limits hold.
func TestInvalid(t *testing.T) {
	tab := NewTable()
	for _, r := range []*wire.LockReq{req(1, 1, wire.LockRead, 5, 4), req(1, 1, 3, 0, 0)} {
		if _, err := tab.Set(r); !errors.Is(err, wire.KindInvalid) {
			t.Fatal(err)
		}
		if _, err := tab.Test(r); !errors.Is(err, wire.KindInvalid) {
			t.Fatal(err)
		}
	}
	mustSet(t, tab, req(1, 1, wire.LockWrite, 0, 0))
	for range MaxSessionWaiters {
		mustSet(t, tab, wait(req(2, 1, wire.LockRead, 0, 0)))
	}
	if _, err := tab.Set(wait(req(2, 1, wire.LockRead, 0, 0))); !errors.Is(err, wire.KindUnavailable) {
		t.Fatal(err)
	}
	tab.held[2] = MaxSessionLocks
	if _, err := tab.Set(req(2, 1, wire.LockRead, 9, 9)); !errors.Is(err, wire.KindOverLimit) {
		t.Fatal(err)
	}
}

// TestWaitAndCancel: a waiting request is granted, interrupted, timed out, ended with its session or with the bucket.
func TestWaitAndCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewManager()
		ctx := context.Background()
		if _, err := m.Do(ctx, req(1, 1, wire.LockWrite, 0, 9)); err != nil {
			t.Fatal(err)
		}
		start := func(ctx context.Context, s uint64) chan error {
			c := make(chan error, 1)
			go func() {
				_, err := m.Do(ctx, wait(req(s, 1, wire.LockWrite, 0, 9)))
				c <- err
			}()
			synctest.Wait()
			return c
		}
		cctx, cancel := context.WithCancel(ctx)
		interrupted := start(cctx, 2)
		dctx, dcancel := context.WithTimeout(ctx, time.Second)
		defer dcancel()
		late := start(dctx, 3)
		granted := start(ctx, 4)
		ended := start(ctx, 5)
		moved := start(ctx, 6)
		cancel()
		if err := <-interrupted; !errors.Is(err, wire.KindInterrupted) {
			t.Fatal(err)
		}
		if err := <-late; !errors.Is(err, wire.KindTimeout) {
			t.Fatal(err)
		}
		m.EndSession(5)
		if err := <-ended; !errors.Is(err, wire.KindStaleSession) {
			t.Fatal(err)
		}
		m.EndSession(1)
		if err := <-granted; err != nil {
			t.Fatal(err)
		}
		m.Bar(wire.E("test", wire.KindMoved, "", nil))
		if err := <-moved; !errors.Is(err, wire.KindMoved) {
			t.Fatal(err)
		}
		if m.Locks() != 1 {
			t.Fatalf("%d locks", m.Locks())
		}
	})
}
