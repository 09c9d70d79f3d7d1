package index

import (
	"math/bits"

	"github.com/crakefs/crake/drive/internal/format"
)

// Allocator keeps the free blocks of the data area: one bit a block (32 MiB for each TiB), in groups of 4096 blocks with
// the number of free blocks and a bound of the longest free run, so that full and splintered groups are passed by
// without a look at their bits. It searches on from where it last found something: neighbours in time lie side by side.
// A tree of free extents was the alternative: smaller on an empty device, far larger on a splintered one.
//
// Groups are opened one after the other: as long as a quarter of the open ones is free it looks there only. So a device that is
// never full touches little more than it holds, which matters where untouched blocks cost nothing (tmpfs, thin volumes).
//
// Not safe for concurrent use.
type Allocator struct {
	words     []uint64 // a set bit is a used block
	groupFree []uint16
	groupMax  []uint16 // no free run of the group is longer; may be too high
	blocks    uint64
	free      uint64
	cursor    uint64 // block at which the next search starts
	open      uint64 // groups that are searched, from the first
	openFree  uint64 // free blocks in them
}

// groupBlocks is also the longest run that is handed out: runs do not cross groups.
const (
	groupBlocks = 4096
	groupWords  = groupBlocks / 64
	// openShare: another group is opened when less than a fourth of the open ones is free.
	openShare = 4
)

// NewAllocator makes an allocator of a data area in which all blocks are free.
func NewAllocator(blocks uint64) *Allocator {
	groups := (blocks + groupBlocks - 1) / groupBlocks
	a := &Allocator{
		words: make([]uint64, groups*groupWords), groupFree: make([]uint16, groups), groupMax: make([]uint16, groups),
		blocks: blocks, free: blocks,
	}
	for g := range a.groupFree {
		n := min(blocks-uint64(g)*groupBlocks, groupBlocks)
		a.groupFree[g], a.groupMax[g] = uint16(n), uint16(n)
	}
	for b := blocks; b < groups*groupBlocks; b++ { // what the last group has beyond the area
		a.words[b/64] |= 1 << (b % 64)
	}
	return a
}

// FreeBlocks gives the number of free blocks.
func (a *Allocator) FreeBlocks() uint64 { return a.free }

// MemoryBytes tells what the allocator takes for an area of so many blocks.
func MemoryBytes(blocks uint64) uint64 { return blocks/8 + blocks/groupBlocks*4 }

// Mark takes a given run. False, and nothing is changed, when a part of it is taken already.
func (a *Allocator) Mark(r format.Run) bool {
	start, end := r.Start(), r.Start()+uint64(r.Blocks())
	if end > a.blocks || a.nextUsed(start, end) != end {
		return false
	}
	a.openUpTo((end + groupBlocks - 1) / groupBlocks)
	a.set(start, end)
	return true
}

// Free gives a run back. It panics when a part of it is free already: that would be broken reasoning, and data at risk.
func (a *Allocator) Free(r format.Run) {
	start, end := r.Start(), r.Start()+uint64(r.Blocks())
	if end > a.blocks || a.nextFree(start, end) != end {
		panic("drive: a free block is freed again")
	}
	for b := start; b < end; {
		stop := min(end, (b/groupBlocks+1)*groupBlocks)
		g := b / groupBlocks
		a.groupFree[g] += uint16(stop - b)
		a.groupMax[g] = a.groupFree[g] // the longest run is unknown now, but cannot be longer
		for ; b < stop; b++ {
			if b%64 == 0 && stop-b >= 64 {
				a.words[b/64] = 0
				b += 63
				continue
			}
			a.words[b/64] &^= 1 << (b % 64)
		}
	}
	a.free += end - start
	a.openFree += end - start
}

// openUpTo opens groups until there are n. Whatever is used lies in an open group.
func (a *Allocator) openUpTo(n uint64) {
	for ; a.open < n; a.open++ {
		a.openFree += uint64(a.groupFree[a.open])
	}
}

