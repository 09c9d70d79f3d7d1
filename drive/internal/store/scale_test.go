package store

import (
	"context"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/wire"
)

// sparseDevice is a device in memory of which only what is written takes memory, outside of the Go heap, so that the heap
// shows what the index takes.
type sparseDevice struct{ mem []byte }

func newSparse(t testing.TB, sizeBytes int64) *sparseDevice {
	t.Helper()
	mem, err := unix.Mmap(-1, 0, int(sizeBytes), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(mem) })
	return &sparseDevice{mem: mem}
}

func (d *sparseDevice) ReadAt(p []byte, off int64) error  { copy(p, d.mem[off:]); return nil }
func (d *sparseDevice) WriteAt(p []byte, off int64) error { copy(d.mem[off:], p); return nil }
func (d *sparseDevice) WriteVecAt(parts [][]byte, off int64) error {
	for _, p := range parts {
		off += int64(copy(d.mem[off:], p))
	}
	return nil
}
func (d *sparseDevice) Flush() error               { return nil }
func (d *sparseDevice) Discard(off, n int64) error { return nil }
func (d *sparseDevice) Size() int64                { return int64(len(d.mem)) }
func (d *sparseDevice) Close() error               { return nil }
func (d *sparseDevice) Info() blockio.Info {
	return blockio.Info{Path: "sparse device", Engine: "memory", Flush: "none: memory", Direct: true, Fast: true}
}

// manyStrips is how many strips the tests of scale use: CRAKE_STRIPS, or a million (a fifth with -short).
func manyStrips(t testing.TB) int {
	t.Helper()
	s := os.Getenv("CRAKE_STRIPS")
	if s == "" {
		if testing.Short() {
			return 200_000
		}
		return 1_000_000
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		t.Fatalf("CRAKE_STRIPS=%s: want a number of strips", s)
	}
	return n
}

const scaleBlocks = 32 // a strip of 128 KiB

// scaleID gives the id of the i-th of the strips of 64 buckets, as the write path makes them.
func scaleID(i int) wire.StripID {
	return wire.MakeStripID(wire.BucketID(i%64), wire.ClassData, i/64%6, uint64(i/384), 0, uint64(i)*0x9e3779b97f4a7c15)
}

