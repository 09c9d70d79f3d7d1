package mgmt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/mgmt/api"
	"github.com/crakefs/crake/mgmt/internal/supervise"
)

// Limits of the keeper.
const (
	// keeperBackoff and keeperMaxBackoff: a crashed worker is back at once; computes bear its absence only as long as
	// their lease (see doc.go), so even one that crashes again and again is tried every second.
	keeperBackoff    = 20 * time.Millisecond
	keeperMaxBackoff = time.Second
	// keeperCalm is how long a worker must have run for the next restart to be prompt again.
	keeperCalm = 10 * time.Second
	// pingEvery and pingPatience: a worker whose API does not answer for so long hangs and is killed. While it hangs, computes
	// stop serving after half a lease; a worker that was only slow is back within a second of being killed, so the error
	// of killing costs less than that of waiting. startPatience is for one that has not come up yet: etcd may have a
	// log to replay on a slow disk, and that must not be cut short again and again.
	pingEvery     = time.Second
	pingPatience  = 8 * time.Second
	startPatience = 90 * time.Second
)

// keeper starts the worker and starts it again. It is the parent of all that the worker leaves behind when it dies
// (child subreaper), so that no ended process stays as a zombie.
type keeper struct {
	c     *Config
	exits chan waitStatus // every child that has ended
}

type waitStatus struct {
	pid int
	ws  syscall.WaitStatus
}

func runKeeper(ctx context.Context, c *Config) error {
	for _, d := range []string{api.RunDir(c.Dir), api.LogDir(c.Dir)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	// A first look in this process, so that a bad file is one line on the terminal.
	if _, err := api.ReadClusterFile(c.Dir); err != nil {
		return err
	}
	lock, err := takeLock(api.KeeperLock(c.Dir))
	if err != nil {
		return fmt.Errorf("mgmt runs already for %s: %w", c.Dir, err)
	}
	defer lock.Close()
	if err := errors.Join(lock.Truncate(0), writePID(lock)); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl: %w", err)
	}
	k := &keeper{c: c, exits: make(chan waitStatus, 16)}
	chld := make(chan os.Signal, 1)
	signal.Notify(chld, syscall.SIGCHLD)
	defer signal.Stop(chld)
	reapCtx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); k.reap(reapCtx, chld) }()
	defer func() { stop(); <-done }()
	return k.loop(ctx)
}

