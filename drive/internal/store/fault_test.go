package store

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/wire"
)

var errInjected = errors.New("injected")

const testBytes = 8 << 20

// faulty is a store over a device that can be made to fail.
type faulty struct {
	*running
	t     *testing.T
	base  *blockio.CrashDevice
	dev   *blockio.FaultDevice
	arena *wire.Arena
	rng   *rand.Rand
}

func newFaulty(t *testing.T, volatile bool) *faulty {
	f := &faulty{t: t, arena: newArena(t), rng: rand.New(rand.NewPCG(5, 6))}
	f.base = blockio.NewCrashDevice(formatted(t, testBytes), volatile)
	f.dev = blockio.NewFaultDevice(f.base)
	f.running = mustStart(t, f.dev, f.arena)
	t.Cleanup(func() { _ = f.stop() })
	return f
}

// reopen stops the store, or kills it, and opens what is on the device.
func (f *faulty) reopen(kill bool) {
	f.t.Helper()
	if kill {
		img := f.base.Image()
		f.base.Kill()
		_ = f.stop()
		f.base = blockio.NewCrashDevice(img, true)
	} else if err := f.stop(); err != nil {
		f.t.Fatal(err)
	}
	f.dev = blockio.NewFaultDevice(f.base)
	f.running = mustStart(f.t, f.dev, f.arena)
}

func tableID(n uint64) wire.StripID { return wire.MakeStripID(1, wire.ClassTable, 2, n, 0, 99) }
func logID(n uint64) wire.StripID   { return wire.MakeStripID(1, wire.ClassLog, 2, n, 0, 99) }

// put puts a strip of random content.
func (f *faulty) put(epoch wire.Epoch, id wire.StripID, blocks int) ([]byte, error) {
	data, sums := makeData(f.t, f.arena, f.rng, blocks)
	defer data.Release()
	return flat(data), f.Put(context.Background(), epoch, id, sums, data)
}

func (f *faulty) appendRecords(id wire.StripID, off uint64, shape ...int) ([]byte, error) {
	data := makeRecords(f.t, f.arena, f.rng, id, off, shape)
	defer data.Release()
	_, err := f.Append(context.Background(), 1, id, off, data)
	return flat(data), err
}

func (f *faulty) wantKind(what string, err error, kind wire.Kind) {
	f.t.Helper()
	if wire.KindOf(err) != kind {
		f.t.Errorf("%s: %v, want %v", what, err, kind)
	}
}

func (f *faulty) wantBytes(id wire.StripID, want []byte) {
	f.t.Helper()
	got, kind := readAll(f.t, f.Store, id, uint64(len(want)))
	if kind != wire.KindNone || !bytes.Equal(got, want) {
		f.t.Errorf("read of %s: %v, equal %t", id, kind, bytes.Equal(got, want))
	}
}

func (f *faulty) wantAbsent(id wire.StripID) {
	f.t.Helper()
	if _, kind := readAll(f.t, f.Store, id, format.BlockSize); kind != wire.KindNotFound {
		f.t.Errorf("%s: %v, want it absent", id, kind)
	}
}

func (f *faulty) inData(off int64) bool { return off >= f.sb.DataOff }
func (f *faulty) inJournal(off int64) bool {
	return off >= f.sb.JournalOff && off < f.sb.CheckpointOff[0]
}

// TestDataWriteError: a put whose data cannot be written is not there, now or after a restart, and takes no space.
func TestDataWriteError(t *testing.T) {
	f := newFaulty(t, true)
	before, err := f.put(1, tableID(1), 4)
	f.wantKind("put", err, wire.KindNone)
	f.dev.FailWrites(func(off int64, _ int) error {
		if f.inData(off) {
			return errInjected
		}
		return nil
	})
	_, err = f.put(1, tableID(2), 4)
	f.wantKind("put on a failing device", err, wire.KindIO)
	f.wantAbsent(tableID(2))
	f.dev.FailWrites(nil)
	checkSpace(t, f.Store, "after the error")
	after, err := f.put(1, tableID(2), 3)
	f.wantKind("put after the device recovered", err, wire.KindNone)
	f.reopen(true)
	f.wantBytes(tableID(1), before)
	f.wantBytes(tableID(2), after)
	if f.Stat().Errors != 0 {
		t.Error("errors are counted from the start of the process")
	}
}

