package rpc

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crakefs/crake/wire"
)

// taker is an Options.Start that takes requests and answers them as echo does, in the ways of a drive.
type taker struct {
	how string // within, kick (in Kick), goroutine (one each), mixed (all of these, and none, which leaves it to the handler)

	mu     sync.Mutex
	begun  []*Request
	starts int
	kicks  int
}

func (k *taker) options(o *Options) { o.Start, o.Kick = k.start, k.kick }

func (k *taker) start(_ context.Context, r *Request) bool {
	if m := r.Header.Method; m != mEcho && m != mFail {
		return false
	}
	how := k.how
	k.mu.Lock()
	defer k.mu.Unlock()
	k.starts++
	if how == "mixed" {
		how = []string{"within", "kick", "goroutine", "handler"}[k.starts%4]
	}
	switch how {
	case "within":
		r.Answer(echo(context.Background(), r))
	case "kick":
		k.begun = append(k.begun, r)
	case "goroutine":
		go func() { r.Answer(echo(context.Background(), r)) }()
	default:
		return false
	}
	return true
}

func (k *taker) kick() {
	k.mu.Lock()
	begun := k.begun
	k.begun = nil
	k.kicks++
	k.mu.Unlock()
	for _, r := range begun {
		r.Answer(echo(context.Background(), r))
	}
}

var takerWays = []string{"within", "kick", "goroutine", "mixed"}

// Claim: requests that Start takes are answered, each with its own answer and data, whoever answers them and however many at once; errors
// travel; those that it does not take go to the handler.
func TestTaken(t *testing.T) {
	for _, how := range takerWays {
		t.Run(how, func(t *testing.T) {
			eachTransport(t, func(t *testing.T, w *world) {
				(&taker{how: how}).options(&w.server)
				w.serve()
				c := w.dial()
				var wg sync.WaitGroup
				for g := range 16 {
					wg.Go(func() {
						for i, n := range []int{0, 1, 4096, 0, 16 << 10, 4096, 4097, 0, 20_000, 4096, 300_000, 512, 3<<20 + 4096, 0} {
							var d wire.Data
							if n > 0 {
								d = w.data(n, g)
							}
							var resp wire.AppendResp
							call := Call{Method: mEcho, Req: &wire.AppendResp{Len: uint64(n + g)}, Data: d, Resp: &resp}
							err := c.Do(t.Context(), &call)
							if err != nil || resp.Len != uint64(n+g) || !bytes.Equal(flat(call.RespData), flat(d)) {
								t.Error(g, i, n, resp.Len, err)
							}
							call.RespData.Release()
							d.Release()
						}
						if err := c.Do(t.Context(), &Call{Method: mFail}); wire.KindOf(err) != wire.KindNoSpace {
							t.Error(err)
						}
						if err := c.Do(t.Context(), &Call{Method: 0x7fff}); wire.KindOf(err) != wire.KindVersion {
							t.Error("to the handler:", err)
						}
					})
				}
				wg.Wait()
			})
		})
	}
}

// Claim: a million small requests (over a socket; fewer elsewhere), some cancelled at random moments, all end, each with its own answer, and
// nothing stays on either side's books.
func TestTakenMany(t *testing.T) {
	eachTransport(t, func(t *testing.T, w *world) {
		total := 100_000
		switch {
		case raceEnabled || testing.Short():
			total = 10_000
		case t.Name() == "TestTakenMany/unix":
			total = 1_000_000
		}
		var server atomic.Pointer[Conn]
		k := &taker{how: "mixed"}
		k.options(&w.server)
		w.server.Start = func(ctx context.Context, r *Request) bool {
			server.Store(r.Conn)
			return k.start(ctx, r)
		}
		w.serve()
		c := w.dial()
		const callers = 64
		var wg sync.WaitGroup
		for g := range callers {
			wg.Go(func() {
				for i := range total / callers {
					ctx, cancel := context.Background(), context.CancelFunc(func() {})
					if i%50 == 0 {
						ctx, cancel = context.WithCancel(ctx)
						time.AfterFunc(time.Duration(i%7)*20*time.Microsecond, cancel)
					}
					var resp wire.AppendResp
					want := uint64(g)<<32 | uint64(i)
					err := c.Do(ctx, &Call{Method: mEcho, Req: &wire.AppendResp{Len: want}, Resp: &resp})
					if !errors.Is(err, wire.KindInterrupted) && (err != nil || resp.Len != want) {
						t.Error(resp.Len, want, err)
						return
					}
					cancel()
				}
			})
		}
		wg.Wait()
		eventually(t, "the books to be empty", func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			s := server.Load()
			s.serveMu.Lock()
			defer s.serveMu.Unlock()
			return len(c.calls) == 0 && len(s.serving) == 0 && s.servedBytes == 0
		})
	})
}

