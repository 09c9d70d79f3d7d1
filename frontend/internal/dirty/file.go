package dirty

import (
	"math/bits"
	"slices"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/copies"
)

// ChunkBlocks is the number of blocks in a chunk: the bits of its masks, and a full strip of data.
const ChunkBlocks = 32

// ChunkBytes is the part of a file that a chunk holds.
const ChunkBytes = ChunkBlocks * wire.BlockSize

type chunk struct {
	slots         [ChunkBlocks]slot
	dirty, flight uint32
}

func (c *chunk) has() uint32 { return c.dirty | c.flight }

// inPlace says that nobody else looks at the memory of block i, so that it may be written.
func (c *chunk) inPlace(i int) bool { return c.dirty&(1<<i) != 0 && !c.slots[i].lent }

// File is the dirty blocks of one file. The zero value has none.
type File struct {
	chunks map[uint64]*chunk
	dirty  int // blocks to send
	flight int // blocks being sent
}

// DirtyBytes gives the bytes of the blocks that must be sent.
func (f *File) DirtyBytes() int { return f.dirty * wire.BlockSize }

// Clean says that nothing must be sent and nothing is being sent.
func (f *File) Clean() bool { return f.dirty == 0 && f.flight == 0 }

// InFlight says that something is being sent.
func (f *File) InFlight() bool { return f.flight > 0 }

// InFlightIn says that a block of [off, off+n) is being sent.
func (f *File) InFlightIn(off, n uint64) bool {
	found := false
	f.each(off, n, func(c *chunk, i int, _ uint64) { found = found || c.flight&(1<<i) != 0 })
	return found
}

// InChunk gives how many of n bytes from off on lie in the chunk of off.
func InChunk(off uint64, n int) int { return min(n, ChunkBytes-int(off%ChunkBytes)) }

// Need gives the blocks of new memory that a write of n bytes at off takes.
// Preconditions: the range lies in one chunk.
func (f *File) Need(off uint64, n int) int {
	first, last := blockRange(off, n)
	c := f.chunks[off/ChunkBytes]
	if c == nil {
		return last - first + 1
	}
	need := 0
	for i := first; i <= last; i++ {
		if !c.inPlace(i) {
			need++
		}
	}
	return need
}

// Gap tells whether a write of n bytes at off would leave a block with two separate valid runs, and which. Its owner
// reads the block and calls Fill first; if the block is frozen, it waits until that flight has ended instead.
// Preconditions: the range lies in one chunk.
func (f *File) Gap(off uint64, n int) (block uint64, frozen, gap bool) {
	c := f.chunks[off/ChunkBytes]
	if c == nil {
		return 0, false, false
	}
	first, last := blockRange(off, n)
	for _, i := range [2]int{first, last} {
		s := &c.slots[i]
		if s.mem == nil {
			continue
		}
		if lo, hi := within(off, n, i); lo > s.hi || hi < s.lo {
			return off/ChunkBytes*ChunkBlocks + uint64(i), c.dirty&(1<<i) == 0, true
		}
	}
	return 0, false, false
}

// Put writes p at off. zeroFrom is a file offset from which on the cluster has nothing: a block that starts there or
// later has zeros for what is not written. mem has at least Need blocks left (nil when none is needed).
// Preconditions: the range lies in one chunk; no Gap.
func (f *File) Put(off uint64, p []byte, mem *Mem, zeroFrom uint64) {
	if len(p) == 0 {
		return
	}
	if f.chunks == nil {
		f.chunks = map[uint64]*chunk{}
	}
	ci := off / ChunkBytes
	c := f.chunks[ci]
	if c == nil {
		c = new(chunk)
		f.chunks[ci] = c
	}
	n := len(p)
	first, last := blockRange(off, n)
	for i := first; i <= last; i++ {
		lo, hi := within(off, n, i)
		s := &c.slots[i]
		switch {
		case c.inPlace(i):
		case s.mem != nil: // in flight, or lent
			s.move(mem, lo, hi)
		default:
			*s = slot{mem: mem, off: mem.take(), lo: lo, hi: hi}
			if (ci*ChunkBlocks+uint64(i))*wire.BlockSize >= zeroFrom {
				b := s.bytes()
				clear(b[:lo])
				clear(b[hi:])
				s.lo, s.hi = 0, wire.BlockSize
			}
		}
		if c.dirty&(1<<i) == 0 {
			c.dirty |= 1 << i
			f.dirty++
		}
		p = p[copy(s.bytes()[lo:hi], p):]
		copies.Add(copies.WriteIn, hi-lo)
		s.lo, s.hi = min(s.lo, lo), max(s.hi, hi)
	}
}

