package index

import (
	"iter"
	"math/bits"
	"slices"

	"github.com/crakefs/crake/drive/internal/format"
)

// Allocator keeps the free blocks of the data area: one bit a block (32 MiB for each TiB), in groups of 4096 blocks. Of each
// group it knows the longest free run exactly, and over the groups lies a tree of maxima. So what fits is found without a
// look at what does not: one run takes about a microsecond to find on any device, and 16 TiB of splinters are refused at once.
//
// Small pieces (strips) go to the first group with room, large ones (chunks of segments) to the last: holes that small pieces
// leave are filled by small ones, and chunks leave room for chunks. It also means that a device that is never full touches
// little more than it holds, which matters where untouched blocks cost nothing (tmpfs, thin volumes).
//
// Rejected, with the figures of TestFragmentation (16 GiB, 2 million puts and deletes; the least that the longest free run was
// at any time, in blocks, and the share of chunks in one run, at 75, 90 and 97 % full):
//
//   - this:                                                4096, 100 %    424, 88 %   32, 36 %
//   - one first fit for all sizes:                         4096, 100 %    124, 67 %   28, 17 %
//   - that, and the tightest run in the group:             4096, 100 %    123, 67 %   28, 17 %
//   - to search on from the last place (next fit):          198,  66 %     67, 43 %   26, 13 %
//   - next fit over only so many groups that 25 % is free:  240,  63 %     63, 43 %   29, 13 %
//
// Next fit puts neighbours in time side by side, but spoils every long run of the device on its way round. A tree of free
// extents is smaller on an empty device, far larger on a splintered one.
//
// Not safe for concurrent use.
type Allocator struct {
	words []uint64 // a set bit is a used block
	// longest[0] has the longest free run of each group, in blocks; longest[l] the maximum of each fanOut of longest[l-1], up to
	// one for all. Invariant: exact.
	longest [][]uint16
	blocks  uint64
	free    uint64
}

const (
	// groupBlocks is also the longest run that is handed out: runs do not cross groups. 16 MiB are as much as a device gains
	// from, and the bits of a group, 512 bytes, are searched in less than a microsecond.
	groupBlocks = 4096
	groupWords  = groupBlocks / 64
	// fanOut: 16 TiB, a million groups, take four levels.
	fanOut = 64
	// largeBlocks is from which size on a piece is large: 256 KiB is the least chunk of a segment, 128 KiB the usual strip.
	largeBlocks = 64
)

// NewAllocator makes an allocator of a data area in which all blocks are free.
func NewAllocator(blocks uint64) *Allocator {
	groups := max(1, (blocks+groupBlocks-1)/groupBlocks)
	a := &Allocator{words: make([]uint64, groups*groupWords), blocks: blocks, free: blocks}
	for b := blocks; b < groups*groupBlocks; b++ { // what the last group has beyond the area
		a.words[b/64] |= 1 << (b % 64)
	}
	for n := int(groups); ; n = (n + fanOut - 1) / fanOut {
		a.longest = append(a.longest, make([]uint16, n))
		if n == 1 {
			break
		}
	}
	a.measure()
	return a
}

// measure finds the longest free run of each group, and the maxima above, by all bits.
func (a *Allocator) measure() {
	for g := range a.longest[0] {
		a.longest[0][g] = uint16(longestRun(a.words[g*groupWords:(g+1)*groupWords], groupBlocks))
	}
	for l, level := range a.longest[1:] {
		for i := range level {
			below := a.longest[l]
			level[i] = slices.Max(below[i*fanOut : min((i+1)*fanOut, len(below))])
		}
	}
}

// FreeBlocks gives the number of free blocks.
func (a *Allocator) FreeBlocks() uint64 { return a.free }

// LongestRun gives the blocks of the longest run that Alloc can give.
func (a *Allocator) LongestRun() int { return int(a.longest[len(a.longest)-1][0]) }

