package server

import (
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

// BenchmarkMutations puts strips and appends records over a socket, so many at once, and tells the processor time of each, the asking side
// included. CRAKE_BENCH_DIR says where the drive lies; the default is in memory.
func BenchmarkMutations(b *testing.B) {
	dir := os.Getenv("CRAKE_BENCH_DIR")
	if dir == "" {
		dir = "/dev/shm"
	}
	for _, blocks := range []int{1, 32} {
		for _, depth := range []int{1, 8, 32} {
			b.Run(fmt.Sprintf("put/%dKiB/depth=%d", blocks*4, depth), func(b *testing.B) { benchPut(b, dir, blocks, depth) })
		}
	}
	for _, depth := range []int{1, 8, 32} {
		b.Run(fmt.Sprintf("append/4KiB/depth=%d", depth), func(b *testing.B) { benchAppend(b, dir, depth) })
	}
}

// benchmark runs do by depth goroutines until b.N are done.
func benchmark(b *testing.B, depth int, do func(worker, n int)) {
	b.ReportAllocs()
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ResetTimer()
	from := cpuTime(b)
	for w := range depth {
		wg.Go(func() {
			for {
				n := int(next.Add(1))
				if n > b.N {
					return
				}
				do(w, n)
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64((cpuTime(b)-from).Nanoseconds())/float64(b.N), "cpu-ns/op")
}

func cpuTime(b *testing.B) time.Duration {
	var ru syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err != nil {
		b.Fatal(err)
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

func benchServe(b *testing.B, dir string) (*served, *rpc.Conn) {
	dir, err := os.MkdirTemp(dir, "crake-bench-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := serveEmpty(b, dir, 64<<20, 512<<20)
	return s, s.dial(s.arena)
}

func benchPut(b *testing.B, dir string, blocks, depth int) {
	s, conn := benchServe(b, dir)
	buf, err := s.arena.Alloc(b.Context(), blocks*format.BlockSize)
	if err != nil {
		b.Fatal(err)
	}
	defer buf.Release()
	sums := make([]uint64, blocks)
	for i := range sums {
		sums[i] = xxhash.Sum64(buf.Bytes()[i*format.BlockSize:][:format.BlockSize])
	}
	const kept = 1024
	id := func(n int) wire.StripID { return wire.MakeStripID(1, wire.ClassTable, 0, uint64(n+1000), 0, 5) }
	benchmark(b, depth, func(_, n int) {
		c := rpc.Call{
			Method: wire.MDrivePut, Req: &wire.PutReq{Drive: testDrive, Epoch: 1, ID: id(n), Sums: sums},
			Data: wire.Data{{Buf: buf, B: buf.Bytes()}},
		}
		if err := conn.Do(b.Context(), &c); err != nil {
			b.Error(err)
		}
		if n%256 == 0 && n > kept { // so many that they are no part of the figure
			ids := make([]wire.StripID, 256)
			for i := range ids {
				ids[i] = id(n - kept - i)
			}
			c := rpc.Call{Method: wire.MDriveDelete, Req: &wire.DeleteReq{Drive: testDrive, Epoch: 1, IDs: ids}}
			if err := conn.Do(b.Context(), &c); err != nil {
				b.Error(err)
			}
		}
	})
}

func benchAppend(b *testing.B, dir string, depth int) {
	s, conn := benchServe(b, dir)
	type log struct {
		number, off uint64
		buf         *wire.Buf
	}
	logs := make([]log, depth)
	inline := make([]byte, wire.SegInlineBytes)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range inline {
		inline[i] = byte(rng.Uint32())
	}
	for i := range logs {
		buf, err := s.arena.Alloc(b.Context(), format.BlockSize)
		if err != nil {
			b.Fatal(err)
		}
		defer buf.Release()
		logs[i] = log{number: uint64(i), buf: buf}
	}
	benchmark(b, depth, func(w, _ int) {
		l := &logs[w]
		id := wire.MakeStripID(1, wire.ClassLog, 0, l.number, 0, 5)
		r := wire.SegRecord{ID: id, Offset: l.off, Payload: len(inline), Epoch: 1}
		r.EncodeHead(l.buf.Bytes(), inline)
		c := rpc.Call{
			Method: wire.MDriveAppend, Req: &wire.AppendReq{Drive: testDrive, Epoch: 1, ID: id, Offset: l.off}, Data: wire.Data{{Buf: l.buf, B: l.buf.Bytes()}},
		}
		if err := conn.Do(b.Context(), &c); err != nil {
			b.Error(err)
		}
		if l.off += format.BlockSize; l.off == 4<<20 {
			c := rpc.Call{Method: wire.MDriveDelete, Req: &wire.DeleteReq{Drive: testDrive, Epoch: 1, IDs: []wire.StripID{id}}}
			if err := conn.Do(b.Context(), &c); err != nil {
				b.Error(err)
			}
			l.number, l.off = l.number+uint64(depth), 0
		}
	})
}
