// Package dirty holds the written but not yet committed blocks of one file. It does no IO and has no lock: the owner of
// the file guards it.
//
// A file is cut into chunks of 32 blocks. Each block that was written has a slot:
//
//	dirty            must be sent
//	in flight        is being sent; its memory is frozen
//	dirty, in flight was written again meanwhile, into other memory; must be sent once more, after the first has ended
//
// so that of one block never two versions are on their way, and a late answer never buries newer data. A slot knows which
// bytes of its block are valid, one run from lo to hi: who sends a block that is not whole reads the rest first.
//
// A sending that has failed may leave the memory with others, who still read it (wire.Buf.Shared). Its blocks are dirty again, but lent:
// what changes them goes to new memory. That is decided once, in Undo, so that Need and Put agree.
package dirty

import (
	"sync/atomic"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/copies"
)

// Mem is memory for some blocks, all from one Buf. It is given back when the last user lets go.
type Mem struct {
	buf    *wire.Buf
	refs   atomic.Int32
	free   func()
	next   int // first block that no slot uses yet; guarded by the owner of the file
	blocks int
}

// NewMem takes over buf, whose length is a whole number of blocks, with one reference. free is called after buf has been
// released; may be nil.
func NewMem(buf *wire.Buf, free func()) *Mem {
	m := &Mem{buf: buf, blocks: len(buf.Bytes()) / wire.BlockSize, free: free}
	m.refs.Store(1)
	return m
}

// Left gives the blocks that are not used yet.
func (m *Mem) Left() int {
	if m == nil {
		return 0
	}
	return m.blocks - m.next
}

// Release gives one reference back. A nil Mem is none.
func (m *Mem) Release() {
	if m == nil {
		return
	}
	switch n := m.refs.Add(-1); {
	case n == 0:
		m.buf.Release()
		if m.free != nil {
			m.free()
		}
	case n < 0:
		panic("dirty: double Release of a Mem")
	}
}

func (m *Mem) retain() *Mem {
	m.refs.Add(1)
	return m
}

// take gives the offset of an unused block.
func (m *Mem) take() int {
	at := m.next
	if at >= m.blocks {
		panic("dirty: Mem has no block left")
	}
	m.next++
	m.retain()
	return at * wire.BlockSize
}

// slot is one block's memory. A nil mem is an empty slot.
type slot struct {
	mem    *Mem
	off    int  // of the block in mem
	lo, hi int  // valid bytes
	lent   bool // others may still read the memory: it must not be written
}

func (s *slot) bytes() []byte { return s.mem.buf.Bytes()[s.off : s.off+wire.BlockSize] }

func (s *slot) whole() bool { return s.lo == 0 && s.hi == wire.BlockSize }

func (s *slot) drop() {
	s.mem.Release()
	*s = slot{}
}

// move gives the slot a block of mem, with the valid bytes but for those of [lo, hi), which are about to be written.
func (s *slot) move(mem *Mem, lo, hi int) {
	old := *s
	*s = slot{mem: mem, off: mem.take(), lo: old.lo, hi: old.hi}
	from, to := old.bytes(), s.bytes()
	if lo, hi = max(lo, old.lo), min(hi, old.hi); lo >= hi { // it keeps all of them
		lo, hi = old.hi, old.hi
	}
	copies.Add(copies.WriteAgain, copy(to[old.lo:lo], from[old.lo:])+copy(to[hi:old.hi], from[hi:]))
	old.mem.Release() // who sends or reads it has a reference of its own
}
