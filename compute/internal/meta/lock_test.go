package meta

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/crakefs/crake/wire"
)

// left counts the entries of the table.
func (t *lockTable) left() int {
	n := 0
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		n += len(s.m)
		s.mu.Unlock()
	}
	return n
}

// Claim: who does not get a lock in time is told who has it and since when, by an error of the right kind; what it had already is free
// again, and it has left the line.
func TestLockTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newLockTable()
		ctx := t.Context()
		id := wire.TxnID{Coordinator: 3, Epoch: 4, Seq: 55}
		doubt, err := table.acquireFor(ctx, id, time.Second, wantInode(0x20, true))
		if err != nil {
			t.Fatal(err)
		}
		op, err := table.acquire(ctx, time.Second, wantInode(0x30, true))
		if err != nil {
			t.Fatal(err)
		}
		readers, err := table.acquire(ctx, time.Second, wantInode(0x40, false))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		for _, c := range []struct {
			ctx  context.Context
			want lockWant
			kind wire.Kind
			text []string
		}{
			{ctx, wantInode(0x20, false), wire.KindUnavailable, []string{"inode 20", "transaction 55 of bucket 3, epoch 4,", "1m10s ago", "1 wait"}},
			{ctx, wantInode(0x30, true), wire.KindUnavailable, []string{"inode 30", "an operation", "1m20s ago"}},
			{ctx, wantInode(0x40, true), wire.KindUnavailable, []string{"inode 40", "1 readers"}},
			{short, wantInode(0x20, true), wire.KindTimeout, []string{"inode 20", "transaction 55"}},
		} {
			h, err := table.acquire(c.ctx, 10*time.Second, wantInode(0x10, true), c.want)
			if h != nil || wire.KindOf(err) != c.kind || errors.Is(err, errLockTime) != (c.kind == wire.KindUnavailable) {
				t.Fatalf("%v: %v", c.want, err)
			}
			for _, text := range c.text {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("%q is not told: %v", text, err)
				}
			}
		}
		free, err := table.acquire(ctx, 0, wantInode(0x10, true))
		if err != nil {
			t.Fatal("what it had is not free:", err)
		}
		for _, h := range []*held{free, doubt, op, readers} {
			h.release(nil)
		}
		if n := table.left(); n != 0 {
			t.Errorf("%d locks are left", n)
		}
	})
}

// Claim: a writer that gives up lets the readers behind it in, though the reader that it waited for stays.
func TestLockLineMovesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newLockTable()
		first, err := table.acquire(t.Context(), 0, wantInode(1, false))
		if err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = table.acquire(t.Context(), time.Second, wantInode(1, true)) }()
		synctest.Wait()
		start := time.Now()
		second, err := table.acquire(t.Context(), time.Hour, wantInode(1, false))
		if d := time.Since(start); err != nil || d != time.Second {
			t.Fatalf("after %v: %v", d, err)
		}
		first.release(nil)
		second.release(nil)
		if n := table.left(); n != 0 {
			t.Errorf("%d locks are left", n)
		}
	})
}

// Claim: whatever meets (grants, ends of waits, cancels, all in the same moment), a lock is never had by two that exclude each other,
// never lost, and in the end all are free.
func TestLocksMeet(t *testing.T) {
	table := newLockTable()
	const locks = 4
	var owners [locks]atomic.Int32 // readers count 1, a writer 1000
	var got, late atomic.Int32
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 5))
			for range 2000 {
				var wants []lockWant
				for i := range locks {
					if rnd.IntN(2) == 0 {
						wants = append(wants, wantInode(wire.Ino(i), rnd.IntN(2) == 0))
					}
				}
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rnd.IntN(200))*time.Microsecond)
				h, err := table.acquire(ctx, time.Duration(rnd.IntN(200))*time.Microsecond, wants...)
				if err != nil {
					late.Add(1)
					cancel()
					continue
				}
				got.Add(1)
				for _, w := range h.locks {
					n := int32(1)
					if w.exclusive {
						n = 1000
					}
					if now := owners[w.id].Add(n); now != n && (w.exclusive || now >= 1000) {
						t.Errorf("lock %d is held by others: %d", w.id, now)
					}
				}
				for _, w := range h.locks {
					n := int32(-1)
					if w.exclusive {
						n = -1000
					}
					owners[w.id].Add(n)
				}
				h.release(nil)
				cancel()
			}
		})
	}
	wg.Wait()
	if n := table.left(); n != 0 {
		t.Errorf("%d locks are left", n)
	}
	if got.Load() == 0 || late.Load() == 0 {
		t.Errorf("%d got their locks, %d did not: nothing was tried", got.Load(), late.Load())
	}
}
