package store

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/wire"
)

// eagerDiscards makes a store discard all the time, and in small units.
func eagerDiscards(s *Store) {
	s.discards.unit, s.discards.every, s.discards.pause = 4, time.Millisecond, time.Nanosecond
}

// newDiscarder is a store that discards when the test calls pass.
func newDiscarder(t *testing.T, volatile bool, tune ...func(s *Store)) *faulty {
	f := &faulty{t: t, arena: newArena(t), rng: rand.New(rand.NewPCG(5, 6))}
	f.base = blockio.NewCrashDevice(formatted(t, testBytes), volatile)
	f.dev = blockio.NewFaultDevice(f.base)
	r, err := start(t, f.dev, f.arena, append(tune, func(s *Store) {
		s.discards.unit, s.discards.every, s.discards.pause = 4, time.Hour, time.Nanosecond
		s.startDiscards()
	})...)
	if err != nil {
		t.Fatal(err)
	}
	f.running = r
	t.Cleanup(func() { _ = f.stop() })
	return f
}

func (f *faulty) pass() bool {
	f.t.Helper()
	return f.discardPass(f.t.Context())
}

// device gives what lies in a run.
func (f *faulty) device(r format.Run) []byte {
	f.t.Helper()
	b := make([]byte, r.Blocks()*format.BlockSize)
	if err := f.base.ReadAt(b, f.dataOffset(r)); err != nil {
		f.t.Fatal(err)
	}
	return b
}

// TestDiscard: what is free is told to the device, once: all of it after the start, then what becomes free; what is used never.
func TestDiscard(t *testing.T) {
	f := newDiscarder(t, true)
	if !f.pass() {
		t.Fatal("no discards")
	}
	all := f.sb.DataBlocks() * format.BlockSize
	if got := f.Stat().DiscardBytes; got != all {
		t.Errorf("%d bytes of %d were told at the start", got, all)
	}
	want := map[wire.StripID][]byte{}
	for i := range uint64(40) {
		b, err := f.put(1, tableID(i), 4)
		f.wantKind("put", err, wire.KindNone)
		want[tableID(i)] = b
		b, err = f.appendRecords(logID(i), 0, 0, 2)
		if f.wantKind("append", err, wire.KindNone); err != nil {
			break
		}
		want[logID(i)] = b
		if i == 9 {
			break // chunks of segments are large
		}
	}
	if f.pass(); f.Stat().DiscardBytes != all {
		t.Error("something is told though nothing became free")
	}
	runs := f.idx.Runs(tableID(3))
	f.wantKind("delete", f.Delete(t.Context(), 1, []wire.StripID{tableID(3), logID(4)}), wire.KindNone)
	delete(want, tableID(3))
	delete(want, logID(4))
	before := f.device(runs[0])
	f.pass()
	if got := f.Stat().DiscardBytes - all; got < (4+64)*format.BlockSize || bytes.Equal(f.device(runs[0]), before) {
		t.Errorf("%d bytes were told after the deletes", got)
	}
	for id, b := range want {
		f.wantBytes(id, b)
	}
	checkSpace(t, f.Store, "after the discards")
	f.reopen(true)
	for id, b := range want {
		f.wantBytes(id, b)
	}
}

