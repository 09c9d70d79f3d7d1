package format

import "github.com/crakefs/crake/wire"

// RecordType says what a record does. Values are on disk and never reused.
type RecordType uint8

// The types of record.
const (
	RecordPut    RecordType = 1 // a strip exists: ID, Epoch, Sum, Runs
	RecordAlloc  RecordType = 2 // a segment has these runs from run number Arg on, and at least Len bytes: ID, Epoch, Len, Runs
	RecordSeal   RecordType = 3 // a segment ends at Len; blocks beyond are free: ID, Epoch, Len
	RecordDelete RecordType = 4 // a strip or segment is gone: ID
	RecordFence  RecordType = 5 // a bucket has had this epoch: Arg is the bucket, Epoch
)

// String names the type for people.
func (t RecordType) String() string {
	switch t {
	case RecordPut:
		return "put"
	case RecordAlloc:
		return "alloc"
	case RecordSeal:
		return "seal"
	case RecordDelete:
		return "delete"
	case RecordFence:
		return "fence"
	}
	return "none"
}

// Sizes of records.
const (
	recordHeaderBytes = 8
	idBytes           = 16
	// MaxRuns bounds the runs of a strip, and of one alloc record: the count is a byte.
	MaxRuns = 255
	// MaxRecordBytes is the largest record.
	MaxRecordBytes = recordHeaderBytes + idBytes + 16 + 8*MaxRuns
)

// Record is one change of the index; journal batches and checkpoint pages hold records. Every record sets a state
// rather than changing one, so replaying records that a checkpoint has already seen does no harm. Little-endian:
//
//	0 type u8   1 runs u8   2 bytes of the record u16   4 arg u32
//	put     8 id 16   24 epoch u64   32 sum u64   40 runs, 8 bytes each (start 40 bits, blocks 24 bits)
//	alloc   8 id 16   24 epoch u64   32 len u64   40 runs
//	seal    8 id 16   24 epoch u64   32 len u64
//	delete  8 id 16
//	fence   8 epoch u64
type Record struct {
	Type  RecordType
	Arg   uint32
	ID    wire.StripID
	Epoch wire.Epoch
	Sum   uint64 // put: wire.StripSum
	Len   uint64 // bytes
	Runs  []Run
}

// Bytes gives the encoded length.
func (r *Record) Bytes() int {
	switch r.Type {
	case RecordPut, RecordAlloc:
		return recordHeaderBytes + idBytes + 16 + 8*len(r.Runs)
	case RecordSeal:
		return recordHeaderBytes + idBytes + 16
	case RecordDelete:
		return recordHeaderBytes + idBytes
	case RecordFence:
		return recordHeaderBytes + 8
	}
	panic("drive: record of no type")
}

// Append encodes the record at the end of b. Preconditions: a known type, at most MaxRuns runs.
func (r *Record) Append(b []byte) []byte {
	n := r.Bytes()
	b = append(b, byte(r.Type), byte(len(r.Runs)))
	b = le.AppendUint16(b, uint16(n))
	b = le.AppendUint32(b, r.Arg)
	if r.Type != RecordFence {
		b = le.AppendUint64(b, r.ID.Hi)
		b = le.AppendUint64(b, r.ID.Lo)
	}
	if r.Type != RecordDelete {
		b = le.AppendUint64(b, uint64(r.Epoch))
	}
	switch r.Type {
	case RecordPut:
		b = le.AppendUint64(b, r.Sum)
	case RecordAlloc, RecordSeal:
		b = le.AppendUint64(b, r.Len)
	}
	for _, run := range r.Runs {
		b = le.AppendUint64(b, uint64(run))
	}
	return b
}

// DecodeRecord reads the record at the start of b and gives its length. dataBlocks bounds its runs. r.Runs is reused.
func DecodeRecord(b []byte, dataBlocks uint64, r *Record) (int, error) {
	runs := r.Runs[:0]
	*r = Record{}
	if len(b) < recordHeaderBytes {
		return 0, corrupt("record", "%d bytes left", len(b))
	}
	r.Type, r.Arg = RecordType(b[0]), le.Uint32(b[4:])
	nRuns, n := int(b[1]), int(le.Uint16(b[2:]))
	if r.Type < RecordPut || r.Type > RecordFence {
		return 0, corrupt("record", "type %d", uint8(r.Type))
	}
	hasRuns := r.Type == RecordPut || r.Type == RecordAlloc
	if hasRuns != (nRuns > 0) {
		return 0, corrupt("record", "%d runs in a record of type %d", nRuns, uint8(r.Type))
	}
	if hasRuns {
		r.Runs = runs
		for range nRuns {
			r.Runs = append(r.Runs, 0)
		}
	}
	if n != r.Bytes() || n > len(b) {
		return 0, corrupt("record", "%d bytes for type %d, %d left", n, uint8(r.Type), len(b))
	}
	if r.Type == RecordFence {
		r.Epoch = wire.Epoch(le.Uint64(b[8:]))
		if r.Arg >= 1<<16 {
			return 0, corrupt("record", "bucket %d", r.Arg)
		}
		return n, nil
	}
	r.ID = wire.StripID{Hi: le.Uint64(b[8:]), Lo: le.Uint64(b[16:])}
	if r.Type == RecordDelete {
		return n, nil
	}
	r.Epoch = wire.Epoch(le.Uint64(b[24:]))
	if r.Type == RecordPut {
		r.Sum = le.Uint64(b[32:])
	} else {
		r.Len = le.Uint64(b[32:])
	}
	for i := range r.Runs {
		r.Runs[i] = Run(le.Uint64(b[40+8*i:]))
	}
	return n, r.validate(dataBlocks)
}

func (r *Record) validate(dataBlocks uint64) error {
	if err := checkRuns(r.Runs, dataBlocks); err != nil {
		return err
	}
	if r.Type == RecordPut && RunsBlocks(r.Runs) > MaxStripBlocks {
		return corrupt("record", "strip of %d blocks", RunsBlocks(r.Runs))
	}
	if r.Len%BlockSize != 0 || r.Len > dataBlocks*BlockSize {
		return corrupt("record", "length %d", r.Len)
	}
	return nil
}
