// Package index is what a drive keeps in memory: which strips and segments it holds and where, the newest epoch of each
// bucket, and the free blocks. No goroutine, clock or IO; not safe for concurrent use (the store guards it).
package index

import (
	"math/rand/v2"
	"slices"

	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/wire"
)

// entry is what the tree holds for an id: 16 bytes, as the id itself.
type entry struct {
	run format.Run // of a strip in one run; else flags and, of a strip, the number of blocks
	sum uint64     // wire.StripSum
}

const (
	flagSegment = 1 << 23 // in run: look in segments
	flagMany    = 1 << 22 // in run: look in many
	maskBlocks  = 1<<22 - 1
)

// Segment is a segment as the index knows it.
type Segment struct {
	ID     wire.StripID
	Runs   []format.Run // all that is allocated
	Len    uint64       // bytes that are acknowledged
	Sealed bool
	// Damaged says that an append failed half-way: it takes no further one (see store.Append). Not on disk.
	Damaged bool
}

// AllocatedBytes gives the bytes of the runs.
func (s *Segment) AllocatedBytes() uint64 {
	return uint64(format.RunsBlocks(s.Runs)) * format.BlockSize
}

// Strip is a strip or segment as List gives it.
type Strip struct {
	ID      wire.StripID
	Blocks  int    // of a strip
	Sum     uint64 // of a strip
	Segment *Segment

	e entry
}

// LenBytes gives the length that can be read.
func (s *Strip) LenBytes() uint64 {
	if s.Segment != nil {
		return s.Segment.Len
	}
	return uint64(s.Blocks) * format.BlockSize
}

// Index is the state of a drive.
type Index struct {
	tree     tree
	many     map[wire.StripID][]format.Run // strips in several runs: few, on a splintered device only
	segments map[wire.StripID]*Segment
	epochs   map[wire.BucketID]wire.Epoch
	// recordBytes is what all this takes as records of a checkpoint.
	recordBytes int64
	// runs counts those in many and segments.
	runs int
}

// New makes an empty index.
func New() *Index {
	return &Index{many: map[wire.StripID][]format.Run{}, segments: map[wire.StripID]*Segment{}, epochs: map[wire.BucketID]wire.Epoch{}}
}

// Len gives the number of strips and segments.
func (x *Index) Len() int { return x.tree.len }

// MemoryBytes gives what the index takes, computed.
func (x *Index) MemoryBytes() uint64 {
	// A map of the runtime has a slot for each entry and a byte to tell it, and is half full: it grows by doubling.
	const manyBytes, segmentBytes, epochBytes = 2 * (16 + 24 + 1), 2*(16+8+1) + 64, 2 * (8 + 8 + 1)
	return uint64(x.tree.memory + len(x.many)*manyBytes + len(x.segments)*segmentBytes + len(x.epochs)*epochBytes + x.runs*8)
}

// RecordBytes gives what a checkpoint of the index takes, without page headers.
func (x *Index) RecordBytes() int64 { return x.recordBytes }

// Get finds a strip or segment.
func (x *Index) Get(id wire.StripID) (Strip, bool) {
	e := x.tree.get(id)
	if e == nil {
		return Strip{}, false
	}
	return x.strip(id, *e), true
}

func (x *Index) strip(id wire.StripID, e entry) Strip {
	if e.run&flagSegment != 0 {
		return Strip{ID: id, Segment: x.segments[id], e: e}
	}
	return Strip{ID: id, Blocks: int(e.run & maskBlocks), Sum: e.sum, e: e}
}

// Segment finds a segment, or nil.
func (x *Index) Segment(id wire.StripID) *Segment { return x.segments[id] }

// Runs gives where a strip or segment lies: all that is allocated. The caller must not change the slice, and the index never does.
func (x *Index) Runs(id wire.StripID) []format.Run {
	e := x.tree.get(id)
	if e == nil {
		return nil
	}
	return x.runsOf(id, *e, nil)
}

// runsOf gives where something lies; memory is used if that is in the entry alone.
func (x *Index) runsOf(id wire.StripID, e entry, memory []format.Run) []format.Run {
	switch {
	case e.run&flagSegment != 0:
		return x.segments[id].Runs
	case e.run&flagMany != 0:
		return x.many[id]
	}
	return append(memory, e.run)
}

// Locate appends to dst where the n bytes at off of a strip or segment lie. Kinds: KindNone, KindNotFound, KindRange.
func (x *Index) Locate(id wire.StripID, off uint64, n int, dst []format.Run) ([]format.Run, wire.Kind) {
	e := x.tree.get(id)
	if e == nil {
		return dst, wire.KindNotFound
	}
	length := uint64(e.run&maskBlocks) * format.BlockSize
	if e.run&flagSegment != 0 {
		length = x.segments[id].Len
	}
	if off > length || uint64(n) > length-off {
		return dst, wire.KindRange
	}
	var one [1]format.Run
	return Part(x.runsOf(id, *e, one[:0]), off/format.BlockSize, n/format.BlockSize, dst), wire.KindNone
}

// Part appends to dst the n blocks of runs that start at block off. Preconditions: runs has that many.
func Part(runs []format.Run, off uint64, n int, dst []format.Run) []format.Run {
	for _, r := range runs {
		if n == 0 {
			break
		}
		if off >= uint64(r.Blocks()) {
			off -= uint64(r.Blocks())
			continue
		}
		take := min(n, r.Blocks()-int(off))
		dst = append(dst, format.MakeRun(r.Start()+off, take))
		off, n = 0, n-take
	}
	if n != 0 {
		panic("drive: a part beyond the runs")
	}
	return dst
}

