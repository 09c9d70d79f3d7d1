package rpc

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crakefs/crake/wire"
)

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("in vain waited for: %s", what)
		}
	}
}

// Claim: both sides may ask; a handler may ask back on the connection of its request, even when all handlers do at once.
func TestBothWays(t *testing.T) {
	eachTransport(t, func(t *testing.T, w *world) {
		w.client.Handler = echo
		w.server.MaxHandlers = 4
		w.serve()
		c := w.dial()
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				var m wire.AppendResp
				if err := c.Do(t.Context(), &Call{Method: mBack, Resp: &m}); err != nil || m.Len != 77 {
					t.Error(m, err)
				}
			})
		}
		wg.Wait()
	})
}

// Claim: a side without a handler refuses requests, with a kind that promises no effect.
func TestNoHandler(t *testing.T) {
	eachTransport(t, func(t *testing.T, w *world) {
		w.serve()
		c := w.dial()
		if err := c.Do(t.Context(), &Call{Method: mBack}); wire.KindOf(err) != wire.KindRefused {
			t.Error(err)
		}
		d := w.data(10000, 1)
		defer d.Release()
		if err := c.Do(t.Context(), &Call{Method: 0x7fff, Data: d}); wire.KindOf(err) != wire.KindVersion {
			t.Error("unknown method:", err)
		}
		call := Call{Method: mEcho, Req: &wire.Empty{}, Data: d, Resp: nil}
		if err := c.Do(t.Context(), &call); err != nil {
			t.Error("nil Resp:", err)
		}
		call.RespData.Release()
	})
}

// Claim: the deadline travels, a cancel travels, and a broken connection ends the handler's ctx; each within moments.
func TestHandlerContext(t *testing.T) {
	eachTransport(t, func(t *testing.T, w *world) {
		ended := make(chan error, 1)
		began := make(chan time.Time, 1)
		w.server.Handler = func(ctx context.Context, r *Request) (wire.Message, wire.Data, error) {
			at, _ := ctx.Deadline()
			began <- at
			child, cancel := context.WithTimeout(ctx, time.Hour) // hangs on ctx by AfterFunc
			defer cancel()
			<-child.Done()
			ended <- ctx.Err()
			return nil, nil, ctx.Err()
		}
		w.serve()
		c := w.dial()

		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if err := c.Do(ctx, &Call{Method: mSleep}); wire.KindOf(err) != wire.KindTimeout || !errors.Is(err, context.DeadlineExceeded) && err.(*wire.Error).Op != "" {
			t.Error(err)
		}
		if left := time.Until(<-began); left > 50*time.Millisecond {
			t.Error("deadline of the handler is in", left)
		}
		if err := <-ended; err == nil {
			t.Error("the handler's ctx lives")
		}

		ctx, cancel = context.WithCancel(t.Context())
		go func() { <-began; cancel() }()
		start := time.Now()
		if err := c.Do(ctx, &Call{Method: mSleep}); wire.KindOf(err) != wire.KindInterrupted || !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error("after a cancel:", err)
		}

		go func() { <-began; _ = c.Close() }()
		if err := c.Do(t.Context(), &Call{Method: mSleep}); wire.KindOf(err) != wire.KindConnLost {
			t.Error(err)
		}
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error("after the end of the connection:", err)
		}
		if d := time.Since(start); d > 2*time.Second {
			t.Error("took", d)
		}
	})
}