// TestDiscardWaits: blocks are not discarded before the record that frees them is durable, nor while a read of them is under way.
func TestDiscardWaits(t *testing.T) {
	f := newDiscarder(t, true)
	f.pass()
	want, err := f.put(1, tableID(1), 4)
	f.wantKind("put", err, wire.KindNone)
	run := f.idx.Runs(tableID(1))[0]
	told := f.Stat().DiscardBytes
	reading, flushing := make(chan struct{}), make(chan struct{})
	resumeRead, resumeFlush := make(chan struct{}), make(chan struct{})
	var onceRead, onceFlush sync.Once
	f.dev.BeforeIO(func(op string, _ int64, _ int) {
		switch op {
		case "read":
			onceRead.Do(func() { close(reading); <-resumeRead })
		case "flush":
			onceFlush.Do(func() { close(flushing); <-resumeFlush })
		}
	})
	got, deleted := make(chan []byte), make(chan error)
	go func() {
		b, _ := readAll(t, f.Store, tableID(1), 4*format.BlockSize)
		got <- b
	}()
	<-reading
	go func() { deleted <- f.Delete(context.Background(), 1, []wire.StripID{tableID(1)}) }()
	<-flushing
	f.pass()
	if f.Stat().DiscardBytes != told || !bytes.Equal(f.device(run), want) {
		t.Error("blocks were discarded before their deletion was durable")
	}
	close(resumeFlush)
	f.wantKind("delete", <-deleted, wire.KindNone)
	f.pass()
	if f.Stat().DiscardBytes != told || !bytes.Equal(f.device(run), want) {
		t.Error("blocks were discarded while they were read")
	}
	close(resumeRead)
	if !bytes.Equal(<-got, want) {
		t.Error("the read saw other bytes")
	}
	f.pass()
	if f.Stat().DiscardBytes == told {
		t.Error("nothing was discarded at last")
	}
}

// TestDiscardExcludes: what is being discarded is not given out, and file data finds all the room that it was promised meanwhile.
func TestDiscardExcludes(t *testing.T) {
	f := newDiscarder(t, false)
	var id uint64
	data := func() wire.StripID { id++; return wire.MakeStripID(2, wire.ClassData, 0, id, 0, 1) }
	under, resume := make(chan int64), make(chan struct{})
	var once sync.Once
	f.dev.BeforeIO(func(op string, off int64, n int) {
		if op == "discard" {
			once.Do(func() { under <- off; under <- int64(n); <-resume })
		}
	})
	passed := make(chan bool)
	go func() { passed <- f.pass() }()
	off, n := <-under, <-under
	free := f.Stat().FreeBytes
	put := 0
	for f.Stat().FreeBytes >= 2*format.BlockSize {
		if _, err := f.put(1, data(), 2); err != nil {
			t.Fatalf("%d bytes are free, %d put: %v", f.Stat().FreeBytes, put, err)
		}
		put += 2 * format.BlockSize
	}
	if put+2*format.BlockSize <= int(free) {
		t.Errorf("%d bytes were put, %d were free", put, free)
	}
	checkSpace(t, f.Store, "in a discard")
	f.mu.RLock()
	f.idx.Ascend(wire.StripID{}, func(st stripInfo) bool {
		for _, r := range f.idx.Runs(st.ID) {
			if at := f.dataOffset(r); at < off+n && at+int64(r.Blocks())*format.BlockSize > off {
				t.Errorf("%s lies at %d, in what is being discarded: %d bytes at %d", st.ID, at, n, off)
			}
		}
		return true
	})
	f.mu.RUnlock()
	close(resume)
	if !<-passed {
		t.Error("the pass ended the discards")
	}
	f.pass()
	checkSpace(t, f.Store, "after the discards")
	if _, err := f.put(1, tableID(1), 20); err != nil { // from the reserve
		t.Errorf("put of metadata: %v", err)
	}
}

// TestDiscardFails: a device that refuses is told nothing more, and one that has none, or that is nearly full, nothing at all.
func TestDiscardFails(t *testing.T) {
	var events []string
	f := newDiscarder(t, false, func(s *Store) { s.cfg.OnEvent = func(_ uint8, kind, _ string) { events = append(events, kind) } })
	f.dev.FailDiscards(errInjected)
	again := f.pass()
	again = f.pass() || again
	if again || len(events) != 1 || events[0] != "drive.discard" || f.Stat().DiscardBytes != 0 {
		t.Errorf("events %v, %d bytes", events, f.Stat().DiscardBytes)
	}
	f.dev.FailDiscards(nil)
	if f.pass() {
		t.Error("it went on")
	}
	checkSpace(t, f.Store, "after a discard that failed")
	got, err := f.put(1, tableID(1), 4)
	f.wantKind("put", err, wire.KindNone)
	f.wantBytes(tableID(1), got)

	f = newDiscarder(t, false, func(s *Store) { s.cfg.NoDiscard = true })
	if f.pass() || f.Stat().DiscardBytes != 0 {
		t.Error("discards though they are off")
	}

	f = newDiscarder(t, false)
	for n := uint64(0); f.freeBlocks() >= 2*f.reserve; n++ {
		if _, err := f.put(1, tableID(n), 16); err != nil {
			t.Fatal(err)
		}
	}
	if !f.pass() || f.Stat().DiscardBytes != 0 {
		t.Errorf("%d bytes of a nearly full drive were discarded", f.Stat().DiscardBytes)
	}
}

