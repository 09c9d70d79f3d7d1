package lease

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/crakefs/crake/wire"
)

// fakePeer plays all sessions and mgmt. Safe for concurrent use.
type fakePeer struct {
	mu      sync.Mutex
	recalls []wire.RecallReq
	evicted []wire.SessionID
	answer  func(ctx context.Context, req *wire.RecallReq) error
}

func (f *fakePeer) Recall(ctx context.Context, req *wire.RecallReq) error {
	f.mu.Lock()
	f.recalls = append(f.recalls, *req)
	answer := f.answer
	f.mu.Unlock()
	if answer == nil {
		return nil
	}
	return answer(ctx, req)
}

func (f *fakePeer) Evict(_ context.Context, s wire.SessionID, _ string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.evicted = append(f.evicted, s)
	return nil
}

func (f *fakePeer) reported() []wire.SessionID {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.evicted
}

func silent(ctx context.Context, _ *wire.RecallReq) error {
	<-ctx.Done()
	return wire.E("rpc", wire.KindTimeout, "", ctx.Err())
}

func manage(t *testing.T, f *fakePeer) *Manager {
	m := NewManager(Config{Peer: f, Log: slog.New(slog.DiscardHandler)})
	t.Cleanup(m.Close)
	return m
}

func hold(t *testing.T, m *Manager, s wire.SessionID, ino wire.Ino, change bool) func() {
	t.Helper()
	release, err := m.Hold(context.Background(), s, []wire.Ino{ino}, change)
	if err != nil {
		t.Fatal(err)
	}
	return release
}

func lend(t *testing.T, m *Manager, s wire.SessionID, ino wire.Ino, mode wire.LeaseMode) wire.Lease {
	t.Helper()
	use := UseRead
	if mode == wire.LeaseWrite {
		use = UseExclusive
	}
	release, err := m.Use(context.Background(), s, []wire.Ino{ino}, use)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	l := m.Grant(s, ino, mode)
	if l.Mode != mode {
		t.Fatalf("granted %+v, want mode %d", l, mode)
	}
	return l
}

// TestHoldRecalls: a conflicting lease is recalled, and the request goes on when the holder has answered; the recall's
// Seq is above the grant's.
func TestHoldRecalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakePeer{answer: func(context.Context, *wire.RecallReq) error {
			time.Sleep(30 * time.Millisecond) // it flushes
			return nil
		}}
		m := manage(t, f)
		l := lend(t, m, 1, inoA, wire.LeaseWrite)
		start := time.Now()
		release := hold(t, m, 2, inoA, false)
		if d := time.Since(start); d < 30*time.Millisecond || d > 40*time.Millisecond {
			t.Fatalf("waited %v", d)
		}
		if len(f.recalls) != 1 || f.recalls[0].To != wire.LeaseRead || f.recalls[0].Seq <= l.Seq {
			t.Fatalf("recalls %+v, grant %+v", f.recalls, l)
		}
		if !m.Holds(1, inoA, wire.LeaseRead) || m.Holds(1, inoA, wire.LeaseWrite) || m.WriteHeld(2, inoA) {
			t.Fatal("the lease is not reduced")
		}
		release()
		hold(t, m, 2, inoA, true)()
		if m.Leases() != 0 || len(f.recalls) != 2 || f.recalls[1].To != wire.LeaseNone {
			t.Fatalf("recalls %+v", f.recalls)
		}
	})
}

// TestSilentSession: a session that does not answer is reported to mgmt after the recall timeout, keeps its lease until
// the map lacks it, and then the lease passes on. While it flushes it is not reported.
func TestSilentSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakePeer{answer: silent}
		m := manage(t, f)
		lend(t, m, 1, inoA, wire.LeaseWrite)
		got := make(chan error, 1)
		go func() {
			release, err := m.Hold(context.Background(), 2, []wire.Ino{inoA}, true)
			if err == nil {
				release()
			}
			got <- err
		}()
		flush := hold(t, m, 1, inoA, true)
		time.Sleep(DefaultRecallTimeout + time.Second)
		if len(f.reported()) != 0 {
			t.Fatal("reported while a request of it runs")
		}
		flush()
		time.Sleep(DefaultRecallTimeout + time.Second)
		if len(f.reported()) != 1 || f.reported()[0] != 1 {
			t.Fatalf("reported %v", f.reported())
		}
		if len(got) != 0 || !m.Holds(1, inoA, wire.LeaseWrite) {
			t.Fatal("the lease passed on although the session may live")
		}
		m.CancelSession(1)
		m.EndSession(1)
		if err := <-got; err != nil {
			t.Fatal(err)
		}
	})
}

