package wire

import "math/bits"

// buddy hands out runs of blocks. Free memory is kept in runs of 2^order blocks that start at a multiple of their length; an
// allocation of n blocks takes a run of the next power of two and gives the tail back at once, so nothing is wasted on rounding.
// No allocation, split or merge takes more than maxOrder steps (Knuth, The Art of Computer Programming, vol. 1, 2.5).
type buddy struct {
	blocks  int
	heads   [maxOrder + 1]int32 // first free run of each order, or -1
	avail   uint32              // bit of each order that has a free run
	next    []int32             // of a free run, by its first block
	prev    []int32             // -1: it is the head
	order   []int8              // of a free run, by its first block; -1: no free run starts here
	touched []uint64            // bit of each block that was handed out since it was last given back to the system
	touches int                 // bits set in touched
}

// maxOrder is the order of the longest run: MaxDataBytes.
const maxOrder = 11

var _ = [1]struct{}{}[MaxDataBytes-BlockSize<<maxOrder] // asserted

func newBuddy(blocks int) buddy {
	b := buddy{
		blocks: blocks, next: make([]int32, blocks), prev: make([]int32, blocks), order: make([]int8, blocks),
		touched: make([]uint64, (blocks+63)/64),
	}
	for i := range b.heads {
		b.heads[i] = -1
	}
	for i := range b.order {
		b.order[i] = -1
	}
	// From the end, so that the start is what is handed out first.
	for end := blocks; end > 0; {
		o := min(bits.TrailingZeros(uint(end)), maxOrder)
		end -= 1 << o
		b.push(int32(end), o)
	}
	return b
}

func (b *buddy) push(start int32, o int) {
	h := b.heads[o]
	b.next[start], b.prev[start], b.order[start] = h, -1, int8(o)
	if h >= 0 {
		b.prev[h] = start
	}
	b.heads[o] = start
	b.avail |= 1 << o
}

func (b *buddy) remove(start int32) {
	o := b.order[start]
	n, p := b.next[start], b.prev[start]
	if n >= 0 {
		b.prev[n] = p
	}
	if p >= 0 {
		b.next[p] = n
	} else if b.heads[o] = n; n < 0 {
		b.avail &^= 1 << o
	}
	b.order[start] = -1
}

// alloc takes a run of n blocks and gives its first, or -1 when there is none.
func (b *buddy) alloc(n int) int {
	want := bits.Len(uint(n - 1)) // ceil(log2 n)
	fit := b.avail >> want << want
	if fit == 0 {
		return -1
	}
	o := bits.TrailingZeros32(fit)
	start := b.heads[o]
	b.remove(start)
	for o > want { // the upper halves stay free
		o--
		b.push(start+1<<o, o)
	}
	b.release(int(start)+n, 1<<o-n)
	b.touch(int(start), n)
	return int(start)
}

// largest gives the length of the longest free run.
func (b *buddy) largest() int {
	if b.avail == 0 {
		return 0
	}
	return 1 << (bits.Len32(b.avail) - 1)
}

// free gives a run of n blocks back.
func (b *buddy) free(start, n int) { b.release(start, n) }

// release puts blocks into the free lists, run by run, and merges.
func (b *buddy) release(start, n int) {
	for n > 0 {
		o := min(bits.TrailingZeros(uint(start)|1<<maxOrder), bits.Len(uint(n))-1)
		b.merge(int32(start), o)
		start += 1 << o
		n -= 1 << o
	}
}

func (b *buddy) merge(start int32, o int) {
	if b.order[start] >= 0 {
		panic("wire: a block of the arena was freed twice")
	}
	for o < maxOrder {
		other := start ^ 1<<o
		if int(other) >= b.blocks || b.order[other] != int8(o) {
			break
		}
		b.remove(other)
		start = min(start, other)
		o++
	}
	b.push(start, o)
}

// touch notes that blocks are handed out.
func (b *buddy) touch(start, n int) {
	for n > 0 {
		bit := start % 64
		k := min(64-bit, n)
		mask := (^uint64(0) >> (64 - k)) << bit
		w := &b.touched[start/64]
		b.touches += bits.OnesCount64(mask &^ *w)
		*w |= mask
		start += k
		n -= k
	}
}

func (b *buddy) touchedBlocks() int { return b.touches }

// untouch gives up to about max touched free blocks back, longest runs first: punch returns whether it did. It tells how many.
func (b *buddy) untouch(max int, punch func(start, blocks int) bool) (given int) {
	for o := maxOrder; o >= 0 && given < max; o-- {
		for s := b.heads[o]; s >= 0 && given < max; s = b.next[s] {
			n := b.countTouched(int(s), 1<<o)
			if n == 0 || !punch(int(s), 1<<o) {
				continue
			}
			b.clearTouched(int(s), 1<<o)
			given += n
		}
	}
	return given
}

func (b *buddy) countTouched(start, n int) (c int) {
	for i := start; i < start+n; i++ {
		c += int(b.touched[i/64] >> (i % 64) & 1)
	}
	return c
}

func (b *buddy) clearTouched(start, n int) {
	b.touches -= b.countTouched(start, n)
	for i := start; i < start+n; i++ {
		b.touched[i/64] &^= 1 << (i % 64)
	}
}
