package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/crakefs/crake/compute/internal/store/storetest"
	"github.com/crakefs/crake/wire"
)

func newStore(t *testing.T, c *storetest.Cluster, edit func(*Config)) *Store {
	cfg := Config{
		Ask: c.Ask, Up: c.Up, Map: c.Map, Arena: c.Arena(), OrphanDelay: 10 * time.Millisecond,
		Log: slog.New(slog.DiscardHandler),
	}
	if edit != nil {
		edit(&cfg)
	}
	s := New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return s
}

func newBucket(t *testing.T, s *Store, epoch wire.Epoch) *Bucket {
	b := s.Bucket(1, epoch)
	t.Cleanup(b.Close)
	var mu sync.Mutex
	n := uint64(epoch) * 1000
	b.SetNextNumber(func() (uint64, error) {
		mu.Lock()
		defer mu.Unlock()
		n++
		return n, nil
	})
	return b
}

func subsets(n, most int, f func(s []wire.DriveID)) {
	for bits := range 1 << n {
		var s []wire.DriveID
		for i := range n {
			if bits>>i&1 == 1 {
				s = append(s, wire.DriveID(i+1))
			}
		}
		if len(s) <= most {
			f(s)
		}
	}
}

func expectRead(t *testing.T, b *Bucket, loc wire.Location, block uint32, want []byte, sums []uint64) {
	t.Helper()
	d, err := b.Read(context.Background(), loc, block, len(sums), sums)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Release()
	if !bytes.Equal(storetest.Flat(d), want) {
		t.Fatal("wrong bytes")
	}
}

