// Package extmap holds what the cluster told about where a region of a file lies. A Map is never changed: an update gives
// a new one, so that readers need no lock.
package extmap

import (
	"slices"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/strip"
)

// Map is the extents of one region of a file.
type Map struct {
	inline    []byte
	hasInline bool
	locs      []wire.Location
	exts      []wire.Extent // in order, not overlapping
}

// Piece is a part of a read: a hole, bytes that are at hand, or blocks on drives.
type Piece struct {
	Off, Len uint64
	Inline   []byte      // when not nil: the bytes
	Hole     bool        // zeros
	Want     *strip.Want // else: these blocks, of which the first Skip bytes are not wanted
	Skip     int
}

// New checks an answer and makes a Map of it. The Map keeps the answer's slices.
func New(r *wire.ExtentsResp) (*Map, error) {
	bad := func(format string, args ...any) error {
		return wire.Errorf("extents.check", wire.KindCorrupt, "", format, args...)
	}
	if r.HasInline {
		if len(r.Inline) > wire.MaxInlineBytes {
			return nil, bad("inline file of %d bytes", len(r.Inline))
		}
		return &Map{hasInline: true, inline: r.Inline}, nil
	}
	for i := range r.Locations {
		l := &r.Locations[i]
		n := int(l.M) + 1
		if l.Kind == wire.LocStripe {
			n = int(l.K) + int(l.M)
		} else if l.Kind != wire.LocSegment {
			return nil, bad("location of kind %d", l.Kind)
		}
		if len(l.Drives) != n {
			return nil, bad("location %v on %d drives, want %d", l.ID, len(l.Drives), n)
		}
	}
	end := uint64(0)
	for i := range r.Extents {
		e := &r.Extents[i]
		switch {
		case e.FileOff%wire.BlockSize != 0 || e.Len == 0 || e.Len > wire.RegionBytes || e.FileOff > wire.MaxFileBytes:
			return nil, bad("extent of %d bytes at %d", e.Len, e.FileOff)
		case e.FileOff < end:
			return nil, bad("extent at %d in the one before, which ends at %d", e.FileOff, end)
		case uint64(e.Loc) >= uint64(len(r.Locations)):
			return nil, bad("extent at %d in location %d of %d", e.FileOff, e.Loc, len(r.Locations))
		case uint64(len(e.Sums)) != blocks(e.Len):
			return nil, bad("extent at %d of %d bytes with %d checksums", e.FileOff, e.Len, len(e.Sums))
		}
		if l := &r.Locations[e.Loc]; l.Kind == wire.LocStripe && uint64(e.Block)+blocks(e.Len) > uint64(l.Blocks) {
			return nil, bad("extent at %d past the end of its stripe", e.FileOff)
		}
		end = e.FileOff + blocks(e.Len)*wire.BlockSize
	}
	return &Map{locs: r.Locations, exts: r.Extents}, nil
}

// Cost gives the memory of the map, roughly.
func (m *Map) Cost() int64 {
	n := 128 + len(m.inline) + len(m.locs)*96 + len(m.exts)*64
	for i := range m.exts {
		n += 8 * len(m.exts[i].Sums)
	}
	return int64(n)
}

// Extents gives the number of extents.
func (m *Map) Extents() int { return len(m.exts) }

// Inline tells whether the file lies in its inode record.
func (m *Map) Inline() bool { return m.hasInline }

// Plan cuts [off, off+n) into pieces, in order, without gaps.
func (m *Map) Plan(off, n uint64) []Piece {
	if m.hasInline {
		return m.planInline(off, n)
	}
	var out []Piece
	end := off + n
	i, _ := slices.BinarySearchFunc(m.exts, off, func(e wire.Extent, off uint64) int {
		if e.FileOff+e.Len <= off {
			return -1
		}
		return 1
	})
	for ; off < end; i++ {
		if i == len(m.exts) || m.exts[i].FileOff >= end {
			return append(out, Piece{Off: off, Len: end - off, Hole: true})
		}
		e := &m.exts[i]
		if e.FileOff > off {
			out = append(out, Piece{Off: off, Len: e.FileOff - off, Hole: true})
			off = e.FileOff
		}
		stop := min(end, e.FileOff+e.Len)
		first := (off - e.FileOff) / wire.BlockSize
		last := (stop - 1 - e.FileOff) / wire.BlockSize
		out = append(out, Piece{Off: off, Len: stop - off, Skip: int((off - e.FileOff) % wire.BlockSize), Want: &strip.Want{
			Loc: &m.locs[e.Loc], Block: int(e.Block) + int(first), Blocks: int(last - first + 1), Sums: e.Sums[first : last+1],
		}})
		off = stop
	}
	return out
}

