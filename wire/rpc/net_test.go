package rpc

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/crakefs/crake/wire"
)

// Claim: the socket file of a dead process is replaced; that of a live one, or a file that is no socket, is left alone; a listener
// takes its own file away in the end, and not its successor's.
func TestListenUnix(t *testing.T) {
	path := t.TempDir() + "/s"
	o := Options{Self: Self{Cluster: testCluster}, Handler: echo}
	dead, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	dead.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = dead.Close()
	l, err := Listen("unix:"+path, o)
	if err != nil {
		t.Fatal("stale socket:", err)
	}
	if _, err := Listen("unix:"+path, o); wire.KindOf(err) != wire.KindExists || !strings.Contains(err.Error(), "another process listens") {
		t.Error("live socket:", err)
	}
	if err := os.Rename(path, path+".moved"); err != nil {
		t.Fatal(err)
	}
	successor, err := Listen("unix:"+path, o)
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	if _, err := os.Stat(path); err != nil {
		t.Error("the successor's file is gone:", err)
	}
	_ = successor.Close()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Error("the file is left:", err)
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen("unix:"+path, o); wire.KindOf(err) != wire.KindExists || !strings.Contains(err.Error(), "no socket") {
		t.Error("a plain file:", err)
	}
	if b, _ := os.ReadFile(path); string(b) != "precious" {
		t.Error("a plain file was overwritten")
	}
}

// Claim: a folder name longer than a socket address can be works.
func TestLongSocketPath(t *testing.T) {
	w := newWorld(t, "unix")
	dir := t.TempDir() + "/" + strings.Repeat("long/", 30)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	w.addr = "unix:" + dir + "s"
	w.serve()
	if w.addr != "unix:"+dir+"s" {
		t.Error(w.addr)
	}
	c := w.dial()
	if err := c.Do(t.Context(), &Call{Method: mEcho}); err != nil {
		t.Error(err)
	}
	if _, err := Listen("unix:"+dir+strings.Repeat("x", 105), Options{}); wire.KindOf(err) != wire.KindInvalid {
		t.Error(err)
	}
}

// Claim: a TCP port in use is told as that.
func TestListenTCPInUse(t *testing.T) {
	w := newWorld(t, "tcp")
	w.serve()
	if _, err := Listen(w.addr, w.server); wire.KindOf(err) != wire.KindExists {
		t.Error(err)
	}
}

// Claim: callers share a connection and a dial; a dead peer is not dialled for every call; a peer that comes back is found; Close ends
// everything.
func TestPool(t *testing.T) {
	eachTransport(t, func(t *testing.T, w *world) {
		var served atomic.Int32
		w.server.Handler = func(ctx context.Context, r *Request) (wire.Message, wire.Data, error) {
			served.Add(1)
			return nil, nil, nil
		}
		w.serve()
		p := NewPool(w.client)
		defer p.Close()
		var first *Conn
		var mu sync.Mutex
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				c, err := p.Get(t.Context(), []string{w.addr})
				mu.Lock()
				defer mu.Unlock()
				if err != nil || first != nil && c != first {
					t.Error("not shared:", err)
				}
				first = c
			})
		}
		wg.Wait()
		w.stop()
		<-first.Done()
		start := time.Now()
		dials := 0
		for time.Since(start) < 300*time.Millisecond {
			if _, err := p.Get(t.Context(), []string{w.addr}); wire.KindOf(err) != wire.KindUnavailable {
				t.Fatal(err)
			}
			dials++
		}
		if dials < 1000 {
			t.Errorf("only %d refusals in 300 ms: they should cost nothing", dials)
		}
		w.serve()
		eventually(t, "the peer to be found again", func() bool {
			c, err := p.Get(t.Context(), []string{"unix:/nonexistent/socket", w.addr})
			return err == nil && c != first && c.Do(t.Context(), &Call{}) == nil
		})
		p.Close()
		if _, err := p.Get(t.Context(), []string{w.addr}); wire.KindOf(err) != wire.KindShutdown {
			t.Error(err)
		}
	})
}

