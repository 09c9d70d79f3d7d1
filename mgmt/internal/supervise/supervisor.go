package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Config configures a Supervisor. All fields are immutable.
type Config struct {
	RunDir string // records of running processes
	LogDir string // NAME.log
	// Identity are flag-value pairs that the command line of every process of this cluster holds; with "--name NAME" they
	// prove that a process is one of ours. No process that lacks them is ever signalled.
	Identity []string
	// OnExit is called when a process has ended, from its goroutine; it must not call back into the Supervisor.
	OnExit func(name string, pid int, how string)
	Log    *slog.Logger
}

// Spec says how a process is started. Args must hold the identity and "--name NAME".
type Spec struct {
	Name   string
	Binary string
	Args   []string
	Cores  []int // to pin it to; empty: not pinned
	// Before is called before each start, when not nil; an error counts as a failed start.
	Before func() error
}

// Status is how a process is.
type Status struct {
	Name      string
	PID       int // 0: does not run
	StartedAt time.Time
	Cores     []int
	Restarts  int    // starts after an exit, since this supervisor began
	LastExit  string // how the last run ended; "" when none has
	Adopted   bool   // was running before this supervisor
}

// Supervisor keeps processes running that outlive it. All methods but Run are safe for concurrent use.
type Supervisor struct {
	cfg   Config
	found map[string][]Found // living processes of an earlier supervisor; immutable after New

	mu    sync.Mutex
	slots map[string]*slot // guarded by mu
	runCh chan *slot       // new slots on their way to Run
}

// slot is the place of one process. Its goroutine is in serve.
type slot struct {
	name string
	wake chan struct{} // the wish has changed; capacity 1
	gone chan struct{} // closed when serve has returned

	// guarded by Supervisor.mu

	spec   Spec
	want   wish
	st     Status
	log    int64  // where the output of the run begins
	fd     *pidfd // of the run; nil when there is none
	exited chan struct{}
	child  bool // ours to reap
}

type wish int

const (
	wantRun   wish = iota // start it, and again when it ends
	wantPause             // leave it, do not start it again
	wantGone              // leave the slot when it has ended
)

// New looks for processes of an earlier supervisor; the next Start of their name adopts them.
func New(cfg Config) (*Supervisor, error) {
	s := &Supervisor{cfg: cfg, found: map[string][]Found{}, slots: map[string]*slot{}, runCh: make(chan *slot)}
	all, err := Scan(cfg.Identity)
	if err != nil {
		return nil, err
	}
	for _, f := range all {
		s.found[f.Name] = append(s.found[f.Name], f)
	}
	return s, nil
}

// Found gives the processes that were running when the supervisor began.
func (s *Supervisor) Found() map[string][]Found { return s.found }

// Run starts and watches processes until ctx ends; it leaves them running then.
func (s *Supervisor) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	tick := time.NewTicker(logCheckEvery)
	defer tick.Stop()
	for {
		select {
		case sl := <-s.runCh:
			wg.Go(func() { s.serve(ctx, sl) })
		case <-tick.C:
			s.boundLogs()
		case <-ctx.Done():
			return nil
		}
	}
}

func (s *Supervisor) boundLogs() {
	s.mu.Lock()
	var names []string
	for n := range s.slots {
		names = append(names, n)
	}
	s.mu.Unlock()
	for _, n := range names {
		if err := BoundLog(s.logPath(n)); err != nil {
			s.cfg.Log.Warn("cannot bound a log", "name", n, "err", err)
		}
	}
}

func (s *Supervisor) logPath(name string) string { return filepath.Join(s.cfg.LogDir, name+".log") }

