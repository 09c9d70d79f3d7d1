package store

import (
	"context"

	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/drive/internal/index"
	"github.com/crakefs/crake/drive/internal/sched"
	"github.com/crakefs/crake/wire"
)

const opPut = "drive.put"

// Put creates a strip, for a goroutine that waits; see wire.PutReq. data is borrowed. Errors: KindInvalid, KindExists, KindStaleEpoch,
// KindNoSpace (nothing was written), KindIO (it may be there or not), KindShutdown, KindInterrupted (ctx ended before it had begun: then
// nothing was done; later it runs to its end).
func (s *Store) Put(ctx context.Context, epoch wire.Epoch, id wire.StripID, sums []uint64, data wire.Data) error {
	w := &Writing{ID: id, Epoch: epoch, Sums: sums, Data: data, Origin: sched.OriginOf(ctx)}
	if err := w.checkPut(); err != nil {
		return err
	}
	return s.run(ctx, opPut, w, s.put)
}

// StartPut is Put that no goroutine waits for, if it can begin at once. It does not block. True: w.Ended has been or will be called, and
// nothing may begin before Kick. False: nothing was done; Put says why, or waits.
func (s *Store) StartPut(w *Writing) bool {
	return w.checkPut() == nil && s.start(opPut, w, s.put)
}

// checkPut checks what needs no lock.
func (w *Writing) checkPut() error {
	if err := checkData(opPut, w.ID, w.Data); err != nil {
		return err
	}
	if blocks := w.Data.Len() / format.BlockSize; len(w.Sums) != blocks {
		return wire.Errorf(opPut, wire.KindInvalid, w.ID.String(), "%d checksums for %d blocks", len(w.Sums), blocks)
	}
	w.sum = wire.StripSum(w.Sums)
	return nil
}

// put begins a put: its record and its data are written at once. Preconditions: mu is held, w's op has begun; mu is freed. False: nothing
// has begun and the op has ended: with an error, or because the strip is there already.
func (s *Store) put(w *Writing) (began bool, err error) {
	if old, ok := s.idx.Get(w.ID); ok {
		w.dropUnlock()
		if old.Segment == nil && old.Blocks == len(w.Sums) && old.Sum == w.sum {
			return false, nil
		}
		return false, wire.Errorf(opPut, wire.KindExists, w.ID.String(), "other content")
	}
	if w.runs, err = s.allocate(opPut, &w.op, len(w.Sums)); err != nil {
		w.dropUnlock()
		return false, err
	}
	// Making record and data each durable by itself pays only where that costs no flush: two flushes, one after the other, take
	// longer than a shared one (measured on a virtio disk, 128 KiB: 256 us instead of 214).
	w.op.alone = s.fua && s.isAlone()
	w.await(2, (*Writing).putWritten)
	s.journal.submit(&w.ticket, w.op.alone, format.Record{Type: format.RecordPut, ID: w.ID, Epoch: w.Epoch, Sum: w.sum, Runs: w.runs})
	s.mu.Unlock()
	w.writeRuns(w.runs)
	return true, nil
}

// putWritten: record and data are written, or have failed.
func (w *Writing) putWritten() {
	s := w.s
	durable, dataErr := w.written()
	if err := w.ticket.err; err != nil {
		s.ioFailed("journal", err)
		s.mu.Lock()
		s.freeNow(w.runs)
		w.endUnlock(wire.E(opPut, wire.KindIO, w.ID.String(), err))
		return
	}
	if dataErr != nil {
		w.undoPut(dataErr)
		return
	}
	w.sync(durable && w.ticket.durable, (*Writing).putDurable)
}

// putDurable: record and data are durable, or a flush has failed. Only now the strip enters the index.
func (w *Writing) putDurable() {
	s := w.s
	if w.flush != nil {
		s.mu.Lock()
		w.endUnlock(wire.E(opPut, wire.KindIO, w.ID.String(), w.flush)) // the blocks stay taken: the drive has failed
		return
	}
	s.writes.Add(1)
	s.writeBytes.Add(uint64(w.Data.Len()))
	s.mu.Lock()
	s.idx.PutStrip(w.ID, w.sum, w.runs)
	s.idx.RaiseEpoch(w.ID.Bucket(), w.Epoch)
	s.journal.finish(&w.ticket)
	w.endUnlock(nil)
}

// undoPut journals that a strip whose data could not be written is not there.
func (w *Writing) undoPut(cause error) {
	s := w.s
	s.ioFailed("write of "+w.ID.String(), cause)
	undo := &ticket{}
	ended := func(err error) {
		s.mu.Lock()
		if err == nil {
			s.journal.finish(&w.ticket)
			s.journal.finish(undo)
			s.freeNow(w.runs)
		} else {
			s.mu.Unlock()
			s.fail(err) // a record without its data stays in the journal; only a replay finds that out
			s.mu.Lock()
		}
		kind := wire.KindIO
		if wire.KindOf(cause) == wire.KindNoSpace {
			kind = wire.KindNoSpace // a thin device
		}
		w.endUnlock(wire.E(opPut, kind, w.ID.String(), cause))
	}
	undo.ended = func() {
		if undo.err != nil {
			ended(undo.err)
			return
		}
		s.flusher.request(func(err error) {
			s.flushed(err)
			ended(err)
		})
	}
	s.journal.submit(undo, false, format.Record{Type: format.RecordDelete, ID: w.ID})
	s.Kick()
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
