package store

import (
	"context"
	"sync/atomic"

	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/drive/internal/health"
	"github.com/crakefs/crake/drive/internal/sched"
	"github.com/crakefs/crake/wire"
)

// Reading is a read of parts of strips and segments under way; see Store.StartRead. The zero value is ready for use, and it may be used
// again once it has ended: then it needs no new memory.
type Reading struct {
	// Set by who starts it; immutable until it has ended.
	Ranges []wire.ReadRange // see wire.ReadReq
	Origin sched.Origin
	// Ended is called once, when all is read; from the goroutine that starts it or from the device's, which it must not block.
	Ended func(r *Reading)

	// Valid when it has ended. Status is used again with the Reading; Data is the caller's.
	Status []wire.Kind
	Data   wire.Data

	s      *Store
	buf    *wire.Buf
	period *period
	pieces []*piece     // the first n are of this read, the others are kept for later ones
	n      int          // of pieces
	left   atomic.Int32 // pieces that have not ended
	gaveUp atomic.Bool  // a piece was taken back
}

// piece is one IO of a read.
type piece struct {
	// Immutable.
	r  *Reading
	io blockio.IO

	item  sched.Item
	begun health.Begun
	index int   // of the range
	err   error // valid once it has ended
}

// Read is StartRead for a goroutine that waits. Never gives more than what is acknowledged. The caller owns the data, which
// is the device's own bytes: block checksums are the reader's to verify. Errors: KindInvalid, KindOverLimit, KindInterrupted (ctx ended
// before there was memory or a turn); failures of single ranges are statuses.
func (s *Store) Read(ctx context.Context, ranges []wire.ReadRange) ([]wire.Kind, wire.Data, error) {
	const name = "drive.read"
	total, err := checkRanges(name, ranges)
	if err != nil {
		return nil, nil, err
	}
	buf, err := s.cfg.Arena.Alloc(ctx, total) // may wait, so before anything is pinned
	if err != nil {
		return nil, nil, err
	}
	ended := make(chan struct{})
	r := &Reading{Ranges: ranges, Origin: sched.OriginOf(ctx), Ended: func(*Reading) { close(ended) }}
	s.plan(r, buf)
	s.submit(r)
	s.async.Kick()
	select {
	case <-ended:
	case <-ctx.Done():
		r.giveUp()
		<-ended
	}
	if r.gaveUp.Load() {
		r.Data.Release()
		return nil, nil, wire.E(name, wire.KindInterrupted, "", ctx.Err())
	}
	return r.Status, r.Data, nil
}

// StartRead begins a read that no goroutine waits for, as far as that can be had at once: on an Async device, and, of what is not
// long, on one in memory. It does not block. True: r.Ended has been or will be called, and, on an Async device, nothing may begin
// before Kick. False: nothing was done; Read says why or waits.
func (s *Store) StartRead(r *Reading) bool {
	inline := s.IsInline()
	total, err := checkRanges("drive.read", r.Ranges)
	if err != nil || inline && total > maxInlineBytes {
		return false
	}
	buf := s.cfg.Arena.TryAlloc(total)
	if buf == nil {
		return false
	}
	s.plan(r, buf)
	if inline {
		s.readInline(r)
	} else {
		s.submit(r)
	}
	return true
}

// IsInline says that StartRead does what it begins at once, in the calling goroutine.
func (s *Store) IsInline() bool { return s.inline }

func checkRanges(name string, ranges []wire.ReadRange) (total int, err error) {
	if len(ranges) == 0 || len(ranges) > maxReadRanges {
		return 0, wire.Errorf(name, wire.KindOverLimit, "", "%d ranges, want 1 to %d", len(ranges), maxReadRanges)
	}
	for i := range ranges {
		r := &ranges[i]
		if r.Offset%format.BlockSize != 0 || r.Len%format.BlockSize != 0 || r.Len == 0 {
			return 0, wire.Errorf(name, wire.KindInvalid, r.ID.String(), "%d bytes at %d are not whole blocks", r.Len, r.Offset)
		}
		if total += int(r.Len); total > wire.MaxDataBytes {
			return 0, wire.Errorf(name, wire.KindOverLimit, r.ID.String(), "more than %d bytes together", wire.MaxDataBytes)
		}
	}
	return total, nil
}

// plan finds out which IOs a read into buf needs, each range at its place as if all succeeded, and pins what they will read.
func (s *Store) plan(r *Reading, buf *wire.Buf) {
	r.s, r.buf, r.n = s, buf, 0
	r.gaveUp.Store(false)
	r.Status = append(r.Status[:0], make([]wire.Kind, len(r.Ranges))...)
	class := sched.ReadClass(r.Origin.Priority)
	var memory [4]format.Run
	mem := buf.Bytes()
	s.mu.RLock()
	for i := range r.Ranges {
		rg := &r.Ranges[i]
		part := mem[:rg.Len]
		mem = mem[rg.Len:]
		runs, kind := s.idx.Locate(rg.ID, rg.Offset, int(rg.Len), memory[:0])
		r.Status[i] = kind
		if kind != wire.KindNone {
			continue
		}
		for _, run := range runs {
			off := s.dataOffset(run)
			for left := run.Blocks() * format.BlockSize; left > 0; {
				n := min(left, maxIOBytes)
				p := r.piece()
				p.index, p.err = i, nil
				p.io.Off, p.io.P = off, part[:n]
				p.item.Class, p.item.Flow, p.item.Bytes = class, r.Origin.Flow, n
				part = part[n:]
				off += int64(n)
				left -= n
			}
		}
	}
	r.period = s.enterRead()
	s.mu.RUnlock()
	s.reads.Add(uint64(r.n))
	for _, p := range r.pieces[:r.n] {
		s.readBytes.Add(uint64(len(p.io.P)))
	}
}

