package format

import (
	"github.com/cespare/xxhash/v2"

	"github.com/crakefs/crake/wire"
)

const superblockMagic = 0x45564952444b5243 // "CRKDRIVE"

// superblockSumAt is where the checksum of a superblock and of a checkpoint header lies: the last 8 bytes of the block.
const superblockSumAt = BlockSize - 8

// Superblock says whose device this is and where everything lies. Written once, by formatting, in the first and in the
// last block of the device; little-endian:
//
//	  0 magic u64 "CRKDRIVE"   8 version u16  10 zero u16  12 drive id u32
//	 16 cluster id 16 bytes   32 format id u64             40 device bytes u64
//	 48 created, ns since 1970 i64
//	 56 journal offset u64    64 journal bytes u64
//	 72 checkpoint A offset   80 checkpoint B offset       88 bytes of each u64
//	 96 data offset u64      104 data bytes u64           112 zeros
//	4088 xxhash64 of bytes 0 to 4087
type Superblock struct {
	Version Version
	Drive   wire.DriveID
	Cluster wire.ClusterID
	// FormatID is random for each formatting and is in every structure, so that what an earlier life of the device left
	// never counts.
	FormatID uint64
	Created  int64 // nanoseconds since 1970
	Geometry
}

// Encode writes the superblock into dst, a block.
func (s *Superblock) Encode(dst []byte) {
	clear(dst[:BlockSize])
	le.PutUint64(dst[0:], superblockMagic)
	le.PutUint16(dst[8:], uint16(s.Version))
	le.PutUint32(dst[12:], uint32(s.Drive))
	copy(dst[16:], s.Cluster[:])
	le.PutUint64(dst[32:], s.FormatID)
	le.PutUint64(dst[40:], uint64(s.SizeBytes))
	le.PutUint64(dst[48:], uint64(s.Created))
	le.PutUint64(dst[56:], uint64(s.JournalOff))
	le.PutUint64(dst[64:], uint64(s.JournalBytes))
	le.PutUint64(dst[72:], uint64(s.CheckpointOff[0]))
	le.PutUint64(dst[80:], uint64(s.CheckpointOff[1]))
	le.PutUint64(dst[88:], uint64(s.CheckpointBytes))
	le.PutUint64(dst[96:], uint64(s.DataOff))
	le.PutUint64(dst[104:], uint64(s.DataBytes))
	le.PutUint64(dst[superblockSumAt:], xxhash.Sum64(dst[:superblockSumAt]))
}

// IsSuperblock says that the block claims to be a superblock, whether it is sound or not.
func IsSuperblock(b []byte) bool { return len(b) >= BlockSize && le.Uint64(b) == superblockMagic }

// DecodeSuperblock reads and validates a superblock. Errors: KindCorrupt; KindVersion (a layout that is newer than this
// software).
func DecodeSuperblock(b []byte) (*Superblock, error) {
	if !IsSuperblock(b) {
		return nil, corrupt("superblock", "no superblock here")
	}
	if le.Uint64(b[superblockSumAt:]) != xxhash.Sum64(b[:superblockSumAt]) {
		return nil, corrupt("superblock", "checksum")
	}
	s := &Superblock{
		Version: Version(le.Uint16(b[8:])), Drive: wire.DriveID(le.Uint32(b[12:])), FormatID: le.Uint64(b[32:]),
		Created: int64(le.Uint64(b[48:])),
		Geometry: Geometry{
			SizeBytes: int64(le.Uint64(b[40:])), JournalOff: int64(le.Uint64(b[56:])), JournalBytes: int64(le.Uint64(b[64:])),
			CheckpointOff:   [2]int64{int64(le.Uint64(b[72:])), int64(le.Uint64(b[80:]))},
			CheckpointBytes: int64(le.Uint64(b[88:])), DataOff: int64(le.Uint64(b[96:])), DataBytes: int64(le.Uint64(b[104:])),
		},
	}
	copy(s.Cluster[:], b[16:32])
	if s.Version == 0 || s.Version > CurrentVersion {
		return nil, wire.Errorf("drive.format", wire.KindVersion, "superblock",
			"layout version %d, this software knows up to %d; use newer software", s.Version, CurrentVersion)
	}
	if err := s.Geometry.Validate(); err != nil {
		return nil, err
	}
	return s, nil
}
