package wire

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// Use says what memory is wanted for; see Arena.
type Use uint8

// The uses of memory.
const (
	UseRequest  Use = 0 // data of a request of a peer, for a handler of this process
	UseOwn      Use = 1 // what Alloc is for
	UseMore     Use = 2 // for who holds memory of own use already, such as parity of data that waits in a buffer; itself waits for answers only
	UseResponse Use = 3 // data of an answer that this process waits for
	useCount        = 4
)

// minArenaBytes is the smallest arena that makes sense: a response reserve of a quarter still holds some blocks.
const minArenaBytes = 64 << 10

// Arena is the memory of a process for file data: one mapping of a memfd, populated as it is used, bounded, from which Bufs
// are cut by a buddy allocator (arena_buddy.go).
//
// When it is exhausted, who wants memory waits in order of arrival among those of the same use. The uses are steps of the work for a
// request: its data lands (UseRequest), its handler takes more (UseOwn: a buffer of a log, what is read), and more while it holds that
// (UseMore: parity, heads of records, what is rebuilt), and asks other processes, whose answers land (UseResponse). Each step leaves
// something that only later ones may have, and memory that comes free goes to the latest step first. So no circle of waits closes: who
// holds memory waits only for a later step, and the last waits for nobody's memory but that of another process.
//
//   - requests may have at most half of the arena, so handlers that hold request data find the other half for what they need;
//   - requests and own use leave an eighth that only UseMore and responses may have: several stripes' parity in the smallest arena;
//   - all these together leave a reserve (an eighth, at least MaxDataBytes if that is not over a quarter) that only
//     responses may have, so an answer can land while everything else is held by those who wait for answers;
//   - a response is not kept waiting for a long run: where none is free it is cut into parts (AllocData);
//   - package rpc waits a bounded time for room, then throws the data away and gives the call a KindUnavailable. So even where
//     responses themselves fill the arena (callers that hold some and wait for more) nothing hangs: someone is refused, gives
//     back, and tries again.
//
// A third allocation of one operation is the caller's to order: do not wait without a deadline for memory while holding UseMore, or take what
// an operation needs by one Alloc and cut it. Who holds what, and waits for what:
//
//	frontend  a writer waits for dirty memory (UseOwn) and holds nothing. A send holds dirty memory and waits for a compute; for old content
//	          of blocks (responses); for one block, if it is lent (UseMore). A reader takes its budget at once, then responses.
//	compute   a write holds request data and waits for parity (UseMore) and drives, then for a log's record. A log or table holds its buffer
//	          (UseOwn) and waits for a head or parity (UseMore) and drives; where a longer buffer is not there it sends what it has. Parity
//	          and heads wait for drives.
//	drive     a put holds request data and waits for its device. A read holds nothing and waits for UseOwn; its answer waits for the peer to
//	          take it, at most 8 MiB of them a connection.
//
// So frontends wait for computes and drives, computes for drives, drives for devices. Memory that is lent to other processes is at
// most half of the arena (docs/decisions/0007-shared-memory.md), beyond which data is sent by copy: the other half circles whatever
// peers do. What a hung peer holds comes back when mgmt has ended it. bench/arenas has the test.
type Arena struct {
	// immutable
	fd     int // used for changes
	mem    []byte
	limits [useCount]int // blocks that may be out, all uses together, after an allocation of this use
	share  [useCount]int // blocks that this use may have
	debug  bool

	mu          sync.Mutex
	readOnly    int // a descriptor for others; -1: not made yet
	lent        int // blocks of Bufs that are lent
	returning   int // blocks that are not lent any more, and whose loan is being released
	quarantined int // bytes, for ArenaStats
	spare       ring[Buf]
	buddy       buddy
	used        [useCount]int // blocks handed out
	peak        int           // most blocks out since the last Trim
	waiters     [useCount][]*arenaWaiter
	out         map[*Buf]struct{} // only with debug
	guard       TrimGuard         // nil: none
	closed      bool
}

type arenaWaiter struct {
	bytes int
	parts bool // may be cut into parts
	ready chan struct{}
	data  Data // valid after ready, nil when the arena was closed
}

// ArenaOption changes an arena when it is made.
type ArenaOption func(*Arena)

// ArenaDebug makes the arena find mistakes: Close names where each leaked Buf came from, a double Release names where the first
// was, and released memory is overwritten. It costs a microsecond or more an allocation; tests use it.
func ArenaDebug() ArenaOption {
	return func(a *Arena) { a.debug, a.out = true, map[*Buf]struct{}{} }
}

