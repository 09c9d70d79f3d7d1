package store

import (
	"bytes"
	"context"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/wire"
)

// TestDataChangesUnderWay: a sender whose memory we borrow changes it after the checks, before it is written: what he has put or appended is
// damaged, and found so, and nothing else is: the drive serves, opens after a power cut, and has every byte of others.
func TestDataChangesUnderWay(t *testing.T) {
	f := newFaulty(t, true)
	kept, err := f.put(1, tableID(1), 3)
	f.wantKind("put", err, wire.KindNone)
	log, err := f.appendRecords(logID(1), 0, 0, 2)
	f.wantKind("append", err, wire.KindNone)
	var victim atomic.Pointer[[]byte]
	f.dev.BeforeIO(func(op string, off int64, _ int) {
		if !f.inData(off) || op != "write" {
			return
		}
		if v := victim.Swap(nil); v != nil {
			for i := range *v {
				(*v)[i] ^= byte(i*7 + 1)
			}
		}
	})
	data, sums := makeData(t, f.arena, f.rng, 4)
	defer data.Release()
	victim.Store(&data[0].B)
	f.wantKind("put of what changes", f.Put(t.Context(), 1, tableID(2), sums, data), wire.KindNone)
	records := makeRecords(t, f.arena, f.rng, logID(2), 0, []int{0, 1, 100, 0})
	defer records.Release()
	victim.Store(&records[0].B)
	_, err = f.Append(t.Context(), 1, logID(2), 0, records)
	f.wantKind("append of what changes", err, wire.KindNone)
	f.dev.BeforeIO(nil)
	bad, _, err := f.Verify(context.Background(), 1, wire.ClassTable, wire.StripID{}, 0)
	if err != nil || len(bad) != 1 || bad[0] != tableID(2) {
		t.Errorf("Verify found %v, %v", bad, err)
	}
	for range 2 {
		f.wantBytes(tableID(1), kept)
		f.wantBytes(logID(1), log)
		checkSpace(t, f.Store, "with damaged strips")
		f.reopen(true)
	}
	f.wantKind("delete", f.Delete(t.Context(), 1, []wire.StripID{tableID(2), logID(2)}), wire.KindNone)
	checkSpace(t, f.Store, "after they were deleted")
}

// TestRecordsChangeWhileParsed: records that change while they are checked give an error or pass; what passes is what was copied. The
// memory is changed behind the back of Go, as another process does it.
func TestRecordsChangeWhileParsed(t *testing.T) {
	arena := newArena(t)
	rng := rand.New(rand.NewPCG(1, 2))
	id := logID(1)
	a := makeRecords(t, arena, rng, id, 0, []int{0, 600, 1, 0})
	defer a.Release()
	b := makeRecords(t, arena, rng, id, 0, []int{3, 0, 597, 0, 1, 0}) // as long as a
	defer b.Release()
	n := a.Len()
	fd, err := unix.MemfdCreate("hostile", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for _, d := range []wire.Data{a, b} {
		if _, err := unix.Write(fd, flat(d)[:min(n, d.Len())]); err != nil {
			t.Fatal(err)
		}
	}
	buf, err := arena.Alloc(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	data := buf.Data(n)
	defer data.Release()
	copy(data[0].B, flat(a))
	var stop atomic.Bool
	var changed atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		rng := rand.New(rand.NewPCG(3, 4))
		for !stop.Load() {
			at, whose := rng.IntN(n/format.BlockSize)*format.BlockSize, rng.IntN(2)
			at += rng.IntN(2) * rng.IntN(32) * 8
			unix.RawSyscall6(unix.SYS_PREAD64, uintptr(fd), uintptr(unsafe.Pointer(&data[0].B[at])), uintptr(1+rng.IntN(64)), uintptr(whose*n+at), 0, 0)
			changed.Add(1)
			runtime.Gosched()
		}
	})
	var memory []byte
	passed := 0
	for changed.Load() < 20_000 {
		if memory, err = checkChain(data, id, 0, memory); err == nil {
			passed++
		} else if wire.KindOf(err) != wire.KindCorrupt {
			t.Fatal(err)
		}
		runtime.Gosched()
	}
	stop.Store(true)
	wg.Wait()
	t.Logf("%d passed", passed)
	copy(data[0].B, flat(a))
	if _, err := checkChain(data, id, 0, memory); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(flat(data), flat(a)) {
		t.Error("the check has changed the data")
	}
}