// Start wants a process to run from now on. For one that runs already only the spec of its next start is changed.
// Run must be running, or ctx must end.
func (s *Supervisor) Start(ctx context.Context, spec Spec) error {
	args := append([]string{spec.Binary}, spec.Args...)
	if name, _ := argValue(args, "--name"); name != spec.Name || !matches(args, s.cfg.Identity) {
		return fmt.Errorf("supervise %s: its arguments do not identify it", spec.Name)
	}
	s.mu.Lock()
	sl := s.slots[spec.Name]
	fresh := sl == nil
	if fresh {
		sl = &slot{name: spec.Name, wake: make(chan struct{}, 1), gone: make(chan struct{}), st: Status{Name: spec.Name}}
		s.slots[spec.Name] = sl
	}
	if sl.want == wantGone {
		s.mu.Unlock()
		return fmt.Errorf("supervise %s: it is being stopped", spec.Name)
	}
	sl.spec, sl.want = spec, wantRun
	s.mu.Unlock()
	sl.nudge()
	if !fresh {
		return nil
	}
	select {
	case s.runCh <- sl:
		return nil
	case <-ctx.Done():
		s.mu.Lock()
		delete(s.slots, spec.Name)
		s.mu.Unlock()
		return ctx.Err()
	}
}

func (sl *slot) nudge() {
	select {
	case sl.wake <- struct{}{}:
	default:
	}
}

// Pause leaves a process running but does not start it again when it ends; Start resumes.
func (s *Supervisor) Pause(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sl := s.slots[name]; sl != nil && sl.want == wantRun {
		sl.want = wantPause
		sl.nudge()
	}
}

// Stop ends a process for good: SIGTERM, after grace SIGKILL. It returns when it has ended (nil, also when it needed
// SIGKILL: killed says so), or when ctx ends or the process does not vanish.
func (s *Supervisor) Stop(ctx context.Context, name string, grace time.Duration) (killed bool, err error) {
	s.mu.Lock()
	sl := s.slots[name]
	if sl == nil {
		s.mu.Unlock()
		return false, nil
	}
	sl.want = wantGone
	sl.signal(unix.SIGTERM)
	s.mu.Unlock()
	sl.nudge()
	if waited, err := waitFor(ctx, sl.gone, grace); waited || err != nil {
		return false, err
	}
	s.mu.Lock()
	sl.signal(unix.SIGKILL)
	s.mu.Unlock()
	waited, err := waitFor(ctx, sl.gone, killWait)
	if err == nil && !waited {
		err = fmt.Errorf("%s has not ended %v after SIGKILL: it hangs in the kernel", name, killWait)
	}
	return true, err
}

func waitFor(ctx context.Context, done <-chan struct{}, d time.Duration) (bool, error) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
		return true, nil
	case <-t.C:
		return false, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// signal sends to the current run, if there is one. Preconditions: Supervisor.mu is held.
func (sl *slot) signal(sig unix.Signal) {
	if sl.fd != nil {
		_ = sl.fd.signal(sig) // it fails only when the process is gone, and that is noticed elsewhere
	}
}

// Exited gives a channel that is closed when the current run ends, or nil when there is none.
func (s *Supervisor) Exited(name string) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sl := s.slots[name]; sl != nil && sl.fd != nil {
		return sl.exited
	}
	return nil
}

// Kill kills a run at once, by SIGKILL, if that pid is still a process of that name of this cluster. It is started again if
// it is wanted.
func (s *Supervisor) Kill(name string, pid int) error {
	fd, err := openPidfd(pid)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer fd.close()
	// The handle was opened before the look, so what was looked at is what is killed.
	f, ok := inspect(pid)
	if !ok || f.Name != name || !matches(f.Args, s.cfg.Identity) {
		return nil
	}
	return fd.signal(unix.SIGKILL)
}

// StopFound ends what New found running under a name that nothing is started for: SIGTERM, after grace SIGKILL.
func (s *Supervisor) StopFound(ctx context.Context, name string, grace time.Duration) error {
	var errs []error
	for _, f := range s.found[name] {
		fd, err := openPidfd(f.PID)
		if err != nil || !Alive(f.PID, f.Start) {
			if fd != nil {
				_ = fd.close()
			}
			continue // it has ended
		}
		errs = append(errs, stopForeign(ctx, fd, grace))
		_ = os.Remove(recordPath(s.cfg.RunDir, name))
	}
	return errors.Join(errs...)
}

