package strip

import (
	"github.com/crakefs/crake/wire"
)

// piece is a run of blocks of one want that lies on one strip of a stripe, or anywhere in a segment.
type piece struct {
	group *group
	want  int // index of the want
	pos   int // position of the strip; -1 in a segment
	row   int // first block in the strip or segment
	sums  []uint64

	fetch *fetch // of a stripe: the direct one; nil when its drive was not asked
	tried []*fetch
	data  wire.Data // the result; owned by the piece
	done  bool
}

// group is a stripe or segment with the pieces wanted of it.
type group struct {
	loc      *wire.Location
	g        wire.Geometry
	pieces   []*piece
	fetches  []*fetch
	rebuilds []*rebuild
	old      []*fetch // of before the split; only to be released
	byRow    bool     // split was done: pieces are single blocks
}

type fetchState uint8

const (
	fetchPending fetchState = iota
	fetchGood
	fetchBad
)

// fetch is one range asked of one drive.
type fetch struct {
	group *group
	drive wire.DriveID
	pos   int
	row   int
	rows  int
	sums  []uint64 // to check the answer against; nil: of a helper, unknown

	state fetchState
	late  bool // the hedge delay has passed: no longer waited for, still welcome
	kind  wire.Kind
	err   error
	data  wire.Data // owned by the fetch, when good
}

func (f *fetch) id() wire.StripID { return f.group.loc.ID.WithPos(f.pos) }

// covers says that the fetch brings all rows [lo, hi) that its strip has.
func (f *fetch) covers(lo, hi int) bool {
	return f.row <= lo && f.row+f.rows >= min(hi, f.group.g.LenBlocks(f.pos))
}

// check says why a want makes no sense, or nil.
func (w *Want) check() error {
	bad := func(format string, args ...any) error {
		id := ""
		if w.Loc != nil {
			id = w.Loc.ID.String()
		}
		return wire.Errorf("strip.read", wire.KindInvalid, id, format, args...)
	}
	if w.Loc == nil || w.Blocks < 1 || w.Block < 0 || len(w.Sums) != w.Blocks {
		return bad("%d blocks at %d with %d checksums", w.Blocks, w.Block, len(w.Sums))
	}
	k, m := int(w.Loc.K), int(w.Loc.M)
	switch w.Loc.Kind {
	case wire.LocStripe:
		g := w.Loc.Geometry()
		if k < 1 || k+m > wire.MaxStripes || len(w.Loc.Drives) != k+m {
			return bad("%d drives for %d+%d", len(w.Loc.Drives), k, m)
		}
		if g.Blocks > k*wire.StripBytes/wire.BlockSize || w.Blocks > g.Blocks || w.Block > g.Blocks-w.Blocks {
			return bad("blocks %d+%d of a stripe of %d", w.Block, w.Blocks, g.Blocks)
		}
	case wire.LocSegment:
		if len(w.Loc.Drives) < 1 || len(w.Loc.Drives) > wire.MaxStripes {
			return bad("%d replicas", len(w.Loc.Drives))
		}
		if w.Block > maxSegmentBlocks-w.Blocks {
			return bad("blocks %d+%d of a segment", w.Block, w.Blocks)
		}
	default:
		return bad("location of kind %d", w.Loc.Kind)
	}
	return nil
}

// plan cuts the wants into pieces, grouped by stripe or segment.
func plan(wants []Want) ([]*group, error) {
	byID := make(map[wire.StripID]*group, len(wants))
	var groups []*group
	for i := range wants {
		w := &wants[i]
		if err := w.check(); err != nil {
			return nil, err
		}
		key := w.Loc.ID.WithPos(0)
		gr := byID[key]
		if gr == nil {
			gr = &group{loc: w.Loc, g: w.Loc.Geometry()}
			byID[key] = gr
			groups = append(groups, gr)
		} else if gr.loc.Kind != w.Loc.Kind || gr.g != w.Loc.Geometry() || len(gr.loc.Drives) != len(w.Loc.Drives) {
			return nil, wire.Errorf("strip.read", wire.KindInvalid, w.Loc.ID.String(), "two descriptions of one stripe")
		}
		for b := 0; b < w.Blocks; {
			pos, row := -1, w.Block+b
			n := min(w.Blocks-b, MaxBatchBytes/wire.BlockSize)
			if w.Loc.Kind == wire.LocStripe {
				pos, row = gr.g.Locate(w.Block + b)
				n = min(n, gr.g.LenBlocks(pos)-row)
			}
			gr.pieces = append(gr.pieces, &piece{group: gr, want: i, pos: pos, row: row, sums: w.Sums[b : b+n]})
			b += n
		}
	}
	return groups, nil
}
