package store

import (
	"bytes"
	"context"

	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/drive/internal/index"
	"github.com/crakefs/crake/drive/internal/sched"
	"github.com/crakefs/crake/wire"
)

const opAppend = "drive.append"

// Append extends a segment, for a goroutine that waits; see wire.AppendReq. It gives the length afterwards. data is borrowed.
//
// Blocks are given to a segment in chunks by a journal record, which is durable before the first byte goes there; the
// append itself needs no index write. The record comes first, and not at the same time as with Put, because replay finds
// the end of a segment by its records alone: were the allocation lost and the data not, the same segment could be given
// the same blocks again, and records that were never acknowledged would count. For the same reason an append that failed
// half-way is the last one of its segment.
//
// Errors: KindInvalid, KindCorrupt (the records do not chain, or a checksum), KindRange (not at the length), KindNotFound (no
// segment, and offset is not 0), KindExists (other bytes are there), KindRefused (sealed, or an append failed), KindStaleEpoch,
// KindNoSpace (nothing was written), KindIO, KindShutdown, KindInterrupted (ctx ended before it had begun).
func (s *Store) Append(ctx context.Context, epoch wire.Epoch, id wire.StripID, offset uint64, data wire.Data) (uint64, error) {
	w := &Writing{ID: id, Epoch: epoch, Offset: offset, Data: data, Origin: sched.OriginOf(ctx)}
	if err := w.checkAppend(); err != nil {
		return 0, err
	}
	err := s.run(ctx, opAppend, w, s.appendOrRepeat)
	return w.Len, err
}

// StartAppend is Append that no goroutine waits for, if it can begin at once. It does not block. True: w.Ended has been or will be called,
// and nothing may begin before Kick. False: nothing was done; Append says why, or waits.
func (s *Store) StartAppend(w *Writing) bool {
	return w.checkAppend() == nil && s.start(opAppend, w, s.append)
}

// checkAppend checks what needs no lock.
func (w *Writing) checkAppend() error {
	if err := checkData(opAppend, w.ID, w.Data); err != nil {
		return err
	}
	var err error
	w.head, err = checkChain(w.Data, w.ID, w.Offset, w.head)
	return err
}

// append begins an append at the end of a segment, or a new one. Preconditions: mu is held, w's op has begun; mu is freed. False: nothing
// has begun and the op has ended with an error; KindExists: bytes of it are there already.
func (s *Store) append(w *Writing) (began bool, err error) {
	if w.seg, err = s.appendTarget(w.ID, w.Offset); err == nil && w.seg != nil {
		switch {
		case w.Offset < w.seg.Len:
			err = wire.Errorf(opAppend, wire.KindExists, w.ID.String(), "append at %d, the length is %d", w.Offset, w.seg.Len)
		case w.seg.Sealed || w.seg.Damaged:
			err = wire.Errorf(opAppend, wire.KindRefused, w.ID.String(), "sealed, or an earlier append failed; the length is %d", w.seg.Len)
		}
	}
	if err != nil {
		w.dropUnlock()
		return false, err
	}
	allocated := uint64(0)
	if w.seg != nil {
		allocated = w.seg.AllocatedBytes()
	}
	w.end = w.Offset + uint64(w.Data.Len())
	if w.end > allocated {
		return s.grow(w, int(w.end-allocated))
	}
	w.appendUnlock()
	return true, nil
}

// appendUnlock writes the data of an append to blocks that the segment has. Preconditions: mu is held; it is freed.
func (w *Writing) appendUnlock() {
	runs := index.Part(w.seg.Runs, w.Offset/format.BlockSize, w.Data.Len()/format.BlockSize, w.memory[:0])
	w.op.alone = w.s.isAlone()
	w.await(1, (*Writing).appendWritten)
	w.s.mu.Unlock()
	w.writeRuns(runs)
}

// appendWritten: the data is written, or has failed.
func (w *Writing) appendWritten() {
	durable, err := w.written()
	if err != nil {
		w.s.ioFailed("append to "+w.ID.String(), err)
		w.flush = err
		w.appendDurable()
		return
	}
	w.sync(durable, (*Writing).appendDurable)
}

// appendDurable: the data is durable, or that has failed. Only now it can be read.
func (w *Writing) appendDurable() {
	s := w.s
	s.mu.Lock()
	if w.flush != nil {
		w.seg.Damaged = true
		w.endUnlock(wire.E(opAppend, wire.KindIO, w.ID.String(), w.flush))
		return
	}
	w.seg.Len, w.Len = w.end, w.end
	s.writes.Add(1)
	s.writeBytes.Add(uint64(w.Data.Len()))
	w.endUnlock(nil)
}

