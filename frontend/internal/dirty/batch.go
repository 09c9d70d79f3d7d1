package dirty

import (
	"math/bits"

	"github.com/crakefs/crake/wire"
)

// Batch is blocks on their way. Its memory is frozen until Done or Undo.
type Batch struct {
	items []item
}

type item struct {
	block uint64
	slot  slot // with a reference of its own
}

// Len gives the number of blocks.
func (b *Batch) Len() int { return len(b.items) }

// Bytes gives the length of the blocks.
func (b *Batch) Bytes() int { return len(b.items) * wire.BlockSize }

// End gives the offset in the file behind the last block; 0 when there is none.
func (b *Batch) End() uint64 {
	if len(b.items) == 0 {
		return 0
	}
	return (b.items[len(b.items)-1].block + 1) * wire.BlockSize
}

// Partial calls f for each block that is not whole, with its offset in the file, its memory and which bytes are valid.
// f writes the others. (They are nobody else's: readers and Put copy only what is valid.) A block that is lent gets memory for one
// block from alloc first, in this batch only.
func (b *Batch) Partial(alloc func() (*wire.Buf, error), f func(off uint64, block []byte, lo, hi int) error) error {
	for i := range b.items {
		s := &b.items[i].slot
		if s.whole() {
			continue
		}
		if s.lent {
			buf, err := alloc()
			if err != nil {
				return err
			}
			mem := NewMem(buf, nil)
			s.move(mem, 0, 0)
			mem.Release()
		}
		if err := f(b.items[i].block*wire.BlockSize, s.bytes(), s.lo, s.hi); err != nil {
			return err
		}
		s.lo, s.hi = 0, wire.BlockSize
	}
	return nil
}

// Runs calls f for each run of adjacent blocks, with its offset in the file and its memory in as few slices as can be. The
// slices borrow the batch's references.
func (b *Batch) Runs(f func(off uint64, data wire.Data)) {
	for i := 0; i < len(b.items); {
		start := i
		var data wire.Data
		for ; i < len(b.items) && b.items[i].block == b.items[start].block+uint64(i-start); i++ {
			s := &b.items[i].slot
			if n := len(data); n > 0 && data[n-1].Buf == s.mem.buf && b.items[i-1].slot.off+wire.BlockSize == s.off {
				data[n-1].B = s.mem.buf.Bytes()[s.off+wire.BlockSize-len(data[n-1].B)-wire.BlockSize : s.off+wire.BlockSize]
				continue
			}
			data = append(data, wire.Slice{Buf: s.mem.buf, B: s.bytes()})
		}
		f(b.items[start].block*wire.BlockSize, data)
	}
}

// Take freezes the blocks of [off, off+n) that are to be sent and not under way, in order, at most maxBytes of them.
func (f *File) Take(off, n uint64, maxBytes int) *Batch {
	b := &Batch{}
	left := maxBytes / wire.BlockSize
	f.each(off, n, func(c *chunk, i int, start uint64) {
		if left == 0 || c.dirty&(1<<i) == 0 || c.flight&(1<<i) != 0 {
			return
		}
		left--
		c.dirty &^= 1 << i
		c.flight |= 1 << i
		f.dirty--
		f.flight++
		s := c.slots[i]
		s.mem.retain()
		b.items = append(b.items, item{start / wire.BlockSize, s})
	})
	return b
}

// Done ends a batch that is committed.
func (f *File) Done(b *Batch) { f.end(b, false) }

// Undo ends a batch that is not: its blocks are to be sent again, unless they were written again or forgotten.
func (f *File) Undo(b *Batch) { f.end(b, true) }

func (f *File) end(b *Batch, again bool) {
	for k := range b.items {
		it := &b.items[k]
		ci, i := it.block/ChunkBlocks, int(it.block%ChunkBlocks)
		c := f.chunks[ci]
		if c == nil || c.flight&(1<<i) == 0 {
			panic("dirty: end of a block that is not in flight")
		}
		c.flight &^= 1 << i
		f.flight--
		if c.dirty&(1<<i) == 0 {
			if again {
				c.dirty |= 1 << i
				f.dirty++
				s := &c.slots[i]
				s.lent = s.lent || s.mem.buf.Shared()
			} else {
				c.slots[i].drop()
			}
		}
		it.slot.drop()
		if c.has() == 0 {
			delete(f.chunks, ci)
		}
	}
	b.items = nil
}

// First gives the offset of the first block that is to be sent and not under way.
func (f *File) First() (off uint64, ok bool) {
	if f.dirty == 0 {
		return 0, false
	}
	best := ^uint64(0)
	for ci, c := range f.chunks {
		if m := c.dirty &^ c.flight; m != 0 {
			best = min(best, ci*ChunkBlocks+uint64(bits.TrailingZeros32(m)))
		}
	}
	if best == ^uint64(0) {
		return 0, false
	}
	return best * wire.BlockSize, true
}

// FirstIn is First within [off, off+n).
func (f *File) FirstIn(off, n uint64) (at uint64, ok bool) {
	if f.dirty == 0 {
		return 0, false
	}
	end := off + n
	best := ^uint64(0)
	look := func(ci uint64, c *chunk) {
		m := c.dirty &^ c.flight
		if base := ci * ChunkBytes; base < off {
			if off-base >= ChunkBytes {
				return
			}
			m = m >> ((off - base) / wire.BlockSize) << ((off - base) / wire.BlockSize)
		}
		if m != 0 {
			best = min(best, ci*ChunkBytes+uint64(bits.TrailingZeros32(m))*wire.BlockSize)
		}
	}
	if (n+ChunkBytes-1)/ChunkBytes < uint64(len(f.chunks)) {
		for ci := off / ChunkBytes; ci*ChunkBytes < end && best == ^uint64(0); ci++ {
			if c := f.chunks[ci]; c != nil {
				look(ci, c)
			}
		}
	} else {
		for ci, c := range f.chunks {
			look(ci, c)
		}
	}
	return best, best < end
}
