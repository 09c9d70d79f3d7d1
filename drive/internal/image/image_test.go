package image

import (
	"bytes"
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/cespare/xxhash/v2"

	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/drive/internal/index"
	"github.com/crakefs/crake/wire"
)

// memory is a device in memory; fail says which reads fail.
type memory struct {
	b    []byte
	fail func(off int64) error
}

func (m *memory) ReadAt(p []byte, off int64) error {
	if m.fail != nil {
		if err := m.fail(off); err != nil {
			return err
		}
	}
	copy(p, m.b[off:])
	return nil
}

func (m *memory) Size() int64 { return int64(len(m.b)) }

var errUnreadable = wire.Errorf("device.read", wire.KindIO, "", "unreadable")

const testSize = 4 << 20

// drive gives an empty formatted device, but for its checkpoint.
func drive(t *testing.T) (*memory, *format.Superblock) {
	t.Helper()
	sb := &format.Superblock{
		Version: format.CurrentVersion, Drive: 7, Cluster: wire.ClusterID{1}, FormatID: 99, Created: 1,
		Geometry: format.MakeGeometry(testSize, 2*format.MaxBatchBlocks*format.BlockSize, 2*format.PageBytes+format.BlockSize, format.BlockSize),
	}
	m := &memory{b: make([]byte, testSize)}
	for _, off := range sb.SuperblockOffsets() {
		sb.Encode(m.b[off : off+format.BlockSize])
	}
	return m, sb
}

// TestReadSuperblocks: either copy serves, and the other is named; without one the error says whether it was no drive or could not be read.
func TestReadSuperblocks(t *testing.T) {
	const last = testSize - format.BlockSize
	for _, c := range []struct {
		name    string
		damage  func(m *memory)
		kind    wire.Kind
		damaged []int64
	}{
		{"both", func(*memory) {}, wire.KindNone, nil},
		{"the first is damaged", func(m *memory) { m.b[100] ^= 1 }, wire.KindNone, []int64{0}},
		{"the copy is damaged", func(m *memory) { m.b[last+4000] ^= 1 }, wire.KindNone, []int64{last}},
		{"the first cannot be read", func(m *memory) { m.fail = failAt(0) }, wire.KindNone, []int64{0}},
		{"neither", func(m *memory) { m.b[0] ^= 1; m.b[last] ^= 1 }, wire.KindRefused, nil},
		{"one damaged, one unreadable", func(m *memory) { m.b[0] ^= 1; m.fail = failAt(last) }, wire.KindIO, nil},
		{"cut off", func(m *memory) { m.b = m.b[:testSize/2] }, wire.KindRefused, nil},
		{"of one block", func(m *memory) { m.b = m.b[:format.BlockSize] }, wire.KindRefused, nil},
	} {
		m, sb := drive(t)
		c.damage(m)
		got, err := ReadSuperblocks(m, "path")
		if wire.KindOf(err) != c.kind {
			t.Errorf("%s: %v, want %v", c.name, err, c.kind)
		}
		if err != nil {
			continue
		}
		var damaged []int64
		for _, d := range got.Damaged {
			damaged = append(damaged, d.Off)
		}
		if *got.Sound != *sb || len(damaged) != len(c.damaged) || len(damaged) > 0 && damaged[0] != c.damaged[0] {
			t.Errorf("%s: damaged %v, want %v", c.name, damaged, c.damaged)
		}
	}
}

func failAt(at int64) func(int64) error {
	return func(off int64) error {
		if off == at {
			return errUnreadable
		}
		return nil
	}
}

