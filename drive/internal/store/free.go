package store

import (
	"context"
	"slices"
	"sync/atomic"

	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/drive/internal/index"
	"github.com/crakefs/crake/wire"
)

// period groups reads by when they began. What is freed while reads are under way waits until all reads of its period
// and of earlier ones have ended: a read needs one atomic addition, and no table of who reads what.
type period struct {
	readers atomic.Int64
	retired atomic.Bool  // has a successor
	frees   []format.Run // what became free while this was the current one; guarded by Store.mu
	next    *period
}

// enterRead begins a read. Preconditions: mu is held (reading is enough).
func (s *Store) enterRead() *period {
	s.current.readers.Add(1)
	return s.current
}

// leaveRead ends a read. Preconditions: mu is not held.
func (s *Store) leaveRead(p *period) {
	if p.readers.Add(-1) == 0 && p.retired.Load() {
		s.mu.Lock()
		s.reclaim()
		s.mu.Unlock()
	}
}

// freeLater frees runs that the index no longer knows, once no read is under way that may have found them there.
// Preconditions: mu is held, and the record that frees them is durable.
func (s *Store) freeLater(runs []format.Run) {
	if len(runs) == 0 {
		return
	}
	s.current.frees = append(s.current.frees, runs...)
	next := &period{}
	s.current.next = next
	s.current.retired.Store(true)
	s.current = next
	s.reclaim()
}

// reclaim frees what no reader holds any more. Preconditions: mu is held.
func (s *Store) reclaim() {
	for s.oldest != s.current && s.oldest.readers.Load() == 0 {
		s.freeNow(s.oldest.frees)
		s.oldest = s.oldest.next
	}
}

// Seal ends a segment and gives its length; see wire.SealReq. Errors: KindNotFound, KindInvalid (a strip), KindStaleEpoch, KindIO, KindShutdown.
func (s *Store) Seal(ctx context.Context, epoch wire.Epoch, id wire.StripID) (uint64, error) {
	const name = "drive.seal"
	slot, err := s.takeSlot(ctx, name)
	if err != nil {
		return 0, err
	}
	defer giveSlot(slot)
	o := newOp(ctx, epoch, id)
	if err := s.begin(ctx, name, o); err != nil {
		return 0, err
	}
	old, ok := s.idx.Get(id)
	if !ok || old.Segment == nil || old.Segment.Sealed {
		defer s.endUnlock(o)
		switch {
		case !ok:
			return 0, wire.E(name, wire.KindNotFound, id.String(), nil)
		case old.Segment == nil:
			return 0, wire.Errorf(name, wire.KindInvalid, id.String(), "a strip, not a segment")
		}
		return old.Segment.Len, nil
	}
	length := old.Segment.Len
	t := newWaitedTicket()
	s.journal.submit(&t.ticket, s.isAlone(), format.Record{Type: format.RecordSeal, ID: id, Epoch: epoch, Len: length})
	s.mu.Unlock()
	err = s.durable(t)
	s.mu.Lock()
	defer s.endUnlock(o)
	if err != nil {
		return 0, wire.E(name, wire.KindIO, id.String(), err)
	}
	s.freeLater(s.idx.Seal(id, length))
	s.idx.RaiseEpoch(id.Bucket(), epoch)
	s.journal.finish(&t.ticket)
	return length, nil
}

// durable waits until the records of a ticket are durable.
func (s *Store) durable(t *waitedTicket) error {
	s.Kick()
	if err := t.wait(); err != nil {
		s.ioFailed("journal", err)
		return err
	}
	if t.ticket.durable {
		return nil
	}
	return s.sync()
}

// Delete frees strips and segments; see wire.DeleteReq. Their blocks are used again once the records are
// durable and no read of them is under way. Errors: KindOverLimit, KindStaleEpoch (nothing was deleted), KindIO, KindShutdown.
func (s *Store) Delete(ctx context.Context, epoch wire.Epoch, ids []wire.StripID) error {
	const name = "drive.delete"
	if len(ids) > maxDeleteIDs {
		return wire.Errorf(name, wire.KindOverLimit, "", "%d ids, at most %d", len(ids), maxDeleteIDs)
	}
	slot, err := s.takeSlot(ctx, name)
	if err != nil {
		return err
	}
	defer giveSlot(slot)
	s.mu.RLock()
	err = s.admit(name, epoch, ids) // all of them, before the first is deleted
	s.mu.RUnlock()
	if err != nil {
		return err
	}
	ids = slices.Clone(ids)
	slices.SortFunc(ids, wire.StripID.Compare)
	ids = slices.Compact(ids)
	var parts []deletion
	for chunk := range slices.Chunk(ids, deleteChunk) {
		d, berr := s.beginDelete(ctx, epoch, chunk)
		if berr != nil {
			err = berr
			break
		}
		if d.t != nil {
			parts = append(parts, d)
		}
	}
	if ferr := s.finishDelete(parts); err == nil {
		err = ferr
	}
	return err
}

