package store

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/wire"
)

// scrubbed is a store whose scrub runs when the test calls pass, and its events.
type scrubbed struct {
	*faulty
	mu     sync.Mutex
	events []string // type and text
}

func newScrubbed(t *testing.T, tune ...func(s *Store)) *scrubbed {
	b := &scrubbed{faulty: &faulty{t: t, arena: newArena(t), rng: rand.New(rand.NewPCG(5, 6))}}
	b.base = blockio.NewCrashDevice(formatted(t, testBytes), false)
	b.dev = blockio.NewFaultDevice(b.base)
	r, err := start(t, b.dev, b.arena, append([]func(*Store){func(s *Store) {
		s.cfg.ScrubRate, s.cfg.VerifyRate, s.scrub.delay = 1<<40, 1<<40, time.Hour
		s.events.interval = time.Millisecond
		s.cfg.OnEvent = func(_ uint8, kind, text string) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.events = append(b.events, kind+" "+text)
		}
	}}, tune...)...)
	if err != nil {
		t.Fatal(err)
	}
	b.running = r
	t.Cleanup(func() { _ = b.stop() })
	return b
}

func (b *scrubbed) pass(first wire.StripID) {
	b.t.Helper()
	if !b.scrubAll(b.t.Context(), first) {
		b.t.Fatal("the pass was cut short")
	}
}

// taken gives the events since the last call, in order.
func (b *scrubbed) taken() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	events := b.events
	b.events = nil
	slices.Sort(events)
	return events
}

// populate puts strips, sealed and open segments, all of them sound.
func (b *scrubbed) populate() {
	for i := range uint64(6) {
		_, err := b.put(1, tableID(i), 1+int(i))
		b.wantKind("put", err, wire.KindNone)
	}
	for i := range uint64(4) {
		_, err := b.appendRecords(logID(i), 0, 0, 4, 0, 2)
		b.wantKind("append", err, wire.KindNone)
		if i < 2 {
			_, err = b.Seal(b.t.Context(), 1, logID(i))
			b.wantKind("seal", err, wire.KindNone)
		}
	}
}

// TestScrub finds a flipped bit in a strip, in a sealed and in an open segment within one pass, tells of each by name, once a pass,
// and counts each once; reads of them are answered as they are. Wherever the pass begins.
func TestScrub(t *testing.T) {
	for _, first := range []wire.StripID{tableID(0), tableID(4), logID(3), {Hi: 1}} {
		b := newScrubbed(t)
		b.populate()
		if b.pass(first); len(b.taken()) != 0 || b.Stat().Corrupt != 0 {
			t.Fatal("the scrub finds what is not there")
		}
		rotten := []wire.StripID{logID(1), logID(2), tableID(3)}
		for _, id := range rotten {
			b.dev.Rot(b.dataOffset(b.idx.Runs(id)[0])+5000, 4)
		}
		for range 2 {
			b.pass(first)
			events := b.taken()
			if len(events) != len(rotten) {
				t.Fatalf("events %q, want %d", events, len(rotten))
			}
			for _, id := range rotten {
				if !slices.ContainsFunc(events, func(e string) bool { return strings.HasPrefix(e, "strip.corrupt "+id.String()+":") }) {
					t.Errorf("events %q: none of %s", events, id)
				}
			}
		}
		st := b.Stat()
		if st.Corrupt != 3 || st.Errors != 0 {
			t.Errorf("%d corrupt, %d errors; want 3, 0", st.Corrupt, st.Errors)
		}
		got, kind := readAll(t, b.Store, tableID(3), 4*format.BlockSize)
		if kind != wire.KindNone || len(got) != 4*format.BlockSize {
			t.Errorf("read of a rotten strip: %v, %d bytes", kind, len(got))
		}
		// Deleted, as its owner does once it is rebuilt elsewhere: another one counts again.
		b.wantKind("delete", b.Delete(t.Context(), 1, rotten), wire.KindNone)
		if b.pass(first); len(b.taken()) != 0 || b.Stat().Corrupt != 3 {
			t.Error("what was deleted is found")
		}
	}
}

// TestScrubUnreadable: what cannot be read is an error of the device, not a mismatch, and the pass goes on.
func TestScrubUnreadable(t *testing.T) {
	b := newScrubbed(t)
	b.populate()
	bad := b.dataOffset(b.idx.Runs(tableID(2))[0])
	b.dev.FailReads(func(off int64, _ int) error {
		if off == bad {
			return errInjected
		}
		return nil
	})
	b.dev.Rot(b.dataOffset(b.idx.Runs(tableID(5))[0]), 1)
	b.pass(tableID(0))
	events := b.taken()
	if len(events) != 2 || !strings.HasPrefix(events[0], "drive.io ") || !strings.Contains(events[0], tableID(2).String()) ||
		!strings.HasPrefix(events[1], "strip.corrupt "+tableID(5).String()) {
		t.Errorf("events %q", events)
	}
	if st := b.Stat(); st.Corrupt != 1 || st.Errors != 1 {
		t.Errorf("%d corrupt, %d errors", st.Corrupt, st.Errors)
	}
	ids, _, err := b.Verify(t.Context(), 1, wire.ClassTable, wire.StripID{}, 0)
	if err != nil || !slices.Equal(ids, []wire.StripID{tableID(2), tableID(5)}) {
		t.Errorf("Verify says %v, %v; want both", ids, err)
	}
}

