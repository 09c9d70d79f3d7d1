package health

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/wire"
)

// clock is a clock of which the test is the master.
type clock struct{ t time.Duration }

func (c *clock) now() time.Duration { return c.t }

func newTest() (*clock, *Monitor) {
	c := &clock{t: time.Hour}
	return c, New(c.now)
}

// run lets time pass with two Ticks a second, as the heartbeats do, and calls each before every one.
func run(c *clock, m *Monitor, d time.Duration, each func()) {
	for end := c.t + d; c.t < end; {
		c.t += 500 * time.Millisecond
		if each != nil {
			each()
		}
		m.Tick()
	}
}

func ioError(off int, err error) error {
	return wire.E("device.read", wire.KindIO, fmt.Sprintf("/dev/x: 4096 bytes at %d", off), err)
}

// Claim: the means are those of the last ten seconds, of each kind for itself; few IOs have none.
func TestMeans(t *testing.T) {
	c, m := newTest()
	for range minIOs - 1 {
		m.Note(Read, time.Millisecond, nil)
	}
	if r, w, f := m.Means(); r != 0 || w != 0 || f != 0 {
		t.Errorf("means %v %v %v of too few", r, w, f)
	}
	m.Note(Read, (minIOs+1)*time.Millisecond, nil)
	if r, _, _ := m.Means(); r != 2*time.Millisecond {
		t.Errorf("mean %v, want 2 ms", r)
	}
	run(c, m, 20*time.Second, func() {
		for range 4 {
			m.Note(Read, 10*time.Microsecond, nil)
			m.Note(Write, 30*time.Microsecond, nil)
			m.Note(Flush, 0, nil)
		}
	})
	if r, w, f := m.Means(); r != 10*time.Microsecond || w != 30*time.Microsecond || f != 1 {
		t.Errorf("means %v %v %v", r, w, f)
	}
	for range 80 {
		m.Note(Read, time.Second, errors.New("slow and failed"))
	}
	if r, _, _ := m.Means(); r != 10*time.Microsecond {
		t.Errorf("mean %v: a failed IO must not count", r)
	}
	run(c, m, 11*time.Second, nil)
	m.Note(Write, 1999*time.Millisecond, nil)
	m.Note(Flush, 2*time.Second, nil) // one, but long: this says something
	if _, w, f := m.Means(); w != 0 || f != 2*time.Second {
		t.Errorf("means %v %v of one long IO each", w, f)
	}
	run(c, m, 11*time.Second, nil)
	if r, w, f := m.Means(); r != 0 || w != 0 || f != 0 {
		t.Errorf("means %v %v %v after eleven idle seconds", r, w, f)
	}
}

