package rpc

import (
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/capture"
)

// outFrame is a frame that waits to be written.
type outFrame struct {
	head *headBuf  // header and meta
	data wire.Data // references that the writer owns
	id   uint64    // of a request: so that a cancel finds it while it waits
	req  bool
}

func (f *outFrame) release() {
	f.head.free()
	f.data.Release()
	*f = outFrame{}
}

// headBuf is a pooled buffer of header and meta.
type headBuf struct{ b []byte }

var headPool = sync.Pool{New: func() any { return &headBuf{b: make([]byte, 0, 512)} }}

func newHeadBuf() *headBuf {
	h := headPool.Get().(*headBuf)
	h.b = append(h.b[:0], make([]byte, wire.HeaderBytes)...)
	return h
}

func (h *headBuf) free() {
	if cap(h.b) <= heapMetaBytes {
		headPool.Put(h)
	}
}

// writer sends frames in an order of its own: those without data before those with, each in order of arrival. Who brings a
// frame while nobody is writing writes it at once, from the calling goroutine, without waiting; what does not fit into the
// socket, and what others bring meanwhile, is left to the connection's writer goroutine (run).
//
// The batch is owned by whoever set busy, and handed to run through wake.
type writer struct {
	s    stream
	wake chan struct{} // capacity 1

	mu      sync.Mutex
	small   []outFrame // without data
	large   []outFrame // with data
	busy    bool       // somebody owns the batch
	handed  bool       // it is the writer goroutine
	gone    bool       // the writer goroutine has returned
	closed  bool
	backlog atomic.Int64  // bytes of data that wait
	onDrain func()        // called when the backlog has fallen below maxBacklogBytes; immutable
	riders  *releases     // what rides with other frames; nil: nothing; immutable
	flush   chan struct{} // capacity 1: what rides should not wait longer

	tap *capture.Conn // immutable once frames are sent

	txBytes atomic.Uint64 // written, for the watch on stalls
	txData  atomic.Uint64 // data sections of frames that were begun to be written
	waiting atomic.Bool   // the writer goroutine waits for the socket

	// owned with the batch
	batch    []outFrame
	parts    [][]byte // not yet written
	partsBuf [][]byte // the memory of parts
}

func newWriter(s stream) *writer {
	return &writer{s: s, wake: make(chan struct{}, 1), flush: make(chan struct{}, 1)}
}

// send queues a frame and, if nobody is writing, writes. It owns f from now on. false: the connection is closed.
// An error of the socket is found by the reader too, so it is not told here. company says that others will probably send at
// about the same time: then the writer goroutine writes, once all that can run now has run, and several frames share one system
// call.
func (w *writer) send(f outFrame, company bool) bool {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		f.release()
		return false
	}
	if f.data != nil {
		w.large = append(w.large, f)
		w.backlog.Add(int64(f.data.Len()))
	} else {
		w.small = append(w.small, f)
	}
	if w.busy {
		w.mu.Unlock()
		return true
	}
	w.busy = true
	if company && !w.gone {
		w.handed = true
		w.wake <- struct{}{} // never waits: there is one batch
		w.mu.Unlock()
		return true
	}
	w.mu.Unlock()
	w.write()
	return true
}

// hold makes the caller the owner of the batch if nobody is: what is sent from now on waits until it calls write.
func (w *writer) hold() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.busy || w.closed {
		return false
	}
	w.busy = true
	return true
}

