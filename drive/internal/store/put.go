package store

import (
	"context"

	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/drive/internal/index"
	"github.com/crakefs/crake/wire"
)

// Put creates a strip; see wire.PutReq. data is borrowed. Errors: KindInvalid, KindExists, KindStaleEpoch, KindNoSpace
// (nothing was written), KindIO (it may be there or not), KindShutdown.
func (s *Store) Put(ctx context.Context, epoch wire.Epoch, id wire.StripID, sums []uint64, data wire.Data) error {
	const name = "drive.put"
	blocks := data.Len() / format.BlockSize
	if err := checkData(name, id, data); err != nil {
		return err
	}
	if len(sums) != blocks {
		return wire.Errorf(name, wire.KindInvalid, id.String(), "%d checksums for %d blocks", len(sums), blocks)
	}
	sum := wire.StripSum(sums)
	slot, err := s.takeSlot(ctx, name)
	if err != nil {
		return err
	}
	defer giveSlot(slot)
	o, err := s.begin(ctx, name, epoch, id)
	if err != nil {
		return err
	}
	if old, ok := s.idx.Get(id); ok {
		s.endUnlock(o)
		if old.Segment == nil && old.Blocks == blocks && old.Sum == sum {
			return nil
		}
		return wire.Errorf(name, wire.KindExists, id.String(), "other content")
	}
	runs, err := s.allocate(name, o, blocks)
	if err != nil {
		s.endUnlock(o)
		return err
	}
	// From here on it runs to its end, whatever becomes of ctx. The journal's goroutine writes the record while this one
	// writes the data. Making each durable by itself pays only where that costs no flush: two flushes, one after the other, take
	// longer than a shared one (measured on a virtio disk, 128 KiB: 256 us instead of 214).
	o.alone = s.fua && s.isAlone()
	t := s.journal.submitOne(o, format.Record{Type: format.RecordPut, ID: id, Epoch: epoch, Sum: sum, Runs: runs})
	s.mu.Unlock()
	durable, dataErr := s.writeRuns(o, runs, data)
	if err := t.wait(); err != nil {
		s.ioFailed("journal", err)
		s.mu.Lock()
		s.freeNow(runs)
		s.endUnlock(o)
		return wire.E(name, wire.KindIO, id.String(), err)
	}
	if dataErr != nil {
		return s.undoPut(o, t, runs, dataErr)
	}
	if err := s.syncUnless(durable && t.durable); err != nil {
		s.mu.Lock()
		s.endUnlock(o) // the blocks stay taken: the drive has failed
		return wire.E(name, wire.KindIO, id.String(), err)
	}
	s.writes.Add(1)
	s.writeBytes.Add(uint64(data.Len()))
	s.mu.Lock()
	s.idx.PutStrip(id, sum, runs)
	s.idx.RaiseEpoch(id.Bucket(), epoch)
	s.journal.finish(t)
	s.endUnlock(o)
	return nil
}

// undoPut journals that a strip whose data could not be written is not there.
func (s *Store) undoPut(o *op, t *ticket, runs []format.Run, cause error) error {
	id := o.ids[0]
	s.ioFailed("write of "+id.String(), cause)
	undo := s.journal.submit(format.Record{Type: format.RecordDelete, ID: id})
	err := undo.wait()
	if err == nil {
		err = s.sync()
	}
	s.mu.Lock()
	if err == nil {
		s.journal.finish(t)
		s.journal.finish(undo)
		s.freeNow(runs)
		s.endUnlock(o)
	} else {
		s.endUnlock(o)
		s.fail(err) // a record without its data stays in the journal; only a replay finds that out
	}
	kind := wire.KindIO
	if wire.KindOf(cause) == wire.KindNoSpace {
		kind = wire.KindNoSpace // a thin device
	}
	return wire.E("drive.put", kind, id.String(), cause)
}

// allocate takes blocks for an op; a part of the drive is kept from file data. Preconditions: mu is held.
func (s *Store) allocate(name string, o *op, blocks int) ([]format.Run, error) {
	id := o.ids[0]
	keep := uint64(0)
	if c := id.Class(); c == wire.ClassData || c == wire.ClassSegment {
		keep = s.reserve
	}
	free := s.alloc.FreeBlocks()
	if free < keep || free-keep < uint64(blocks) {
		return nil, wire.Errorf(name, wire.KindNoSpace, id.String(), "%d blocks, %d are free and %d kept for metadata", blocks, free, keep)
	}
	if s.idx.RecordBytes()+s.growing+index.GrowthBytes(format.MaxRuns) > s.maxRecordBytes()-s.fenceBytes() {
		return nil, wire.Errorf(name, wire.KindNoSpace, id.String(), "%d strips are as many as the drive can list", s.idx.Len())
	}
	runs := s.alloc.Alloc(blocks, format.MaxRuns)
	if runs == nil {
		return nil, wire.Errorf(name, wire.KindNoSpace, id.String(), "%d blocks are free, but too scattered for %d", free, blocks)
	}
	growth := index.GrowthBytes(len(runs))
	o.growth += growth
	s.growing += growth
	return runs, nil
}

// maxRecordBytes gives what surely fits into a checkpoint: a page may leave room for less than one record unused.
func (s *Store) maxRecordBytes() int64 {
	return int64(s.sb.CheckpointPages()-1) * (format.MaxPageBytes - format.MaxRecordBytes)
}

// fenceBytes gives what of that is kept for the epochs of buckets: all there can be, on any but a very small drive. A fence must not
// fail because of many strips; and once a checkpoint did not fit, not even deletes would work.
func (s *Store) fenceBytes() int64 {
	return min((1<<16)*index.EpochBytes, s.maxRecordBytes()/fenceShare)
}

// freeNow gives back blocks that no reader can know of. Preconditions: mu is held.
func (s *Store) freeNow(runs []format.Run) {
	for _, r := range runs {
		s.alloc.Free(r)
		s.discards.noteFreed(r)
	}
}

// checkData refuses data that is not whole blocks, and ids that are none.
func checkData(name string, id wire.StripID, data wire.Data) error {
	n := data.Len()
	if n == 0 || n%format.BlockSize != 0 || n > wire.MaxDataBytes {
		return wire.Errorf(name, wire.KindInvalid, id.String(), "%d bytes of data: want whole blocks, 1 to %d bytes", n, wire.MaxDataBytes)
	}
	for _, p := range data {
		if len(p.B)%format.BlockSize != 0 {
			return wire.Errorf(name, wire.KindInvalid, id.String(), "a part of %d bytes: want whole blocks", len(p.B))
		}
	}
	if id.Class() == 0 {
		return wire.Errorf(name, wire.KindInvalid, id.String(), "an id without class")
	}
	return nil
}
