package rpc

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/crakefs/crake/wire"
)

// Claim: a request and its answer cost no memory of the heap, on either side: over a socket and by reference, without data, with little and with
// much, both ways, whether a goroutine of its own handles it or Start does.
func TestCallAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates, and empties pools")
	}
	for _, transport := range []string{"unix", "shm"} {
		for _, way := range []string{"handler", "start"} {
			for _, n := range []int{0, 4096, 1 << 20} {
				t.Run(fmt.Sprint(transport, "/", way, "/", n), func(t *testing.T) { allocatesNothing(t, transport, way, n) })
			}
		}
	}
}

func allocatesNothing(t *testing.T, transport, way string, n int) {
	w := newWorld(t, transport)
	for _, a := range []**wire.Arena{&w.serverA, &w.clientA} {
		var err error
		if *a, err = wire.NewArena(64 << 20); err != nil { // ArenaDebug does not use Bufs again
			t.Fatal(err)
		}
		closeArena(t, *a)
	}
	w.server.Arena, w.client.Arena = w.serverA, w.clientA
	answer := func() wire.Data {
		if n == 0 {
			return nil
		}
		return w.serverA.TryAlloc(n).Data(n)
	}
	if way == "handler" {
		w.server.Handler = func(_ context.Context, r *Request) (wire.Message, wire.Data, error) {
			r.Data.Release()
			return nil, answer(), nil
		}
	} else {
		w.server.Start = func(_ context.Context, r *Request) bool {
			r.Data.Release()
			r.Answer(nil, answer(), nil)
			return true
		}
	}
	w.serve()
	c := w.dial()
	if transport == "shm" {
		sharing(t, c)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var data wire.Data
	if n > 0 {
		data = w.clientA.TryAlloc(n).Data(n)
		defer data.Release()
	}
	call := Call{Method: mMake, Data: data}
	rounds := func(k int) {
		for range k {
			if err := c.Do(ctx, &call); err != nil || call.RespData.Len() != n {
				t.Fatal(err, call.RespData.Len())
			}
			call.RespData.Release()
		}
	}
	const many = 400
	rounds(200) // until there are spare structs of all sorts
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	rounds(many)
	runtime.ReadMemStats(&after)
	// A collection empties the pools now and then.
	if got := float64(after.Mallocs-before.Mallocs) / many; got > 0.3 {
		t.Errorf("%.2f allocations a request", got)
	}
	if transport == "shm" && n > 0 && (c.Stats().InlineSentBytes > uint64(n) || c.Stats().InlineReceivedBytes > uint64(n)) {
		t.Errorf("data went through the socket: %+v", c.Stats())
	}
}
