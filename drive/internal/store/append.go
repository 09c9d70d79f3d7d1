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

// Append extends a segment; see wire.AppendReq. It gives the length afterwards. data is borrowed.
//
// Blocks are given to a segment in chunks by a journal record, which is durable before the first byte goes there; the
// append itself needs no index write. The record comes first, and not at the same time as with Put, because replay finds
// the end of a segment by its records alone: were the allocation lost and the data not, the same segment could be given
// the same blocks again, and records that were never acknowledged would count. For the same reason an append that failed
// half-way is the last one of its segment.
//
// Errors: KindInvalid, KindCorrupt (the records do not chain, or a checksum), KindRange (not at the length), KindNotFound (no
// segment, and offset is not 0), KindExists (other bytes are there), KindRefused (sealed, or an append failed), KindStaleEpoch,
// KindNoSpace (nothing was written), KindIO, KindShutdown.
func (s *Store) Append(ctx context.Context, epoch wire.Epoch, id wire.StripID, offset uint64, data wire.Data) (uint64, error) {
	const name = "drive.append"
	if err := checkData(name, id, data); err != nil {
		return 0, err
	}
	if err := checkChain(data, id, offset); err != nil {
		return 0, err
	}
	slot, err := s.takeSlot(ctx, name)
	if err != nil {
		return 0, err
	}
	defer giveSlot(slot)
	o, err := s.begin(ctx, name, epoch, id)
	if err != nil {
		return 0, err
	}
	seg, err := s.appendTarget(id, offset)
	if err != nil {
		s.endUnlock(o)
		return 0, err
	}
	if seg != nil && offset < seg.Len {
		return s.repeat(o, seg, offset, data)
	}
	return s.appendAt(o, seg, offset, data)
}

// appendAt appends at the end of a segment (nil: a new one) and ends the op. Preconditions: mu is held; it is freed.
func (s *Store) appendAt(o *op, seg *index.Segment, offset uint64, data wire.Data) (uint64, error) {
	const name = "drive.append"
	allocated := uint64(0)
	if seg != nil {
		allocated = seg.AllocatedBytes()
		if seg.Sealed || seg.Damaged {
			defer s.endUnlock(o)
			return 0, wire.Errorf(name, wire.KindRefused, seg.ID.String(), "sealed, or an earlier append failed; the length is %d", seg.Len)
		}
	}
	end := offset + uint64(data.Len())
	if end > allocated {
		var err error
		if seg, err = s.grow(o, seg, int(end-allocated)); err != nil { // frees mu for a while
			s.endUnlock(o)
			return 0, err
		}
	}
	runs := index.Part(seg.Runs, offset/format.BlockSize, data.Len()/format.BlockSize, nil)
	o.alone = s.isAlone()
	s.mu.Unlock()
	return s.write(o, seg, runs, end, data)
}

// appendTarget finds the segment; nil is a new one. Preconditions: mu is held.
func (s *Store) appendTarget(id wire.StripID, offset uint64) (*index.Segment, error) {
	const name = "drive.append"
	old, ok := s.idx.Get(id)
	switch {
	case !ok && offset != 0:
		return nil, wire.Errorf(name, wire.KindNotFound, id.String(), "no segment to append to at %d", offset)
	case !ok:
		return nil, nil
	case old.Segment == nil:
		return nil, wire.Errorf(name, wire.KindExists, id.String(), "a strip has the id")
	case offset > old.Segment.Len:
		return nil, wire.Errorf(name, wire.KindRange, id.String(), "append at %d, the length is %d", offset, old.Segment.Len)
	}
	return old.Segment, nil
}

// write writes the data of an append and ends the op.
func (s *Store) write(o *op, seg *index.Segment, runs []format.Run, end uint64, data wire.Data) (uint64, error) {
	durable, err := s.writeRuns(o, runs, data)
	if err != nil {
		s.ioFailed("append to "+seg.ID.String(), err)
	} else if !durable {
		err = s.sync()
	}
	s.mu.Lock()
	defer s.endUnlock(o)
	if err != nil {
		seg.Damaged = true
		return 0, wire.E("drive.append", wire.KindIO, seg.ID.String(), err)
	}
	seg.Len = end
	s.writes.Add(1)
	s.writeBytes.Add(uint64(data.Len()))
	return end, nil
}

// grow gives a segment at least need further bytes, durably.
// Preconditions: mu is held; it is freed meanwhile, and held again at the return.
func (s *Store) grow(o *op, seg *index.Segment, need int) (*index.Segment, error) {
	const name = "drive.append"
	id, first, length, have := o.ids[0], 0, uint64(0), 0
	if seg != nil {
		first, length, have = len(seg.Runs), seg.Len, int(seg.AllocatedBytes())
	}
	if first >= maxSegmentRuns {
		return nil, wire.Errorf(name, wire.KindRefused, id.String(), "%d runs: seal it and start another segment", first)
	}
	need /= format.BlockSize
	chunk := max(need, min(max(have, minChunkBytes), maxChunkBytes)/format.BlockSize)
	runs, err := s.allocate(name, o, chunk)
	if err != nil && chunk > need {
		runs, err = s.allocate(name, o, need)
	}
	if err != nil {
		return nil, err
	}
	o.alone = s.isAlone()
	t := s.journal.submitOne(o, format.Record{
		Type: format.RecordAlloc, ID: id, Epoch: o.epoch, Arg: uint32(first), Len: length, Runs: runs,
	})
	s.mu.Unlock()
	err = s.durable(t)
	written := t.err == nil
	s.mu.Lock()
	if err != nil {
		if !written {
			s.freeNow(runs)
		}
		return nil, wire.E(name, wire.KindIO, id.String(), err)
	}
	seg = s.idx.AddRuns(id, first, length, runs)
	s.idx.RaiseEpoch(id.Bucket(), o.epoch)
	s.journal.finish(t)
	return seg, nil
}

// repeat answers an append of bytes that, all or the first of them, are there already: if they are the same, it appends
// the rest. Ends the op.
// Preconditions: mu is held, offset < seg.Len.
func (s *Store) repeat(o *op, seg *index.Segment, offset uint64, data wire.Data) (uint64, error) {
	const name = "drive.append"
	length := seg.Len
	n := min(int(length-offset), data.Len())
	runs := index.Part(seg.Runs, offset/format.BlockSize, n/format.BlockSize, nil)
	s.mu.Unlock() // the op keeps the segment from being changed or deleted
	same, err := s.sameBytes(runs, data)
	if err == nil && same && n < data.Len() { // after a crash: whole records of an unanswered append may have survived
		rest := data.Sub(n, data.Len()-n)
		defer rest.Release()
		s.mu.Lock()
		return s.appendAt(o, seg, length, rest)
	}
	s.mu.Lock()
	defer s.endUnlock(o)
	switch {
	case err != nil:
		s.ioFailed("read of "+seg.ID.String(), err)
		return 0, wire.E(name, wire.KindIO, seg.ID.String(), err)
	case !same:
		return 0, wire.Errorf(name, wire.KindExists, seg.ID.String(), "other bytes at %d; the length is %d", offset, length)
	}
	return length, nil
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