// TestScrubProgress: done goes up to total, and passes are counted; Run makes one after the other.
func TestScrubProgress(t *testing.T) {
	b := newScrubbed(t)
	b.populate()
	var seen []uint64
	b.dev.BeforeIO(func(op string, _ int64, _ int) {
		if op == "read" {
			seen = append(seen, b.Stat().ScrubDone)
		}
	})
	b.pass(tableID(3))
	b.dev.BeforeIO(nil)
	st := b.Stat()
	used := (b.sb.DataBlocks() - b.freeBlocks()) * format.BlockSize
	if st.ScrubDone != used || st.ScrubTotal != used || len(seen) != 10 || seen[0] != 0 || !slices.IsSorted(seen) {
		t.Errorf("done %d of %d, used %d; on the way %v", st.ScrubDone, st.ScrubTotal, used, seen)
	}
	b = newScrubbed(t, func(s *Store) { s.scrub.delay = time.Millisecond })
	b.populate()
	for b.Stat().ScrubPasses < 3 {
		time.Sleep(time.Millisecond)
	}
	b = newScrubbed(t, func(s *Store) { s.scrub.delay, s.cfg.ScrubRate = time.Nanosecond, -1 })
	b.runScrub(t.Context()) // returns
}

// TestScrubRate: the default reads all within the time of a pass, and not less than the least rate.
func TestScrubRate(t *testing.T) {
	b := newScrubbed(t, func(s *Store) { s.cfg.ScrubRate = 0 })
	b.scrub.total.Store(16 << 40)
	if got, want := b.scrubRate(), 29087609; got != want {
		t.Errorf("%d bytes a second for 16 TiB, want %d", got, want)
	}
	b.scrub.total.Store(1 << 30)
	if got := b.scrubRate(); got != minScrubRate {
		t.Errorf("%d bytes a second for 1 GiB", got)
	}
	p, began := &pacer{}, time.Now()
	for range 5 {
		if err := p.pace(t.Context(), 50_000, 1_000_000); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(began); took < 180*time.Millisecond {
		t.Errorf("250,000 bytes at 1,000,000 a second took %v", took)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.pace(ctx, 1<<40, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("pace after its end: %v", err)
	}
}

// TestScrubHoldsNothing: a scrub that waits for its rate, in the middle of a segment, keeps nothing that is deleted from becoming
// free, also not that segment; and it goes on with the next.
func TestScrubHoldsNothing(t *testing.T) {
	b := newScrubbed(t)
	for n := 0; n < 300; n += 60 { // more than a window
		_, err := b.appendRecords(logID(1), uint64(n)*format.BlockSize, 59)
		b.wantKind("append", err, wire.KindNone)
	}
	_, err := b.put(1, tableID(1), 4)
	b.wantKind("put", err, wire.KindNone)
	free := b.freeBlocks()
	waiting := make(chan struct{})
	var reads atomic.Int32
	c := b.newChecker(&b.scrub.pacer, func() int {
		if reads.Add(1) == 2 {
			close(waiting) // the next pace waits: the rate of the first was low
		}
		if reads.Load() == 1 {
			return 1 << 20 // a quarter of a second for 256 KiB
		}
		return 1 << 40
	})
	type result struct {
		v   verdict
		err error
	}
	done := make(chan result)
	go func() {
		v, err := c.check(context.Background(), logID(1))
		done <- result{v, err}
	}()
	<-waiting
	b.wantKind("delete", b.Delete(t.Context(), 1, []wire.StripID{tableID(1), logID(1)}), wire.KindNone)
	if now := b.freeBlocks(); now < free+300 {
		t.Errorf("%d blocks free after the deletes, %d before", now, free)
	}
	if r := <-done; r.v != absent || r.err != nil {
		t.Errorf("the check says %d, %v; want absent", r.v, r.err)
	}
	if b.Stat().Corrupt != 0 || len(b.taken()) != 0 {
		t.Error("what was deleted meanwhile is reported")
	}
}

// TestScrubOfOneThatIsPutAgain: a strip that is deleted and put again while it is checked, elsewhere, or with other content in its
// old place, is not compared with what now lies there.
func TestScrubOfOneThatIsPutAgain(t *testing.T) {
	for _, elsewhere := range []bool{false, true} {
		b := newScrubbed(t)
		data, sums := makeData(t, b.arena, b.rng, 4)
		defer data.Release()
		b.wantKind("put", b.Put(t.Context(), 1, tableID(1), sums, data), wire.KindNone)
		run := b.idx.Runs(tableID(1))[0]
		again := func() {
			b.wantKind("delete", b.Delete(t.Context(), 1, []wire.StripID{tableID(1)}), wire.KindNone)
			other := tableID(1)
			if elsewhere {
				other = tableID(2)
			}
			_, err := b.put(1, other, 4)
			b.wantKind("put of another", err, wire.KindNone)
			if b.idx.Runs(other)[0] != run {
				t.Fatal("the place is not used again")
			}
			if elsewhere {
				b.wantKind("put again", b.Put(t.Context(), 1, tableID(1), sums, data), wire.KindNone)
			}
		}
		c := b.newChecker(&pacer{}, func() int { // asked before each read
			if again != nil {
				again()
				again = nil
			}
			return 1 << 40
		})
		if v, err := c.check(t.Context(), tableID(1)); v != absent || err != nil {
			t.Errorf("elsewhere %t: the check says %d, %v; want absent", elsewhere, v, err)
		}
		if v, err := c.check(t.Context(), tableID(1)); v != sound || err != nil {
			t.Errorf("elsewhere %t: the next check says %d, %v; want sound", elsewhere, v, err)
		}
	}
}

// TestScrubUnderLoad: while clients work and blocks are used again at once, also by the same ids, nothing is reported that is sound.
func TestScrubUnderLoad(t *testing.T) {
	b := newScrubbed(t)
	ctx, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	for w := range uint64(3) {
		clients.Go(func() {
			rng := rand.New(rand.NewPCG(w, 1))
			off := uint64(0)
			for n := uint64(0); ctx.Err() == nil; n++ {
				id := wire.MakeStripID(1, wire.ClassTable, int(w), rng.Uint64N(10), 0, 99)
				data, sums := makeData(t, b.arena, rng, 1+rng.IntN(5))
				if rng.IntN(2) == 0 {
					_ = b.Delete(context.Background(), 1, []wire.StripID{id})
				} else if k := wire.KindOf(b.Put(context.Background(), 1, id, sums, data)); k != wire.KindNone && k != wire.KindExists && k != wire.KindNoSpace {
					t.Errorf("put: %v", k)
				}
				data.Release()
				seg := wire.MakeStripID(1, wire.ClassLog, int(w), n/10, 0, 99)
				if n%10 == 0 {
					off = 0
					_ = b.Delete(context.Background(), 1, []wire.StripID{wire.MakeStripID(1, wire.ClassLog, int(w), n/10-1, 0, 99)})
				}
				recs := makeRecords(t, b.arena, rng, seg, off, []int{rng.IntN(4), 0})
				end, err := b.Append(context.Background(), 1, seg, off, recs)
				switch wire.KindOf(err) {
				case wire.KindNone:
					off = end
				case wire.KindNoSpace, wire.KindNotFound: // reads under way keep much of what was deleted; the first append found no room
				default:
					t.Errorf("append: %v", err)
				}
				recs.Release()
				if n%10 == 9 && rng.IntN(2) == 0 {
					_, _ = b.Seal(context.Background(), 1, seg)
				}
			}
		})
	}
	checked := 0
	for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); checked++ {
		b.pass(tableID(0))
	}
	stop()
	clients.Wait()
	if events := b.taken(); len(events) > 0 || b.Stat().Corrupt > 0 {
		t.Errorf("reported: %q", events)
	}
	if checked < 2 {
		t.Errorf("%d passes", checked)
	}
}

// TestVerifyDoesNotBlockOthers: a Verify that waits for its rate keeps no other one, nor its own caller, from giving up; what is
// over the bound waits for its turn.
func TestVerifyDoesNotBlockOthers(t *testing.T) {
	b := newScrubbed(t, func(s *Store) { s.cfg.VerifyRate = 1 })
	b.populate()
	ctx, cancel := context.WithCancel(t.Context())
	var under sync.WaitGroup
	began := make(chan struct{}, 2*maxVerifies)
	b.dev.BeforeIO(func(op string, _ int64, _ int) {
		select {
		case began <- struct{}{}:
		default:
		}
	})
	for range maxVerifies + 2 {
		under.Go(func() {
			_, _, err := b.Verify(ctx, 1, wire.ClassTable, wire.StripID{}, 0)
			b.wantKind("Verify that was given up", err, wire.KindInterrupted)
		})
	}
	<-began // the first block is read at once
	cancel()
	under.Wait()
	b.verify.pacer.due = time.Time{}
	ids, last, err := b.Verify(t.Context(), 1, wire.ClassTable, tableID(4), 1)
	if err != nil || len(ids) > 0 || !last.IsZero() {
		t.Errorf("Verify afterwards: %v %v %v", ids, last, err)
	}
}

// TestIndexBytes: what the drive says that its index takes.
func TestIndexBytes(t *testing.T) {
	b := newScrubbed(t)
	empty := b.Stat().IndexBytes
	b.populate()
	full := b.Stat().IndexBytes
	if min := b.sb.DataBlocks() / 8; empty < min || full <= empty || full > empty+100_000 {
		t.Errorf("%d bytes for the index of an empty drive, %d with ten strips", empty, full)
	}
}
