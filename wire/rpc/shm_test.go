package rpc

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crakefs/crake/wire"
)

// Claim: only between two sides that both want it, and of which each takes the other, does data pass by reference; else it comes all the same.
func TestShmAgreed(t *testing.T) {
	never := func(Self) bool { return false }
	drives := func(p Self) bool { return p.Role == wire.RoleDrive && p.Proc == 2 }
	for name, c := range map[string]struct {
		client, server         bool
		clientWith, serverWith func(Self) bool
		want                   string
	}{
		"both": {true, true, nil, nil, TransportShm}, "this peer": {true, true, drives, nil, TransportShm},
		"client": {true, false, nil, nil, TransportUnix}, "server": {false, true, nil, nil, TransportUnix},
		"client takes nobody": {true, true, never, nil, TransportUnix}, "server takes nobody": {true, true, nil, never, TransportUnix},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "shm")
			w.client.Shm, w.server.Shm, w.client.ShmWith, w.server.ShmWith = c.client, c.server, c.clientWith, c.serverWith
			w.serve()
			conn := w.dial()
			if c.want == TransportShm {
				sharing(t, conn)
			}
			d := w.data(10_000, 1)
			defer d.Release()
			for range 20 {
				call := Call{Method: mEcho, Data: d}
				if err := conn.Do(t.Context(), &call); err != nil || !bytes.Equal(flat(call.RespData), flat(d)) {
					t.Fatal(err)
				}
				call.RespData.Release()
			}
			if conn.Transport() != c.want {
				t.Error(conn.Transport())
			}
			if st := conn.Stats(); (st.LentBytes > 0) != (c.want == TransportShm) {
				t.Errorf("%+v", st)
			}
		})
	}
}