// countedStream counts writes.
type countedStream struct {
	stream
	writes atomic.Int64
}

func (s *countedStream) writev(bufs [][]byte, wait bool) (int, error) {
	s.writes.Add(1)
	return s.stream.writev(bufs, wait)
}

// endpoint makes a Conn with the options of the server and gives the other end of its stream.
func (w *world) endpoint() (c *Conn, s *countedStream, peer stream) {
	w.t.Helper()
	var a acceptor
	scheme, rest, err := splitAddr(w.addr)
	if err == nil && scheme == schemeMem {
		a, err = w.server.Net.listen(rest)
	} else if err == nil {
		a, err = listenSock(scheme, rest)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.addr = a.addr()
	var own, other *hello
	var version uint16
	shaken := make(chan error, 1)
	s = &countedStream{}
	go func() {
		var err error
		if s.stream, err = a.accept(); err == nil && w.server.TLS {
			s.stream, err = tlsOver(context.Background(), s.stream, &w.server, false)
		}
		if err == nil {
			own, other, version, err = greet(context.Background(), s.stream, &w.server, false, nil)
		}
		shaken <- err
	}()
	peer = w.raw()
	if err := errors.Join(<-shaken, a.close()); err != nil {
		w.t.Fatal(err)
	}
	s.writes.Store(0)
	c = newConn(s, w.server, own, other, version)
	w.t.Cleanup(func() { _ = c.Close(); <-c.finished })
	_ = peer.setDeadline(time.Now().Add(10 * time.Second))
	return c, s, peer
}

// requests encodes n requests for mEcho without meta, with ids from first.
func requests(first, n int, data []byte) []byte {
	var b []byte
	for i := range n {
		b = append(b, frame(wire.Header{Kind: wire.FrameRequest, Method: mEcho, ID: uint64(first + i)}, nil, data)...)
	}
	return b
}

// answers reads n answers, whose bytes after the header are rest, and gives the ids.
func answers(t *testing.T, s stream, n int, rest []byte) []uint64 {
	t.Helper()
	var ids []uint64
	b := make([]byte, wire.HeaderBytes+len(rest))
	for range n {
		if err := readFull(s, b); err != nil {
			t.Fatal("an answer: ", err)
		}
		h, err := wire.DecodeHeader(b)
		if err != nil || h.Kind != wire.FrameResponse || h.Status != wire.KindNone || !bytes.Equal(b[wire.HeaderBytes:], rest) {
			t.Fatalf("%+v %v", h, err)
		}
		ids = append(ids, h.ID)
	}
	return ids
}

// Claim: of requests that arrive together Kick is told once, after all have been offered, in order; and what is answered within Start, or in
// Kick, leaves by one write. More than burstRequests are kicked in parts. So it is with a block of data on each.
func TestTakenBurst(t *testing.T) {
	for _, how := range []string{"within", "kick"} {
		for _, bytesEach := range []int{0, 4096} {
			eachTransport(t, func(t *testing.T, w *world) {
				k := &taker{how: how}
				k.options(&w.server)
				w.server.Handler = nil
				_, counted, peer := w.endpoint()
				data := make([]byte, bytesEach)
				fill(data, 5)
				rest := append((&wire.AppendResp{}).Append(nil), data...)
				if bytesEach > 0 { // the buffer is read ahead only behind such a frame
					if err := writeFull(peer, requests(1, 1, data)); err != nil {
						t.Fatal(err)
					}
					answers(t, peer, 1, rest)
				}
				k.mu.Lock()
				k.kicks = 0
				k.mu.Unlock()
				counted.writes.Store(0)
				const n = burstRequests // so few that the kernel does not hand them on in parts
				if err := writeFull(peer, requests(2, n, data)); err != nil {
					t.Fatal(err)
				}
				for i, id := range answers(t, peer, n, rest) {
					if id != uint64(2+i) {
						t.Errorf("answer %d is to request %d", i, id)
					}
				}
				k.mu.Lock()
				defer k.mu.Unlock()
				parts := 1
				if w.server.TLS {
					parts = 1 + n*(wire.HeaderBytes+bytesEach)/tlsRecordBytes // a read gives one record
				}
				if k.kicks != parts || int(counted.writes.Load()) != parts {
					t.Errorf("%s, %d bytes: %d kicks, %d writes for %d requests that came together", how, bytesEach, k.kicks, counted.writes.Load(), n)
				}
			})
		}
	}
	t.Run("bound", func(t *testing.T) {
		w := newWorld(t, "mem")
		k := &taker{how: "within"}
		k.options(&w.server)
		_, counted, peer := w.endpoint()
		if err := writeFull(peer, requests(1, 3*burstRequests, nil)); err != nil {
			t.Fatal(err)
		}
		answers(t, peer, 3*burstRequests, (&wire.AppendResp{}).Append(nil))
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.kicks != 3 || counted.writes.Load() != 3 {
			t.Errorf("%d kicks, %d writes for 3 bursts", k.kicks, counted.writes.Load())
		}
	})
}

// Claim: what was taken and answered does not wait for the rest of a frame whose begin has come along.
func TestTakenBeforeHalfAFrame(t *testing.T) {
	for _, how := range []string{"within", "kick"} {
		eachTransport(t, func(t *testing.T, w *world) {
			(&taker{how: how}).options(&w.server)
			_, _, peer := w.endpoint()
			data := make([]byte, 10_000)
			rest := (&wire.AppendResp{}).Append(nil)
			second := requests(2, 1, data)
			for _, cut := range []int{1, wire.HeaderBytes - 1, wire.HeaderBytes, wire.HeaderBytes + 1, len(second) - 1} {
				if err := writeFull(peer, append(requests(1, 1, nil), second[:cut]...)); err != nil {
					t.Fatal(err)
				}
				answers(t, peer, 1, rest)
				if err := writeFull(peer, second[cut:]); err != nil {
					t.Fatal(err)
				}
				answers(t, peer, 1, append(bytes.Clone(rest), data...))
			}
		})
	}
}

// Claim: a request whose data waits for room in the arena does not keep those before it, which hold the room, from being kicked.
func TestTakenHoldTheArena(t *testing.T) {
	eachTransport(t, func(t *testing.T, w *world) {
		w.serverA = testArena(t, 64<<10) // half of it is for requests
		w.server.Arena = w.serverA
		(&taker{how: "kick"}).options(&w.server)
		_, _, peer := w.endpoint()
		data := make([]byte, 16<<10)
		rest := append((&wire.AppendResp{}).Append(nil), data...)
		for range 3 {
			if err := writeFull(peer, requests(1, 3, data)); err != nil {
				t.Fatal(err)
			}
			answers(t, peer, 3, rest) // a status of KindUnavailable fails it
		}
	})
}

// Claim: the ctx of a taken request ends by a cancel and by its deadline.
func TestTakenContext(t *testing.T) {
	eachTransport(t, func(t *testing.T, w *world) {
		type taken struct {
			ctx context.Context
			r   *Request
		}
		began := make(chan taken, 1)
		w.server.Start = func(ctx context.Context, r *Request) bool {
			began <- taken{ctx, r}
			return true
		}
		w.serve()
		c := w.dial()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- c.Do(ctx, &Call{Method: mEcho}) }()
		x := <-began
		if x.ctx.Err() != nil {
			t.Error(x.ctx.Err())
		}
		cancel()
		<-x.ctx.Done()
		if err := <-ended; wire.KindOf(err) != wire.KindInterrupted || !errors.Is(x.ctx.Err(), context.Canceled) {
			t.Error(err, x.ctx.Err())
		}
		x.r.Answer(nil, nil, x.ctx.Err())

		ctx, cancel = context.WithTimeout(t.Context(), 30*time.Millisecond)
		defer cancel()
		go func() { ended <- c.Do(ctx, &Call{Method: mEcho}) }()
		x = <-began
		if at, ok := x.ctx.Deadline(); !ok || time.Until(at) > 30*time.Millisecond {
			t.Error(at, ok)
		}
		<-x.ctx.Done()
		if err := <-ended; wire.KindOf(err) != wire.KindTimeout {
			t.Error(err)
		}
		x.r.Answer(nil, nil, nil)
		var resp wire.AppendResp
		go func() { ended <- c.Do(t.Context(), &Call{Method: mEcho, Resp: &resp}) }()
		x = <-began
		x.r.Answer(&wire.AppendResp{Len: 3}, nil, nil)
		if err := <-ended; err != nil || resp.Len != 3 {
			t.Error(resp.Len, err)
		}
	})
}

