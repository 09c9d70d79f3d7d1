package compute

import (
	"context"
	"os"
	"runtime/pprof"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	// tick is the unit of a pace's time.
	tick = 10 * time.Millisecond
	// longestWait is how long one operation of a client may take while computes vanish or buckets move. A bucket is away for some
	// 100 ms; a request that waits for somebody who does not come back stands for seconds.
	longestWait = 4 * time.Second
)

// pace counts what clients do and watches that none of them stands still for longestWait. Its time is what the process gets: ticks of a
// goroutine that sleeps for one and wakes up promptly. So a machine that has no time for the test does not fail it, and a stall of
// our own does, since a process that waits for nothing wakes up in time.
type pace struct {
	done []atomic.Int64 // operations
	end  func()         // ends the watch: the clients are about to be stopped
}

// newPace starts a watch that ends with the test, or by end.
func newPace(t *testing.T, clients int) *pace {
	p := &pace{done: make([]atomic.Int64, clients)}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { p.watch(ctx, t) })
	p.end = func() { cancel(); wg.Wait() }
	t.Cleanup(p.end)
	return p
}

// watch fails the test once, with the stacks of all goroutines, when somebody stands still.
func (p *pace) watch(ctx context.Context, t *testing.T) {
	last, ticks := p.counts(), make([]time.Duration, len(p.done))
	for ctx.Err() == nil {
		before := time.Now()
		time.Sleep(tick)
		if time.Since(before) > 2*tick {
			continue
		}
		for i, n := range p.counts() {
			ticks[i] += tick
			if n != last[i] {
				last[i], ticks[i] = n, 0
			}
			if ticks[i] >= longestWait {
				_ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
				t.Errorf("client %d stands still for %v, after %d operations", i, ticks[i], n)
				return
			}
		}
	}
}

// did counts an operation of a client.
func (p *pace) did(client int) { p.done[client].Add(1) }

func (p *pace) counts() []int64 {
	out := make([]int64, len(p.done))
	for i := range p.done {
		out[i] = p.done[i].Load()
	}
	return out
}

// all tells whether every client has done so much.
func (p *pace) all(n int64) bool {
	for _, c := range p.counts() {
		if c < n {
			return false
		}
	}
	return true
}
