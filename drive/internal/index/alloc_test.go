package index

import (
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/crakefs/crake/drive/internal/format"
)

// plain is an allocator as anybody would write it, for comparison.
type plain struct{ used []bool }

// longest gives the longest free run that does not cross a group.
func (p *plain) longest() int {
	best, run := 0, 0
	for b, used := range p.used {
		if b%groupBlocks == 0 {
			run = 0
		}
		if run++; used {
			run = 0
		}
		best = max(best, run)
	}
	return best
}

func (p *plain) set(runs []format.Run, used bool) bool {
	for _, r := range runs {
		for b := r.Start(); b < r.Start()+uint64(r.Blocks()); b++ {
			if b >= uint64(len(p.used)) || p.used[b] == used {
				return false
			}
			p.used[b] = used
		}
	}
	return true
}

// TestAllocator compares with a plain list of blocks: no block is given twice, none is lost, none outside; room is found
// exactly when there is some, in as few runs as can be; and the longest free run is known exactly.
func TestAllocator(t *testing.T) {
	for _, blocks := range []uint64{1, 63, 64, 100, 4095, 4096, 4097, 3*4096 + 77, 70 * 4096} {
		rng := rand.New(rand.NewPCG(blocks, 1))
		a, p := NewAllocator(blocks), &plain{used: make([]bool, blocks)}
		var held []format.Run
		free := int(blocks)
		steps := 6000
		if blocks > 20000 {
			steps = 300 // the plain one is slow
		}
		for range steps {
			if rng.IntN(5) < 3 || len(held) == 0 {
				n, maxRuns := 1+rng.IntN(min(int(blocks), 300)), 1+rng.IntN(255)
				if rng.IntN(20) == 0 {
					n = 1 + rng.IntN(int(blocks))
				}
				longest := p.longest()
				runs := a.Alloc(n, maxRuns)
				if runs == nil {
					if n <= longest || n <= free && n <= maxRuns {
						t.Fatalf("%d blocks: %d are free, %d in one run; %d are not found", blocks, free, longest, n)
					}
					continue
				}
				if format.RunsBlocks(runs) != n || len(runs) > maxRuns || n <= longest && len(runs) > 1 || !p.set(runs, true) {
					t.Fatalf("%d blocks, the longest free run %d: asked for %d, got %v", blocks, longest, n, runs)
				}
				free -= n
				held = append(held, runs...)
			} else { // a part of a run, as the end of a segment, or all
				i := rng.IntN(len(held))
				r := held[i]
				if held[i] = held[len(held)-1]; r.Blocks() > 1 && rng.IntN(3) == 0 {
					keep := 1 + rng.IntN(r.Blocks()-1)
					held[i] = format.MakeRun(r.Start(), keep)
					r = format.MakeRun(r.Start()+uint64(keep), r.Blocks()-keep)
				} else {
					held = held[:len(held)-1]
				}
				a.Free(r)
				p.set([]format.Run{r}, false)
				free += r.Blocks()
			}
			if a.FreeBlocks() != uint64(free) || a.LongestRun() != p.longest() {
				t.Fatalf("%d blocks: %d free, %d in one run; want %d, %d", blocks, a.FreeBlocks(), a.LongestRun(), free, p.longest())
			}
		}
	}
}

// TestAllocatorTree: the maxima over the groups are exact at every level, which TestAllocator's areas are too small for.
func TestAllocatorTree(t *testing.T) {
	const groups = 2*fanOut*fanOut + 100
	rng := rand.New(rand.NewPCG(1, 1))
	a := NewAllocator(groups * groupBlocks)
	full := make([]bool, groups)
	fill := func(g uint64) {
		if full[g] = !full[g]; full[g] {
			if !a.Mark(format.MakeRun(g*groupBlocks+100, groupBlocks-200)) {
				t.Fatalf("group %d is not free", g)
			}
			return
		}
		a.Free(format.MakeRun(g*groupBlocks+100, groupBlocks-200))
	}
	for g := range uint64(groups) {
		fill(g)
	}
	for range 20000 {
		if rng.IntN(50) == 0 { // all full
			for g := range uint64(groups) {
				if !full[g] {
					fill(g)
				}
			}
		} else {
			fill(rng.Uint64N(groups))
		}
		want := 100
		if slices.Contains(full, false) {
			want = groupBlocks
		}
		if a.LongestRun() != want {
			t.Fatalf("longest %d, want %d", a.LongestRun(), want)
		}
		runs := a.Alloc(want, 1)
		if len(runs) != 1 || full[runs[0].Start()/groupBlocks] == (want == groupBlocks) {
			t.Fatalf("a run of %d: %v", want, runs)
		}
		a.Free(runs[0])
	}
}

