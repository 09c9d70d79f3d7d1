package rpc

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/crakefs/crake/wire"
)

// BenchmarkBare is what a request and answer over a unix socket cost with nothing of ours: 100 bytes there and back.
func BenchmarkBare(b *testing.B) {
	l, err := net.Listen("unix", b.TempDir()+"/s")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		buf := make([]byte, 100)
		for {
			if _, err := io.ReadFull(c, buf); err != nil {
				return
			}
			_, _ = c.Write(buf)
		}
	}()
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	buf := make([]byte, 100)
	for b.Loop() {
		_, _ = c.Write(buf)
		if _, err := io.ReadFull(c, buf); err != nil {
			b.Fatal(err)
		}
	}
}

func benchWorld(b *testing.B, transport string) *Conn {
	w := newWorld(b, transport)
	for _, a := range []**wire.Arena{&w.serverA, &w.clientA} {
		var err error
		if *a, err = wire.NewArena(64 << 20); err != nil { // without ArenaDebug, which costs time
			b.Fatal(err)
		}
		closeArena(b, *a)
	}
	w.server.Arena, w.client.Arena = w.serverA, w.clientA
	w.server.Handler = func(ctx context.Context, r *Request) (wire.Message, wire.Data, error) {
		if r.Header.Method == mMake {
			var m wire.AppendResp
			_ = m.Decode(r.Meta)
			buf, err := w.serverA.Alloc(ctx, int(m.Len))
			if err != nil {
				return nil, nil, err
			}
			return &wire.Empty{}, buf.Data(int(m.Len)), nil
		}
		r.Data.Release()
		return &wire.AppendResp{Len: 1}, nil, nil
	}
	w.serve()
	return w.dial()
}

// BenchmarkCall is one request and answer at a time.
func BenchmarkCall(b *testing.B) {
	for _, t := range transports {
		b.Run(t.name, func(b *testing.B) {
			c := benchWorld(b, t.name)
			b.ReportAllocs()
			var req, resp wire.AppendResp
			call := Call{Method: mEcho, Req: &req, Resp: &resp}
			for b.Loop() {
				if err := c.Do(context.Background(), &call); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkParallel is many callers on one connection.
func BenchmarkParallel(b *testing.B) {
	for _, t := range transports {
		for _, callers := range []int{8, 64} {
			b.Run(fmt.Sprint(t.name, callers), func(b *testing.B) {
				c := benchWorld(b, t.name)
				b.ReportAllocs()
				b.ResetTimer()
				var wg sync.WaitGroup
				for g := range callers {
					wg.Go(func() {
						var req, resp wire.AppendResp
						call := Call{Method: mEcho, Req: &req, Resp: &resp}
						for i := g; i < b.N; i += callers {
							if err := c.Do(context.Background(), &call); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
			})
		}
	}
}

// BenchmarkRead is answers with data.
func BenchmarkRead(b *testing.B) {
	for _, t := range transports {
		for _, n := range []int{4096, 128 << 10, 1 << 20} {
			b.Run(fmt.Sprint(t.name, n), func(b *testing.B) {
				c := benchWorld(b, t.name)
				b.ReportAllocs()
				b.SetBytes(int64(n))
				call := Call{Method: mMake, Req: &wire.AppendResp{Len: uint64(n)}}
				for b.Loop() {
					if err := c.Do(context.Background(), &call); err != nil {
						b.Fatal(err)
					}
					call.RespData.Release()
				}
			})
		}
	}
}

// BenchmarkWrite is requests with data.
func BenchmarkWrite(b *testing.B) {
	for _, t := range transports {
		for _, n := range []int{4096, 128 << 10, 1 << 20} {
			b.Run(fmt.Sprint(t.name, n), func(b *testing.B) {
				c := benchWorld(b, t.name)
				buf, err := c.o.Arena.Alloc(context.Background(), n)
				if err != nil {
					b.Fatal(err)
				}
				defer buf.Release()
				b.ReportAllocs()
				b.SetBytes(int64(n))
				call := Call{Method: mEcho, Data: buf.Data(n)}
				for b.Loop() {
					if err := c.Do(context.Background(), &call); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
