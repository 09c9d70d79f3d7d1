package logfs

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"

	"github.com/crakefs/crake/wire"
)

// What a strip of class file holds; see FORMAT.md. Little-endian, padded with zeros to whole blocks:
//
//	 0 magic u32   4 version u16   6 kind u8   7 zero   8 bucket u16   10 zeros   16 epoch u64   24 number u64
//	32 stamp i64  40 body bytes u32   44 zeros   56 xxhash64 of bytes 0 to 55 and of the body   64 body
const (
	metaMagic       = 0x44464b43 // "CKFD"
	metaVersion     = 1          // 1: issue 2
	metaHeaderBytes = 64

	metaKindFile = 1
	metaKindOpen = 2
)

// fileKind tells how the content of a file lies on the drives. On disk, never reused.
type fileKind uint8

const (
	fileLog   fileKind = 1
	fileTable fileKind = 2
)

// metaHeader is what descriptions and open records have in common.
type metaHeader struct {
	bucket wire.BucketID
	epoch  wire.Epoch // of the owner that wrote it
	number uint64     // rises within an epoch
	stamp  int64      // nanoseconds since 1970, by the writer's clock: the modification time of a file
}

// newer orders descriptions of one thing.
func (h metaHeader) newer(o metaHeader) bool {
	if h.epoch != o.epoch {
		return h.epoch > o.epoch
	}
	if h.number != o.number {
		return h.number > o.number
	}
	return h.stamp > o.stamp
}

// chunk is a part of a table: so many bytes in a stripe, or in a mirrored strip.
type chunk struct {
	loc   wire.Location
	bytes int
	sums  []uint64 // of each block; the last block is padded with zeros
}

// description makes a file exist.
type description struct {
	metaHeader
	kind fileKind
	name string
	// data names the content for ever: of a log the id of its segments (with index 0), of a table any id that is unique.
	data   wire.StripID
	length int64 // of a table, in bytes
	inline []byte
	chunks []chunk
}

// openRecord tells which descriptions of older epochs were live when its owner opened the bucket.
type openRecord struct {
	metaHeader
	live []wire.StripID // position 0
}

func appendU16(b []byte, v uint16) []byte { return binary.LittleEndian.AppendUint16(b, v) }
func appendU32(b []byte, v uint32) []byte { return binary.LittleEndian.AppendUint32(b, v) }
func appendU64(b []byte, v uint64) []byte { return binary.LittleEndian.AppendUint64(b, v) }
func appendID(b []byte, id wire.StripID) []byte {
	return appendU64(appendU64(b, id.Hi), id.Lo)
}

// seal puts the header before a body that starts at metaHeaderBytes, and pads.
func sealMeta(b []byte, kind uint8, h metaHeader) []byte {
	le := binary.LittleEndian
	body := len(b) - metaHeaderBytes
	le.PutUint32(b, metaMagic)
	le.PutUint16(b[4:], metaVersion)
	b[6] = kind
	le.PutUint16(b[8:], uint16(h.bucket))
	le.PutUint64(b[16:], uint64(h.epoch))
	le.PutUint64(b[24:], h.number)
	le.PutUint64(b[32:], uint64(h.stamp))
	le.PutUint32(b[40:], uint32(body))
	le.PutUint64(b[56:], metaSum(b, body))
	pad := (len(b)+wire.BlockSize-1)&^(wire.BlockSize-1) - len(b)
	return append(b, make([]byte, pad)...)
}

func metaSum(b []byte, body int) uint64 {
	return xxhash.Sum64(b[:56])*0x9e3779b97f4a7c15 ^ xxhash.Sum64(b[metaHeaderBytes:metaHeaderBytes+body])
}

// encode gives whole blocks.
func (d *description) encode() []byte {
	b := make([]byte, metaHeaderBytes, wire.BlockSize)
	b = append(b, byte(d.kind), 0)
	b = appendU16(b, uint16(len(d.name)))
	b = append(b, d.name...)
	b = appendU64(b, uint64(d.length))
	b = appendID(b, d.data)
	b = appendU32(b, uint32(len(d.inline)))
	b = append(b, d.inline...)
	b = appendU32(b, uint32(len(d.chunks)))
	for i := range d.chunks {
		c := &d.chunks[i]
		b = appendU32(b, uint32(c.bytes))
		degraded := byte(0)
		if c.loc.Degraded {
			degraded = 1
		}
		b = append(b, byte(c.loc.Kind), c.loc.K, c.loc.M, degraded)
		b = appendID(b, c.loc.ID)
		b = appendU32(b, c.loc.Blocks)
		b = appendU32(b, uint32(len(c.loc.Drives)))
		for _, dr := range c.loc.Drives {
			b = appendU32(b, uint32(dr))
		}
		for _, s := range c.sums {
			b = appendU64(b, s)
		}
	}
	return sealMeta(b, metaKindFile, d.metaHeader)
}

// encode gives whole blocks.
func (r *openRecord) encode() []byte {
	b := make([]byte, metaHeaderBytes, metaHeaderBytes+4+16*len(r.live))
	b = appendU32(b, uint32(len(r.live)))
	for _, id := range r.live {
		b = appendID(b, id)
	}
	return sealMeta(b, metaKindOpen, r.metaHeader)
}

// metaReader reads fields in order; past the end or after a failure every field reads as zero.
type metaReader struct {
	b   []byte
	bad string
}

func (r *metaReader) fail(what string) {
	if r.bad == "" {
		r.bad = what
	}
	r.b = nil
}