func (m *Map) planInline(off, n uint64) []Piece {
	var out []Piece
	end, have := off+n, uint64(len(m.inline))
	if off < have {
		stop := min(end, have)
		out = append(out, Piece{Off: off, Len: stop - off, Inline: m.inline[off:stop]})
		off = stop
	}
	if off < end {
		out = append(out, Piece{Off: off, Len: end - off, Hole: true})
	}
	return out
}

// Seek gives the first place with data (or, with hole, without) in [off, end).
func (m *Map) Seek(off, end uint64, hole bool) (at uint64, ok bool) {
	for _, p := range m.Plan(off, end-off) {
		if p.Hole == hole {
			return p.Off, true
		}
	}
	return 0, false
}

// Without gives the map with the whole blocks of [off, off+n) as a hole. It gives nil when that is not for this side to
// know (a file in its inode record).
func (m *Map) Without(off, n uint64) *Map {
	if m.hasInline {
		return nil
	}
	return &Map{locs: m.locs, exts: cut(m.exts, off, off+n)}
}

// With gives the map after a write whose extents are w. It gives nil when that is not for this side to know.
func (m *Map) With(w *Map) *Map {
	if m.hasInline || w.hasInline || len(w.exts) == 0 {
		return nil
	}
	exts := m.exts
	for i := range w.exts {
		e := &w.exts[i]
		exts = cut(exts, e.FileOff, e.FileOff+blocks(e.Len)*wire.BlockSize)
	}
	out := &Map{exts: make([]wire.Extent, 0, len(exts)+len(w.exts))}
	// Only locations that are still used are kept, so that a file written again and again does not collect them.
	moved := make(map[*wire.Location]uint32, len(m.locs))
	add := func(e wire.Extent, from []wire.Location) {
		l := &from[e.Loc]
		n, ok := moved[l]
		if !ok {
			n = uint32(len(out.locs))
			moved[l] = n
			out.locs = append(out.locs, *l)
		}
		e.Loc = n
		out.exts = append(out.exts, e)
	}
	i := 0
	for k := range w.exts {
		for ; i < len(exts) && exts[i].FileOff < w.exts[k].FileOff; i++ {
			add(exts[i], m.locs)
		}
		add(w.exts[k], w.locs)
	}
	for ; i < len(exts); i++ {
		add(exts[i], m.locs)
	}
	return out
}

// cut removes [from, to), whole blocks, from a list of extents, in a new list.
func cut(exts []wire.Extent, from, to uint64) []wire.Extent {
	out := make([]wire.Extent, 0, len(exts)+1)
	for _, e := range exts {
		end := e.FileOff + blocks(e.Len)*wire.BlockSize
		if end <= from || e.FileOff >= to {
			out = append(out, e)
			continue
		}
		if e.FileOff < from {
			head := e
			head.Len = from - e.FileOff
			head.Sums = e.Sums[:blocks(head.Len)]
			out = append(out, head)
		}
		if end > to {
			skip := (to - e.FileOff) / wire.BlockSize
			tail := e
			tail.FileOff = to
			tail.Len = e.Len - skip*wire.BlockSize
			tail.Block += uint32(skip)
			tail.Sums = e.Sums[skip:]
			out = append(out, tail)
		}
	}
	return out
}

// blocks gives the blocks that n bytes take.
func blocks(n uint64) uint64 { return (n + wire.BlockSize - 1) / wire.BlockSize }