// settle waits until nothing waits to be deleted, not even later.
func settle(t *testing.T, s *Store) {
	t.Helper()
	for range 1000 {
		if n, _ := s.PendingDeletes(); n == 0 {
			time.Sleep(30 * time.Millisecond) // the last batch may be under way
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("deletes do not end")
}

// expectTotal waits until so many strips of data are stored: what settle no longer sees may still be under way to a drive.
func expectTotal(t *testing.T, s *Store, c *storetest.Cluster, want int) {
	t.Helper()
	settle(t, s)
	for range 1000 {
		if total(c, wire.ClassData) == want {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%d strips are stored, want %d", total(c, wire.ClassData), want)
}

func total(c *storetest.Cluster, class wire.Class) int {
	n := 0
	for d := wire.DriveID(1); d <= 12; d++ {
		if c.Map().Drive(d) != nil {
			n += len(c.Strips(d, class))
		}
	}
	return n
}

// TestStripeEveryLoss writes with any up to m drives down (unknown to the writer, or known) and reads with any other
// up to m down: a stripe that is not degraded survives all of that, and a failed write leaves nothing behind.
func TestStripeEveryLoss(t *testing.T) {
	for _, n := range []int{128, 17, 3, 1} {
		subsets(6, 2, func(down []wire.DriveID) {
			t.Run(fmt.Sprint(n, down), func(t *testing.T) {
				t.Parallel()
				stripeLoss(t, n, down)
			})
		})
	}
}

func stripeLoss(t *testing.T, n int, down []wire.DriveID) {
	rng := rand.New(rand.NewPCG(1, uint64(n)))
	ctx := context.Background()
	c := storetest.New(t, 6, 4, 2)
	known := rng.IntN(2) == 0
	s := newStore(t, c, func(cfg *Config) {
		if !known {
			cfg.Up = func(wire.DriveID) bool { return true }
		}
	})
	b := newBucket(t, s, 1)
	c.Kill(down...)
	d, sums := c.Data(rng, n)
	want := storetest.Flat(d)
	loc, err := b.WriteStripe(ctx, 5, d, sums)
	d.Release()
	if err != nil {
		t.Fatalf("%d blocks, down %v: %v", n, down, err)
	}
	stored := map[wire.DriveID]int{}
	for pos, dr := range loc.Drives {
		if (dr != 0) != (loc.Geometry().LenBlocks(pos) > 0) {
			t.Fatalf("position %d on drive %d of a stripe of %d blocks", pos, dr, n)
		}
		if dr != 0 {
			stored[dr]++
		}
	}
	for dr, count := range stored {
		if count > 2 || count > 1 && !loc.Degraded || !c.Up(dr) {
			t.Fatalf("down %v: %d strips on drive %d, degraded %v", down, count, dr, loc.Degraded)
		}
	}
	if loc.Degraded != (6-len(down) < len(loc.Drives)-zeros(loc)) {
		t.Fatalf("%d blocks, down %v: degraded %v on %v", n, down, loc.Degraded, loc.Drives)
	}
	expectRead(t, b, loc, 0, want, sums)
	c.Revive(down...)
	if !loc.Degraded {
		subsets(6, 2, func(gone []wire.DriveID) {
			c.Kill(gone...)
			expectRead(t, b, loc, 0, want, sums)
			c.Revive(gone...)
		})
	}
	expectTotal(t, s, c, len(loc.Drives)-zeros(loc))
	b.Delete(loc)
	expectTotal(t, s, c, 0)
}

func zeros(loc wire.Location) int {
	n := 0
	for _, d := range loc.Drives {
		if d == 0 {
			n++
		}
	}
	return n
}

// TestAppendFailures: many callers append while drives come and go, at most two away at a time. Every acknowledged
// append can be read, also with other drives gone, and numbers never go back.
func TestAppendFailures(t *testing.T) {
	c := storetest.New(t, 6, 4, 2)
	s := newStore(t, c, func(cfg *Config) { cfg.SegmentBytes = 256 << 10 })
	b := newBucket(t, s, 1)
	stop := make(chan struct{})
	var chaos sync.WaitGroup
	chaos.Go(func() {
		rng := rand.New(rand.NewPCG(2, 2))
		for {
			d := []wire.DriveID{wire.DriveID(rng.IntN(6) + 1), wire.DriveID(rng.IntN(6) + 1)}
			c.Kill(d...)
			time.Sleep(time.Duration(rng.IntN(3000)) * time.Microsecond)
			c.Revive(d...)
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(rng.IntN(3000)) * time.Microsecond):
			}
		}
	})
	type done struct {
		loc   wire.Location
		block uint32
		want  []byte
		sums  []uint64
	}
	var mu sync.Mutex
	var all []done
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(3, uint64(w)))
			last := uint64(0)
			for range 60 {
				d, sums := c.Data(rng, 1+rng.IntN(8))
				want := storetest.Flat(d)
				loc, block, err := b.Append(context.Background(), d, sums)
				d.Release()
				if errors.Is(err, wire.KindUnavailable) {
					continue
				}
				if err != nil {
					t.Errorf("append: %v", err)
					return
				}
				if loc.ID.Number() < last {
					t.Errorf("segment %d after %d", loc.ID.Number(), last)
				}
				last = loc.ID.Number()
				mu.Lock()
				all = append(all, done{loc, block, want, sums})
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	close(stop)
	chaos.Wait()
	if len(all) < 240 {
		t.Fatalf("only %d of 480 appends succeeded", len(all))
	}
	places := map[wire.StripID]map[uint32]bool{}
	for i, a := range all {
		gone := []wire.DriveID{wire.DriveID(i%6 + 1), wire.DriveID(i/6%6 + 1)}
		c.Kill(gone...)
		expectRead(t, b, a.loc, a.block, a.want, a.sums)
		c.Revive(gone...)
		if places[a.loc.ID] == nil {
			places[a.loc.ID] = map[uint32]bool{}
		}
		for j := range a.sums {
			if places[a.loc.ID][a.block+uint32(j)] {
				t.Fatalf("block %d of %v was given out twice", a.block+uint32(j), a.loc.ID)
			}
			places[a.loc.ID][a.block+uint32(j)] = true
		}
	}
}

// TestGroupCommit: callers that come while an append is under way share the next one.
func TestGroupCommit(t *testing.T) {
	c := storetest.New(t, 6, 4, 2)
	for d := wire.DriveID(1); d <= 6; d++ {
		c.Slow(d, 20*time.Millisecond)
	}
	b := newBucket(t, newStore(t, c, nil), 1)
	rng := rand.New(rand.NewPCG(4, 4))
	var wg sync.WaitGroup
	for range 40 {
		d, sums := c.Data(rng, 1)
		wg.Go(func() {
			defer d.Release()
			if _, _, err := b.Append(context.Background(), d, sums); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := c.Count(wire.MDriveAppend); n > 5*3 {
		t.Errorf("%d requests to append for 40 callers at once, want about two times three", n)
	}
}

// TestDeposed: a newer owner fences; the old one can write nothing, is told so, and its appends under way fail.
func TestDeposed(t *testing.T) {
	ctx := context.Background()
	c := storetest.New(t, 6, 4, 2)
	s := newStore(t, c, nil)
	rng := rand.New(rand.NewPCG(5, 5))
	d, sums := c.Data(rng, 20)
	defer d.Release()
	old := newBucket(t, s, 1)
	if _, _, err := old.Append(ctx, d, sums); err != nil {
		t.Fatal(err)
	}
	now := newBucket(t, s, 2)
	c.Kill(3, 5) // what is not fenced must not be enough for the old owner
	good, bad, err := now.Fence(ctx)
	if err != nil || len(good) != 4 || len(bad) != 2 {
		t.Fatalf("fenced %v, not %v: %v", good, bad, err)
	}
	c.Revive(3, 5)
	if _, _, err := old.Append(ctx, d, sums); !errors.Is(err, wire.KindStaleEpoch) {
		t.Fatalf("append of the old owner: %v", err)
	}
	select {
	case <-old.Deposed():
	default:
		t.Fatal("not told")
	}
	if _, err := old.WriteStripe(ctx, 9, d, sums); !errors.Is(err, wire.KindStaleEpoch) {
		t.Fatalf("stripe of the old owner: %v", err)
	}
	if _, _, err := old.Fence(ctx); !errors.Is(err, wire.KindStaleEpoch) {
		t.Fatalf("fence of the old owner: %v", err)
	}
	if _, err := now.WriteStripe(ctx, 9, d, sums); err != nil {
		t.Fatal(err)
	}
	other := newBucket(t, s, 3)
	c.Kill(1, 2, 3)
	if _, _, err := other.Fence(ctx); !errors.Is(err, wire.KindUnavailable) {
		t.Fatalf("fence with three domains away: %v", err)
	}
}

// TestFenceKeepsOldOwnerOut: an old owner that can reach only what was not fenced, in any combination, gets nothing
// mirrored acknowledged.
func TestFenceKeepsOldOwnerOut(t *testing.T) {
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(6, 6))
	subsets(6, 2, func(away []wire.DriveID) {
		c := storetest.New(t, 6, 4, 2)
		s := newStore(t, c, nil)
		c.Kill(away...)
		if _, _, err := newBucket(t, s, 2).Fence(ctx); err != nil {
			t.Fatal(err)
		}
		c.Revive(away...)
		d, sums := c.Data(rng, 1)
		defer d.Release()
		old := newBucket(t, s, 1)
		if _, _, err := old.Append(ctx, d, sums); err == nil {
			t.Fatalf("acknowledged, with %v not fenced", away)
		}
		if _, err := newBucket(t, s, 1).PutMirrored(ctx, old.NewID(wire.ClassFile, 1, 0), d, sums); err == nil {
			t.Fatalf("mirrored, with %v not fenced", away)
		}
		// And if it cannot even ask the others, so that nobody tells it of the newer owner.
		for d := wire.DriveID(1); d <= 6; d++ {
			if !slices.Contains(away, d) {
				c.Kill(d)
			}
		}
		cut := newBucket(t, s, 1)
		if _, _, err := cut.Append(ctx, d, sums); err == nil {
			t.Fatalf("acknowledged by %v alone", away)
		}
		if _, err := cut.PutMirrored(ctx, cut.NewID(wire.ClassFile, 1, 0), d, sums); err == nil {
			t.Fatalf("mirrored by %v alone", away)
		}
	})
}

func TestNoSpace(t *testing.T) {
	ctx := context.Background()
	c := storetest.New(t, 6, 4, 2)
	for d := wire.DriveID(1); d <= 6; d++ {
		c.SetSize(d, 12<<20)
	}
	s := newStore(t, c, func(cfg *Config) { cfg.SegmentBytes = 1 << 20 })
	b := newBucket(t, s, 1)
	rng := rand.New(rand.NewPCG(7, 7))
	first, err := s.Space(ctx)
	if err != nil || first.TotalBytes != 4*(8<<20) || first.FreeBytes != first.TotalBytes {
		t.Fatalf("space %+v, %v; want 4 times 8 MiB", first, err)
	}
	written := uint64(0)
	for {
		d, sums := c.Data(rng, 128)
		_, err := b.WriteStripe(ctx, 1, d, sums)
		d.Release()
		if errors.Is(err, wire.KindNoSpace) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if written += 512 << 10; written > first.TotalBytes {
			t.Fatalf("%d bytes written, space was for %d", written, first.TotalBytes)
		}
	}
	if written < first.TotalBytes*8/10 {
		t.Errorf("%d bytes written, space was for %d", written, first.TotalBytes)
	}
	d, sums := c.Data(rng, 1)
	defer d.Release()
	if _, _, err := b.Append(ctx, d, sums); !errors.Is(err, wire.KindNoSpace) {
		t.Fatalf("append on full drives: %v", err)
	}
	// The reserve lets the database go on.
	if _, err := b.PutMirrored(ctx, b.NewID(wire.ClassFile, 1, 0), d, sums); err != nil {
		t.Fatalf("description on full drives: %v", err)
	}
	if _, err := b.NewSegment(b.NewID(wire.ClassLog, 1, 0), false); err != nil {
		t.Fatalf("log on full drives: %v", err)
	}
}

func TestCapacity(t *testing.T) {
	of := func(v ...uint64) map[uint32]uint64 {
		m := map[uint32]uint64{}
		for i, x := range v {
			m[uint32(i)] = x
		}
		return m
	}
	for i, c := range []struct {
		domains map[uint32]uint64
		k, m    int
		want    uint64
	}{
		{of(100, 100, 100, 100, 100, 100), 4, 2, 400},
		{of(100, 100, 100, 100, 100, 900), 4, 2, 400}, // the large one cannot hold two strips
		{of(100, 100, 100, 100, 100, 100, 100), 4, 2, 464},
		{of(100, 100, 100, 100, 100), 4, 2, 332}, // two strips in some domain
		{of(100, 100), 4, 2, 0},
		{of(), 4, 2, 0},
		{of(100, 100), 1, 1, 100},
		{of(300, 100, 100), 1, 1, 200},
	} {
		if got := capacity(c.domains, c.k, c.m); got != c.want {
			t.Errorf("case %d: %d, want %d", i, got, c.want)
		}
	}
}

// TestHungDrive: a drive that takes requests and never answers costs one time limit, and is passed over then.
func TestHungDrive(t *testing.T) {
	ctx := context.Background()
	c := storetest.New(t, 6, 4, 2)
	s := newStore(t, c, func(cfg *Config) { cfg.WriteTimeout = 100 * time.Millisecond })
	b := newBucket(t, s, 1)
	rng := rand.New(rand.NewPCG(8, 8))
	c.Hang(2)
	c.Hang(5)
	start := time.Now()
	for range 20 {
		d, sums := c.Data(rng, 64)
		want := storetest.Flat(d)
		loc, err := b.WriteStripe(ctx, 1, d, sums)
		if err != nil {
			t.Fatal(err)
		}
		expectRead(t, b, loc, 0, want, sums)
		loc, block, err := b.Append(ctx, d, sums)
		d.Release()
		if err != nil {
			t.Fatal(err)
		}
		expectRead(t, b, loc, block, want, sums)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("40 writes took %v", took)
	}
}

// TestLateWrite: a put that timed out takes effect later; what it leaves on the wrong drive goes away.
func TestLateWrite(t *testing.T) {
	ctx := context.Background()
	c := storetest.New(t, 7, 4, 2)
	s := newStore(t, c, nil)
	b := newBucket(t, s, 1)
	var once sync.Once
	lost := wire.E("test", wire.KindTimeout, "", nil)
	c.Hooks(nil, func(d wire.DriveID, m wire.Method, _ wire.Message) (err error) {
		if m == wire.MDrivePut {
			once.Do(func() { err = lost }) // it took effect, but we do not know
		}
		return err
	})
	rng := rand.New(rand.NewPCG(9, 9))
	d, sums := c.Data(rng, 128)
	defer d.Release()
	loc, err := b.WriteStripe(ctx, 1, d, sums)
	if err != nil || loc.Degraded {
		t.Fatalf("%+v, %v", loc, err)
	}
	settle(t, s)
	if n := total(c, wire.ClassData); n != 6 {
		t.Fatalf("%d strips, want 6", n)
	}
	expectRead(t, b, loc, 0, storetest.Flat(d), sums)
}

func TestCollectLeaks(t *testing.T) {
	ctx := context.Background()
	c := storetest.New(t, 6, 4, 2)
	s := newStore(t, c, nil)
	b := newBucket(t, s, 1)
	if _, _, err := b.Fence(ctx); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(10, 10))
	d, sums := c.Data(rng, 100)
	defer d.Release()
	var locs []wire.Location
	for i := range 6 {
		loc, err := b.WriteStripe(ctx, uint64(i), d, sums)
		if err != nil {
			t.Fatal(err)
		}
		locs = append(locs, loc)
	}
	n, err := b.CollectLeaks(ctx, func(id wire.StripID) (bool, error) { return id.Number()%2 == 0, nil })
	if err != nil || n != 18 {
		t.Fatalf("%d leaks, %v; want 18", n, err)
	}
	settle(t, s)
	for i, loc := range locs {
		got, err := b.Read(ctx, loc, 0, 1, sums[:1])
		got.Release()
		if i%2 == 0 && err != nil {
			t.Errorf("stripe %d: %v", i, err)
		}
		if i%2 == 1 && !errors.Is(err, wire.KindNotFound) {
			t.Errorf("stripe %d: %v", i, err)
		}
	}
	if total(c, wire.ClassData) != 18 {
		t.Errorf("%d strips left", total(c, wire.ClassData))
	}
}

func TestSealAndList(t *testing.T) {
	ctx := context.Background()
	c := storetest.New(t, 6, 4, 2)
	s := newStore(t, c, nil)
	b := newBucket(t, s, 1)
	rng := rand.New(rand.NewPCG(11, 11))
	d, sums := c.Data(rng, 3)
	defer d.Release()
	loc, _, err := b.Append(ctx, d, sums)
	if err != nil {
		t.Fatal(err)
	}
	b2 := newBucket(t, s, 2)
	if _, _, err := b2.Fence(ctx); err != nil {
		t.Fatal(err)
	}
	if err := b2.SealAll(ctx, wire.ClassSegment); err != nil {
		t.Fatal(err)
	}
	list, err := b2.List(ctx, wire.ClassSegment)
	if err != nil || len(list) != 3 {
		t.Fatalf("%v, %v", list, err)
	}
	for _, l := range list {
		if l.Open || l.Len != 4*wire.BlockSize || l.ID.WithPos(0) != loc.ID {
			t.Errorf("%+v", l)
		}
	}
	if _, _, err := b2.Append(ctx, d, nil); !errors.Is(err, wire.KindInvalid) {
		t.Errorf("append without checksums: %v", err)
	}
	b2.Close()
	if _, _, err := b2.Append(ctx, d, sums); !errors.Is(err, wire.KindShutdown) {
		t.Errorf("append after Close: %v", err)
	}
}
