package store

import (
	"sync"
	"sync/atomic"

	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/drive/internal/health"
)

// flusher shares flushes: all who come while one is under way share the next. Nobody needs to wait: who asked is called.
type flusher struct {
	// Immutable.
	dev     blockio.Async
	monitor *health.Monitor
	needed  bool // the device has a cache that forgets
	durable bool // and it can make single writes durable
	count   atomic.Uint64

	// Of the flush under way; owned by who begins and ends it.
	io    blockio.IO
	begun health.Begun

	mu      sync.Mutex
	broken  error         // a flush has failed as part of a write: none is believed any more
	running bool          // a flush is under way
	asked   []func(error) // who waits for it
	next    []func(error) // who waits for the one after it
	spare   []func(error) // memory of one of them
}

// newFlusher makes the flusher of a device; dev is the device that begins IO for it.
func newFlusher(device blockio.Device, dev blockio.Async, m *health.Monitor) *flusher {
	f := &flusher{dev: dev, monitor: m, needed: device.Info().NeedsFlush}
	_, durable := device.(blockio.Durable)
	f.durable = f.needed && durable
	f.io = blockio.IO{Flush: true, Done: f.ended}
	return f
}

// request calls ended once, when everything written before the call is durable, or with an error: at once, or from the goroutine that ends
// IO. Preconditions: no lock of the store is held.
func (f *flusher) request(ended func(err error)) {
	f.mu.Lock()
	switch {
	case !f.needed || f.broken != nil:
		err := f.broken
		f.mu.Unlock()
		ended(err)
	case f.running:
		f.next = append(f.next, ended)
		f.mu.Unlock()
	default:
		f.running = true
		f.asked = append(f.asked, ended)
		f.mu.Unlock()
		f.begin()
	}
}

// begin begins a flush. Preconditions: running is set, and none is under way.
func (f *flusher) begin() {
	f.begun = f.monitor.Begin()
	f.dev.Start(&f.io)
	f.dev.Kick()
}

// ended is the end of a flush. The next one begins before anybody is told of this one.
func (f *flusher) ended(_ *blockio.IO, err error) {
	f.monitor.End(f.begun, health.Flush, err)
	f.count.Add(1)
	f.mu.Lock()
	asked := f.asked
	f.asked, f.next, f.spare = f.next, f.spare[:0], nil
	f.running = len(f.asked) > 0
	again := f.running
	f.mu.Unlock()
	if again {
		f.begin()
	}
	for _, ended := range asked {
		ended(err)
	}
	clear(asked)
	f.mu.Lock()
	f.spare = asked
	f.mu.Unlock()
}

// sync returns when everything written before the call is durable. It waits, so it is not for the goroutine that ends IO.
func (f *flusher) sync() error {
	done := make(chan error, 1)
	f.request(func(err error) { done <- err })
	return <-done
}

// breaks notes that a flush has failed as part of a write.
func (f *flusher) breaks(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.broken = err
}

// write is one write that no goroutine waits for. It may be used again once it has ended.
type write struct {
	// Set by who starts it; immutable until it has ended. Of io: Off, P or Vec.
	io blockio.IO
	// ended is called once, by the device's goroutine, which it must not block. durable: no flush is needed.
	ended func(durable bool, err error)

	f      *flusher
	begun  health.Begun
	failed error // how a durable write failed; see done
}

// start begins a write, with the next Kick, and, if the caller is alone, makes it durable at once, so that no flush is needed.
func (w *write) start(f *flusher, alone bool) {
	w.f, w.failed = f, nil
	w.io.Write, w.io.Durable = true, alone && f.durable && w.io.Vec == nil
	if w.io.Done == nil {
		w.io.Done = w.done
	}
	w.begin()
}

func (w *write) begin() {
	w.begun = w.f.monitor.Begin()
	w.f.dev.Start(&w.io)
}

// done is called by the device. When a durable write has failed, a plain one tells whether the write or the flush was to blame; after
// a flush that failed there is no other: the next request for one says so.
func (w *write) done(_ *blockio.IO, err error) {
	f := w.f
	if !w.io.Durable {
		f.monitor.End(w.begun, health.Write, err)
		if w.failed != nil && err == nil {
			f.breaks(w.failed)
		}
		w.ended(false, err)
		return
	}
	f.monitor.End(w.begun, health.Flush, err) // which is most of its time
	f.count.Add(1)
	if err == nil {
		w.ended(true, nil)
		return
	}
	w.failed, w.io.Durable = err, false
	w.begin()
	f.dev.Kick()
}
