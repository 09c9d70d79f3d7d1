package blockio

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/drive/internal/uring"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/spin"
)

// ring does the IO of all ringDevices of a process.
//
// An IO goes Start -> submission ring (or, when that or the slots are full, the list of those that wait) -> Kick: io_uring_enter, by
// whoever calls -> the kernel -> completion ring -> the reaper, one goroutine, which calls Done. No goroutine and no thread waits for
// an IO.
//
// # How the reaper waits
//
// The ring's descriptor is in the runtime's netpoller (edge-triggered), as a socket would be: so waiting takes no thread, and on a process
// with one processor a completion is found by the same epoll_wait as the next request. No wake-up is lost: the kernel publishes a
// completion and then wakes the poller; the runtime remembers a wake-up that finds nobody waiting; the reaper waits only after it has
// found the ring empty. An eventfd would do the same by one wake-up more for each completion, and epoll would report it also when
// everything was reaped before: 3 % more processor time at depth 32, none at depth 1.
//
// # Who runs the kernel's part
//
// A completion is posted by the thread that submitted the IO, on its way out of the kernel (task work). So a thread that has submitted and
// then blocks uninterruptibly in some long system call delays its completions; sleeping in futex or epoll_wait does not.
// Discards, the one long call that a drive makes, have a thread of their own (blocker). A thread that ends hands its completions on; the
// kernel may cancel what it had queued for its worker threads, and those IOs are begun again.
//
// A thread that computes is not interrupted for it (COOP_TASKRUN): it posts at its next system call or timer tick. A drive's process has
// one core, so who computes keeps the reaper from it anyway. That saves 15 % of an IO's processor time at depth 32.
//
// # Locks
//
// mu guards the submission side; no system call is made under it. regions.mu is taken under the arena's lock (see regions).
type ring struct {
	// Immutable.
	r       *uring.Ring
	enter   func(n int) error // r.Submit, or what a test puts in its place
	poll    *os.File          // of the ring's descriptor
	conn    syscall.RawConn   // of poll
	regions *regions          // nil: no registered memory
	block   chan func()       // what the blocker does
	ended   chan struct{}     // closed when the reaper has ended
	broken  func(error)       // what to do when the ring contradicts itself; does not return but in tests
	spin    *spin.Spinner     // nil: none
	log     *slog.Logger

	reaping atomic.Bool  // the reaper is calling Dones, and will submit what they start
	waiting atomic.Int32 // callers of synchronous methods
	waiters sync.Pool    // of *waiter
	stopped bool         // the reaper's: nothing will come any more

	mu         sync.Mutex
	slots      []slot
	free       []uint32 // indexes of slots without an IO
	first      *IO      // of those that wait for a slot or an entry, in order
	last       *IO
	submitting bool             // somebody is in io_uring_enter, and will look again
	retry      bool             // a timer will submit
	files      [maxDevices]bool // places taken
}

// slot is a place of an IO that is with the kernel. The user data of its entry is the slot's number and, in the upper half, how often it
// was taken: so a completion that comes twice, or of nothing, is recognized.
type slot struct {
	io    *IO
	turns uint32
}

