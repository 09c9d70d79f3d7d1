package store

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/wire"
)

// populated gives an image with strips and segments, some of them only in the journal, and what they hold.
func populated(t testing.TB) (image []byte, want map[wire.StripID][]byte) {
	t.Helper()
	h := newHistory(t, newArena(t), 77, 1, false, 4<<20)
	h.run("populate", 120, 0)
	r := mustStart(t, h.device(), h.arena)
	m := h.clients[0]
	m.settle(r.Store, "populate")
	for range 60 {
		if err := m.step(r.Store); err != nil {
			t.Fatal(err)
		}
	}
	image = r.dev.(*blockio.CrashDevice).Image()
	_ = r.stop()
	want = map[wire.StripID][]byte{}
	for id, o := range m.live {
		want[id] = o.data
	}
	return image, want
}

// TestJournalDamage: a damaged batch in the middle of the journal is told from its end, and the drive does not open as if
// the later operations had never been.
func TestJournalDamage(t *testing.T) {
	f := newFaulty(t, false)
	for i := range uint64(20) {
		_, err := f.put(1, tableID(i), 1)
		f.wantKind("put", err, wire.KindNone)
	}
	image, arena := f.base.Image(), f.arena
	s, err := Open(blockio.NewCrashDevice(bytes.Clone(image), false), Config{Arena: arena, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	live := &s.journal.live
	if live.len() != 20 {
		t.Fatalf("%d batches to replay", live.len())
	}
	refused := 0
	for i := range live.len() {
		b := live.at(i)
		img := bytes.Clone(image)
		img[s.sb.JournalOff+int64(b.pos)*format.BlockSize+84] ^= 4 // in the first record
		_, err := Open(blockio.NewCrashDevice(img, false), Config{Arena: arena, Log: quiet()})
		if wire.KindOf(err) == wire.KindCorrupt {
			refused++
		} else if i < live.len()-2 {
			t.Errorf("batch %d of %d damaged: %v", i, live.len(), err)
		}
	}
	if refused < 18 { // nothing tells of the last one, and of the one before only its low water
		t.Errorf("%d of 20 damaged batches were seen", refused)
	}
}

// TestSuperblockRepair: either copy of the superblock serves, and the other one is written again.
func TestSuperblockRepair(t *testing.T) {
	image, _ := populated(t)
	arena := newArena(t)
	for _, off := range testSuperblock(int64(len(image))).SuperblockOffsets() {
		img := bytes.Clone(image)
		clear(img[off : off+format.BlockSize])
		dev := blockio.NewCrashDevice(img, true)
		if _, err := Open(dev, Config{Arena: arena, Log: quiet()}); err != nil {
			t.Fatalf("superblock at %d gone: %v", off, err)
		}
		got := dev.Image()
		if !bytes.Equal(got[off:off+format.BlockSize], image[off:off+format.BlockSize]) {
			t.Errorf("superblock at %d was not repaired", off)
		}
	}
	img := bytes.Clone(image)
	for _, off := range testSuperblock(int64(len(image))).SuperblockOffsets() {
		clear(img[off : off+format.BlockSize])
	}
	if _, err := Open(blockio.NewCrashDevice(img, true), Config{Log: quiet()}); wire.KindOf(err) != wire.KindRefused {
		t.Errorf("no superblock at all: %v", err)
	}
}

// TestReformatted: what an earlier life of the device left does not come back.
func TestReformatted(t *testing.T) {
	image, _ := populated(t)
	dev := blockio.NewCrashDevice(image, true)
	sb := testSuperblock(int64(len(image)))
	sb.FormatID++
	if err := Format(dev, sb); err != nil {
		t.Fatal(err)
	}
	s, err := Open(dev, Config{Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	if s.idx.Len() != 0 || s.alloc.FreeBlocks() != s.sb.DataBlocks() || s.idx.Epoch(0) != 0 {
		t.Errorf("%d strips, epoch %d", s.idx.Len(), s.idx.Epoch(0))
	}
}

// TestReformattedSmaller: a drive that was formatted again, to use less of its device, does not become the old one when its
// first superblock is damaged.
func TestReformattedSmaller(t *testing.T) {
	image, _ := populated(t)
	dev := blockio.NewCrashDevice(image, true)
	sb := testSuperblock(int64(len(image)) / 2)
	sb.FormatID++
	if err := Format(dev, sb); err != nil {
		t.Fatal(err)
	}
	if err := dev.WriteAt(blockio.AlignedBytes(format.BlockSize), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dev, Config{Log: quiet()}); wire.KindOf(err) != wire.KindRefused {
		t.Errorf("the old superblock counts: %v", err)
	}
}

// mutate changes some bytes of the metadata of an image: flips, zeroed or swapped blocks.
func mutate(rng *rand.Rand, img []byte, sb *format.Superblock) string {
	block := func() int64 { return rng.Int64N(sb.DataOff/format.BlockSize) * format.BlockSize }
	what := ""
	for range 1 + rng.IntN(4) {
		b := block()
		switch rng.IntN(4) {
		case 0:
			at := b + rng.Int64N(format.BlockSize)
			img[at] ^= 1 << rng.IntN(8)
			what += fmt.Sprintf(" flip@%d", at)
		case 1:
			clear(img[b : b+format.BlockSize])
			what += fmt.Sprintf(" zero@%d", b)
		case 2:
			c := block()
			copy(img[b:b+format.BlockSize], img[c:c+format.BlockSize])
			what += fmt.Sprintf(" copy %d to %d", c, b)
		case 3:
			at := b + rng.Int64N(200)
			img[at] ^= byte(rng.Uint32())
			what += fmt.Sprintf(" byte@%d", at)
		}
	}
	return what
}

// checkMutated opens a damaged image: a typed error, or only right bytes.
func checkMutated(t *testing.T, img []byte, arena *wire.Arena, want map[wire.StripID][]byte, what string) (opened bool) {
	t.Helper()
	r, err := start(t, blockio.NewCrashDevice(img, false), arena)
	if err != nil {
		switch wire.KindOf(err) {
		case wire.KindCorrupt, wire.KindRefused, wire.KindVersion:
		default:
			t.Fatalf("%s: not a typed error: %v", what, err)
		}
		return false
	}
	for id, data := range want {
		for off := uint64(0); off < uint64(len(data)); off += format.BlockSize {
			status, got, err := r.Read(t.Context(), []wire.ReadRange{{ID: id, Offset: off, Len: format.BlockSize}})
			if err != nil {
				t.Fatal(err)
			}
			if status[0] == wire.KindNone && !bytes.Equal(flat(got), data[off:off+format.BlockSize]) {
				t.Fatalf("%s: %s at %d reads wrong bytes", what, id, off)
			}
			got.Release()
		}
	}
	_ = r.stop()
	return true
}

// TestMutatedImages: damage to the metadata gives a typed error or is survived; it never gives wrong bytes or a panic.
func TestMutatedImages(t *testing.T) {
	image, want := populated(t)
	sb := testSuperblock(int64(len(image)))
	arena := newArena(t)
	seed := rand.Uint64()
	opened := 0
	const n = 150
	for i := range uint64(n) {
		img := bytes.Clone(image)
		what := mutate(rand.New(rand.NewPCG(seed, i)), img, sb)
		if checkMutated(t, img, arena, want, fmt.Sprintf("seed %d %d:%s", seed, i, what)) {
			opened++
		}
	}
	if opened == 0 || opened == n {
		t.Errorf("%d of %d mutated images open: the test changes nothing that matters, or everything", opened, n)
	}
}

// FuzzOpen is TestMutatedImages with the fuzzer's choice of bytes: pairs of place and value in the metadata.
func FuzzOpen(f *testing.F) {
	image, want := populated(f)
	sb := testSuperblock(int64(len(image)))
	f.Add([]byte{0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		img := bytes.Clone(image)
		for ; len(b) >= 4; b = b[4:] {
			at := (int64(b[0]) | int64(b[1])<<8 | int64(b[2])<<16) % sb.DataOff
			img[at] = b[3]
		}
		checkMutated(t, img, newArena(t), want, "fuzz")
	})
}

// TestStaleBatchDoesNotCount: of two journal batches that no flush covered, the device kept only the second. The next opening
// does not see it, and writes a batch in the place of the first, even one with the same records; the second must never
// come back.
func TestStaleBatchDoesNotCount(t *testing.T) {
	for _, same := range []bool{true, false} {
		f := newFaulty(t, true)
		victim, err := f.put(1, tableID(1), 2)
		f.wantKind("put", err, wire.KindNone)
		f.reopen(false) // a checkpoint: what follows is all that is in the journal
		data, sums := makeData(t, f.arena, f.rng, 2)
		defer data.Release()
		writing, resume := make(chan struct{}), make(chan struct{})
		var first atomic.Bool
		f.dev.BeforeIO(func(op string, off int64, _ int) {
			if op == "write" && f.inData(off) && first.CompareAndSwap(false, true) {
				close(writing)
				<-resume
			}
		})
		done := make(chan error)
		go func() { done <- f.Put(context.Background(), 1, tableID(2), sums, data) }()
		<-writing
		for f.journal.count.Load() == 0 { // the first batch: the put, which goes on
			time.Sleep(time.Millisecond)
		}
		f.wantKind("delete", f.Delete(t.Context(), 1, []wire.StripID{tableID(1)}), wire.KindNone) // the second
		image := f.base.Image()
		at := f.sb.JournalOff + int64(f.journal.live.at(0).pos)*format.BlockSize
		close(resume)
		<-done
		_ = f.stop()
		clear(image[at : at+format.BlockSize])

		f.base = blockio.NewCrashDevice(image, true)
		f.running = mustStart(t, f.base, f.arena)
		f.wantBytes(tableID(1), victim)
		if !same {
			_, err = f.put(1, tableID(3), 1)
			f.wantKind("put", err, wire.KindNone)
		} else {
			f.wantKind("put again", f.Put(t.Context(), 1, tableID(2), sums, data), wire.KindNone)
		}
		f.reopen(true)
		f.wantBytes(tableID(1), victim)
	}
}

// TestStaleRecordsAreErased: of an append of two records the device kept only the second. The segment ends before both, and
// after another append in the place of the first, and another crash, the second still does not count.
func TestStaleRecordsAreErased(t *testing.T) {
	f := newFaulty(t, true)
	acked, err := f.appendRecords(logID(1), 0, 0)
	f.wantKind("append", err, wire.KindNone)
	lost, err := f.appendRecords(logID(1), uint64(len(acked)), 0, 2)
	f.wantKind("append", err, wire.KindNone)
	image := f.base.Image()
	at := f.dataOffset(f.idx.Runs(logID(1))[0]) + int64(len(acked))
	_ = f.stop()
	clear(image[at : at+format.BlockSize])

	f.base = blockio.NewCrashDevice(image, true)
	f.running = mustStart(t, f.base, f.arena)
	if entries, _ := f.List(1, wire.ClassLog, wire.StripID{}, 0); len(entries) != 1 || entries[0].Len != uint64(len(acked)) {
		t.Fatalf("%+v; want a length of %d", entries, len(acked))
	}
	again, err := f.appendRecords(logID(1), uint64(len(acked)), 0)
	f.wantKind("append", err, wire.KindNone)
	if bytes.Equal(again, lost[:format.BlockSize]) {
		t.Fatal("the test appends the same record")
	}
	f.reopen(true)
	entries, _ := f.List(1, wire.ClassLog, wire.StripID{}, 0)
	if want := uint64(len(acked) + len(again)); entries[0].Len != want {
		t.Errorf("length %d after the restart, want %d", entries[0].Len, want)
	}
	f.wantBytes(logID(1), append(acked, again...))
}
