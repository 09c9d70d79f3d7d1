package index

import (
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/wire"
)

// checkTree verifies what must hold of every node, and gives the ids.
func checkTree(t *testing.T, tr *tree) []wire.StripID {
	t.Helper()
	var all []wire.StripID
	memory, depths := 0, map[int]bool{}
	var walk func(n *node, low, high wire.StripID, depth int)
	walk = func(n *node, low, high wire.StripID, depth int) {
		memory += nodeBytes
		if len(n.ids) == 0 || len(n.ids) > nodeMax {
			t.Fatalf("a node of %d", len(n.ids))
		}
		if n.kids == nil {
			memory += cap(n.ids) * itemBytes
			depths[depth] = true
			if len(n.entries) != len(n.ids) || n.ids[0].Less(low) || !high.IsZero() && !n.ids[len(n.ids)-1].Less(high) {
				t.Fatalf("leaf of %d ids and %d entries, %v to %v; bounds %v to %v", len(n.ids), len(n.entries), n.ids[0], n.ids[len(n.ids)-1], low, high)
			}
			all = append(all, n.ids...)
			return
		}
		memory += len(n.kids) * idBytes
		for i, kid := range n.kids {
			from, to := low, high
			if i > 0 {
				from = n.ids[i]
			}
			if i+1 < len(n.ids) {
				to = n.ids[i+1]
			}
			walk(kid, from, to, depth+1)
		}
	}
	if tr.root != nil {
		walk(tr.root, wire.StripID{}, wire.StripID{}, 0)
	}
	if !slices.IsSortedFunc(all, wire.StripID.Compare) || len(all) != tr.len || len(depths) > 1 || memory != tr.memory {
		t.Fatalf("%d ids, want %d; depths %v; %d bytes, want %d", len(all), tr.len, depths, tr.memory, memory)
	}
	if len(all) > 0 && tr.last != all[len(all)-1] {
		t.Fatalf("last %v, want %v", tr.last, all[len(all)-1])
	}
	return all
}

// compareTree verifies that a tree holds what it should, by every way to ask.
func compareTree(t *testing.T, rng *rand.Rand, tr *tree, want map[wire.StripID]entry, id func(uint64) wire.StripID) {
	t.Helper()
	all := checkTree(t, tr)
	if len(all) != len(want) {
		t.Fatalf("%d ids, want %d", len(all), len(want))
	}
	for _, i := range all {
		if e := tr.get(i); e == nil || *e != want[i] {
			t.Fatalf("get of %v: %v", i, e)
		}
	}
	for range 100 {
		i := id(rng.Uint64N(1100000))
		if _, ok := want[i]; ok != (tr.get(i) != nil) {
			t.Fatalf("get of %v", i)
		}
		at, found := slices.BinarySearchFunc(all, i, wire.StripID.Compare)
		if found && !i.IsZero() {
			at++
		}
		n := 1 + rng.IntN(600)
		tr.ascend(i, func(got wire.StripID, e entry) bool {
			if got != all[at] || e != want[got] {
				t.Fatalf("after %v: %v, want %v", i, got, all[at])
			}
			at++
			n--
			return n > 0
		})
		if n > 0 && at != len(all) {
			t.Fatalf("after %v: ends %d ids early", i, len(all)-at)
		}
	}
}

