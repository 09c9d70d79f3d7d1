package wire

import (
	"context"
	"errors"
	"fmt"
	"math/rand"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"
)

func newTestArena(t testing.TB, size int) *Arena {
	a, err := NewArena(size, ArenaDebug())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

// Claim: what is handed out is page-aligned, as long as asked, apart from everything else that is out, and comes back
// whole: after random allocations and releases the arena is one piece again.
func TestArenaModel(t *testing.T) {
	for _, size := range []int{64 << 10, 1<<20 + 12<<10, 8 << 20, 33<<20 + 4096} {
		t.Run(fmt.Sprint(size), func(t *testing.T) { arenaModel(t, size) })
	}
}

func arenaModel(t *testing.T, size int) {
	a := newTestArena(t, size)
	fresh := fmt.Sprint(freeRuns(a))
	r := rand.New(rand.NewSource(int64(size)))
	owner := make([]*Buf, size/BlockSize)
	var live []Data
	base := uintptr(unsafe.Pointer(unsafe.SliceData(a.mem)))
	blocks := func(d Data, f func(i int)) {
		for _, s := range d {
			at := uintptr(unsafe.Pointer(unsafe.SliceData(s.B))) - base
			if at%BlockSize != 0 {
				t.Fatal("not aligned")
			}
			for i := range blocksOf(len(s.B)) {
				f(int(at)/BlockSize + i)
			}
		}
	}
	used := 0
	for range 20000 {
		if len(live) > 0 && r.Intn(100) < 48 {
			i := r.Intn(len(live))
			d := live[i]
			live[i] = live[len(live)-1]
			live = live[:len(live)-1]
			blocks(d, func(i int) { owner[i] = nil; used-- })
			d.Release()
			continue
		}
		n := 1 + r.Intn(1<<(12+r.Intn(12)))
		if r.Intn(8) == 0 {
			n = BlockSize * (1 + r.Intn(64))
		}
		a.mu.Lock()
		d := a.take(n, Use(r.Intn(useCount)), r.Intn(2) == 0)
		a.mu.Unlock()
		if d == nil {
			continue
		}
		if d.Len() != n {
			t.Fatalf("%d bytes, want %d", d.Len(), n)
		}
		blocks(d, func(i int) {
			if owner[i] != nil {
				t.Fatalf("block %d is handed out twice", i)
			}
			owner[i] = d[0].Buf
			used++
		})
		live = append(live, d)
	}
	if got := a.Used(); got != int64(used)*BlockSize {
		t.Errorf("Used is %d, want %d", got, used*BlockSize)
	}
	if a.Trim() < 0 {
		t.Error("Trim")
	}
	for _, d := range live {
		d.Release()
	}
	if got := fmt.Sprint(freeRuns(a)); got != fresh {
		t.Errorf("free runs in the end %s, want %s", got, fresh)
	}
}

// freeRuns counts the free runs of each order.
func freeRuns(a *Arena) (n [maxOrder + 1]int) {
	for o := range n {
		for s := a.buddy.heads[o]; s >= 0; s = a.buddy.next[s] {
			n[o]++
		}
	}
	return n
}

// Claim: who waits is served in order of arrival, a big one is not overtaken by small ones for ever.
func TestArenaWaitersInOrder(t *testing.T) {
	a := newTestArena(t, 1<<20)
	hold := exhaust(t, a)
	var mu sync.Mutex
	var order []int
	var wg sync.WaitGroup
	for i, n := range []int{512 << 10, 4096, 4096, 128 << 10} {
		wg.Go(func() {
			b, err := a.Alloc(t.Context(), n)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			order = append(order, i)
			mu.Unlock()
			b.Release()
		})
		waitFor(t, func() bool { a.mu.Lock(); defer a.mu.Unlock(); return len(a.waiters[UseOwn]) == i+1 })
	}
	for i, d := range hold {
		d.Release()
		if i == 0 {
			time.Sleep(10 * time.Millisecond)
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			if b, err := a.Alloc(ctx, BlockSize); err == nil {
				t.Error("a newcomer overtook one that waits")
				b.Release()
			}
			cancel()
			mu.Lock()
			if len(order) > 0 {
				t.Error("a small one overtook a big one that waits")
			}
			mu.Unlock()
		}
	}
	wg.Wait()
	if len(order) != 4 {
		t.Error(order)
	}
}

func exhaust(t testing.TB, a *Arena) (hold []Data) {
	for {
		b := a.TryAlloc(BlockSize)
		if b == nil {
			return hold
		}
		hold = append(hold, b.Data(BlockSize))
	}
}

func waitFor(t testing.TB, f func() bool) {
	for end := time.Now().Add(5 * time.Second); !f(); {
		if time.Now().After(end) {
			t.Fatal("waited in vain")
		}
		runtime.Gosched()
	}
}

// Claim: a waiter leaves with its ctx, and those behind it are served.
func TestArenaWaitEnds(t *testing.T) {
	a := newTestArena(t, 1<<20)
	hold := exhaust(t, a)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	second := make(chan error, 1)
	go func() {
		waitFor(t, func() bool { a.mu.Lock(); defer a.mu.Unlock(); return len(a.waiters[UseOwn]) == 1 })
		b, err := a.Alloc(t.Context(), BlockSize)
		if err == nil {
			b.Release()
		}
		second <- err
	}()
	go func() {
		waitFor(t, func() bool { a.mu.Lock(); defer a.mu.Unlock(); return len(a.waiters[UseOwn]) == 2 })
		hold[0].Release() // enough for the second only
	}()
	if _, err := a.Alloc(ctx, 512<<10); KindOf(err) != KindTimeout || !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if err := <-second; err != nil {
		t.Error(err)
	}
	for _, d := range hold[1:] {
		d.Release()
	}
	canceled, stop := context.WithCancel(t.Context())
	stop()
	hold = exhaust(t, a)
	if _, err := a.Alloc(canceled, 1); KindOf(err) != KindInterrupted {
		t.Error(err)
	}
	for _, d := range hold {
		d.Release()
	}
}

// Claim: an answer finds room while requests and own use have taken all that they may, and before it who holds memory of own use; and
// requests never take more than half.
func TestArenaShares(t *testing.T) {
	a := newTestArena(t, 64<<20)
	var hold []Data
	for {
		a.mu.Lock()
		d := a.take(1<<20, UseRequest, true)
		a.mu.Unlock()
		if d == nil {
			break
		}
		hold = append(hold, d)
	}
	if len(hold) != 32 {
		t.Errorf("requests took %d MiB of 64", len(hold))
	}
	hold = append(hold, exhaust(t, a)...)
	more, err := a.AllocFor(t.Context(), 4<<20, UseMore)
	if err != nil {
		t.Fatal("no room for who holds memory already:", err)
	}
	hold = append(hold, more.Data(4<<20))
	d, err := a.AllocData(t.Context(), MaxDataBytes, UseResponse)
	if err != nil {
		t.Error("no room for a response:", err)
	}
	d.Release()
	for _, d := range hold {
		d.Release()
	}
}

// Claim: a response does not wait for a long run: it lands in parts where the arena is in pieces.
func TestArenaParts(t *testing.T) {
	a := newTestArena(t, 1<<20)
	hold := exhaust(t, a)
	for i := 1; i < len(hold); i += 2 {
		hold[i].Release()
	}
	d, err := a.AllocData(t.Context(), 512<<10-100, UseResponse)
	if err != nil {
		t.Fatal(err)
	}
	if len(d) < 2 || d.Len() != 512<<10-100 {
		t.Errorf("%d parts, %d bytes", len(d), d.Len())
	}
	for i, s := range d {
		if i < len(d)-1 && len(s.B)%BlockSize != 0 {
			t.Error("a part is not whole blocks")
		}
	}
	d.Release()
	for i := 0; i < len(hold); i += 2 {
		hold[i].Release()
	}
}

// Claim: what can never fit is refused at once.
func TestArenaRefuses(t *testing.T) {
	a := newTestArena(t, 1<<20)
	for _, n := range []int{-1, 1 << 20, MaxDataBytes + 1} {
		if _, err := a.Alloc(t.Context(), n); KindOf(err) != KindOverLimit {
			t.Error(n, err)
		}
	}
	if _, err := NewArena(100); KindOf(err) != KindInvalid {
		t.Error(err)
	}
}

// Claim: leaks and double releases are found, with the place.
func TestArenaFindsMistakes(t *testing.T) {
	a, err := NewArena(1<<20, ArenaDebug())
	if err != nil {
		t.Fatal(err)
	}
	b, err := a.Alloc(t.Context(), 5000)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err == nil || !strings.Contains(err.Error(), "TestArenaFindsMistakes") {
		t.Error("a leak is not told:", err)
	}
	kept := b.Bytes()
	b.Release()
	if kept[0] != 0xdb || kept[4999] != 0xdb {
		t.Error("released memory is not overwritten")
	}
	for name, f := range map[string]func(){"Release": b.Release, "Retain": func() { b.Retain() }} {
		func() {
			defer func() {
				if r := recover(); r == nil || !strings.Contains(fmt.Sprint(r), "TestArenaFindsMistakes") {
					t.Errorf("%s of a released Buf: %v", name, r)
				}
			}()
			f()
		}()
		b.refs.Store(0)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if _, err := a.Alloc(t.Context(), 1); KindOf(err) != KindShutdown {
		t.Error(err)
	}
}

// Claim: Trim gives back what was not needed since the last one, and not more.
func TestArenaTrim(t *testing.T) {
	a := newTestArena(t, 64<<20)
	b, err := a.Alloc(t.Context(), 8<<20)
	if err != nil {
		t.Fatal(err)
	}
	clear(b.Bytes())
	b.Release()
	if n := a.Trim(); n != 0 {
		t.Error("gave back what was just in use:", n)
	}
	if n := a.Trim(); n != 8<<20 {
		t.Errorf("gave back %d, want 8 MiB", n)
	}
	if n := a.Trim(); n != 0 {
		t.Error("gave back twice:", n)
	}
}

// Claim: Trim asks the guard before memory loses its pages, for free memory only, and gives back what was populated by others.
func TestArenaGuard(t *testing.T) {
	a := newTestArena(t, 64<<20)
	var guarded []byte
	punched := 0
	guard := func(mem []byte, punch func()) {
		for i := range mem[:1] {
			if mem[i] != 7 {
				t.Error("the pages are gone before the guard has let them go")
			}
		}
		guarded = append(guarded, mem...)
		punch()
		if mem[0] != 0 {
			t.Error("not punched")
		}
		punched += len(mem)
	}
	if err := a.Guard(guard); err != nil {
		t.Fatal(err)
	}
	if err := a.Guard(guard); KindOf(err) != KindInvalid {
		t.Error("a second guard:", err)
	}
	hold, err := a.Alloc(t.Context(), BlockSize)
	if err != nil {
		t.Fatal(err)
	}
	copy(hold.Bytes(), "kept")
	region := a.Memory()[:2<<20] // as one who registers the region in which hold lies
	for i := range region[BlockSize:] {
		region[BlockSize+i] = 7
	}
	a.Populated(region)
	a.Trim()
	a.Trim()
	if punched != 2<<20-BlockSize || len(guarded) != punched {
		t.Errorf("%d bytes went through the guard, %d were punched", len(guarded), punched)
	}
	if string(hold.Bytes()[:4]) != "kept" {
		t.Error("memory in use lost its pages")
	}
	hold.Release()
	if err := a.Guard(nil); err != nil {
		t.Fatal(err)
	}
	a.Trim()
	if a.Trim(); punched != 2<<20-BlockSize {
		t.Error("a guard that is gone was called")
	}
}

// Claim: many goroutines that hold one Buf and wait for nothing else always get on.
func TestArenaConcurrent(t *testing.T) {
	a := newTestArena(t, 1<<20)
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			r := rand.New(rand.NewSource(int64(g)))
			for range 500 {
				n := 1 + r.Intn(256<<10)
				d, err := a.AllocData(t.Context(), n, Use(r.Intn(useCount)))
				if err != nil {
					t.Error(err)
					return
				}
				d[0].B[0] = 1
				d.Retain()
				d.Release()
				d.Release()
			}
		})
	}
	wg.Wait()
	if a.Used() != 0 {
		t.Error("in use:", a.Used())
	}
}

func BenchmarkArena(b *testing.B) {
	for _, n := range []int{4096, 128 << 10, 1 << 20} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			a, _ := NewArena(64 << 20)
			b.ReportAllocs()
			for b.Loop() {
				buf, err := a.Alloc(context.Background(), n)
				if err != nil {
					b.Fatal(err)
				}
				buf.Release()
			}
		})
	}
}
