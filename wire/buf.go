package wire

import "sync/atomic"

// Buf is reference-counted, page-aligned memory from an Arena, or borrowed from another process (Loan). Who receives a Buf releases it.
// The bytes may be written by one owner until they are shared; from then on they are read only. What is borrowed cannot be written at all,
// and is held for the time of an operation only: what is kept is copied, because what a process can lend is bounded.
//
// The struct is used again for other memory some time after the last Release (not with ArenaDebug).
type Buf struct {
	arena   *Arena   // nil: it is borrowed
	loan    *Loan    // which it is part of, where it is borrowed
	foreign *Foreign // where it lies then
	b       []byte   // its capacity is all of the Buf's memory
	use     Use
	lends   int // loans of it that are out; guarded by Arena.mu
	refs    atomic.Int32

	whole [1]Slice    // memory of the first Data that is made of it
	made  atomic.Bool // that was made

	// with ArenaDebug: where it was made and where the last reference was released
	from, freed []uintptr
}

// Bytes gives the memory; valid until the last reference is released.
func (b *Buf) Bytes() []byte { return b.b }

// Retain takes a further reference.
func (b *Buf) Retain() *Buf {
	if b.refs.Add(1) <= 1 {
		panic("wire: Retain of a released Buf" + b.history())
	}
	return b
}

// Release gives one reference back; the last one returns the memory to the arena.
func (b *Buf) Release() {
	switch n := b.refs.Add(-1); {
	case n == 0 && b.arena == nil:
		b.loan.release(b)
	case n == 0:
		b.arena.free(b)
	case n < 0:
		panic("wire: double Release of a Buf" + b.history())
	}
}

// Shared says that the memory must not be written to by this holder: others hold references too, such as a peer to which it is lent,
// which a call that ended without an answer may leave behind.
func (b *Buf) Shared() bool { return b.arena == nil || b.refs.Load() > 1 }

// Foreign gives the other process's memory in which a borrowed Buf lies; nil where it is of an arena of this one.
func (b *Buf) Foreign() *Foreign { return b.foreign }

// Capacity gives the bytes that are held with the Buf: its length in whole blocks.
func (b *Buf) Capacity() int { return cap(b.b) }

func (b *Buf) history() string {
	if b.from == nil {
		return ""
	}
	return ", made at\n" + stackText(b.from) + "and released at\n" + stackText(b.freed)
}

// Data gives the first n bytes as a Data that owns the caller's reference.
func (b *Buf) Data(n int) Data {
	s := Slice{Buf: b, B: b.b[:n]}
	if b.made.Swap(true) {
		return Data{s}
	}
	b.whole[0] = s
	return b.whole[:]
}

// only gives the Buf of a Data that was made with it and that nobody else has.
func (d Data) only() *Buf {
	b := d[0].Buf
	b.made.Store(false)
	return b
}

// Slice is a part of a Buf: B lies in Buf's memory.
type Slice struct {
	Buf *Buf
	B   []byte
}

// Data is the data section of a frame: parts of Bufs, in order. It owns one reference on each part's Buf.
// The sum of the lengths is the length of the section.
type Data []Slice

// Len gives the bytes of all parts.
func (d Data) Len() int {
	n := 0
	for _, s := range d {
		n += len(s.B)
	}
	return n
}

// Retain takes one more reference on every part and gives d back.
func (d Data) Retain() Data {
	for _, s := range d {
		s.Buf.Retain()
	}
	return d
}

// Release gives back one reference of every part.
func (d Data) Release() {
	for _, s := range d {
		s.Buf.Release()
	}
}

// Sub gives the parts that hold the n bytes at off, with a reference of their own on each Buf.
// Preconditions: 0 <= off, 0 <= n, off+n <= d.Len().
func (d Data) Sub(off, n int) Data {
	var out Data
	for _, s := range d {
		if n == 0 {
			break
		}
		if off >= len(s.B) {
			off -= len(s.B)
			continue
		}
		take := min(n, len(s.B)-off)
		s.Buf.Retain()
		out = append(out, Slice{Buf: s.Buf, B: s.B[off : off+take]})
		off, n = 0, n-take
	}
	if n != 0 {
		panic("wire: Data.Sub past the end")
	}
	return out
}

// Blocks calls f for every block of d, in order, with its index. Every part must be a whole number of blocks.
func (d Data) Blocks(f func(i int, block []byte)) {
	i := 0
	for _, s := range d {
		for b := s.B; len(b) > 0; b = b[BlockSize:] {
			f(i, b[:BlockSize])
			i++
		}
	}
}