// MemoryBytes tells what the allocator takes for an area of so many blocks.
func MemoryBytes(blocks uint64) uint64 { return blocks/8 + blocks/groupBlocks*2*(fanOut+1)/fanOut }

// Mark takes a given run. False, and nothing is changed, when a part of it is taken already.
func (a *Allocator) Mark(r format.Run) bool {
	start, end := r.Start(), r.Start()+uint64(r.Blocks())
	if end > a.blocks || a.nextUsed(start, end) != end {
		return false
	}
	a.set(start, end)
	return true
}

// markMany takes the runs that each gives, until it ends; measure must follow, before anything else. False: it has given one of which
// a part is taken already, the last. Of many runs this is faster than Mark, which keeps the longest run of a group right with each.
func (a *Allocator) markMany(each iter.Seq[format.Run]) bool {
	for r := range each {
		start, end := r.Start(), r.Start()+uint64(r.Blocks())
		if end > a.blocks || a.nextUsed(start, end) != end {
			return false
		}
		a.setBits(start, end)
		a.free -= end - start
	}
	return true
}

// setBits marks blocks as used, and nothing else.
func (a *Allocator) setBits(b, end uint64) {
	for from := b; b < end; b = from {
		from = min(end, (b/64+1)*64)
		a.words[b/64] |= mask(b, from)
	}
}

// Alloc takes n blocks in as few runs as there can be, at most maxRuns; nil when there is no such room.
func (a *Allocator) Alloc(n, maxRuns int) []format.Run {
	if n <= 0 || uint64(n) > a.free {
		return nil
	}
	large := n >= largeBlocks
	var memory [4]format.Run
	runs := memory[:0]
	for n > 0 {
		longest := a.LongestRun()
		if n > longest*(maxRuns-len(runs)) { // no later run is longer
			for _, r := range runs {
				a.Free(r)
			}
			return nil
		}
		take := min(n, longest)
		start := a.findRun(take, large)
		a.set(start, start+uint64(take))
		runs = append(runs, format.MakeRun(start, take))
		n -= take
	}
	return append(make([]format.Run, 0, len(runs)), runs...) // the index keeps it
}

// findRun finds n free blocks. Preconditions: 0 < n <= LongestRun.
func (a *Allocator) findRun(n int, fromTop bool) uint64 {
	g := uint64(0)
	for l := len(a.longest) - 2; l >= 0; l-- {
		level, first := a.longest[l], g*fanOut
		if !fromTop {
			for g = first; int(level[g]) < n; {
				g++
			}
			continue
		}
		for g = min(first+fanOut, uint64(len(level))) - 1; int(level[g]) < n; {
			g--
		}
	}
	from, end := g*groupBlocks, (g+1)*groupBlocks
	for {
		start := a.nextFree(from, end)
		if start == end {
			panic("drive: the allocator knows of a free run that is not there")
		}
		from = a.nextUsed(start, min(end, start+uint64(n)))
		if from-start == uint64(n) {
			return start
		}
	}
}

// Free gives a run back. It panics when a part of it is free already: that would be broken reasoning, and data at risk.
func (a *Allocator) Free(r format.Run) {
	start, end := r.Start(), r.Start()+uint64(r.Blocks())
	if end > a.blocks || a.nextFree(start, end) != end {
		panic("drive: a free block is freed again")
	}
	for b := start; b < end; {
		g := b / groupBlocks
		stop := min(end, (g+1)*groupBlocks)
		for from := b; b < stop; b = from {
			from = min(stop, (b/64+1)*64)
			a.words[b/64] &^= mask(b, from)
		}
		if now := a.runAround(stop - 1); now > int(a.longest[0][g]) {
			a.setLongest(g, now)
		}
	}
	a.free += end - start
}

