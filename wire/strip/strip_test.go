package strip

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/crakefs/crake/wire"
)

// subsets calls f with every subset of [0,n) of at most max elements.
func subsets(n, max int, f func(s []int)) {
	for bits := range 1 << n {
		var s []int
		for i := range n {
			if bits>>i&1 == 1 {
				s = append(s, i)
			}
		}
		if len(s) <= max {
			f(s)
		}
	}
}

// TestEveryLoss reads stripes of several shapes with every combination of up to m strips gone or drives down.
func TestEveryLoss(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	f := newDrives(t)
	for _, c := range []struct{ k, m, n int }{{4, 2, 128}, {4, 2, 1}, {4, 2, 6}, {2, 2, 33}, {1, 1, 5}, {5, 3, 23}, {3, 0, 7}} {
		loc, all, sums := f.stripe(rng, c.k, c.m, c.n, 1)
		subsets(c.k+c.m, c.m, func(lost []int) {
			how := rng.IntN(3)
			saved := map[int][]byte{}
			for _, p := range lost {
				d := loc.Drives[p]
				switch {
				case d == 0:
				case how == 0 || how == 2 && rng.IntN(2) == 0:
					f.down[d] = true
				default:
					saved[p] = f.strip[d][loc.ID.WithPos(p)]
					delete(f.strip[d], loc.ID.WithPos(p))
				}
			}
			r := f.reader(Config{})
			if rng.IntN(2) == 0 {
				r = f.reader(Config{Up: f.up})
			}
			expect(t, r, loc, 0, c.n, all, sums)
			at := rng.IntN(c.n)
			expect(t, r, loc, at, 1+rng.IntN(c.n-at), all, sums)
			clear(f.down)
			for p, b := range saved {
				f.strip[loc.Drives[p]][loc.ID.WithPos(p)] = b
			}
		})
	}
}

// TestWholeStripeDegraded: the rows that are wanted anyway serve as helpers; only the lost strip costs a further one.
func TestWholeStripeDegraded(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	f := newDrives(t)
	loc, all, sums := f.stripe(rng, 4, 2, 128, 1)
	f.down[2] = true
	expect(t, f.reader(Config{Up: f.up}), loc, 0, 128, all, sums)
	total := 0
	for _, n := range f.asked {
		total += n
	}
	if total != 4 {
		t.Errorf("%d ranges asked for, want 4: %v", total, f.asked)
	}
}

func TestSegment(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	f := newDrives(t)
	loc, all, sums := f.segment(rng, 3, 700, 1)
	subsets(3, 2, func(lost []int) {
		for _, p := range lost {
			f.down[loc.Drives[p]] = true
		}
		expect(t, f.reader(Config{Up: f.up}), loc, 0, 700, all, sums)
		expect(t, f.reader(Config{}), loc, 17, 300, all, sums)
		clear(f.down)
	})
	// One replica wrong in one block each: every block is right somewhere.
	for p := range 3 {
		f.strip[loc.Drives[p]][loc.ID.WithPos(p)][(100+p)*wire.BlockSize] ^= 1
	}
	var mu sync.Mutex
	bad := map[wire.StripID]wire.Kind{}
	r := f.reader(Config{Report: func(b Bad) { mu.Lock(); bad[b.ID] = b.Kind; mu.Unlock() }})
	expect(t, r, loc, 0, 700, all, sums)
	if len(bad) != 3 {
		t.Errorf("reported %v, want all three replicas", bad)
	}
}

// TestManyWants: many ranges of many stripes in one read, more than one request holds, in the order asked for.
func TestManyWants(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	f := newDrives(t)
	f.odd = true
	loc, all, sums := f.stripe(rng, 4, 2, 128, 1)
	seg, segAll, segSums := f.segment(rng, 3, 50, 2)
	f.down[3] = true
	var wants []Want
	var expected [][]byte
	for i := range 700 {
		if i%7 == 0 {
			at := rng.IntN(50)
			wants = append(wants, Want{Loc: seg, Block: at, Blocks: 1, Sums: segSums[at : at+1]})
			expected = append(expected, segAll[at*wire.BlockSize:(at+1)*wire.BlockSize])
			continue
		}
		at := rng.IntN(128)
		n := 1 + rng.IntN(min(3, 128-at))
		wants = append(wants, Want{Loc: loc, Block: at, Blocks: n, Sums: sums[at : at+n]})
		expected = append(expected, all[at*wire.BlockSize:(at+n)*wire.BlockSize])
	}
	ds, err := f.reader(Config{}).Read(context.Background(), wants)
	if err != nil {
		t.Fatal(err)
	}
	for i, d := range ds {
		if string(flat(d)) != string(expected[i]) {
			t.Fatalf("want %d: wrong bytes", i)
		}
		d.Release()
	}
}

