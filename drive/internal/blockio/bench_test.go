package blockio

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// The benchmarks compare the engines with each other and with fio. On one core:
//
//	GOMAXPROCS=1 taskset -c 0 go test ./drive/internal/blockio -run - -bench . -benchtime 2s
//	taskset -c 0 fio --name=x --filename=FILE --rw=randread --bs=4k --iodepth=32 --direct=1 --ioengine=io_uring \
//	    --registerfiles --fixedbufs --runtime=3 --time_based --size=512m
//
// CRAKE_BENCH_FILE names a device to use; otherwise a file of 512 MiB is made and written.

const benchBytes = 512 << 20

func benchFile(b *testing.B) string {
	if path := os.Getenv("CRAKE_BENCH_FILE"); path != "" {
		return path
	}
	path := filepath.Join(b.TempDir(), "device")
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	chunk := make([]byte, 1<<20)
	for range benchBytes / len(chunk) {
		if _, err := f.Write(chunk); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	return path
}

type variant struct {
	name  string
	cfg   EngineConfig
	arena bool
}

func variants() []variant {
	return []variant{
		{"io_uring", EngineConfig{Choice: ChooseIOUring}, true},
		{"plain", EngineConfig{Choice: ChooseIOUring}, false},
		{"interrupt", EngineConfig{Choice: ChooseIOUring, interrupt: true}, true},
	}
}

// BenchmarkAsync keeps depth IOs under way, each begun by the end of another.
func BenchmarkAsync(b *testing.B) {
	path := benchFile(b)
	for _, v := range variants() {
		for _, write := range []bool{false, true} {
			for _, c := range []struct{ bytes, depth int }{{4096, 1}, {4096, 32}, {128 << 10, 1}, {128 << 10, 8}} {
				b.Run(fmt.Sprintf("%s/write=%v/%dKiB/depth=%d", v.name, write, c.bytes>>10, c.depth), func(b *testing.B) {
					e, arena := newEngine(b, v.cfg)
					d := open(b, e, path).(Async)
					ios := make([]*IO, c.depth)
					for i := range ios {
						ios[i] = &IO{Write: write}
						if v.arena {
							buf := arena.TryAlloc(c.bytes)
							defer buf.Release()
							ios[i].P = buf.Bytes()
						} else {
							ios[i].P = AlignedBytes(c.bytes)
						}
					}
					benchAsync(b, d, ios)
				})
			}
		}
	}
}

func benchAsync(b *testing.B, d Async, ios []*IO) {
	rng := rand.New(rand.NewPCG(1, 2))
	n := len(ios[0].P)
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	place := func(io *IO) { io.Off = rng.Int64N(benchBytes/int64(n)) * int64(n) }
	done := func(io *IO, err error) {
		if err != nil {
			b.Error(err)
		}
		if left.Add(-1) < 0 {
			wg.Done()
			return
		}
		place(io)
		d.Start(io)
	}
	b.SetBytes(int64(n))
	b.ReportAllocs()
	before := cpuTime()
	b.ResetTimer()
	for _, io := range ios {
		io.Done = done
		place(io)
		wg.Add(1)
		d.Start(io)
	}
	d.Kick()
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(cpuTime()-before)/float64(b.N), "cpu-ns/op")
}

// cpuTime is what the process has used, in nanoseconds.
func cpuTime() int64 {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return u.Utime.Nano() + u.Stime.Nano()
}

// BenchmarkSync is the synchronous methods, by several goroutines at once.
func BenchmarkSync(b *testing.B) {
	path := benchFile(b)
	for _, v := range append(variants()[:1], variant{"pread", EngineConfig{Choice: ChoosePread}, true}) {
		for _, op := range []string{"read", "write", "write+flush"} {
			for _, c := range []struct{ bytes, at int }{{4096, 1}, {4096, 8}, {128 << 10, 1}, {128 << 10, 8}} {
				b.Run(fmt.Sprintf("%s/%s/%dKiB/goroutines=%d", v.name, op, c.bytes>>10, c.at), func(b *testing.B) {
					if v.cfg.Choice == ChoosePread { // as drive.Run does
						defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(max(4, runtime.GOMAXPROCS(0))))
					}
					e, arena := newEngine(b, v.cfg)
					d := open(b, e, path)
					var left atomic.Int64
					left.Store(int64(b.N))
					b.SetBytes(int64(c.bytes))
					b.ReportAllocs()
					before := cpuTime()
					b.ResetTimer()
					var wg sync.WaitGroup
					for g := range c.at {
						wg.Go(func() {
							rng := rand.New(rand.NewPCG(uint64(g), 2))
							buf := arena.TryAlloc(c.bytes)
							defer buf.Release()
							for left.Add(-1) >= 0 {
								off := rng.Int64N(benchBytes/int64(c.bytes)) * int64(c.bytes)
								if err := benchOp(d, op, buf.Bytes(), off); err != nil {
									b.Error(err)
								}
							}
						})
					}
					wg.Wait()
					b.StopTimer()
					b.ReportMetric(float64(cpuTime()-before)/float64(b.N), "cpu-ns/op")
				})
			}
		}
	}
}

func benchOp(d Device, op string, p []byte, off int64) error {
	if op == "read" {
		return d.ReadAt(p, off)
	}
	if err := d.WriteAt(p, off); err != nil || op == "write" {
		return err
	}
	return d.Flush()
}