// TestReadAreas: what was never written is blank; anything else that is no checkpoint says why; Load needs one of them.
func TestReadAreas(t *testing.T) {
	m, sb := drive(t)
	c := &format.Checkpoint{Drive: sb.Drive, FormatID: sb.FormatID, Seq: 3, JournalSeq: 1, JournalPrev: sb.FormatID}
	c.Encode(m.b[sb.CheckpointOff[1]:][:format.BlockSize])
	areas := ReadAreas(m, sb)
	if !areas[0].Blank || areas[0].Err != nil || areas[1].Header == nil || areas[1].Header.Seq != 3 {
		t.Errorf("%+v", areas)
	}
	s, err := Load(m, sb, "path")
	if err != nil || s.Area != 1 || s.Index.Len() != 0 || s.Alloc.FreeBlocks() != sb.DataBlocks() || len(s.PassedOver) != 0 {
		t.Errorf("%+v, %v", s, err)
	}
	m.b[sb.CheckpointOff[0]] = 1
	if areas = ReadAreas(m, sb); areas[0].Blank || areas[0].Err == nil {
		t.Errorf("%+v", areas[0])
	}
	if s, err = Load(m, sb, "path"); err != nil || len(s.PassedOver) != 1 {
		t.Errorf("%v", err)
	}
	m.b[sb.CheckpointOff[1]] ^= 1
	if _, err = Load(m, sb, "path"); wire.KindOf(err) != wire.KindCorrupt {
		t.Errorf("no checkpoint: %v", err)
	}
	m.fail = failAt(sb.CheckpointOff[1])
	if _, err = Load(m, sb, "path"); wire.KindOf(err) != wire.KindIO {
		t.Errorf("a checkpoint that cannot be read: %v", err)
	}
}

// TestSuspects: of the puts above the low water each id is there once, the newest.
func TestSuspects(t *testing.T) {
	id := func(n uint64) wire.StripID { return wire.StripID{Lo: n} }
	got := suspects([]Suspect{{id(2), 5}, {id(1), 6}, {id(3), 4}, {id(2), 8}, {id(1), 5}}, 4)
	if len(got) != 2 || got[0] != (Suspect{id(1), 6}) || got[1] != (Suspect{id(2), 8}) {
		t.Errorf("%v", got)
	}
}

// segment writes records of one inline payload each over runs, and gives them as a reader reads them.
func segment(t *testing.T, m *memory, sb *format.Superblock, id wire.StripID, runs []format.Run, records int) {
	t.Helper()
	for i := range records {
		at := index.Part(runs, uint64(i), 1, nil)[0]
		payload := bytes.Repeat([]byte{byte(i + 1)}, 100)
		r := wire.SegRecord{ID: id.WithPos(0), Offset: uint64(i) * format.BlockSize, Payload: len(payload), Epoch: 1}
		r.EncodeHead(m.b[DataOffset(sb, at):][:format.BlockSize], payload)
	}
}

// TestSettle: a put whose data is another's or cannot be read is dropped; an open segment ends with its last sound record, what looks like
// a later one is to be erased, and where it cannot be read it takes no append. What fails for a moment is read again.
func TestSettle(t *testing.T) {
	m, sb := drive(t)
	x := index.New()
	run := func(start uint64, n int) format.Run { return format.MakeRun(start, n) }
	strip := func(n uint64) wire.StripID { return wire.MakeStripID(1, wire.ClassTable, 0, n, 0, 1) }
	for n := range uint64(3) {
		b := m.b[DataOffset(sb, run(n, 1)):][:format.BlockSize]
		b[0] = byte(n + 1)
		x.PutStrip(strip(n), wire.StripSum([]uint64{xxhash.Sum64(b)}), []format.Run{run(n, 1)})
	}
	m.b[DataOffset(sb, run(1, 1))] ^= 1
	log := wire.MakeStripID(1, wire.ClassLog, 0, 9, 0, 1)
	runs := []format.Run{run(20, 2), run(10, 6)}
	segment(t, m, sb, log, runs, 6)
	m.b[DataOffset(sb, run(11, 1))+200] ^= 1 // the fourth record
	x.AddRuns(log, 0, format.BlockSize, runs)
	blind := wire.MakeStripID(1, wire.ClassLog, 0, 10, 0, 1)
	x.AddRuns(blind, 0, 0, []format.Run{run(30, 2)})
	moments := atomic.Int32{}
	m.fail = func(off int64) error {
		if off == DataOffset(sb, run(2, 1)) || off == DataOffset(sb, run(30, 2)) || off == DataOffset(sb, run(0, 1)) && moments.Add(1) == 1 {
			return errUnreadable
		}
		return nil
	}
	s := &State{Superblock: sb, Index: x, Suspects: []Suspect{{strip(0), 1}, {strip(1), 1}, {strip(2), 1}, {strip(77), 1}}}
	got, err := s.Settle(DataReader(m, sb))
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Drop) != 2 || got.Drop[0] != strip(1) || got.Drop[1] != strip(2) {
		t.Errorf("dropped %v", got.Drop)
	}
	for _, e := range got.Segments {
		switch {
		case e.Segment.ID == blind:
			if e.Len != 0 || e.Err == nil {
				t.Errorf("what cannot be read: %+v", e)
			}
		case e.Len != 3*format.BlockSize || e.Err != nil || len(e.Erase) != 3 || e.Erase[0] != run(11, 1):
			t.Errorf("%+v", e)
		}
	}
	got.Adopt()
	if seg := x.Segment(log); seg.Len != 3*format.BlockSize || seg.Damaged || !x.Segment(blind).Damaged {
		t.Error("not adopted")
	}
	var read atomic.Uint64
	found := map[wire.StripID]wire.Kind{}
	err = s.CheckData(context.Background(), DataReader(m, sb), &Settlement{Drop: got.Drop[1:]}, &read, func(b BadData) { found[b.ID] = wire.KindOf(b.Err) })
	if err != nil || len(found) != 1 || found[strip(1)] != wire.KindCorrupt || read.Load() == 0 {
		t.Errorf("check: %v, %v, %d bytes", err, found, read.Load())
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.CheckData(ended, DataReader(m, sb), got, &read, func(BadData) {}); wire.KindOf(err) != wire.KindInterrupted {
		t.Errorf("check that was interrupted: %v", err)
	}
}