// TestTree compares with a map, in phases that grow, shrink, empty and come in order, so that nodes split and join at all levels.
func TestTree(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	tr, want := &tree{}, map[wire.StripID]entry{}
	var ids []wire.StripID // keys of want, and some that are gone
	id := func(n uint64) wire.StripID { return wire.StripID{Hi: n / 3, Lo: n % 3} }
	put := func(i wire.StripID) {
		e := entry{sum: rng.Uint64()}
		old, replaced := tr.put(i, e)
		if w, ok := want[i]; ok != replaced || old != w {
			t.Fatalf("put of %v replaced %v %t, want %v %t", i, old, replaced, w, ok)
		}
		want[i] = e
		ids = append(ids, i)
	}
	del := func(i wire.StripID) {
		old, ok := tr.delete(i)
		if w, there := want[i]; ok != there || old != w {
			t.Fatalf("delete of %v gives %v %t, want %v %t", i, old, ok, w, there)
		}
		delete(want, i)
	}
	next := uint64(1)
	deepest := 0
	for phase := range 60 {
		kind := phase % 10
		for range 4000 {
			switch {
			case kind < 2 || kind == 9: // grow
				put(id(1 + rng.Uint64N(100000)))
			case kind == 2, kind == 5: // in order, in several streams
				next++
				put(id(next + 50000*rng.Uint64N(4)))
			case kind == 3: // above all, as from a checkpoint
				next++
				put(id(1000000 + next))
			case kind == 4 || kind == 6: // shrink
				del(ids[rng.IntN(len(ids))])
			case kind == 7: // in order
				if i := slices.IndexFunc(ids, func(i wire.StripID) bool { _, ok := want[i]; return ok }); i >= 0 {
					del(ids[i])
					ids = ids[i:]
				}
			default: // mixed
				if i := id(1 + rng.Uint64N(3000)); rng.IntN(2) == 0 {
					put(i)
				} else {
					del(i)
				}
			}
		}
		compareTree(t, rng, tr, want, id)
		depth := 0
		for n := tr.root; n != nil && n.kids != nil; n = n.kids[0] {
			depth++
		}
		deepest = max(deepest, depth)
		if phase == 45 { // empty it
			for i := range want {
				del(i)
			}
			if tr.root != nil || tr.memory != 0 {
				t.Fatal("something is left")
			}
		}
	}
	if deepest < 1 {
		t.Errorf("the tree was %d deep", deepest)
	}
}

// TestTreeDeep: three levels and more, filled and emptied in each order.
func TestTreeDeep(t *testing.T) {
	const n = 3 * nodeMax * nodeMax
	id := func(i int) wire.StripID { return wire.StripID{Hi: 1, Lo: uint64(i)} }
	rng := rand.New(rand.NewPCG(5, 6))
	for _, order := range []string{"ascending", "descending", "random"} {
		tr := &tree{}
		at := rng.Perm(n)
		for i := range at {
			switch order {
			case "ascending":
				at[i] = i
			case "descending":
				at[i] = n - 1 - i
			}
		}
		for _, i := range at {
			tr.put(id(i), entry{sum: uint64(i)})
		}
		if all := checkTree(t, tr); len(all) != n {
			t.Fatalf("%s: %d ids", order, len(all))
		}
		for k, i := range at {
			if old, ok := tr.delete(id(i)); !ok || old.sum != uint64(i) {
				t.Fatalf("%s: delete of %d: %v %t", order, i, old, ok)
			}
			if k%20000 == 0 {
				checkTree(t, tr)
			}
		}
		if tr.root != nil || tr.memory != 0 {
			t.Fatalf("%s: something is left", order)
		}
	}
}

func heapBytes() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestMemory: a strip takes no more than 64 bytes of memory, as the design asks, in whatever order strips come and go; and
// MemoryBytes knows. CRAKE_STRIPS sets their number.
func TestMemory(t *testing.T) {
	strips := uint64(1000000)
	if s := os.Getenv("CRAKE_STRIPS"); s != "" {
		n, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		strips = n
	}
	rng := rand.New(rand.NewPCG(1, 1))
	inOrder := func(buckets int) func(uint64) wire.StripID {
		return func(i uint64) wire.StripID {
			return wire.MakeStripID(wire.BucketID(rng.IntN(buckets)), wire.ClassData, rng.IntN(6), i, 0, rng.Uint64())
		}
	}
	random := func(uint64) wire.StripID {
		return wire.MakeStripID(wire.BucketID(rng.IntN(64)), wire.ClassData, rng.IntN(6), rng.Uint64N(1<<38), 0, rng.Uint64())
	}
	for i, c := range []struct {
		name  string
		id    func(uint64) wire.StripID
		churn uint64 // deletes and puts after that, for each strip
		halve bool   // and at last every second is deleted
	}{
		{"in order", inOrder(1), 0, false},
		{"random, and as many deleted and put", random, 1, false},
		{"random, and half deleted", random, 0, true},
		{"in order, 1000 buckets", inOrder(1000), 0, false},
		{"in order, and as many deleted and put", inOrder(64), 1, false},
	} {
		strips := strips
		if i > 1 {
			strips /= 4 // to save time
		}
		before := heapBytes()
		x := New()
		run := []format.Run{format.MakeRun(1, 32)}
		var ids []wire.StripID
		if c.churn > 0 || c.halve {
			ids = make([]wire.StripID, 0, strips)
		}
		began := time.Now()
		for i := range strips {
			id := c.id(i)
			x.PutStrip(id, 1, run)
			if ids != nil {
				ids = append(ids, id)
			}
		}
		took := time.Since(began)
		for i := range c.churn * strips {
			k := rng.IntN(len(ids))
			x.Delete(ids[k])
			ids[k] = c.id(strips + i)
			x.PutStrip(ids[k], 1, run)
		}
		if c.halve {
			for i := 0; i < len(ids); i += 2 {
				x.Delete(ids[i])
			}
		}
		ids = nil
		per, said := float64(heapBytes()-before)/float64(x.Len()), float64(x.MemoryBytes())/float64(x.Len())
		t.Logf("%d strips %s: %.1f bytes a strip, %.1f computed; %v a put", x.Len(), c.name, per, said, took/time.Duration(strips))
		if per > 64 || said < per*0.95 || said > per*1.05 {
			t.Errorf("%s: %.1f bytes a strip, %.1f computed: want at most 64, and the same", c.name, per, said)
		}
		runtime.KeepAlive(x)
	}
}

