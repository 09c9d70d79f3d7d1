package store

import (
	"bytes"
	"context"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/drive/internal/health"
	"github.com/crakefs/crake/drive/internal/sched"
	"github.com/crakefs/crake/wire"
)

// asyncDevice makes an Async device of another. What was started begins only with Kick, as the contract allows, and ends when the test
// says so (end), or at once and in any order by goroutines (run). Writes and flushes do so always, but where the test holds them too.
type asyncDevice struct {
	blockio.Device
	all bool // the test ends writes and flushes too

	mu     sync.Mutex
	free   []*blockio.IO // started, not kicked, and not the test's
	more   *sync.Cond    // on mu: something was kicked
	queued []*blockio.IO // started and not kicked
	begun  []*blockio.IO // kicked and not ended
	most   int           // under way at once
	closed bool
}

func newAsyncDevice(d blockio.Device) *asyncDevice {
	a := &asyncDevice{Device: d}
	a.more = sync.NewCond(&a.mu)
	return a
}

// Start implements blockio.Async.
func (d *asyncDevice) Start(io *blockio.IO) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if (io.Write || io.Flush) && !d.all {
		d.free = append(d.free, io)
		return
	}
	d.queued = append(d.queued, io)
}

// Kick implements blockio.Async.
func (d *asyncDevice) Kick() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.begun = append(d.begun, d.queued...)
	d.queued = nil
	for _, io := range d.free {
		go func() { io.Done(io, blockio.Do(d.Device, io)) }()
	}
	d.free = nil
	d.most = max(d.most, len(d.begun))
	d.more.Broadcast()
}

// counts tells how many are queued and under way.
func (d *asyncDevice) counts() (queued, begun int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.queued), len(d.begun)
}

// end ends the i-th IO under way, with err or as the device says.
func (d *asyncDevice) end(i int, err error) {
	d.mu.Lock()
	io := d.begun[i]
	d.begun = append(d.begun[:i], d.begun[i+1:]...)
	d.mu.Unlock()
	if err == nil {
		err = blockio.Do(d.Device, io)
	}
	io.Done(io, err)
}

// endAll ends what is under way and what that lets begin.
func (d *asyncDevice) endAll() {
	for {
		if _, n := d.counts(); n == 0 {
			return
		}
		d.end(0, nil)
	}
}

// run ends IO in random order until the test ends.
func (d *asyncDevice) run(t *testing.T) {
	var wg sync.WaitGroup
	wg.Go(func() {
		rng := rand.New(rand.NewPCG(1, 1))
		for {
			d.mu.Lock()
			for len(d.begun) == 0 && !d.closed {
				d.more.Wait()
			}
			n := len(d.begun)
			d.mu.Unlock()
			if n == 0 {
				return
			}
			d.end(rng.IntN(n), nil)
		}
	})
	t.Cleanup(func() {
		d.mu.Lock()
		d.closed = true
		d.more.Broadcast()
		d.mu.Unlock()
		wg.Wait()
	})
}

// newAsyncFaulty is newFaulty over an Async device.
func newAsyncFaulty(t *testing.T, arenaBytes int) (*faulty, *asyncDevice) {
	arena, err := wire.NewArena(arenaBytes, wire.ArenaDebug())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := arena.Close(); err != nil {
			t.Error(err)
		}
	})
	f := &faulty{t: t, arena: arena, rng: rand.New(rand.NewPCG(5, 6))}
	f.base = blockio.NewCrashDevice(formatted(t, testBytes), true)
	f.dev = blockio.NewFaultDevice(f.base)
	a := newAsyncDevice(f.dev)
	f.running = mustStart(t, a, f.arena)
	t.Cleanup(func() { _ = f.stop() })
	return f, a
}

// startRead starts a read of whole blocks of one strip; the channel gives the data (nil for a status) when it has ended.
func (f *faulty) startRead(o sched.Origin, ranges ...wire.ReadRange) (*Reading, <-chan []byte) {
	f.t.Helper()
	out := make(chan []byte, 1)
	r := &Reading{Ranges: ranges, Origin: o, Ended: func(r *Reading) {
		out <- flat(r.Data)
		r.Data.Release()
	}}
	if !f.StartRead(r) {
		f.t.Fatal("the read was not taken")
	}
	return r, out
}

func whole(id wire.StripID, blocks int) wire.ReadRange {
	return wire.ReadRange{ID: id, Len: uint32(blocks * format.BlockSize)}
}