// TestAllocatorMark: marking what is taken is refused, and freeing what is free panics.
func TestAllocatorMark(t *testing.T) {
	a := NewAllocator(10000)
	if !a.Mark(format.MakeRun(4000, 200)) || a.Mark(format.MakeRun(4199, 5)) || a.Mark(format.MakeRun(9999, 2)) || !a.Mark(format.MakeRun(9999, 1)) {
		t.Error("Mark")
	}
	if a.FreeBlocks() != 10000-201 {
		t.Errorf("%d free", a.FreeBlocks())
	}
	defer func() {
		if recover() == nil {
			t.Error("a double free went unseen")
		}
	}()
	a.Free(format.MakeRun(4199, 2))
}

// TestAllocatorFootprint: a device with little on it, but much coming and going, touches little of its space.
func TestAllocatorFootprint(t *testing.T) {
	a := NewAllocator(1 << 20)
	var held []format.Run
	top := uint64(0)
	for range 200000 {
		r := a.Alloc(32, 1)[0]
		top = max(top, r.Start()+32)
		if held = append(held, r); len(held) == 1000 { // 32,000 blocks live
			for _, r := range held[:500] {
				a.Free(r)
			}
			held = append(held[:0], held[500:]...)
		}
	}
	if top > 33000 {
		t.Errorf("32,000 blocks are held at most, and %d were touched", top)
	}
}

// TestAllocatorBounded: Alloc runs under the store's lock, so its time is bounded on a device of whatever size and state. 1 TiB
// of which every second block is free is the worst; CRAKE_ALLOC_TIB makes it larger.
func TestAllocatorBounded(t *testing.T) {
	tib := uint64(1)
	if s := os.Getenv("CRAKE_ALLOC_TIB"); s != "" {
		n, err := strconv.ParseUint(s, 10, 8)
		if err != nil {
			t.Fatal(err)
		}
		tib = n
	}
	a := NewAllocator(tib << 28)
	for i := range a.words {
		a.words[i] = 0x5555555555555555
	}
	for _, level := range a.longest {
		for i := range level {
			level[i] = 1
		}
	}
	a.free = a.blocks / 2
	fastest := func(f func()) time.Duration { // of several: others use this machine too
		best := time.Hour
		for range 20 {
			began := time.Now()
			f()
			best = min(best, time.Since(began))
		}
		return best
	}
	var last []format.Run
	for _, c := range []struct {
		blocks int
		runs   int
		limit  time.Duration
	}{{1, 1, 100 * time.Microsecond}, {32, 32, time.Millisecond}, {255, 255, 5 * time.Millisecond}, {256, 0, 10 * time.Microsecond}, {4096, 0, 10 * time.Microsecond}} {
		d := fastest(func() {
			if last = a.Alloc(c.blocks, format.MaxRuns); len(last) != c.runs {
				t.Fatalf("%d blocks in %d runs, want %d", c.blocks, len(last), c.runs)
			}
		})
		t.Logf("%d TiB of splinters: %d blocks in %d runs take %v", tib, c.blocks, c.runs, d)
		if d > c.limit {
			t.Errorf("%d blocks in %d runs take %v, want at most %v", c.blocks, c.runs, d, c.limit)
		}
	}
	if d := fastest(func() {
		for _, r := range last {
			a.Free(r)
		}
		last = nil
	}); d > time.Millisecond {
		t.Errorf("Free takes %v", d)
	}
}

// churn is what a drive sees: strips, mostly whole ones of 128 KiB, and chunks of segments, of which some give back their end
// when they are sealed; six of ten that go are young, the others of any age.
type churn struct {
	rng    *rand.Rand
	a      *Allocator
	live   [][]format.Run
	used   int
	target int

	times                            []time.Duration
	allocs, runs, single             int
	large, largeSingle, refused, ops int
	worst                            int // the least longest run
}

func (c *churn) size() int {
	switch k := c.rng.IntN(100); {
	case k < 50:
		return 32
	case k < 93:
		return 1 + c.rng.IntN(32)
	}
	return 64 << c.rng.IntN(5)
}

