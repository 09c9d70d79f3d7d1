package store

import (
	"context"
	"math/rand/v2"
	"testing"

	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/wire"
)

// durableAsync is an asyncDevice that can make single writes durable.
type durableAsync struct{ *asyncDevice }

// WriteDurable implements blockio.Durable; the store starts an IO instead.
func (d durableAsync) WriteDurable(p []byte, off int64) error {
	return blockio.Do(d.Device, &blockio.IO{Write: true, Durable: true, P: p, Off: off})
}

// newHeld is a store on an Async device of which the test ends all IO.
func newHeld(t *testing.T) (*faulty, *asyncDevice) {
	f := &faulty{t: t, arena: newArena(t), rng: rand.New(rand.NewPCG(5, 6))}
	f.base = blockio.NewCrashDevice(formatted(t, testBytes), true)
	f.dev = blockio.NewFaultDevice(f.base)
	a := newAsyncDevice(f.dev)
	f.running = mustStart(t, durableAsync{a}, f.arena)
	a.all = true
	t.Cleanup(func() {
		a.endAll()
		a.all = false
		_ = f.stop()
	})
	return f, a
}

// kinds counts what is under way: writes, of those the durable ones, and flushes.
func (d *asyncDevice) kinds() (writes, durable, flushes int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, io := range d.begun {
		switch {
		case io.Flush:
			flushes++
		case io.Write:
			writes++
			if io.Durable {
				durable++
			}
		}
	}
	return writes, durable, flushes
}

func (f *faulty) wantUnderWay(dev *asyncDevice, writes, durable, flushes int) {
	f.t.Helper()
	if w, d, n := dev.kinds(); w != writes || d != durable || n != flushes {
		f.t.Fatalf("under way: %d writes, %d of them durable, %d flushes; want %d, %d, %d", w, d, n, writes, durable, flushes)
	}
}

// putting makes a Writing of a put; *ended counts its ends.
func (f *faulty) putting(id wire.StripID, epoch wire.Epoch, blocks int) (w *Writing, ended *int) {
	data, sums := makeData(f.t, f.arena, f.rng, blocks)
	f.t.Cleanup(data.Release)
	ended = new(int)
	return &Writing{ID: id, Epoch: epoch, Data: data, Sums: sums, Ended: func(*Writing) { *ended++ }}, ended
}

// appending makes a Writing of an append of one record.
func (f *faulty) appending(id wire.StripID, off uint64) (w *Writing, ended *int) {
	data := makeRecords(f.t, f.arena, f.rng, id, off, []int{0})
	f.t.Cleanup(data.Release)
	ended = new(int)
	return &Writing{ID: id, Epoch: 1, Offset: off, Data: data, Ended: func(*Writing) { *ended++ }}, ended
}

// TestStartPut: a put without a goroutine begins nothing before Kick, then its record and data at once, durable by themselves if it is
// alone; it is answered once, when both have ended, and only then it can be read. Its books can be used again.
func TestStartPut(t *testing.T) {
	f, dev := newHeld(t)
	w, ended := f.putting(tableID(1), 1, 3)
	for i := range uint64(10) {
		w.ID = tableID(i)
		if !f.StartPut(w) {
			t.Fatal("not taken")
		}
		f.wantUnderWay(dev, 0, 0, 0)
		f.Kick()
		f.wantUnderWay(dev, 2, 2, 0)
		dev.end(int(i%2), nil)
		if *ended != int(i) {
			t.Fatal("answered before all was written")
		}
		f.mu.RLock()
		_, known := f.idx.Get(w.ID)
		f.mu.RUnlock()
		if known {
			t.Fatal("can be read before it is durable")
		}
		dev.end(0, nil)
		f.wantUnderWay(dev, 0, 0, 0)
		if *ended != int(i)+1 || w.Err != nil {
			t.Fatalf("ended %d times, %v", *ended, w.Err)
		}
	}
	dev.all = false
	for i := range uint64(10) {
		r, out := f.startRead(w.Origin, whole(tableID(i), 3))
		f.Kick()
		dev.endAll()
		if got := <-out; string(got) != string(flat(w.Data)) {
			t.Errorf("strip %d: status %v, other bytes", i, r.Status)
		}
	}
}

// TestBurst: puts and appends that are kicked together make one batch, one write of data each, and one flush; those that come while the
// flush is under way share the next.
func TestBurst(t *testing.T) {
	f, dev := newHeld(t)
	log, ended := f.appending(logID(1), 0)
	if !f.StartAppend(log) {
		t.Fatal("not taken")
	}
	f.Kick()
	f.wantUnderWay(dev, 1, 1, 0) // the record of its blocks, which must be durable before the data is written
	dev.end(0, nil)
	f.wantUnderWay(dev, 1, 1, 0)
	dev.end(0, nil)
	if *ended != 1 || log.Err != nil || log.Len != 4096 {
		t.Fatalf("ended %d times, %v, length %d", *ended, log.Err, log.Len)
	}
	const puts = 20
	batches := f.journal.count.Load()
	all := 0
	var ws []*Writing
	for i := range uint64(puts) {
		w, _ := f.putting(tableID(i), 1, 1)
		ws = append(ws, w)
	}
	more, _ := f.appending(logID(1), 4096)
	for _, w := range append(ws, more) {
		w.Ended = func(*Writing) { all++ }
		if w.Offset > 0 && !f.StartAppend(w) || w.Offset == 0 && !f.StartPut(w) {
			t.Fatal("not taken")
		}
	}
	f.Kick()
	f.wantUnderWay(dev, puts+2, 1, 0) // the first was alone
	for range puts + 1 {
		dev.end(0, nil)
	}
	f.wantUnderWay(dev, 1, 0, 1) // the append is written and wants a flush; the batch is not written
	dev.end(0, nil)
	f.wantUnderWay(dev, 0, 0, 1)
	if all != 0 {
		t.Fatalf("%d have ended before a flush has", all)
	}
	dev.end(0, nil)
	f.wantUnderWay(dev, 0, 0, 1) // all puts share this
	if all != 1 {
		t.Fatalf("%d have ended by the append's flush", all)
	}
	dev.end(0, nil)
	f.wantUnderWay(dev, 0, 0, 0)
	if got := f.journal.count.Load() - batches; all != puts+1 || got != 1 {
		t.Errorf("%d ended, %d batches", all, got)
	}
}

