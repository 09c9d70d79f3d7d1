package meta

import (
	"encoding/binary"
	"fmt"

	"github.com/crakefs/crake/wire"
)

// recordVersion is the first byte of every value. Readers know all versions up to theirs.
//
//	1: issue 2, as FORMAT.md describes
const recordVersion = 1

// reader decodes a value: the first failure sticks, and every later field reads as zero.
type reader struct {
	b   []byte
	bad string // what failed first
}

func newReader(b []byte) reader {
	r := reader{b: b}
	if v := r.u8("version"); r.bad == "" && v != recordVersion {
		r.bad = fmt.Sprintf("version %d", v)
	}
	return r
}

func (r *reader) fail(what string) {
	if r.bad == "" {
		r.bad = what
	}
	r.b = nil
}

func (r *reader) take(n int, what string) []byte {
	if r.bad != "" || n < 0 || n > len(r.b) {
		r.fail(what)
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) u8(what string) uint8 {
	if b := r.take(1, what); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) u64(what string) uint64 {
	if b := r.take(8, what); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (r *reader) uvarint(what string) uint64 {
	if r.bad != "" {
		return 0
	}
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail(what)
		return 0
	}
	r.b = r.b[n:]
	return v
}

// small reads an unsigned number of at most limit.
func (r *reader) small(limit uint64, what string) uint64 {
	v := r.uvarint(what)
	if v > limit {
		r.fail(what)
		return 0
	}
	return v
}

// bytes reads a length of at most limit and as many bytes, which are copied.
func (r *reader) bytes(limit int, what string) []byte {
	n := int(r.small(uint64(limit), what))
	if n == 0 {
		return nil
	}
	return append([]byte(nil), r.take(n, what)...)
}

func (r *reader) str(limit int, what string) string {
	return string(r.take(int(r.small(uint64(limit), what)), what))
}

// done reports the failure, or bytes left over.
func (r *reader) done(record string) error {
	if r.bad == "" && len(r.b) != 0 {
		r.bad = "bytes left over"
	}
	if r.bad != "" {
		return wire.Errorf("meta.decode", wire.KindCorrupt, record, "bad %s", r.bad)
	}
	return nil
}

func appendUvarint(b []byte, v uint64) []byte { return binary.AppendUvarint(b, v) }
func appendU64(b []byte, v uint64) []byte     { return binary.LittleEndian.AppendUint64(b, v) }

func appendBytes[T string | []byte](b []byte, s T) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}