// TestStartRead: a read without a goroutine gives what Read gives, begins with a Kick, several share one, and its books can be used again.
func TestStartRead(t *testing.T) {
	f, dev := newAsyncFaulty(t, 64<<20)
	want := map[wire.StripID][]byte{}
	for i := range uint64(20) {
		b, err := f.put(1, tableID(i), 1+int(i))
		f.wantKind("put", err, wire.KindNone)
		want[tableID(i)] = b
	}
	ended := 0
	var got []byte
	r := &Reading{Ended: func(r *Reading) {
		ended++
		got = flat(r.Data)
		r.Data.Release()
	}}
	for i := range uint64(200) {
		id, other := tableID(i%20), tableID((i*7)%20)
		blocks := len(want[id]) / format.BlockSize
		r.Ranges = []wire.ReadRange{whole(id, blocks), whole(tableID(99), 1), {ID: other, Len: 4096}, whole(id, blocks+1)}
		if !f.StartRead(r) {
			t.Fatal("the read was not taken")
		}
		if queued, begun := dev.counts(); queued != 2 || begun != 0 {
			t.Fatalf("%d queued, %d begun before Kick", queued, begun)
		}
		f.Kick()
		dev.end(int(i%2), nil)
		dev.end(0, nil)
		if ended != int(i)+1 || !bytes.Equal(got, append(bytes.Clone(want[id]), want[other][:4096]...)) {
			t.Fatalf("read %d: ended %d times, %d bytes", i, ended, len(got))
		}
		if s := r.Status; len(s) != 4 || s[0] != wire.KindNone || s[1] != wire.KindNotFound || s[2] != wire.KindNone || s[3] != wire.KindRange {
			t.Fatalf("statuses %v", s)
		}
	}
	r.Ranges = []wire.ReadRange{whole(tableID(99), 1)}
	if !f.StartRead(r) || ended != 201 || len(got) != 0 {
		t.Error("a read of nothing that is there did not end at once")
	}
	for _, bad := range [][]wire.ReadRange{nil, {{ID: tableID(1), Len: 5}}, make([]wire.ReadRange, maxReadRanges+1)} {
		r.Ranges = bad
		if f.StartRead(r) {
			t.Errorf("%d ranges were taken", len(bad))
		}
	}
}

// TestAsyncReadError: an IO that fails is the status of its range alone, is counted, and the monitor hears of it.
func TestAsyncReadError(t *testing.T) {
	f, dev := newAsyncFaulty(t, 64<<20)
	f.cfg.Health = health.New(nil)
	want, err := f.put(1, tableID(1), 2)
	f.wantKind("put", err, wire.KindNone)
	_, err = f.put(1, tableID(2), 2)
	f.wantKind("put", err, wire.KindNone)
	r, out := f.startRead(sched.Origin{}, whole(tableID(2), 2), whole(tableID(1), 2), whole(tableID(2), 1))
	f.Kick()
	dev.end(0, wire.E("device.read", wire.KindIO, "", errInjected))
	dev.endAll()
	if got := <-out; !bytes.Equal(got[:8192], want) || len(got) != 3*4096 {
		t.Errorf("%d bytes, the wrong ones or too many", len(got))
	}
	if s := r.Status; s[0] != wire.KindIO || s[1] != wire.KindNone || s[2] != wire.KindNone {
		t.Errorf("statuses %v", s)
	}
	if st := f.Stat(); st.Errors != 1 {
		t.Errorf("%d errors counted", st.Errors)
	}
	gone := wire.E("device.read", wire.KindIO, "", unix.ENODEV)
	_, out = f.startRead(sched.Origin{}, whole(tableID(1), 1))
	f.Kick()
	dev.end(0, gone)
	<-out
	if f.Stat().Fault == "" {
		t.Error("the monitor did not hear that the device is gone")
	}
}

// TestAsyncReadHoldsBlocks: the blocks of a strip that is deleted while the device reads it are not used again before it is done.
func TestAsyncReadHoldsBlocks(t *testing.T) {
	f, dev := newAsyncFaulty(t, 64<<20)
	want, err := f.put(1, tableID(1), 4)
	f.wantKind("put", err, wire.KindNone)
	_, out := f.startRead(sched.Origin{}, whole(tableID(1), 4))
	f.Kick()
	free := f.freeBlocks()
	f.wantKind("delete", f.Delete(t.Context(), 1, []wire.StripID{tableID(1)}), wire.KindNone)
	for n := uint64(10); f.freeBlocks() >= 8; n++ { // use all that is free
		if _, err := f.put(1, tableID(n), 8); err != nil {
			break
		}
	}
	if now := f.freeBlocks(); now > free {
		t.Error("blocks are free while they are read")
	}
	free = f.freeBlocks()
	dev.endAll()
	if !bytes.Equal(<-out, want) {
		t.Error("the read saw other bytes")
	}
	if now := f.freeBlocks(); now != free+4 {
		t.Errorf("%d blocks free after the read, want %d", now, free+4)
	}
}