// Lent says that Fill needs memory for a block.
func (f *File) Lent(block uint64) bool {
	c := f.chunks[block/ChunkBlocks]
	return c != nil && c.slots[block%ChunkBlocks].lent
}

// Fill completes a block with what the cluster has of it; mem has a block left if it is Lent. It does nothing when the block is whole,
// gone or frozen, or lent and there is no memory: its owner looks for the Gap again.
func (f *File) Fill(block uint64, base []byte, mem *Mem) {
	c := f.chunks[block/ChunkBlocks]
	if c == nil {
		return
	}
	i := int(block % ChunkBlocks)
	s := &c.slots[i]
	if s.mem == nil || s.whole() || c.dirty&(1<<i) == 0 || s.lent && mem.Left() == 0 {
		return
	}
	if s.lent {
		s.move(mem, 0, 0)
	}
	b := s.bytes()
	copies.Add(copies.WriteBase, copy(b[:s.lo], base)+copy(b[s.hi:], base[s.hi:]))
	s.lo, s.hi = 0, wire.BlockSize
}

// Some tells whether any bytes of [off, off+n) are here.
func (f *File) Some(off, n uint64) bool {
	some := false
	f.each(off, n, func(c *chunk, i int, start uint64) {
		lo, hi := c.slots[i].clip(start, off, n)
		some = some || hi > lo
	})
	return some
}

// CopyTo copies what is here of [off, off+len(dst)) to dst and calls got for each run that was copied, in order.
func (f *File) CopyTo(dst []byte, off uint64, got func(from, to uint64)) {
	f.each(off, uint64(len(dst)), func(c *chunk, i int, start uint64) {
		s := &c.slots[i]
		lo, hi := s.clip(start, off, uint64(len(dst)))
		if hi > lo {
			copies.Add(copies.ReadDirty, copy(dst[lo-off:hi-off], s.bytes()[lo-start:]))
			got(lo, hi)
		}
	})
}

// clip gives the valid bytes of the slot's block, which starts at start in the file, within [off, off+n).
func (s *slot) clip(start, off, n uint64) (lo, hi uint64) {
	return max(start+uint64(s.lo), off), min(start+uint64(s.hi), off+n)
}

// Ready tells whether all blocks of [off, off+n) are whole, to be sent and not under way.
// Preconditions: the range is whole blocks.
func (f *File) Ready(off, n uint64) bool {
	end := off + n
	for at := off; at < end; {
		c := f.chunks[at/ChunkBytes]
		if c == nil {
			return false
		}
		next := min(end, (at/ChunkBytes+1)*ChunkBytes)
		for i := at % ChunkBytes / wire.BlockSize; at < next; i++ {
			if c.dirty&(1<<i) == 0 || c.flight&(1<<i) != 0 || !c.slots[i].whole() {
				return false
			}
			at += wire.BlockSize
		}
	}
	return true
}

// Truncate forgets what lies at size and behind.
// Preconditions: nothing at or behind size, nor the block of size, is in flight.
func (f *File) Truncate(size uint64) {
	f.each(size/wire.BlockSize*wire.BlockSize, ^uint64(0)>>1, func(c *chunk, i int, start uint64) {
		if c.flight&(1<<i) != 0 {
			panic("dirty: Truncate of a block in flight")
		}
		s := &c.slots[i]
		keep := 0
		if start < size {
			keep = int(size - start)
		}
		switch {
		case keep <= s.lo:
			f.remove(c, i)
		case s.whole() && !s.lent:
			clear(s.bytes()[keep:])
		default:
			s.hi = min(s.hi, keep)
		}
	})
	f.prune()
}

