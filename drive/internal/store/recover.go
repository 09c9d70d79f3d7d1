package store

import (
	"crypto/rand"
	"encoding/binary"
	"log/slog"
	"slices"

	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/drive/internal/image"
	"github.com/crakefs/crake/wire"
)

// Open opens a formatted device and recovers what the last run left. Package image reads, this writes:
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
	s := newStore(dev, sb, cfg)
	state, err := image.Load(dev, sb, dev.Info().Path)
	if err != nil {
		return nil, err
	}
	for _, reason := range state.PassedOver {
		s.log.Warn("a checkpoint is not usable", "drive", sb.Drive, "used", state.Checkpoint.Seq, "reason", reason)
	}
	s.adopt(state)
	if err := s.settle(state); err != nil {
		return nil, err
	}
	return s, nil
}

// ReserveBlocks gives what file data must leave free: see reserveShare.
func ReserveBlocks(sb *format.Superblock) uint64 {
	return min(sb.DataBlocks()/reserveShare, maxReserveBytes/format.BlockSize)
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
	sbs, err := image.ReadSuperblocks(dev, dev.Info().Path)
	if err != nil {
		return nil, err
	}
	for _, d := range sbs.Damaged {
		b := blockio.AlignedBytes(format.BlockSize)
		sbs.Sound.Encode(b)
		if err := dev.WriteAt(b, d.Off); err != nil {
			return nil, err
		}
		if err := dev.Flush(); err != nil {
			return nil, err
		}
	}
	return sbs.Sound, nil
}

// adopt takes over what the device holds, and sets the journal to go on.
func (s *Store) adopt(state *image.State) {
	s.idx, s.alloc = state.Index, state.Alloc
	s.area, s.seq = state.Area, state.Checkpoint.Seq
	j, found := s.journal, state.Journal
	var nonce [8]byte
	_, _ = rand.Read(nonce[:]) // never fails
	j.nonce = binary.LittleEndian.Uint64(nonce[:])
	j.next, j.at, j.prev, j.base = found.Next, found.Head, found.Prev, found.Base
	j.low = found.Next - 1 // whatever was under way is settled before the store is open
	for _, b := range found.Batches {
		j.live.push(batchInfo{sum: b.Sum, pos: b.Block, blocks: b.Blocks})
	}
}

// settle decides what became of the operations that were under way, durably.
func (s *Store) settle(state *image.State) error {
	found, err := state.Settle(s.readRun)
	if err != nil {
		return err
	}
	zero := blockio.AlignedBytes(format.BlockSize)
	for _, e := range found.Segments {
		for _, r := range e.Erase {
			if err := s.dev.WriteAt(zero, s.dataOffset(r)); err != nil {
				return err
			}
		}
		if e.Err != nil {
			s.ioFailed("read of "+e.Segment.ID.String(), e.Err)
		}
	}
	found.Adopt()
	if err := s.dev.Flush(); err != nil { // what was read may be in a cache only
		return err
	}
	return s.drop(found.Drop)
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
		t := newWaitedTicket()
		s.journal.submit(&t.ticket, false, recs...)
		s.Kick()
		if err := t.wait(); err != nil {
			return err
		}
		s.journal.finish(&t.ticket)
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
