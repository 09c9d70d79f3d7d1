package rpc

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crakefs/crake/wire"
)

// mirror answers any request with its own meta section and data.
func mirror(_ context.Context, r *Request) (wire.Message, wire.Data, error) {
	var m wire.XattrResp
	if err := m.Decode(r.Meta); err != nil {
		r.Data.Release()
		return nil, nil, err
	}
	return &m, r.Data, nil
}

// Claim: sections of every length at the edges pass unchanged, both ways: none, one byte, a byte around a block, and the longest that may be.
func TestSections(t *testing.T) {
	overhead := len((&wire.XattrResp{}).Append(nil))
	metas := []int{0, 1, 4095 - overhead, 4096 - overhead, 4097 - overhead, wire.MaxMetaBytes - overhead}
	datas := []int{0, 1, 4095, 4096, 4097, copyBytes, copyBytes + 1, wire.MaxDataBytes - 1, wire.MaxDataBytes}
	eachTransport(t, func(t *testing.T, w *world) {
		w.server.Handler = mirror
		w.serve()
		c := w.dial()
		for i, mn := range metas {
			for j, dn := range datas {
				if raceEnabled && i+1 == len(metas) && j > 0 && j+1 < len(datas) {
					continue // half a second each
				}
				var d wire.Data
				if dn > 0 {
					d = w.data(dn, i+j)
				}
				req, resp := &wire.XattrResp{Value: make([]byte, mn)}, wire.XattrResp{}
				fill(req.Value, i)
				call := Call{Method: mEcho, Req: req, Resp: &resp, Data: d}
				if err := c.Do(t.Context(), &call); err != nil || !bytes.Equal(resp.Value, req.Value) || !bytes.Equal(flat(call.RespData), flat(d)) {
					t.Errorf("meta of %d and data of %d bytes: %v", mn, dn, err)
				}
				call.RespData.Release()
				d.Release()
			}
		}
		if err := c.Do(t.Context(), &Call{Method: mEcho, Req: &wire.XattrResp{Value: make([]byte, wire.MaxMetaBytes-overhead+1)}}); wire.KindOf(err) != wire.KindOverLimit {
			t.Error("a byte more of meta:", err)
		}
	})
}