func stopForeign(ctx context.Context, fd *pidfd, grace time.Duration) error {
	defer fd.close()
	if err := fd.signal(unix.SIGTERM); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = fd.wait() }() // ends with fd
	waited, err := waitFor(ctx, ended, grace)
	if waited || err != nil {
		return err
	}
	if err := fd.signal(unix.SIGKILL); err != nil {
		return err
	}
	_, err = waitFor(ctx, ended, killWait)
	return err
}

// Status tells how all processes are, by name.
func (s *Supervisor) Status() map[string]Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[string]Status, len(s.slots))
	for n, sl := range s.slots {
		st := sl.st
		st.Cores = slices.Clone(st.Cores)
		out[n] = st
	}
	return out
}

// serve is the life of a slot.
func (s *Supervisor) serve(ctx context.Context, sl *slot) {
	defer func() {
		s.mu.Lock()
		delete(s.slots, sl.name)
		s.mu.Unlock()
		close(sl.gone)
	}()
	backoff := time.Duration(0)
	s.adopt(sl)
	for {
		if sl.fd == nil && !s.awaitWish(ctx, sl, backoff) {
			return
		}
		began := time.Now()
		how, err := s.runOnce(ctx, sl)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			how = "did not start: " + err.Error()
		}
		s.mu.Lock()
		pid := sl.st.PID
		sl.st.PID, sl.st.LastExit = 0, how
		want := sl.want
		s.mu.Unlock()
		s.cfg.Log.Info("process ended", "name", sl.name, "pid", pid, "how", how, "wanted", want == wantRun)
		if s.cfg.OnExit != nil {
			s.cfg.OnExit(sl.name, pid, how)
		}
		if time.Since(began) >= calmAfter {
			backoff = 0
		}
		backoff = min(max(backoff*2, firstBackoff), maxBackoff)
	}
}

// awaitWish waits until the process should run and the backoff is over; false: the slot has to go.
func (s *Supervisor) awaitWish(ctx context.Context, sl *slot, backoff time.Duration) bool {
	t := time.NewTimer(backoff)
	defer t.Stop()
	over := backoff == 0
	for {
		s.mu.Lock()
		want := sl.want
		s.mu.Unlock()
		if want == wantGone || ctx.Err() != nil {
			return false
		}
		if want == wantRun && over {
			return true
		}
		select {
		case <-t.C:
			over = true
		case <-sl.wake:
		case <-ctx.Done():
		}
	}
}

// runOnce starts a run, if none was adopted, and waits for its end.
func (s *Supervisor) runOnce(ctx context.Context, sl *slot) (how string, err error) {
	if sl.fd == nil { // else adopted; only this goroutine changes fd
		if err := s.start(sl); err != nil {
			return "", err
		}
	}
	fd := sl.fd
	defer func() {
		s.mu.Lock()
		close(sl.exited)
		sl.fd = nil
		s.mu.Unlock()
		err = errors.Join(err, fd.close())
	}()
	stop := context.AfterFunc(ctx, func() { _ = fd.f.SetReadDeadline(time.Unix(1, 0)) }) // makes wait return
	defer stop()
	if err := fd.wait(); err != nil {
		return "", fmt.Errorf("cannot watch it: %w", err)
	}
	how = s.reap(sl)
	if err := os.Remove(recordPath(s.cfg.RunDir, sl.name)); err != nil && !os.IsNotExist(err) {
		s.cfg.Log.Warn("cannot remove a record", "name", sl.name, "err", err)
	}
	return how, nil
}

// reap says how the run ended. It has ended already.
func (s *Supervisor) reap(sl *slot) string {
	how := "ended"
	if sl.child {
		var ws syscall.WaitStatus
		for {
			pid, err := syscall.Wait4(sl.st.PID, &ws, 0, nil)
			if err == syscall.EINTR {
				continue
			}
			if pid == sl.st.PID && err == nil {
				how = describe(ws)
			}
			break
		}
	}
	if w := lastWords(s.logPath(sl.name), sl.log); w != "" {
		how += ": " + w
	}
	return how
}

