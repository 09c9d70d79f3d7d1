package spin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Spinner keeps the process awake while events are likely to come soon; Run makes it work. A nil one may be told of events, and does nothing.
type Spinner struct {
	yield  func() // gives the core away for a moment; immutable
	events atomic.Uint64
	asleep atomic.Bool // Run waits for wake
	wake   chan struct{}

	// owned by Run
	began  time.Time
	seen   uint64        // of events
	last   time.Duration // since began: when an event was last seen
	turns  int
	shared bool // the core turned out not to be ours alone
	rests  int  // how often
	policy policy
}

// New makes a spinner. It holds nothing until Run.
func New() *Spinner {
	return &Spinner{
		yield: func() { _, _, _ = syscall.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) },
		wake:  make(chan struct{}, 1),
	}
}

// Note tells that something has come for which the process waited, such as bytes of a connection. It takes some nanoseconds, or, when the
// spinner sleeps, as long as waking a goroutine. Any goroutine may call it; it does not block.
func (s *Spinner) Note() {
	if s == nil {
		return
	}
	s.events.Add(1)
	if s.asleep.Load() && s.asleep.CompareAndSwap(true, false) {
		s.wake <- struct{}{} // never waits: who set asleep takes it
	}
}

// Events counts what it was told of.
func (s *Spinner) Events() uint64 { return s.events.Load() }

// Run spins when it is likely to pay off, until ctx ends (nil). An error: the system has no descriptor for it.
func (s *Spinner) Run(ctx context.Context) (err error) {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), "eventfd") // the runtime polls it because it is non-blocking
	defer func() { err = errors.Join(err, f.Close()) }()
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	s.began = time.Now()
	turn := func(fd uintptr) bool { return ctx.Err() != nil || s.turn(fd) }
	for s.sleep(ctx) {
		if s.shared {
			s.shared = false
			s.rests++
			rest(ctx)
		}
		if runtime.GOMAXPROCS(0) > 1 {
			s.seen = s.events.Load()
			continue
		}
		// The function is called at once and after each wake-up, until it gives true.
		if err := conn.Read(turn); err != nil {
			return fmt.Errorf("wait for an eventfd: %w", err)
		}
	}
	return nil
}

// sleep waits for an event; false: ctx has ended.
func (s *Spinner) sleep(ctx context.Context) bool {
	s.asleep.Store(true)
	if s.events.Load() != s.seen && s.asleep.CompareAndSwap(true, false) {
		return ctx.Err() == nil
	}
	select {
	case <-s.wake:
		return true
	case <-ctx.Done():
		return false
	}
}

// rest waits for a while.
func rest(ctx context.Context) {
	t := time.NewTimer(restFor)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// one is what a turn adds to the eventfd. Its count overflows after 2^64 turns.
var one = uint64(1)

// turn is one look: it makes the eventfd readable anew, so that the runtime looks at its poller and comes back here. true: enough.
func (s *Spinner) turn(fd uintptr) bool {
	now := time.Since(s.began)
	if n := s.events.Load(); n != s.seen {
		s.policy.add(now - s.last)
		s.seen, s.last = n, now
	}
	if now-s.last >= s.policy.bound {
		return true
	}
	if s.turns++; s.turns%yieldEvery == 0 {
		s.yield()
		if s.shared = time.Since(s.began)-now > foreignAfter; s.shared {
			return true
		}
	}
	_, _, _ = syscall.RawSyscall(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(&one)), unsafe.Sizeof(one))
	return false
}