// TestThinDeviceFull: a device that runs out of space below us gives KindNoSpace and stays usable.
func TestThinDeviceFull(t *testing.T) {
	f := newFaulty(t, true)
	f.dev.SetBytesLeft(3 * format.BlockSize)
	_, err := f.put(1, tableID(1), 8)
	f.wantKind("put", err, wire.KindNoSpace)
	f.dev.SetBytesLeft(-1)
	got, err := f.put(1, tableID(1), 8)
	f.wantKind("put", err, wire.KindNone)
	f.reopen(true)
	f.wantBytes(tableID(1), got)
}

// TestJournalWriteError: what a failed journal write carried failed and is not there; the journal goes on in its place.
func TestJournalWriteError(t *testing.T) {
	f := newFaulty(t, true)
	a, err := f.put(1, tableID(1), 2)
	f.wantKind("put", err, wire.KindNone)
	f.dev.FailWrites(func(off int64, _ int) error {
		if f.inJournal(off) {
			return errInjected
		}
		return nil
	})
	_, err = f.put(1, tableID(2), 2)
	f.wantKind("put", err, wire.KindIO)
	_, err = f.appendRecords(logID(1), 0, 0)
	f.wantKind("append", err, wire.KindIO)
	f.wantKind("delete", f.Delete(t.Context(), 1, []wire.StripID{tableID(1)}), wire.KindIO)
	f.wantKind("fence", f.Fence(t.Context(), 5, 9), wire.KindIO)
	f.dev.FailWrites(nil)
	checkSpace(t, f.Store, "after the errors")
	b, err := f.put(1, tableID(3), 2)
	f.wantKind("put", err, wire.KindNone)
	f.reopen(true)
	f.wantBytes(tableID(1), a)
	f.wantBytes(tableID(3), b)
	f.wantAbsent(tableID(2))
}

// TestFlushError: after a flush that failed nothing is known any more, so nothing more is taken until a restart.
func TestFlushError(t *testing.T) {
	f := newFaulty(t, true)
	a, err := f.put(1, tableID(1), 2)
	f.wantKind("put", err, wire.KindNone)
	f.dev.FailFlushes(errInjected)
	_, err = f.put(1, tableID(2), 2)
	f.wantKind("put", err, wire.KindIO)
	f.dev.FailFlushes(nil)
	_, err = f.put(1, tableID(3), 2)
	f.wantKind("put after a failed flush", err, wire.KindIO)
	if f.Failed() == nil {
		t.Error("the store does not say that it failed")
	}
	f.wantBytes(tableID(1), a)
	f.wantAbsent(tableID(2))
	f.reopen(false)
	f.wantBytes(tableID(1), a)
}

// TestAppendError: an append that failed is the last of its segment, which ends where it was acknowledged.
func TestAppendError(t *testing.T) {
	f := newFaulty(t, true)
	acked, err := f.appendRecords(logID(1), 0, 0, 2)
	f.wantKind("append", err, wire.KindNone)
	f.dev.FailWrites(func(off int64, _ int) error {
		if f.inData(off) {
			return errInjected
		}
		return nil
	})
	_, err = f.appendRecords(logID(1), uint64(len(acked)), 0)
	f.wantKind("append", err, wire.KindIO)
	f.dev.FailWrites(nil)
	_, err = f.appendRecords(logID(1), uint64(len(acked)), 0)
	f.wantKind("append after a failed one", err, wire.KindRefused)
	n, err := f.Seal(t.Context(), 1, logID(1))
	if err != nil || n != uint64(len(acked)) {
		t.Errorf("seal: %d, %v; want %d", n, err, len(acked))
	}
	f.wantBytes(logID(1), acked)
	f.reopen(true)
	f.wantBytes(logID(1), acked)
}