// Claim: each cause makes a fault when it should, and not before.
func TestFaults(t *testing.T) {
	eio := func(i int) error { return ioError(i*4096, unix.EIO) }
	for _, tc := range []struct {
		name string
		do   func(c *clock, m *Monitor)
		want string // part of the fault; "" is none
	}{
		{"pulled out", func(_ *clock, m *Monitor) { m.Note(Read, 1, ioError(0, unix.ENODEV)) }, "gone"},
		{"descriptor lost", func(_ *clock, m *Monitor) { m.Note(Write, 1, ioError(0, unix.EBADF)) }, "gone"},
		{"read-only", func(_ *clock, m *Monitor) { m.Note(Write, 1, ioError(0, unix.EROFS)) }, "gone"},
		{"truncated", func(_ *clock, m *Monitor) { m.Note(Read, 1, ioError(0, io.ErrUnexpectedEOF)) }, "shorter"},
		{"full", func(c *clock, m *Monitor) {
			run(c, m, time.Minute, func() { m.Note(Write, 1, wire.E("w", wire.KindNoSpace, "", unix.ENOSPC)) })
		}, ""},
		{"our own mistake", func(c *clock, m *Monitor) {
			run(c, m, time.Minute, func() { m.Note(Write, 1, wire.E("w", wire.KindInvalid, "", nil)) })
		}, ""},
		{"a reset fails all reads under way", func(_ *clock, m *Monitor) {
			for i := range 300 {
				m.Note(Read, 1, eio(i))
			}
		}, ""},
		{"one bad block, read for an hour", func(c *clock, m *Monitor) {
			run(c, m, time.Hour, func() { m.Note(Read, 1, eio(7)) })
		}, ""},
		{"one bad block less than the limit", func(c *clock, m *Monitor) {
			for i := range readErrorLimit - 1 {
				run(c, m, 2*time.Second, nil)
				m.Note(Read, 1, eio(i))
			}
		}, ""},
		{"as many bad blocks as the limit", func(c *clock, m *Monitor) {
			for i := range readErrorLimit {
				run(c, m, 2*time.Second, nil)
				m.Note(Read, 1, eio(i))
			}
		}, "read errors in 10 different seconds"},
		{"bad blocks now and then", func(c *clock, m *Monitor) {
			for i := range 100 {
				run(c, m, errorWindow/(readErrorLimit-1)+time.Second, nil)
				m.Note(Read, 1, eio(i))
			}
		}, ""},
		{"all reads fail", func(c *clock, m *Monitor) {
			i := 0
			run(c, m, 12*time.Second, func() { i++; m.Note(Read, 1, eio(i)) })
		}, "read errors"},
		{"writes fail in one moment", func(_ *clock, m *Monitor) {
			for i := range 64 {
				m.Note(Write, 1, eio(i))
			}
		}, ""},
		{"writes and flushes fail again and again", func(c *clock, m *Monitor) {
			for i := range writeErrorLimit {
				run(c, m, 2*time.Second, nil)
				m.Note(Write+Op(i%2), 1, eio(1))
			}
		}, "write errors in 3"},
		{"writes fail now and then", func(c *clock, m *Monitor) {
			for i := range 20 {
				run(c, m, errorWindow/2+time.Second, nil)
				m.Note(Write, 1, eio(i))
			}
		}, ""},
		{"reads and writes have budgets of their own", func(c *clock, m *Monitor) {
			for i := range readErrorLimit - 1 {
				run(c, m, 2*time.Second, nil)
				m.Note(Read, 1, eio(i))
			}
			for i := range writeErrorLimit - 1 {
				run(c, m, 2*time.Second, nil)
				m.Note(Write, 1, eio(i))
			}
		}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, m := newTest()
			tc.do(c, m)
			if got := m.Fault(); (got == "") != (tc.want == "") || !strings.Contains(got, tc.want) {
				t.Errorf("fault %q, want %q", got, tc.want)
			}
		})
	}
}

// Claim: the first reason stays.
func TestFirstFaultStays(t *testing.T) {
	_, m := newTest()
	m.Fail("first")
	m.Note(Read, 1, ioError(0, unix.ENODEV))
	if got := m.Fault(); got != "first" {
		t.Errorf("fault %q", got)
	}
	var st wire.DriveStatResp
	m.Fill(&st)
	if st.Fault != "first" {
		t.Errorf("stat %+v", st)
	}
}

// Claim: an IO that does not return is a fault after hungAfter and not before, whatever else goes on.
func TestHungIO(t *testing.T) {
	c, m := newTest()
	busy := func() { m.End(m.Begin(), Write, nil) }
	run(c, m, time.Minute, busy)
	hung := m.Begin()
	run(c, m, hungAfter-2*time.Second, busy)
	if got := m.Fault(); got != "" {
		t.Errorf("too early: %s", got)
	}
	run(c, m, 4*time.Second, busy)
	if got := m.Fault(); !strings.Contains(got, "1 IOs have not returned") {
		t.Errorf("fault %q", got)
	}
	run(c, m, 5*time.Minute, busy) // the ring comes round and round; the one that hangs stays its window's
	m.End(hung, Read, nil)
	for i := range m.ring {
		if n := m.ring[i].underWay(); n != 0 {
			t.Errorf("window %d has %d IOs under way after the end of all", i, n)
		}
	}
}

