package wire

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"github.com/cespare/xxhash/v2"
)

// BlockSize is the unit of checksums, mapping and IO, in bytes.
const BlockSize = 4096

// ClusterID names a cluster for ever; random, chosen when it is formed.
type ClusterID [16]byte

// String gives the 32 hexadecimal digits of the id.
func (c ClusterID) String() string { return hex.EncodeToString(c[:]) }

// Role says which of the four jobs a process does.
type Role uint8

// The roles. Values travel and are never reused.
const (
	RoleNone     Role = 0
	RoleDrive    Role = 1
	RoleCompute  Role = 2
	RoleFrontend Role = 3
	RoleMgmt     Role = 4
	RoleClient   Role = 5 // a command-line tool or a test
)

// String gives the role's name as the command line writes it.
func (r Role) String() string {
	switch r {
	case RoleDrive:
		return "drive"
	case RoleCompute:
		return "compute"
	case RoleFrontend:
		return "frontend"
	case RoleMgmt:
		return "mgmt"
	case RoleClient:
		return "client"
	}
	return "none"
}

// ProcID names a process slot in the cluster. It survives restarts of the process; Incarnation tells those apart.
type ProcID uint32

// Incarnation tells one run of a process from the next; mgmt makes it, and it only rises for one ProcID.
type Incarnation uint64

// ProcKey names the certificate by which one run of a process proves who it is: the first 16 bytes of its SHA-256. Zero is none.
type ProcKey [16]byte

// String gives the 32 hexadecimal digits.
func (k ProcKey) String() string { return hex.EncodeToString(k[:]) }

// MarshalText gives the same, for JSON.
func (k ProcKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads it.
func (k *ProcKey) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(string(text))
	if err != nil || len(b) != len(k) {
		return fmt.Errorf("key %.40q: want 32 hexadecimal digits", text)
	}
	copy(k[:], b)
	return nil
}

// ServerID names a server (a machine, or a network namespace that plays one).
type ServerID uint32

// DriveID names a device for ever; mgmt gives it out when the device is added, and it is in the superblock. 0 is none.
type DriveID uint32

// PGID names a placement group.
type PGID uint32

// FSID names a filesystem of the cluster, from 1 to 65535.
type FSID uint32

// BucketID names a shard of metadata, from 0 to the cluster's bucket count minus one.
type BucketID uint16

// Epoch is a bucket's ownership number; it rises at every change of owner. 0 is none.
type Epoch uint64

// Generation is the version of the cluster map. 0 is none.
type Generation uint64

// SessionID names a frontend's registered presence. Never reused. 0 is none.
type SessionID uint64

// Ino is an inode number: the bucket in the upper 16 bits, a sequence in the lower 48.
// Sequences below FirstInoSeq are reserved; a filesystem's root has its FSID plus 1 as sequence. The values 0, 1 and all ones
// never occur, because FUSE reserves them.
type Ino uint64

// FirstInoSeq is the lowest sequence of an inode that is not the root of a filesystem.
const FirstInoSeq = 1 << 16

const inoSeqBits = 48

// MakeIno puts an inode number together.
// Preconditions: seq < 1<<48, and seq > 1 in bucket 0.
func MakeIno(b BucketID, seq uint64) Ino { return Ino(uint64(b)<<inoSeqBits | seq) }

// RootIno gives the inode number of a filesystem's root directory in a cluster of bucketCount buckets.
func RootIno(fs FSID, bucketCount int) Ino {
	b := BucketID(int(fs) % bucketCount)
	return MakeIno(b, uint64(fs)+1) // +1: bucket 0 must not use sequences 0 and 1
}

// Bucket tells which bucket holds the inode, its names if it is a directory, its xattrs and its first region.
func (i Ino) Bucket() BucketID { return BucketID(i >> inoSeqBits) }

// Seq gives the sequence of the inode in its bucket.
func (i Ino) Seq() uint64 { return uint64(i) & (1<<inoSeqBits - 1) }

// RegionBucket tells which bucket maps a region of a file. Region 0 is mapped where the inode lies, every other where
// a hash of both says, so that one big file uses every compute.
func RegionBucket(i Ino, region uint64, bucketCount int) BucketID {
	if region == 0 {
		return i.Bucket()
	}
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:], uint64(i))
	binary.LittleEndian.PutUint64(b[8:], region)
	return BucketID(xxhash.Sum64(b[:]) % uint64(bucketCount))
}

// NameHash gives the place of a name in its directory: 63 bits, at least 3 (1 and 2 are the cookies of "." and "..").
func NameHash(name string) uint64 {
	h := xxhash.Sum64String(name) >> 1
	if h < 3 {
		h += 3
	}
	if h > 1<<63-64 { // room for probing past a collision
		h -= 64
	}
	return h
}