// TestStartRefuses: what cannot begin at once, or not at all, is not taken, and nothing of it stays behind.
func TestStartRefuses(t *testing.T) {
	f, dev := newHeld(t)
	dev.all = false
	_, err := f.put(3, tableID(1), 2)
	f.wantKind("put", err, wire.KindNone)
	_, err = f.appendRecords(logID(1), 0, 0)
	f.wantKind("append", wire.E("", wire.KindOf(err), "", nil), wire.KindStaleEpoch) // of the bucket, at 3 now
	other := wire.MakeStripID(2, wire.ClassLog, 2, 1, 0, 99)
	_, err = f.appendRecords(other, 0, 0)
	f.wantKind("append", err, wire.KindNone)
	dev.all = true
	same, ended := f.putting(tableID(1), 3, 2)
	stale, _ := f.putting(tableID(2), 2, 2)
	short, _ := f.putting(tableID(2), 3, 2)
	short.Sums = short.Sums[1:]
	huge, _ := f.putting(tableID(2), 3, 2000)
	for name, w := range map[string]*Writing{"other content": same, "stale": stale, "checksums": short, "no space": huge} {
		if f.StartPut(w) {
			t.Errorf("%s was taken", name)
		}
	}
	again, _ := f.appending(other, 0)
	gap, _ := f.appending(other, 8192)
	lies, _ := f.appending(other, 4096)
	lies.Offset = 0
	for name, w := range map[string]*Writing{"bytes that are there": again, "a gap": gap, "another offset": lies} {
		if f.StartAppend(w) {
			t.Errorf("an append of %s was taken", name)
		}
	}
	busy, busyEnded := f.putting(tableID(5), 3, 1)
	if !f.StartPut(busy) {
		t.Fatal("not taken")
	}
	twin, _ := f.putting(tableID(5), 3, 1)
	if f.StartPut(twin) {
		t.Error("two at once of one id")
	}
	f.Kick()
	dev.endAll()
	if *busyEnded != 1 || *ended != 0 {
		t.Error("not ended once")
	}
	slots := f.slots[wire.PriorityClient]
	if len(slots) != 0 || len(f.ops) != 0 || len(f.busy) != 0 {
		t.Errorf("%d slots, %d operations, %d ids are taken", len(slots), len(f.ops), len(f.busy))
	}
	for range cap(slots) {
		slots <- struct{}{}
	}
	late, _ := f.putting(tableID(6), 3, 1)
	if f.StartPut(late) {
		t.Error("taken without a slot")
	}
	for range cap(slots) {
		<-slots
	}
	checkSpace(t, f.Store, "after what was refused")
}

// TestStartedIsWaitedFor: a fence, the same id again, and the end of the store wait for what nobody waits for.
func TestStartedIsWaitedFor(t *testing.T) {
	f, dev := newHeld(t)
	w, ended := f.putting(tableID(1), 1, 2)
	if !f.StartPut(w) {
		t.Fatal("not taken")
	}
	f.Kick()
	fenced, repeated := make(chan error, 1), make(chan error, 1)
	go func() { repeated <- f.Put(context.Background(), 1, w.ID, w.Sums, w.Data) }()
	for waits := false; !waits; {
		f.mu.RLock()
		waits = f.busy[w.ID] != nil && f.busy[w.ID].done != nil
		f.mu.RUnlock()
	}
	go func() { fenced <- f.Fence(context.Background(), 1, 2) }()
	for f.wantFenced(1) != 2 {
		select {
		case err := <-fenced:
			t.Fatalf("the fence did not wait: %v", err)
		default:
		}
	}
	f.wantUnderWay(dev, 2, 2, 0) // no record of the fence
	late, _ := f.putting(tableID(2), 1, 1)
	if f.StartPut(late) {
		t.Error("an older epoch was taken after a fence began")
	}
	dev.all = false
	dev.endAll()
	if *ended != 1 || w.Err != nil {
		t.Errorf("ended %d times: %v", *ended, w.Err)
	}
	f.wantKind("fence", <-fenced, wire.KindNone)
	if err := <-repeated; err != nil && wire.KindOf(err) != wire.KindStaleEpoch {
		t.Errorf("the same put again: %v", err)
	}
	dev.all = true
	last, ended := f.putting(tableID(3), 2, 1)
	if !f.StartPut(last) {
		t.Fatal("not taken")
	}
	f.Kick()
	stopped := make(chan error, 1)
	stop := f.stop
	go func() { stopped <- stop() }()
	f.stop = func() error { return nil }
	for closing := false; !closing; {
		f.mu.RLock()
		closing = f.closing
		f.mu.RUnlock()
	}
	select {
	case <-stopped:
		t.Fatal("the store ended before its put")
	default:
	}
	dev.mu.Lock()
	dev.all = false
	dev.mu.Unlock()
	dev.endAll()
	if err := <-stopped; err != nil || *ended != 1 || last.Err != nil {
		t.Errorf("%v; ended %d times, %v", err, *ended, last.Err)
	}
}