func TestCorruptWanted(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 10))
	f := newDrives(t)
	loc, all, sums := f.stripe(rng, 4, 2, 100, 1)
	f.strip[1][loc.ID.WithPos(0)][5*wire.BlockSize+9] ^= 4
	var bad []Bad
	r := f.reader(Config{Report: func(b Bad) { bad = append(bad, b) }})
	for range 3 {
		expect(t, r, loc, 0, 100, all, sums)
	}
	if len(bad) != 1 || bad[0].Drive != 1 || bad[0].Kind != wire.KindCorrupt || bad[0].ID != loc.ID.WithPos(0) {
		t.Fatalf("reported %+v, want drive 1 once", bad)
	}
}

// TestCorruptHelper: one strip is gone and a helper lies (in rows where nobody has a checksum for it). It is found,
// named, and the answer is right, as long as k honest strips are left.
func TestCorruptHelper(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 12))
	for liar := range 6 {
		for lost := range 4 {
			if liar == lost {
				continue
			}
			f := newDrives(t)
			loc, all, sums := f.stripe(rng, 4, 2, 128, 1)
			delete(f.strip[loc.Drives[lost]], loc.ID.WithPos(lost))
			f.strip[loc.Drives[liar]][loc.ID.WithPos(liar)][3*wire.BlockSize] ^= 0x80
			named := false
			r := f.reader(Config{Report: func(b Bad) {
				if b.Kind == wire.KindCorrupt {
					if b.ID != loc.ID.WithPos(liar) {
						t.Errorf("lost %d, liar %d: blamed %v", lost, liar, b.ID)
					}
					named = true
				}
			}})
			expect(t, r, loc, lost*32, 32, all, sums)
			if used := f.asked[loc.Drives[liar]] > 0; used && !named && liar != 5 {
				t.Errorf("lost %d, liar %d: not named", lost, liar)
			}
		}
	}
}

// TestRowsApart: three strips of a 4+2 stripe have a bad block each, in different rows; every block can be rebuilt.
func TestRowsApart(t *testing.T) {
	rng := rand.New(rand.NewPCG(13, 14))
	f := newDrives(t)
	loc, all, sums := f.stripe(rng, 4, 2, 128, 1)
	for p := range 6 {
		f.strip[loc.Drives[p]][loc.ID.WithPos(p)][p*wire.BlockSize] ^= 1
	}
	expect(t, f.reader(Config{}), loc, 0, 128, all, sums)
	expect(t, f.reader(Config{}), loc, 0, 3, all, sums)
}

func TestHedge(t *testing.T) {
	rng := rand.New(rand.NewPCG(15, 16))
	f := newDrives(t)
	loc, all, sums := f.stripe(rng, 4, 2, 128, 1)
	seg, segAll, segSums := f.segment(rng, 3, 10, 1)
	for _, d := range []wire.DriveID{2, 5} { // a wanted strip and a helper
		f.slow[d] = time.Minute
	}
	start := time.Now()
	r := f.reader(Config{HedgeDelay: 10 * time.Millisecond})
	expect(t, r, loc, 0, 128, all, sums)
	for i := range 10 {
		expect(t, r, seg, i, 1, segAll, segSums)
	}
	if d := time.Since(start); d > 20*time.Second {
		t.Errorf("took %v", d)
	}
	// Nobody else can help: the slow drive is waited for.
	f.slow[2] = 50 * time.Millisecond
	delete(f.slow, 5)
	f.down[1], f.down[4] = true, true
	expect(t, r, loc, 0, 128, all, sums)
}

// TestGone: the stripe was deleted, wholly or so far that it cannot be read; also when a drive is down.
func TestGone(t *testing.T) {
	rng := rand.New(rand.NewPCG(17, 18))
	f := newDrives(t)
	reported := 0
	r := f.reader(Config{Up: f.up, Report: func(Bad) { reported++ }})
	loc, _, sums := f.stripe(rng, 4, 2, 128, 1)
	seg, _, segSums := f.segment(rng, 3, 10, 1)
	f.down[2] = true
	for d := range f.strip {
		if d != 4 {
			clear(f.strip[d])
		}
	}
	expectKind(t, r, Want{Loc: loc, Blocks: 128, Sums: sums}, wire.KindNotFound)
	clear(f.strip[4])
	expectKind(t, r, Want{Loc: loc, Blocks: 128, Sums: sums}, wire.KindNotFound)
	expectKind(t, r, Want{Loc: loc, Block: 40, Blocks: 1, Sums: sums[40:41]}, wire.KindNotFound)
	expectKind(t, r, Want{Loc: seg, Blocks: 10, Sums: segSums}, wire.KindNotFound)
	if reported != 0 {
		t.Errorf("%d reports for what was deleted", reported)
	}
}

