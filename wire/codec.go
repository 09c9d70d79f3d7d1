package wire

import "encoding/binary"

//go:generate go run ./internal/gen -o zz_messages.go

// Message is anything that `go generate` made an encoder for: a struct marked "wire:message" in a msg_*.go file.
type Message interface {
	// Append encodes the message at the end of b.
	Append(b []byte) []byte
	// Decode reads the message from b. Slices and strings of the message do not point into b.
	// Bytes that are no such message give an error with KindBadFrame; it never panics. Fields that b lacks (an older
	// sender) become zero; fields that it has in excess (a newer sender) are skipped.
	Decode(b []byte) error
}

// decoder reads fields in order and remembers the first failure. Past the end every field reads as zero.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) take(n int) []byte {
	if len(d.b) == 0 || d.bad {
		return nil
	}
	if len(d.b) < n {
		d.bad = true
		return nil
	}
	out := d.b[:n]
	d.b = d.b[n:]
	return out
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
		d.bad = true
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

// sub gives a decoder of the next length-prefixed struct.
func (d *decoder) sub() decoder { return decoder{b: d.take(d.count(1))} }

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
