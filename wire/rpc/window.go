package rpc

import (
	"context"
	"sync"
)

// window bounds what a peer has been asked and has not answered: requests and bytes of request data. Who does not fit waits
// in order of arrival. A request that is larger than the window fits when nothing else is out.
type window struct {
	mu      sync.Mutex
	reqs    int // free
	bytes   int // free; may be negative
	maxByte int
	waiters []*windowWaiter
	closed  bool
}

type windowWaiter struct {
	bytes int
	ready chan struct{} // closed when it has its share
	given bool
}

func newWindow(reqs, bytes int) *window {
	return &window{reqs: reqs, bytes: bytes, maxByte: bytes}
}

func (w *window) fits(bytes int) bool {
	return w.reqs > 0 && (bytes == 0 || bytes <= w.bytes || w.bytes == w.maxByte)
}

// acquire takes room for one request with this many bytes of data, or gives ctx's error; done ends the wait with errDone.
func (w *window) acquire(ctx context.Context, bytes int, done <-chan struct{}) error {
	w.mu.Lock()
	if len(w.waiters) == 0 && w.fits(bytes) {
		w.reqs--
		w.bytes -= bytes
		w.mu.Unlock()
		return nil
	}
	me := &windowWaiter{bytes: bytes, ready: make(chan struct{})}
	w.waiters = append(w.waiters, me)
	w.mu.Unlock()
	var err error
	select {
	case <-me.ready:
		return nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-done:
		err = errDone
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if me.given { // at the same moment: give it on
		w.put(me.bytes)
		return err
	}
	for i, x := range w.waiters {
		if x == me {
			w.waiters = append(w.waiters[:i], w.waiters[i+1:]...)
			break
		}
	}
	w.grant() // it may have been the one in the way
	return err
}

// release gives room back.
func (w *window) release(bytes int) {
	w.mu.Lock()
	w.put(bytes)
	w.mu.Unlock()
}

func (w *window) put(bytes int) {
	w.reqs++
	w.bytes += bytes
	w.grant()
}

func (w *window) grant() {
	for len(w.waiters) > 0 && w.fits(w.waiters[0].bytes) {
		x := w.waiters[0]
		w.waiters = w.waiters[1:]
		w.reqs--
		w.bytes -= x.bytes
		x.given = true
		close(x.ready)
	}
}