// Class says what a strip is for. Values are on disk and never reused.
type Class uint8

// The classes; at most 15.
const (
	ClassData    Class = 1 // strip of a stripe of file data
	ClassSegment Class = 2 // mirrored segment of file data
	ClassLog     Class = 3 // mirrored segment of a log of the bucket's database (WAL, MANIFEST)
	ClassTable   Class = 4 // strip of a file of the bucket's database that is written once (SST)
	ClassFile    Class = 5 // description of a file of the bucket's database (name, length, where its parts are)
)

// StripID names a strip or segment for ever, in the whole cluster, 128 bits:
//
//	hi  63      48 47  44 43   38 37                                   0
//	    | bucket  |class | pos  |            number                    |
//	lo  63      48 47                                                  0
//	    | index   |                     random                         |
//
// number is the stripe or segment number in the bucket (data) or the number of the database file; index is the part of
// a database file (0 otherwise); random makes an id that nobody can guess and that is never used twice, so a reader with
// an old id gets "not found" and never another strip's bytes.
// All strips of a stripe, and all replicas of a segment, differ only in pos.
//
// wire:fixed
type StripID struct {
	Hi, Lo uint64 // as drawn
}

// Bounds of the parts of a StripID.
const (
	MaxStripNumber = 1<<38 - 1
	MaxStripPos    = 1<<6 - 1
	MaxStripIndex  = 1<<16 - 1
)

// MakeStripID puts an id together; parts that are too large are cut, so check them against the bounds before.
func MakeStripID(b BucketID, c Class, pos int, number uint64, index uint16, random uint64) StripID {
	return StripID{
		Hi: uint64(b)<<48 | uint64(c&15)<<44 | uint64(pos&MaxStripPos)<<38 | number&MaxStripNumber,
		Lo: uint64(index)<<48 | random&(1<<48-1),
	}
}

// Bucket gives the bucket that owns the strip.
func (s StripID) Bucket() BucketID { return BucketID(s.Hi >> 48) }

// Class gives what the strip is for.
func (s StripID) Class() Class { return Class(s.Hi >> 44 & 15) }

// Pos gives the position in the stripe: 0 to k-1 data, k to k+m-1 parity; of a segment 0 to m.
func (s StripID) Pos() int { return int(s.Hi >> 38 & MaxStripPos) }

// Number gives the stripe, segment or file number in the bucket.
func (s StripID) Number() uint64 { return s.Hi & MaxStripNumber }

// Index gives the part of a database file.
func (s StripID) Index() uint16 { return uint16(s.Lo >> 48) }

// Random gives the 48 random bits.
func (s StripID) Random() uint64 { return s.Lo & (1<<48 - 1) }

// WithPos gives the id of the same stripe or segment at another position.
func (s StripID) WithPos(pos int) StripID {
	s.Hi = s.Hi&^(uint64(MaxStripPos)<<38) | uint64(pos&MaxStripPos)<<38
	return s
}

// IsZero says that the id is none.
func (s StripID) IsZero() bool { return s == StripID{} }

// Less orders ids by bucket, class, position, number, index, random: the order of List.
func (s StripID) Less(o StripID) bool {
	if s.Hi != o.Hi {
		return s.Hi < o.Hi
	}
	return s.Lo < o.Lo
}

// Compare gives -1, 0 or 1, by the order of Less.
func (s StripID) Compare(o StripID) int {
	switch {
	case s.Less(o):
		return -1
	case o.Less(s):
		return 1
	}
	return 0
}

// String gives the parts of the id for people.
func (s StripID) String() string {
	return fmt.Sprintf("b%d/c%d/n%d.%d/p%d/%012x", s.Bucket(), s.Class(), s.Number(), s.Index(), s.Pos(), s.Random())
}

// Geometry tells how the blocks of a stripe lie on its strips: each data strip holds a contiguous run of
// StripBlocks blocks, the last ones fewer or none; a missing block counts as zeros in the parity.
type Geometry struct {
	K, M   int
	Blocks int // data blocks in the stripe, at least 1
}

// StripBlocks gives the blocks of a full strip of this stripe: ceil(Blocks/K).
func (g Geometry) StripBlocks() int { return (g.Blocks + g.K - 1) / g.K }

// LenBlocks gives the blocks that the strip at pos really holds. 0 means that the strip is not stored at all.
func (g Geometry) LenBlocks(pos int) int {
	s := g.StripBlocks()
	if pos >= g.K {
		return s
	}
	return max(0, min(s, g.Blocks-pos*s))
}

// Locate tells the strip position and the row in it of a block of the stripe.
func (g Geometry) Locate(block int) (pos, row int) {
	s := g.StripBlocks()
	return block / s, block % s
}
