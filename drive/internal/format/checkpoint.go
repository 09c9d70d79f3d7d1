package format

import (
	"github.com/cespare/xxhash/v2"

	"github.com/crakefs/crake/wire"
)

const checkpointMagic = 0x434b5243 // "CRKC"

// Checkpoint is the header of a checkpoint: the first block of its area, written after its pages are durable.
//
//	 0 magic u32 "CRKC"   4 version u16   6 zero u16   8 format id u64   16 seq u64
//	24 journal seq u64   32 journal block u64   40 journal prev u64   48 pages u64   56 records u64
//	64 written, ns since 1970 i64   72 drive id u32   76 zeros
//	4088 xxhash64 of bytes 0 to 4087
type Checkpoint struct {
	Drive    wire.DriveID
	FormatID uint64
	Seq      uint64 // the higher one of two counts
	// JournalSeq is the first batch to replay; all operations with records in earlier ones are in the pages, as may be
	// some of later ones.
	JournalSeq uint64
	// JournalBlock is where that batch lies or will lie, in blocks of the ring; at the end of the ring it may lie at 0.
	JournalBlock uint64
	JournalPrev  uint64 // Prev of that batch
	Pages        uint64
	Records      uint64 // in all pages
	Written      int64  // nanoseconds since 1970
}

// Encode writes the header into dst, a block.
func (c *Checkpoint) Encode(dst []byte) {
	clear(dst[:BlockSize])
	le.PutUint32(dst, checkpointMagic)
	le.PutUint16(dst[4:], uint16(CurrentVersion))
	le.PutUint64(dst[8:], c.FormatID)
	le.PutUint64(dst[16:], c.Seq)
	le.PutUint64(dst[24:], c.JournalSeq)
	le.PutUint64(dst[32:], c.JournalBlock)
	le.PutUint64(dst[40:], c.JournalPrev)
	le.PutUint64(dst[48:], c.Pages)
	le.PutUint64(dst[56:], c.Records)
	le.PutUint64(dst[64:], uint64(c.Written))
	le.PutUint32(dst[72:], uint32(c.Drive))
	le.PutUint64(dst[superblockSumAt:], xxhash.Sum64(dst[:superblockSumAt]))
}

// DecodeCheckpoint reads and validates the header of a checkpoint of the device that sb describes.
func DecodeCheckpoint(b []byte, sb *Superblock) (*Checkpoint, error) {
	if len(b) < BlockSize || le.Uint32(b) != checkpointMagic {
		return nil, corrupt("checkpoint", "no checkpoint here")
	}
	if le.Uint64(b[superblockSumAt:]) != xxhash.Sum64(b[:superblockSumAt]) {
		return nil, corrupt("checkpoint", "checksum")
	}
	if v := Version(le.Uint16(b[4:])); v == 0 || v > CurrentVersion {
		return nil, corrupt("checkpoint", "version %d", v)
	}
	c := &Checkpoint{
		FormatID: le.Uint64(b[8:]), Seq: le.Uint64(b[16:]), JournalSeq: le.Uint64(b[24:]), JournalBlock: le.Uint64(b[32:]),
		JournalPrev: le.Uint64(b[40:]), Pages: le.Uint64(b[48:]), Records: le.Uint64(b[56:]),
		Written: int64(le.Uint64(b[64:])), Drive: wire.DriveID(le.Uint32(b[72:])),
	}
	if c.FormatID != sb.FormatID || c.Drive != sb.Drive {
		return nil, corrupt("checkpoint", "of another device or an earlier format")
	}
	if c.Seq == 0 || c.JournalSeq == 0 || c.JournalBlock > uint64(sb.JournalBlocks()) || c.Pages > uint64(sb.CheckpointPages()) {
		return nil, corrupt("checkpoint", "%d pages, journal batch %d at block %d", c.Pages, c.JournalSeq, c.JournalBlock)
	}
	return c, nil
}

// PageOffset gives where on the device a page of the checkpoint in an area lies.
func (g *Geometry) PageOffset(area int, page uint64) int64 {
	return g.CheckpointOff[area] + BlockSize + int64(page)*PageBytes
}
