package index

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/wire"
)

func randomID(rng *rand.Rand) wire.StripID {
	return wire.MakeStripID(wire.BucketID(rng.IntN(3)), wire.Class(1+rng.IntN(2)), rng.IntN(4), rng.Uint64N(40), 0, 0)
}

// world makes a random history of records, each right for the state before it.
type world struct {
	rng *rand.Rand
	x   *Index
	a   *Allocator
}

// next makes the next record and applies it, as a running drive does.
func (w *world) next() format.Record {
	for {
		id := randomID(w.rng)
		st, ok := w.x.Get(id)
		switch n := w.rng.IntN(10); {
		case !ok && n < 4:
			runs := w.a.Alloc(1+w.rng.IntN(20), 4)
			w.x.PutStrip(id, w.rng.Uint64(), runs)
			st, _ := w.x.Get(id)
			return format.Record{Type: format.RecordPut, ID: id, Sum: st.Sum, Runs: runs}
		case !ok && n < 8 || ok && st.Segment != nil && !st.Segment.Sealed && n < 4:
			first, length := 0, uint64(0)
			if ok {
				first = len(st.Segment.Runs)
				st.Segment.Len = w.rng.Uint64N(st.Segment.AllocatedBytes()/format.BlockSize+1) * format.BlockSize
				length = st.Segment.Len
			}
			runs := w.a.Alloc(1+w.rng.IntN(20), 4)
			w.x.AddRuns(id, first, length, runs)
			return format.Record{Type: format.RecordAlloc, ID: id, Arg: uint32(first), Len: length, Runs: runs}
		case ok && st.Segment != nil && !st.Segment.Sealed && n < 7:
			length := st.Segment.Len
			for _, r := range w.x.Seal(id, length) {
				w.a.Free(r)
			}
			return format.Record{Type: format.RecordSeal, ID: id, Len: length}
		case ok && n == 9:
			for _, r := range w.x.Delete(id) {
				w.a.Free(r)
			}
			return format.Record{Type: format.RecordDelete, ID: id}
		case n == 8:
			b, e := wire.BucketID(w.rng.IntN(3)), wire.Epoch(w.rng.IntN(50))
			w.x.RaiseEpoch(b, e)
			return format.Record{Type: format.RecordFence, Arg: uint32(b), Epoch: e}
		}
	}
}

// dump tells all of an index but the lengths of open segments, which a device's records tell.
func dump(x *Index) []string {
	var out []string
	x.Ascend(wire.StripID{}, func(s Strip) bool {
		line := fmt.Sprintf("%v sum %x runs %v", s.ID, s.Sum, x.Runs(s.ID))
		if s.Segment != nil {
			line += fmt.Sprintf(" segment sealed %t", s.Segment.Sealed)
			if s.Segment.Sealed {
				line += fmt.Sprintf(" len %d", s.Segment.Len)
			}
		}
		out = append(out, line)
		return true
	})
	x.Epochs(func(b wire.BucketID, e wire.Epoch) { out = append(out, fmt.Sprintf("bucket %d epoch %d", b, e)) })
	return out
}

// TestFuzzyCheckpoint: a checkpoint whose parts were taken at different moments of a running drive, with the journal from
// its beginning on, gives the state at the end. Ids are used again here, which a cluster never does.
func TestFuzzyCheckpoint(t *testing.T) {
	for seed := range uint64(400) {
		rng := rand.New(rand.NewPCG(seed, 7))
		w := &world{rng: rng, x: New(), a: NewAllocator(100000)}
		for range rng.IntN(300) {
			w.next()
		}
		var journal, pages []format.Record
		var last wire.StripID
		w.x.Epochs(func(b wire.BucketID, e wire.Epoch) {
			pages = append(pages, format.Record{Type: format.RecordFence, Arg: uint32(b), Epoch: e})
		})
		for more := true; more; {
			more = false
			n := 1 + rng.IntN(10)
			w.x.Ascend(last, func(s Strip) bool {
				recs := w.x.Records(&s, nil)
				for i := range recs {
					recs[i].Runs = slices.Clone(recs[i].Runs)
				}
				pages = append(pages, recs...)
				last, more = s.ID, true
				n--
				return n > 0
			})
			for range rng.IntN(12) {
				journal = append(journal, w.next())
			}
		}
		p := NewReplay()
		for _, r := range slices.Concat(pages, journal) {
			p.Apply(&r)
		}
		if err := p.Done(); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if got, want := dump(p.Index), dump(w.x); !slices.Equal(got, want) {
			t.Fatalf("seed %d: got\n%q\nwant\n%q", seed, got, want)
		}
		checkBytes(t, p.Index)
		checkBytes(t, w.x)
		b, err := p.Index.BuildAllocator(100000)
		if err != nil || b.FreeBlocks() != w.a.FreeBlocks() {
			t.Fatalf("seed %d: %d free, want %d: %v", seed, b.FreeBlocks(), w.a.FreeBlocks(), err)
		}
	}
}

// checkBytes verifies that RecordBytes is what the records take.
func checkBytes(t *testing.T, x *Index) {
	t.Helper()
	n := int64(0)
	x.Ascend(wire.StripID{}, func(s Strip) bool {
		for _, r := range x.Records(&s, nil) {
			n += int64(r.Bytes())
		}
		return true
	})
	x.Epochs(func(wire.BucketID, wire.Epoch) { n += 16 })
	if n != x.RecordBytes() {
		t.Fatalf("RecordBytes says %d, the records take %d", x.RecordBytes(), n)
	}
}

// TestReplayFindsNonsense: records that no history makes are corruption.
func TestReplayFindsNonsense(t *testing.T) {
	id := wire.MakeStripID(1, 3, 0, 1, 0, 0)
	alloc := format.Record{Type: format.RecordAlloc, ID: id, Runs: []format.Run{format.MakeRun(0, 4)}}
	later := format.Record{Type: format.RecordAlloc, ID: id, Arg: 1, Runs: []format.Run{format.MakeRun(4, 4)}}
	long := alloc
	long.Len = 5 * format.BlockSize
	seal := format.Record{Type: format.RecordSeal, ID: id, Len: 5 * format.BlockSize}
	for name, recs := range map[string][]format.Record{
		"a run without its first":        {later},
		"a seal without segment":         {seal},
		"a seal longer than the runs":    {alloc, seal},
		"a length longer than the runs":  {long},
		"deleted, then its second chunk": {alloc, {Type: format.RecordDelete, ID: id}, later},
	} {
		p := NewReplay()
		for _, r := range recs {
			p.Apply(&r)
		}
		if err := p.Done(); wire.KindOf(err) != wire.KindCorrupt {
			t.Errorf("%s: %v", name, err)
		}
	}
	x := New()
	x.PutStrip(id, 1, []format.Run{format.MakeRun(0, 8)})
	x.PutStrip(id.WithPos(1), 1, []format.Run{format.MakeRun(7, 8)})
	if _, err := x.BuildAllocator(100); wire.KindOf(err) != wire.KindCorrupt {
		t.Errorf("overlap: %v", err)
	}
}