// Claim: whatever a server sends that is no answer, or half of one, the call fails with KindConnLost and the connection ends with the
// reason.
func TestHostileServer(t *testing.T) {
	answer := frame(wire.Header{Kind: wire.FrameResponse, ID: 1}, (&wire.AppendResp{Len: 5}).Append(nil), make([]byte, 100_000))
	for name, send := range map[string][]byte{"random": randomBytes(500), "half": answer[:5000], "half a header": answer[:30], "wrong id": frame(wire.Header{Kind: wire.FrameResponse, ID: 2}, nil, nil)} {
		m := NewMem()
		a := testArena(t, 1<<20)
		l, err := m.listen("x")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			s, err := l.accept()
			if err != nil {
				return
			}
			_, _, _, _ = shake(s, &Options{Self: Self{Cluster: testCluster}}, false, nil)
			_ = readFull(s, make([]byte, wire.HeaderBytes))
			_ = writeFull(s, send)
			_ = s.close()
		}()
		book := &logBook{}
		c, err := Dial(t.Context(), "mem:x", Options{Self: Self{Cluster: testCluster}, Net: m, Arena: a, Log: newLog(book)})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Do(t.Context(), &Call{Method: mEcho}); wire.KindOf(err) != wire.KindConnLost {
			t.Errorf("%s: %v", name, err)
		}
		<-c.finished
		if wire.KindOf(c.Err()) != wire.KindBadFrame {
			t.Errorf("%s: %v", name, c.Err())
		}
		_ = l.close()
	}
}

// Claim: a malformed meta section of an answer fails that call only.
func TestMalformedAnswer(t *testing.T) {
	eachTransport(t, func(t *testing.T, w *world) {
		w.server.Handler = func(ctx context.Context, r *Request) (wire.Message, wire.Data, error) {
			b, err := w.serverA.Alloc(ctx, 5000)
			if err != nil {
				return nil, nil, err
			}
			return &wire.DriveStatReq{Drive: 0x01010101}, b.Data(5000), nil // not what the caller expects
		}
		w.serve()
		c := w.dial()
		var resp wire.XattrResp
		if err := c.Do(t.Context(), &Call{Resp: &resp}); wire.KindOf(err) != wire.KindBadFrame {
			t.Error(err)
		}
		call := Call{Resp: &wire.DriveStatReq{}}
		if err := c.Do(t.Context(), &call); err != nil {
			t.Error(err)
		}
		call.RespData.Release()
	})
}

// Claim: a peer that stops in the middle of a frame, or takes nothing, is given up after stallTimeout; one that is idle is not.
func TestStalls(t *testing.T) {
	for _, name := range []string{"middle of a frame", "takes nothing", "idle"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := NewMem()
				a := testArena(t, 64<<20)
				o := Options{Self: Self{Cluster: testCluster}, Net: m, Arena: a, Log: newLog(&logBook{}), Handler: func(ctx context.Context, r *Request) (wire.Message, wire.Data, error) {
					b, err := a.Alloc(ctx, 4<<20)
					if err != nil {
						return nil, nil, err
					}
					return nil, b.Data(4 << 20), nil
				}}
				ended := make(chan error, 1)
				o.OnClose = func(_ *Conn, err error) { ended <- err }
				l, err := Listen("mem:x", o)
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error)
				go func() { done <- l.Serve(ctx) }()
				s, err := m.dial(ctx, "x")
				if err != nil {
					t.Fatal(err)
				}
				if _, _, _, err := shake(s, &Options{Self: o.Self}, true, nil); err != nil {
					t.Fatal(err)
				}
				req := frame(wire.Header{Kind: wire.FrameRequest, ID: 1}, nil, nil)
				want := wire.KindNone
				switch name {
				case "middle of a frame":
					want = wire.KindBadFrame
					p := s.(*memStream).out
					p.mu.Lock()
					p.arrive(req[:40])
					p.mu.Unlock()
				case "takes nothing":
					want = wire.KindConnLost
					for id := range uint64(3) {
						if err := writeFull(s, frame(wire.Header{Kind: wire.FrameRequest, ID: id}, nil, nil)); err != nil {
							t.Fatal(err)
						}
					}
				}
				select {
				case err := <-ended:
					if wire.KindOf(err) != want || !strings.Contains(err.Error(), "30s") {
						t.Error(err)
					}
				case <-time.After(2 * time.Minute):
					if want != wire.KindNone {
						t.Error("the peer is not given up")
					}
				}
				_ = s.close()
				cancel()
				<-done
			})
		})
	}
}