// TestWindow: any place of what lies in several runs is read, and an error is the reader's.
func TestWindow(t *testing.T) {
	m, sb := drive(t)
	runs := []format.Run{format.MakeRun(5, 1), format.MakeRun(2, 2), format.MakeRun(100, 90)}
	var want []byte
	for i := range 93 {
		at := index.Part(runs, uint64(i), 1, nil)[0]
		b := m.b[DataOffset(sb, at):][:format.BlockSize]
		b[0], b[4095] = byte(i), byte(i*3)
		want = append(want, b...)
	}
	w := NewWindow(DataReader(m, sb), runs, uint64(len(want)))
	for _, c := range [][2]int{{0, 3}, {2, 4}, {3, 60}, {90, 3}, {0, 1}, {92, 1}} {
		got, err := w.Get(uint64(c[0]*format.BlockSize), c[1]*format.BlockSize)
		if err != nil || !bytes.Equal(got, want[c[0]*format.BlockSize:][:c[1]*format.BlockSize]) {
			t.Errorf("%d blocks at %d: %v, or other bytes", c[1], c[0], err)
		}
	}
	m.fail = func(int64) error { return errUnreadable }
	if _, err := w.Get(0, format.BlockSize); !errors.Is(err, wire.KindIO) {
		t.Errorf("%v", err)
	}
}

// TestReadAhead: pieces are used in order, each once, and whoever fails ends it.
func TestReadAhead(t *testing.T) {
	m := &memory{b: make([]byte, 5*aheadBytes+format.BlockSize)}
	for i := range m.b {
		m.b[i] = byte(i / aheadBytes)
	}
	look := func(buf []byte, off int64) (int64, error) { return off, nil }
	next, errStop := int64(0), errors.New("stop")
	use := func(stopAt int64) func(buf []byte, off int64) error {
		return func(buf []byte, off int64) error {
			if off == stopAt {
				return errStop
			}
			if off != next || buf[0] != byte(off/aheadBytes) {
				t.Errorf("piece at %d, want %d", off, next)
			}
			next += int64(len(buf))
			return nil
		}
	}
	if err := readAhead(m, 0, m.Size(), look, use(-1)); err != nil || next != m.Size() {
		t.Errorf("%v, %d bytes", err, next)
	}
	next = 0
	if err := readAhead(m, 0, m.Size(), look, use(2*aheadBytes)); !errors.Is(err, errStop) || next != 2*aheadBytes {
		t.Errorf("%v, %d bytes", err, next)
	}
	next, m.fail = 0, failAt(3*aheadBytes)
	if err := readAhead(m, 0, m.Size(), look, use(-1)); !errors.Is(err, wire.KindIO) || next != 3*aheadBytes {
		t.Errorf("%v, %d bytes", err, next)
	}
}

var _ Reader = blockio.Device(nil) // as Reader's comment says
