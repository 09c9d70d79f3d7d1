package store

import (
	"context"
	"sync/atomic"

	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/drive/internal/index"
	"github.com/crakefs/crake/drive/internal/sched"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/copies"
)

// Writing is a Put or an Append under way; see Store.StartPut and StartAppend. The zero value is ready for use, and it may be used again
// once it has ended: then it needs little new memory.
//
// It goes from step to step: each begins IO or a journal record, and whoever ends the last of them, as a rule the goroutine that ends IO,
// takes the next step. So it is one goroutine's at a time.
type Writing struct {
	// Set by who starts it; immutable until it has ended.
	ID     wire.StripID
	Epoch  wire.Epoch
	Sums   []uint64  // of a Put: of each block
	Offset uint64    // of an Append, bytes
	Data   wire.Data // borrowed until it has ended
	Origin sched.Origin
	// Ended is called once, when what was written is durable, or has failed; from the goroutine that starts it or from the device's,
	// which it must not block.
	Ended func(w *Writing)

	// Valid when it has ended.
	Err error  // as Put and Append give it
	Len uint64 // after an Append: of the segment, bytes

	s      *Store
	op     op
	slots  chan struct{} // where giveSlot gives its slot back
	step   func(w *Writing)
	left   atomic.Int32 // what must end before step is next
	ticket ticket
	synced func(error) // given to the flusher
	flush  error       // how the flush ended
	pieces []*writePiece
	n      int            // of pieces; the others are kept for later
	runs   []format.Run   // a Put's blocks; those that a segment is about to be given
	sum    uint64         // a Put's checksum
	seg    *index.Segment // nil: a new one
	end    uint64         // the length of the segment when all is well
	memory [4]format.Run  // of where an append goes
	head   []byte         // memory of checkChain
}

// writePiece is one IO of a Writing.
type writePiece struct {
	w       *Writing // immutable
	write   write
	item    sched.Item
	durable bool  // valid once it has ended
	err     error // likewise
}

// run does a Put or Append for a goroutine that waits. begin is called with mu held, frees it, and tells whether anything has begun:
// then Ended will be called.
func (s *Store) run(ctx context.Context, name string, w *Writing, begin func(w *Writing) (began bool, err error)) error {
	slots, err := s.takeSlot(ctx, name)
	if err != nil {
		return err
	}
	w.prepare(s, slots)
	if err := s.begin(ctx, name, &w.op); err != nil {
		giveSlot(slots)
		return err
	}
	ended := make(chan struct{})
	w.Ended = func(*Writing) { close(ended) }
	if began, err := begin(w); !began {
		return err
	}
	s.Kick()
	<-ended
	return w.Err
}

// start does the same for nobody who waits, if that can be had at once. False: nothing was done.
func (s *Store) start(name string, w *Writing, begin func(w *Writing) (began bool, err error)) bool {
	slots := s.trySlot(w.Origin)
	if slots == nil {
		return false
	}
	w.prepare(s, slots)
	if other, err := s.enter(name, &w.op); other != nil || err != nil {
		giveSlot(slots)
		return false
	}
	began, _ := begin(w)
	return began
}

// prepare makes w ready for an operation.
func (w *Writing) prepare(s *Store, slots chan struct{}) {
	w.s, w.slots, w.n, w.Err, w.Len, w.flush = s, slots, 0, nil, 0, nil
	w.op = op{epoch: w.Epoch, origin: w.Origin, one: [1]wire.StripID{w.ID}}
	w.op.ids = w.op.one[:]
	if w.synced == nil {
		w.ticket.ended = w.leave
		w.synced = func(err error) {
			w.flush = err
			w.s.flushed(err)
			w.step(w)
		}
	}
}

// await says that after n calls of leave comes step.
func (w *Writing) await(n int, step func(w *Writing)) {
	w.step = step
	w.left.Store(int32(n))
}

// leave is called by each that was awaited.
func (w *Writing) leave() {
	if w.left.Add(-1) == 0 {
		w.step(w)
	}
}

// sync goes on with step when all that was written is durable; at once if it is.
func (w *Writing) sync(durable bool, step func(w *Writing)) {
	if durable {
		step(w)
		return
	}
	w.step = step
	w.s.flusher.request(w.synced)
}