// Alloc takes n blocks in as few runs as it can find quickly, at most maxRuns; nil when there is no such room.
// Preconditions: 0 < n <= 4096.
func (a *Allocator) Alloc(n, maxRuns int) []format.Run {
	if uint64(n) > a.free {
		return nil
	}
	all := uint64(len(a.groupFree))
	for {
		if a.openFree*openShare >= a.open*groupBlocks || a.open == all {
			if start, ok := a.findRun(n); ok {
				a.take(start, n)
				return []format.Run{format.MakeRun(start, n)}
			}
		}
		if a.open == all {
			break
		}
		a.cursor = a.open * groupBlocks
		a.openUpTo(a.open + 1)
	}
	for atLeast := n / 2; atLeast >= 1 && (n+atLeast-1)/atLeast <= maxRuns*2; atLeast /= 2 {
		if runs := a.gather(n, atLeast, maxRuns); runs != nil {
			for _, r := range runs {
				a.take(r.Start(), r.Blocks())
			}
			return runs
		}
	}
	return nil
}

func (a *Allocator) take(start uint64, n int) {
	a.set(start, start+uint64(n))
	a.cursor = start + uint64(n)
}

// findRun finds n free blocks in one of the open groups.
func (a *Allocator) findRun(n int) (uint64, bool) {
	groups := a.open
	if groups == 0 {
		return 0, false
	}
	first := a.cursor / groupBlocks
	for i := range groups + 1 { // the first group a second time, from its start
		g := (first + i) % groups
		if int(a.groupFree[g]) < n || int(a.groupMax[g]) < n {
			continue
		}
		from, end := g*groupBlocks, (g+1)*groupBlocks
		whole := i != 0 || a.cursor <= from
		if !whole {
			from = a.cursor
		}
		longest := 0
		for from < end {
			start := a.nextFree(from, end)
			if start == end {
				break
			}
			from = a.nextUsed(start, min(end, start+uint64(n)))
			if int(from-start) >= n {
				return start, true
			}
			longest = max(longest, int(from-start))
		}
		if whole {
			a.groupMax[g] = uint16(longest)
		}
	}
	return 0, false
}

// gather finds n blocks in runs of at least atLeast (the last may be shorter); nil if that takes more than maxRuns.
func (a *Allocator) gather(n, atLeast, maxRuns int) []format.Run {
	var runs []format.Run
	groups := uint64(len(a.groupFree))
	first := a.cursor / groupBlocks
	for i := range groups {
		g := (first + i) % groups
		if int(a.groupMax[g]) < min(atLeast, n) || a.groupFree[g] == 0 {
			continue
		}
		for from, end := g*groupBlocks, (g+1)*groupBlocks; from < end; {
			start := a.nextFree(from, end)
			if start == end {
				break
			}
			from = a.nextUsed(start, min(end, start+uint64(n)))
			if got := int(from - start); got >= min(atLeast, n) {
				if len(runs) == maxRuns {
					return nil
				}
				runs = append(runs, format.MakeRun(start, got))
				if n -= got; n == 0 {
					return runs
				}
			}
		}
	}
	return nil
}

// set marks blocks as used. Preconditions: all are free.
func (a *Allocator) set(start, end uint64) {
	for b := start; b < end; {
		stop := min(end, (b/groupBlocks+1)*groupBlocks)
		a.groupFree[b/groupBlocks] -= uint16(stop - b)
		for ; b < stop; b++ {
			if b%64 == 0 && stop-b >= 64 {
				a.words[b/64] = ^uint64(0)
				b += 63
				continue
			}
			a.words[b/64] |= 1 << (b % 64)
		}
	}
	a.free -= end - start
	a.openFree -= end - start
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

// MemoryBytesWhenFull tells what allocator and index take when the area is full of strips of 128 KiB: measured, 60 bytes a
// strip.
func MemoryBytesWhenFull(blocks uint64) uint64 {
	const bytesPerStrip, blocksPerStrip = 60, 32
	return MemoryBytes(blocks) + blocks/blocksPerStrip*bytesPerStrip
}