// NewArena makes an arena of at most sizeBytes (rounded down to whole blocks).
func NewArena(sizeBytes int, opts ...ArenaOption) (*Arena, error) {
	const op = "arena.new"
	blocks := sizeBytes / BlockSize
	if sizeBytes < minArenaBytes {
		return nil, Errorf(op, KindInvalid, "", "an arena of %d bytes; the least is %d", sizeBytes, minArenaBytes)
	}
	fd, err := unix.MemfdCreate("crake-arena", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, E(op, KindIO, "memfd", err)
	}
	if err := unix.Ftruncate(fd, int64(blocks)*BlockSize); err != nil {
		_ = unix.Close(fd)
		return nil, E(op, KindIO, "memfd", err)
	}
	// Who borrows looks at it without fear that it ends.
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		_ = unix.Close(fd)
		return nil, E(op, KindIO, "memfd", err)
	}
	mem, err := unix.Mmap(fd, 0, blocks*BlockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		_ = unix.Close(fd)
		return nil, E(op, KindIO, "memfd", err)
	}
	reserve, more := max(blocks/8, min(MaxDataBytes/BlockSize, blocks/4)), blocks/8
	a := &Arena{
		fd: fd, readOnly: -1, mem: mem, buddy: newBuddy(blocks),
		limits: [useCount]int{UseRequest: blocks - reserve - more, UseOwn: blocks - reserve - more, UseMore: blocks - reserve, UseResponse: blocks},
		share:  [useCount]int{UseRequest: blocks / 2, UseOwn: blocks - reserve - more, UseMore: blocks - reserve, UseResponse: blocks},
	}
	for _, o := range opts {
		o(a)
	}
	return a, nil
}

// Size gives the bound of the arena in bytes.
func (a *Arena) Size() int { return len(a.mem) }

// Used gives the bytes that are handed out.
func (a *Arena) Used() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return int64(a.usedBlocks()) * BlockSize
}

func (a *Arena) usedBlocks() int { return a.used[0] + a.used[1] + a.used[2] + a.used[3] }

// Alloc gives a Buf of n bytes (rounded up to whole blocks in memory; Bytes has length n) with one reference.
// Contents are arbitrary. When the arena is exhausted it waits in order of arrival, until ctx ends. Errors: KindOverLimit when n
// is over MaxDataBytes or can never fit, KindTimeout or KindInterrupted when ctx ended, KindShutdown after Close.
func (a *Arena) Alloc(ctx context.Context, n int) (*Buf, error) { return a.AllocFor(ctx, n, UseOwn) }

// AllocFor is Alloc for a given use.
func (a *Arena) AllocFor(ctx context.Context, n int, use Use) (*Buf, error) {
	d, err := a.get(ctx, n, use, false)
	if err != nil {
		return nil, err
	}
	return d.only(), nil
}

// AllocData is AllocFor in one part or, when no run that long is free, in several; each but the last is whole blocks.
func (a *Arena) AllocData(ctx context.Context, n int, use Use) (Data, error) {
	return a.get(ctx, n, use, true)
}

// TryAlloc is Alloc that does not wait: nil when there is no room at once.
func (a *Arena) TryAlloc(n int) *Buf {
	if d := a.try(n, UseOwn, false); d != nil {
		return d.only()
	}
	return nil
}

// TryAllocData is AllocData that does not wait: nil when there is no room at once.
func (a *Arena) TryAllocData(n int, use Use) Data { return a.try(n, use, true) }

func (a *Arena) try(n int, use Use, parts bool) Data {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed || n < 0 || n > MaxDataBytes || len(a.waiters[use]) > 0 {
		return nil
	}
	return a.take(n, use, parts)
}

func (a *Arena) get(ctx context.Context, n int, use Use, parts bool) (Data, error) {
	const op = "arena.alloc"
	need := blocksOf(n)
	if n < 0 || n > MaxDataBytes || need > min(a.limits[use], a.share[use]) {
		return nil, Errorf(op, KindOverLimit, "", "%d bytes of an arena of %d, of which %d may be had for this use, and at most %d at once",
			n, a.Size(), min(a.limits[use], a.share[use])*BlockSize, MaxDataBytes)
	}
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return nil, Errorf(op, KindShutdown, "", "the arena is closed")
	}
	if len(a.waiters[use]) == 0 {
		if d := a.take(n, use, parts); d != nil {
			a.mu.Unlock()
			return d, nil
		}
	}
	w := &arenaWaiter{bytes: n, parts: parts, ready: make(chan struct{})}
	a.waiters[use] = append(a.waiters[use], w)
	a.mu.Unlock()
	return a.wait(ctx, w, use)
}

// wait waits for the memory of w, or until ctx ends.
func (a *Arena) wait(ctx context.Context, w *arenaWaiter, use Use) (Data, error) {
	const op = "arena.alloc"
	select {
	case <-w.ready:
	case <-ctx.Done():
		a.mu.Lock()
		queue := a.waiters[use]
		for i, x := range queue {
			if x == w {
				a.waiters[use] = append(queue[:i:i], queue[i+1:]...)
				a.serve() // it may have been the one in the way
				a.mu.Unlock()
				kind := KindInterrupted
				if errors.Is(ctx.Err(), context.DeadlineExceeded) {
					kind = KindTimeout
				}
				return nil, Errorf(op, kind, "", "no room for %d bytes in an arena of %d: %w", w.bytes, a.Size(), ctx.Err())
			}
		}
		a.mu.Unlock()
		<-w.ready // it has just been served
	}
	if w.data == nil {
		return nil, Errorf(op, KindShutdown, "", "the arena is closed")
	}
	return w.data, nil
}