// appendTarget finds the segment; nil is a new one. Preconditions: mu is held.
func (s *Store) appendTarget(id wire.StripID, offset uint64) (*index.Segment, error) {
	old, ok := s.idx.Get(id)
	switch {
	case !ok && offset != 0:
		return nil, wire.Errorf(opAppend, wire.KindNotFound, id.String(), "no segment to append to at %d", offset)
	case !ok:
		return nil, nil
	case old.Segment == nil:
		return nil, wire.Errorf(opAppend, wire.KindExists, id.String(), "a strip has the id")
	case offset > old.Segment.Len:
		return nil, wire.Errorf(opAppend, wire.KindRange, id.String(), "append at %d, the length is %d", offset, old.Segment.Len)
	}
	return old.Segment, nil
}

// grow begins an append to a segment that must have need further bytes first. As append.
func (s *Store) grow(w *Writing, need int) (began bool, err error) {
	first, length, have := 0, uint64(0), 0
	if w.seg != nil {
		first, length, have = len(w.seg.Runs), w.seg.Len, int(w.seg.AllocatedBytes())
	}
	if first >= maxSegmentRuns {
		w.dropUnlock()
		return false, wire.Errorf(opAppend, wire.KindRefused, w.ID.String(), "%d runs: seal it and start another segment", first)
	}
	need /= format.BlockSize
	chunk := max(need, min(max(have, minChunkBytes), maxChunkBytes)/format.BlockSize)
	w.runs, err = s.allocate(opAppend, &w.op, chunk)
	if err != nil && chunk > need {
		w.runs, err = s.allocate(opAppend, &w.op, need)
	}
	if err != nil {
		w.dropUnlock()
		return false, err
	}
	w.await(1, (*Writing).growWritten)
	s.journal.submit(&w.ticket, s.isAlone(), format.Record{
		Type: format.RecordAlloc, ID: w.ID, Epoch: w.Epoch, Arg: uint32(first), Len: length, Runs: w.runs,
	})
	s.mu.Unlock()
	return true, nil
}

// growWritten: the record of further blocks is written, or has failed.
func (w *Writing) growWritten() {
	s := w.s
	if err := w.ticket.err; err != nil {
		s.ioFailed("journal", err)
		s.mu.Lock()
		s.freeNow(w.runs)
		w.endUnlock(wire.E(opAppend, wire.KindIO, w.ID.String(), err))
		return
	}
	w.sync(w.ticket.durable, (*Writing).grown)
}

// grown: the record of further blocks is durable, or a flush has failed. Now the data may go there.
func (w *Writing) grown() {
	s := w.s
	s.mu.Lock()
	if w.flush != nil {
		w.endUnlock(wire.E(opAppend, wire.KindIO, w.ID.String(), w.flush)) // the blocks stay taken: the drive has failed
		return
	}
	first, length := 0, uint64(0)
	if w.seg != nil {
		first, length = len(w.seg.Runs), w.seg.Len
	}
	w.seg = s.idx.AddRuns(w.ID, first, length, w.runs)
	s.idx.RaiseEpoch(w.ID.Bucket(), w.Epoch)
	s.journal.finish(&w.ticket)
	w.appendUnlock()
	s.Kick()
}

// appendOrRepeat is append for a goroutine that may wait: of bytes that are there already, all or the first of them, it sees whether they
// are the same, and appends the rest.
func (s *Store) appendOrRepeat(w *Writing) (began bool, err error) {
	seg, err := s.appendTarget(w.ID, w.Offset)
	if err != nil || seg == nil || w.Offset >= seg.Len {
		return s.append(w)
	}
	length := seg.Len
	n := min(int(length-w.Offset), w.Data.Len())
	runs := index.Part(seg.Runs, w.Offset/format.BlockSize, n/format.BlockSize, nil)
	s.mu.Unlock() // the op keeps the segment from being changed or deleted
	same, err := s.sameBytes(runs, w.Data)
	if err != nil {
		s.ioFailed("read of "+w.ID.String(), err)
	}
	s.mu.Lock()
	switch {
	case err != nil:
		err = wire.E(opAppend, wire.KindIO, w.ID.String(), err)
	case !same:
		err = wire.Errorf(opAppend, wire.KindExists, w.ID.String(), "other bytes at %d; the length is %d", w.Offset, length)
	case n < w.Data.Len(): // after a crash: whole records of an unanswered append may have survived
		rest := cursor{data: w.Data}
		rest.take(n)
		w.Data, w.Offset = rest.left(), length
		return s.append(w)
	default:
		w.Len = length
	}
	w.dropUnlock()
	return false, err
}

// sameBytes compares what lies in runs with the start of data.
func (s *Store) sameBytes(runs []format.Run, data wire.Data) (bool, error) {
	buf := blockio.AlignedBytes(format.RunsBlocks(runs) * format.BlockSize)
	for at, left := 0, runs; len(left) > 0; left = left[1:] {
		n := left[0].Blocks() * format.BlockSize
		if err := s.readTurn(sched.ClientRead, left[0], buf[at:at+n]); err != nil {
			return false, err
		}
		at += n
	}
	for _, p := range data {
		n := min(len(buf), len(p.B))
		if !bytes.Equal(buf[:n], p.B[:n]) {
			return false, nil
		}
		buf = buf[n:]
	}
	return true, nil
}