// Claim: when the connection ends, by the peer's death or by the listener's end, with requests taken, their ctx ends and the connection is
// not over (OnClose, Serve) before each is answered; the answers release their data and do nothing else.
func TestTakenConnectionEnds(t *testing.T) {
	for _, who := range []string{"peer", "listener"} {
		eachTransport(t, func(t *testing.T, w *world) {
			const n = 5
			type taken struct {
				ctx context.Context
				r   *Request
			}
			began := make(chan taken, n)
			var answered atomic.Int32
			closed := make(chan int32, 2)
			w.server.Start = func(ctx context.Context, r *Request) bool {
				began <- taken{ctx, r}
				return true
			}
			w.server.OnClose = func(*Conn, error) { closed <- answered.Load() }
			w.serve()
			peer := w.raw()
			if err := writeFull(peer, requests(1, n, make([]byte, 5000))); err != nil {
				t.Fatal(err)
			}
			var all []taken
			for range n {
				all = append(all, <-began)
			}
			var stopped sync.WaitGroup
			if who == "peer" {
				_ = peer.close()
			} else {
				stopped.Go(w.stop)
			}
			for i, x := range all {
				<-x.ctx.Done()
				// A connection that does not wait is over at about this moment.
				select {
				case <-closed:
					t.Fatalf("%s: over with %d of %d answered", who, i, n)
				case <-time.After(5 * time.Millisecond):
				}
				answered.Add(1)
				x.r.Answer(&wire.Empty{}, x.r.Data, nil)
			}
			if got := <-closed; got != n {
				t.Errorf("%s: over with %d of %d answered", who, got, n)
			}
			stopped.Wait()
			if used := w.serverA.Used(); used != 0 {
				t.Errorf("%s: %d bytes of the arena are held", who, used)
			}
		})
	}
}