// Hold keeps a free run from being given out until Release; FreeBlocks counts it as free. It may be of any length.
// Preconditions: all of it is free, and not held.
func (a *Allocator) Hold(r format.Run) {
	if !a.Mark(r) {
		panic("drive: a used block is held")
	}
	a.free += uint64(r.Blocks())
}

// Release ends a Hold.
func (a *Allocator) Release(r format.Run) {
	a.Free(r)
	a.free -= uint64(r.Blocks())
}

// set marks blocks as used. Preconditions: all are free.
func (a *Allocator) set(start, end uint64) {
	for b := start; b < end; {
		g := b / groupBlocks
		stop, around := min(end, (g+1)*groupBlocks), a.runAround(b)
		a.setBits(b, stop)
		b = stop
		if around == int(a.longest[0][g]) { // it was the longest, or one of the longest
			a.setLongest(g, longestRun(a.words[g*groupWords:(g+1)*groupWords], around))
		}
	}
	a.free -= end - start
}

// mask has the bits of blocks from to end. Preconditions: from < end, in one word.
func mask(from, end uint64) uint64 { return ^uint64(0) >> (64 - (end - from)) << (from % 64) }

// runAround gives the length of the free run of a free block within its group.
func (a *Allocator) runAround(b uint64) int {
	low, high := b&^(groupBlocks-1), b&^(groupBlocks-1)+groupBlocks
	start := b&^63 + 64 // just above b's word; what of it lies above b is passed over as if free
	w := a.words[b/64] & (1<<(b%64) - 1)
	for w == 0 && start-64 > low {
		start -= 64
		w = a.words[start/64-1]
	}
	start -= uint64(bits.LeadingZeros64(w))
	return int(a.nextUsed(b, high) - start)
}

// setLongest notes the longest free run of a group, and the maxima above.
func (a *Allocator) setLongest(i uint64, n int) {
	for l, level := range a.longest {
		old := level[i]
		level[i] = uint16(n)
		if old == uint16(n) || l+1 == len(a.longest) {
			return
		}
		first := i / fanOut * fanOut
		i /= fanOut
		if above := a.longest[l+1][i]; n < int(above) {
			if old < above {
				return
			}
			for _, v := range level[first:min(first+fanOut, uint64(len(level)))] {
				n = max(n, int(v))
			}
		}
	}
}

// longestRun gives the longest run of zeros; it is at most bound.
func longestRun(words []uint64, bound int) int {
	best, run := 0, 0
	for _, w := range words {
		if w == 0 {
			run += 64
			continue
		}
		best = max(best, run+bits.TrailingZeros64(w))
		run = bits.LeadingZeros64(w)
		if n := 0; bits.OnesCount64(^w) > best { // perhaps a longer one within the word
			for f := ^w; f != 0; f &= f << 1 {
				n++
			}
			best = max(best, n)
		}
		if best >= bound {
			return bound
		}
	}
	return max(best, run)
}

// nextFree gives the first free block of [from, end), or end.
func (a *Allocator) nextFree(from, end uint64) uint64 { return a.next(from, end, 0) }

// nextUsed gives the first used block of [from, end), or end.
func (a *Allocator) nextUsed(from, end uint64) uint64 { return a.next(from, end, ^uint64(0)) }

// next finds the first bit that is set once the words are XORed with the complement of want.
func (a *Allocator) next(from, end, want uint64) uint64 {
	for from < end {
		w := (a.words[from/64] ^ ^want) >> (from % 64)
		if w != 0 {
			return min(end, from+uint64(bits.TrailingZeros64(w)))
		}
		from = (from/64 + 1) * 64
	}
	return end
}

// MemoryBytesWhenFull tells what allocator and index take when the area is full of strips of 128 KiB: measured, 37 to 43 bytes
// a strip (TestMemory).
func MemoryBytesWhenFull(blocks uint64) uint64 {
	const bytesPerStrip, blocksPerStrip = 43, 32
	return MemoryBytes(blocks) + blocks/blocksPerStrip*bytesPerStrip
}
