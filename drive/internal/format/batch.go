package format

import "github.com/crakefs/crake/wire"

const (
	batchMagic = 0x4a4b5243 // "CRKJ"
	pageMagic  = 0x504b5243 // "CRKP"
	// BatchHeaderBytes is the length of the header of a batch or page.
	BatchHeaderBytes = 80
	// MaxBatchBlocks bounds a batch: 256 KiB, thousands of records.
	MaxBatchBlocks = 64
	// MaxBatchBytes is what the records of one batch may take.
	MaxBatchBytes = MaxBatchBlocks*BlockSize - BatchHeaderBytes
	// PageBytes is the length of a checkpoint page.
	PageBytes = 64 << 10
	// MaxPageBytes is what the records of one page may take.
	MaxPageBytes = PageBytes - BatchHeaderBytes
)

// Batch is the header of a journal batch (records that became durable together) or of a checkpoint page. Whole blocks:
//
//	 0 magic u32 "CRKJ" or "CRKP"   4 version u16   6 zero u16   8 format id u64
//	16 seq u64    24 nonce u64    32 prev u64    40 low water u64
//	48 bytes of records u32   52 blocks u32   56 records u32   60 drive id u32   64 zeros
//	72 checksum u64: of bytes 0 to 71 and of the records
//	80 records, then zeros
type Batch struct {
	IsPage   bool
	Drive    wire.DriveID
	FormatID uint64
	// Seq is the number of the batch, one more than that of the batch before; of a page its index.
	Seq uint64
	// Nonce is random for each opening of the device, so that a batch written again at the same place after a crash
	// differs from what it replaces; of a page the number of the checkpoint.
	Nonce uint64
	// Prev is the checksum of the batch before: what an earlier opening left beyond a torn batch never continues the chain.
	// 0 in a page.
	Prev uint64
	// LowWater: every operation with records in batches up to this one is finished, its data durable. 0 in a page.
	LowWater uint64
	Bytes    int // of records
	Blocks   int
	Records  int
	Sum      uint64 // set by Encode and Decode
}

// BatchBlocks gives the blocks that a batch with so many bytes of records takes.
func BatchBlocks(recordBytes int) int {
	return (BatchHeaderBytes + recordBytes + BlockSize - 1) / BlockSize
}

// Encode writes the header in front of the records, which lie in dst from BatchHeaderBytes on, zeroes the rest up to
// h.Blocks, and sets h.Sum.
func (h *Batch) Encode(dst []byte) {
	magic := uint32(batchMagic)
	if h.IsPage {
		magic = pageMagic
	}
	clear(dst[:BatchHeaderBytes])
	le.PutUint32(dst, magic)
	le.PutUint16(dst[4:], uint16(CurrentVersion))
	le.PutUint64(dst[8:], h.FormatID)
	le.PutUint64(dst[16:], h.Seq)
	le.PutUint64(dst[24:], h.Nonce)
	le.PutUint64(dst[32:], h.Prev)
	le.PutUint64(dst[40:], h.LowWater)
	le.PutUint32(dst[48:], uint32(h.Bytes))
	le.PutUint32(dst[52:], uint32(h.Blocks))
	le.PutUint32(dst[56:], uint32(h.Records))
	le.PutUint32(dst[60:], uint32(h.Drive))
	clear(dst[BatchHeaderBytes+h.Bytes : h.Blocks*BlockSize])
	h.Sum = sum2(dst[:72], dst[BatchHeaderBytes:BatchHeaderBytes+h.Bytes])
	le.PutUint64(dst[72:], h.Sum)
}

// DecodeBatch reads the batch or page at the start of b (which may be longer) and verifies its checksum. Its records
// are b[BatchHeaderBytes:][:h.Bytes].
func DecodeBatch(b []byte) (h Batch, err error) {
	if len(b) < BlockSize {
		return h, corrupt("batch", "%d bytes", len(b))
	}
	maxBlocks := MaxBatchBlocks
	switch le.Uint32(b) {
	case batchMagic:
	case pageMagic:
		h.IsPage, maxBlocks = true, PageBytes/BlockSize
	default:
		return h, corrupt("batch", "no batch here")
	}
	if v := Version(le.Uint16(b[4:])); v == 0 || v > CurrentVersion {
		return h, corrupt("batch", "version %d", v)
	}
	h.FormatID, h.Seq, h.Nonce = le.Uint64(b[8:]), le.Uint64(b[16:]), le.Uint64(b[24:])
	h.Prev, h.LowWater = le.Uint64(b[32:]), le.Uint64(b[40:])
	h.Bytes, h.Blocks, h.Records = int(le.Uint32(b[48:])), int(le.Uint32(b[52:])), int(le.Uint32(b[56:]))
	h.Drive, h.Sum = wire.DriveID(le.Uint32(b[60:])), le.Uint64(b[72:])
	if h.Blocks < 1 || h.Blocks > maxBlocks || h.Bytes > h.Blocks*BlockSize-BatchHeaderBytes || h.Blocks*BlockSize > len(b) {
		return h, corrupt("batch", "%d bytes of records in %d blocks", h.Bytes, h.Blocks)
	}
	if h.Sum != sum2(b[:72], b[BatchHeaderBytes:BatchHeaderBytes+h.Bytes]) {
		return h, corrupt("batch", "checksum of batch %d", h.Seq)
	}
	return h, nil
}

// ForEach decodes the records of a batch that DecodeBatch found in b, in order. f must not keep the record.
func (h *Batch) ForEach(b []byte, dataBlocks uint64, f func(r *Record) error) error {
	left := b[BatchHeaderBytes : BatchHeaderBytes+h.Bytes]
	var r Record
	for i := range h.Records {
		n, err := DecodeRecord(left, dataBlocks, &r)
		if err != nil {
			return corrupt("batch", "record %d of batch %d: %w", i, h.Seq, err)
		}
		if err := f(&r); err != nil {
			return err
		}
		left = left[n:]
	}
	if len(left) != 0 {
		return corrupt("batch", "%d bytes after the last record of batch %d", len(left), h.Seq)
	}
	return nil
}

// MayBeBatch tells cheaply, without its checksum, whether b may start with a journal batch of this formatting that comes
// after batch seq and knows it as finished.
func MayBeBatch(b []byte, formatID, seq uint64) bool {
	return len(b) >= BlockSize && le.Uint32(b) == batchMagic && le.Uint64(b[8:]) == formatID &&
		le.Uint64(b[16:]) > seq && le.Uint64(b[40:]) >= seq
}

// ClaimsSeq says that b begins like journal batch seq of this formatting, whether it is sound or not.
func ClaimsSeq(b []byte, formatID, seq uint64) bool {
	return len(b) >= BlockSize && le.Uint32(b) == batchMagic && le.Uint64(b[8:]) == formatID && le.Uint64(b[16:]) == seq
}