// write writes what waits, as far as the socket takes it, and leaves the rest to the writer goroutine.
// Preconditions: the caller owns the batch, and gives it up by this.
func (w *writer) write() {
	for range directRounds {
		if !w.next() {
			return
		}
		n, err := w.s.writev(w.parts, false)
		if err == nil && w.advance(n) {
			continue
		}
		if err != nil {
			_ = w.s.close()
		}
		break
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.gone {
		w.releaseBatch()
		w.busy = false
		return
	}
	w.handed = true
	w.wake <- struct{}{} // never waits: there is one batch
}

// nudge has the writer goroutine send what rides with other frames. It takes no lock.
func (w *writer) nudge() {
	select {
	case w.flush <- struct{}{}:
	default:
	}
}

// withdraw takes a request back that has not begun to be written.
func (w *writer) withdraw(id uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, q := range []*[]outFrame{&w.small, &w.large} {
		for i := range *q {
			f := &(*q)[i]
			if f.req && f.id == id {
				w.backlog.Add(-int64(f.data.Len()))
				f.release()
				*q = append((*q)[:i], (*q)[i+1:]...)
				return true
			}
		}
	}
	return false
}

// next makes the next batch; false says that there is nothing more and the batch is given up.
// Preconditions: the caller owns the batch, and it is written.
func (w *writer) next() bool {
	w.mu.Lock()
	if len(w.small)+len(w.large) == 0 || w.closed {
		w.busy, w.handed = false, false
		w.mu.Unlock()
		return false
	}
	if w.riders != nil {
		if f, ok := w.riders.frame(); ok {
			w.small = append(w.small, f)
		}
	}
	before := w.backlog.Load()
	w.parts = w.partsBuf[:0]
	w.small = w.take(w.small, batchBytes, batchParts/2)
	w.large = w.take(w.large, batchBytes, batchParts)
	w.partsBuf = w.parts
	after := w.backlog.Load()
	w.mu.Unlock()
	if before >= maxBacklogBytes && after < maxBacklogBytes && w.onDrain != nil {
		w.onDrain()
	}
	return true
}

// take moves frames from the front of q to the batch, up to the bounds, but at least one if there is one.
func (w *writer) take(q []outFrame, maxBytes, maxParts int) []outFrame {
	i, total := 0, 0
	for ; i < len(q); i++ {
		f := &q[i]
		data := f.data.Len()
		n := len(f.head.b) + data
		if i > 0 && (total+n > maxBytes || len(w.parts)+1+len(f.data) > maxParts) {
			break
		}
		total += n
		w.backlog.Add(-int64(data))
		w.txData.Add(uint64(data))
		w.batch = append(w.batch, *f)
		w.tap.Frame(true, f.head.b)
		w.tap.Data(true, f.data)
		w.parts = append(w.parts, f.head.b)
		for _, s := range f.data {
			w.parts = append(w.parts, s.B)
		}
	}
	n := copy(q, q[i:])
	clear(q[n:])
	return q[:n]
}

// advance notes that n bytes are written; true says that this was the whole batch, and gives its buffers back.
func (w *writer) advance(n int) bool {
	w.txBytes.Add(uint64(n))
	for len(w.parts) > 0 && n >= len(w.parts[0]) {
		n -= len(w.parts[0])
		w.parts = w.parts[1:]
	}
	if len(w.parts) > 0 {
		w.parts[0] = w.parts[0][n:]
		return false
	}
	w.releaseBatch()
	return true
}

func (w *writer) releaseBatch() {
	for i := range w.batch {
		w.batch[i].release()
	}
	clear(w.partsBuf)
	w.batch, w.parts = w.batch[:0], nil
}

// run writes what is handed to it until done is closed. It is the connection's writer goroutine.
func (w *writer) run(done <-chan struct{}) error {
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.gone = true
		if w.handed {
			w.releaseBatch()
			w.busy, w.handed = false, false
		}
	}()
	for {
		select {
		case <-done:
			return nil
		case <-w.flush:
			if f, ok := w.riders.frame(); ok {
				w.send(f, false)
			}
			continue
		case <-w.wake:
		}
		runtime.Gosched() // others may have something to send along
		for {
			for len(w.parts) > 0 {
				w.waiting.Store(true)
				n, err := w.s.writev(w.parts, true)
				w.waiting.Store(false)
				if err != nil {
					return err
				}
				w.advance(n)
			}
			if !w.next() {
				break
			}
		}
	}
}

// stop makes send refuse and drops what waits. The batch under way is dropped by its owner.
func (w *writer) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	for _, q := range []*[]outFrame{&w.small, &w.large} {
		for i := range *q {
			(*q)[i].release()
		}
		*q = nil
	}
	w.backlog.Store(0)
}