// newRing makes a ring, registers what can be, and starts its goroutines.
func newRing(cfg EngineConfig) (*ring, error) {
	setup := cfg.setup
	if setup == nil {
		setup = uring.KernelSetup
	}
	r, err := uring.New(ringEntries, maxInFlight, !cfg.interrupt, setup)
	if err != nil {
		return nil, err
	}
	g := &ring{r: r, enter: r.Submit, block: make(chan func()), ended: make(chan struct{}), log: cfg.Log, broken: cfg.broken, spin: cfg.Spin}
	g.waiters.New = func() any {
		w := &waiter{ch: make(chan error, 1)}
		w.io.Done = func(_ *IO, err error) { w.ch <- err }
		return w
	}
	if g.broken == nil {
		// Who holds memory of an IO under way must not get it back, and will not; and the process is of no more use. When it has
		// ended, the kernel lets its IO end before anybody else gets the device.
		g.broken = func(err error) { panic("blockio: " + err.Error()) }
	}
	g.makeSlots(min(maxInFlight, r.CQEntries()))
	if err := errors.Join(r.RegisterFiles(maxDevices), unix.SetNonblock(r.FD(), true)); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	// The descriptor twice: os.File closes its own.
	fd, err := unix.FcntlInt(uintptr(r.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	g.poll = os.NewFile(uintptr(fd), "io_uring") // the runtime polls it because it is non-blocking
	if g.conn, err = g.poll.SyscallConn(); err == nil {
		err = g.poll.SetDeadline(time.Time{}) // fails when it is not polled
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("poll of the ring: %w", err), g.poll.Close(), r.Close())
	}
	if cfg.Arena != nil {
		if g.regions, err = newRegions(r, cfg.Arena, cfg.Log); err != nil {
			cfg.Log.Warn("io_uring without registered memory", "reason", err)
		}
	}
	go g.reap()
	go g.blocker()
	return g, nil
}

func (g *ring) makeSlots(n int) {
	g.slots = make([]slot, n)
	for i := range n {
		g.free = append(g.free, uint32(n-1-i))
	}
}

// close ends the goroutines and gives the ring back. Preconditions: no device is open, so no IO is under way.
func (g *ring) close() error {
	g.mu.Lock()
	for _, taken := range g.files {
		if taken {
			g.mu.Unlock()
			return wire.Errorf("device.engine", wire.KindInvalid, "", "a device of the engine is still open")
		}
	}
	g.mu.Unlock()
	// The last entry, which does nothing, ends the reaper: it alone says so, because a late wake-up may come before.
	last := &IO{Done: func(*IO, error) { g.stopped = true }}
	last.prepare(&ringDevice{file: &file{}, g: g})
	g.start(last)
	g.kick()
	<-g.ended
	close(g.block)
	var errs []error
	if g.regions != nil {
		errs = append(errs, g.regions.close())
	}
	return errors.Join(append(errs, g.poll.Close(), g.r.Close())...)
}

// blocker does what blocks a thread for long, on a thread of its own that never submits: see ring.
func (g *ring) blocker() {
	runtime.LockOSThread() // it ends with the goroutine
	for f := range g.block {
		f()
	}
}

// start queues an IO.
func (g *ring) start(io *IO) {
	g.mu.Lock()
	if io.dev.closing.Load() {
		io.op, io.fail = uring.OpNop, wire.Errorf("device.io", wire.KindShutdown, io.dev.info.Path, "the device is closed")
	}
	io.dev.busy.Add(1)
	g.enqueue(io)
	g.mu.Unlock()
}

// enqueue gives io to the submission ring, or to the end of those that wait. Preconditions: mu is held.
func (g *ring) enqueue(io *IO) {
	if g.first == nil && g.push(io) {
		return
	}
	io.next = nil
	if g.first == nil {
		g.first = io
	} else {
		g.last.next = io
	}
	g.last = io
}

// push gives io a slot and an entry; false: there is none free. Preconditions: mu is held.
func (g *ring) push(io *IO) bool {
	if len(g.free) == 0 {
		return false
	}
	i := g.free[len(g.free)-1]
	s := &g.slots[i]
	e := io.entry(g.regions)
	e.UserData = uint64(s.turns)<<32 | uint64(i)
	ok, err := g.r.Push(&e)
	if err != nil {
		g.broken(err)
	}
	if !ok {
		return false
	}
	g.free = g.free[:len(g.free)-1]
	s.io = io
	return true
}

// fill moves from those that wait to the submission ring what there is room for. Preconditions: mu is held.
func (g *ring) fill() {
	for io := g.first; io != nil; io = g.first {
		next := io.next
		if !g.push(io) {
			return
		}
		g.first = next
	}
}

// kick submits what is queued, unless the reaper is about to: then a batch of completions makes one call.
func (g *ring) kick() {
	if !g.reaping.Load() {
		g.submit()
	}
}

// submit gives the kernel what is queued. Who comes while another is in the kernel leaves it to that one.
func (g *ring) submit() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.submitting {
		return
	}
	g.submitting = true
	defer func() { g.submitting = false }()
	for {
		g.fill()
		n, err := g.r.Pending()
		if err != nil {
			g.broken(err)
			return
		}
		if n == 0 {
			return
		}
		g.mu.Unlock()
		err = g.enter(n)
		g.mu.Lock()
		switch {
		case err == nil || err == unix.EINTR:
		case err == unix.EAGAIN || err == unix.ENOMEM || err == unix.EBUSY:
			g.submitLater()
			return
		default:
			g.broken(fmt.Errorf("io_uring_enter: %w", err))
			return
		}
	}
}

