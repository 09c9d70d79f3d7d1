package store

import (
	"crypto/rand"
	"encoding/binary"
	"log/slog"
	"slices"

	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/drive/internal/index"
	"github.com/crakefs/crake/wire"
)

// Open opens a formatted device and recovers what the last run left:
//
//  1. The superblock, from either copy; a damaged copy is written again.
//  2. The newest checkpoint whose pages are all sound.
//  3. The journal from there on, as far as its chain of checksums goes; damage in the middle is told from the end.
//  4. Of the puts that may have been under way, those whose data does not match their checksum never were.
//  5. The length of each open segment, from its records; what looks like a record of it beyond is erased, so that it can
//     never count later.
//  6. A flush, and a journal batch that drops the puts of step 4.
//
// It may be cut off anywhere and begun again. Preconditions: nobody else uses dev. Errors: KindRefused (of another
// cluster or drive, or not formatted), KindVersion, KindCorrupt, KindIO.
func Open(dev blockio.Device, cfg Config) (*Store, error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.VerifyRate == 0 {
		cfg.VerifyRate = DefaultVerifyRate
	}
	sb, err := ReadSuperblock(dev)
	if err != nil {
		return nil, err
	}
	if err := checkOwner(sb, cfg, dev.Info().Path); err != nil {
		return nil, err
	}
	s := &Store{
		dev: dev, sb: sb, cfg: cfg, log: cfg.Log, flusher: &flusher{dev: dev}, journal: newJournal(dev, sb),
		ios: make(chan struct{}, maxIOs), slots: make(chan struct{}, maxMutations),
		reserve: min(sb.DataBlocks()/reserveShare, maxReserveBytes/format.BlockSize),
		seen:    map[wire.BucketID]wire.Epoch{}, fenced: map[wire.BucketID]wire.Epoch{},
		busy: map[wire.StripID]*op{}, ops: map[*op]struct{}{},
	}
	s.current = &period{}
	s.oldest = s.current
	rp, err := s.load()
	if err != nil {
		return nil, err
	}
	if err := s.settle(rp.suspects); err != nil {
		return nil, err
	}
	return s, nil
}

func checkOwner(sb *format.Superblock, cfg Config, path string) error {
	if cfg.Cluster != (wire.ClusterID{}) && sb.Cluster != cfg.Cluster {
		return wire.Errorf("drive.open", wire.KindRefused, path, "belongs to cluster %s, not %s", sb.Cluster, cfg.Cluster)
	}
	if cfg.Drive != 0 && sb.Drive != cfg.Drive {
		return wire.Errorf("drive.open", wire.KindRefused, path, "is drive %d, not %d; give --drive-id %d or the right device", sb.Drive, cfg.Drive, sb.Drive)
	}
	return nil
}

// ReadSuperblock finds the superblock of a device in either place, and repairs the other.
// Errors: KindRefused (no drive), KindVersion, KindIO.
func ReadSuperblock(dev blockio.Device) (*format.Superblock, error) {
	path := dev.Info().Path
	b := blockio.AlignedBytes(format.BlockSize)
	var sound *format.Superblock
	var damaged []int64
	// The copy lies at the end that the superblock tells; without a sound first one, at the end of the device.
	for _, off := range []int64{0, dev.Size()&^(format.BlockSize-1) - format.BlockSize} {
		if sound != nil {
			off = sound.SuperblockOffsets()[1]
		}
		if err := dev.ReadAt(b, off); err != nil {
			return nil, err
		}
		sb, err := format.DecodeSuperblock(b)
		switch {
		case wire.KindOf(err) == wire.KindVersion:
			return nil, err
		case err != nil:
			damaged = append(damaged, off)
		case sb.SizeBytes > dev.Size():
			return nil, wire.Errorf("drive.open", wire.KindRefused, path, "has %d bytes, but was formatted with %d; is it cut off?", dev.Size(), sb.SizeBytes)
		case sound == nil:
			sound = sb
		}
	}
	if sound == nil {
		return nil, wire.Errorf("drive.open", wire.KindRefused, path, "not a drive of a Crake cluster; format it first")
	}
	for _, off := range damaged {
		sound.Encode(b)
		if err := dev.WriteAt(b, off); err != nil {
			return nil, err
		}
		if err := dev.Flush(); err != nil {
			return nil, err
		}
	}
	return sound, nil
}

// loaded is what a checkpoint and the journal after it tell.
type loaded struct {
	replay   *index.Replay
	c        *format.Checkpoint
	area     int
	suspects map[wire.StripID]uint64 // puts that may have been under way, with their batch
}

