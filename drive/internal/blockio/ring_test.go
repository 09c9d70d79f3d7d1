package blockio

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/drive/internal/uring"
	"github.com/crakefs/crake/wire"
)

// ringDevices opens n files by one ring.
func ringDevices(t testing.TB, cfg EngineConfig, n int, size int64) ([]*ringDevice, *wire.Arena) {
	t.Helper()
	cfg.Choice = ChooseIOUring
	e, arena := newEngine(t, cfg)
	var ds []*ringDevice
	for i := range n {
		path := makeFile(t, mkdir(t, t.TempDir(), fmt.Sprint(i)), size)
		ds = append(ds, open(t, e, path).(*ringDevice))
	}
	return ds, arena
}

// asyncModel is a client of a device that keeps several IOs under way, each on blocks that no other one uses now, and knows what every
// block holds.
type asyncModel struct {
	t     *testing.T
	d     Async
	rng   *rand.Rand
	left  int
	wg    sync.WaitGroup
	seeds []uint64 // of each area: what was written there; 0: zeros
	idle  []int    // areas without an IO
	mu    sync.Mutex
}

const modelArea = 4 * Align

// next begins another IO with io, or ends. buf is its memory.
func (m *asyncModel) next(io *IO, buf []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.left == 0 {
		m.wg.Done()
		return
	}
	m.left--
	k := m.rng.IntN(len(m.idle))
	area := m.idle[k]
	m.idle[k] = m.idle[len(m.idle)-1]
	m.idle = m.idle[:len(m.idle)-1]
	io.Off, io.P, io.Write = int64(area)*modelArea, buf[:modelArea], m.rng.IntN(2) == 0
	if io.Write {
		m.seeds[area] = m.rng.Uint64()
		fillPattern(io.P, m.seeds[area])
	}
	io.Done = func(io *IO, err error) { m.done(io, buf, area, err) }
	m.d.Start(io)
	if m.rng.IntN(3) == 0 {
		m.d.Kick()
	}
}

func (m *asyncModel) done(io *IO, buf []byte, area int, err error) {
	if err != nil {
		m.t.Error(err)
	}
	m.mu.Lock()
	want := make([]byte, modelArea)
	if m.seeds[area] != 0 {
		fillPattern(want, m.seeds[area])
	}
	if !io.Write && !bytes.Equal(io.P, want) {
		m.t.Errorf("area %d does not hold what was written", area)
	}
	m.idle = append(m.idle, area)
	m.mu.Unlock()
	m.next(io, buf)
}

func runAsyncModel(t *testing.T, d Async, arena *wire.Arena, depth, ios int, seed uint64) {
	m := &asyncModel{t: t, d: d, rng: rand.New(rand.NewPCG(seed, 1)), left: ios, seeds: make([]uint64, d.Size()/modelArea)}
	for i := range m.seeds {
		m.idle = append(m.idle, i)
	}
	for range depth {
		m.wg.Add(1)
		buf, err := arena.Alloc(t.Context(), modelArea)
		if err != nil {
			t.Fatal(err)
		}
		defer buf.Release()
		m.next(&IO{}, buf.Bytes())
	}
	d.Kick()
	m.wg.Wait()
}