// TestArenaExhausted: without memory at once a read is not taken, and Read waits for it.
func TestArenaExhausted(t *testing.T) {
	f, dev := newAsyncFaulty(t, 2<<20)
	dev.run(t)
	want, err := f.put(1, tableID(1), 4)
	f.wantKind("put", err, wire.KindNone)
	var held []*wire.Buf
	for b := f.arena.TryAlloc(4096); b != nil; b = f.arena.TryAlloc(4096) {
		held = append(held, b)
	}
	r := &Reading{Ranges: []wire.ReadRange{whole(tableID(1), 4)}, Ended: func(*Reading) { t.Error("a read that was not taken has ended") }}
	if f.StartRead(r) {
		t.Fatal("taken without memory")
	}
	got := make(chan []byte)
	go func() {
		b, _ := readAll(t, f.Store, tableID(1), 4*format.BlockSize)
		got <- b
	}()
	for _, b := range held {
		b.Release()
	}
	if !bytes.Equal(<-got, want) {
		t.Error("wrong bytes")
	}
}

// TestStopWhileReading: reads that are under way when the store ends are answered.
func TestStopWhileReading(t *testing.T) {
	f, dev := newAsyncFaulty(t, 64<<20)
	want, err := f.put(1, tableID(1), 4)
	f.wantKind("put", err, wire.KindNone)
	_, out := f.startRead(sched.Origin{}, whole(tableID(1), 4))
	f.Kick()
	if err := f.stop(); err != nil {
		t.Fatal(err)
	}
	f.stop = func() error { return nil }
	dev.endAll()
	if !bytes.Equal(<-out, want) {
		t.Error("wrong bytes")
	}
}

// TestConnectionsTakeTurns: a connection that asks for much at once does not keep another waiting, and what is under way is bounded.
func TestConnectionsTakeTurns(t *testing.T) {
	f, dev := newAsyncFaulty(t, 64<<20)
	_, err := f.put(1, tableID(1), 4)
	f.wantKind("put", err, wire.KindNone)
	var outs []<-chan []byte
	for range 300 {
		_, out := f.startRead(sched.Origin{Flow: 1}, whole(tableID(1), 1))
		outs = append(outs, out)
	}
	f.Kick()
	bound := sched.DefaultLimits().IOs
	if _, begun := dev.counts(); begun != bound {
		t.Errorf("%d under way, the bound is %d", begun, bound)
	}
	if got := f.Stat().Queued; int(got) != 300-bound {
		t.Errorf("%d queued", got)
	}
	_, out := f.startRead(sched.Origin{Flow: 2}, whole(tableID(1), 1))
	for n := 0; len(out) == 0; n++ {
		if n > bound+2 {
			t.Fatal("another connection's read waits for all of the first's")
		}
		dev.end(0, nil)
	}
	dev.endAll()
	for _, out := range outs {
		<-out
	}
	if dev.most > bound || f.Stat().Queued != 0 {
		t.Errorf("at most %d were under way; %d are queued", dev.most, f.Stat().Queued)
	}
}

// TestScrubYields: what nobody waits for has little under way at once, and a client's read begins before what waits of it.
func TestScrubYields(t *testing.T) {
	f, dev := newAsyncFaulty(t, 64<<20)
	_, err := f.put(1, tableID(1), 4)
	f.wantKind("put", err, wire.KindNone)
	for _, c := range []struct {
		prio  wire.Priority
		class sched.Class
	}{{wire.PriorityScrub, sched.Scrub}, {wire.PriorityRebuild, sched.Rebuild}} {
		var outs []<-chan []byte
		for range 100 {
			_, out := f.startRead(sched.Origin{Flow: 1, Priority: c.prio}, whole(tableID(1), 1))
			outs = append(outs, out)
		}
		f.Kick()
		bound := sched.DefaultLimits().Classes[c.class].IOs
		if _, begun := dev.counts(); begun != bound {
			t.Errorf("%d under way, the bound is %d", begun, bound)
		}
		_, out := f.startRead(sched.Origin{Flow: 2}, whole(tableID(1), 1))
		f.Kick()
		if _, begun := dev.counts(); begun != bound+1 {
			t.Error("a client's read does not begin at once")
		}
		dev.end(bound, nil)
		<-out
		dev.endAll()
		for _, out := range outs {
			<-out
		}
	}
}