// Claim: the requests of one caller arrive in its order, each once; and a cancel never comes before its request: nothing is worked on for
// ever because the asker gave up in the moment of sending.
func TestOrder(t *testing.T) {
	eachTransport(t, func(t *testing.T, w *world) {
		var last atomic.Uint64
		w.server.Handler = func(ctx context.Context, r *Request) (wire.Message, wire.Data, error) {
			if before := last.Swap(r.Header.ID); r.Header.Method == mEcho && r.Header.ID <= before {
				t.Errorf("request %d came after %d", r.Header.ID, before)
			}
			return echo(ctx, r)
		}
		w.serve()
		c := w.dial()
		d := w.data(20_000, 1)
		defer d.Release()
		for i := range 300 {
			call := Call{Method: mEcho, Data: d[:i%2]}
			if err := c.Do(t.Context(), &call); err != nil {
				t.Fatal(err)
			}
			call.RespData.Release()
		}
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				for i := range 100 {
					ctx, cancel := context.WithCancel(t.Context())
					time.AfterFunc(time.Duration((i*7+g)%50)*time.Microsecond, cancel)
					if err := c.Do(ctx, &Call{Method: mSleep, Data: d[:i%2]}); !errors.Is(err, wire.KindInterrupted) {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		w.booksEmpty(c)
	})
}

// booksEmpty waits until all that was asked on c is answered, on both sides, with all of the window given back.
func (w *world) booksEmpty(c *Conn) {
	w.t.Helper()
	eventually(w.t, "the books of the asker to be empty", func() bool {
		c.mu.Lock()
		calls := len(c.calls)
		c.mu.Unlock()
		c.out.mu.Lock()
		defer c.out.mu.Unlock()
		return calls == 0 && c.out.reqs == wire.MaxInFlight && c.out.bytes == c.out.maxBytes
	})
	eventually(w.t, "the books of the answerer to be empty", func() bool {
		w.listener.mu.Lock()
		defer w.listener.mu.Unlock()
		for s := range w.listener.conns {
			s.serveMu.Lock()
			busy := len(s.serving) != 0 || s.servedBytes != 0
			s.serveMu.Unlock()
			if busy {
				return false
			}
		}
		return true
	})
}

// Claim: a call that is given up before it is sent is never sent, whether it had not begun or waited for its turn to be written; one that
// waits behind it is. (While it waits for the window: TestWindow; while it is worked on: TestHandlerContext.)
func TestCancelUnsent(t *testing.T) {
	eachTransport(t, func(t *testing.T, w *world) {
		w.client.Arena = testArena(t, 256<<20) // its window of 32 MiB takes all four
		c, _, peer := w.endpoint()             // the peer reads nothing
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if err := c.Do(gone, &Call{Method: mEcho}); !errors.Is(err, wire.KindInterrupted) {
			t.Error(err)
		}
		b, err := w.serverA.Alloc(t.Context(), 8<<20)
		if err != nil {
			t.Fatal(err)
		}
		d := b.Data(8 << 20)
		defer d.Release()
		waits := func(id uint64) bool {
			c.w.mu.Lock()
			defer c.w.mu.Unlock()
			return slices.ContainsFunc(c.w.large, func(f outFrame) bool { return f.id == id })
		}
		asked := func(id uint64) bool { c.mu.Lock(); defer c.mu.Unlock(); return c.nextID == id }
		var wg sync.WaitGroup
		ask := func(ctx context.Context, m wire.Method, want wire.Kind) {
			wg.Go(func() {
				if err := c.Do(ctx, &Call{Method: m, Data: d}); wire.KindOf(err) != want {
					t.Errorf("%#x: %v", uint16(m), err)
				}
			})
		}
		for id := range uint64(2) { // more than any stream takes
			ask(t.Context(), mMake, wire.KindNone)
			eventually(t, "a large request", func() bool { return asked(id + 1) })
		}
		third, giveUp := context.WithCancel(t.Context())
		ask(third, mSleep, wire.KindInterrupted)
		eventually(t, "the third to wait", func() bool { return waits(3) })
		ask(t.Context(), mEcho, wire.KindNone)
		eventually(t, "the fourth to wait", func() bool { return waits(4) })
		giveUp()
		eventually(t, "the third to be withdrawn", func() bool { return !waits(3) })
		frame := make([]byte, wire.HeaderBytes+8<<20)
		for _, want := range []wire.Method{mMake, mMake, mEcho} {
			if err := readFull(peer, frame); err != nil {
				t.Fatal(err)
			}
			h, err := wire.DecodeHeader(frame)
			if err != nil || h.Kind != wire.FrameRequest || h.Method != want {
				t.Fatalf("%+v, %v; want method %#x", h, err, uint16(want))
			}
			h.Kind, h.DataBytes, h.DeadlineMs = wire.FrameResponse, 0, 0
			h.Encode(frame[:wire.HeaderBytes], nil)
			if err := writeFull(peer, frame[:wire.HeaderBytes]); err != nil {
				t.Fatal(err)
			}
		}
		wg.Wait()
	})
}

// Claim: a cancel of what is answered already, or was never asked, changes nothing.
func TestCancelAnswered(t *testing.T) {
	eachTransport(t, func(t *testing.T, w *world) {
		w.server.Handler = func(context.Context, *Request) (wire.Message, wire.Data, error) { return nil, nil, nil }
		w.serve()
		s := w.raw()
		for id := 1; id <= 20; id++ {
			cancels := append(frame(wire.Header{Kind: wire.FrameCancel, ID: uint64(id)}, nil, nil), frame(wire.Header{Kind: wire.FrameCancel, ID: 1 << 40}, nil, nil)...)
			if err := writeFull(s, requests(id, 1, nil)); err != nil {
				t.Fatal(err)
			}
			answers(t, s, 1, nil)
			if err := writeFull(s, cancels); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// halfClose shuts down the direction in which s writes. A stream that has no such thing is closed.
func halfClose(s stream) {
	switch s := s.(type) {
	case *memStream:
		s.out.end(io.EOF)
	case *sockStream:
		if half, ok := s.nc.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
			return
		}
		_ = s.close()
	default:
		_ = s.close()
	}
}

// Claim: a peer that shuts down the direction in which it writes, between frames or within one, has ended the connection: what it has asked is
// cancelled, it reads the end, and only the second is told as an error.
func TestHalfClose(t *testing.T) {
	eachTransport(t, func(t *testing.T, w *world) {
		for _, cut := range []int{0, 1, wire.HeaderBytes, wire.HeaderBytes + 50} {
			ended := make(chan error, 1)
			w.server.OnClose = func(_ *Conn, err error) { ended <- err }
			w.server.Log = newLog(&logBook{})
			c, _, peer := w.endpoint()
			next := requests(2, 1, make([]byte, 100))
			if err := writeFull(peer, append(frame(wire.Header{Kind: wire.FrameRequest, Method: mSleep, ID: 1}, nil, nil), next[:cut]...)); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the request", func() bool { c.serveMu.Lock(); defer c.serveMu.Unlock(); return c.running == 1 })
			halfClose(peer)
			want := wire.KindConnLost
			if cut > 0 {
				want = wire.KindBadFrame
			}
			if err := <-ended; wire.KindOf(err) != want {
				t.Errorf("after %d bytes of a frame: %v", cut, err)
			}
			if _, err := io.Copy(io.Discard, streamReader{peer}); isTimeout(err) {
				t.Errorf("after %d bytes of a frame the peer does not read the end", cut)
			}
			_ = peer.close()
		}
	})
}

// Claim: a peer that dies at any byte of a request, or of an answer, leaves nothing behind: the connection ends, calls fail with
// KindConnLost, and every buffer comes back.
func TestPeerDiesAtEveryByte(t *testing.T) {
	data := make([]byte, 100)
	ask := frame(wire.Header{Kind: wire.FrameRequest, Method: mEcho, ID: 1}, (&wire.AppendResp{Len: 5}).Append(nil), data)
	answer := frame(wire.Header{Kind: wire.FrameResponse, Method: mEcho, ID: 1}, (&wire.AppendResp{Len: 5}).Append(nil), data)
	step := 1
	if raceEnabled {
		step = 7
	}
	eachTransport(t, func(t *testing.T, w *world) {
		w.server.Log = newLog(&logBook{})
		for n := 0; n <= len(ask); n += step {
			c, _, peer := w.endpoint()
			if err := writeFull(peer, ask[:n]); err != nil {
				t.Fatal(err)
			}
			_ = peer.close()
			<-c.finished
			if used := w.serverA.Used(); used != 0 {
				t.Fatalf("%d bytes of the arena are taken after %d bytes of a request", used, n)
			}
		}
		for n := 0; n < len(answer); n += step {
			c, _, peer := w.endpoint()
			failed := make(chan error, 1)
			go func() { failed <- c.Do(context.Background(), &Call{Method: mEcho, Resp: &wire.AppendResp{}}) }()
			if err := readFull(peer, make([]byte, wire.HeaderBytes)); err != nil {
				t.Fatal(err)
			}
			if err := writeFull(peer, answer[:n]); err != nil {
				t.Fatal(err)
			}
			_ = peer.close()
			if err := <-failed; wire.KindOf(err) != wire.KindConnLost {
				t.Errorf("after %d bytes of an answer: %v", n, err)
			}
			<-c.finished
			if used := w.serverA.Used(); used != 0 {
				t.Fatalf("%d bytes of the arena are taken after %d bytes of an answer", used, n)
			}
		}
	})
}
