package store

import (
	"context"
	"time"

	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/drive/internal/index"
	"github.com/crakefs/crake/wire"
)

// The limits of checkpoints, with those in limits.go.
const (
	// checkpointRate bounds what a checkpoint writes, in bytes a second: its pages take a third of a core to fill at that rate, and the
	// ten million strips of a drive of 1.2 TiB 4 seconds. A process that has one core lets readers run between any two pages.
	checkpointRate = 128 << 20
	// bucketSlice is how many buckets' epochs are looked up under one hold of the lock: some 50 microseconds.
	bucketSlice = 4096
	// checkpointLag is how far a checkpoint may be behind its rate and still catch up.
	checkpointLag = 10 * time.Millisecond
	// checkpointHurry: with three fourths of the ring full the checkpoint, begun at the half, no longer waits.
	checkpointHurry = 4
)

// Run does the store's background work until ctx ends: it takes checkpoints when the journal is half
// full. At the end it refuses new mutations, waits for those under way and takes a last checkpoint, so that the next opening
// has nothing to replay. Reads may go on; the caller ends them before it closes the device.
func (s *Store) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer s.background(ctx)()
	defer stop()
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		<-ctx.Done()
		s.drain()
	}()
	for {
		select {
		case <-s.journal.full: // also while draining: a mutation may wait for room in the journal
			if !s.journal.due() {
				continue // the last checkpoint has answered it
			}
			if err := s.checkpoint(); err != nil {
				s.ioFailed("checkpoint", err)
				s.journal.trimFailed(err)
				s.Kick()
			}
			continue
		case <-drained:
		}
		break
	}
	if s.Failed() != nil || !s.journal.dirty() {
		return nil
	}
	return s.checkpoint()
}

// drain refuses new mutations and waits for those under way.
func (s *Store) drain() {
	s.mu.Lock()
	s.closing = true
	for len(s.ops) > 0 {
		var done <-chan struct{}
		for o := range s.ops {
			done = o.wait()
			break
		}
		s.mu.Unlock()
		<-done
		s.mu.Lock()
	}
	s.mu.Unlock()
}

// checkpoint writes the index to the older checkpoint area and gives the journal before it free.
//
// It is taken while the drive works: the index is walked in slices, each under a short hold of the lock. What the pages hold
// of an id is its state at some moment after the beginning, all of it durable; the journal from the beginning on makes
// it right (see index.Replay). A copy-on-write clone of the tree was the alternative: it doubles memory for a while.
func (s *Store) checkpoint() error {
	s.checkMu.Lock()
	defer s.checkMu.Unlock()
	var err error
	for range checkpointTries {
		var c *format.Checkpoint
		if c, err = s.writePages(); err == nil {
			return s.publish(c)
		}
		if wire.KindOf(err) != wire.KindNoSpace {
			break
		}
	}
	return err
}

// publish makes the pages of a checkpoint durable, then its header, then trims the journal.
func (s *Store) publish(c *format.Checkpoint) error {
	if err := s.flusher.sync(); err != nil {
		s.fail(err)
		return err
	}
	b := blockio.AlignedBytes(format.BlockSize)
	c.Written = time.Now().UnixNano()
	c.Encode(b)
	area := 1 - s.area
	if err := s.dev.WriteAt(b, s.sb.CheckpointOff[area]); err != nil {
		return err
	}
	if err := s.flusher.sync(); err != nil {
		s.fail(err)
		return err
	}
	s.area, s.seq = area, c.Seq
	s.journal.trim(c.JournalSeq)
	s.Kick() // a batch may have waited for room
	return nil
}