func TestTooFew(t *testing.T) {
	rng := rand.New(rand.NewPCG(19, 20))
	f := newDrives(t)
	r := f.reader(Config{Up: f.up})
	loc, _, sums := f.stripe(rng, 4, 2, 128, 1)
	seg, _, segSums := f.segment(rng, 3, 10, 1)
	f.down[1], f.down[2], f.down[3] = true, true, true
	expectKind(t, r, Want{Loc: loc, Blocks: 128, Sums: sums}, wire.KindUnavailable)
	expectKind(t, r, Want{Loc: seg, Blocks: 10, Sums: segSums}, wire.KindUnavailable)
	clear(f.down)
	for p := range 3 {
		f.strip[loc.Drives[p]][loc.ID.WithPos(p)][0] ^= 1
		f.strip[seg.Drives[p]][seg.ID.WithPos(p)][0] ^= 1
	}
	expectKind(t, r, Want{Loc: loc, Blocks: 128, Sums: sums}, wire.KindCorrupt)
	expectKind(t, r, Want{Loc: seg, Blocks: 10, Sums: segSums}, wire.KindCorrupt)
	wrong := append([]uint64(nil), sums...)
	wrong[100]++ // row 4 of strip 3: nothing is wrong with the strips
	expectKind(t, r, Want{Loc: loc, Block: 100, Blocks: 1, Sums: wrong[100:101]}, wire.KindCorrupt)
	f.down[6] = true
	expectKind(t, r, Want{Loc: loc, Block: 0, Blocks: 1, Sums: sums[:1]}, wire.KindUnavailable)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	for d := wire.DriveID(1); d < 7; d++ {
		f.slow[d] = time.Minute
	}
	if _, err := r.Read(ctx, []Want{{Loc: loc, Block: 50, Blocks: 1, Sums: sums[50:51]}}); wire.KindOf(err) != wire.KindTimeout {
		t.Fatalf("got %v, want a timeout", err)
	}
}

func TestInvalid(t *testing.T) {
	rng := rand.New(rand.NewPCG(21, 22))
	f := newDrives(t)
	r := f.reader(Config{})
	loc, _, sums := f.stripe(rng, 4, 2, 128, 1)
	short := *loc
	short.Drives = short.Drives[:5]
	huge := *loc
	huge.Blocks = 1 << 31
	odd := *loc
	odd.Kind = 9
	none := *loc
	none.K = 0
	for i, w := range []Want{
		{}, {Loc: loc}, {Loc: loc, Blocks: 2, Sums: sums[:1]}, {Loc: loc, Block: 128, Blocks: 1, Sums: sums[:1]},
		{Loc: loc, Block: -1, Blocks: 1, Sums: sums[:1]}, {Loc: &short, Blocks: 1, Sums: sums[:1]},
		{Loc: &huge, Blocks: 1, Sums: sums[:1]}, {Loc: &odd, Blocks: 1, Sums: sums[:1]}, {Loc: &none, Blocks: 1, Sums: sums[:1]},
	} {
		if _, err := r.Read(context.Background(), []Want{w}); wire.KindOf(err) != wire.KindInvalid {
			t.Errorf("want %d: %v", i, err)
		}
	}
	if _, err := NewCodecs().Encode(context.Background(), f.arena, 4, 2, nil, nil); wire.KindOf(err) != wire.KindInvalid {
		t.Errorf("an empty stripe: %v", err)
	}
}

func BenchmarkRead4K(b *testing.B) {
	f := newDrives(&testing.T{})
	loc, _, sums := f.stripe(rand.New(rand.NewPCG(1, 1)), 4, 2, 128, 1)
	r := f.reader(Config{})
	b.ReportAllocs()
	for b.Loop() {
		ds, err := r.Read(context.Background(), []Want{{Loc: loc, Block: 9, Blocks: 1, Sums: sums[9:10]}})
		if err != nil {
			b.Fatal(err)
		}
		ds[0].Release()
	}
}

func BenchmarkEncode512K(b *testing.B) {
	f := newDrives(&testing.T{})
	d, sums := f.data(rand.New(rand.NewPCG(1, 1)), 128)
	c := NewCodecs()
	b.SetBytes(512 << 10)
	for b.Loop() {
		s, err := c.Encode(context.Background(), f.arena, 4, 2, d, sums)
		if err != nil {
			b.Fatal(err)
		}
		Release(s)
	}
}
