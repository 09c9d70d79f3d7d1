package drive_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/crakefs/crake/drive"
	"github.com/crakefs/crake/drive/internal/blockio"
	fmtpkg "github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/drive/internal/image"
	"github.com/crakefs/crake/drive/internal/store"
	"github.com/crakefs/crake/wire"
)

const (
	sampleStrips   = 20
	sampleBuckets  = 2
	sampleAppends  = 3 // records of the open segment
	sampleBlocks   = 4 // of each strip
	sampleSegIndex = 100
)

func sampleStrip(i int) wire.StripID {
	return wire.MakeStripID(wire.BucketID(i%sampleBuckets), wire.ClassTable, 0, uint64(i), 0, 7)
}

func sampleSegment(i int) wire.StripID {
	return wire.MakeStripID(1, wire.ClassLog, 0, uint64(sampleSegIndex+i), 0, 7)
}

// sampleDrive makes a drive with strips, a sealed and an open segment, and a fence, and leaves it as a process that was killed does: all of
// it in the journal.
func sampleDrive(t *testing.T) (path string) {
	t.Helper()
	dir := t.TempDir()
	path = filepath.Join(dir, "sample")
	format(t, path, 1)
	dev, err := blockio.OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	arena, err := wire.NewArena(16 << 20)
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(dev, store.Config{Arena: arena, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.Fence(ctx, 1, 5))
	for i := range 2 {
		for n := range sampleAppends {
			data := testRecord(t, arena, sampleSegment(i), uint64(n)*wire.BlockSize)
			_, err := s.Append(ctx, 5, sampleSegment(i), uint64(n)*wire.BlockSize, data)
			must(err)
			data.Release()
		}
	}
	_, err = s.Seal(ctx, 5, sampleSegment(0))
	must(err)
	for i := range sampleStrips {
		data, sums := testData(t, arena, byte(i), sampleBlocks)
		must(s.Put(ctx, 5, sampleStrip(i), sums, data))
		data.Release()
	}
	killed := filepath.Join(dir, "killed")
	copyFile(t, path, killed)
	stop()
	must(<-done)
	must(dev.Close())
	must(arena.Close())
	return killed
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o400) // read only: as root this binds nobody, but it is as people keep images
	}
	if err != nil {
		t.Fatal(err)
	}
}