// PutStrip adds a strip, in place of what is there. The index keeps runs.
func (x *Index) PutStrip(id wire.StripID, sum uint64, runs []format.Run) {
	e := entry{run: runs[0], sum: sum}
	if len(runs) > 1 {
		e.run = format.Run(flagMany | format.RunsBlocks(runs))
	}
	if old, replaced := x.tree.put(id, e); replaced {
		x.forget(id, old)
	}
	if len(runs) > 1 {
		x.many[id] = runs
		x.runs += len(runs)
	}
	x.recordBytes += putBytes(len(runs))
}

func putBytes(runs int) int64 {
	r := format.Record{Type: format.RecordPut, Runs: make([]format.Run, 0, runs)}
	return int64(r.Bytes() + 8*runs)
}

// AddRuns gives a segment, new or known, runs from run number first on, in place of those that it has there, and
// at least length bytes. A sealed one is open again: in a replay, where the seal follows.
// Preconditions: the id is no strip's, and the segment has at least first runs.
func (x *Index) AddRuns(id wire.StripID, first int, length uint64, runs []format.Run) *Segment {
	s := x.segments[id]
	if s == nil {
		s = &Segment{ID: id}
		x.segments[id] = s
		x.tree.put(id, entry{run: flagSegment})
	} else {
		x.runs -= len(s.Runs)
		x.recordBytes -= segmentBytes(len(s.Runs), s.Sealed)
	}
	s.Runs = append(slices.Clip(s.Runs[:first]), runs...) // Clip: whoever holds the old slice keeps it
	x.runs += len(s.Runs)
	s.Len, s.Sealed = max(s.Len, length), false
	x.recordBytes += segmentBytes(len(s.Runs), s.Sealed)
	return s
}

// segmentBytes gives the bytes of a segment's records: one alloc for each MaxRuns runs, and a seal.
func segmentBytes(runs int, sealed bool) int64 {
	allocs := (runs + format.MaxRuns - 1) / format.MaxRuns
	alloc := format.Record{Type: format.RecordAlloc}
	n := int64(allocs*alloc.Bytes() + 8*runs)
	if sealed {
		seal := format.Record{Type: format.RecordSeal}
		n += int64(seal.Bytes())
	}
	return n
}

// GrowthBytes bounds what runs further runs of a segment, or a new strip of so many, add to RecordBytes.
func GrowthBytes(runs int) int64 { return segmentBytes(runs, true) + 8 }

// Seal ends a segment at length and gives the runs beyond, which are free now. An empty segment keeps one block, so that
// there is something to record.
// Preconditions: the segment exists and has that many bytes allocated.
func (x *Index) Seal(id wire.StripID, length uint64) (freed []format.Run) {
	s := x.segments[id]
	x.recordBytes -= segmentBytes(len(s.Runs), s.Sealed)
	have, keep := format.RunsBlocks(s.Runs), max(1, int(length/format.BlockSize))
	if have > keep {
		x.runs -= len(s.Runs)
		freed = Part(s.Runs, uint64(keep), have-keep, nil)
		s.Runs = Part(s.Runs, 0, keep, nil)
		x.runs += len(s.Runs)
	}
	s.Len, s.Sealed = length, true
	x.recordBytes += segmentBytes(len(s.Runs), s.Sealed)
	return freed
}

// Delete removes a strip or segment and gives its runs; nil when there is none of that id.
func (x *Index) Delete(id wire.StripID) []format.Run {
	e, ok := x.tree.delete(id)
	if !ok {
		return nil
	}
	return x.forget(id, e)
}

// forget drops what belongs to an entry that is no longer in the tree, and gives its runs.
func (x *Index) forget(id wire.StripID, e entry) []format.Run {
	runs := x.runsOf(id, e, nil)
	switch {
	case e.run&flagSegment != 0:
		x.recordBytes -= segmentBytes(len(runs), x.segments[id].Sealed)
		delete(x.segments, id)
		x.runs -= len(runs)
	case e.run&flagMany != 0:
		x.recordBytes -= putBytes(len(runs))
		delete(x.many, id)
		x.runs -= len(runs)
	default:
		x.recordBytes -= putBytes(1)
	}
	return runs
}

// EpochBytes is what the epoch of a further bucket adds to RecordBytes.
const EpochBytes = 16

// Epoch gives the newest epoch seen of a bucket; 0 for none.
func (x *Index) Epoch(b wire.BucketID) wire.Epoch { return x.epochs[b] }

// RaiseEpoch notes an epoch of a bucket; 0 is none.
func (x *Index) RaiseEpoch(b wire.BucketID, e wire.Epoch) {
	if old := x.epochs[b]; e > old {
		if old == 0 {
			x.recordBytes += EpochBytes
		}
		x.epochs[b] = e
	}
}

// Ascend calls f for the strips and segments with an id above after (from the start if after is zero), in order, until
// f gives false.
func (x *Index) Ascend(after wire.StripID, f func(s Strip) bool) {
	x.tree.ascend(after, func(id wire.StripID, e entry) bool { return f(x.strip(id, e)) })
}

// Sample gives an id by chance; false: there is none.
func (x *Index) Sample(rng *rand.Rand) (wire.StripID, bool) { return x.tree.sample(rng) }

// Segments calls f for every segment, in no order.
func (x *Index) Segments(f func(s *Segment)) {
	for _, s := range x.segments {
		f(s)
	}
}

// Epochs calls f for every bucket with an epoch, in order.
func (x *Index) Epochs(f func(b wire.BucketID, e wire.Epoch)) {
	buckets := make([]wire.BucketID, 0, len(x.epochs))
	for b := range x.epochs {
		buckets = append(buckets, b)
	}
	slices.Sort(buckets)
	for _, b := range buckets {
		f(b, x.epochs[b])
	}
}
