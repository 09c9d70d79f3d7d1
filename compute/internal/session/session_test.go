package session

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

func mapOf(g wire.Generation, ids ...wire.SessionID) *wire.ClusterMap {
	m := &wire.ClusterMap{Generation: g}
	for _, id := range ids {
		m.Sessions = append(m.Sessions, wire.SessionInfo{ID: id, Proc: wire.ProcID(id * 10)})
	}
	return m
}

// fakeConn is a session's end of a connection.
type fakeConn struct {
	done chan struct{}
	got  []wire.RecallReq
}

func newConn() *fakeConn { return &fakeConn{done: make(chan struct{})} }

func (c *fakeConn) Do(_ context.Context, call *rpc.Call) error {
	c.got = append(c.got, *call.Req.(*wire.RecallReq))
	return nil
}
func (c *fakeConn) Done() <-chan struct{} { return c.done }

type log struct {
	mu  sync.Mutex
	got []string
}

func (l *log) add(s string) { l.mu.Lock(); l.got = append(l.got, s); l.mu.Unlock() }
func (l *log) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	g := l.got
	l.got = nil
	return g
}

func start(t *testing.T, l *log) *Tracker {
	tr := New(Hooks{
		Cancel: func(wire.SessionID) { l.add("cancel") },
		Ended:  func(wire.SessionID) { l.add("ended") },
	})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = tr.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return tr
}

// TestBarrier: a request that has seen the map in which a session is gone does not run before the gone session's last
// request is over; new requests of it are refused at once; what it held is dropped in between, once.
func TestBarrier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l log
		tr := start(t, &l)
		ctx := context.Background()
		tr.Mark(mapOf(5, 1, 2))
		if err := tr.Wait(ctx, 5); err != nil {
			t.Fatal(err)
		}
		old, err := tr.Begin(1, 10, newConn())
		if err != nil {
			t.Fatal(err)
		}
		tr.Mark(mapOf(6, 2))
		tr.Mark(mapOf(5, 1, 2)) // late
		if _, err := tr.Begin(1, 10, newConn()); !errors.Is(err, wire.KindStaleSession) || tr.Alive(1) || !tr.Alive(2) || !tr.Alive(0) {
			t.Fatalf("a dead session begins a request: %v", err)
		}
		waited := make(chan error, 1)
		go func() { waited <- tr.Wait(ctx, 6) }()
		synctest.Wait()
		if len(waited) != 0 {
			t.Fatal("the barrier fell while a request of the dead session runs")
		}
		if got := l.take(); !slices.Equal(got, []string{"cancel"}) {
			t.Fatal(got)
		}
		if err := tr.Wait(ctx, 5); err != nil {
			t.Fatal("requests that know nothing of it have to wait")
		}
		tr.Mark(mapOf(7, 2, 3))
		old.End()
		if err := <-waited; err != nil {
			t.Fatal(err)
		}
		if got := l.take(); !slices.Equal(got, []string{"ended"}) {
			t.Fatal(got)
		}
		if err := tr.Wait(ctx, 7); err != nil {
			t.Fatal(err)
		}
		if err := tr.Wait(ctx, 8); !errors.Is(err, wire.KindStaleGeneration) {
			t.Fatal(err)
		}
	})
}

// TestWhoseSession: a session is used only by the process that has it.
func TestWhoseSession(t *testing.T) {
	tr := New(Hooks{})
	tr.Mark(mapOf(1, 1))
	if _, err := tr.Begin(1, 11, newConn()); !errors.Is(err, wire.KindPermission) {
		t.Fatal(err)
	}
	if _, err := tr.Begin(2, 20, newConn()); !errors.Is(err, wire.KindStaleSession) {
		t.Fatal(err)
	}
}

// TestRecallRoute: a recall goes to the connection of the newest request, waits for one, and ends with the session.
func TestRecallRoute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l log
		tr := start(t, &l)
		tr.Mark(mapOf(1, 1))
		recall := func() chan error {
			c := make(chan error, 1)
			go func() {
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				defer cancel()
				c <- tr.Recall(ctx, &wire.RecallReq{Session: 1, Ino: 7})
			}()
			synctest.Wait()
			return c
		}
		if err := <-recall(); !errors.Is(err, wire.KindConnLost) {
			t.Fatal(err)
		}
		c := recall()
		first := newConn()
		tok, err := tr.Begin(1, 10, first)
		if err != nil {
			t.Fatal(err)
		}
		tok.End()
		if err := <-c; err != nil || len(first.got) != 1 {
			t.Fatal(err, first.got)
		}
		close(first.done)
		c = recall()
		if len(c) != 0 {
			t.Fatal("sent on a dead connection")
		}
		second := newConn()
		tok, _ = tr.Begin(1, 10, second)
		tok.End()
		if err := <-c; err != nil || len(second.got) != 1 {
			t.Fatal(err)
		}
		close(second.done)
		c = recall()
		tr.Mark(mapOf(2))
		if err := <-c; !errors.Is(err, wire.KindStaleSession) {
			t.Fatal(err)
		}
	})
}