// TestDiscardCrashes: long random histories with discards all the time, which put noise into what they discard, crashed again and again:
// what was acknowledged is there. Also that of which a discard that was not flushed is lost, torn or late.
func TestDiscardCrashes(t *testing.T) {
	seed := rand.Uint64()
	for i := range 4 {
		volatile := i%2 == 0
		t.Run(fmt.Sprintf("seed=%d,volatile=%t", seed+uint64(i), volatile), func(t *testing.T) {
			t.Parallel()
			h := newHistory(t, newArena(t), seed+uint64(i), 1+i%3, volatile, 8<<20)
			told := uint64(0)
			var last *Store
			h.tune = append(h.tune, eagerDiscards, func(s *Store) {
				if last != nil {
					told += last.Stat().DiscardBytes
				}
				last = s
			})
			for round := range 8 {
				h.run(fmt.Sprintf("round %d", round), 150, 1+h.rng.IntN(2000))
				if t.Failed() {
					return
				}
			}
			h.run("the end", 50, 0)
			if told == 0 {
				t.Error("nothing was discarded")
			}
		})
	}
}

// TestDiscardRuns: Run does it, and ends in the middle of it.
func TestDiscardRuns(t *testing.T) {
	arena := newArena(t)
	dev := blockio.NewFaultDevice(blockio.NewCrashDevice(formatted(t, testBytes), false))
	discarding, resume := make(chan struct{}), make(chan struct{})
	var once sync.Once
	dev.BeforeIO(func(op string, _ int64, _ int) {
		if op == "discard" {
			once.Do(func() { close(discarding); <-resume })
		}
	})
	r, err := start(t, dev, arena, eagerDiscards)
	if err != nil {
		t.Fatal(err)
	}
	<-discarding
	ended := make(chan error)
	go func() { ended <- r.stop() }()
	select {
	case err := <-ended:
		t.Errorf("Run ended while a discard was under way: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	close(resume)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	checkSpace(t, r.Store, "at the end")
}

// TestDiscardGivesMemoryBack: on a file in memory, what was deleted goes back to the system; the rest stays.
func TestDiscardGivesMemoryBack(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "crake-store-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "drive")
	const size = 160 << 20
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	dev, err := blockio.OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := Format(dev, testSuperblock(size)); err != nil {
		t.Fatal(err)
	}
	held := func() int64 {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks * 512
	}
	f := &faulty{t: t, arena: newArena(t), rng: rand.New(rand.NewPCG(5, 6))}
	if f.running, err = start(t, dev, f.arena, func(s *Store) {
		s.discards.unit, s.discards.every, s.discards.pause = discardUnit, time.Hour, time.Nanosecond
		s.startDiscards()
	}); err != nil {
		t.Fatal(err)
	}
	var ids []wire.StripID
	var kept []byte
	for i := range uint64(256) { // 32 MiB
		b, err := f.put(1, tableID(i), 32)
		f.wantKind("put", err, wire.KindNone)
		if i == 100 {
			kept = b
			continue
		}
		ids = append(ids, tableID(i))
	}
	full := held()
	f.wantKind("delete", f.Delete(t.Context(), 1, ids), wire.KindNone)
	f.pass()
	if now := held(); full < 32<<20 || now > 4<<20 {
		t.Errorf("the file holds %d bytes with 32 MiB of strips, and %d when they are gone", full, now)
	}
	f.wantBytes(tableID(100), kept)
	if err := f.stop(); err != nil {
		t.Error(err)
	}
	if err := dev.Close(); err != nil {
		t.Error(err)
	}
}