// TestReadsPassWrites: whatever writes do, also when the device holds them all up, reads are done; on devices of both kinds.
func TestReadsPassWrites(t *testing.T) {
	for _, async := range []bool{false, true} {
		f, dev := newAsyncFaulty(t, 64<<20)
		if async {
			dev.run(t)
		} else {
			f = newFaulty(t, true)
		}
		want, err := f.put(1, tableID(1), 4)
		f.wantKind("put", err, wire.KindNone)
		hold := make(chan struct{})
		var mu sync.Mutex
		writes := 0
		full := make(chan struct{})
		bound := sched.DefaultLimits().Classes[sched.ClientWrite].IOs
		f.dev.BeforeIO(func(op string, off int64, _ int) {
			if op != "write" || !f.inData(off) {
				return
			}
			mu.Lock()
			if writes++; writes == bound {
				close(full)
			}
			mu.Unlock()
			<-hold
		})
		var wg sync.WaitGroup
		for i := range uint64(200) {
			data, sums := makeData(t, f.arena, f.rng, 1)
			wg.Go(func() {
				defer data.Release()
				f.wantKind("put", f.Put(context.Background(), 1, tableID(10+i), sums, data), wire.KindNone)
			})
		}
		<-full
		for range 50 {
			f.wantBytes(tableID(1), want)
		}
		mu.Lock()
		if writes > bound {
			t.Errorf("%d writes under way, the bound is %d", writes, bound)
		}
		mu.Unlock()
		close(hold)
		wg.Wait()
	}
}

// TestRebuildLeavesSlots: puts of a rebuild that wait do not keep a client's from its slot.
func TestRebuildLeavesSlots(t *testing.T) {
	f := newFaulty(t, true)
	hold := make(chan struct{})
	var mu sync.Mutex
	writes := 0
	full := make(chan struct{})
	bound := sched.DefaultLimits().Classes[sched.Rebuild].IOs
	f.dev.BeforeIO(func(op string, off int64, _ int) {
		if op != "write" || !f.inData(off) {
			return
		}
		mu.Lock()
		writes++
		n := writes
		mu.Unlock()
		if n == bound {
			close(full)
		}
		if n <= bound {
			<-hold
		}
	})
	ctx := sched.WithOrigin(t.Context(), sched.Origin{Priority: wire.PriorityRebuild})
	var wg sync.WaitGroup
	for i := range uint64(maxMutations + maxBackgroundMutations) {
		data, sums := makeData(t, f.arena, f.rng, 1)
		wg.Go(func() {
			defer data.Release()
			f.wantKind("put", f.Put(ctx, 1, tableID(10+i), sums, data), wire.KindNone)
		})
	}
	<-full
	_, err := f.put(1, tableID(1), 1)
	f.wantKind("put of a client", err, wire.KindNone)
	close(hold)
	wg.Wait()
}

// TestReadGivesUp: a read whose ctx ends while it waits for its turn ends with it.
func TestReadGivesUp(t *testing.T) {
	f := newFaulty(t, false)
	_, err := f.put(1, tableID(1), 2)
	f.wantKind("put", err, wire.KindNone)
	hold := make(chan struct{})
	busy := make(chan struct{})
	f.dev.BeforeIO(func(string, int64, int) {
		select {
		case busy <- struct{}{}:
			<-hold
		case <-hold:
		}
	})
	var wg sync.WaitGroup
	bound := sched.DefaultLimits().Classes[sched.ClientRead].IOs
	for range bound {
		wg.Go(func() { _, _ = readAll(t, f.Store, tableID(1), 4096) })
	}
	for range bound {
		<-busy
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, _, err := f.Read(ctx, []wire.ReadRange{whole(tableID(1), 2)})
		done <- err
	}()
	for f.Stat().Queued == 0 {
		runtime.Gosched() // the reads before have all turns, so it will wait
	}
	cancel()
	f.wantKind("read", <-done, wire.KindInterrupted)
	close(hold)
	wg.Wait()
}