func describe(ws syscall.WaitStatus) string {
	switch {
	case ws.Signaled():
		return "signal: " + ws.Signal().String()
	default:
		return fmt.Sprintf("exit status %d", ws.ExitStatus())
	}
}

// start starts a run.
func (s *Supervisor) start(sl *slot) error {
	s.mu.Lock()
	spec := sl.spec
	s.mu.Unlock()
	if spec.Before != nil {
		if err := spec.Before(); err != nil {
			return err
		}
	}
	log, at, err := openLog(s.logPath(sl.name))
	if err != nil {
		return err
	}
	defer log.Close()
	pid, err := spawn(&spec, log)
	if err != nil {
		return fmt.Errorf("%s: %w", spec.Binary, err)
	}
	// It is our child and not reaped, so its pid is its own, even if it has ended already.
	fd, err := openPidfd(pid)
	if err != nil {
		_ = syscall.Kill(pid, syscall.SIGKILL)
		_, _ = syscall.Wait4(pid, nil, 0, nil)
		return err
	}
	start, _ := startTime(pid) // not known when it has ended already; then its record is of no use
	now := time.Now()
	rec := &record{Name: sl.name, PID: pid, Start: start, Boot: bootID(), StartedAt: now, LogOffset: at, Cores: spec.Cores, Binary: spec.Binary}
	if err := writeRecord(s.cfg.RunDir, rec); err != nil {
		// Not needed to find it again: the scan of command lines does that too.
		s.cfg.Log.Warn("cannot write a record", "name", sl.name, "err", err)
	}
	s.mu.Lock()
	if sl.st.LastExit != "" {
		sl.st.Restarts++
	}
	s.take(sl, fd, rec, true)
	s.mu.Unlock()
	s.cfg.Log.Info("process started", "name", sl.name, "pid", pid, "cores", spec.Cores)
	return nil
}

// take notes the run of a slot. Preconditions: mu is held.
func (s *Supervisor) take(sl *slot, fd *pidfd, r *record, child bool) {
	sl.fd, sl.child, sl.log, sl.exited = fd, child, r.LogOffset, make(chan struct{})
	sl.st.PID, sl.st.StartedAt, sl.st.Cores, sl.st.Adopted = r.PID, r.StartedAt, r.Cores, !child
	if sl.want == wantGone { // Stop came while we started
		sl.signal(unix.SIGTERM)
	}
}

// adopt takes over the run of an earlier supervisor, if one lives: the one that was recorded, else the newest. Others of
// the name are killed: only one may run.
func (s *Supervisor) adopt(sl *slot) {
	all := s.found[sl.name]
	if len(all) == 0 {
		return
	}
	pick := all[len(all)-1]
	rec, ok := readRecord(s.cfg.RunDir, sl.name)
	if ok {
		for _, f := range all {
			if f.PID == rec.PID && f.Start == rec.Start {
				pick = f
			}
		}
	}
	for _, f := range all {
		if f.PID != pick.PID {
			s.cfg.Log.Warn("a second process of one name is killed", "name", sl.name, "pid", f.PID)
			if err := s.Kill(sl.name, f.PID); err != nil {
				s.cfg.Log.Error("cannot kill it", "name", sl.name, "pid", f.PID, "err", err)
			}
		}
	}
	fd, err := openPidfd(pick.PID)
	if err != nil || !Alive(pick.PID, pick.Start) {
		if fd != nil {
			_ = fd.close()
		}
		return // it has ended since
	}
	if !ok || rec.PID != pick.PID || rec.Start != pick.Start {
		rec = &record{Name: sl.name, PID: pick.PID, Start: pick.Start, Boot: bootID(), StartedAt: time.Now()}
		if st, err := os.Stat(s.logPath(sl.name)); err == nil {
			rec.LogOffset = st.Size()
		}
		if err := writeRecord(s.cfg.RunDir, rec); err != nil {
			s.cfg.Log.Warn("cannot write a record", "name", sl.name, "err", err)
		}
	}
	s.mu.Lock()
	s.take(sl, fd, rec, false)
	s.mu.Unlock()
	s.cfg.Log.Info("process adopted", "name", sl.name, "pid", pick.PID)
}