// Claim: a request that is given up leaves its data lent until the peer gives it back; Shared says so; one that was not sent lends nothing.
func TestShmCancelled(t *testing.T) {
	w := newWorld(t, "shm")
	gate := make(chan struct{})
	w.server.Handler = func(_ context.Context, r *Request) (wire.Message, wire.Data, error) {
		defer r.Data.Release()
		if r.Data != nil {
			<-gate
		}
		return nil, nil, nil
	}
	w.serve()
	c := w.dial()
	sharing(t, c)
	d := w.data(1<<20, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := c.Do(ctx, &Call{Method: mEcho, Data: d}); wire.KindOf(err) != wire.KindTimeout {
		t.Error(err)
	}
	if !d[0].Buf.Shared() || c.Stats().LoansOut != 1 {
		t.Error("the peer has the data, and nothing tells so:", c.Stats())
	}
	close(gate)
	eventually(t, "the data to come back", func() bool { return !d[0].Buf.Shared() })
	if c.Stats().LoansOut != 0 {
		t.Error(c.Stats())
	}
	c.w.hold() // what is sent now waits
	ctx, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := c.Do(ctx, &Call{Method: mEcho, Data: d}); wire.KindOf(err) != wire.KindTimeout {
		t.Error(err)
	}
	if d[0].Buf.Shared() || c.Stats().LoansOut != 0 {
		t.Error("a request that was taken back has lent its data:", c.Stats())
	}
	c.w.write()
	d.Release()
}

// Claim: a borrower that keeps what it gets hinders nobody: the rest comes through the socket, and what it keeps stays as it is.
func TestShmSlowBorrower(t *testing.T) {
	w := newWorld(t, "shm")
	w.server.Handler = func(ctx context.Context, r *Request) (wire.Message, wire.Data, error) {
		b, err := w.serverA.Alloc(ctx, 1<<20)
		if err != nil {
			return nil, nil, err
		}
		fill(b.Bytes(), int(r.Header.Trace))
		return nil, b.Data(1 << 20), nil
	}
	w.serve()
	c := w.dial()
	sharing(t, c)
	var kept []wire.Data
	for i := range 40 { // 40 of 64 MiB; a quarter by reference
		call := Call{Method: mMake, Trace: uint64(i)}
		if err := c.Do(t.Context(), &call); err != nil {
			t.Fatal(i, err)
		}
		kept = append(kept, call.RespData)
	}
	if st := c.Stats(); st.BorrowedBytes != 16<<20 || st.InlineReceivedBytes != 24<<20 {
		t.Errorf("%+v", st)
	}
	want := make([]byte, 1<<20)
	for i, d := range kept {
		fill(want, i)
		if !bytes.Equal(flat(d), want) {
			t.Error("answer", i, "has changed")
		}
		d.Release()
	}
	eventually(t, "all to come back", func() bool { return w.serverA.Stats().Lent == 0 })
}

// Claim: data in parts that are not whole blocks, in more parts than a frame has references for, or of another arena goes through the socket,
// whole; parts that follow one another share a reference.
func TestShmParts(t *testing.T) {
	w := newWorld(t, "shm")
	w.serve()
	c := w.dial()
	sharing(t, c)
	d := w.data(8<<20, 1)
	defer d.Release()
	other := testArena(t, 1<<20).TryAlloc(4096).Data(4096)
	defer other.Release()
	buf, all := d[0].Buf, d[0].B
	part := func(off, n int) wire.Slice { return wire.Slice{Buf: buf, B: all[off : off+n]} }
	var many, joined wire.Data
	for i := range maxReferences + 1 {
		many = append(many, part(8192*i, 4096))
		joined = append(joined, part(4096*i, 4096))
	}
	for name, x := range map[string]struct {
		data   wire.Data
		byRefs bool
	}{
		"offset": {wire.Data{part(100, 4096)}, false}, "half a block first": {wire.Data{part(0, 100), part(4096, 4096)}, false},
		"half a block last": {wire.Data{part(8192, 4096), part(0, 100)}, true}, "too many": {many, false}, "as many": {many[1:], true},
		"in a row": {joined, true}, "another arena": {append(wire.Data{part(0, 4096)}, other...), false}, "an empty part": {wire.Data{part(0, 0), part(0, 9)}, true},
	} {
		before := c.Stats().LentBytes
		call := Call{Method: mEcho, Data: x.data}
		if err := c.Do(t.Context(), &call); err != nil || !bytes.Equal(flat(call.RespData), flat(x.data)) {
			t.Error(name, err)
		}
		call.RespData.Release()
		if lent := c.Stats().LentBytes > before; lent != x.byRefs {
			t.Errorf("%s: lent is %v", name, lent)
		}
	}
}

// Claim: three processes in a chain, each with the smallest arena, under load both ways, all go on: nobody waits for ever, nobody starves.
func TestShmChain(t *testing.T) {
	checkGoroutines(t)
	dir := t.TempDir()
	const least = 64 << 10
	arenas := []*wire.Arena{testArena(t, least), testArena(t, least), testArena(t, least)}
	options := func(i int) Options {
		return Options{Self: Self{Cluster: testCluster, Role: wire.RoleDrive, Proc: wire.ProcID(i + 1)}, Arena: arenas[i], Shm: true}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var serving sync.WaitGroup
	defer func() { cancel(); serving.Wait() }()
	listen := func(addr string, o Options) {
		l, err := Listen(addr, o)
		if err != nil {
			t.Fatal(err)
		}
		serving.Go(func() { _ = l.Serve(ctx) })
	}
	dial := func(addr string, o Options) *Conn {
		c, err := Dial(t.Context(), addr, o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close(); <-c.finished })
		sharing(t, c)
		return c
	}
	last := options(2)
	last.Handler = func(ctx context.Context, r *Request) (wire.Message, wire.Data, error) {
		defer r.Data.Release()
		b, err := arenas[2].Alloc(ctx, 4096)
		if err != nil {
			return nil, nil, err
		}
		copy(b.Bytes(), r.Data[0].B)
		return nil, b.Data(4096), nil
	}
	listen("unix:"+dir+"/last", last)
	next := dial("unix:"+dir+"/last", options(1))
	middle := options(1)
	middle.Handler = func(ctx context.Context, r *Request) (wire.Message, wire.Data, error) {
		defer r.Data.Release()
		call := Call{Method: mEcho, Data: r.Data}
		err := next.Do(ctx, &call)
		return nil, call.RespData, err
	}
	listen("unix:"+dir+"/middle", middle)
	c := dial("unix:"+dir+"/middle", options(0))
	const callers, rounds = 16, 100
	var busy atomic.Int64
	var wg sync.WaitGroup
	for g := range callers {
		wg.Go(func() {
			cctx, stop := context.WithTimeout(t.Context(), 60*time.Second)
			defer stop()
			for done := 0; done < rounds; {
				b, err := arenas[0].Alloc(cctx, 4096)
				if err != nil {
					t.Error("caller", g, "after", done, err)
					return
				}
				fill(b.Bytes(), g*rounds+done)
				d := b.Data(4096)
				call := Call{Method: mEcho, Data: d}
				switch err := c.Do(cctx, &call); {
				case err == nil:
					if !bytes.Equal(flat(call.RespData), d[0].B) {
						t.Error("other data came back")
					}
					call.RespData.Release()
					done++
				case wire.KindOf(err) == wire.KindUnavailable: // no room for a second: it tries again
					busy.Add(1)
				default:
					t.Error("caller", g, "after", done, err)
					d.Release()
					return
				}
				d.Release()
			}
		})
	}
	wg.Wait()
	t.Logf("refused for lack of room: %d; first hop %+v", busy.Load(), c.Stats())
	if c.Stats().LentBytes == 0 || next.Stats().BorrowedBytes == 0 {
		t.Error("nothing passed by reference")
	}
}

// Claim: where one of the connections breaks over which memory was lent and passed on, its owner gets it back when the last borrower has
// released it, and not before: although nothing of the one in between is lent to that one, and although that one's connection lives.
func TestShmPassedOnConnectionEnds(t *testing.T) {
	for _, first := range []bool{true, false} {
		t.Run(fmt.Sprint("first ", first), func(t *testing.T) { passedOnConnectionEnds(t, first) })
	}
}

func passedOnConnectionEnds(t *testing.T, first bool) {
	checkGoroutines(t)
	dir := t.TempDir()
	owner, between, last := testArena(t, 4<<20), testArena(t, 4<<20), testArena(t, 4<<20)
	options := func(a *wire.Arena, h Handler) Options {
		return Options{Self: Self{Cluster: testCluster, Role: wire.RoleCompute, Proc: 1}, Arena: a, Shm: true, Handler: h}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var serving sync.WaitGroup
	defer func() { cancel(); serving.Wait() }()
	listen := func(addr string, o Options) {
		l, err := Listen(addr, o)
		if err != nil {
			t.Fatal(err)
		}
		serving.Go(func() { _ = l.Serve(ctx) })
	}
	dial := func(addr string, o Options) *Conn {
		c, err := Dial(t.Context(), addr, o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close(); <-c.finished })
		sharing(t, c)
		return c
	}
	kept := make(chan wire.Data, 100)
	listen("unix:"+dir+"/last", options(last, func(_ context.Context, r *Request) (wire.Message, wire.Data, error) {
		if r.Header.Trace == 1 {
			r.Data.Release()
		} else {
			kept <- r.Data
		}
		return nil, nil, nil
	}))
	next := dial("unix:"+dir+"/last", options(between, nil))
	listen("unix:"+dir+"/between", options(between, func(ctx context.Context, r *Request) (wire.Message, wire.Data, error) {
		defer r.Data.Release()
		return nil, nil, next.Do(ctx, &Call{Method: mEcho, Data: r.Data, Trace: r.Header.Trace})
	}))
	c := dial("unix:"+dir+"/between", options(owner, nil))
	b := owner.TryAlloc(4096)
	fill(b.Bytes(), 1)
	d := b.Data(4096)
	for next.Stats().LentBytes == 0 { // until the last one has mapped it
		if err := c.Do(t.Context(), &Call{Method: mEcho, Data: d, Trace: 1}); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Do(t.Context(), &Call{Method: mEcho, Data: d}); err != nil {
		t.Fatal(err)
	}
	d.Release()
	broken := next
	if first {
		broken = c
	}
	_ = broken.Close()
	<-broken.finished
	for range 20 {
		if s := owner.Stats(); s.Used != 4096 || s.Lent != 4096 {
			t.Fatalf("%+v while the last one has it", s)
		}
		time.Sleep(time.Millisecond) // not for anything: room for a mistake to show
	}
	want := make([]byte, 4096)
	fill(want, 1)
	got := <-kept
	if !bytes.Equal(flat(got), want) {
		t.Error("what is kept has changed")
	}
	got.Release()
	eventually(t, "the memory to come back", func() bool { return owner.Used() == 0 })
}