// TestReadError: a range that cannot be read is KindIO, the others of the request are answered.
func TestReadError(t *testing.T) {
	f := newFaulty(t, false)
	_, err := f.put(1, tableID(1), 2)
	f.wantKind("put", err, wire.KindNone)
	want, err := f.put(1, tableID(2), 2)
	f.wantKind("put", err, wire.KindNone)
	bad := f.dataOffset(f.idx.Runs(tableID(1))[0])
	f.dev.FailReads(func(off int64, _ int) error {
		if off == bad {
			return errInjected
		}
		return nil
	})
	status, data, err := f.Read(t.Context(), []wire.ReadRange{
		{ID: tableID(1), Len: 4096}, {ID: tableID(2), Offset: 4096, Len: 4096}, {ID: tableID(3), Len: 4096}, {ID: tableID(2), Offset: 4096, Len: 8192},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer data.Release()
	if status[0] != wire.KindIO || status[1] != wire.KindNone || status[2] != wire.KindNotFound || status[3] != wire.KindRange {
		t.Errorf("statuses %v", status)
	}
	if !bytes.Equal(flat(data), want[4096:]) {
		t.Error("wrong bytes")
	}
	if f.Stat().Errors != 1 {
		t.Errorf("%d errors counted", f.Stat().Errors)
	}
}

// TestFull: file data is refused first, then metadata, before anything is written; deletes work, and then there is room.
func TestFull(t *testing.T) {
	f := newFaulty(t, true)
	dataID := func(n uint64) wire.StripID { return wire.MakeStripID(2, wire.ClassData, 0, n, 0, 1) }
	var written atomic.Int64 // data and journal; a checkpoint may be taken at any time
	f.dev.FailWrites(func(off int64, _ int) error {
		if f.inData(off) || f.inJournal(off) {
			written.Add(1)
		}
		return nil
	})
	fill := func(id func(uint64) wire.StripID) (n uint64) {
		for n = 0; ; n++ {
			before := written.Load()
			_, err := f.put(1, id(n), 7)
			if err != nil {
				f.wantKind("put on a full drive", err, wire.KindNoSpace)
				if written.Load() != before {
					t.Error("something was written for a put that was refused")
				}
				return n
			}
		}
	}
	n := fill(dataID)
	if free := f.Stat().FreeBytes; n < 50 || free >= 7*format.BlockSize {
		t.Errorf("full after %d strips with %d bytes free", n, free)
	}
	if m := fill(tableID); m == 0 {
		t.Error("nothing was kept for metadata")
	}
	_, err := f.appendRecords(logID(1), 0, 0, 60)
	f.wantKind("append on a full drive", err, wire.KindNoSpace)
	var ids []wire.StripID
	for i := range n {
		ids = append(ids, dataID(i))
	}
	f.wantKind("delete on a full drive", f.Delete(t.Context(), 1, ids), wire.KindNone)
	checkSpace(t, f.Store, "after the deletes")
	if again := fill(func(i uint64) wire.StripID { return dataID(i + 1000) }); again == 0 {
		t.Errorf("%d strips fit after the deletes, want some", again)
	}
	f.reopen(true)
	checkSpace(t, f.Store, "after a restart")
}

// TestTooManyStrips: the number of strips is bounded by what a checkpoint holds.
func TestTooManyStrips(t *testing.T) {
	f := newFaulty(t, false)
	f.sb.CheckpointBytes = 2*format.PageBytes + format.BlockSize // as if formatted so
	for i := range uint64(2000) {
		if _, err := f.put(1, tableID(i), 1); err != nil {
			f.wantKind("put", err, wire.KindNoSpace)
			if i < 500 {
				t.Errorf("only %d strips fit", i)
			}
			f.reopen(false)
			return
		}
	}
	t.Error("there is no bound")
}

// TestReadHoldsBlocks: a read that is under way keeps the blocks of a deleted strip from being used again.
func TestReadHoldsBlocks(t *testing.T) {
	f := newFaulty(t, false)
	want, err := f.put(1, tableID(1), 4)
	f.wantKind("put", err, wire.KindNone)
	reading, resume := make(chan struct{}), make(chan struct{})
	var first atomic.Bool
	f.dev.BeforeIO(func(op string, _ int64, _ int) {
		if op == "read" && first.CompareAndSwap(false, true) {
			close(reading)
			<-resume
		}
	})
	got := make(chan []byte)
	go func() {
		b, _ := readAll(t, f.Store, tableID(1), 4*format.BlockSize)
		got <- b
	}()
	<-reading
	free := f.freeBlocks()
	f.wantKind("delete", f.Delete(t.Context(), 1, []wire.StripID{tableID(1)}), wire.KindNone)
	if f.freeBlocks() != free {
		t.Error("blocks are free while a read of them is under way")
	}
	for n := uint64(10); f.freeBlocks() >= 8; n++ { // use all that is free
		if _, err := f.put(1, tableID(n), 8); err != nil {
			break
		}
	}
	f.wantAbsent(tableID(1)) // a later read, which ends before the first
	free = f.freeBlocks()
	close(resume)
	if !bytes.Equal(<-got, want) {
		t.Error("the read saw other bytes")
	}
	if now := f.freeBlocks(); now != free+4 {
		t.Errorf("%d blocks free after the read, want %d", now, free+4)
	}
}

func (s *Store) freeBlocks() uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.alloc.FreeBlocks()
}

// TestFenceWaits: a fence refuses older epochs at once, and is answered only when the operations before it are done.
func TestFenceWaits(t *testing.T) {
	f := newFaulty(t, true)
	writing, resume := make(chan struct{}), make(chan struct{})
	var first atomic.Bool
	f.dev.BeforeIO(func(op string, off int64, _ int) {
		if op == "write" && f.inData(off) && first.CompareAndSwap(false, true) {
			close(writing)
			<-resume
		}
	})
	putDone := make(chan error, 1)
	go func() {
		_, err := f.put(3, tableID(1), 2)
		putDone <- err
	}()
	<-writing
	fenceDone := make(chan error, 1)
	go func() { fenceDone <- f.Fence(context.Background(), 1, 4) }()
	for f.wantFenced(1) != 4 {
		time.Sleep(time.Millisecond)
	}
	data, sums := makeData(t, f.arena, rand.New(rand.NewPCG(1, 1)), 1)
	defer data.Release()
	f.wantKind("put at the old epoch", f.Put(t.Context(), 3, tableID(2), sums, data), wire.KindStaleEpoch)
	f.wantKind("put of another bucket", f.Put(t.Context(), 3, wire.MakeStripID(2, 4, 0, 1, 0, 0), sums, data), wire.KindNone)
	select {
	case err := <-fenceDone:
		t.Fatalf("the fence did not wait: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	close(resume)
	f.wantKind("put before the fence", <-putDone, wire.KindNone)
	f.wantKind("fence", <-fenceDone, wire.KindNone)
	f.wantKind("the fence again", f.Fence(t.Context(), 1, 4), wire.KindNone)
	f.wantKind("an older fence", f.Fence(t.Context(), 1, 3), wire.KindStaleEpoch)
	f.reopen(true)
	f.wantKind("put at the old epoch after a restart", f.Put(t.Context(), 3, tableID(2), sums, data), wire.KindStaleEpoch)
	f.wantKind("put at the new epoch", f.Put(t.Context(), 4, tableID(2), sums, data), wire.KindNone)
	f.wantKind("an older fence", f.Fence(t.Context(), 1, 3), wire.KindStaleEpoch)
}

func (s *Store) wantFenced(b wire.BucketID) wire.Epoch {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.epoch(b)
}

// TestGroupCommit: operations that wait together share journal writes and flushes.
func TestGroupCommit(t *testing.T) {
	f := newFaulty(t, true)
	f.dev.SetDelay(2 * time.Millisecond)
	_, _, flushes := f.dev.Counts()
	const n = 64
	var wg sync.WaitGroup
	for i := range uint64(n) {
		data, sums := makeData(t, f.arena, f.rng, 1)
		wg.Go(func() {
			defer data.Release()
			f.wantKind("put", f.Put(context.Background(), 1, tableID(i), sums, data), wire.KindNone)
		})
	}
	wg.Wait()
	_, _, after := f.dev.Counts()
	if batches := f.journal.count.Load(); after-flushes > n/4 || batches > n/4 {
		t.Errorf("%d puts at once took %d flushes and %d journal writes", n, after-flushes, batches)
	}
}

// TestNoFlushWithoutCache: a device without a volatile cache is never flushed by a commit.
func TestNoFlushWithoutCache(t *testing.T) {
	f := newFaulty(t, false)
	_, _, before := f.dev.Counts()
	_, err := f.put(1, tableID(1), 2)
	f.wantKind("put", err, wire.KindNone)
	_, err = f.appendRecords(logID(1), 0, 0)
	f.wantKind("append", err, wire.KindNone)
	if _, _, after := f.dev.Counts(); after != before {
		t.Errorf("%d flushes", after-before)
	}
}

// TestAppendNeedsNoIndexWrite: an append within what is allocated is one device write.
func TestAppendNeedsNoIndexWrite(t *testing.T) {
	f := newFaulty(t, true)
	acked, err := f.appendRecords(logID(1), 0, 0)
	f.wantKind("append", err, wire.KindNone)
	_, before, _ := f.dev.Counts()
	_, err = f.appendRecords(logID(1), uint64(len(acked)), 3, 0)
	f.wantKind("append", err, wire.KindNone)
	if _, after, _ := f.dev.Counts(); after != before+1 {
		t.Errorf("%d device writes", after-before)
	}
}

// TestVerify finds a flipped bit in a strip and in a segment, and passes over what is sound.
func TestVerify(t *testing.T) {
	f := newFaulty(t, false)
	for i := range uint64(5) {
		_, err := f.put(1, tableID(i), 3)
		f.wantKind("put", err, wire.KindNone)
		_, err = f.appendRecords(logID(i), 0, 0, 4, 0)
		f.wantKind("append", err, wire.KindNone)
	}
	f.dev.Rot(f.dataOffset(f.idx.Runs(tableID(3))[0])+5000, 1)
	f.dev.Rot(f.dataOffset(f.idx.Runs(logID(2))[0])+9000, 0x80)
	for _, c := range []struct {
		class wire.Class
		bad   wire.StripID
	}{{wire.ClassTable, tableID(3)}, {wire.ClassLog, logID(2)}} {
		var bad []wire.StripID
		var after wire.StripID
		for rounds := 0; ; rounds++ {
			b, last, err := f.Verify(t.Context(), 1, c.class, after, 2)
			if err != nil || rounds > 5 {
				t.Fatal(err, rounds)
			}
			bad = append(bad, b...)
			if after = last; last.IsZero() {
				break
			}
		}
		if len(bad) != 1 || bad[0] != c.bad {
			t.Errorf("class %d: bad %v, want %v", c.class, bad, c.bad)
		}
	}
}

// TestIdempotence: repeats of what was acknowledged are answered the same; anything else is refused.
func TestIdempotence(t *testing.T) {
	f := newFaulty(t, true)
	ctx := t.Context()
	data, sums := makeData(t, f.arena, f.rng, 3)
	defer data.Release()
	put := func(id wire.StripID, sums []uint64, d wire.Data) error { return f.Put(ctx, 1, id, sums, d) }
	f.wantKind("put", put(tableID(1), sums, data), wire.KindNone)
	f.wantKind("put again", put(tableID(1), sums, data), wire.KindNone)
	f.wantKind("put of less", put(tableID(1), sums[:2], data.Sub(0, 8192)), wire.KindExists)
	f.wantKind("put with other checksums", put(tableID(1), []uint64{1, 2, 3}, data), wire.KindExists)
	f.wantKind("put with too few checksums", put(tableID(2), sums[:2], data), wire.KindInvalid)
	f.wantKind("put of nothing", put(tableID(2), nil, nil), wire.KindInvalid)
	f.wantKind("put of half a block", put(tableID(2), sums[:1], wire.Data{{Buf: data[0].Buf, B: data[0].B[:100]}}), wire.KindInvalid)

	first := makeRecords(t, f.arena, f.rng, logID(1), 0, []int{0, 2})
	defer first.Release()
	n := uint64(first.Len())
	second := makeRecords(t, f.arena, f.rng, logID(1), n, []int{1, 0})
	defer second.Release()
	appendAt := func(off uint64, d wire.Data) error {
		_, err := f.Append(ctx, 1, logID(1), off, d)
		return err
	}
	f.wantKind("append to nothing", appendAt(n, second), wire.KindNotFound)
	f.wantKind("append", appendAt(0, first), wire.KindNone)
	f.wantKind("append again", appendAt(0, first), wire.KindNone)
	f.wantKind("append beyond", appendAt(n+8192, makeRecords(t, f.arena, f.rng, logID(1), n+8192, []int{0})), wire.KindRange)
	other := makeRecords(t, f.arena, f.rng, logID(1), 0, []int{0, 2})
	defer other.Release()
	f.wantKind("append of other bytes", appendAt(0, other), wire.KindExists)
	f.wantKind("append with records for elsewhere", appendAt(n, first), wire.KindCorrupt)
	wrong := makeRecords(t, f.arena, f.rng, logID(2), n, []int{0})
	f.wantKind("append with records of another segment", appendAt(n, wrong), wire.KindCorrupt)
	wrong[0].B[100] ^= 1
	f.wantKind("append of damaged records", appendAt(n, wrong), wire.KindCorrupt)
	wrong.Release()
	f.wantKind("append of half a record", appendAt(n, second[0:1].Sub(0, 4096)), wire.KindCorrupt)
	both := append(first.Retain(), second.Retain()...)
	f.wantKind("append of which half is there", appendAt(0, both), wire.KindNone)
	both.Release()
	f.wantBytes(logID(1), append(flat(first), flat(second)...))
	f.wantKind("append to a strip", func() error {
		d := makeRecords(t, f.arena, f.rng, tableID(1), 0, []int{0})
		defer d.Release()
		_, err := f.Append(ctx, 1, tableID(1), 0, d)
		return err
	}(), wire.KindExists)
	f.wantKind("put over a segment", put(logID(1), sums, data), wire.KindExists)

	for range 2 {
		got, err := f.Seal(ctx, 1, logID(1))
		if err != nil || got != n+uint64(second.Len()) {
			t.Errorf("seal: %d, %v", got, err)
		}
	}
	f.wantKind("append to a sealed segment", appendAt(n+uint64(second.Len()), makeRecords(t, f.arena, f.rng, logID(1), n+uint64(second.Len()), []int{0})), wire.KindRefused)
	f.wantKind("repeat of an append to a sealed segment", appendAt(n, second), wire.KindNone)
	_, err := f.Seal(ctx, 1, tableID(1))
	f.wantKind("seal of a strip", err, wire.KindInvalid)
	_, err = f.Seal(ctx, 1, logID(5))
	f.wantKind("seal of nothing", err, wire.KindNotFound)
	for range 2 {
		f.wantKind("delete", f.Delete(ctx, 1, []wire.StripID{logID(1), tableID(1), tableID(9), tableID(1)}), wire.KindNone)
	}
	f.wantKind("delete of too many", f.Delete(ctx, 1, make([]wire.StripID, maxDeleteIDs+1)), wire.KindOverLimit)
	if f.Stat().Strips != 0 {
		t.Error("something is left")
	}
	checkSpace(t, f.Store, "at the end")
}

// TestSameIDAtOnce: many operations on few ids at once leave a consistent state, now and after a restart.
func TestSameIDAtOnce(t *testing.T) {
	f := newFaulty(t, true)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 1))
			same := rand.New(rand.NewPCG(1, 1)) // all put the same content
			data, sums := makeData(t, f.arena, same, 2)
			defer data.Release()
			for range 100 {
				id := tableID(rng.Uint64N(3))
				switch rng.IntN(3) {
				case 0:
					f.wantKind("put", f.Put(context.Background(), 1, id, sums, data), wire.KindNone)
				case 1:
					f.wantKind("delete", f.Delete(context.Background(), 1, []wire.StripID{id, tableID(rng.Uint64N(3))}), wire.KindNone)
				case 2:
					got, kind := readAll(t, f.Store, id, 8192)
					if kind == wire.KindNone && !bytes.Equal(got, data[0].B) {
						t.Error("wrong bytes")
					}
				}
			}
		})
	}
	wg.Wait()
	checkSpace(t, f.Store, "after the race")
	before, _ := f.List(1, wire.ClassTable, wire.StripID{}, 0)
	f.reopen(true)
	after, _ := f.List(1, wire.ClassTable, wire.StripID{}, 0)
	if len(before) != len(after) {
		t.Errorf("%d strips before the restart, %d after", len(before), len(after))
	}
}

