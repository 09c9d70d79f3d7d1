package index

import (
	"math/bits"

	"github.com/crakefs/crake/drive/internal/format"
)

// Freed remembers where blocks have become free that the device has not been told of: a bit for each unit of blocks, so that
// its memory is bounded (a bit a MiB: 2 MiB for 16 TiB) whatever comes and goes. Whether a unit is all free is looked up when its turn
// has come: most of what becomes free is used again soon, and then nothing need be said.
//
// Not safe for concurrent use.
type Freed struct {
	words  []uint64 // a set bit is a unit of which something has become free
	unit   uint64   // blocks
	blocks uint64   // of the area
	next   uint64   // unit at which the search goes on
}

// freedLooks bounds the units or words that one Next looks at: some 50 microseconds.
const freedLooks = 4096

// NewFreed makes a Freed in which every unit has become free: nobody knows what the device was told by an earlier process.
// Preconditions: unit > 0.
func NewFreed(blocks uint64, unit int) *Freed {
	f := &Freed{unit: uint64(unit), blocks: blocks}
	units := (blocks + f.unit - 1) / f.unit
	f.words = make([]uint64, (units+63)/64)
	for u := range units {
		f.words[u/64] |= 1 << (u % 64)
	}
	return f
}

// MemoryBytes gives what it takes.
func (f *Freed) MemoryBytes() uint64 { return uint64(len(f.words)) * 8 }

// Add notes that a run has become free.
func (f *Freed) Add(r format.Run) {
	for u := r.Start() / f.unit; u*f.unit < r.Start()+uint64(r.Blocks()); u++ {
		f.words[u/64] |= 1 << (u % 64)
	}
}

// Next gives the next stretch of units, at most maxUnits, that are all free and of which something has become free, and forgets
// them; and forgets those that are not all free: what is freed there later makes them candidates again. A run of no blocks: it has
// found nothing yet, and at the end of the area done is true; then it begins again.
func (f *Freed) Next(a *Allocator, maxUnits int) (r format.Run, done bool) {
	units := uint64(len(f.words)) * 64
	first, n := uint64(0), 0
	for looks := 0; looks < freedLooks && n < maxUnits; looks++ {
		u := f.next
		if u >= units {
			if n == 0 {
				f.next = 0
			}
			return f.run(first, n), n == 0
		}
		w := f.words[u/64] >> (u % 64)
		if w == 0 {
			if n > 0 {
				break
			}
			f.next = (u/64 + 1) * 64
			continue
		}
		if skip := uint64(bits.TrailingZeros64(w)); skip > 0 {
			if n > 0 {
				break
			}
			f.next = u + skip
			continue
		}
		start := u * f.unit
		end := min(start+f.unit, f.blocks)
		free := a.nextUsed(start, end) == end
		if !free && n > 0 {
			break
		}
		f.words[u/64] &^= 1 << (u % 64)
		f.next = u + 1
		if free {
			if n == 0 {
				first = u
			}
			n++
		}
	}
	return f.run(first, n), false
}

func (f *Freed) run(first uint64, n int) format.Run {
	if n == 0 {
		return 0
	}
	start := first * f.unit
	return format.MakeRun(start, int(min(uint64(n)*f.unit, f.blocks-start)))
}
