package core

import (
	"sync/atomic"

	"github.com/crakefs/crake/wire"
)

// zeroPage stands for the bytes of holes. Never written to.
var zeroPage = make([]byte, raMax)

// Bytes is what a read gives: parts of memory that stay as they are until Done.
type Bytes struct {
	parts []wire.Slice // Buf is nil for zeros and for bytes of their own
	done  func()
	refs  atomic.Int32
}

func newBytes(done func()) *Bytes {
	b := &Bytes{done: done}
	b.refs.Store(1)
	return b
}

// Len gives the number of bytes.
func (b *Bytes) Len() int {
	n := 0
	for _, p := range b.parts {
		n += len(p.B)
	}
	return n
}

// Slices gives the parts in order. They may be read until Done.
func (b *Bytes) Slices() [][]byte {
	out := make([][]byte, len(b.parts))
	for i := range b.parts {
		out[i] = b.parts[i].B
	}
	return out
}

// Done gives the memory back.
func (b *Bytes) Done() {
	if b.refs.Add(-1) > 0 {
		return
	}
	for _, p := range b.parts {
		if p.Buf != nil {
			p.Buf.Release()
		}
	}
	b.parts = nil
	if b.done != nil {
		b.done()
	}
}

// addZeros adds n bytes of zeros.
func (b *Bytes) addZeros(n int) {
	for n > 0 {
		k := min(n, len(zeroPage))
		b.parts = append(b.parts, wire.Slice{B: zeroPage[:k]})
		n -= k
	}
}

// addData adds the n bytes of d at off, and takes over d's references.
func (b *Bytes) addData(d wire.Data, off, n int) {
	b.parts = append(b.parts, d.Sub(off, n)...)
	d.Release()
}

// addPart adds n bytes of another at off, which stays alive as long as this.
func (b *Bytes) addPart(o *Bytes, off, n int) {
	for _, p := range o.parts {
		if n == 0 {
			return
		}
		if off >= len(p.B) {
			off -= len(p.B)
			continue
		}
		k := min(n, len(p.B)-off)
		if p.Buf != nil {
			p.Buf.Retain()
		}
		b.parts = append(b.parts, wire.Slice{Buf: p.Buf, B: p.B[off : off+k]})
		off, n = 0, n-k
	}
}

// copyTo copies the bytes from off on to dst, as many as that takes.
func (b *Bytes) copyTo(dst []byte, off int) {
	for _, p := range b.parts {
		skip := min(off, len(p.B))
		off -= skip
		dst = dst[copy(dst, p.B[skip:]):]
	}
}
