package format

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/crakefs/crake/wire"
)

// update writes the golden files anew.
var update = os.Getenv("CRAKE_GOLDEN") == "write"

func sampleSuperblock() *Superblock {
	return &Superblock{
		Version: Version1, Drive: 7, Cluster: wire.ClusterID{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16},
		FormatID: 0x1122334455667788, Created: 1700000000000000000, Geometry: DefaultGeometry(4 << 30),
	}
}

func sampleRecords() []Record {
	id := wire.MakeStripID(3, wire.ClassData, 5, 1234, 6, 0xabcdef)
	return []Record{
		{Type: RecordPut, ID: id, Epoch: 9, Sum: 0xfeedface, Runs: []Run{MakeRun(100, 32)}},
		{Type: RecordPut, ID: id.WithPos(1), Epoch: 9, Sum: 0xfeed, Runs: []Run{MakeRun(1, 2), MakeRun(500, 30)}},
		{Type: RecordAlloc, Arg: 2, ID: id.WithPos(2), Epoch: 9, Len: 8 * BlockSize, Runs: []Run{MakeRun(4096, 64)}},
		{Type: RecordSeal, ID: id.WithPos(2), Epoch: 9, Len: 9 * BlockSize},
		{Type: RecordDelete, ID: id},
		{Type: RecordFence, Arg: 3, Epoch: 10},
	}
}

func sampleBatch(isPage bool) []byte {
	b := make([]byte, PageBytes)
	h := Batch{IsPage: isPage, Drive: 7, FormatID: 0x1122334455667788, Seq: 42, Nonce: 0x99, Blocks: 1}
	if isPage {
		h.Blocks = PageBytes / BlockSize
	} else {
		h.Prev, h.LowWater = 0x77, 40
	}
	enc := b[BatchHeaderBytes:BatchHeaderBytes]
	for _, r := range sampleRecords() {
		enc = r.Append(enc)
		h.Records++
	}
	h.Bytes = len(enc)
	h.Encode(b)
	return b[:h.Blocks*BlockSize]
}

func sampleCheckpoint() *Checkpoint {
	return &Checkpoint{
		Drive: 7, FormatID: 0x1122334455667788, Seq: 12, JournalSeq: 43, JournalBlock: 17, JournalPrev: 0x1234, Pages: 2,
		Records: 2000, Written: 1700000000000000001,
	}
}

// samples are the structures of the layout, encoded. What follows the last byte that is not zero is not in the golden.
func samples() map[string][]byte {
	sb, cp := make([]byte, BlockSize), make([]byte, BlockSize)
	sampleSuperblock().Encode(sb)
	sampleCheckpoint().Encode(cp)
	return map[string][]byte{"superblock": sb, "checkpoint": cp, "batch": sampleBatch(false), "page": sampleBatch(true)}
}

