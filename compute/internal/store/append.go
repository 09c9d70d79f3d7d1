package store

import (
	"context"
	"errors"
	"sync"

	"github.com/crakefs/crake/wire"
)

// appender is the open data segment of a bucket and the queue of what is to be appended.
type appender struct {
	mu    sync.Mutex
	queue []*appendWait // guarded by mu; at most MaxQueuedAppends
	busy  bool          // guarded by mu: the appending goroutine runs
	idle  sync.WaitGroup

	seg *Segment // owned by the appending goroutine
}

// appendWait is one caller's data on its way.
type appendWait struct {
	data wire.Data // a reference of its own: the caller may leave
	sums []uint64
	done chan appendResult // buffered: nobody may be there any more
}

type appendResult struct {
	loc   wire.Location
	block uint32
	err   error
}

// wait waits for the appending goroutine; the bucket's ctx has ended, so that no other starts.
func (a *appender) wait() {
	a.mu.Lock()
	busy := a.busy // an Append that saw the ctx alive has counted its goroutine by now
	a.mu.Unlock()
	if busy {
		a.idle.Wait()
	}
}

// Append adds blocks (at most MaxAppendBlocks, with their sums) to the bucket's open data segment and returns when all
// m+1 replicas are durable. They lie at block and following of the Location, counted in blocks from the start of the
// segment. Callers share appends. data is borrowed. An Append that begins after another one has returned segment number
// n never gives a lower number.
//
// Errors: KindNoSpace, KindUnavailable, KindStaleEpoch, KindInvalid; KindInterrupted or KindTimeout when ctx ended (the
// blocks may be written or not; nobody knows of them).
func (b *Bucket) Append(ctx context.Context, data wire.Data, sums []uint64) (wire.Location, uint32, error) {
	const op = "bucket.append"
	n := data.Len() / wire.BlockSize
	if n < 1 || n > MaxAppendBlocks || data.Len()%wire.BlockSize != 0 || len(sums) != n {
		return wire.Location{}, 0, wire.Errorf(op, wire.KindInvalid, b.name(), "%d bytes with %d checksums", data.Len(), len(sums))
	}
	w := &appendWait{data: data.Retain(), sums: sums, done: make(chan appendResult, 1)}
	a := &b.app
	a.mu.Lock()
	if err := b.alive(op); err != nil {
		a.mu.Unlock()
		w.data.Release()
		return wire.Location{}, 0, err
	}
	if len(a.queue) >= MaxQueuedAppends {
		a.mu.Unlock()
		w.data.Release()
		return wire.Location{}, 0, wire.Errorf(op, wire.KindUnavailable, b.name(), "%d appends wait", MaxQueuedAppends)
	}
	a.queue = append(a.queue, w)
	if !a.busy {
		a.busy = true
		a.idle.Add(1)
		go b.appendLoop()
	}
	a.mu.Unlock()
	select {
	case r := <-w.done:
		return r.loc, r.block, r.err
	case <-ctx.Done():
		kind := wire.KindInterrupted
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			kind = wire.KindTimeout
		}
		return wire.Location{}, 0, wire.E(op, kind, b.name(), context.Cause(ctx))
	}
}

// appendLoop appends batch after batch until nothing waits.
func (b *Bucket) appendLoop() {
	a := &b.app
	defer a.idle.Done()
	for {
		a.mu.Lock()
		n, blocks := 0, 0
		for n < len(a.queue) && (n == 0 || blocks+len(a.queue[n].sums) <= MaxAppendBlocks) {
			blocks += len(a.queue[n].sums)
			n++
		}
		if n == 0 {
			a.busy = false
			a.mu.Unlock()
			return
		}
		batch := a.queue[:n:n]
		a.queue = a.queue[n:]
		a.mu.Unlock()
		loc, block, err := b.appendBatch(batch)
		for _, w := range batch {
			w.done <- appendResult{loc: loc, block: block, err: err}
			block += uint32(len(w.sums))
			w.data.Release()
		}
	}
}

// appendBatch writes one record; block is where its first block lies.
func (b *Bucket) appendBatch(batch []*appendWait) (loc wire.Location, block uint32, err error) {
	a := &b.app
	rec := wire.SegRecord{Epoch: b.epoch}
	var payload wire.Data
	for _, w := range batch {
		rec.Sums = append(rec.Sums, w.sums...)
		payload = append(payload, w.data...)
	}
	rec.Payload = len(rec.Sums) * wire.BlockSize
	for range AppendTries {
		if a.seg != nil && a.seg.Len+uint64(rec.Bytes()) > b.s.c.SegmentBytes {
			a.seg.Abandon()
			a.seg = nil
		}
		if a.seg == nil {
			if a.seg, err = b.newDataSegment(); err != nil {
				a.seg = nil
				return loc, 0, err
			}
		}
		rec.ID, rec.Offset = a.seg.Loc.ID, a.seg.Len
		at := a.seg.Len
		if err = b.appendRecord(&rec, payload); err == nil {
			return a.seg.Loc, uint32((at + uint64(rec.HeadBytes())) / wire.BlockSize), nil
		}
		a.seg.Abandon()
		a.seg = nil
		if alive := b.alive("bucket.append"); alive != nil {
			return loc, 0, alive
		}
	}
	return loc, 0, wire.E("bucket.append", wire.KindUnavailable, b.name(), err)
}

// appendRecord appends a record to the open segment. Its head is new memory each time: a drive that has not answered may still read
// the last one.
func (b *Bucket) appendRecord(rec *wire.SegRecord, payload wire.Data) error {
	head, err := b.s.c.Arena.AllocFor(b.ctx, wire.BlockSize, wire.UseMore)
	if err != nil {
		return wire.E("bucket.append", wire.KindUnavailable, b.name(), err)
	}
	defer head.Release()
	rec.EncodeHead(head.Bytes(), nil)
	return b.app.seg.Append(b.ctx, append(head.Data(wire.BlockSize), payload...))
}

func (b *Bucket) newDataSegment() (*Segment, error) {
	b.mu.Lock()
	next := b.nextNumber
	b.mu.Unlock()
	if next == nil {
		return nil, wire.Errorf("bucket.append", wire.KindRefused, b.name(), "no numbers for segments yet")
	}
	number, err := next()
	if err != nil {
		return nil, err
	}
	return b.NewSegment(b.NewID(wire.ClassSegment, number, 0), true)
}
