package spin

import (
	"context"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds every wait of a test for what must happen at once.
const patience = 10 * time.Second

// start runs a spinner on one scheduler processor, as on a core of its own; end stops it and waits, and only then its fields may be read.
func start(t *testing.T) (s *Spinner, end func()) {
	return startWith(t, func(*Spinner) {})
}

// startWith is start of a spinner that prepare has changed.
func startWith(t *testing.T, prepare func(*Spinner)) (s *Spinner, end func()) {
	t.Helper()
	procs := runtime.GOMAXPROCS(1)
	s = New()
	prepare(s)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	end = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(patience):
			t.Error("Run does not end")
		}
		runtime.GOMAXPROCS(procs)
	})
	t.Cleanup(end)
	return s, end
}

// excite tells of events one after the other until the spinner must have found that spinning pays off.
func excite(s *Spinner) {
	for range 16 * chooseEvery {
		s.Note()
		time.Sleep(time.Microsecond)
	}
}

// asleep waits until the spinner sleeps.
func asleep(t *testing.T, s *Spinner) {
	t.Helper()
	for late := time.Now().Add(patience); !s.asleep.Load(); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(late) {
			t.Fatal("the spinner does not sleep")
		}
	}
}

// cpu gives the processor time that this process has used.
func cpu(t *testing.T) time.Duration {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// Claim: when nothing comes any more it sleeps, and takes no processor time; nor does it, when events come too far apart.
func TestSleeps(t *testing.T) {
	s, end := start(t)
	excite(s)
	asleep(t, s)
	before := cpu(t)
	time.Sleep(100 * time.Millisecond)
	if used := cpu(t) - before; used > 20*time.Millisecond {
		t.Errorf("%v of processor time in 100 ms without an event", used)
	}
	far := func(n int) {
		for range n {
			s.Note()
			time.Sleep(2 * maxSpin)
		}
	}
	far(8 * memory) // forgets what it knew
	before = cpu(t)
	far(memory)
	// On a busy machine it sees some events late, and so close together: by those it may think that a few microseconds pay off.
	if used := cpu(t) - before; used > memory*maxSpin/4 {
		t.Errorf("%v of processor time for %d events, of which none came within %v", used, memory, maxSpin)
	}
	end()
}

// Claim: while it spins, what becomes ready is found, sockets and timers. (A goroutine that only yields keeps the runtime from its poller for
// 10 ms at a time.)
func TestLooks(t *testing.T) {
	s, end := start(t)
	l, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var echo sync.WaitGroup
	echo.Go(func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		b := make([]byte, 1)
		for {
			if _, err := c.Read(b); err != nil {
				return
			}
			s.Note()
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	})
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	excite(s)
	var trips, timers []time.Duration
	b := make([]byte, 1)
	for range 500 {
		began := time.Now()
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(b); err != nil {
			t.Fatal(err)
		}
		s.Note()
		trips = append(trips, time.Since(began))
		began = time.Now()
		time.Sleep(20 * time.Microsecond)
		timers = append(timers, time.Since(began))
	}
	_ = c.Close()
	echo.Wait()
	end()
	slices.Sort(trips)
	slices.Sort(timers)
	if trip, timer := trips[len(trips)/2], timers[len(timers)/2]; max(trip, timer) > 5*time.Millisecond {
		t.Errorf("there and back took %v, a timer of 20 us %v", trip, timer)
	}
	if s.turns == 0 {
		t.Error("it never spun")
	}
}

// Claim: no event is lost that is told in the moment in which it falls asleep.
func TestWakes(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	late := New()
	late.Note() // after the last look, before it sleeps
	if !late.sleep(ctx) {
		t.Fatal("it sleeps though there was an event")
	}
	s, _ := start(t)
	runtime.GOMAXPROCS(2) // so that it sleeps at once each time, and both really run at once
	var told sync.WaitGroup
	for range 1000 {
		for range 3 {
			told.Go(s.Note)
		}
		told.Wait()
		asleep(t, s)
		if s.seenLate() {
			t.Fatal("it sleeps and has not seen an event")
		}
	}
}

// seenLate says that there are events which Run has not looked at. Preconditions: Run sleeps, and nobody tells of events.
func (s *Spinner) seenLate() bool { return s.seen != s.events.Load() }

// Claim: with more than one scheduler processor it does not spin.
func TestManyProcessors(t *testing.T) {
	s, end := start(t)
	runtime.GOMAXPROCS(2)
	excite(s)
	asleep(t, s)
	end()
	if s.turns != 0 {
		t.Errorf("%d turns with two scheduler processors", s.turns)
	}
}

// Claim: where others compute on the core, so that it does not come back at once when it is given away, it does not spin on.
func TestShared(t *testing.T) {
	var yields atomic.Int32
	s, end := startWith(t, func(s *Spinner) {
		s.yield = func() {
			yields.Add(1)
			time.Sleep(2 * foreignAfter)
		}
		for range memory { // it knows that spinning pays off
			s.policy.add(minGap)
		}
	})
	for late := time.Now().Add(patience); yields.Load() < 2; runtime.Gosched() {
		s.Note()
		if time.Now().After(late) {
			t.Fatalf("it gave the core away %d times", yields.Load())
		}
	}
	end()
	if s.rests == 0 {
		t.Error("it spun on")
	}
}

// Claim: Run ends with its ctx, while it sleeps, while it spins, and while events come all the time; and to tell of events afterwards does no harm.
func TestEnds(t *testing.T) {
	for _, state := range []string{"asleep", "spinning", "busy"} {
		s, end := start(t)
		excite(s)
		stop := make(chan struct{})
		var busy sync.WaitGroup
		switch state {
		case "asleep":
			asleep(t, s)
		case "busy":
			busy.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						s.Note()
						time.Sleep(time.Microsecond)
					}
				}
			})
		}
		end()
		close(stop)
		busy.Wait()
		for range 10 {
			s.Note()
		}
	}
	var none *Spinner
	none.Note()
}