// Claim: long IOs that return in time, at any depth, are no fault.
func TestSlowIsNotHung(t *testing.T) {
	c, m := newTest()
	var under []Begun
	run(c, m, 10*time.Minute, func() {
		under = append(under, m.Begin())
		if len(under) > int((hungAfter-2*time.Second)/(500*time.Millisecond)) {
			m.End(under[0], Flush, nil)
			under = under[1:]
		}
	})
	if got := m.Fault(); got != "" {
		t.Errorf("fault %q", got)
	}
}

// Claim: a process that was stopped, or a machine that slept, does not take what was under way for hung.
func TestSleepIsNoHang(t *testing.T) {
	c, m := newTest()
	b := m.Begin()
	for range 5 {
		run(c, m, 2*time.Second, nil)
		c.t += 10 * time.Hour
		m.Tick()
	}
	if got := m.Fault(); got != "" {
		t.Errorf("fault %q", got)
	}
	m.End(b, Read, nil)
}

// Claim: nobody who watches is no trouble for who tells.
func TestNilMonitor(t *testing.T) {
	var m *Monitor
	m.End(m.Begin(), Read, io.EOF)
	m.Note(Read, 1, io.EOF)
	m.Fail("x")
	m.Tick()
	var st wire.DriveStatResp
	m.Fill(&st)
	if m.Fault() != "" || st.Fault != "" {
		t.Error("a nil monitor has an opinion")
	}
}

// Claim: every method may be called at any time by anybody, and no IO is lost from the count of those under way.
func TestConcurrent(t *testing.T) {
	m := New(nil)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 2000 {
				b := m.Begin()
				var err error
				if i%100 == 0 {
					err = ioError(g*i, unix.EIO)
				}
				m.End(b, Op(i%3), err)
				m.Fault()
			}
		})
	}
	wg.Go(func() {
		for range 100 {
			m.Tick()
			m.Means()
		}
	})
	wg.Wait()
	if n := m.ring[0].underWay(); n != 0 {
		t.Errorf("%d IOs under way", n)
	}
}

// Claim: when there are many IOs, some are timed, and the mean is still theirs.
func TestSampled(t *testing.T) {
	c, m := newTest()
	for range 100_000 {
		b := m.Begin()
		c.t += 3 * time.Microsecond
		m.End(b, Write, nil)
	}
	if _, w, _ := m.Means(); w != 3*time.Microsecond {
		t.Errorf("mean %v", w)
	}
	if n := m.ring[0].count[Write].Load(); n > 100_000/sampleEvery+sampleAll {
		t.Errorf("%d of 100000 were timed", n)
	}
	run(c, m, 3*windows*time.Second, func() {
		for range 2000 {
			m.End(m.Begin(), Flush, nil)
		}
	})
	run(c, m, meanWindows*time.Second, func() { // few again: all are timed, however many there were before
		b := m.Begin()
		c.t += time.Millisecond
		m.End(b, Read, nil)
	})
	if r, _, _ := m.Means(); r != time.Millisecond {
		t.Errorf("mean %v of few after many", r)
	}
	for i := range 2 * readErrorLimit { // an error counts whether its IO is timed or not
		c.t += 2 * time.Second
		m.End(m.Begin(), Read, ioError(i, unix.EIO))
	}
	if m.Fault() == "" {
		t.Error("errors of IOs that were not timed are lost")
	}
}

func BenchmarkBeginEnd(b *testing.B) {
	m := New(nil)
	for b.Loop() {
		m.End(m.Begin(), Read, nil)
	}
}

func BenchmarkNote(b *testing.B) {
	m := New(nil)
	for b.Loop() {
		m.Note(Read, time.Microsecond, nil)
	}
}
