package wire

import (
	"encoding/binary"
	"slices"
)

//go:generate go run ./internal/gen

// Message is anything that `go generate` made an encoder for: a struct marked "wire:message" in a msg_*.go file.
type Message interface {
	// Append encodes the message at the end of b.
	Append(b []byte) []byte
	// Decode reads the message from b. Slices and strings of the message do not point into b.
	// Bytes that are no such message give an error with KindBadFrame; it never panics. Fields that b lacks (an older
	// sender) become zero; fields that it has in excess (a newer sender) are skipped.
	Decode(b []byte) error
}

// decoder reads fields in order and remembers the first failure. Past the end every field reads as zero, but an end inside a
// field, a fixed struct or a list is a failure.
type decoder struct {
	b      []byte
	budget int // bytes that lists may still take in memory
	bad    bool
}

// A list of structs can be longer in memory than on the wire (an empty struct takes 4 bytes there, and any number here), so what
// one message may take is bounded by a multiple of its length. Of the messages in use none takes more than 6 times; the rest is
// for structs that an older sender knows less of.
const (
	budgetFactor = 16
	budgetBase   = 64 << 10
)

func newDecoder(b []byte) decoder { return decoder{b: b, budget: budgetBase + budgetFactor*len(b)} }

func (d *decoder) take(n int) []byte {
	if len(d.b) == 0 || d.bad {
		return nil
	}
	if len(d.b) < n {
		d.fail()
		return nil
	}
	out := d.b[:n]
	d.b = d.b[n:]
	return out
}

func (d *decoder) fail() { d.b, d.bad = nil, true }

// whole fails unless the n bytes of a fixed struct are there, or the message has ended.
func (d *decoder) whole(n int) {
	if len(d.b) != 0 && len(d.b) < n {
		d.fail()
	}
}

// more fails when the message ends before a list does.
func (d *decoder) more() {
	if len(d.b) == 0 {
		d.fail()
	}
}

func (d *decoder) u8() uint8 {
	if b := d.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (d *decoder) u16() uint16 {
	if b := d.take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (d *decoder) u32() uint32 {
	if b := d.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (d *decoder) u64() uint64 {
	if b := d.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

// count reads the number of elements of a list, each of at least minBytes bytes on the wire, so that a false count
// cannot make us allocate more than the frame could hold.
func (d *decoder) count(minBytes int) int {
	n := int(d.u32())
	if n > len(d.b)/minBytes {
		d.fail()
		return 0
	}
	return n
}

// list is count for elements that take size bytes in memory, which it draws from the budget.
func (d *decoder) list(minBytes int, size uintptr) int {
	n := d.count(minBytes)
	if d.budget -= n * int(size); d.budget < 0 {
		d.fail()
		return 0
	}
	return n
}

func (d *decoder) bytes() []byte {
	n := d.count(1)
	if n == 0 {
		return nil
	}
	return append([]byte(nil), d.take(n)...)
}

func (d *decoder) str() string { return string(d.take(d.count(1))) }

// sub gives a decoder of the next length-prefixed struct; join takes over how it went.
func (d *decoder) sub() decoder { return decoder{b: d.take(d.count(1)), budget: d.budget} }

func (d *decoder) join(sub *decoder) {
	d.budget = sub.budget
	if sub.bad {
		d.fail()
	}
}

func decodeU32s[T ~uint32](d *decoder) []T {
	n := d.count(4)
	if n == 0 {
		return nil
	}
	out, b := make([]T, n), d.take(4*n)
	for i := range out {
		out[i] = T(binary.LittleEndian.Uint32(b[4*i:]))
	}
	return out
}

func decodeU64s[T ~uint64](d *decoder) []T {
	n := d.count(8)
	if n == 0 {
		return nil
	}
	out, b := make([]T, n), d.take(8*n)
	for i := range out {
		out[i] = T(binary.LittleEndian.Uint64(b[8*i:]))
	}
	return out
}

func appendU32s[T ~uint32](b []byte, s []T) []byte {
	b = binary.LittleEndian.AppendUint32(slices.Grow(b, 4+4*len(s)), uint32(len(s)))
	for _, v := range s {
		b = binary.LittleEndian.AppendUint32(b, uint32(v))
	}
	return b
}

func appendU64s[T ~uint64](b []byte, s []T) []byte {
	b = binary.LittleEndian.AppendUint32(slices.Grow(b, 4+8*len(s)), uint32(len(s)))
	for _, v := range s {
		b = binary.LittleEndian.AppendUint64(b, uint64(v))
	}
	return b
}

func (d *decoder) err(name string) error {
	if d.bad {
		return Errorf("frame.decode", KindBadFrame, name, "malformed or truncated")
	}
	return nil
}

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

func appendStr[T string | []byte](b []byte, s T) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

// beginStruct leaves room for the length of a nested struct; endStruct fills it in.
func beginStruct(b []byte) ([]byte, int) {
	return append(b, 0, 0, 0, 0), len(b)
}

func endStruct(b []byte, at int) []byte {
	binary.LittleEndian.PutUint32(b[at:], uint32(len(b)-at-4))
	return b
}
