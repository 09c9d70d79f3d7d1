package wire

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"
)

// A segment is a chain of records, each starting on a new block:
//
//	block 0: | header, 96 bytes | inline payload or checksums of the payload's blocks | zeros |
//	further: more checksums, when one block does not hold them; then the payload blocks, as they were given
//
//	header:  0 magic u32   4 version u16  6 flags u16   8 segment id 16 bytes (pos 0)  24 offset of this record u64
//	        32 bytes of the whole record u32 (a multiple of BlockSize)  36 payload bytes u32
//	        40 payload starts at u32 (in the record)  44 blocks with checksums u32   48 epoch u64
//	        56 xxhash64 of the inline payload u64 (0 when the payload is in blocks)  64 zeros
//	        88 xxhash64 of bytes 0 to 87 and of the checksums (bytes 96 to 96+8*blocks) u64
//
// A payload of at most SegInlineBytes that needs no alignment lies inline (database logs); file data lies in blocks with
// the checksum that the frontend gave. The id and offset in the header make a record of a freed segment, met again when
// its space is reused, not count.
const (
	segMagic       = 0x53524b43 // "CKRS"
	segVersion     = 1
	SegHeaderBytes = 96
	// SegInlineBytes is the largest inline payload: a first block without its header.
	SegInlineBytes = BlockSize - SegHeaderBytes
)

// SegRecord describes one record of a segment.
type SegRecord struct {
	ID      StripID // of the segment; the position is not part of the record
	Offset  uint64  // of the record in the segment, bytes
	Epoch   Epoch
	Payload int      // bytes
	Sums    []uint64 // of the payload's blocks; nil when it lies inline
}

// HeadBytes gives the bytes before the payload blocks: one block, or more for over 500 checksums.
func (r *SegRecord) HeadBytes() int {
	return (SegHeaderBytes + 8*len(r.Sums) + BlockSize - 1) &^ (BlockSize - 1)
}

// Bytes gives the length of the whole record.
func (r *SegRecord) Bytes() int {
	if r.Sums == nil {
		return BlockSize
	}
	return r.HeadBytes() + len(r.Sums)*BlockSize
}

// EncodeHead writes the record's head (HeadBytes long; the rest is zeroed) into dst, with the inline payload if Sums is
// nil (then r.Payload must be len(inline), at most SegInlineBytes). The payload blocks of the other form follow it.
func (r *SegRecord) EncodeHead(dst, inline []byte) {
	le := binary.LittleEndian
	clear(dst)
	le.PutUint32(dst, segMagic)
	le.PutUint16(dst[4:], segVersion)
	id := r.ID.WithPos(0)
	le.PutUint64(dst[8:], id.Hi)
	le.PutUint64(dst[16:], id.Lo)
	le.PutUint64(dst[24:], r.Offset)
	le.PutUint32(dst[32:], uint32(r.Bytes()))
	le.PutUint32(dst[36:], uint32(r.Payload))
	start := SegHeaderBytes
	if r.Sums != nil {
		start = r.HeadBytes()
	}
	le.PutUint32(dst[40:], uint32(start))
	le.PutUint32(dst[44:], uint32(len(r.Sums)))
	le.PutUint64(dst[48:], uint64(r.Epoch))
	if r.Sums == nil {
		copy(dst[SegHeaderBytes:], inline)
		le.PutUint64(dst[56:], xxhash.Sum64(inline))
	}
	for i, s := range r.Sums {
		le.PutUint64(dst[SegHeaderBytes+8*i:], s)
	}
	le.PutUint64(dst[88:], segSum(dst, len(r.Sums)))
}

func segSum(head []byte, sums int) uint64 {
	return xxhash.Sum64(head[:88])*0x9e3779b97f4a7c15 ^ xxhash.Sum64(head[SegHeaderBytes:SegHeaderBytes+8*sums])
}

// DecodeSegHead reads the head of a record from b, which holds at least its first block; when the checksums go on past
// b, need tells how many bytes of head it takes (call again with those). inline is the inline payload within b, or nil.
// It verifies the head with its padding (a torn write may have left old bytes there, and a record is whole or none) and the
// inline payload, not the payload blocks.
func DecodeSegHead(b []byte) (r SegRecord, inline []byte, need int, err error) {
	bad := func(what string) error { return Errorf("segment.record", KindCorrupt, "", "%s", what) }
	le := binary.LittleEndian
	if len(b) < BlockSize {
		return r, nil, BlockSize, nil
	}
	if le.Uint32(b) != segMagic || le.Uint16(b[4:]) != segVersion {
		return r, nil, 0, bad("no record")
	}
	r = SegRecord{
		ID: StripID{le.Uint64(b[8:]), le.Uint64(b[16:])}, Offset: le.Uint64(b[24:]),
		Payload: int(le.Uint32(b[36:])), Epoch: Epoch(le.Uint64(b[48:])),
	}
	total, start, n := int(le.Uint32(b[32:])), int(le.Uint32(b[40:])), int(le.Uint32(b[44:]))
	if n > MaxDataBytes/BlockSize {
		return r, nil, 0, bad("too many checksums")
	}
	if n > 0 {
		r.Sums = make([]uint64, n)
	}
	if need = r.HeadBytes(); need > len(b) {
		return r, nil, need, nil
	}
	if segSum(b, n) != le.Uint64(b[88:]) {
		return r, nil, 0, bad("checksum of the head")
	}
	if total != r.Bytes() {
		return r, nil, 0, bad("length")
	}
	if n == 0 {
		if start != SegHeaderBytes || r.Payload > SegInlineBytes {
			return r, nil, 0, bad("inline payload")
		}
		inline = b[SegHeaderBytes : SegHeaderBytes+r.Payload]
		if xxhash.Sum64(inline) != le.Uint64(b[56:]) {
			return r, nil, 0, bad("checksum of the payload")
		}
		if !isZero(b[SegHeaderBytes+r.Payload : BlockSize]) {
			return r, nil, 0, bad("no zeros after the payload")
		}
		return r, inline, need, nil
	}
	if start != need || r.Payload > n*BlockSize {
		return r, nil, 0, bad("payload")
	}
	for i := range r.Sums {
		r.Sums[i] = le.Uint64(b[SegHeaderBytes+8*i:])
	}
	if !isZero(b[SegHeaderBytes+8*n : need]) {
		return r, nil, 0, bad("no zeros after the checksums")
	}
	return r, nil, need, nil
}

// isZero says that all bytes are zero. len(b) need not be a multiple of 8.
func isZero(b []byte) bool {
	for ; len(b) >= 8; b = b[8:] {
		if binary.LittleEndian.Uint64(b) != 0 {
			return false
		}
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// StripSum combines the checksums of a strip's blocks into the one that the drive keeps.
func StripSum(sums []uint64) uint64 {
	var d xxhash.Digest
	d.Reset()
	var b [8]byte
	for _, s := range sums {
		binary.LittleEndian.PutUint64(b[:], s)
		_, _ = d.Write(b[:])
	}
	return d.Sum64()
}