// Claim: a peer that dies while requests are taken and answered, at random moments, costs nothing: no memory, no goroutine, no hang.
func TestTakenPeerDies(t *testing.T) {
	rounds := 30
	if raceEnabled {
		rounds = 10
	}
	for _, how := range takerWays {
		eachTransport(t, func(t *testing.T, w *world) {
			(&taker{how: how}).options(&w.server)
			w.serve()
			for i := range rounds {
				peer := w.raw()
				go func() { _ = writeFull(peer, requests(1, 100, make([]byte, i%3*4096))) }()
				if i%2 == 0 {
					b := make([]byte, 1+i*50)
					_, _ = peer.readv([][]byte{b})
				}
				_ = peer.close()
			}
			w.stop()
			if used := w.serverA.Used(); used != 0 {
				t.Errorf("%s: %d bytes of the arena are held", how, used)
			}
		})
	}
}

// Claim: a peer that asks for much and reads nothing is not offered to Start past the bound of unsent answers; when it reads, every answer
// comes; others are served meanwhile.
func TestTakenBacklog(t *testing.T) {
	eachTransport(t, func(t *testing.T, w *world) {
		w.serverA = testArena(t, 256<<20)
		w.server.Arena = w.serverA
		w.server.MaxHandlers = 4
		make1M := func(ctx context.Context) (wire.Message, wire.Data, error) {
			b, err := w.serverA.Alloc(ctx, 1<<20)
			if err != nil {
				return nil, nil, err
			}
			return nil, b.Data(1 << 20), nil
		}
		var starts, calls atomic.Int32
		w.server.Start = func(ctx context.Context, r *Request) bool {
			starts.Add(1)
			r.Answer(make1M(ctx))
			return true
		}
		w.server.Handler = func(ctx context.Context, r *Request) (wire.Message, wire.Data, error) {
			calls.Add(1)
			return make1M(ctx)
		}
		w.serve()
		const n = 200
		s := w.raw()
		if err := writeFull(s, requests(1, n, nil)); err != nil {
			t.Fatal(err)
		}
		var c *Conn
		eventually(t, "all requests to be taken or queued", func() bool {
			w.listener.mu.Lock()
			defer w.listener.mu.Unlock()
			for c = range w.listener.conns {
				c.serveMu.Lock()
				defer c.serveMu.Unlock()
				return int(starts.Load())+int(calls.Load())+len(c.queue) == n && len(c.queue) > 0
			}
			return false
		})
		if used := w.serverA.Used(); used > 24<<20 {
			t.Errorf("a peer that does not read holds %d MiB", used>>20)
		}
		call := Call{Method: mMake}
		if err := w.dial().Do(t.Context(), &call); err != nil {
			t.Error(err)
		}
		call.RespData.Release()
		b := make([]byte, 1<<20+wire.HeaderBytes)
		for range n {
			if err := readFull(s, b); err != nil {
				t.Fatal(err)
			}
		}
		_ = s.close()
	})
}