// TestRecallAgain: a recall that fails is sent again with the same Seq, at a falling rate.
func TestRecallAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		f := &fakePeer{}
		f.answer = func(context.Context, *wire.RecallReq) error {
			if n++; n < 5 {
				return wire.E("rpc", wire.KindConnLost, "", nil)
			}
			return nil
		}
		m := manage(t, f)
		lend(t, m, 1, inoA, wire.LeaseRead)
		start := time.Now()
		hold(t, m, 2, inoA, true)()
		if d := time.Since(start); d != (5+10+20+40)*time.Millisecond {
			t.Fatalf("took %v", d)
		}
		for _, r := range f.recalls {
			if r.Seq != f.recalls[0].Seq || r.Session != 1 {
				t.Fatalf("recalls %+v", f.recalls)
			}
		}
	})
}

// TestHoldEnds: a Hold ends at its deadline, by cancellation, with its session, by Bar, and with the manager; what it
// did not get it does not keep.
func TestHoldEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakePeer{answer: silent}
		m := manage(t, f)
		lend(t, m, 1, inoA, wire.LeaseRead)
		start := func(ctx context.Context, s wire.SessionID) chan error {
			c := make(chan error, 1)
			go func() {
				_, err := m.Hold(ctx, s, []wire.Ino{inoA}, true)
				c <- err
			}()
			synctest.Wait()
			return c
		}
		want := func(c chan error, k wire.Kind) {
			t.Helper()
			if err := <-c; !errors.Is(err, k) {
				t.Fatalf("got %v, want %v", err, k)
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		want(start(ctx, 2), wire.KindTimeout)
		ctx, cancel = context.WithCancel(context.Background())
		c := start(ctx, 3)
		cancel()
		want(c, wire.KindInterrupted)
		c = start(context.Background(), 4)
		m.CancelSession(4)
		want(c, wire.KindStaleSession)
		want(start(context.Background(), 4), wire.KindStaleSession)
		c = start(context.Background(), 5)
		m.Bar(wire.E("test", wire.KindUnavailable, "", nil))
		want(c, wire.KindUnavailable)
		want(start(context.Background(), 5), wire.KindUnavailable)
		hold(t, m, 5, inoB, true)() // need not wait
		m.Bar(nil)
		for range MaxWaitersPerSession {
			start(context.Background(), 6)
		}
		want(start(context.Background(), 6), wire.KindUnavailable)
		c = start(context.Background(), 7)
		m.Close()
		want(c, wire.KindMoved)
		if !m.Holds(1, inoA, wire.LeaseRead) {
			t.Fatal("the lease is gone")
		}
	})
}

// TestWriteLeaseLives: a write lease that was just granted is left alone for a moment, so that its holder gets
// something done before it goes to the next.
func TestWriteLeaseLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := manage(t, &fakePeer{})
		lend(t, m, 1, inoA, wire.LeaseWrite)
		start := time.Now()
		lend(t, m, 2, inoA, wire.LeaseWrite)
		if d := time.Since(start); d != minLeaseLife {
			t.Fatalf("moved on after %v", d)
		}
		time.Sleep(time.Second)
		start = time.Now()
		lend(t, m, 3, inoA, wire.LeaseWrite)
		if d := time.Since(start); d != 0 {
			t.Fatalf("an old one moved on after %v", d)
		}
	})
}

// TestManySessions: sessions take turns at the write lease of a few files, as fast as they can; nobody is left out.
func TestManySessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := manage(t, &fakePeer{})
		var wg sync.WaitGroup
		var mu sync.Mutex
		owner := map[wire.Ino]wire.SessionID{}
		for s := wire.SessionID(1); s <= 8; s++ {
			wg.Go(func() {
				for i := range 50 {
					ino := wire.Ino(2 + i%3)
					release, err := m.Use(context.Background(), s, []wire.Ino{ino}, UseExclusive)
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					if owner[ino] != 0 {
						t.Errorf("session %d and %d at once", owner[ino], s)
					}
					owner[ino] = s
					mu.Unlock()
					time.Sleep(time.Millisecond)
					if l := m.Grant(s, ino, wire.LeaseWrite); l.Mode != wire.LeaseWrite {
						t.Errorf("granted %+v", l)
					}
					mu.Lock()
					owner[ino] = 0
					mu.Unlock()
					release()
				}
			})
		}
		wg.Wait()
	})
}
