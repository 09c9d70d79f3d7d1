package store

import (
	"sync"
	"sync/atomic"

	"github.com/crakefs/crake/drive/internal/blockio"
)

// flusher shares flushes: all who come while one is under way share the next. The first who finds none under way does
// it himself, so a lone caller pays no switch of goroutines.
type flusher struct {
	dev     blockio.Device
	durable blockio.Durable // dev, if it needs flushes and can make single writes durable; else nil
	count   atomic.Uint64

	mu      sync.Mutex
	broken  error // a flush has failed as part of a write: none is believed any more
	running bool
	next    *flushRound // who waits for the flush after the one under way, or nil
}

// flushRound is one shared flush to come.
type flushRound struct {
	lead chan struct{} // holds the right to do it, once
	done chan struct{} // closed afterwards
	err  error         // valid then
}

// write writes, and, if the caller is alone, makes that write durable at once, so that no sync is needed. When that fails, a plain
// write tells whether the write or the flush was to blame; after a flush that failed there is no other, as with sync: then the next
// sync says so.
func (f *flusher) write(p []byte, off int64, alone bool) (durable bool, err error) {
	if f.durable == nil || !alone {
		return false, f.dev.WriteAt(p, off)
	}
	failed := f.durable.WriteDurable(p, off)
	f.count.Add(1)
	if failed == nil {
		return true, nil
	}
	if err := f.dev.WriteAt(p, off); err != nil {
		return false, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.broken = failed
	return false, nil
}

// sync returns when everything written before the call is durable.
func (f *flusher) sync() error {
	if !f.dev.Info().NeedsFlush {
		return nil
	}
	f.mu.Lock()
	if err := f.broken; err != nil {
		f.mu.Unlock()
		return err
	}
	if !f.running {
		f.running = true
		f.mu.Unlock()
		return f.run()
	}
	r := f.next
	if r == nil {
		r = &flushRound{lead: make(chan struct{}, 1), done: make(chan struct{})}
		f.next = r
	}
	f.mu.Unlock()
	select {
	case <-r.done:
		return r.err
	case <-r.lead:
		r.err = f.runRound(r)
		close(r.done)
		return r.err
	}
}

// runRound does the flush that r waits for.
func (f *flusher) runRound(r *flushRound) error {
	f.mu.Lock()
	f.next = nil // who comes from now on needs a later flush
	f.mu.Unlock()
	return f.run()
}

// run flushes and passes the lead on. Preconditions: running is set, by this caller or the one that passed it on.
func (f *flusher) run() error {
	err := f.dev.Flush()
	f.count.Add(1)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.next != nil {
		f.next.lead <- struct{}{}
	} else {
		f.running = false
	}
	return err
}
