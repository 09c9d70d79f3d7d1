package rpc

import (
	"context"
	"sync"
)

// window bounds what a peer has been asked and has not answered: requests and bytes of request data. Who does not fit waits.
// Requests with data are served in order of arrival, and so are those without; one without data does not wait for one with that
// lacks bytes. A request that is larger than the window fits when no other data is out.
type window struct {
	mu       sync.Mutex
	reqs     int // free
	bytes    int // free; may be negative
	maxBytes int
	plain    []*windowWaiter // without data
	loaded   []*windowWaiter // with data
	arrivals uint64
}

type windowWaiter struct {
	bytes int
	turn  uint64        // order of arrival
	ready chan struct{} // closed when it has its share
	given bool
}

func newWindow(reqs, bytes int) *window {
	return &window{reqs: reqs, bytes: bytes, maxBytes: bytes}
}

func (w *window) fits(bytes int) bool {
	return w.reqs > 0 && (bytes == 0 || bytes <= w.bytes || w.bytes == w.maxBytes)
}

func (w *window) queue(bytes int) *[]*windowWaiter {
	if bytes == 0 {
		return &w.plain
	}
	return &w.loaded
}

// try takes room for one request with this many bytes of data if there is some and nobody waits for it.
func (w *window) try(bytes int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(*w.queue(bytes)) > 0 || !w.fits(bytes) {
		return false
	}
	w.reqs--
	w.bytes -= bytes
	return true
}

// acquire waits for room, or gives ctx's error; done ends the wait with errDone.
func (w *window) acquire(ctx context.Context, bytes int, done <-chan struct{}) error {
	w.mu.Lock()
	q := w.queue(bytes)
	w.arrivals++
	me := &windowWaiter{bytes: bytes, turn: w.arrivals, ready: make(chan struct{})}
	*q = append(*q, me)
	w.grant() // there may be room since try
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
	for i, x := range *q {
		if x == me {
			*q = append((*q)[:i:i], (*q)[i+1:]...)
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

// grant serves those who wait, as far as there is room: of the heads of both queues that fit, the one that came first.
func (w *window) grant() {
	for {
		var first *[]*windowWaiter
		for _, q := range []*[]*windowWaiter{&w.plain, &w.loaded} {
			if len(*q) > 0 && w.fits((*q)[0].bytes) && (first == nil || (*q)[0].turn < (*first)[0].turn) {
				first = q
			}
		}
		if first == nil {
			return
		}
		x := (*first)[0]
		*first = (*first)[1:]
		w.reqs--
		w.bytes -= x.bytes
		x.given = true
		close(x.ready)
	}
}
