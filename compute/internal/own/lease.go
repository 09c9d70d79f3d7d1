package own

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Clock gives the time since some fixed moment; it only rises, and counts the time that the machine slept.
type Clock func() time.Duration

// BootClock is CLOCK_BOOTTIME: a suspended machine wakes up with its lease over.
func BootClock() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("own: no CLOCK_BOOTTIME: " + err.Error()) // Linux has had it since 2.6.39
	}
	return time.Duration(ts.Nano())
}

// Lease is this process's right to serve, as its own clock sees it: until half of the lease time after the last good
// heartbeat was sent. Mgmt calls the process dead only after all of the lease time, counted from when the heartbeat came
// in: so a slow clock, a stopped process or a lost network ends our service well before another owner begins.
type Lease struct {
	clock Clock
	until atomic.Int64 // clock, nanoseconds; 0: none
}

// NewLease makes a lease that is over.
func NewLease(clock Clock) *Lease { return &Lease{clock: clock} }

// Now gives the clock, to be taken before a heartbeat is sent.
func (l *Lease) Now() time.Duration { return l.clock() }

// Renew extends the lease to half of leaseTime after sent.
func (l *Lease) Renew(sent, leaseTime time.Duration) {
	until := int64(sent + leaseTime/2)
	for {
		old := l.until.Load()
		if until <= old || l.until.CompareAndSwap(old, until) {
			return
		}
	}
}

// Extend lengthens a lease that was not over at the moment at, as a heartbeat sent then would: the caller has found, after
// taking that moment, that no mgmt runs (package wire/away says why that is enough). A lease that was over stays over.
func (l *Lease) Extend(at, leaseTime time.Duration) bool {
	until := int64(at + leaseTime/2)
	for {
		old := l.until.Load()
		switch {
		case int64(at) >= old:
			return false
		case until <= old || l.until.CompareAndSwap(old, until):
			return true
		}
	}
}

// Valid tells whether the process may serve now.
func (l *Lease) Valid() bool { return int64(l.clock()) < l.until.Load() }

// End gives the lease up for good measure (an orderly stop).
func (l *Lease) End() { l.until.Store(0) }