// TestGoldens: the bytes of each structure never change, and decode for ever.
func TestGoldens(t *testing.T) {
	for name, b := range samples() {
		path := filepath.Join("testdata", "v1-"+name+".hex")
		b = bytes.TrimRight(b, "\x00")
		if update {
			if err := os.MkdirAll("testdata", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(hex.Dump(b)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.Dump(b); got != string(want) {
			t.Errorf("%s changed; a released format never does. Got\n%s", name, got)
		}
	}
}

// TestRoundTrip: what is encoded decodes equal.
func TestRoundTrip(t *testing.T) {
	b := samples()
	sb, err := DecodeSuperblock(b["superblock"])
	if err != nil || !reflect.DeepEqual(sb, sampleSuperblock()) {
		t.Errorf("superblock: %+v, %v", sb, err)
	}
	cp, err := DecodeCheckpoint(b["checkpoint"], sampleSuperblock())
	if err != nil || !reflect.DeepEqual(cp, sampleCheckpoint()) {
		t.Errorf("checkpoint: %+v, %v", cp, err)
	}
	for _, name := range []string{"batch", "page"} {
		h, err := DecodeBatch(b[name])
		if err != nil || h.Seq != 42 || h.Nonce != 0x99 || h.Records != 6 || h.IsPage != (name == "page") {
			t.Errorf("%s: %+v, %v", name, h, err)
		}
		var got []Record
		err = h.ForEach(b[name], 1<<20, func(r *Record) error {
			c := *r
			c.Runs = append([]Run(nil), r.Runs...)
			got = append(got, c)
			return nil
		})
		if err != nil || !reflect.DeepEqual(got, sampleRecords()) {
			t.Errorf("%s: records %+v, %v", name, got, err)
		}
	}
}

// TestSizes asserts what FORMAT.md and the arithmetic of limits rely on.
func TestSizes(t *testing.T) {
	put := Record{Type: RecordPut, Runs: []Run{1}}
	if put.Bytes() != 48 {
		t.Errorf("a put of one run takes %d bytes, the checkpoint's share is reckoned with 48", put.Bytes())
	}
	big := Record{Type: RecordPut, Runs: make([]Run, MaxRuns)}
	if big.Bytes() != MaxRecordBytes || MaxRecordBytes > MaxPageBytes/8 {
		t.Errorf("largest record %d, MaxRecordBytes %d", big.Bytes(), MaxRecordBytes)
	}
	for _, size := range []int64{MinDeviceBytes, 64 << 20, 4 << 30, 16 << 40, MaxDeviceBytes} {
		g := DefaultGeometry(size)
		if err := g.Validate(); err != nil {
			t.Errorf("%d bytes: %v", size, err)
		}
		if over := float64(size-g.DataBytes) / float64(size); size >= 1<<30 && over > 0.035 {
			t.Errorf("%d bytes: %.3f of it is not for data", size, over)
		}
	}
}

// TestEveryBitCounts: one flipped bit anywhere in a structure is found.
func TestEveryBitCounts(t *testing.T) {
	decode := map[string]func(b []byte) error{
		"superblock": func(b []byte) error { _, err := DecodeSuperblock(b); return err },
		"checkpoint": func(b []byte) error { _, err := DecodeCheckpoint(b, sampleSuperblock()); return err },
		"batch":      func(b []byte) error { _, err := DecodeBatch(b); return err },
	}
	used := map[string]int{"superblock": BlockSize, "checkpoint": BlockSize, "batch": 0}
	h, _ := DecodeBatch(sampleBatch(false))
	used["batch"] = BatchHeaderBytes + h.Bytes
	for name, f := range decode {
		b := samples()[name]
		for bit := range used[name] * 8 {
			b[bit/8] ^= 1 << (bit % 8)
			if err := f(b); err == nil {
				t.Fatalf("%s: bit %d of byte %d flipped, and it decodes", name, bit%8, bit/8)
			}
			b[bit/8] ^= 1 << (bit % 8)
		}
	}
}

// TestRecordBounds: what a record says of blocks is bounded by the data area and by the largest strip; index.entry relies on it.
func TestRecordBounds(t *testing.T) {
	id := sampleRecords()[0].ID
	const area = 1 << 23
	for _, c := range []struct {
		what string
		r    Record
		ok   bool
	}{
		{"the largest strip", Record{Type: RecordPut, ID: id, Runs: []Run{MakeRun(0, MaxStripBlocks)}}, true},
		{"a larger one", Record{Type: RecordPut, ID: id, Runs: []Run{MakeRun(0, MaxStripBlocks+1)}}, false},
		{"a larger one in two runs", Record{Type: RecordPut, ID: id, Runs: []Run{MakeRun(0, MaxStripBlocks), MakeRun(5000, 1)}}, false},
		{"a run of a segment that is larger", Record{Type: RecordAlloc, ID: id, Runs: []Run{MakeRun(0, MaxStripBlocks+1)}}, true},
		{"an empty run", Record{Type: RecordAlloc, ID: id, Runs: []Run{MakeRun(5, 0)}}, false},
		{"the end of the area", Record{Type: RecordAlloc, ID: id, Runs: []Run{MakeRun(area-1, 1)}}, true},
		{"beyond it", Record{Type: RecordAlloc, ID: id, Runs: []Run{MakeRun(area-1, 2)}}, false},
		{"far beyond it", Record{Type: RecordAlloc, ID: id, Runs: []Run{MakeRun(1<<40-1, 1<<24-1)}}, false},
		{"a length that is not of blocks", Record{Type: RecordSeal, ID: id, Len: 5}, false},
		{"a length beyond the area", Record{Type: RecordSeal, ID: id, Len: (area + 1) * BlockSize}, false},
		{"a bucket that is none", Record{Type: RecordFence, Arg: 1 << 16, Epoch: 1}, false},
	} {
		var got Record
		_, err := DecodeRecord(c.r.Append(nil), area, &got)
		if (err == nil) != c.ok || err != nil && !errors.Is(err, wire.KindCorrupt) {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}

func TestNewerVersionIsRefused(t *testing.T) {
	sb := sampleSuperblock()
	sb.Version = CurrentVersion + 1
	b := make([]byte, BlockSize)
	sb.Encode(b)
	if _, err := DecodeSuperblock(b); !errors.Is(err, wire.KindVersion) {
		t.Errorf("a newer layout: %v", err)
	}
}

func TestGeometryRefusesOverlap(t *testing.T) {
	good := DefaultGeometry(1 << 30)
	for name, change := range map[string]func(g *Geometry){
		"journal over superblock":  func(g *Geometry) { g.JournalOff = 0 },
		"checkpoint over journal":  func(g *Geometry) { g.CheckpointOff[0] -= BlockSize },
		"data over the end":        func(g *Geometry) { g.DataBytes += BlockSize },
		"negative":                 func(g *Geometry) { g.DataBytes = -BlockSize },
		"not whole blocks":         func(g *Geometry) { g.DataOff++ },
		"a journal of nothing":     func(g *Geometry) { g.JournalBytes = BlockSize },
		"offsets past all numbers": func(g *Geometry) { g.DataOff = 1<<63 - BlockSize },
	} {
		g := good
		change(&g)
		if err := g.Validate(); !errors.Is(err, wire.KindCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

type memory []byte

func (m memory) ReadAt(p []byte, off int64) error { copy(p, m[off:]); return nil }
func (m memory) Size() int64                      { return int64(len(m)) }

func TestInspect(t *testing.T) {
	for what, put := range map[string]func(b []byte){
		"":                        func([]byte) {},
		"an ext2/3/4 filesystem":  func(b []byte) { copy(b[0x438:], "\x53\xef") },
		"an XFS filesystem":       func(b []byte) { copy(b, "XFSB") },
		"a GPT partition table":   func(b []byte) { copy(b[0x1fe:], "\x55\xaa"); copy(b[0x200:], "EFI PART") },
		"a partition table (MBR)": func(b []byte) { copy(b[0x1fe:], "\x55\xaa") },
		"a LUKS encrypted volume": func(b []byte) { copy(b, "LUKS\xba\xbe") },
		"swap space":              func(b []byte) { copy(b[0xff6:], "SWAPSPACE2") },
		"unknown data (byte 70000 of the first 1024 KiB is not zero)":  func(b []byte) { b[70000] = 1 },
		"unknown data (byte 1048575 of the last 1024 KiB is not zero)": func(b []byte) { b[len(b)-1] = 0xff },
	} {
		b := make([]byte, 32<<20)
		put(b)
		c, err := Inspect(memory(b), func(n int) []byte { return make([]byte, n) })
		if err != nil || c.Foreign != what || c.Superblock != nil {
			t.Errorf("want %q: %+v, %v", what, c, err)
		}
	}
	for _, at := range []int{0, 32<<20 - BlockSize} {
		b := make([]byte, 32<<20)
		sampleSuperblock().Encode(b[at : at+BlockSize])
		c, err := Inspect(memory(b), func(n int) []byte { return make([]byte, n) })
		if err != nil || c.Superblock == nil || c.Superblock.Drive != 7 {
			t.Errorf("superblock at %d: %+v, %v", at, c, err)
		}
	}
}

// FuzzDecode: no bytes make a decoder panic, and what decodes with records encodes to the same records.
func FuzzDecode(f *testing.F) {
	for _, name := range []string{"superblock", "checkpoint", "batch"} { // a page is as a batch, and long
		f.Add(samples()[name])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		typed := func(err error) {
			if k := wire.KindOf(err); k != wire.KindCorrupt && k != wire.KindVersion {
				t.Fatalf("not a typed error: %v", err)
			}
		}
		if _, err := DecodeSuperblock(b); err != nil {
			typed(err)
		}
		if _, err := DecodeCheckpoint(b, sampleSuperblock()); err != nil {
			typed(err)
		}
		h, err := DecodeBatch(b)
		if err != nil {
			typed(err)
			h = Batch{Bytes: max(0, len(b)-BatchHeaderBytes), Records: 100}
			if len(b) < BatchHeaderBytes {
				return
			}
		}
		err = h.ForEach(b, 1<<20, func(r *Record) error {
			enc := r.Append(nil)
			var again Record
			n, err := DecodeRecord(enc, 1<<20, &again)
			if err != nil || n != len(enc) || len(again.Runs) != len(r.Runs) || again.ID != r.ID || again.Len != r.Len {
				t.Fatalf("%+v encodes to what decodes as %+v, %v", r, again, err)
			}
			return nil
		})
		if err != nil {
			typed(err)
		}
	})
}