// load reads checkpoint and journal, and sets the journal to go on.
func (s *Store) load() (*loaded, error) {
	var found []*loaded
	b := blockio.AlignedBytes(format.BlockSize)
	var reasons []error
	for area := range s.sb.CheckpointOff {
		if err := s.dev.ReadAt(b, s.sb.CheckpointOff[area]); err != nil {
			return nil, err
		}
		c, err := format.DecodeCheckpoint(b, s.sb)
		if err != nil {
			reasons = append(reasons, err)
			continue
		}
		found = append(found, &loaded{c: c, area: area})
	}
	slices.SortFunc(found, func(a, b *loaded) int { return int(int64(b.c.Seq - a.c.Seq)) })
	for _, l := range found {
		err := s.loadPages(l)
		if err == nil {
			err = s.loadJournal(l)
		}
		if err == nil {
			err = l.replay.Done()
		}
		if err == nil {
			s.idx = l.replay.Index
			s.area, s.seq = l.area, l.c.Seq
			s.alloc, err = s.idx.BuildAllocator(s.sb.DataBlocks())
		}
		if err == nil {
			return l, nil
		}
		if wire.KindOf(err) != wire.KindCorrupt {
			return nil, err
		}
		reasons = append(reasons, err)
		s.log.Warn("checkpoint is not usable", "drive", s.sb.Drive, "checkpoint", l.c.Seq, "error", err)
	}
	return nil, wire.Errorf("drive.open", wire.KindCorrupt, s.dev.Info().Path,
		"the index is damaged; format the drive again and let its data be rebuilt: %v", reasons)
}

func (s *Store) loadPages(l *loaded) error {
	l.replay = index.NewReplay()
	page := blockio.AlignedBytes(format.PageBytes)
	records := uint64(0)
	for i := range l.c.Pages {
		if err := s.dev.ReadAt(page, s.sb.PageOffset(l.area, i)); err != nil {
			return err
		}
		h, err := format.DecodeBatch(page)
		if err != nil {
			return err
		}
		if !h.IsPage || h.Drive != s.sb.Drive || h.FormatID != s.sb.FormatID || h.Seq != i || h.Nonce != l.c.Seq {
			return wire.Errorf("drive.open", wire.KindCorrupt, "", "page %d of checkpoint %d is another one", i, l.c.Seq)
		}
		records += uint64(h.Records)
		err = h.ForEach(page, s.sb.DataBlocks(), func(r *format.Record) error {
			l.replay.Apply(r)
			return nil
		})
		if err != nil {
			return err
		}
	}
	if records != l.c.Records {
		return wire.Errorf("drive.open", wire.KindCorrupt, "", "checkpoint %d has %d records, not %d", l.c.Seq, records, l.c.Records)
	}
	return nil
}

// ringReader reads the journal through.
type ringReader struct {
	s     *Store
	buf   []byte
	start int // block of the ring that buf begins with
	n     int // blocks in buf
}

// at gives the bytes from a block on: a whole batch if it is not cut by the end of the ring.
func (r *ringReader) at(block int) ([]byte, error) {
	ring := r.s.sb.JournalBlocks()
	need := min(format.MaxBatchBlocks, ring-block)
	if block < r.start || block+need > r.start+r.n {
		want := min(len(r.buf)/format.BlockSize, ring-block)
		if err := r.s.dev.ReadAt(r.buf[:want*format.BlockSize], r.s.sb.JournalOff+int64(block)*format.BlockSize); err != nil {
			return nil, err
		}
		r.start, r.n = block, want
	}
	return r.buf[(block-r.start)*format.BlockSize : (block-r.start+need)*format.BlockSize], nil
}

// loadJournal replays the journal after a checkpoint.
func (s *Store) loadJournal(l *loaded) error {
	j := s.journal
	var nonce [8]byte
	_, _ = rand.Read(nonce[:]) // never fails
	j.nonce = binary.LittleEndian.Uint64(nonce[:])
	j.next, j.head, j.prev, j.base = l.c.JournalSeq, int(l.c.JournalBlock), l.c.JournalPrev, l.c.JournalPrev
	j.live = nil
	low := l.c.JournalSeq - 1
	type suspect struct {
		seq uint64
		id  wire.StripID
	}
	var recent []suspect // puts of batches above low, in order
	rd := &ringReader{s: s, buf: blockio.AlignedBytes(ringWindowBytes)}
	for {
		h, b, pos, err := s.nextBatch(rd)
		if err != nil {
			return err
		}
		if b == nil {
			break
		}
		err = h.ForEach(b, s.sb.DataBlocks(), func(r *format.Record) error {
			l.replay.Apply(r)
			if r.Type == format.RecordPut {
				recent = append(recent, suspect{h.Seq, r.ID})
			}
			return nil
		})
		if err != nil {
			return err
		}
		j.live = append(j.live, batchInfo{sum: h.Sum, pos: pos, blocks: h.Blocks})
		j.next, j.prev, j.head = h.Seq+1, h.Sum, pos+h.Blocks
		low = max(low, h.LowWater)
		for len(recent) > 0 && recent[0].seq <= low {
			recent = recent[1:]
		}
	}
	j.low = j.next - 1 // whatever was under way is settled before the store is open
	l.suspects = map[wire.StripID]uint64{}
	for _, r := range recent {
		l.suspects[r.id] = r.seq
	}
	return s.checkEnd(rd)
}

