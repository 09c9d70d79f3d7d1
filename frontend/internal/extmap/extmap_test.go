package extmap

import (
	"math/rand/v2"
	"testing"

	"github.com/crakefs/crake/wire"
)

const (
	testBlocks = 64
	bs         = wire.BlockSize
)

// tag of a block in the model: which location and block it is, and how many of its bytes count. 0 is a hole.
type tag struct {
	loc   uint64
	block uint32
	bytes uint64
}

func loc(n uint64) wire.Location {
	return wire.Location{Kind: wire.LocStripe, K: 2, M: 1, ID: wire.MakeStripID(1, wire.ClassData, 0, n, 0, n), Blocks: 1 << 20,
		Drives: []wire.DriveID{1, 2, 3}}
}

func check(t *testing.T, m *Map, want []tag) {
	t.Helper()
	for trial := range 20 {
		off, n := uint64(0), uint64(testBlocks*bs)
		if trial > 0 {
			off = rand.Uint64N(testBlocks * bs)
			n = 1 + rand.Uint64N(testBlocks*bs-off)
		}
		at := off
		for _, p := range m.Plan(off, n) {
			if p.Off != at || p.Len == 0 {
				t.Fatalf("piece at %d of %d, want it at %d", p.Off, p.Len, at)
			}
			at += p.Len
			for b := p.Off / bs; b <= (p.Off+p.Len-1)/bs; b++ {
				from, to := max(p.Off, b*bs)-b*bs, min(p.Off+p.Len, (b+1)*bs)-b*bs
				w := want[b]
				if p.Hole {
					if from < w.bytes {
						t.Fatalf("block %d: hole from %d, but %d bytes are there", b, from, w.bytes)
					}
					continue
				}
				i := int(b - (p.Off-uint64(p.Skip))/bs)
				if p.Want.Loc.ID.Number() != w.loc || uint32(p.Want.Block+i) != w.block || to > w.bytes ||
					p.Want.Sums[i] != w.loc<<32|uint64(w.block) {
					t.Fatalf("block %d is %v/%d, want %+v", b, p.Want.Loc.ID, p.Want.Block+i, w)
				}
			}
		}
		if at != off+n {
			t.Fatalf("plan ends at %d, want %d", at, off+n)
		}
	}
}

// Claim: writes and punches applied to a map give what the same would give in an array of blocks, and holes are told as
// holes to the byte.
func TestModel(t *testing.T) {
	for range 300 {
		m, err := New(&wire.ExtentsResp{})
		if err != nil {
			t.Fatal(err)
		}
		want := make([]tag, testBlocks)
		for step := uint64(1); step < 30; step++ {
			first := rand.IntN(testBlocks)
			count := 1 + rand.IntN(testBlocks-first)
			if rand.IntN(4) == 0 {
				m = m.Without(uint64(first)*bs, uint64(count)*bs)
				clear(want[first : first+count])
				check(t, m, want)
				continue
			}
			var w wire.ExtentsResp
			for at := first; at < first+count; { // a write may come back as several extents
				n := 1 + rand.IntN(first+count-at)
				short := uint64(0)
				if at+n == first+count {
					short = rand.Uint64N(bs)
				}
				number := step*100 + uint64(at)
				e := wire.Extent{FileOff: uint64(at) * bs, Len: uint64(n)*bs - short, Loc: uint32(len(w.Locations)), Block: uint32(rand.IntN(100))}
				w.Locations = append(w.Locations, loc(number))
				for i := range n {
					want[at+i] = tag{number, e.Block + uint32(i), bs}
					e.Sums = append(e.Sums, number<<32|uint64(e.Block+uint32(i)))
				}
				want[at+n-1].bytes -= short
				w.Extents = append(w.Extents, e)
				at += n
			}
			wm, err := New(&w)
			if err != nil {
				t.Fatal(err)
			}
			m = m.With(wm)
			check(t, m, want)
			again, err := New(&wire.ExtentsResp{Locations: m.locs, Extents: m.exts})
			if err != nil || again.Cost() <= 0 {
				t.Fatal(err)
			}
			if len(m.locs) > testBlocks {
				t.Fatalf("%d locations for %d blocks", len(m.locs), testBlocks)
			}
		}
	}
}

// Claim: an answer that makes no sense is an error and never a panic or a wrong plan.
func TestRefused(t *testing.T) {
	ok := func() *wire.ExtentsResp {
		return &wire.ExtentsResp{Locations: []wire.Location{loc(1)}, Extents: []wire.Extent{
			{FileOff: 0, Len: bs, Sums: []uint64{1}}, {FileOff: 2 * bs, Len: 5, Block: 3, Sums: []uint64{2}}}}
	}
	if _, err := New(ok()); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*wire.ExtentsResp){
		"unaligned": func(r *wire.ExtentsResp) { r.Extents[0].FileOff = 1 },
		"empty":     func(r *wire.ExtentsResp) { r.Extents[0].Len = 0 },
		"giant":     func(r *wire.ExtentsResp) { r.Extents[1].Len = 1 << 60 },
		"far":       func(r *wire.ExtentsResp) { r.Extents[1].FileOff = 1<<64 - bs },
		"overlap":   func(r *wire.ExtentsResp) { r.Extents[1].FileOff = 0 },
		"order":     func(r *wire.ExtentsResp) { r.Extents[0].FileOff = 8 * bs },
		"location":  func(r *wire.ExtentsResp) { r.Extents[0].Loc = 1 },
		"sums":      func(r *wire.ExtentsResp) { r.Extents[0].Sums = nil },
		"stripe":    func(r *wire.ExtentsResp) { r.Locations[0].Blocks = 2 },
		"kind":      func(r *wire.ExtentsResp) { r.Locations[0].Kind = 9 },
		"drives":    func(r *wire.ExtentsResp) { r.Locations[0].Drives = nil },
		"inline":    func(r *wire.ExtentsResp) { r.HasInline, r.Inline = true, make([]byte, wire.MaxInlineBytes+1) },
	} {
		r := ok()
		spoil(r)
		if _, err := New(r); wire.KindOf(err) != wire.KindCorrupt {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Claim: a small file in its inode reads as its bytes, then zeros; what a write makes of it is asked again.
func TestInline(t *testing.T) {
	m, err := New(&wire.ExtentsResp{HasInline: true, Inline: []byte("hello")})
	if err != nil {
		t.Fatal(err)
	}
	p := m.Plan(1, 9)
	if len(p) != 2 || string(p[0].Inline) != "ello" || !p[1].Hole || p[1].Off != 5 || p[1].Len != 5 {
		t.Errorf("plan %+v", p)
	}
	if m.With(&Map{}) != nil || m.Without(0, bs) != nil {
		t.Error("an inline file was changed in place")
	}
	if at, ok := m.Seek(0, 100, true); !ok || at != 5 {
		t.Errorf("hole at %d", at)
	}
}