// take cuts n bytes out, or gives nil when they do not fit now.
// Preconditions: a.mu is held.
func (a *Arena) take(n int, use Use, parts bool) Data {
	need := blocksOf(n)
	if a.usedBlocks()+need > a.limits[use] || a.used[use]+need > a.share[use] {
		return nil
	}
	start := a.buddy.alloc(need)
	if start < 0 && !parts {
		return nil
	}
	a.used[use] += need
	a.peak = max(a.peak, a.usedBlocks())
	if start >= 0 {
		return a.newBuf(start, need, n, use).Data(n)
	}
	var d Data
	for left := n; left > 0; {
		blocks := min(blocksOf(left), a.buddy.largest())
		got := min(left, blocks*BlockSize)
		d = append(d, a.newBuf(a.buddy.alloc(blocks), blocks, got, use).Data(got)...)
		left -= got
	}
	return d
}

func (a *Arena) newBuf(start, blocks, n int, use Use) *Buf {
	if start < 0 {
		panic("wire: the arena's books do not match its free blocks")
	}
	off := start * BlockSize
	b := a.spare.get()
	if b == nil {
		b = &Buf{arena: a}
	}
	b.b, b.use = a.mem[off:off+n:off+blocks*BlockSize], use
	b.made.Store(false)
	b.refs.Store(1)
	if a.debug {
		b.from = callers()
		a.out[b] = struct{}{}
	}
	return b
}

// free takes the memory of b back; Buf.Release calls it with the last reference.
func (a *Arena) free(b *Buf) {
	off := offsetIn(a.mem, b.b)
	blocks := cap(b.b) / BlockSize
	if a.debug {
		b.freed = callers()
		poison(a.mem[off : off+blocks*BlockSize])
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.out, b)
	a.buddy.free(off/BlockSize, blocks)
	a.used[b.use] -= blocks
	switch {
	case a.closed:
		if a.usedBlocks() == 0 {
			_ = a.unmap()
		}
	case !a.debug:
		a.spare.put(b)
	}
	a.serve()
}

// serve gives memory to those who wait: responses first, each use in order of arrival.
// Preconditions: a.mu is held.
func (a *Arena) serve() {
	for use := useCount - 1; use >= 0; use-- {
		for len(a.waiters[use]) > 0 {
			w := a.waiters[use][0]
			d := a.take(w.bytes, Use(use), w.parts)
			if d == nil {
				break
			}
			a.waiters[use] = a.waiters[use][1:]
			w.data = d
			close(w.ready)
		}
	}
}

// Trim gives memory back to the system that has not been needed since the last Trim, and tells how many bytes: what was touched
// beyond the most that was out at once. Call it now and then, such as every ten seconds.
func (a *Arena) Trim() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return 0
	}
	excess := a.buddy.touchedBlocks() - max(a.peak, a.usedBlocks())
	a.peak = a.usedBlocks()
	// Under the lock: a few tens of microseconds a MiB, for memory that was idle.
	return a.buddy.untouch(excess, a.punch) * BlockSize
}

func (a *Arena) punchHole(off, n int) bool {
	return unix.Fallocate(a.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off), int64(n)) == nil
}

// Close unmaps the arena; every Buf must have been released: otherwise it is an error that tells what is out (with ArenaDebug:
// from where), and the memory stays. What is lent to other processes is no error: the memory is unmapped when that has come back.
// Who waits gets KindShutdown.
func (a *Arena) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil
	}
	for use := range a.waiters {
		for _, w := range a.waiters[use] {
			close(w.ready)
		}
		a.waiters[use] = nil
	}
	if a.usedBlocks() > a.lent+a.returning {
		return Errorf("arena.close", KindInvalid, "", "%s", a.leaks())
	}
	a.closed = true
	if a.usedBlocks() > 0 {
		return nil
	}
	return a.unmap()
}

// unmap gives the memory back to the system. Preconditions: a.mu is held, closed is set, no Buf is out.
func (a *Arena) unmap() error {
	err := unix.Munmap(a.mem)
	if a.readOnly >= 0 {
		err = errors.Join(err, unix.Close(a.readOnly))
	}
	return errors.Join(err, unix.Close(a.fd))
}

// leaks describes what is out.
func (a *Arena) leaks() string {
	s := fmt.Sprintf("not released: %d bytes of requests, %d of own use, %d of responses",
		a.used[UseRequest]*BlockSize, (a.used[UseOwn]+a.used[UseMore])*BlockSize, a.used[UseResponse]*BlockSize)
	n := 0
	for b := range a.out {
		if n++; n > 10 {
			s += "\n..."
			break
		}
		s += fmt.Sprintf("\n%d bytes, %d references, from\n%s", len(b.b), b.refs.Load(), stackText(b.from))
	}
	return s
}

func blocksOf(n int) int { return max(1, (n+BlockSize-1)/BlockSize) }