// TestAsync: several clients on several devices of one ring, asynchronous, synchronous and flushing at once: every block holds what was
// written to it, on the device that it was written to, while the arena is trimmed all the time.
func TestAsync(t *testing.T) {
	ios := 1500
	if testing.Short() {
		ios = 500
	}
	ds, arena := ringDevices(t, EngineConfig{}, 3, 2<<20)
	stop := make(chan struct{})
	var others sync.WaitGroup
	others.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				arena.Trim()
				runtime.Gosched()
			}
		}
	})
	var clients sync.WaitGroup
	for i, d := range ds[:2] {
		clients.Go(func() { runAsyncModel(t, d, arena, 20, ios, uint64(i)) })
		clients.Go(func() {
			for range 8 {
				if err := d.Flush(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	clients.Go(func() { conformance(t, ds[2]) })
	clients.Wait()
	close(stop)
	others.Wait()
}

// TestMoreThanFit: IOs that find no place wait in order and are all done, by one Kick.
func TestMoreThanFit(t *testing.T) {
	ds, _ := ringDevices(t, EngineConfig{}, 1, 1<<20)
	d := ds[0]
	const n = 2*maxInFlight + ringEntries + 7
	buf := AlignedBytes(Align)
	counts := make([]int32, n)
	ios := make([]IO, n)
	var wg sync.WaitGroup
	wg.Add(n)
	for i := range ios {
		ios[i] = IO{Off: int64(i%256) * Align, P: buf, Done: func(_ *IO, err error) {
			if err != nil {
				t.Error(err)
			}
			counts[i]++
			wg.Done()
		}}
		d.Start(&ios[i])
	}
	d.Kick()
	wg.Wait()
	for i, c := range counts {
		if c != 1 {
			t.Errorf("IO %d ended %d times", i, c)
		}
	}
}

// TestMisuse: what can never be done ends with KindInvalid by Done, not within Start.
func TestMisuse(t *testing.T) {
	ds, _ := ringDevices(t, EngineConfig{}, 1, 1<<20)
	d := ds[0]
	for name, io := range map[string]*IO{
		"past the end": {Off: 1 << 20, P: AlignedBytes(Align)},
		"negative":     {Off: -Align, P: AlignedBytes(Align), Write: true},
		"odd offset":   {Off: 100, P: AlignedBytes(Align)},
		"odd length":   {P: AlignedBytes(Align)[:100]},
		"odd memory":   {P: AlignedBytes(2 * Align)[512 : 512+Align]},
	} {
		got := make(chan error, 1)
		io.Done = func(_ *IO, err error) { got <- err }
		d.Start(io)
		select {
		case <-got:
			t.Errorf("%s: ended before a Kick", name)
		default:
		}
		d.Kick()
		if err := <-got; !errors.Is(err, wire.KindInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	empty := make(chan error, 1)
	d.Start(&IO{Done: func(_ *IO, err error) { empty <- err }})
	d.Kick()
	if err := <-empty; err != nil {
		t.Errorf("nothing to read: %v", err)
	}
}

// TestCloseWaits: Close waits for what is under way, also for what nobody has kicked, and refuses what comes later.
func TestCloseWaits(t *testing.T) {
	cfg := EngineConfig{Choice: ChooseIOUring}
	e, _ := newEngine(t, cfg)
	path := makeFile(t, t.TempDir(), 1<<20)
	for range 50 {
		d, err := e.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		a := d.(Async)
		var ended atomic.Int32
		ios := make([]IO, 64)
		for i := range ios {
			ios[i] = IO{P: AlignedBytes(Align), Done: func(*IO, error) { ended.Add(1) }}
			a.Start(&ios[i])
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if n := ended.Load(); int(n) != len(ios) {
			t.Fatalf("closed with %d of %d IOs ended", n, len(ios))
		}
		late := make(chan error, 1)
		a.Start(&IO{P: AlignedBytes(Align), Done: func(_ *IO, err error) { late <- err }})
		a.Kick()
		if err := <-late; !errors.Is(err, wire.KindShutdown) {
			t.Fatalf("an IO after Close: %v", err)
		}
	}
}

// TestThreadEnds: IOs of a thread that has ended are done all the same.
func TestThreadEnds(t *testing.T) {
	ds, _ := ringDevices(t, EngineConfig{}, 1, 1<<20)
	d := ds[0]
	var all sync.WaitGroup
	for range 20 {
		all.Add(33)
		go func() {
			runtime.LockOSThread() // and never unlocks: the thread ends with the goroutine
			ended := func(_ *IO, err error) {
				if err != nil {
					t.Error(err)
				}
				all.Done()
			}
			for i := range 32 {
				d.Start(&IO{Write: i%2 == 0, Off: int64(i) * Align, P: AlignedBytes(Align), Done: ended})
			}
			flush := &IO{Done: ended}
			flush.prepare(d)
			flush.op = uring.OpFsync // the kernel gives it to a worker of this thread
			d.g.start(flush)
			d.Kick()
		}()
	}
	all.Wait()
}

// TestNoWakeUpIsLost: many single IOs, each begun when the one before has ended, by all kinds of ends.
func TestNoWakeUpIsLost(t *testing.T) {
	ds, _ := ringDevices(t, EngineConfig{}, 1, 1<<20)
	d := ds[0]
	n := 10000
	if testing.Short() {
		n = 2000
	}
	for i := range 6 {
		func() {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1 << (i / 2)))
			var wg sync.WaitGroup
			for g := range 1 + 2*(i%2) { // one alone: no other's Kick makes up for a lost one
				wg.Go(func() {
					ch := make(chan error, 1)
					io := &IO{Done: func(_ *IO, err error) { ch <- err }}
					for i := range n {
						io.P = nil // nothing to do: ended by the kernel within the call, the shortest way there is
						if (i+g)%64 == 0 {
							io.P = AlignedBytes(Align)
						}
						d.Start(io)
						d.Kick()
						if err := <-ch; err != nil {
							t.Error(err)
						}
					}
				})
			}
			wg.Wait()
		}()
	}
}

// TestNoMemoryForRequests: a kernel that takes nothing now is asked again, also when no completion is the occasion.
func TestNoMemoryForRequests(t *testing.T) {
	ds, _ := ringDevices(t, EngineConfig{}, 1, 1<<20)
	d := ds[0]
	var refusals atomic.Int32
	d.g.mu.Lock()
	d.g.enter = func(n int) error {
		switch refusals.Add(1) {
		case 1:
			return unix.EAGAIN
		case 2:
			return unix.EINTR
		case 3:
			return unix.ENOMEM
		case 4:
			return unix.EBUSY
		case 5:
			return d.g.r.Submit(min(n, 1)) // a part only
		}
		return d.g.r.Submit(n)
	}
	d.g.mu.Unlock()
	var wg sync.WaitGroup
	for range 5 {
		wg.Add(1)
		d.Start(&IO{P: AlignedBytes(Align), Done: func(_ *IO, err error) {
			if err != nil {
				t.Error(err)
			}
			wg.Done()
		}})
	}
	d.Kick()
	wg.Wait()
	if refusals.Load() < 6 {
		t.Error("the kernel was asked only", refusals.Load(), "times")
	}
}

// TestShort: whatever pieces the kernel does an IO in, and however often it sends it back, each byte is done once and in its place.
func TestShort(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	d := &ringDevice{file: &file{size: 1 << 20}}
	for range 5000 {
		blocks := 1 + rng.IntN(20)
		mem := AlignedBytes(blocks * Align)
		io := &IO{Write: rng.IntN(2) == 0, Off: int64(rng.IntN(100)) * Align, P: mem}
		io.prepare(d)
		if rng.IntN(3) == 0 {
			io.op = uring.OpWritev
			io.P, io.rest = nil, nil
			for at := 0; at < len(mem); {
				n := min(len(mem)-at, (1+rng.IntN(4))*Align)
				io.parts = append(io.parts, unix.Iovec{Base: &mem[at], Len: uint64(n)})
				at += n
			}
		}
		base := uint64(uintptr(unsafe.Pointer(&mem[0])))
		done := 0
		for more := true; more; {
			e := io.entry(nil)
			addr, left := e.Addr, int(e.Len)
			if io.op == uring.OpWritev {
				addr, left = uint64(uintptr(unsafe.Pointer(io.parts[0].Base))), iovecsLen(io.parts)
			}
			if addr != base+uint64(done) || e.Off != uint64(io.Off)+uint64(done) || left != len(mem)-done {
				t.Fatalf("after %d of %d bytes the entry is %+v", done, len(mem), e)
			}
			res := int32(Align + rng.IntN(left-Align+1))
			if rng.IntN(10) == 0 {
				res = -int32(unix.EAGAIN)
			}
			var err error
			if more, err = io.advance(res); err != nil {
				t.Fatal(err)
			}
			done += max(0, int(res)&^(Align-1))
		}
		if done != len(mem) {
			t.Fatalf("ended after %d of %d bytes", done, len(mem))
		}
	}
}

// TestSentBack: an IO that the kernel sends back for ever fails in the end.
func TestSentBack(t *testing.T) {
	for _, errno := range []unix.Errno{unix.EAGAIN, unix.EINTR, unix.ECANCELED} {
		io := &IO{P: AlignedBytes(Align)}
		io.prepare(&ringDevice{file: &file{size: 1 << 20}})
		n := 0
		more, err := true, error(nil)
		for ; more; n++ {
			more, err = io.advance(-int32(errno))
		}
		if !errors.Is(err, errno) || n != maxTries+1 {
			t.Errorf("%v: %v after %d times", errno, err, n)
		}
	}
}

// playedRing is a ring whose kernel a test plays: bytes of completions go in as they are.
func playedRing(t testing.TB, broken func(error)) (*ring, *uring.CQE, *uint32) {
	const entries = 64
	p := &uring.Params{
		SQEntries: entries, CQEntries: entries,
		SQ: uring.SQOffsets{Head: 0, Tail: 4, RingMask: 8, Flags: 16, Array: 256},
		CQ: uring.CQOffsets{Head: 128, Tail: 132, RingMask: 136, CQEs: 1024},
	}
	rings := AlignedBytes(Align)
	word := func(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&rings[off])) }
	*word(8), *word(136) = entries-1, entries-1
	r, err := uring.OnMemory(p, rings, AlignedBytes(2*Align))
	if err != nil {
		t.Fatal(err)
	}
	g := &ring{r: r, broken: broken}
	g.enter = func(n int) error { // taken, and nothing comes back
		if g.reaping.Load() {
			t.Error("submitted while others still leave their submissions to the reaper")
		}
		*word(0) += uint32(n)
		return nil
	}
	g.makeSlots(entries)
	return g, (*uring.CQE)(unsafe.Pointer(&rings[1024])), word(132)
}

// FuzzCompletions: completions of any content end IOs with an error at most, or break the ring; never a panic, and never an IO twice.
func FuzzCompletions(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 1, 16, 0, 0})
	f.Add([]byte{1, 0, 0, 0, 1, 245, 255, 255, 0, 0, 0, 0, 7, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) { feedCompletions(t, b) })
}

// feedCompletions plays a kernel that says what b says: 8 bytes a completion, slot, turn, two zeros, result.
func feedCompletions(t *testing.T, b []byte) {
	brokenCount := 0
	g, cqe, cqTail := playedRing(t, func(error) { brokenCount++ })
	d := &ringDevice{file: &file{size: 1 << 20, info: Info{Path: "played"}}, g: g, idle: make(chan struct{}, 1)}
	ends := map[*IO]int{}
	const ios = 8
	for i := range ios {
		io := &IO{Write: i%2 == 0, Off: int64(i) * 16 * Align, P: AlignedBytes(8 * Align)}
		io.Done = func(io *IO, _ error) { ends[io]++ }
		d.Start(io)
	}
	g.submit()
	for ; len(b) >= 8 && brokenCount == 0; b = b[8:] {
		c := uring.CQE{UserData: uint64(b[0]) | uint64(b[1])<<32, Res: int32(*(*uint32)(unsafe.Pointer(&b[4])))}
		if b[2] != 0 {
			c.UserData |= uint64(b[2])<<16 | uint64(b[3])<<56 // slots that there are not
		}
		cqes := unsafe.Slice(cqe, 64)
		cqes[*cqTail%64] = c
		*cqTail++
		g.reapAll()
	}
	for io, n := range ends {
		if n != 1 {
			t.Errorf("the IO at %d ended %d times", io.Off, n)
		}
	}
}

// TestCompletions is FuzzCompletions for every run, with answers that are nearly right.
func TestCompletions(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for range 3000 {
		b := make([]byte, 8*rng.IntN(20))
		for i := 0; i < len(b); i += 8 {
			b[i], b[i+1] = byte(rng.IntN(9)), byte(rng.IntN(3))
			if rng.IntN(20) == 0 {
				b[i], b[i+2], b[i+3] = byte(rng.Uint32()), byte(rng.Uint32()), byte(rng.Uint32())
			}
			res := int32(rng.IntN(10)) * Align
			switch rng.IntN(6) {
			case 0:
				res = -int32(rng.IntN(140))
			case 1:
				res = int32(rng.Uint32())
			}
			*(*int32)(unsafe.Pointer(&b[i+4])) = res
		}
		feedCompletions(t, b)
	}
}

// TestBroken: what the kernel cannot have said breaks the ring, and nobody gets memory back that may be under way.
func TestBroken(t *testing.T) {
	for name, b := range map[string][]byte{
		"a slot without an IO": {1, 0, 0, 0, 0, 0, 0, 0},
		"no such slot":         {200, 0, 1, 0, 0, 0, 0, 0},
		"another turn":         {0, 1, 0, 0, 0, 0, 0, 0},
		"more than asked":      {0, 0, 0, 0, 1, 0x80, 0, 0},
	} {
		var broken error
		g, cqe, cqTail := playedRing(t, func(err error) { broken = err })
		d := &ringDevice{file: &file{size: 1 << 20}, g: g}
		d.Start(&IO{P: AlignedBytes(8 * Align), Done: func(*IO, error) { t.Errorf("%s: ended", name) }})
		g.submit()
		*cqe = uring.CQE{UserData: uint64(b[0]) | uint64(b[1])<<32 | uint64(b[2])<<16, Res: *(*int32)(unsafe.Pointer(&b[4]))}
		*cqTail = 1
		if end := g.reapAll(); !end || !errors.Is(broken, uring.ErrBroken) {
			t.Errorf("%s: %v", name, broken)
		}
		broken = nil
		if *cqTail = 1000; !g.reapAll() || !errors.Is(broken, uring.ErrBroken) {
			t.Errorf("%s, and a tail that jumps: %v", name, broken)
		}
	}
}