// dropUnlock ends a Writing of which nothing has begun. Preconditions: mu is held; it is freed.
func (w *Writing) dropUnlock() {
	w.s.endUnlock(&w.op)
	w.forget()
}

// endUnlock ends a Writing. Preconditions: mu is held; it is freed.
func (w *Writing) endUnlock(err error) {
	w.s.endUnlock(&w.op)
	w.forget()
	w.Err = err
	w.Ended(w)
}

// forget gives back the slot, and all that is not w's.
func (w *Writing) forget() {
	for _, p := range w.pieces[:w.n] {
		p.write.io.P, p.write.io.Vec = nil, nil
	}
	if len(w.pieces) > maxKeptPieces {
		clear(w.pieces[maxKeptPieces:])
		w.pieces = w.pieces[:maxKeptPieces]
	}
	if cap(w.head) > maxKeptHead {
		w.head = nil
	}
	w.runs, w.seg = nil, nil
	giveSlot(w.slots)
}

// writeRuns writes the data over runs of the same length, each piece when its turn has come, with the next Kick; written tells how it
// went. Preconditions: await counts one leave for it.
func (w *Writing) writeRuns(runs []format.Run) {
	copies.Add(copies.Submitted, w.Data.Len())
	rest := cursor{data: w.Data}
	w.n = 0
	for _, r := range runs {
		off := w.s.dataOffset(r)
		for left := r.Blocks() * format.BlockSize; left > 0; {
			n := min(left, maxIOBytes)
			p := w.piece()
			p.write.io.Off = off
			p.write.io.P, p.write.io.Vec = rest.take(n)
			p.item.Class, p.item.Flow, p.item.Bytes = sched.WriteClass(w.Origin.Priority), w.Origin.Flow, n
			off += int64(n)
			left -= n
		}
	}
	w.left.Add(int32(w.n))
	for _, p := range w.pieces[:w.n] {
		if w.s.gate.Enter(&p.item) {
			p.start()
		}
	}
	w.leave()
}

// piece gives the next piece.
func (w *Writing) piece() *writePiece {
	if w.n == len(w.pieces) {
		p := &writePiece{w: w}
		p.write.ended = p.ended
		p.item.Ready = p.start
		w.pieces = append(w.pieces, p)
	}
	w.n++
	return w.pieces[w.n-1]
}

// start gives a piece to the device: its turn has come. What is in several pieces is not made durable by itself: each would be flushed.
func (p *writePiece) start() {
	p.write.start(p.w.s.flusher, p.w.op.alone && p.w.n == 1)
}

// ended is called by the device.
func (p *writePiece) ended(durable bool, err error) {
	p.durable, p.err = durable, err
	s := p.w.s
	if s.gate.Leave(&p.item) > 0 {
		s.Kick()
	}
	p.w.leave()
}

// written tells how the writing of the data ended. durable: no flush is needed for it.
func (w *Writing) written() (durable bool, err error) {
	durable = true
	for _, p := range w.pieces[:w.n] {
		durable = durable && p.durable
		if err == nil {
			err = p.err
		}
	}
	return durable, err
}

// cursor takes data apart.
type cursor struct {
	data wire.Data
	at   int // in data[0]
}

// take gives the next n bytes: as p, or, if they lie in several parts, as parts. Preconditions: there are as many.
func (c *cursor) take(n int) (p []byte, parts [][]byte) {
	for {
		b := c.data[0].B[c.at:]
		if len(b) > n {
			b = b[:n]
			c.at += n
		} else {
			c.data, c.at = c.data[1:], 0
		}
		if n -= len(b); n == 0 && parts == nil {
			return b, nil
		}
		if len(b) > 0 {
			parts = append(parts, b)
		}
		if n == 0 {
			return nil, parts
		}
	}
}

// left gives what is left: parts of the same data, borrowed like it.
func (c *cursor) left() wire.Data {
	out := append(wire.Data{}, c.data...)
	if len(out) > 0 {
		out[0].B = out[0].B[c.at:]
	}
	return out
}