// Claim: when the listener ends, calls under way fail with KindConnLost, OnClose is called once on each side after the last handler
// returned, and later calls fail at once.
func TestPeerEnds(t *testing.T) {
	eachTransport(t, func(t *testing.T, w *world) {
		var handlers, closed atomic.Int32
		var late atomic.Bool
		w.server.Handler = func(ctx context.Context, r *Request) (wire.Message, wire.Data, error) {
			handlers.Add(1)
			defer handlers.Add(-1)
			<-ctx.Done()
			time.Sleep(20 * time.Millisecond)
			return nil, nil, nil
		}
		w.server.OnClose = func(*Conn, error) {
			closed.Add(1)
			late.Store(handlers.Load() != 0)
		}
		w.client.OnClose = func(*Conn, error) { closed.Add(1) }
		w.serve()
		c := w.dial()
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if err := c.Do(t.Context(), &Call{Method: mSleep}); wire.KindOf(err) != wire.KindConnLost {
					t.Error(err)
				}
			})
		}
		eventually(t, "handlers", func() bool { return handlers.Load() == 10 })
		w.stop()
		wg.Wait()
		<-c.Done()
		if c.Err() == nil {
			t.Error("no reason")
		}
		if err := c.Do(t.Context(), &Call{Method: mEcho}); wire.KindOf(err) != wire.KindConnLost {
			t.Error(err)
		}
		eventually(t, "OnClose", func() bool { return closed.Load() == 2 })
		if late.Load() {
			t.Error("OnClose came before a handler returned")
		}
	})
}

// Claim: a small request does not wait until all the large data that was asked to be sent before it has gone.
func TestSmallOvertakesLarge(t *testing.T) {
	eachTransport(t, func(t *testing.T, w *world) {
		gate := make(chan struct{})
		open := sync.OnceFunc(func() { close(gate) })
		defer open()
		w.serverA = testArena(t, 256<<20)
		w.server.Arena = w.serverA
		w.server.Handler = func(ctx context.Context, r *Request) (wire.Message, wire.Data, error) {
			if r.Data != nil {
				<-gate
			}
			return echo(ctx, r)
		}
		w.serve()
		c := w.dial()
		d := w.data(8<<20, 1)
		defer d.Release()
		var wg sync.WaitGroup
		for range 8 { // twice the window of 32 MiB
			wg.Go(func() {
				call := Call{Method: mEcho, Data: d}
				if err := c.Do(t.Context(), &call); err != nil {
					t.Error(err)
				}
				call.RespData.Release()
			})
		}
		for range 100 {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			err := c.Do(ctx, &Call{Method: mEcho})
			cancel()
			if err != nil {
				t.Error("a small request behind large ones:", err)
				break
			}
		}
		open()
		wg.Wait()
	})
}

// Claim: callers past the window wait, in order, and leave with their ctx; the peer never sees more than the window.
func TestWindow(t *testing.T) {
	eachTransport(t, func(t *testing.T, w *world) {
		gate := make(chan struct{})
		open := sync.OnceFunc(func() { close(gate) })
		defer open()
		var inside, most atomic.Int64
		w.server.Handler = func(ctx context.Context, r *Request) (wire.Message, wire.Data, error) {
			n := inside.Add(int64(r.Data.Len()))
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			<-gate
			inside.Add(-int64(r.Data.Len()))
			r.Data.Release()
			return nil, nil, nil
		}
		w.serve()
		c := w.dial()
		d := w.data(1<<20, 1)
		defer d.Release()
		var wg sync.WaitGroup
		for range 24 {
			wg.Go(func() {
				if err := c.Do(context.Background(), &Call{Method: mEcho, Data: d}); err != nil {
					t.Error(err)
				}
			})
		}
		eventually(t, "the window to fill", func() bool { return inside.Load() == 8<<20 })
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if err := c.Do(ctx, &Call{Method: mEcho, Data: d}); wire.KindOf(err) != wire.KindTimeout {
			t.Error("waiting for the window:", err)
		}
		open()
		wg.Wait()
		if most.Load() != 8<<20 {
			t.Errorf("%d bytes at once, the window is an eighth of 64 MiB", most.Load())
		}
	})
}