// Claim: the hooks of Mem do what they say: delay, loss, overtaking, partition and break.
func TestMemHooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMem()
		o := Options{Self: Self{Cluster: testCluster}, Net: m.Host("server"), Handler: func(_ context.Context, r *Request) (wire.Message, wire.Data, error) {
			return &wire.AppendResp{Len: r.Header.Trace}, nil, nil
		}}
		l, err := Listen("mem:x", o)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.Serve(ctx) }()
		o.Net, o.Handler = m.Host("client"), nil
		c, err := Dial(ctx, "mem:x", o)
		if err != nil {
			t.Fatal(err)
		}
		ask := func(trace uint64, timeout time.Duration) (time.Duration, error) {
			ctx, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			start := time.Now()
			err := c.Do(ctx, &Call{Method: mEcho, Trace: trace})
			return time.Since(start), err
		}
		m.SetLink("client", "server", Link{Delay: func() time.Duration { return 3 * time.Millisecond }})
		m.SetLink("server", "client", Link{Delay: func() time.Duration { return 4 * time.Millisecond }})
		if d, err := ask(1, time.Minute); err != nil || d != 7*time.Millisecond {
			t.Error("delay:", d, err)
		}
		m.SetLink("client", "server", Link{Drop: func(h wire.Header) bool { return h.Trace == 66 }})
		m.SetLink("server", "client", Link{})
		if _, err := ask(66, time.Second); wire.KindOf(err) != wire.KindTimeout {
			t.Error("loss:", err)
		}
		if d, err := ask(1, time.Second); err != nil || d != 0 {
			t.Error("after a loss:", d, err)
		}

		// The first frame travels slowly and lets the second pass.
		slow := time.Second
		m.SetLink("client", "server", Link{
			Delay:    func() (d time.Duration) { d, slow = slow, time.Millisecond; return d },
			Overtake: func(h wire.Header) bool { return h.Trace == 1 },
		})
		first := make(chan time.Duration, 1)
		go func() { d, _ := ask(1, time.Minute); first <- d }()
		synctest.Wait()
		if d, err := ask(2, time.Minute); err != nil || d != time.Millisecond {
			t.Error("overtaking:", d, err)
		}
		if d := <-first; d != time.Second {
			t.Error("overtaken:", d)
		}

		m.SetLink("client", "server", Link{})
		m.Partition("client", "server")
		time.AfterFunc(10*time.Second, func() { m.Heal("client", "server") })
		if d, err := ask(3, time.Minute); err != nil || d != 10*time.Second {
			t.Error("partition:", d, err)
		}
		m.Partition("client", "server")
		if _, err := Dial(ctx, "mem:x", o); wire.KindOf(err) != wire.KindUnavailable {
			t.Error("dial into a partition:", err)
		}
		time.AfterFunc(time.Second, func() { m.Break("client", "server") })
		if d, err := ask(3, time.Minute); wire.KindOf(err) != wire.KindConnLost || d != time.Second {
			t.Error("break:", d, err)
		}
		<-c.finished
		cancel()
		<-done
	})
}