// TestMemoryBytes: segments, strips in several runs and epochs are counted too.
func TestMemoryBytes(t *testing.T) {
	const n = 60000
	for name, f := range map[string]func(x *Index, i uint64){
		"segments": func(x *Index, i uint64) {
			x.AddRuns(wire.MakeStripID(1, wire.ClassLog, 0, i, 0, 0), 0, 0, []format.Run{format.MakeRun(i, 1), format.MakeRun(i, 2)})
		},
		"strips in several runs": func(x *Index, i uint64) {
			x.PutStrip(wire.MakeStripID(1, wire.ClassData, 0, i, 0, 0), 1, []format.Run{format.MakeRun(i, 1), format.MakeRun(i, 2), format.MakeRun(i, 3)})
		},
		"epochs": func(x *Index, i uint64) { x.RaiseEpoch(wire.BucketID(i), 1) },
	} {
		before := heapBytes()
		x := New()
		for i := range uint64(n) {
			f(x, i)
		}
		got, said := float64(heapBytes()-before), float64(x.MemoryBytes())
		t.Logf("%d %s: %.0f bytes, %.0f computed", n, name, got, said)
		if said < got*0.75 || said > got*1.4 {
			t.Errorf("%s take %.0f bytes, %.0f are computed", name, got, said)
		}
		var ids []wire.StripID
		x.Ascend(wire.StripID{}, func(s Strip) bool { ids = append(ids, s.ID); return true })
		for _, id := range ids {
			x.Delete(id)
		}
		if name != "epochs" && x.MemoryBytes() != 0 {
			t.Errorf("%d bytes of nothing", x.MemoryBytes())
		}
	}
}

// BenchmarkReplay builds an index and allocator from the sorted puts of a checkpoint; one operation is a strip.
func BenchmarkReplay(b *testing.B) {
	p := NewReplay()
	r := format.Record{Type: format.RecordPut, Runs: make([]format.Run, 1)}
	for i := uint64(0); b.Loop(); i++ {
		r.ID, r.Runs[0] = wire.MakeStripID(wire.BucketID(i>>14), wire.ClassData, 0, i, 0, i*0x9e3779b97f4a7c15), format.MakeRun(i*32, 32)
		p.Apply(&r)
	}
	b.Logf("%d strips", p.Index.Len())
}

// BenchmarkTree measures single operations on a tree of a million.
func BenchmarkTree(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 1))
	tr := &tree{}
	for tr.len < 1000000 {
		tr.put(wire.StripID{Hi: rng.Uint64(), Lo: 1}, entry{})
	}
	b.Run("get", func(b *testing.B) {
		for b.Loop() {
			tr.get(wire.StripID{Hi: rng.Uint64(), Lo: 1})
		}
	})
	b.Run("put and delete", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			id := wire.StripID{Hi: rng.Uint64(), Lo: 2}
			tr.put(id, entry{})
			tr.delete(id)
		}
	})
	b.Run("ascend 512", func(b *testing.B) {
		x := &Index{tree: *tr}
		recs, memory := make([]format.Record, 0, 600), make([]format.Run, 0, 600)
		b.ReportAllocs()
		for b.Loop() {
			n := 0
			recs, memory = recs[:0], memory[:0]
			x.Ascend(wire.StripID{Hi: rng.Uint64() / 2}, func(s Strip) bool {
				recs, memory = x.AppendRecords(&s, recs, memory)
				n++
				return n < 512
			})
		}
	})
}