func (r *metaReader) take(n int, what string) []byte {
	if n < 0 || n > len(r.b) {
		r.fail(what)
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *metaReader) u8(what string) uint8 {
	if b := r.take(1, what); b != nil {
		return b[0]
	}
	return 0
}

func (r *metaReader) u16(what string) uint16 {
	if b := r.take(2, what); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (r *metaReader) u32(what string) uint32 {
	if b := r.take(4, what); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (r *metaReader) u64(what string) uint64 {
	if b := r.take(8, what); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (r *metaReader) id(what string) wire.StripID {
	hi := r.u64(what)
	return wire.StripID{Hi: hi, Lo: r.u64(what)}
}

// count reads a number of elements of at least minBytes each.
func (r *metaReader) count(minBytes int, what string) int {
	n := int(r.u32(what))
	if n > len(r.b)/minBytes {
		r.fail(what)
		return 0
	}
	return n
}

// decodeMeta reads what a strip of class file holds: either of the results is set. It accepts any bytes.
func decodeMeta(b []byte) (*description, *openRecord, error) {
	bad := func(format string, args ...any) (*description, *openRecord, error) {
		return nil, nil, wire.Errorf("description", wire.KindCorrupt, "", format, args...)
	}
	le := binary.LittleEndian
	if len(b) < metaHeaderBytes || le.Uint32(b) != metaMagic {
		return bad("no description")
	}
	body := le.Uint32(b[40:])
	if uint64(body) > uint64(len(b)-metaHeaderBytes) {
		return bad("%d bytes of body in %d", body, len(b))
	}
	if metaSum(b, int(body)) != le.Uint64(b[56:]) {
		return bad("checksum")
	}
	if v := le.Uint16(b[4:]); v != metaVersion {
		return nil, nil, wire.Errorf("description", wire.KindVersion, "", "format %d, this software knows %d", v, metaVersion)
	}
	h := metaHeader{
		bucket: wire.BucketID(le.Uint16(b[8:])), epoch: wire.Epoch(le.Uint64(b[16:])), number: le.Uint64(b[24:]),
		stamp: int64(le.Uint64(b[32:])),
	}
	r := metaReader{b: b[metaHeaderBytes : metaHeaderBytes+int(body)]}
	switch b[6] {
	case metaKindFile:
		d := decodeFile(&r)
		if r.bad != "" || len(r.b) != 0 {
			return bad("bad %q, %d bytes left over", r.bad, len(r.b))
		}
		d.metaHeader = h
		return d, nil, nil
	case metaKindOpen:
		rec := &openRecord{metaHeader: h}
		n := r.count(16, "live")
		for range n {
			rec.live = append(rec.live, r.id("live"))
		}
		if r.bad != "" || len(r.b) != 0 {
			return bad("bad %q, %d bytes left over", r.bad, len(r.b))
		}
		return nil, rec, nil
	}
	return bad("kind %d", b[6])
}

func decodeFile(r *metaReader) *description {
	d := &description{kind: fileKind(r.u8("kind"))}
	r.u8("flags")
	if d.kind != fileLog && d.kind != fileTable {
		r.fail("kind")
	}
	d.name = string(r.take(int(r.u16("name")), "name"))
	if d.name == "" || len(d.name) > MaxNameBytes {
		r.fail("name")
	}
	d.length = int64(r.u64("length"))
	d.data = r.id("data")
	d.inline = append([]byte(nil), r.take(r.count(1, "inline"), "inline")...)
	n := r.count(4+4+16+4+4, "chunks")
	total := int64(len(d.inline))
	for range n {
		c := decodeChunk(r)
		total += int64(c.bytes)
		d.chunks = append(d.chunks, c)
	}
	if d.length != total || n > 0 && len(d.inline) > 0 {
		r.fail("length")
	}
	return d
}

func decodeChunk(r *metaReader) chunk {
	c := chunk{bytes: int(r.u32("chunk"))}
	c.loc.Kind, c.loc.K, c.loc.M = wire.LocKind(r.u8("chunk")), r.u8("chunk"), r.u8("chunk")
	c.loc.Degraded = r.u8("chunk") != 0
	c.loc.ID = r.id("chunk")
	c.loc.Blocks = r.u32("chunk")
	drives := r.count(4, "drives")
	if drives > wire.MaxStripes {
		r.fail("drives")
		return c
	}
	for range drives {
		c.loc.Drives = append(c.loc.Drives, wire.DriveID(r.u32("drives")))
	}
	blocks := (c.bytes + wire.BlockSize - 1) / wire.BlockSize
	if c.bytes == 0 || blocks > len(r.b)/8 || c.loc.Kind == wire.LocStripe && blocks != int(c.loc.Blocks) {
		r.fail("chunk")
		return c
	}
	for range blocks {
		c.sums = append(c.sums, r.u64("sums"))
	}
	return c
}

// Every segment of a log starts with an inline record of this payload:
//
//	0 magic u32   4 version u16   6 zero u16   8 place in the file where the segment goes on u64
const (
	segHeadMagic   = 0x534c4b43 // "CKLS"
	segHeadVersion = 1
	segHeadBytes   = 16
)

func encodeSegHead(start int64) []byte {
	b := appendU32(make([]byte, 0, segHeadBytes), segHeadMagic)
	b = appendU16(b, segHeadVersion)
	b = appendU16(b, 0)
	return appendU64(b, uint64(start))
}

func decodeSegHead(b []byte) (start int64, ok bool) {
	le := binary.LittleEndian
	if len(b) != segHeadBytes || le.Uint32(b) != segHeadMagic || le.Uint16(b[4:]) != segHeadVersion {
		return 0, false
	}
	start = int64(le.Uint64(b[8:]))
	return start, start >= 0
}