// reap collects children that have ended until ctx ends.
func (k *keeper) reap(ctx context.Context, chld <-chan os.Signal) {
	// The tick is for a signal that came before we listened.
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		for {
			var ws syscall.WaitStatus
			pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
			if err == syscall.EINTR {
				continue
			}
			if pid <= 0 || err != nil {
				break
			}
			select {
			case k.exits <- waitStatus{pid, ws}:
			case <-ctx.Done():
				return
			}
		}
		select {
		case <-chld:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (k *keeper) loop(ctx context.Context) error {
	backoff := keeperBackoff
	up := false
	if pid, ok := k.adoptable(); ok {
		up = true
		k.c.Log.Info("mgmt runs without a keeper; keeping it from now on", "pid", pid)
		if err := k.watchForeign(ctx, pid); err != nil || ctx.Err() != nil || stopped(k.c.Dir) {
			return err
		}
	}
	for ctx.Err() == nil {
		began := time.Now()
		ws, ready, err := k.runWorker(ctx)
		up = up || ready
		switch {
		case err != nil:
			return err
		case ctx.Err() != nil, stopped(k.c.Dir):
			return nil
		case !up:
			return startError(k.c.Dir, ws)
		}
		if time.Since(began) > keeperCalm {
			backoff = keeperBackoff
		}
		k.c.Log.Error("mgmt ended, starting it again", "status", int(ws), "signal", ws.Signal(), "in", backoff)
		select {
		case <-time.After(backoff):
		case <-ctx.Done():
		}
		backoff = min(2*backoff, keeperMaxBackoff)
	}
	return nil
}

// errorFile is where a worker that cannot start leaves the reason for its keeper.
func errorFile(dir string) string { return filepath.Join(api.RunDir(dir), "mgmt.error") }

// startError gives the reason why a worker did not start.
func startError(dir string, ws syscall.WaitStatus) error {
	if b, err := os.ReadFile(errorFile(dir)); err == nil && len(b) > 0 {
		return errors.New(strings.TrimSpace(string(b)))
	}
	if ws.Signaled() {
		return fmt.Errorf("mgmt was ended by signal %v before it was up", ws.Signal())
	}
	return fmt.Errorf("mgmt ended with status %d before it was up", ws.ExitStatus())
}

// runWorker starts a worker and waits for its end; ready tells whether it came up. When ctx ends, the worker is
// asked to end.
func (k *keeper) runWorker(ctx context.Context) (ws syscall.WaitStatus, ready bool, err error) {
	exe := k.c.Executable
	if exe == "" {
		exe = "/proc/self/exe" // our own version, also when the file was replaced
	}
	if err := os.Remove(errorFile(k.c.Dir)); err != nil && !os.IsNotExist(err) {
		return 0, false, err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, false, err
	}
	defer null.Close()
	argv := []string{"crake", "mgmt", "--dir", k.c.Dir, "--worker"}
	pid, err := syscall.ForkExec(exe, argv, &syscall.ProcAttr{
		Dir: "/", Env: os.Environ(), Files: []uintptr{null.Fd(), os.Stdout.Fd(), os.Stderr.Fd()},
		Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, false, fmt.Errorf("%s: %w", exe, err)
	}
	health := newHealthCheck(k.c.Dir, pid)
	defer health.close()
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	asked := ctx.Done()
	for {
		select {
		case e := <-k.exits:
			if e.pid == pid {
				up, _ := workerPID(k.c.Dir)
				return e.ws, up == pid, nil
			}
		case <-asked:
			asked = nil
			_ = syscall.Kill(pid, syscall.SIGTERM) // it is our child and not reaped: the pid is its own
		case <-tick.C:
			if health.hangs() {
				k.c.Log.Error("mgmt does not answer and is killed", "pid", pid)
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}
}

// stoppedMark is in the worker's lock file after the orderly stop of the cluster: then mgmt is not wanted any more. A worker
// that ends in any other way, even politely because somebody sent it SIGTERM, is started again.
const stoppedMark = "stopped"

func stopped(dir string) bool {
	b, err := os.ReadFile(api.WorkerLock(dir))
	return err == nil && strings.TrimSpace(string(b)) == stoppedMark
}

// adoptable finds a worker whose keeper has died.
func (k *keeper) adoptable() (int, bool) {
	if !api.Locked(api.WorkerLock(k.c.Dir)) {
		return 0, false
	}
	return workerPID(k.c.Dir)
}

// watchForeign waits for the end of a worker that is not our child.
func (k *keeper) watchForeign(ctx context.Context, pid int) error {
	start, ok := supervise.StartTime(pid)
	if !ok {
		return nil
	}
	tick := time.NewTicker(keeperBackoff)
	defer tick.Stop()
	for supervise.Alive(pid, start) {
		select {
		case <-tick.C:
		case <-k.exits:
		case <-ctx.Done():
			return syscall.Kill(pid, syscall.SIGTERM)
		}
	}
	return nil
}

// healthCheck tells whether the worker's API answers.
type healthCheck struct {
	client *api.Client
	dir    string
	pid    int       // of the worker
	up     bool      // it has come up
	last   time.Time // of the last answer
}

func newHealthCheck(dir string, pid int) *healthCheck {
	return &healthCheck{client: api.Open(dir), dir: dir, pid: pid, last: time.Now()}
}

func (h *healthCheck) close() { h.client.Close() }

func (h *healthCheck) ping() bool {
	ctx, cancel := context.WithTimeout(context.Background(), pingEvery)
	defer cancel()
	return h.client.Ping(ctx) == nil
}

// hangs asks once; true when there was no answer for too long.
func (h *healthCheck) hangs() bool {
	if h.ping() {
		h.last = time.Now()
	}
	if pid, ok := workerPID(h.dir); !h.up && ok && pid == h.pid {
		h.up, h.last = true, time.Now()
	}
	if !h.up {
		return time.Since(h.last) > startPatience
	}
	return time.Since(h.last) > pingPatience
}

// writePID notes in a lock file who has the lock.
func writePID(lock *os.File) error {
	_, err := fmt.Fprintf(lock, "%d\n", os.Getpid())
	return err
}

// takeLock takes the lock on a file, or fails at once when another process has it. Closing the file gives it back.
func takeLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	lk := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lk); err != nil {
		return nil, errors.Join(fmt.Errorf("%s is locked: %w", path, err), f.Close())
	}
	return f, nil
}
