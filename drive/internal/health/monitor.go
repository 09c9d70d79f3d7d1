package health

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/crakefs/crake/wire"
)

// Op is a kind of IO.
type Op uint8

// The kinds of IO.
const (
	Read Op = iota
	Write
	Flush
	numOps
)

// String gives the kind as people read it.
func (o Op) String() string { return [...]string{"read", "write", "flush"}[min(o, Flush)] }

// Monitor watches one device. Safe for concurrent use, but for Tick, which only one goroutine at a time may call. A nil
// Monitor takes everything and says nothing.
//
// An IO costs two additions to counters of its window (some 10 ns). Its time is taken only while there are few, and then of one
// in sampleEvery: two looks at the clock cost 60 to 250 ns, and a drive may do a hundred thousand IOs a second. There is no
// lock but for errors. The windows move only with Tick.
type Monitor struct {
	now func() time.Duration // a clock that only rises; immutable

	current atomic.Uint32 // index of the window that new IOs count to
	ring    [windows]window
	fault   atomic.Pointer[string] // why the drive must be failed; set once

	// owned by who calls Tick

	opened  time.Duration // when the current window began, by the clock
	ticked  time.Duration // last Tick, by the clock
	awake   time.Duration // time in which IOs could return: see maxStep
	started int           // windows that have begun, the first included

	mu     sync.Mutex
	errors [2]occurrences      // of reads, and of writes and flushes; guarded by mu
	same   [sameErrors]uint64  // hashes of the last errors, a ring; guarded by mu
	sameAt int                 // where the next goes; guarded by mu
	seen   map[uint64]struct{} // those of same; guarded by mu
}

// window counts the IOs of a second.
type window struct {
	begun    time.Duration        // Monitor.awake when it began; owned by who calls Tick
	started  atomic.Uint64        // IOs that began in it, since the beginning
	returned atomic.Uint64        // those of them that have ended
	base     atomic.Uint64        // started, when the window was opened last
	count    [numOps]atomic.Int64 // IOs that ended in it and whose time was taken
	sum      [numOps]atomic.Int64 // nanoseconds that they took
	_        [64]byte             // windows do not share a cache line
}

// underWay gives the IOs that began in the window and have not ended.
func (w *window) underWay() uint64 {
	returned := w.returned.Load() // first: then the difference is never below zero
	return w.started.Load() - returned
}

// Begun is an IO under way.
type Begun struct {
	at     time.Duration // -1: its time is not taken
	window uint32
}

// New makes a monitor; now is a clock that only rises, nil is the process's.
func New(now func() time.Duration) *Monitor {
	if now == nil {
		start := time.Now()
		now = func() time.Duration { return time.Since(start) }
	}
	m := &Monitor{now: now, started: 1, seen: map[uint64]struct{}{}}
	m.opened, m.ticked = now(), now()
	return m
}

// Begin tells that an IO begins; End must follow.
func (m *Monitor) Begin() Begun {
	if m == nil {
		return Begun{}
	}
	b := Begun{at: -1, window: m.current.Load()}
	w := &m.ring[b.window]
	if n := w.started.Add(1) - w.base.Load(); n <= sampleAll || n%sampleEvery == 0 {
		b.at = m.now()
	}
	return b
}

// End tells that an IO has ended, and how.
func (m *Monitor) End(b Begun, op Op, err error) {
	if m == nil {
		return
	}
	m.ring[b.window].returned.Add(1)
	if b.at >= 0 {
		m.Note(op, m.now()-b.at, err)
	} else if err != nil {
		m.failed(op, err)
	}
}

// Note tells of an IO that has ended, how long it took, and how. That one hangs is found only by Begin. What is noted while
// Tick opens a window may be lost to the mean.
func (m *Monitor) Note(op Op, d time.Duration, err error) {
	if m == nil || op >= numOps {
		return
	}
	if err != nil {
		m.failed(op, err) // its time says nothing: errors come at once or after long retries
		return
	}
	w := &m.ring[m.current.Load()]
	w.sum[op].Add(int64(max(d, 0)))
	w.count[op].Add(1)
}

// Fail makes the drive a failed one for a reason that was found elsewhere. The first reason stays.
func (m *Monitor) Fail(why string) {
	if m == nil {
		return
	}
	m.fault.CompareAndSwap(nil, &why)
}

// Fault says why the drive must be failed; "": it is well.
func (m *Monitor) Fault() string {
	if m == nil {
		return ""
	}
	if why := m.fault.Load(); why != nil {
		return *why
	}
	return ""
}

// Tick lets time pass: it opens a new window each second and looks for IOs that hang. Call it a few times a second.
func (m *Monitor) Tick() {
	if m == nil {
		return
	}
	now := m.now()
	m.awake += min(now-m.ticked, maxStep)
	m.ticked = now
	m.findHung()
	if now-m.opened < windowLength {
		return
	}
	next := (m.current.Load() + 1) % windows
	w := &m.ring[next]
	if w.underWay() > 0 {
		return // an IO hangs since the ring was here before: it is a fault by now, and its window is kept
	}
	for op := range numOps {
		w.count[op].Store(0)
		w.sum[op].Store(0)
	}
	w.base.Store(w.started.Load())
	w.begun, m.opened = m.awake, now
	m.started++
	m.current.Store(next)
}

// findHung looks for IOs that have been under way too long: those of windows that ended long ago.
func (m *Monitor) findHung() {
	if m.fault.Load() != nil {
		return
	}
	cur := int(m.current.Load())
	ended := m.awake // the window
	for i := range min(m.started, windows) {
		w := &m.ring[(cur-i+windows)%windows]
		if n := w.underWay(); n > 0 && m.awake-ended > hungAfter {
			m.Fail(fmt.Sprintf("the device hangs: %d IOs have not returned for more than %v", n, hungAfter))
			return
		}
		ended = w.begun
	}
}

// Means gives the mean time of an IO of each kind over about the last ten seconds; 0 when there were too few.
func (m *Monitor) Means() (read, write, flush time.Duration) {
	if m == nil {
		return 0, 0, 0
	}
	var mean [numOps]time.Duration
	cur := int(m.current.Load())
	for op := range numOps {
		var sum, count int64
		for i := range meanWindows {
			w := &m.ring[(cur-i+windows)%windows]
			sum += w.sum[op].Load()
			count += w.count[op].Load()
		}
		if count >= minIOs || time.Duration(sum) >= minTime {
			mean[op] = max(1, time.Duration(sum/count))
		}
	}
	return mean[Read], mean[Write], mean[Flush]
}

// Fill writes what is known into a drive's answer about itself.
func (m *Monitor) Fill(st *wire.DriveStatResp) {
	r, w, f := m.Means()
	st.ReadNs, st.WriteNs, st.FlushNs = uint64(r), uint64(w), uint64(f)
	st.Fault = m.Fault()
}
