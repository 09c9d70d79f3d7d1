package store

import (
	"context"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/wire"
)

// TestLoneNeedsNoFlush: a Put or Append that is alone makes what it writes durable with the write: no flush of its own, and after a power
// cut that loses all that can be lost, it is there.
func TestLoneNeedsNoFlush(t *testing.T) {
	f := newFaulty(t, true)
	var plain atomic.Int32 // flushes that are not part of a write
	f.dev.BeforeIO(func(op string, _ int64, n int) {
		if op == "flush" && n == 0 {
			plain.Add(1)
		}
	})
	want := map[wire.StripID][]byte{}
	for i := range uint64(30) {
		b, err := f.put(1, tableID(i), 1+int(i%5))
		f.wantKind("put", err, wire.KindNone)
		want[tableID(i)] = b
		b, err = f.appendRecords(logID(1), uint64(len(want[logID(1)])), 0, 2)
		f.wantKind("append", err, wire.KindNone)
		want[logID(1)] = append(want[logID(1)], b...)
	}
	if n := plain.Load(); n > 0 {
		t.Errorf("%d flushes", n)
	}
	f.base.Kill()
	_ = f.stop()
	f.stop = func() error { return nil }
	base := f.base
	for seed := range uint64(20) {
		f.base = blockio.NewCrashDevice(base.Crash(rand.New(rand.NewPCG(seed, 1))), true)
		f.dev = blockio.NewFaultDevice(f.base)
		f.running = mustStart(t, f.dev, f.arena)
		for id, b := range want {
			f.wantBytes(id, b)
		}
		if err := f.stop(); err != nil {
			t.Error(err)
		}
		f.stop = func() error { return nil }
	}
}

// TestCompanyWaitsForTheFlush: an operation that comes while another's journal record is not flushed yet is not acknowledged before it is,
// because its own record continues that chain.
func TestCompanyWaitsForTheFlush(t *testing.T) {
	f := newFaulty(t, true)
	_, err := f.put(1, tableID(1), 1)
	f.wantKind("put", err, wire.KindNone)
	hold, flushing := make(chan struct{}), make(chan struct{})
	release := sync.OnceFunc(func() { close(hold) })
	t.Cleanup(release)
	var once sync.Once
	f.dev.BeforeIO(func(op string, _ int64, n int) {
		if op == "flush" && n == 0 {
			once.Do(func() { close(flushing) })
			<-hold
		}
	})
	put := func(n uint64) <-chan error {
		data, sums := makeData(t, f.arena, f.rng, 1)
		done := make(chan error, 1)
		go func() {
			defer data.Release()
			done <- f.Put(context.Background(), 1, tableID(n), sums, data)
		}()
		return done
	}
	// Something is under way all the time, so the first put is not alone either.
	f.mu.Lock()
	other := &op{}
	f.ops[other] = struct{}{}
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		f.end(other)
		f.mu.Unlock()
	}()
	first := put(2)
	select {
	case <-flushing:
	case err := <-first:
		t.Fatalf("a put that is not alone did not share a flush (%v)", err)
	}
	second := put(3)
	for waits := false; !waits; runtime.Gosched() {
		select {
		case err := <-second:
			// What it had to wait for can be lost: was it acknowledged too early?
			base := f.base
			for seed := range uint64(50) {
				f.base = blockio.NewCrashDevice(base.Crash(rand.New(rand.NewPCG(seed, 1))), true)
				r := mustStart(t, f.base, f.arena)
				if _, kind := readAll(t, r.Store, tableID(3), 4096); kind != wire.KindNone {
					t.Fatalf("acknowledged (%v), and lost by a power cut", err)
				}
				_ = r.stop()
			}
			t.Fatal("it did not wait for the flush")
		default:
		}
		f.flusher.mu.Lock()
		waits = len(f.flusher.next) > 0
		f.flusher.mu.Unlock()
	}
	release()
	f.wantKind("put", <-first, wire.KindNone)
	f.wantKind("put", <-second, wire.KindNone)
}

// TestFlushErrorOfWrite: when a write that should be durable fails, a plain one tells what was to blame: after a flush that failed nothing
// is taken any more, also if later flushes succeed; a write that failed is that operation's failure.
func TestFlushErrorOfWrite(t *testing.T) {
	f := newFaulty(t, true)
	kept, err := f.appendRecords(logID(1), 0, 0)
	f.wantKind("append", err, wire.KindNone)
	failing := true
	f.dev.FailWrites(func(off int64, _ int) error {
		if failing && f.inData(off) {
			return errInjected
		}
		return nil
	})
	_, err = f.put(1, tableID(1), 1)
	f.wantKind("put on a device that fails writes", err, wire.KindIO)
	if f.Failed() != nil {
		t.Error("a failed write of data ended all mutations")
	}
	failing = false
	f.dev.BeforeIO(func(op string, _ int64, n int) {
		if op == "flush" && n > 0 { // only that of the write itself fails
			f.dev.FailFlushes(errInjected)
		} else {
			f.dev.FailFlushes(nil)
		}
	})
	_, err = f.appendRecords(logID(1), uint64(len(kept)), 0)
	f.wantKind("append on a device that fails a flush", err, wire.KindIO)
	f.dev.BeforeIO(nil)
	f.dev.FailFlushes(nil)
	_, err = f.put(1, tableID(2), 1)
	f.wantKind("put after a failed flush", err, wire.KindIO)
	if f.Failed() == nil {
		t.Error("the store does not say that it failed")
	}
	f.reopen(true)
	f.wantBytes(logID(1), kept)
	f.wantAbsent(tableID(1))
}

// TestSharedBatchIsFlushed: a put that was alone when it submitted its record, but whose record shares a batch with another's, which is
// written plainly, waits for a flush like that one.
func TestSharedBatchIsFlushed(t *testing.T) {
	f := newFaulty(t, true)
	var ended, early atomic.Int32
	var once sync.Once
	f.dev.BeforeIO(func(op string, _ int64, n int) {
		if op != "flush" || n > 0 {
			return
		}
		once.Do(func() { // the first: until the other has come for a flush too, or has ended without
			for both := false; !both && ended.Load() == 0; runtime.Gosched() {
				f.flusher.mu.Lock()
				both = len(f.flusher.asked)+len(f.flusher.next) == 2
				f.flusher.mu.Unlock()
			}
			early.Store(ended.Load())
		})
	})
	var wg sync.WaitGroup
	for i := range uint64(2) {
		data, sums := makeData(t, f.arena, f.rng, 1)
		wg.Add(1)
		w := &Writing{ID: tableID(i), Epoch: 1, Sums: sums, Data: data, Ended: func(w *Writing) {
			f.wantKind("put", w.Err, wire.KindNone)
			ended.Add(1)
			w.Data.Release()
			wg.Done()
		}}
		if !f.StartPut(w) {
			t.Fatal("not taken")
		}
	}
	f.Kick()
	wg.Wait()
	if n := f.journal.count.Load(); n != 1 {
		t.Fatalf("%d batches for two puts that were kicked together", n)
	}
	if early.Load() > 0 {
		t.Error("acknowledged before the flush")
	}
}