// Claim: when the receiver's arena is exhausted for longer than it waits, a request is answered with KindUnavailable, and the
// connection goes on; when the caller's is, the call is.
func TestArenaExhausted(t *testing.T) {
	eachTransport(t, func(t *testing.T, w *world) {
		w.serve()
		c := w.dial()
		d := w.data(1<<20, 1)
		defer d.Release()
		for _, a := range []*wire.Arena{w.serverA, w.clientA} {
			var hold wire.Data
			for {
				got := a.TryAllocData(1<<20, wire.UseResponse)
				if got == nil {
					break
				}
				hold = append(hold, got...)
			}
			call := Call{Method: mEcho, Data: d}
			err := c.Do(t.Context(), &call)
			if c.Transport() == TransportShm && err == nil {
				call.RespData.Release() // data that does not land needs no room
			} else if wire.KindOf(err) != wire.KindUnavailable {
				t.Error(err)
			}
			if err := c.Do(t.Context(), &Call{Method: mEcho}); err != nil {
				t.Error("afterwards:", err)
			}
			hold.Release()
			call = Call{Method: mEcho, Data: d}
			if err := c.Do(t.Context(), &call); err != nil || !bytes.Equal(flat(call.RespData), flat(d)) {
				t.Error("afterwards:", err)
			}
			call.RespData.Release()
		}
	})
}

// Claim: more than a process may send is refused before anything is sent.
func TestOverLimit(t *testing.T) {
	eachTransport(t, func(t *testing.T, w *world) {
		w.serve()
		c := w.dial()
		d := append(w.data(8<<20, 1), w.data(4096, 1)...)
		defer d.Release()
		if err := c.Do(t.Context(), &Call{Method: mEcho, Data: d}); wire.KindOf(err) != wire.KindOverLimit {
			t.Error(err)
		}
		long := &wire.XattrResp{Value: make([]byte, wire.MaxMetaBytes+1)}
		if err := c.Do(t.Context(), &Call{Method: mEcho, Req: long}); wire.KindOf(err) != wire.KindOverLimit {
			t.Error(err)
		}
		if err := c.Do(t.Context(), &Call{Method: mEcho}); err != nil {
			t.Error(err)
		}
	})
}

// Claim: meta sections of every length up to several MiB pass, both ways.
func TestBigMeta(t *testing.T) {
	eachTransport(t, func(t *testing.T, w *world) {
		w.server.Handler = func(ctx context.Context, r *Request) (wire.Message, wire.Data, error) {
			var m wire.XattrResp
			if err := m.Decode(r.Meta); err != nil {
				r.Data.Release()
				return nil, nil, err
			}
			return &m, r.Data, nil
		}
		w.serve()
		c := w.dial()
		for _, n := range []int{0, 1, readBufferBytes - 200, readBufferBytes - 64, readBufferBytes, heapMetaBytes - 100, heapMetaBytes, 300_000, 7 << 20} {
			for _, dn := range []int{0, 5000} {
				var d wire.Data
				if dn > 0 {
					d = w.data(dn, 3)
				}
				req, resp := &wire.XattrResp{Value: make([]byte, n)}, wire.XattrResp{}
				fill(req.Value, n)
				call := Call{Method: mEcho, Req: req, Resp: &resp, Data: d}
				if err := c.Do(t.Context(), &call); err != nil || !bytes.Equal(resp.Value, req.Value) || !bytes.Equal(flat(call.RespData), flat(d)) {
					t.Error(n, dn, err)
				}
				call.RespData.Release()
				d.Release()
			}
		}
	})
}