// deletion is a chunk of a Delete under way.
type deletion struct {
	o *op
	t *waitedTicket // nil: none of the ids was there
}

func (s *Store) beginDelete(ctx context.Context, epoch wire.Epoch, ids []wire.StripID) (deletion, error) {
	o := newOp(ctx, epoch, ids...)
	if err := s.begin(ctx, "drive.delete", o); err != nil {
		return deletion{}, err
	}
	defer s.mu.Unlock()
	recs := make([]format.Record, 0, len(ids))
	for _, id := range ids {
		if _, ok := s.idx.Get(id); ok {
			recs = append(recs, format.Record{Type: format.RecordDelete, ID: id})
		}
	}
	if len(recs) == 0 {
		s.end(o)
		return deletion{}, nil
	}
	t := newWaitedTicket()
	s.journal.submit(&t.ticket, false, recs...)
	return deletion{o: o, t: t}, nil
}

func (s *Store) finishDelete(parts []deletion) error {
	s.Kick()
	errs := make([]error, len(parts))
	for i, d := range parts {
		if errs[i] = d.t.wait(); errs[i] != nil {
			s.ioFailed("journal", errs[i])
		}
	}
	var syncErr, first error
	if len(parts) > 0 {
		syncErr = s.sync()
	}
	for i, d := range parts {
		err := errs[i]
		if err == nil {
			err = syncErr
		}
		s.mu.Lock()
		if err == nil {
			var runs []format.Run
			for _, id := range d.o.ids {
				runs = append(runs, s.idx.Delete(id)...)
			}
			s.freeLater(runs)
			s.journal.finish(&d.t.ticket)
		} else if first == nil {
			first = wire.E("drive.delete", wire.KindIO, "", err)
		}
		s.endUnlock(d.o)
	}
	return first
}

// Fence refuses from now on mutations of a bucket with an epoch below, durably, and waits for those under way; see
// wire.FenceReq. Errors: KindStaleEpoch (a newer epoch was seen), KindNoSpace (of a small drive: more buckets than it can list),
// KindIO, KindShutdown, KindInterrupted.
func (s *Store) Fence(ctx context.Context, bucket wire.BucketID, epoch wire.Epoch) error {
	const name = "drive.fence"
	slot, err := s.takeSlot(ctx, name)
	if err != nil {
		return err
	}
	defer giveSlot(slot)
	o := newOp(ctx, epoch)
	if err := s.begin(ctx, name, o); err != nil {
		return err
	}
	if newest := s.epoch(bucket); epoch < newest {
		s.endUnlock(o)
		return wire.Errorf(name, wire.KindStaleEpoch, "", "bucket %d: epoch %d, the newest is %d", bucket, epoch, newest)
	}
	if s.fenced[bucket] == epoch {
		s.endUnlock(o)
		return nil
	}
	if s.idx.Epoch(bucket) == 0 {
		if s.idx.RecordBytes()+s.growing+index.EpochBytes > s.maxRecordBytes() {
			s.endUnlock(o)
			return wire.Errorf(name, wire.KindNoSpace, "", "bucket %d: the drive lists as many buckets as it can", bucket)
		}
		o.growth += index.EpochBytes
		s.growing += index.EpochBytes
	}
	s.seen[bucket] = epoch // nobody with an older one begins any more
	var under []<-chan struct{}
	for other := range s.ops {
		if other.epoch < epoch && other.touches(bucket) {
			under = append(under, other.wait())
		}
	}
	s.mu.Unlock()
	for _, done := range under {
		select {
		case <-done:
		case <-ctx.Done():
			s.mu.Lock()
			s.endUnlock(o)
			return wire.E(name, wire.KindInterrupted, "", ctx.Err())
		}
	}
	t := newWaitedTicket()
	s.journal.submit(&t.ticket, false, format.Record{Type: format.RecordFence, Arg: uint32(bucket), Epoch: epoch})
	err = s.durable(t)
	s.mu.Lock()
	defer s.endUnlock(o)
	if err != nil {
		return wire.E(name, wire.KindIO, "", err)
	}
	s.idx.RaiseEpoch(bucket, epoch)
	s.fenced[bucket] = max(s.fenced[bucket], epoch)
	s.journal.finish(&t.ticket)
	return nil
}