// nextBatch finds the batch that continues the journal; b is nil at its end.
func (s *Store) nextBatch(rd *ringReader) (h format.Batch, b []byte, pos int, err error) {
	j := s.journal
	for _, pos := range []int{j.head, 0} {
		if pos >= s.sb.JournalBlocks() {
			continue
		}
		b, err := rd.at(pos)
		if err != nil {
			return h, nil, 0, err
		}
		h, err := format.DecodeBatch(b)
		if err == nil && !h.IsPage && h.Drive == s.sb.Drive && h.FormatID == s.sb.FormatID && h.Seq == j.next && h.Prev == j.prev {
			return h, b, pos, nil
		}
	}
	return h, nil, 0, nil
}

// checkEnd tells the end of the journal from damage in its middle: a later batch that knew the missing one as finished
// proves that it was durable. Errors: KindCorrupt.
func (s *Store) checkEnd(rd *ringReader) error {
	missing := s.journal.next
	for block := 0; block < s.sb.JournalBlocks(); block++ {
		b, err := rd.at(block)
		if err != nil {
			return err
		}
		if !format.MayBeBatch(b, s.sb.FormatID, missing) {
			continue
		}
		if h, err := format.DecodeBatch(b); err == nil && h.Drive == s.sb.Drive && h.Seq > missing && h.LowWater >= missing {
			return wire.Errorf("drive.open", wire.KindCorrupt, "",
				"journal batch %d is damaged: batch %d comes after it", missing, h.Seq)
		}
	}
	return nil
}

// settle decides what became of the operations that were under way, durably.
func (s *Store) settle(suspects map[wire.StripID]uint64) error {
	var dropped []wire.StripID
	for id := range suspects {
		st, ok := s.idx.Get(id)
		if !ok || st.Segment != nil {
			continue
		}
		sum, err := stripSum(s.newWindow(s.idx.Runs(id), st.LenBytes()))
		if err != nil && wire.KindOf(err) != wire.KindIO {
			return err
		}
		if err != nil || sum != st.Sum {
			dropped = append(dropped, id)
		}
	}
	var err error
	s.idx.Segments(func(seg *index.Segment) {
		if !seg.Sealed && err == nil {
			err = s.settleSegment(seg)
		}
	})
	if err != nil {
		return err
	}
	if err := s.dev.Flush(); err != nil { // what was read may be in a cache only
		return err
	}
	return s.drop(dropped)
}

// settleSegment finds the length of an open segment and erases what looks like records of it beyond.
func (s *Store) settleSegment(seg *index.Segment) error {
	w := s.newWindow(seg.Runs, seg.AllocatedBytes())
	end, err := scanSegment(w, seg.ID, seg.Len)
	if err != nil {
		return s.unreadable(seg, end, err)
	}
	zero := blockio.AlignedBytes(format.BlockSize)
	for off := end; off < w.end; off += format.BlockSize {
		b, err := w.get(off, format.BlockSize)
		if err != nil {
			return s.unreadable(seg, end, err)
		}
		if !claimsPlace(b, seg.ID, off) {
			continue
		}
		run := index.Part(seg.Runs, off/format.BlockSize, 1, nil)[0]
		if err := s.dev.WriteAt(zero, s.dataOffset(run)); err != nil {
			return err
		}
	}
	seg.Len = end
	return nil
}

// unreadable gives a segment up beyond end: what could not be read there could not be erased, so it takes no append.
func (s *Store) unreadable(seg *index.Segment, end uint64, err error) error {
	if wire.KindOf(err) != wire.KindIO {
		return err
	}
	s.ioFailed("read of "+seg.ID.String(), err)
	seg.Len, seg.Damaged = end, true
	return nil
}

// drop makes it durable that strips are not there, and forgets them: by journal batches, or, when the journal has no
// room, by a checkpoint.
func (s *Store) drop(ids []wire.StripID) error {
	if len(ids) == 0 {
		return nil
	}
	s.log.Info("puts that were under way are undone", "drive", s.sb.Drive, "strips", len(ids))
	var runs []format.Run
	for _, id := range ids {
		runs = append(runs, s.idx.Delete(id)...)
	}
	roomForAll := true
	for chunk := range slices.Chunk(ids, deleteChunk) {
		recs := make([]format.Record, 0, len(chunk))
		for _, id := range chunk {
			recs = append(recs, format.Record{Type: format.RecordDelete, ID: id})
		}
		if _, roomForAll = s.journal.room(format.BatchBlocks(len(recs) * recs[0].Bytes())); !roomForAll {
			break
		}
		t := s.journal.submit(recs...)
		tickets, _ := s.journal.cut()
		s.journal.write(tickets)
		if err := t.wait(); err != nil {
			return err
		}
		s.journal.finish(t)
	}
	if !roomForAll {
		if err := s.checkpoint(); err != nil {
			return err
		}
	}
	if err := s.dev.Flush(); err != nil {
		return err
	}
	s.freeNow(runs)
	return nil
}
