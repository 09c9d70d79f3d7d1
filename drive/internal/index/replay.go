package index

import (
	"slices"

	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/wire"
)

// Replay builds an index from the records of a checkpoint and then of the journal, in order.
//
// A checkpoint is taken while the drive works: each id is in it as it was at some moment after the checkpoint began. So
// the journal repeats records whose effect is there already, and may begin in the middle of the life of a segment that
// the checkpoint saw sealed or no longer saw at all. Every record sets a state and all later records of the id follow,
// so the end is right; what makes no sense by then (orphans) is corruption.
type Replay struct {
	Index   *Index
	orphans map[wire.StripID]struct{}
}

// NewReplay starts with an empty index.
func NewReplay() *Replay { return &Replay{Index: New(), orphans: map[wire.StripID]struct{}{}} }

// Apply replays a record; it keeps nothing of it.
func (p *Replay) Apply(r *format.Record) {
	x := p.Index
	switch r.Type {
	case format.RecordPut:
		runs := r.Runs
		if len(runs) > 1 { // of one run the index keeps no slice
			runs = slices.Clone(runs)
		}
		x.PutStrip(r.ID, r.Sum, runs)
		delete(p.orphans, r.ID)
		x.RaiseEpoch(r.ID.Bucket(), r.Epoch)
	case format.RecordAlloc:
		p.alloc(r)
		x.RaiseEpoch(r.ID.Bucket(), r.Epoch)
	case format.RecordSeal:
		if s := x.segments[r.ID]; s == nil || s.AllocatedBytes() < r.Len {
			p.orphans[r.ID] = struct{}{}
		} else {
			x.Seal(r.ID, r.Len)
			delete(p.orphans, r.ID)
		}
		x.RaiseEpoch(r.ID.Bucket(), r.Epoch)
	case format.RecordDelete:
		x.Delete(r.ID)
		delete(p.orphans, r.ID)
	case format.RecordFence:
		x.RaiseEpoch(wire.BucketID(r.Arg), r.Epoch)
	}
}

func (p *Replay) alloc(r *format.Record) {
	x, first := p.Index, int(r.Arg)
	s := x.segments[r.ID]
	switch {
	case first == 0:
		if s != nil && startsWith(s.Runs, r.Runs) {
			s.Len = max(s.Len, r.Len)
			return
		}
		x.Delete(r.ID) // nothing, or what came before or after in the history of the id: a seal or delete follows then
		delete(p.orphans, r.ID)
	case s == nil || len(s.Runs) < first:
		p.orphans[r.ID] = struct{}{}
		return
	case startsWith(s.Runs[first:], r.Runs):
		s.Len = max(s.Len, r.Len)
		return
	}
	x.AddRuns(r.ID, first, r.Len, r.Runs)
}

// Done checks the result. Errors: KindCorrupt.
func (p *Replay) Done() error {
	for id := range p.orphans {
		return wire.Errorf("drive.replay", wire.KindCorrupt, id.String(), "records of a segment whose beginning is missing")
	}
	for id, s := range p.Index.segments {
		if s.Len > s.AllocatedBytes() {
			return wire.Errorf("drive.replay", wire.KindCorrupt, id.String(), "a segment of %d bytes has blocks for %d", s.Len, s.AllocatedBytes())
		}
	}
	return nil
}

func startsWith(runs, prefix []format.Run) bool {
	return len(runs) >= len(prefix) && slices.Equal(runs[:len(prefix)], prefix)
}

// Records appends the records that make the strip or segment in an empty index.
func (x *Index) Records(s *Strip, dst []format.Record) []format.Record {
	dst, _ = x.AppendRecords(s, dst, nil)
	return dst
}

// AppendRecords is Records without an allocation for each strip: a run that is in no slice of the index is appended to memory,
// and its record points there. So the records are valid as long as memory is not used again; the index never changes a slice of
// runs, so it may be changed meanwhile.
func (x *Index) AppendRecords(s *Strip, dst []format.Record, memory []format.Run) (recs []format.Record, used []format.Run) {
	if s.Segment == nil {
		runs := x.runsOf(s.ID, s.e, memory)
		if s.e.run&flagMany == 0 {
			memory = runs
			runs = runs[len(runs)-1 : len(runs) : len(runs)]
		}
		return append(dst, format.Record{Type: format.RecordPut, ID: s.ID, Sum: s.Sum, Runs: runs}), memory
	}
	g := s.Segment
	for at := 0; at < len(g.Runs); at += format.MaxRuns {
		part := g.Runs[at:min(at+format.MaxRuns, len(g.Runs))]
		rec := format.Record{Type: format.RecordAlloc, ID: s.ID, Arg: uint32(at), Runs: part}
		if at+len(part) == len(g.Runs) {
			rec.Len = g.Len
		}
		dst = append(dst, rec)
	}
	if g.Sealed {
		dst = append(dst, format.Record{Type: format.RecordSeal, ID: s.ID, Len: g.Len})
	}
	return dst, memory
}

// BuildAllocator makes the allocator of a data area from what the index holds. Errors: KindCorrupt, when two overlap.
func (x *Index) BuildAllocator(blocks uint64) (*Allocator, error) {
	a := NewAllocator(blocks)
	var last wire.StripID
	var run format.Run
	all := func(yield func(r format.Run) bool) {
		var one [1]format.Run
		x.Ascend(wire.StripID{}, func(s Strip) bool {
			last = s.ID
			for _, run = range x.runsOf(s.ID, s.e, one[:0]) {
				if !yield(run) {
					return false
				}
			}
			return true
		})
	}
	if !a.markMany(all) {
		return nil, wire.Errorf("drive.replay", wire.KindCorrupt, last.String(), "blocks %d+%d belong to another strip too", run.Start(), run.Blocks())
	}
	a.measure()
	return a, nil
}