// Drop forgets the whole blocks in [off, off+n).
// Preconditions: the range is whole blocks, and none of them is in flight.
func (f *File) Drop(off, n uint64) {
	f.each(off, n, func(c *chunk, i int, _ uint64) {
		if c.flight&(1<<i) != 0 {
			panic("dirty: Drop of a block in flight")
		}
		f.remove(c, i)
	})
	f.prune()
}

// DropDirty forgets all that is to be sent; what is in flight stays until it has ended.
func (f *File) DropDirty() {
	for _, c := range f.chunks {
		for m := c.dirty &^ c.flight; m != 0; m &= m - 1 {
			f.remove(c, bits.TrailingZeros32(m))
		}
		// A block that is in flight keeps its slot (for readers) but is not sent again.
		f.dirty -= bits.OnesCount32(c.dirty)
		c.dirty = 0
	}
	f.prune()
}

func (f *File) remove(c *chunk, i int) {
	if c.dirty&(1<<i) != 0 {
		c.dirty &^= 1 << i
		f.dirty--
	}
	c.slots[i].drop()
}

func (f *File) prune() {
	for ci, c := range f.chunks {
		if c.has() == 0 {
			delete(f.chunks, ci)
		}
	}
}

// each calls fn for every slot of [off, off+n) in order, with the offset of its block in the file.
func (f *File) each(off, n uint64, fn func(c *chunk, i int, start uint64)) {
	if n == 0 || len(f.chunks) == 0 {
		return
	}
	firstBlock, lastBlock := off/wire.BlockSize, (off+n-1)/wire.BlockSize
	visit := func(ci uint64, c *chunk) {
		for m := c.has(); m != 0; m &= m - 1 {
			i := bits.TrailingZeros32(m)
			if b := ci*ChunkBlocks + uint64(i); b >= firstBlock && b <= lastBlock {
				fn(c, i, b*wire.BlockSize)
			}
		}
	}
	firstChunk, lastChunk := firstBlock/ChunkBlocks, lastBlock/ChunkBlocks
	if lastChunk-firstChunk < uint64(len(f.chunks)) {
		for ci := firstChunk; ci <= lastChunk; ci++ {
			if c := f.chunks[ci]; c != nil {
				visit(ci, c)
			}
		}
		return
	}
	for _, ci := range f.order(firstChunk, lastChunk) {
		visit(ci, f.chunks[ci])
	}
}

// order gives the numbers of the chunks between first and last, sorted.
func (f *File) order(first, last uint64) []uint64 {
	keys := make([]uint64, 0, len(f.chunks))
	for ci := range f.chunks {
		if ci >= first && ci <= last {
			keys = append(keys, ci)
		}
	}
	slices.Sort(keys)
	return keys
}

// blockRange gives the first and last block in the chunk of off that n bytes touch.
func blockRange(off uint64, n int) (first, last int) {
	in := int(off % ChunkBytes)
	return in / wire.BlockSize, (in + max(n, 1) - 1) / wire.BlockSize
}

// within gives the part of block i of the chunk of off that n bytes at off cover.
func within(off uint64, n, i int) (lo, hi int) {
	at := int(off%ChunkBytes) - i*wire.BlockSize
	return max(at, 0), min(at+n, wire.BlockSize)
}

// End gives the offset behind the last block that is here; 0 when there is none.
func (f *File) End() uint64 {
	end := uint64(0)
	for ci, c := range f.chunks {
		if m := c.has(); m != 0 {
			end = max(end, (ci*ChunkBlocks+uint64(bits.Len32(m)))*wire.BlockSize)
		}
	}
	return end
}
