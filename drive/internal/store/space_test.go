package store

import (
	"testing"

	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/wire"
)

// TestDeletesOnAFullDrive: with no block free, through many rounds of the journal and many checkpoints, puts are refused, deletes and
// fences work, and what they give back can be used.
func TestDeletesOnAFullDrive(t *testing.T) {
	f := newFaulty(t, true)
	n := uint64(0)
	fill := func() (puts int) {
		for blocks := 8; blocks > 0; {
			_, err := f.put(1, tableID(n), blocks)
			switch wire.KindOf(err) {
			case wire.KindNone:
				n++
				puts++
			case wire.KindNoSpace:
				blocks /= 2
			default:
				t.Fatalf("put: %v", err)
			}
		}
		return puts
	}
	fill()
	f.mu.RLock()
	blocks := f.journal.sb.JournalBlocks()
	f.mu.RUnlock()
	for round := 0; f.journal.count.Load() < uint64(4*blocks); round++ {
		if free := f.freeBlocks(); free != 0 {
			t.Fatalf("%d blocks are free", free)
		}
		_, err := f.put(1, tableID(1<<30), 1)
		f.wantKind("put on a full drive", err, wire.KindNoSpace)
		f.wantKind("fence", f.Fence(t.Context(), wire.BucketID(5+round%3), wire.Epoch(10+round)), wire.KindNone)
		f.wantKind("delete", f.Delete(t.Context(), 1, []wire.StripID{tableID(n - 1 - uint64(round)%7)}), wire.KindNone)
		if f.freeBlocks() > 0 && fill() == 0 {
			t.Fatal("what was deleted cannot be used")
		}
		if t.Failed() {
			return
		}
	}
	checkSpace(t, f.Store, "at the end")
	f.reopen(true)
	checkSpace(t, f.Store, "after a crash")
}

// TestAsManyStripsAsFit: at the bound of their number puts are refused, deletes and fences of further buckets work, a checkpoint fits,
// and a delete makes room for a put.
func TestAsManyStripsAsFit(t *testing.T) {
	f := newFaulty(t, false)
	f.sb.CheckpointBytes = 2*format.PageBytes + format.BlockSize // as if formatted so
	n := uint64(0)
	for {
		_, err := f.put(1, tableID(n), 1)
		if wire.KindOf(err) == wire.KindNoSpace {
			break
		}
		f.wantKind("put", err, wire.KindNone)
		n++
	}
	if f.freeBlocks() < 100 {
		t.Fatal("the blocks are the bound")
	}
	for b := range uint64(200) {
		f.wantKind("fence", f.Fence(t.Context(), wire.BucketID(1000+b), 3), wire.KindNone)
	}
	if err := f.checkpoint(); err != nil {
		t.Errorf("checkpoint at the bound: %v", err)
	}
	for b := range uint64(5000) { // far more buckets than such a drive ever meets
		if err := f.Fence(t.Context(), wire.BucketID(2000+b), 3); err != nil {
			f.wantKind("fence of too many buckets", err, wire.KindNoSpace)
			break
		}
	}
	if err := f.checkpoint(); err != nil {
		t.Errorf("checkpoint after fences: %v", err)
	}
	f.wantKind("a newer fence of a known bucket", f.Fence(t.Context(), 1000, 4), wire.KindNone)
	var ids []wire.StripID
	for i := range uint64(200) {
		ids = append(ids, tableID(i))
	}
	f.wantKind("delete", f.Delete(t.Context(), 1, ids), wire.KindNone)
	_, err := f.put(1, tableID(n+1), 1)
	f.wantKind("put after the deletes", err, wire.KindNone)
	if err := f.checkpoint(); err != nil {
		t.Errorf("checkpoint after the deletes: %v", err)
	}
	f.reopen(true)
	checkSpace(t, f.Store, "after a crash")
}