// Claim: requests that Start has taken count in the window: a peer that passes it, in number or bytes, is disconnected.
func TestTakenWindow(t *testing.T) {
	for name, flood := range map[string][]byte{
		"requests": requests(1, maxQueued+1, nil),
		"bytes":    append(requests(1, 1, make([]byte, 8<<20)), requests(2, 1, make([]byte, 8<<20))...),
	} {
		eachTransport(t, func(t *testing.T, w *world) {
			var mu sync.Mutex
			var begun []*Request
			w.server.Start = func(_ context.Context, r *Request) bool {
				mu.Lock()
				defer mu.Unlock()
				begun = append(begun, r)
				return true
			}
			c, _, peer := w.endpoint()
			go func() { _ = writeFull(peer, flood) }()
			<-c.Done()
			if err := c.Err(); wire.KindOf(err) != wire.KindBadFrame {
				t.Error(name, err)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, r := range begun {
				r.Answer(nil, r.Data, nil)
			}
			<-c.finished
		})
	}
}

// Claim: a second Answer panics, also when other requests have come meanwhile; and so do one to a request that a handler has, and a Start
// that answers and says that it has not taken.
func TestAnswerTwice(t *testing.T) {
	panics := func(f func()) (did bool) {
		defer func() { did = recover() != nil }()
		f()
		return
	}
	w := newWorld(t, "mem")
	var last *Request
	twice := make(chan bool, 1)
	w.server.Start = func(_ context.Context, r *Request) bool {
		if r.Header.Method == mSleep {
			return false
		}
		if last != nil {
			old := last
			last = nil
			twice <- panics(func() { old.Answer(nil, nil, nil) })
		} else if r.Header.Method == mMake {
			last = r
		}
		r.Answer(nil, nil, nil)
		return true
	}
	w.server.Handler = func(_ context.Context, r *Request) (wire.Message, wire.Data, error) {
		twice <- panics(func() { r.Answer(nil, nil, nil) })
		return nil, nil, nil
	}
	w.serve()
	c := w.dial()
	ask := func(m wire.Method) {
		if err := c.Do(t.Context(), &Call{Method: m}); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 * maxSpareServed { // until books are used again
		ask(mEcho)
		ask(mMake)
		ask(mEcho)
		if !<-twice {
			t.Fatal("no panic at a second Answer")
		}
	}
	ask(mSleep)
	if !<-twice {
		t.Error("no panic at an Answer to a handler's request")
	}
	rd := &reader{c: c}
	c.o.Start = func(_ context.Context, r *Request) bool {
		r.Answer(nil, nil, nil)
		return false
	}
	r := c.newServed(wire.Header{Kind: wire.FrameRequest, ID: 1 << 60}, time.Now())
	if !panics(func() { _ = rd.offer(r) }) {
		t.Error("no panic at a Start that answers and does not take")
	}
	rd.settle()
}

// Claim: a request that Start takes costs no memory of the heap; with a ctx that is looked at it does, and its books are not used again.
func TestTakenAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates, and empties pools")
	}
	w := newWorld(t, "unix")
	b, err := w.serverA.Alloc(t.Context(), 4096)
	if err != nil {
		t.Fatal(err)
	}
	data := b.Data(4096)
	defer data.Release()
	look := false
	w.server.Start = func(ctx context.Context, r *Request) bool {
		if look && ctx.Done() == nil {
			t.Error("no channel")
		}
		r.Answer(nil, data.Retain(), nil)
		return true
	}
	c, _, peer := w.endpoint()
	const n = 32
	ask := requests(1, n, nil)
	in := [][]byte{make([]byte, n*(wire.HeaderBytes+4096))}
	round := func() {
		if err := writeFull(peer, ask); err != nil {
			t.Fatal(err)
		}
		for got := 0; got < len(in[0]); {
			m, err := peer.readv(in)
			if err != nil {
				t.Fatal(err)
			}
			got += m
		}
	}
	each := func() float64 {
		for range 20 {
			round()
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range 200 {
			round()
		}
		runtime.ReadMemStats(&after)
		return float64(after.Mallocs-before.Mallocs) / (200 * n)
	}
	// The test's own end allocates a few times a round; a collection empties the pools now and then.
	if got := each(); got > 0.3 {
		t.Errorf("%.2f allocations a request", got)
	}
	c.serveMu.Lock()
	look = true
	c.serveMu.Unlock()
	if got := each(); got < 1 {
		t.Errorf("%.2f allocations a request whose ctx is looked at: its books were used again", got)
	}
}
