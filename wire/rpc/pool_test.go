package rpc

import (
	"context"
	"testing"
	"time"

	"github.com/crakefs/crake/wire"
)

// Claim: Drop ends the calls, the dial and the waits of whoever means the address as it was, though the peer says nothing; who asks
// later finds who listens there then; Close waits for what was dropped.
func TestDrop(t *testing.T) {
	m := NewMem()
	o := Options{Self: Self{Cluster: testCluster, Role: wire.RoleFrontend}, Net: m.Host("a"), DialTimeout: time.Hour}
	listen := func(name string, h Handler) {
		l, err := Listen("mem:"+name, Options{Self: Self{Cluster: testCluster, Role: wire.RoleCompute}, Net: m.Host(name), Handler: h})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { done <- l.Serve(ctx) }()
		t.Cleanup(func() { cancel(); <-done })
	}
	arrived := make(chan struct{})
	listen("mute", func(ctx context.Context, r *Request) (wire.Message, wire.Data, error) {
		close(arrived)
		<-ctx.Done()
		return nil, nil, ctx.Err()
	})
	listen("far", echo)
	p := NewPool(o)
	defer p.Close()

	asked := make(chan error, 1)
	c, err := p.Get(t.Context(), []string{"mem:mute"})
	if err != nil {
		t.Fatal(err)
	}
	go func() { asked <- c.Do(context.Background(), &Call{Method: wire.MDriveStat}) }()
	<-arrived
	m.Partition("a", "mute") // nothing that the peer does is heard any more
	p.Drop("mem:mute")
	if err := <-asked; wire.KindOf(err) != wire.KindConnLost {
		t.Error("call:", err)
	}

	m.Partition("a", "far")
	const waiting = 3
	dialled := make(chan error, waiting)
	for range waiting {
		go func() {
			_, err := p.Get(context.Background(), []string{"mem:far"})
			dialled <- err
		}()
	}
	for n := 0; n == 0; time.Sleep(time.Millisecond) { // until the dial is under way
		p.mu.Lock()
		if q := p.peers["mem:far"]; q != nil && q.dialing != nil {
			n = 1
		}
		p.mu.Unlock()
	}
	got := 0
	for got < waiting { // those that come after a Drop dial anew, as they may
		p.Drop("mem:far")
		select {
		case err := <-dialled:
			got++
			if wire.KindOf(err) != wire.KindUnavailable {
				t.Error("dial:", err)
			}
		case <-time.After(time.Millisecond):
		}
	}

	m.Heal("a", "far")
	if c, err = p.Get(t.Context(), []string{"mem:far"}); err != nil {
		t.Fatal("after Drop:", err)
	}
	p.Drop("mem:nobody")
	if again, err := p.Get(t.Context(), []string{"mem:far"}); err != nil || again != c {
		t.Error("another's Drop:", err)
	}
	p.Drop("mem:far")
	p.Close()
	select {
	case <-c.finished:
	default:
		t.Error("Close did not wait for what was dropped")
	}
}
