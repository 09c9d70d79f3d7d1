package store

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/wire"
)

// benchStore opens a fresh drive in a file on tmpfs (or CRAKE_BENCH_DIR).
func benchStore(b *testing.B, sizeBytes int64) (*running, *wire.Arena) {
	b.Helper()
	dir := os.Getenv("CRAKE_BENCH_DIR")
	if dir == "" {
		dir = "/dev/shm"
	}
	dir, err := os.MkdirTemp(dir, "crake-bench-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "drive")
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	if err := f.Truncate(sizeBytes); err != nil {
		b.Fatal(err)
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
	dev, err := blockio.OpenFile(path)
	if err != nil {
		b.Fatal(err)
	}
	zero := blockio.AlignedBytes(1 << 20) // touch all of it: the first touch of a page is not what is measured
	for off := int64(0); off < sizeBytes; off += int64(len(zero)) {
		if err := dev.WriteAt(zero, off); err != nil {
			b.Fatal(err)
		}
	}
	sb := testSuperblock(sizeBytes)
	sb.Geometry = format.DefaultGeometry(sizeBytes)
	if err := Format(dev, sb); err != nil {
		b.Fatal(err)
	}
	arena := newArena(b)
	r := mustStart(b, dev, arena)
	b.Cleanup(func() {
		if err := r.stop(); err != nil {
			b.Error(err)
		}
		_ = dev.Close()
	})
	return r, arena
}

// BenchmarkPut puts strips of 128 KiB and deletes old ones in large groups, as the write path does.
func BenchmarkPut(b *testing.B) {
	for _, workers := range []int{1, 8} {
		b.Run(fmt.Sprintf("128KiB/workers=%d", workers), func(b *testing.B) {
			s, arena := benchStore(b, 1<<30)
			data, sums := makeData(b, arena, rand.New(rand.NewPCG(1, 2)), 32)
			defer data.Release()
			b.SetBytes(128 << 10)
			b.ReportAllocs()
			var n atomic.Uint64
			b.SetParallelism(max(1, workers/2))
			run := func(next func() bool) {
				var ids []wire.StripID
				for next() {
					id := wire.MakeStripID(1, wire.ClassData, 0, n.Add(1), 0, 5)
					if err := s.Put(context.Background(), 1, id, sums, data); err != nil {
						b.Error(err)
						return
					}
					if ids = append(ids, id); len(ids) == 256 {
						if err := s.Delete(context.Background(), 1, ids); err != nil {
							b.Error(err)
							return
						}
						ids = ids[:0]
					}
				}
				_ = s.Delete(context.Background(), 1, ids)
			}
			b.ResetTimer()
			if workers == 1 {
				run(func() bool { return b.Loop() })
			} else {
				b.RunParallel(func(pb *testing.PB) { run(pb.Next) })
			}
		})
	}
}

// BenchmarkDeviceWrite is the bound of BenchmarkPut: the same bytes by the device alone.
func BenchmarkDeviceWrite(b *testing.B) {
	for _, n := range []int{4 << 10, 128 << 10} {
		b.Run(fmt.Sprintf("%dKiB", n>>10), func(b *testing.B) {
			s, _ := benchStore(b, 256<<20)
			buf := blockio.AlignedBytes(n)
			b.SetBytes(int64(n))
			off := s.sb.DataOff
			for b.Loop() {
				if err := s.dev.WriteAt(buf, off); err != nil {
					b.Fatal(err)
				}
				if off += int64(n); off+int64(n) > s.sb.DataOff+s.sb.DataBytes {
					off = s.sb.DataOff
				}
			}
		})
	}
}

// BenchmarkAppend appends records of 4 KiB, sealing and deleting segments of 16 MiB.
func BenchmarkAppend(b *testing.B) {
	s, arena := benchStore(b, 256<<20)
	buf, err := arena.Alloc(context.Background(), format.BlockSize)
	if err != nil {
		b.Fatal(err)
	}
	defer buf.Release()
	inline := make([]byte, wire.SegInlineBytes)
	number, off := uint64(1), uint64(0)
	b.SetBytes(format.BlockSize)
	b.ReportAllocs()
	for b.Loop() {
		id := wire.MakeStripID(1, wire.ClassLog, 0, number, 0, 5)
		r := wire.SegRecord{ID: id, Offset: off, Payload: len(inline), Epoch: 1}
		r.EncodeHead(buf.Bytes(), inline)
		if _, err := s.Append(context.Background(), 1, id, off, wire.Data{{Buf: buf, B: buf.Bytes()}}); err != nil {
			b.Fatal(err)
		}
		if off += format.BlockSize; off == 16<<20 {
			if err := s.Delete(context.Background(), 1, []wire.StripID{id}); err != nil {
				b.Fatal(err)
			}
			off = 0
			number++
		}
	}
}

// BenchmarkRead reads random blocks.
func BenchmarkRead(b *testing.B) {
	s, arena := benchStore(b, 1<<30)
	data, sums := makeData(b, arena, rand.New(rand.NewPCG(1, 2)), 32)
	const strips = 4000
	for i := range strips {
		if err := s.Put(context.Background(), 1, wire.MakeStripID(1, wire.ClassData, 0, uint64(i), 0, 5), sums, data); err != nil {
			b.Fatal(err)
		}
	}
	data.Release()
	b.Run("4KiB", func(b *testing.B) {
		b.ReportAllocs()
		rng := rand.New(rand.NewPCG(3, 4))
		for b.Loop() {
			_, got, err := s.Read(context.Background(), []wire.ReadRange{{
				ID: wire.MakeStripID(1, wire.ClassData, 0, rng.Uint64N(strips), 0, 5), Offset: rng.Uint64N(32) * format.BlockSize, Len: format.BlockSize,
			}})
			if err != nil {
				b.Fatal(err)
			}
			got.Release()
		}
	})
	b.Run("device 4KiB", func(b *testing.B) {
		rng := rand.New(rand.NewPCG(3, 4))
		buf := blockio.AlignedBytes(format.BlockSize)
		for b.Loop() {
			off := s.sb.DataOff + int64(rng.Uint64N(strips*32))*format.BlockSize
			if err := s.dev.ReadAt(buf, off); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("1MiB", func(b *testing.B) {
		b.SetBytes(1 << 20)
		rng := rand.New(rand.NewPCG(3, 4))
		for b.Loop() {
			var ranges []wire.ReadRange
			first := rng.Uint64N(strips - 8)
			for i := range uint64(8) {
				ranges = append(ranges, wire.ReadRange{ID: wire.MakeStripID(1, wire.ClassData, 0, first+i, 0, 5), Len: 128 << 10})
			}
			_, got, err := s.Read(context.Background(), ranges)
			if err != nil {
				b.Fatal(err)
			}
			got.Release()
		}
	})
}