// closeOrderly opens the drive and ends it, so that all is in a checkpoint and nothing in the journal.
func closeOrderly(t *testing.T, path string) {
	t.Helper()
	dev, err := blockio.OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(dev, store.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := errors.Join(s.Run(ctx), dev.Close()); err != nil {
		t.Fatal(err)
	}
}

// sampleState reads what lies on the device.
func sampleState(t *testing.T, path string) *image.State {
	t.Helper()
	dev, err := image.OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dev.Close() }()
	sbs, err := image.ReadSuperblocks(dev, path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := image.Load(dev, sbs.Sound, path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// damage changes bytes of a file.
func damage(t *testing.T, path string, off int64, change func(b []byte)) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	b := make([]byte, wire.BlockSize)
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	change(b)
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

func flip(at int) func(b []byte) { return func(b []byte) { b[at] ^= 0x10 } }
func zero(b []byte)              { clear(b) }

func hashFile(t *testing.T, path string) [32]byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return [32]byte(h.Sum(nil))
}

// place gives where on the device a block of a strip or segment lies.
func place(s *image.State, id wire.StripID, block uint64) int64 {
	for _, r := range s.Index.Runs(id) {
		if block < uint64(r.Blocks()) {
			return image.DataOffset(s.Superblock, fmtpkg.MakeRun(r.Start()+block, 1))
		}
		block -= uint64(r.Blocks())
	}
	panic("no such block")
}

// TestCheckFindsDamage: each kind of damage is found and named with its place, is told from what a crash leaves, and nothing
// is written: neither by check nor by inspect.
func TestCheckFindsDamage(t *testing.T) {
	for _, c := range []struct {
		name     string
		orderly  bool // the drive was closed in order before
		damage   func(t *testing.T, path string, s *image.State) (off int64)
		severity string // of the finding; "" for none
		part     string
		want     string // in its text
	}{
		{name: "sound"},
		{name: "sound and closed", orderly: true},
		{"first superblock", false, func(t *testing.T, p string, s *image.State) int64 { damage(t, p, 0, flip(50)); return 0 }, "damage", "superblock", "checksum"},
		{"superblock copy", false, func(t *testing.T, p string, s *image.State) int64 {
			off := s.Superblock.SuperblockOffsets()[1]
			damage(t, p, off, zero)
			return off
		}, "damage", "superblock", "opening writes it again"},
		{"early strip", false, func(t *testing.T, p string, s *image.State) int64 {
			damage(t, p, place(s, sampleStrip(3), 2), flip(77))
			return place(s, sampleStrip(3), 0)
		}, "damage", "strip", "does not match its checksum"},
		{"last put", false, func(t *testing.T, p string, s *image.State) int64 {
			damage(t, p, place(s, sampleStrip(sampleStrips-1), 2), flip(77))
			return place(s, sampleStrip(sampleStrips-1), 0)
		}, "note", "strip", "under way"},
		{"the same put when no crash explains it", true, func(t *testing.T, p string, s *image.State) int64 {
			damage(t, p, place(s, sampleStrip(sampleStrips-1), 2), flip(77))
			return place(s, sampleStrip(sampleStrips-1), 0)
		}, "damage", "strip", "does not match its checksum"},
		{"sealed segment", false, func(t *testing.T, p string, s *image.State) int64 {
			damage(t, p, place(s, sampleSegment(0), 1), flip(200))
			return place(s, sampleSegment(0), 1)
		}, "damage", "segment", "ends at 4096 of 12288"},
		{"open segment, middle record", false, func(t *testing.T, p string, s *image.State) int64 {
			damage(t, p, place(s, sampleSegment(1), 1), zero)
			return place(s, sampleSegment(1), 2)
		}, "note", "segment", "opening erases it"},
		{"middle of the journal", false, func(t *testing.T, p string, s *image.State) int64 {
			damage(t, p, s.Superblock.JournalOff+int64(s.Journal.Batches[5].Block)*wire.BlockSize, flip(100))
			return -1
		}, "damage", "index", "journal batch 6, expected at 1069056, is damaged"},
		{"last batch", false, func(t *testing.T, p string, s *image.State) int64 {
			off := s.Superblock.JournalOff + int64(s.Journal.Batches[len(s.Journal.Batches)-1].Block)*wire.BlockSize
			damage(t, p, off, flip(100))
			return off
		}, "note", "journal", "is torn"},
		{"the only checkpoint", true, func(t *testing.T, p string, s *image.State) int64 {
			damage(t, p, s.Superblock.PageOffset(s.Area, 0), flip(100))
			damage(t, p, s.Superblock.CheckpointOff[1-s.Area], flip(100))
			return -1
		}, "damage", "index", "page 0 of checkpoint 2"},
		{"the newest checkpoint", true, func(t *testing.T, p string, s *image.State) int64 {
			damage(t, p, s.Superblock.PageOffset(s.Area, 0), flip(100))
			return s.Superblock.CheckpointOff[s.Area]
		}, "damage", "checkpoint", "opening uses the older one"},
		{"header of the older checkpoint", true, func(t *testing.T, p string, s *image.State) int64 {
			off := s.Superblock.CheckpointOff[1-s.Area]
			damage(t, p, off, flip(100))
			return off
		}, "note", "checkpoint", "cut off"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := sampleDrive(t)
			if c.orderly {
				closeOrderly(t, path)
			}
			off := int64(0)
			if c.damage != nil {
				off = c.damage(t, path, sampleState(t, path))
			}
			before := hashFile(t, path)
			r, err := drive.Check(t.Context(), drive.CheckConfig{Path: path})
			if err != nil {
				t.Fatal(err)
			}
			if in, err := drive.Inspect(t.Context(), path); err != nil && (in == nil || !errors.Is(err, wire.KindCorrupt)) {
				t.Error(err)
			}
			if hashFile(t, path) != before {
				t.Fatal("the device was changed")
			}
			if r.Sound != (c.severity != drive.FindingDamage) {
				t.Errorf("sound is %t: %+v", r.Sound, r.Findings)
			}
			found := slices.ContainsFunc(r.Findings, func(f drive.Finding) bool {
				return f.Severity == c.severity && f.Part == c.part && f.Offset == off && strings.Contains(f.Text, c.want)
			})
			if c.severity == "" && len(r.Findings) > 0 || c.severity != "" && !found {
				t.Errorf("want %s of %s at %d with %q: %+v", c.severity, c.part, off, c.want, r.Findings)
			}
			if c.severity == "" && (r.Strips != sampleStrips || r.Segments != 2 || r.ReadBytes < r.DataBytes || r.DataBytes != (sampleStrips*sampleBlocks+2*sampleAppends)*wire.BlockSize) {
				t.Errorf("%+v", r)
			}
		})
	}
}

// TestCheckForetells: what check says that opening does, opening does.
func TestCheckForetells(t *testing.T) {
	path := sampleDrive(t)
	s := sampleState(t, path)
	dropped := sampleStrip(sampleStrips - 1)
	damage(t, path, place(s, dropped, 0), zero)
	damage(t, path, place(s, sampleSegment(1), 1), zero)
	damage(t, path, s.Superblock.SuperblockOffsets()[1], zero)
	r, err := drive.Check(t.Context(), drive.CheckConfig{Path: path, Quick: true})
	if err != nil {
		t.Fatal(err)
	}
	if r.DropsPuts != 1 || r.ErasesBlocks != 1 || r.RepairsSuperblocks != 1 || r.ReplaysBatches != len(s.Journal.Batches) || r.ReadBytes != 0 {
		t.Errorf("%+v", r)
	}
	closeOrderly(t, path)
	after := sampleState(t, path)
	if _, ok := after.Index.Get(dropped); ok {
		t.Error("the put that check foretold to be dropped is there")
	}
	if got := after.Index.Segment(sampleSegment(1)).Len; got != wire.BlockSize {
		t.Errorf("the segment has %d bytes", got)
	}
	r, err = drive.Check(t.Context(), drive.CheckConfig{Path: path})
	if err != nil || !r.Sound || len(r.Findings) != 0 || r.DropsPuts+r.ErasesBlocks+r.RepairsSuperblocks+r.ReplaysBatches != 0 {
		t.Errorf("after opening: %+v, %v", r, err)
	}
}

// TestInspect: the numbers are what is there.
func TestInspect(t *testing.T) {
	path := sampleDrive(t)
	in, err := drive.Inspect(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if sb := in.Superblock; sb.Drive != 1 || sb.Cluster != testCluster.String() || sb.Version != 1 || in.DeviceBytes != sb.UsedBytes || len(sb.DamagedCopies) != 0 {
		t.Errorf("%+v", sb)
	}
	if c := in.Checkpoints; len(c) != 2 || c[0].State != "in use" || c[0].Seq != 1 || c[1].State != "never written" {
		t.Errorf("%+v", c)
	}
	j := in.Journal
	if j.FirstSeq != 1 || j.Records["put"] != sampleStrips || j.Records["seal"] != 1 || j.Records["fence"] != 1 || j.Records["alloc"] != 2 ||
		j.Batches != sampleStrips+4 || j.NextSeq != uint64(j.Batches)+1 || j.UnderWay == 0 || j.Torn {
		t.Errorf("%+v", j)
	}
	sp := in.Space
	allocated := in.OpenSegments[0].AllocatedBytes
	if sp.Strips != sampleStrips || sp.Segments != 2 || sp.UsedBytes != (sampleStrips*sampleBlocks+sampleAppends)*wire.BlockSize+allocated ||
		sp.UsedBytes+sp.FreeBytes != sp.DataBytes || sp.FreeRuns == 0 || sp.LargestFreeRun == 0 || sp.LargestFreeRun > sp.FreeBytes || sp.ReserveBytes == 0 {
		t.Errorf("%+v", sp)
	}
	b := in.Buckets
	if len(b) != 2 || b[0].Bucket != 0 || b[1].Epoch != 5 || len(b[1].Classes) != 2 || b[1].Classes[0] != (drive.ClassInfo{Class: "log", Segments: 2, Bytes: 2 * sampleAppends * wire.BlockSize}) ||
		b[1].Classes[1] != (drive.ClassInfo{Class: "table", Strips: sampleStrips / 2, Bytes: sampleStrips / 2 * sampleBlocks * wire.BlockSize}) {
		t.Errorf("%+v", b)
	}
	if o := in.OpenSegments; len(o) != 1 || o[0].ID != sampleSegment(1).String() || o[0].Bytes != sampleAppends*wire.BlockSize {
		t.Errorf("%+v", o)
	}
	closeOrderly(t, path)
	in, err = drive.Inspect(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if c := in.Checkpoints; c[1].State != "in use" || c[1].Seq != 2 || c[1].Records < sampleStrips || c[0].State != "older" || in.Journal.Batches != 0 {
		t.Errorf("%+v, journal %+v", c, in.Journal)
	}
}

// TestInspectRefuses: a device in use, of something else, or of a newer layout is refused in one line that says so.
func TestInspectRefuses(t *testing.T) {
	dir := t.TempDir()
	inUse, newer, short := sampleDrive(t), sampleDrive(t), sampleDrive(t)
	dev, err := blockio.OpenFile(inUse)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dev.Close() }()
	for _, off := range sampleState(t, newer).Superblock.SuperblockOffsets() {
		damage(t, newer, off, func(b []byte) {
			sb, err := fmtpkg.DecodeSuperblock(b)
			if err != nil {
				t.Fatal(err)
			}
			sb.Version++
			sb.Encode(b)
		})
	}
	if err := os.Truncate(short, 20<<20); err != nil {
		t.Fatal(err)
	}
	empty, foreign := filepath.Join(dir, "empty"), filepath.Join(dir, "foreign")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	writeAt(t, foreign, 0x438, "\x53\xef")
	for _, c := range []struct {
		path string
		kind wire.Kind
		want string
	}{
		{inUse, wire.KindRefused, "a running drive has it open"},
		{newer, wire.KindVersion, "use newer software"},
		{short, wire.KindRefused, "is it cut off?"},
		{empty, wire.KindRefused, "not a drive"},
		{foreign, wire.KindRefused, "not a drive"},
		{filepath.Join(dir, "missing"), wire.KindNotFound, "no such file"},
		{dir, wire.KindRefused, "neither a regular file nor a block device"},
		{"", wire.KindInvalid, "missing"},
	} {
		_, ierr := drive.Inspect(t.Context(), c.path)
		_, cerr := drive.Check(t.Context(), drive.CheckConfig{Path: c.path})
		for _, err := range []error{ierr, cerr} {
			if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: %v; want %v with %q", c.path, err, c.kind, c.want)
			}
		}
	}
	// While it is only read, others may read, and no drive may start.
	only, err := image.OpenFile(short)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = only.Close() }()
	if again, err := image.OpenFile(short); err != nil {
		t.Errorf("a second reader: %v", err)
	} else {
		_ = again.Close()
	}
	if _, err := blockio.OpenFile(short); !errors.Is(err, wire.KindRefused) {
		t.Errorf("a drive on a device that is being read: %v", err)
	}
}