// submitLater tries again after a while; the next completion may be earlier. Preconditions: mu is held.
func (g *ring) submitLater() {
	if g.retry {
		return
	}
	g.retry = true
	time.AfterFunc(retryAfter, func() {
		g.mu.Lock()
		g.retry = false
		g.mu.Unlock()
		g.submit()
	})
}

// reap is the goroutine that ends IOs.
func (g *ring) reap() {
	defer close(g.ended)
	// The function is called at once and then after each wake-up, until it gives true.
	err := g.conn.Read(func(uintptr) bool { return g.reapAll() })
	if err != nil {
		g.broken(fmt.Errorf("poll of the ring: %w", err))
	}
}

// reapAll ends all IOs that have completed; true: the ring is closed.
func (g *ring) reapAll() bool {
	var cqes [reapBatch]uring.CQE
	for {
		g.reaping.Store(true)
		n, err := g.r.Reap(cqes[:])
		if err == nil && n < len(cqes) && g.r.Overflowed() {
			err = g.r.GetEvents() // cannot be, because slots bound what is under way
		}
		if err != nil {
			g.broken(err)
			return true
		}
		if n > 0 {
			g.spin.Note()
			if !g.complete(cqes[:n]) {
				return true
			}
		}
		if g.regions != nil {
			g.regions.registerHot()
		}
		// In this order: who queued before the store and left the submission to us is seen by submit; who queued after it submits.
		g.reaping.Store(false)
		g.submit()
		if n == 0 {
			return g.stopped
		}
		if n == len(cqes) {
			runtime.Gosched()
		}
	}
}

// complete ends, or begins again, the IOs of a batch; false: a completion makes no sense.
func (g *ring) complete(cqes []uring.CQE) bool {
	var ios [reapBatch]*IO
	g.mu.Lock()
	for i, c := range cqes {
		at := uint32(c.UserData)
		if uint64(at) >= uint64(len(g.slots)) || g.slots[at].io == nil || g.slots[at].turns != uint32(c.UserData>>32) {
			g.mu.Unlock()
			g.broken(fmt.Errorf("%w: a completion of what is not under way: %+v", uring.ErrBroken, c))
			return false
		}
		s := &g.slots[at]
		ios[i], s.io = s.io, nil
		s.turns++
		g.free = append(g.free, at)
	}
	g.mu.Unlock()
	for i, c := range cqes {
		io := ios[i]
		more, err := io.advance(c.Res)
		if errors.Is(err, uring.ErrBroken) {
			g.broken(err)
			return false
		}
		if more {
			g.mu.Lock()
			g.enqueue(io)
			g.mu.Unlock()
			continue
		}
		io.end(err)
	}
	return true
}

// waiter is an IO whose caller waits for it.
type waiter struct {
	io IO
	ch chan error // capacity 1
}

// waiter gives an IO to be filled in and given to wait.
func (g *ring) waiter() *waiter { return g.waiters.Get().(*waiter) }

// wait does the IO of w, takes w back, and gives the result.
func (g *ring) wait(w *waiter) error {
	others := g.waiting.Add(1) > 1
	g.start(&w.io)
	if others {
		// Those whose IO has just ended, in the same batch as ours, are about to come with their next one: one call for all. With 8 who
		// read 4 KiB, 5.3 us of processor time for each instead of 6.2.
		runtime.Gosched()
	}
	g.kick()
	err := <-w.ch
	g.waiting.Add(-1)
	w.io.P, w.io.Vec = nil, nil // not to keep memory that is given away
	g.waiters.Put(w)
	return err
}