// writePages writes the pages of the next checkpoint. Errors: of the device; KindNoSpace, when strips came and went so
// fast that they did not fit.
func (s *Store) writePages() (*format.Checkpoint, error) {
	c := &format.Checkpoint{Drive: s.sb.Drive, FormatID: s.sb.FormatID, Seq: s.seq + 1}
	seq, block, prev := s.journal.startCheckpoint()
	c.JournalSeq, c.JournalBlock, c.JournalPrev = seq, uint64(block), prev
	w := &pageWriter{s: s, c: c, area: 1 - s.area, buf: blockio.AlignedBytes(format.PageBytes), began: time.Now()}
	var recs []format.Record
	for first := 0; first < 1<<16; first += bucketSlice {
		if recs = s.fenceSlice(recs[:0], first); len(recs) > 0 {
			if err := w.add(recs); err != nil {
				return nil, err
			}
		}
	}
	var last wire.StripID
	for n := 0; ; {
		if recs, last, n = s.checkpointSlice(recs[:0], last); n == 0 {
			break
		}
		if err := w.add(recs); err != nil {
			return nil, err
		}
	}
	return c, w.flush()
}

// fenceSlice appends the records of the epochs of bucketSlice buckets from first on.
func (s *Store) fenceSlice(recs []format.Record, first int) []format.Record {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for b := first; b < first+bucketSlice; b++ {
		if e := s.idx.Epoch(wire.BucketID(b)); e != 0 {
			recs = append(recs, format.Record{Type: format.RecordFence, Arg: uint32(b), Epoch: e})
		}
	}
	return recs
}

// checkpointSlice appends the records of the next strips after last, and tells how far it came and how many they are; 0 is
// the end. This and fenceSlice are all that a checkpoint does under the lock.
func (s *Store) checkpointSlice(recs []format.Record, last wire.StripID) ([]format.Record, wire.StripID, int) {
	n := 0
	s.mu.RLock()
	defer s.mu.RUnlock()
	s.idx.Ascend(last, func(st index.Strip) bool {
		recs = s.idx.Records(&st, recs)
		last = st.ID
		n++
		return n < checkpointSlice
	})
	return recs, last, n
}

// pageWriter fills and writes checkpoint pages.
type pageWriter struct {
	s    *Store
	c    *format.Checkpoint
	area int
	buf  []byte
	head format.Batch
	// began is where the pace is reckoned from: the beginning, or the last moment at which it was lost.
	began time.Time
	paced int64 // bytes since then
}

// pace waits until the pages written so far are due at checkpointRate. What clients wait for comes first: no pace when the ring
// is nearly full, nor when the drive closes.
func (w *pageWriter) pace() {
	w.paced += format.PageBytes
	due := time.Duration(w.paced * int64(time.Second) / checkpointRate)
	ahead := due - time.Since(w.began)
	if w.s.isHurried() || ahead < -checkpointLag {
		w.began, w.paced = time.Now(), 0
		return
	}
	if ahead > 0 {
		time.Sleep(ahead)
	}
}

// isHurried says that a checkpoint should end as soon as it can.
func (s *Store) isHurried() bool {
	s.mu.RLock()
	closing := s.closing
	s.mu.RUnlock()
	j := s.journal
	j.mu.Lock()
	defer j.mu.Unlock()
	return closing || j.waiting || j.usedBlocks() > j.sb.JournalBlocks()/checkpointHurry*(checkpointHurry-1)
}

func (w *pageWriter) add(recs []format.Record) error {
	for i := range recs {
		if w.head.Bytes+recs[i].Bytes() > format.MaxPageBytes {
			if err := w.flush(); err != nil {
				return err
			}
		}
		at := format.BatchHeaderBytes + w.head.Bytes
		w.head.Bytes += len(recs[i].Append(w.buf[at:at]))
		w.head.Records++
	}
	return nil
}

func (w *pageWriter) flush() error {
	if w.head.Records == 0 {
		return nil
	}
	sb := w.s.sb
	if w.c.Pages == uint64(sb.CheckpointPages()) {
		return wire.Errorf("drive.checkpoint", wire.KindNoSpace, "", "more than %d pages", w.c.Pages)
	}
	h := &w.head
	h.IsPage, h.Drive, h.FormatID, h.Seq, h.Nonce = true, sb.Drive, sb.FormatID, w.c.Pages, w.c.Seq
	h.Blocks = format.PageBytes / format.BlockSize
	h.Encode(w.buf)
	if err := w.s.writeBackground(w.buf, sb.PageOffset(w.area, w.c.Pages)); err != nil {
		return err
	}
	w.c.Pages++
	w.c.Records += uint64(h.Records)
	*h = format.Batch{}
	w.pace()
	return nil
}