// piece gives the next piece.
func (r *Reading) piece() *piece {
	if r.n == len(r.pieces) {
		p := &piece{r: r}
		p.io.Done = p.done
		p.item.Ready = p.start
		r.pieces = append(r.pieces, p)
	}
	r.n++
	return r.pieces[r.n-1]
}

// submit queues all pieces; who ends the last one ends the read.
func (s *Store) submit(r *Reading) {
	pieces := r.pieces[:r.n]
	r.left.Store(int32(len(pieces)) + 1) // one for this loop: the read must not end, and be another's, before it has
	for _, p := range pieces {
		if s.gate.Enter(&p.item) {
			p.start()
		}
	}
	if r.left.Add(-1) == 0 {
		r.end()
	}
}

// giveUp takes back the pieces that wait for their turn, if the read has not ended. Preconditions: r is not used again before it returns.
func (r *Reading) giveUp() {
	for n := r.left.Load(); !r.left.CompareAndSwap(n, n+1); n = r.left.Load() { // one for this loop: r must not end before it has
		if n == 0 {
			return
		}
	}
	for _, p := range r.pieces[:r.n] {
		if r.s.gate.Cancel(&p.item) {
			r.gaveUp.Store(true)
			r.left.Add(-1)
		}
	}
	if r.left.Add(-1) == 0 {
		r.end()
	}
}

// start gives a piece to the device: its turn has come.
func (p *piece) start() {
	s := p.r.s
	p.begun = s.cfg.Health.Begin()
	s.async.Start(&p.io)
}

// done is called by the device.
func (p *piece) done(_ *blockio.IO, err error) {
	r := p.r
	s := r.s
	s.cfg.Health.End(p.begun, health.Read, err)
	p.err = err
	if s.gate.Leave(&p.item) > 0 {
		s.async.Kick()
	}
	if r.left.Add(-1) == 0 {
		r.end()
	}
}

// readInline does all pieces in this goroutine, without turns: on a device in memory an IO is a copy by this core, and nothing can be
// ahead of it.
func (s *Store) readInline(r *Reading) {
	for _, p := range r.pieces[:r.n] {
		p.err = s.dev.ReadAt(p.io.P, p.io.Off)
	}
	r.end()
}

// end ends a read all of whose pieces have ended: from then on its blocks may be used again, and r by its owner.
func (r *Reading) end() {
	s := r.s
	s.leaveRead(r.period)
	for _, p := range r.pieces[:r.n] {
		if p.err != nil {
			r.Status[p.index] = wire.KindIO
			s.ioFailed("read of "+r.Ranges[p.index].ID.String(), p.err)
		}
		p.io.P = nil // not to keep memory that is given away
	}
	r.Data = r.data()
	if len(r.pieces) > maxKeptPieces {
		clear(r.pieces[maxKeptPieces:])
		r.pieces = r.pieces[:maxKeptPieces]
	}
	r.s, r.buf, r.period = nil, nil, nil
	r.Ended(r)
}

// data makes the data section: the ranges that succeeded, in order. It takes over the reference on buf.
func (r *Reading) data() wire.Data {
	all := true
	for _, k := range r.Status {
		all = all && k == wire.KindNone
	}
	if all {
		return r.buf.Data(len(r.buf.Bytes()))
	}
	var data wire.Data
	at := 0
	for i := range r.Ranges {
		n := int(r.Ranges[i].Len)
		if r.Status[i] == wire.KindNone {
			data = append(data, wire.Slice{Buf: r.buf.Retain(), B: r.buf.Bytes()[at : at+n]})
		}
		at += n
	}
	r.buf.Release()
	return data
}

// List gives the strips of a bucket and class with ids above after, in order; see wire.ListReq.
func (s *Store) List(bucket wire.BucketID, class wire.Class, after wire.StripID, limit int) (entries []wire.ListEntry, more bool) {
	if limit <= 0 || limit > maxListEntries {
		limit = maxListEntries
	}
	s.ascend(bucket, class, after, func(st *stripInfo) bool {
		if len(entries) == limit {
			more = true
			return false
		}
		entries = append(entries, wire.ListEntry{ID: st.ID, Len: st.LenBytes(), Open: st.Segment != nil && !st.Segment.Sealed, Sum: st.Sum})
		return true
	})
	return entries, more
}
