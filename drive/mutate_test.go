package drive_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"testing"

	"github.com/cespare/xxhash/v2"

	"github.com/crakefs/crake/drive"
	"github.com/crakefs/crake/drive/internal/blockio"
	fmtpkg "github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/drive/internal/image"
	"github.com/crakefs/crake/drive/internal/store"
	"github.com/crakefs/crake/wire"
)

// This file damages images where a checksum does not tell: structures are changed and get a new, right checksum, and the batches
// after a changed one continue its chain. So every check of what the structures say is reached. (store.TestMutatedImages and
// store.FuzzOpen change bytes alone.)

// mutant is an image to change.
type mutant struct {
	img   []byte
	sb    *fmtpkg.Superblock
	state *image.State // of the image before it was changed
	rng   *rand.Rand
	what  string // what was done
}

var le = binary.LittleEndian

const (
	mutantBytes = 3 << 20
	sumAt       = wire.BlockSize - 8 // in superblocks and headers of checkpoints
)

// mutantImage makes a drive with something in its checkpoint and something in its journal.
func mutantImage(t testing.TB, arena *wire.Arena) []byte {
	t.Helper()
	sb := &fmtpkg.Superblock{
		Version: fmtpkg.CurrentVersion, Drive: 1, Cluster: testCluster, FormatID: 99, Created: 1,
		Geometry: fmtpkg.MakeGeometry(mutantBytes, 2*fmtpkg.MaxBatchBlocks*wire.BlockSize, 4*fmtpkg.PageBytes+wire.BlockSize, wire.BlockSize),
	}
	dev := blockio.NewCrashDevice(make([]byte, mutantBytes), false)
	if err := store.Format(dev, sb); err != nil {
		t.Fatal(err)
	}
	for life := range 2 {
		s, stop := openMutant(t, dev, arena)
		if s == nil {
			t.Fatal("the image does not open")
		}
		for i := range 6 {
			data, sums := testData(t, arena, byte(life*16+i), 1+i%3)
			if err := s.Put(t.Context(), 5, sampleStrip(life*100+i), sums, data); err != nil {
				t.Fatal(err)
			}
			data.Release()
		}
		for i := range 2 {
			id := sampleSegment(life*10 + i)
			for n := range 3 {
				data := testRecord(t, arena, id, uint64(n)*wire.BlockSize)
				if _, err := s.Append(t.Context(), 5, id, uint64(n)*wire.BlockSize, data); err != nil {
					t.Fatal(err)
				}
				data.Release()
			}
		}
		if _, err := s.Seal(t.Context(), 5, sampleSegment(life*10)); err != nil {
			t.Fatal(err)
		}
		if err := s.Delete(t.Context(), 5, []wire.StripID{sampleStrip(life * 100)}); err != nil {
			t.Fatal(err)
		}
		if err := s.Fence(t.Context(), 1, wire.Epoch(6+life)-1); err != nil {
			t.Fatal(err)
		}
		if life == 1 {
			img := dev.Image()
			_ = stop()
			return img
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	}
	panic("not reached")
}

// openMutant opens and runs a store; nil when it does not open, which must be by a typed error.
func openMutant(t testing.TB, dev blockio.Device, arena *wire.Arena) (*store.Store, func() error) {
	t.Helper()
	s, err := store.Open(dev, store.Config{Arena: arena, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		switch wire.KindOf(err) {
		case wire.KindCorrupt, wire.KindRefused, wire.KindVersion:
			return nil, nil
		}
		t.Fatalf("not a typed error: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	return s, func() error { cancel(); return <-done }
}

func testData(t testing.TB, arena *wire.Arena, fill byte, blocks int) (wire.Data, []uint64) {
	t.Helper()
	buf, err := arena.Alloc(context.Background(), blocks*wire.BlockSize)
	if err != nil {
		t.Fatal(err)
	}
	var sums []uint64
	for i := range blocks {
		b := buf.Bytes()[i*wire.BlockSize:][:wire.BlockSize]
		for j := range b {
			b[j] = fill + byte(i) + byte(j)
		}
		sums = append(sums, xxhash.Sum64(b))
	}
	return buf.Data(blocks * wire.BlockSize), sums
}

func testRecord(t testing.TB, arena *wire.Arena, id wire.StripID, off uint64) wire.Data {
	t.Helper()
	buf, err := arena.Alloc(context.Background(), wire.BlockSize)
	if err != nil {
		t.Fatal(err)
	}
	r := wire.SegRecord{ID: id.WithPos(0), Offset: off, Epoch: 5, Payload: 8}
	r.EncodeHead(buf.Bytes()[:wire.BlockSize], []byte("a record"))
	return buf.Data(wire.BlockSize)
}

func newMutant(t testing.TB, image0 []byte, rng *rand.Rand) *mutant {
	t.Helper()
	img := bytes.Clone(image0)
	dev := blockio.NewCrashDevice(bytes.Clone(image0), false)
	sbs, err := image.ReadSuperblocks(dev, "memory")
	if err != nil {
		t.Fatal(err)
	}
	s, err := image.Load(dev, sbs.Sound, "memory")
	if err != nil {
		t.Fatal(err)
	}
	return &mutant{img: img, sb: sbs.Sound, state: s, rng: rng}
}

// number gives a number that is likely to be at a limit.
func (m *mutant) number() uint64 {
	switch m.rng.IntN(6) {
	case 0:
		return 0
	case 1:
		return m.rng.Uint64()
	case 2:
		return 1<<m.rng.IntN(64) - uint64(m.rng.IntN(2))
	case 3:
		return m.rng.Uint64N(1 << 16)
	case 4:
		return m.rng.Uint64N(mutantBytes/wire.BlockSize) * wire.BlockSize
	}
	return m.rng.Uint64N(300)
}

// field changes a field of n bytes, adding a little or to anything.
func (m *mutant) field(b []byte, at, n int) {
	var old [8]byte
	copy(old[:], b[at:at+n])
	v := le.Uint64(old[:])
	if m.rng.IntN(2) == 0 {
		v += uint64(m.rng.IntN(5)) - 2
	} else {
		v = m.number()
	}
	le.PutUint64(old[:], v)
	copy(b[at:at+n], old[:n])
	m.what += fmt.Sprintf(" [field %d+%d = %#x]", at, n, v)
}

func (m *mutant) block(off int64) []byte { return m.img[off : off+wire.BlockSize] }

// superblock changes fields of one superblock or of both in the same way.
func (m *mutant) superblock() {
	m.what += " superblock"
	first := bytes.Clone(m.block(0))
	fields := []int{12, 32, 40, 56, 64, 72, 80, 88, 96, 104}
	m.field(first, fields[m.rng.IntN(len(fields))], 8)
	le.PutUint64(first[sumAt:], xxhash.Sum64(first[:sumAt]))
	for i, off := range m.sb.SuperblockOffsets() {
		if m.rng.IntN(3) > 0 || i == 0 {
			copy(m.block(off), first)
		}
	}
}

// checkpoint changes a field of the header of a checkpoint.
func (m *mutant) checkpoint() {
	area := m.rng.IntN(2)
	m.what += fmt.Sprintf(" checkpoint %d", area)
	b := m.block(m.sb.CheckpointOff[area])
	m.field(b, []int{16, 24, 32, 40, 48, 56}[m.rng.IntN(6)], 8)
	le.PutUint64(b[sumAt:], xxhash.Sum64(b[:sumAt]))
}

// page changes a page of a checkpoint.
func (m *mutant) page() {
	m.what += " page"
	off := m.sb.PageOffset(m.state.Area, 0)
	b := m.img[off : off+fmtpkg.PageBytes]
	m.group(b, 8)
	seal(b)
}

// batch changes a batch of the journal, and lets those after it continue its chain.
func (m *mutant) batch() {
	all := m.state.Journal.Batches
	i := m.rng.IntN(len(all))
	for m.rng.IntN(3) == 0 && i > 0 && all[i].Records > 0 { // earlier ones more often: they have segments, and what follows builds on them
		i--
	}
	m.what += fmt.Sprintf(" batch %d", i)
	at := func(i int) []byte {
		off := m.sb.JournalOff + int64(all[i].Block)*wire.BlockSize
		return m.img[off : off+int64(all[i].Blocks)*wire.BlockSize]
	}
	m.group(at(i), 16)
	sum := seal(at(i))
	if m.rng.IntN(10) == 0 {
		return // a chain that breaks
	}
	for i++; i < len(all); i++ {
		le.PutUint64(at(i)[32:], sum)
		sum = seal(at(i))
	}
}

// group changes the head of a batch or page, from a field on, or its records.
func (m *mutant) group(b []byte, firstField int) {
	if m.rng.IntN(3) == 0 {
		fields := []int{8, 16, 24, 32, 40, 48, 52, 56}
		at := fields[m.rng.IntN(len(fields))]
		if at >= 48 {
			m.field(b, at, 4)
		} else if at >= firstField {
			m.field(b, at, 8)
		}
		return
	}
	h, err := fmtpkg.DecodeBatch(b)
	if err != nil {
		return // changed before
	}
	var recs []fmtpkg.Record
	_ = h.ForEach(b, m.sb.DataBlocks(), func(r *fmtpkg.Record) error {
		c := *r
		c.Runs = append([]fmtpkg.Run(nil), r.Runs...)
		recs = append(recs, c)
		return nil
	})
	if len(recs) == 0 {
		return
	}
	recs = m.records(recs)
	enc := b[fmtpkg.BatchHeaderBytes:fmtpkg.BatchHeaderBytes]
	h.Records = 0
	for i := range recs {
		if len(enc)+recs[i].Bytes() > len(b)-fmtpkg.BatchHeaderBytes {
			break
		}
		enc = recs[i].Append(enc)
		h.Records++
	}
	h.Bytes, h.Blocks = len(enc), len(b)/wire.BlockSize
	h.Encode(b)
	if m.rng.IntN(4) == 0 && len(enc) > 0 {
		m.field(b, fmtpkg.BatchHeaderBytes+m.rng.IntN(len(enc)), 1)
	}
}

// records changes what records say.
func (m *mutant) records(recs []fmtpkg.Record) []fmtpkg.Record {
	r := &recs[m.rng.IntN(len(recs))]
	other := recs[m.rng.IntN(len(recs))]
	m.what += fmt.Sprintf(" [%v %s]", r.Type, r.ID)
	switch m.rng.IntN(10) {
	case 0:
		r.ID = other.ID
	case 1:
		if len(r.Runs) > 0 && len(other.Runs) > 0 {
			r.Runs = other.Runs // two strips share blocks
		}
	case 2:
		if len(r.Runs) > 0 {
			r.Runs[0] = fmtpkg.MakeRun(m.rng.Uint64N(m.sb.DataBlocks()+2), int(m.number()%(1<<24)))
		}
	case 3:
		r.Arg = uint32(m.number())
	case 4:
		for i := range recs { // what has a length
			if recs[i].Len > 0 || recs[i].Type == fmtpkg.RecordAlloc || recs[i].Type == fmtpkg.RecordSeal {
				recs[i].Len = m.rng.Uint64N(m.sb.DataBlocks()) * wire.BlockSize
			}
		}
	case 5:
		r.Epoch, r.Sum = wire.Epoch(m.number()), m.number()
	case 6:
		return append(recs, other) // twice
	case 7:
		c := *r
		c.Type = fmtpkg.RecordType(1 + m.rng.IntN(5))
		if c.Runs == nil && (c.Type == fmtpkg.RecordPut || c.Type == fmtpkg.RecordAlloc) {
			c.Runs = []fmtpkg.Run{fmtpkg.MakeRun(m.rng.Uint64N(m.sb.DataBlocks()), 1)}
		}
		if c.Type != fmtpkg.RecordPut && c.Type != fmtpkg.RecordAlloc {
			c.Runs = nil
		}
		*r = c
	case 8:
		m.rng.Shuffle(len(recs), func(i, j int) { recs[i], recs[j] = recs[j], recs[i] })
	case 9:
		*r = recs[len(recs)-1]
		return recs[:len(recs)-1]
	}
	return recs
}

// seal gives a batch or page its right checksum, as far as its length makes sense.
func seal(b []byte) uint64 {
	n := min(int(le.Uint32(b[48:])), len(b)-fmtpkg.BatchHeaderBytes)
	sum := xxhash.Sum64(b[:72])*0x9e3779b97f4a7c15 ^ xxhash.Sum64(b[fmtpkg.BatchHeaderBytes:fmtpkg.BatchHeaderBytes+n])
	le.PutUint64(b[72:], sum)
	return sum
}

// data changes a block of data: bytes, or a whole other block, or the head of a record that stays sound.
func (m *mutant) data() {
	blocks := uint64(60) // what the image uses lies here
	at := func() []byte {
		return m.block(m.sb.DataOff + int64(m.rng.Uint64N(min(blocks, m.sb.DataBlocks())))*wire.BlockSize)
	}
	b := at()
	m.what += " data"
	switch m.rng.IntN(4) {
	case 0:
		clear(b)
	case 1:
		b[m.rng.IntN(len(b))] ^= 1 << m.rng.IntN(8)
	case 2:
		copy(b, at())
	case 3:
		r, inline, _, err := wire.DecodeSegHead(b)
		if err != nil {
			return
		}
		inline = bytes.Clone(inline)
		switch m.rng.IntN(3) {
		case 0:
			r.Offset = m.number()
		case 1:
			r.ID.Lo = m.number()
		case 2:
			r.Epoch = wire.Epoch(m.number())
		}
		r.EncodeHead(b, inline)
	}
}

// mutate does one to three changes.
func (m *mutant) mutate() {
	for range 1 + m.rng.IntN(3) {
		switch m.rng.IntN(8) {
		case 0:
			m.superblock()
		case 1:
			m.checkpoint()
		case 2, 3:
			m.page()
		case 4, 5, 6:
			m.batch()
		case 7:
			m.data()
		}
	}
}

// tryMutant opens, inspects and checks a damaged image: an error, or a state that works.
func tryMutant(t *testing.T, m *mutant, arena *wire.Arena) (opened bool) {
	t.Helper()
	dev := blockio.NewCrashDevice(bytes.Clone(m.img), false)
	_, ierr := drive.InspectReader(t.Context(), dev)
	r, cerr := drive.CheckReader(t.Context(), dev)
	if !bytes.Equal(dev.Image(), m.img) {
		t.Fatalf("%s: inspect or check changed the image", m.what)
	}
	s, stop := openMutant(t, dev, arena)
	if s == nil {
		if ierr == nil || cerr == nil && r.Sound {
			t.Fatalf("%s: does not open, but inspect says %v and check %v, sound %t", m.what, ierr, cerr, r.Sound)
		}
		return false
	}
	if ierr != nil || cerr != nil {
		t.Fatalf("%s: opens, but inspect says %v and check %v", m.what, ierr, cerr)
	}
	workMutant(t, m, s, arena)
	if err := stop(); err != nil {
		t.Fatalf("%s: stop: %v", m.what, err)
	}
	again, stop := openMutant(t, dev, arena)
	if again == nil {
		t.Fatalf("%s: opened once, and after an orderly end no more", m.what)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	return true
}

// workMutant does something with all that a store has. What it answers does not matter, but for what is new.
func workMutant(t *testing.T, m *mutant, s *store.Store, arena *wire.Arena) {
	t.Helper()
	ctx := t.Context()
	data, sums := testData(t, arena, 200, 2)
	defer data.Release()
	fresh := wire.MakeStripID(77, wire.ClassTable, 0, 1, 0, 1)
	if err := s.Put(ctx, 1<<62, fresh, sums, data); err != nil && wire.KindOf(err) != wire.KindNoSpace && wire.KindOf(err) != wire.KindStaleEpoch {
		t.Fatalf("%s: put: %v", m.what, err)
	} else if err == nil {
		status, got, err := s.Read(ctx, []wire.ReadRange{{ID: fresh, Len: 2 * wire.BlockSize}})
		if err != nil || status[0] != wire.KindNone || !bytes.Equal(got[0].B, data[0].B) {
			t.Fatalf("%s: a new strip reads %v, %v", m.what, status, err)
		}
		got.Release()
	}
	for bucket := range wire.BucketID(2) {
		for class := wire.Class(1); class < 16; class++ {
			entries, _ := s.List(bucket, class, wire.StripID{}, 0)
			for _, e := range entries {
				n := min(e.Len, 1<<20)
				if n > 0 {
					_, got, err := s.Read(ctx, []wire.ReadRange{{ID: e.ID, Offset: e.Len - n, Len: uint32(n)}})
					if err != nil {
						t.Fatalf("%s: read of %s: %v", m.what, e.ID, err)
					}
					got.Release()
				}
				rec := testRecord(t, arena, e.ID, e.Len)
				_, _ = s.Append(ctx, 1<<62, e.ID, e.Len, rec)
				rec.Release()
				_, _ = s.Seal(ctx, 1<<62, e.ID)
				if m.rng.IntN(2) == 0 {
					_ = s.Delete(ctx, 1<<62, []wire.StripID{e.ID})
				}
			}
			_, _, _ = s.Verify(ctx, bucket, class, wire.StripID{}, 0)
		}
	}
}

// TestMutatedStructures: structures that lie, with right checksums, give a typed error or a state that works and opens again; never a
// panic. Inspect and check agree with opening, and write nothing.
func TestMutatedStructures(t *testing.T) {
	arena := testArena(t)
	image0 := mutantImage(t, arena)
	seed, n := rand.Uint64(), 600
	if testing.Short() {
		n = 100
	}
	opened := 0
	for i := range n {
		m := newMutant(t, image0, rand.New(rand.NewPCG(seed, uint64(i))))
		m.what = fmt.Sprintf("seed %d, %d:", seed, i)
		m.mutate()
		if tryMutant(t, m, arena) {
			opened++
		}
	}
	t.Logf("%d of %d open", opened, n)
	if opened == 0 || opened == n {
		t.Error("the test changes nothing that matters, or everything")
	}
}

// FuzzMutatedStructures is the same with the fuzzer's choice of what to change.
func FuzzMutatedStructures(f *testing.F) {
	arena, err := wire.NewArena(64 << 20)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = arena.Close() })
	image0 := mutantImage(f, arena)
	f.Add(uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, a, b uint64) {
		m := newMutant(t, image0, rand.New(rand.NewPCG(a, b)))
		m.mutate()
		tryMutant(t, m, arena)
	})
}