// TestShutdown: once the store stops, mutations are refused and reads go on.
func TestShutdown(t *testing.T) {
	f := newFaulty(t, true)
	want, err := f.put(1, tableID(1), 2)
	f.wantKind("put", err, wire.KindNone)
	if err := f.stop(); err != nil {
		t.Fatal(err)
	}
	_, err = f.put(1, tableID(2), 2)
	f.wantKind("put after the end", err, wire.KindShutdown)
	f.wantBytes(tableID(1), want)
	f.stop = func() error { return nil }
	s, err := Open(f.dev, Config{Arena: f.arena, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	if s.journal.dirty() {
		t.Error("an orderly end left something to replay")
	}
}

// TestBlocksAreGivenDurablyFirst: before the first byte goes to new blocks of a segment, the record that gives them is
// durable; see Append for why.
func TestBlocksAreGivenDurablyFirst(t *testing.T) {
	f := newFaulty(t, true)
	var mu sync.Mutex
	var trace string
	f.dev.BeforeIO(func(op string, off int64, _ int) {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case op == "flush":
			trace += "F"
		case op == "write" && f.inJournal(off):
			trace += "J"
		case op == "write" && f.inData(off):
			trace += "D"
		}
	})
	acked, err := f.appendRecords(logID(1), 0, 0)
	f.wantKind("append", err, wire.KindNone)
	_, err = f.appendRecords(logID(1), uint64(len(acked)), 0)
	f.wantKind("append", err, wire.KindNone)
	if trace != "JFDF"+"DF" {
		t.Errorf("IOs %s, want JFDF for the append that takes blocks, then DF", trace)
	}
}
