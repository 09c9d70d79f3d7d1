package index

import (
	"math/rand/v2"
	"testing"

	"github.com/crakefs/crake/drive/internal/format"
)

// TestFreed compares with a list of blocks: a whole free unit in which something has become free is given once, nothing that is
// used is, and what is held is given to nobody.
func TestFreed(t *testing.T) {
	const unit = 16
	for _, blocks := range []uint64{1, 15, 16, 100, 5000, 3*4096 + 9} {
		rng := rand.New(rand.NewPCG(blocks, 2))
		a, f := NewAllocator(blocks), NewFreed(blocks, unit)
		used, news := make([]bool, blocks), make([]bool, blocks) // news: free, and the device does not know
		for i := range news {
			news[i] = true
		}
		mark := func(r format.Run, u, n bool) {
			for b := r.Start(); b < r.Start()+uint64(r.Blocks()); b++ {
				used[b], news[b] = u, n
			}
		}
		var held []format.Run
		for range 3000 {
			switch k := rng.IntN(10); {
			case k < 4:
				if runs := a.Alloc(1+rng.IntN(min(40, int(blocks))), 1); runs != nil {
					if used[runs[0].Start()] {
						t.Fatal("given twice")
					}
					mark(runs[0], true, false)
					held = append(held, runs[0])
				}
			case k < 8 && len(held) > 0:
				i := rng.IntN(len(held))
				a.Free(held[i])
				f.Add(held[i])
				mark(held[i], false, true)
				held[i] = held[len(held)-1]
				held = held[:len(held)-1]
			case k == 8:
				maxUnits := 1 + rng.IntN(5)
				r, done := f.Next(a, maxUnits)
				if r.Blocks() == 0 {
					_ = done
					continue
				}
				if r.Start()%unit != 0 || r.Blocks() > maxUnits*unit || r.Blocks()%unit != 0 && r.Start()+uint64(r.Blocks()) != blocks {
					t.Fatalf("%d blocks at %d", r.Blocks(), r.Start())
				}
				free := a.FreeBlocks()
				a.Hold(r)
				for b := r.Start(); b < r.Start()+uint64(r.Blocks()); b++ {
					if used[b] || a.Mark(format.MakeRun(b, 1)) {
						t.Fatalf("block %d is used, or can be taken while it is held", b)
					}
				}
				if a.FreeBlocks() != free {
					t.Fatal("what is held is free")
				}
				a.Release(r)
				if a.FreeBlocks() != free {
					t.Fatal("what was held is free")
				}
				mark(r, false, false)
			}
		}
		for done := false; !done; { // all that is left
			var r format.Run
			if r, done = f.Next(a, 3); r.Blocks() > 0 {
				mark(r, false, false)
			}
		}
		for done := false; !done; { // and what lay before the place of the search
			var r format.Run
			if r, done = f.Next(a, 3); r.Blocks() > 0 {
				mark(r, false, false)
			}
		}
		for u := uint64(0); u < blocks; u += unit {
			whole, some := true, false
			for b := u; b < min(u+unit, blocks); b++ {
				whole, some = whole && !used[b], some || news[b]
			}
			if whole && some {
				t.Errorf("%d blocks: the unit at %d is free and was not given", blocks, u)
			}
		}
		if r, done := f.Next(a, 3); r.Blocks() != 0 || !done {
			t.Errorf("given twice: %v", r)
		}
	}
}

// TestFreedBounded: one call looks at a bounded part of the area, and some number of calls get through it.
func TestFreedBounded(t *testing.T) {
	const blocks, unit = 64 << 20, 64 // a million units
	a, f := NewAllocator(blocks), NewFreed(blocks, unit)
	for b := uint64(0); b < blocks; b += unit {
		a.words[b/64] = 1 // one block of each is used
	}
	calls := 1
	for {
		r, done := f.Next(a, 8)
		if r.Blocks() != 0 {
			t.Fatalf("%v is given", r)
		}
		if done {
			break
		}
		calls++
	}
	if want := blocks / unit / freedLooks; calls < want || calls > want+2 {
		t.Errorf("%d calls, want %d", calls, want)
	}
}