func (c *churn) remove() {
	i := c.rng.IntN(len(c.live))
	if c.rng.IntN(10) < 6 {
		i = len(c.live) - 1 - c.rng.IntN(min(len(c.live), 1000))
	}
	for _, r := range c.live[i] {
		c.a.Free(r)
		c.used -= r.Blocks()
	}
	c.live[i] = c.live[len(c.live)-1]
	c.live = c.live[:len(c.live)-1]
	c.ops++
}

func (c *churn) put(n int, count bool) {
	began := time.Now()
	runs := c.a.Alloc(n, format.MaxRuns)
	took := time.Since(began)
	c.ops++
	if runs == nil {
		c.refused++
		return
	}
	c.used += n
	if count {
		c.times = append(c.times, took)
		c.allocs++
		c.runs += len(runs)
		if n >= largeBlocks {
			c.large++
		}
		if len(runs) == 1 {
			c.single++
			if n >= largeBlocks {
				c.largeSingle++
			}
		}
		c.worst = min(c.worst, c.a.LongestRun())
	}
	if n >= largeBlocks && c.rng.IntN(4) == 0 { // sealed
		keep := 1 + c.rng.IntN(n)
		if keep < n {
			for _, r := range Part(runs, uint64(keep), n-keep, nil) {
				c.a.Free(r)
			}
			runs, c.used = Part(runs, 0, keep, nil), c.used-(n-keep)
		}
	}
	c.live = append(c.live, runs)
}

// TestFragmentation: after many random puts and deletes free space still lies together. CRAKE_ALLOC_OPS sets their number: a run
// with 10000000 takes a minute.
func TestFragmentation(t *testing.T) {
	blocks, ops := 1<<20, 400000
	if s := os.Getenv("CRAKE_ALLOC_OPS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		blocks, ops = 4<<20, n
	}
	for _, c := range []struct {
		percent     int
		worst       int     // least blocks in the longest run
		single      float64 // least share of puts in one run
		largeSingle float64
	}{{50, 4096, 1, 1}, {75, 4096, 1, 1}, {90, 200, 0.985, 0.84}, {97, 24, 0.94, 0.2}} {
		w := &churn{rng: rand.New(rand.NewPCG(1, 2)), a: NewAllocator(uint64(blocks)), target: blocks * c.percent / 100, worst: blocks}
		for warm := false; w.ops < ops; {
			n := w.size()
			for w.used+n > w.target {
				w.remove()
				warm = true
			}
			w.put(n, warm)
		}
		slices.Sort(w.times)
		at := func(share float64) time.Duration { return w.times[int(float64(len(w.times)-1)*share)] }
		single, large := float64(w.single)/float64(w.allocs), float64(w.largeSingle)/float64(w.large)
		t.Logf("%d GiB, %d%% full, %d operations: least longest free run %d blocks; %.4f runs a put, in one run %.2f%% of all and %.1f%% of chunks; "+
			"refused %d; a search takes %v, p99 %v, p99.99 %v, at most %v", blocks>>18, c.percent, ops, w.worst, float64(w.runs)/float64(w.allocs),
			100*single, 100*large, w.refused, at(.5), at(.99), at(.9999), at(1))
		if w.worst < c.worst || single < c.single || large < c.largeSingle || w.refused > 0 {
			t.Errorf("%d%% full: want a longest run of %d, %.2f of all and %.2f of chunks in one run, none refused", c.percent, c.worst, c.single, c.largeSingle)
		}
	}
}

// TestMarkMany: many runs marked at once leave the allocator as Mark does one by one, in any order; a run that overlaps is refused.
func TestMarkMany(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		blocks := uint64(1 + rng.IntN(70*groupBlocks))
		one, many := NewAllocator(blocks), NewAllocator(blocks)
		var runs []format.Run
		for range 3000 {
			start := rng.Uint64N(blocks)
			r := format.MakeRun(start, int(min(1+rng.Uint64N(300), blocks-start)))
			if one.Mark(r) {
				runs = append(runs, r)
			}
		}
		rng.Shuffle(len(runs), func(i, j int) { runs[i], runs[j] = runs[j], runs[i] })
		if !many.markMany(slices.Values(runs)) {
			t.Fatal("refused")
		}
		many.measure()
		if !reflect.DeepEqual(one, many) {
			t.Fatalf("seed %d: differs after %d runs of %d blocks", seed, len(runs), blocks)
		}
		if many.markMany(slices.Values(runs[:1])) || many.markMany(slices.Values([]format.Run{format.MakeRun(blocks, 1)})) {
			t.Fatal("a run that is taken, or beyond the end, was not refused")
		}
	}
}