// Claim: a peer that asks for much and reads nothing costs the server a bounded part of its arena, and other peers are served.
func TestSlowReader(t *testing.T) {
	eachTransport(t, func(t *testing.T, w *world) {
		w.serverA = testArena(t, 256<<20)
		w.server.Arena = w.serverA
		w.server.MaxHandlers = 8
		w.server.Handler = func(ctx context.Context, r *Request) (wire.Message, wire.Data, error) {
			r.Data.Release()
			b, err := w.serverA.Alloc(ctx, 1<<20)
			if err != nil {
				return nil, nil, err
			}
			return nil, b.Data(1 << 20), nil
		}
		w.serve()
		s := w.raw()
		for id := range 200 {
			if err := writeFull(s, frame(wire.Header{Kind: wire.FrameRequest, Method: mMake, ID: uint64(id + 1)}, nil, nil)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(100 * time.Millisecond)
		if used := w.serverA.Used(); used > 24<<20 {
			t.Errorf("a peer that does not read holds %d MiB", used>>20)
		}
		c := w.dial()
		call := Call{Method: mMake}
		if err := c.Do(t.Context(), &call); err != nil {
			t.Error(err)
		}
		call.RespData.Release()
		// It reads at last: every answer comes.
		buf := make([]byte, 1<<20+wire.HeaderBytes)
		for range 200 {
			if err := readFull(s, buf); err != nil {
				t.Fatal(err)
			}
		}
		_ = s.close()
	})
}

// Claim: an answer that comes after the call was given up is thrown away, and the connection goes on.
func TestLateAnswer(t *testing.T) {
	eachTransport(t, func(t *testing.T, w *world) {
		gate := make(chan struct{})
		w.server.Handler = func(_ context.Context, r *Request) (wire.Message, wire.Data, error) {
			if r.Data != nil {
				<-gate
			}
			return &wire.Empty{}, r.Data, nil
		}
		w.serve()
		c := w.dial()
		d := w.data(300_000, 1)
		defer d.Release()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if err := c.Do(ctx, &Call{Method: mEcho, Data: d}); wire.KindOf(err) != wire.KindTimeout {
			t.Error(err)
		}
		close(gate)
		call := Call{Method: mEcho, Data: d}
		if err := c.Do(t.Context(), &call); err != nil || !bytes.Equal(flat(call.RespData), flat(d)) {
			t.Error(err)
		}
		call.RespData.Release()
	})
}

// Claim: an answer that arrives in the same moment as its call is given up gives its memory back.
func TestAnswerOfAbandoned(t *testing.T) {
	a := testArena(t, 1<<20)
	b, err := a.Alloc(t.Context(), 5000)
	if err != nil {
		t.Fatal(err)
	}
	p := &pending{done: make(chan struct{}, 1), call: &Call{}}
	p.state.Store(callAbandoned)
	p.deliver(&wire.Header{}, nil, b.Data(5000), nil)
	if a.Used() != 0 || len(p.done) != 0 || p.call.RespData != nil {
		t.Error(a.Used(), len(p.done), p.call)
	}
}

// Claim: who waits for the window is served in order; one that leaves lets those behind it through; one without data passes those that
// lack bytes only.
func TestWindowQueue(t *testing.T) {
	w := newWindow(3, 100)
	never := make(chan struct{})
	if !w.try(90) {
		t.Fatal("no room in an empty window")
	}
	waiting := func(n int) {
		eventually(t, "waiters", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return len(w.loaded) == n })
	}
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() { left <- w.acquire(ctx, 50, never) }()
	waiting(1)
	through := make(chan error, 1)
	go func() { through <- w.acquire(t.Context(), 10, never) }()
	waiting(2)
	if w.try(5) {
		t.Error("a newcomer overtook those who wait")
	}
	if !w.try(0) {
		t.Error("one without data waits for bytes")
	}
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := <-through; err != nil {
		t.Error(err)
	}
	if w.try(0) {
		t.Error("more requests than the window has")
	}
	ended := make(chan struct{})
	close(ended)
	if err := w.acquire(t.Context(), 0, ended); !errors.Is(err, errDone) {
		t.Error(err)
	}
	w.release(0)
	w.release(10)
	w.release(90)
	if !w.try(1000) || w.try(1) {
		t.Error("one larger than the window goes alone")
	}
	w.release(1000)
	if w.reqs != 3 || w.bytes != 100 {
		t.Error(w.reqs, w.bytes)
	}
}

// Claim: a handler's ctx ends at the deadline that came with the request, also when the asker sends no cancel.
func TestDeadlineAtHandler(t *testing.T) {
	eachTransport(t, func(t *testing.T, w *world) {
		w.serve()
		s := w.raw()
		_ = s.setDeadline(time.Now().Add(5 * time.Second))
		if err := writeFull(s, frame(wire.Header{Kind: wire.FrameRequest, Method: mSleep, ID: 1, DeadlineMs: 30}, nil, nil)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, wire.HeaderBytes)
		if err := readFull(s, b); err != nil {
			t.Fatal(err)
		}
		if h, err := wire.DecodeHeader(b); err != nil || h.Status != wire.KindTimeout {
			t.Errorf("%+v %v", h, err)
		}
	})
}
