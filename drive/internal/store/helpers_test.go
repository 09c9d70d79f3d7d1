package store

import (
	"context"
	"encoding/binary"
	"log/slog"
	"math/rand/v2"
	"testing"

	"github.com/cespare/xxhash/v2"

	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/wire"
)

// testSuperblock describes a device with a small journal and small checkpoints, so that both wrap and fill.
func testSuperblock(sizeBytes int64) *format.Superblock {
	return &format.Superblock{
		Version: format.CurrentVersion, Drive: 7, Cluster: wire.ClusterID{1, 2, 3}, FormatID: 0x1234567890, Created: 1,
		Geometry: format.MakeGeometry(sizeBytes, 2*format.MaxBatchBlocks*format.BlockSize, 4*format.PageBytes+format.BlockSize, format.BlockSize),
	}
}

// formatted gives the bytes of an empty drive.
func formatted(t testing.TB, sizeBytes int64) []byte {
	t.Helper()
	dev := blockio.NewCrashDevice(make([]byte, sizeBytes), false)
	if err := Format(dev, testSuperblock(sizeBytes)); err != nil {
		t.Fatal(err)
	}
	return dev.Image()
}

func newArena(t testing.TB) *wire.Arena {
	t.Helper()
	a, err := wire.NewArena(64 << 20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a
}

// running is an open store with its background goroutine.
type running struct {
	*Store
	stop func() error
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// start opens and runs a store; tune may change it in between.
func start(t testing.TB, dev blockio.Device, arena *wire.Arena, tune ...func(s *Store)) (*running, error) {
	t.Helper()
	if d, ok := dev.(*tape); ok && !d.single {
		dev = struct{ blockio.Device }{d} // hides WriteDurable
	}
	s, err := Open(dev, Config{Arena: arena, Log: quiet()})
	if err != nil {
		return nil, err
	}
	for _, f := range tune {
		f(s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	return &running{Store: s, stop: func() error { cancel(); return <-done }}, nil
}

func mustStart(t testing.TB, dev blockio.Device, arena *wire.Arena) *running {
	t.Helper()
	r, err := start(t, dev, arena)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// makeData gives data of whole blocks and their checksums.
func makeData(t testing.TB, arena *wire.Arena, rng *rand.Rand, blocks int) (wire.Data, []uint64) {
	t.Helper()
	buf, err := arena.Alloc(context.Background(), blocks*format.BlockSize)
	if err != nil {
		t.Fatal(err)
	}
	b := buf.Bytes()
	seed := rng.Uint64()
	for i := 0; i < len(b); i += 8 {
		seed = seed*6364136223846793005 + 1442695040888963407
		binary.LittleEndian.PutUint64(b[i:], seed)
	}
	sums := make([]uint64, blocks)
	for i := range sums {
		sums[i] = xxhash.Sum64(b[i*format.BlockSize:][:format.BlockSize])
	}
	return buf.Data(len(b)), sums
}

// makeRecords gives records of a segment that chain from offset: inline ones (0) and ones with blocks.
func makeRecords(t testing.TB, arena *wire.Arena, rng *rand.Rand, id wire.StripID, offset uint64, shape []int) wire.Data {
	t.Helper()
	total := 0
	for _, blocks := range shape {
		r := wire.SegRecord{Sums: make([]uint64, blocks)}
		if blocks == 0 {
			r.Sums = nil
		}
		total += r.Bytes()
	}
	buf, err := arena.Alloc(context.Background(), total)
	if err != nil {
		t.Fatal(err)
	}
	b := buf.Bytes()
	at := 0
	for _, blocks := range shape {
		r := wire.SegRecord{ID: id.WithPos(0), Offset: offset + uint64(at), Epoch: 1}
		if blocks == 0 {
			inline := make([]byte, 1+rng.IntN(wire.SegInlineBytes))
			for i := range inline {
				inline[i] = byte(rng.Uint32())
			}
			r.Payload = len(inline)
			r.EncodeHead(b[at:at+format.BlockSize], inline)
			at += format.BlockSize
			continue
		}
		data, sums := makeData(t, arena, rng, blocks)
		r.Payload, r.Sums = blocks*format.BlockSize-rng.IntN(100), sums
		head := r.HeadBytes()
		r.EncodeHead(b[at:at+head], nil)
		copy(b[at+head:], data[0].B)
		data.Release()
		at += r.Bytes()
	}
	return buf.Data(at)
}

func flat(d wire.Data) []byte {
	var b []byte
	for _, p := range d {
		b = append(b, p.B...)
	}
	return b
}

// readAll reads a whole strip or segment.
func readAll(t testing.TB, s *Store, id wire.StripID, length uint64) ([]byte, wire.Kind) {
	t.Helper()
	var out []byte
	for off := uint64(0); off < length; {
		n := min(length-off, 1<<20)
		st, data, err := s.Read(context.Background(), []wire.ReadRange{{ID: id, Offset: off, Len: uint32(n)}})
		if err != nil {
			t.Fatal(err)
		}
		if st[0] != wire.KindNone {
			return nil, st[0]
		}
		out = append(out, flat(data)...)
		data.Release()
		off += n
	}
	return out, wire.KindNone
}