// filled gives a device with n strips that all lie in its checkpoint. They were not put: index and allocator were fed, and the
// checkpoint is taken by the code that always does.
func filled(t testing.TB, n int) (*sparseDevice, *Store) {
	t.Helper()
	size := max(int64(n)*scaleBlocks*format.BlockSize*3/2, 1<<30)
	dev := newSparse(t, size)
	sb := testSuperblock(size)
	sb.Geometry = format.DefaultGeometry(size)
	if err := Format(dev, sb); err != nil {
		t.Fatal(err)
	}
	s, err := Open(dev, Config{Arena: newArena(t), Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		id := scaleID(i)
		runs := s.alloc.Alloc(scaleBlocks, 1)
		s.idx.PutStrip(id, uint64(i), runs)
		s.idx.RaiseEpoch(id.Bucket(), 1)
	}
	began := time.Now()
	if err := s.checkpoint(); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	areas, err := checkpointHeaders(dev, sb)
	if err != nil {
		t.Fatal(err)
	}
	c := areas[s.area]
	t.Logf("%d strips: the checkpoint has %d pages, %.1f MiB, %.1f bytes a strip, and took %v", n, c.Pages, float64(c.Pages*format.PageBytes)/(1<<20),
		float64(c.Pages*format.PageBytes)/float64(n), took)
	return dev, s
}

func checkpointHeaders(dev blockio.Device, sb *format.Superblock) (out [2]*format.Checkpoint, err error) {
	b := blockio.AlignedBytes(format.BlockSize)
	for i, off := range sb.CheckpointOff {
		if err = dev.ReadAt(b, off); err != nil {
			return out, err
		}
		if out[i], err = format.DecodeCheckpoint(b, sb); err != nil {
			return out, err
		}
	}
	return out, nil
}

// heapBytes gives the live heap.
func heapBytes() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestOpenMany: opening a drive with very many strips takes seconds, at most 64 bytes of memory a strip, and finds them all.
// `make bench-drive-open` runs it with ten million.
func TestOpenMany(t *testing.T) {
	n := manyStrips(t)
	dev, s := filled(t, n)
	arena := s.cfg.Arena
	s = nil
	before := heapBytes()
	began, cpu := time.Now(), processCPU()
	r, err := Open(dev, Config{Arena: arena, Log: quiet()})
	took, used := time.Since(began), processCPU()-cpu
	if err != nil {
		t.Fatal(err)
	}
	heap := heapBytes() - before - r.sb.DataBlocks()/8
	t.Logf("%d strips: opening took %v (%v of CPU, %v a strip), %.1f bytes of memory a strip without the %d MiB of the allocator", n, took, used,
		used/time.Duration(n), float64(heap)/float64(n), r.sb.DataBlocks()/8>>20)
	if r.idx.Len() != n {
		t.Fatalf("%d strips, want %d", r.idx.Len(), n)
	}
	if perStrip := float64(heap) / float64(n); perStrip > 64 {
		t.Errorf("%.1f bytes of memory a strip, want at most 64", perStrip)
	}
	if perStrip := used / time.Duration(n); perStrip > 5*time.Microsecond { // ten million in less than a minute, even on a busy machine
		t.Errorf("%v of CPU a strip", perStrip)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		i := rng.IntN(n)
		if st, ok := r.idx.Get(scaleID(i)); !ok || st.Sum != uint64(i) || st.Blocks != scaleBlocks {
			t.Fatalf("strip %d: %+v, %t", i, st, ok)
		}
	}
	if want := r.sb.DataBlocks() - uint64(n)*scaleBlocks; r.alloc.FreeBlocks() != want {
		t.Errorf("%d blocks free, want %d", r.alloc.FreeBlocks(), want)
	}
	replayMany(t, dev, r, n)
}

// replayMany does with the journal what n/2 deletes and n/2 puts do, kills the drive and opens it again.
func replayMany(t *testing.T, dev *sparseDevice, s *Store, n int) {
	t.Helper()
	records, bytes := 0, s.journal.bytes.Load()
	submit := func(recs []format.Record) {
		tk := newWaitedTicket()
		s.journal.submit(&tk.ticket, false, recs...)
		s.Kick()
		if err := tk.wait(); err != nil {
			t.Fatal(err)
		}
		s.journal.finish(&tk.ticket)
		records += len(recs)
	}
	const group = 256
	for at := 0; at+group <= n/2 && s.journal.usedBlocks() < s.sb.JournalBlocks()/2; at += group {
		var recs []format.Record
		for i := at; i < at+group; i++ {
			recs = append(recs, format.Record{Type: format.RecordDelete, ID: scaleID(i)})
		}
		submit(recs)
		recs = recs[:0]
		for i := at; i < at+group; i++ {
			recs = append(recs, format.Record{Type: format.RecordPut, ID: scaleID(n + i), Epoch: 1, Sum: 1, Runs: s.idx.Runs(scaleID(i))})
		}
		submit(recs)
	}
	submit([]format.Record{{Type: format.RecordFence, Arg: 1, Epoch: 2}}) // its low water says that all before is finished
	arena := s.cfg.Arena
	began, cpu := time.Now(), processCPU()
	again, err := Open(dev, Config{Arena: arena, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	took, used := time.Since(began), processCPU()-cpu
	t.Logf("opening after a kill, with %d records (%d MiB of journal) to replay, took %v (%v of CPU)", records, (s.journal.bytes.Load()-bytes)>>20, took, used)
	if again.idx.Len() != n || again.idx.Epoch(1) != 2 {
		t.Errorf("%d strips, want %d", again.idx.Len(), n)
	}
	if _, ok := again.idx.Get(scaleID(0)); ok {
		t.Error("what was deleted is there")
	}
}

// processCPU gives the CPU time of this process: what a test may assert on a machine that does other things too.
func processCPU() time.Duration { return cpuClock(unix.CLOCK_PROCESS_CPUTIME_ID) }

// threadCPU gives the CPU time of this thread. Preconditions: runtime.LockOSThread.
func threadCPU() time.Duration { return cpuClock(unix.CLOCK_THREAD_CPUTIME_ID) }

func cpuClock(id int32) time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(id, &ts) // these clocks exist
	return time.Duration(ts.Nano())
}

// maxReadPause is what a checkpoint may keep a read waiting.
const maxReadPause = 5 * time.Millisecond

// TestCheckpointPauses: a checkpoint of very many strips never keeps reads waiting above 5 ms. What is asserted is how long
// it holds the lock at a time, in CPU time of its thread, which does not depend on what else the machine does; what readers and
// writers saw by the clock is reported.
func TestCheckpointPauses(t *testing.T) {
	n := manyStrips(t)
	_, s := filled(t, n)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var recs []format.Record
	var last wire.StripID
	longest, holds, strips := time.Duration(0), 0, 0
	for {
		began := threadCPU()
		var got int
		recs, last, got = s.checkpointSlice(recs[:0], last)
		longest = max(longest, threadCPU()-began)
		if got == 0 {
			break
		}
		holds++
		strips += got
	}
	for first := 0; first < 1<<16; first += bucketSlice {
		began := threadCPU()
		s.fenceSlice(nil, first)
		longest = max(longest, threadCPU()-began)
	}
	t.Logf("%d holds of the lock for %d strips, the longest took %v of CPU", holds, strips, longest)
	if strips != n || longest > maxReadPause {
		t.Errorf("%d of %d strips; the lock was held for %v at a time, want at most %v", strips, n, longest, maxReadPause)
	}

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	var stop atomic.Bool
	reads, puts := make(chan []time.Duration, 1), make(chan []time.Duration, 1)
	rng := rand.New(rand.NewPCG(3, 4))
	go func() { reads <- timeEach(&stop, func(int) { readOne(t, s, scaleID(rng.IntN(n))) }) }()
	data, sums := makeData(t, s.cfg.Arena, rand.New(rand.NewPCG(5, 6)), 1)
	defer data.Release()
	go func() {
		puts <- timeEach(&stop, func(i int) {
			if err := s.Put(ctx, 1, wire.MakeStripID(100, wire.ClassTable, 0, uint64(i), 0, 1), sums, data); err != nil {
				t.Error(err)
			}
		})
	}()
	began := time.Now()
	if err := s.checkpoint(); err != nil {
		t.Error(err)
	}
	took := time.Since(began)
	stop.Store(true)
	for name, c := range map[string]chan []time.Duration{"reads": reads, "puts": puts} {
		all := <-c
		slices.Sort(all)
		if len(all) == 0 {
			t.Errorf("no %s while the checkpoint was taken", name)
			continue
		}
		t.Logf("during the checkpoint (%v) %d %s by the clock: median %v, 99.9 %% %v, longest %v", took, len(all), name, all[len(all)/2],
			all[len(all)*999/1000], all[len(all)-1])
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// timeRest is between the calls of timeEach.
const timeRest = 50 * time.Microsecond

// timeEach calls f until stop is set and gives how long each call took. It rests between calls, as one does who waits for answers of a
// connection: who never rests has its processor taken away for 10 ms now and then, by the rules for those who compute, and would measure that.
func timeEach(stop *atomic.Bool, f func(i int)) []time.Duration {
	var all []time.Duration
	for i := 0; !stop.Load(); i++ {
		began := time.Now()
		f(i)
		all = append(all, time.Since(began))
		time.Sleep(timeRest)
	}
	return all
}

func readOne(t testing.TB, s *Store, id wire.StripID) {
	status, data, err := s.Read(context.Background(), []wire.ReadRange{{ID: id, Len: format.BlockSize}})
	if err != nil || status[0] != wire.KindNone {
		t.Error(status, err)
	}
	data.Release()
}

// TestTrimIsShort: the end of a checkpoint holds the journal's lock, and with it, by who finishes an operation, the store's, for less
// than 5 ms of CPU, also when the ring is full of the smallest batches.
func TestTrimIsShort(t *testing.T) {
	const batches = 1 << 30 / format.BlockSize
	j := &journal{next: batches + 1}
	for range batches {
		j.live.push(batchInfo{})
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	began := threadCPU()
	j.trim(2) // forgets one, keeps all others
	took := threadCPU() - began
	t.Logf("%v", took)
	if j.live.len() != batches-1 || took > maxReadPause {
		t.Errorf("%d batches left, %v", j.live.len(), took)
	}
}

// TestLiveBatches compares with a plain slice.
func TestLiveBatches(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var l liveBatches
	var want []batchInfo
	for n := uint64(0); n < 60_000; {
		for range rng.IntN(3 * liveChunk) {
			n++
			l.push(batchInfo{sum: n})
			want = append(want, batchInfo{sum: n})
		}
		drop := rng.IntN(len(want) + 1)
		if rng.IntN(4) == 0 {
			drop = min(len(want), liveChunk)
		}
		l.drop(drop)
		want = want[drop:]
		if l.len() != len(want) {
			t.Fatalf("%d, want %d", l.len(), len(want))
		}
		for i := range want {
			if *l.at(i) != want[i] {
				t.Fatalf("the %d-th of %d is %d, want %d", i, len(want), l.at(i).sum, want[i].sum)
			}
		}
	}
}
