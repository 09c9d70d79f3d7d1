// Package pinned starts processes on one core each, so that a measurement knows what a core's worth of each can do, and reads
// how much of it they used. A process that it started never outlives its starter, however that ends.
package pinned

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Exec replaces this process by itself with other arguments, on one core; the runtime then sees one core from its start. It
// returns only when that failed.
func Exec(core int, args []string) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	runtime.LockOSThread() // what execs must be the thread that is pinned
	defer runtime.UnlockOSThread()
	if err := pinThread(core); err != nil {
		return err
	}
	return syscall.Exec(exe, append([]string{os.Args[0]}, args...), os.Environ())
}

func pinThread(core int) error {
	var set unix.CPUSet
	set.Set(core)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("cannot pin to core %d: %w", core, err)
	}
	return nil
}

// Process is a started process. Its methods are safe for concurrent use.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // of Wait; valid after done
}

// Start starts cmd on a core. It is killed when this process ends, and by Kill.
//
// The kernel binds both, the affinity that a child inherits and the signal at the parent's death, to the thread that forks. So a
// thread is kept for each child until that ends; a locked goroutine that returns takes its thread along.
func Start(cmd *exec.Cmd, core int) (*Process, error) {
	p := &Process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := pinThread(core); err != nil {
			started <- err
			return
		}
		if cmd.SysProcAttr == nil {
			cmd.SysProcAttr = &syscall.SysProcAttr{}
		}
		cmd.SysProcAttr.Pdeathsig = unix.SIGKILL
		// A group of its own: ctrl-C is for us, who then end it in order.
		cmd.SysProcAttr.Setpgid = true
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("%s: %w", cmd.Path, err)
	}
	return p, nil
}

// PID gives the process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err tells how it ended, as exec.Cmd.Wait does. Preconditions: Done is closed.
func (p *Process) Err() error { return p.err }

// KilledBy says whether a signal ended the process. Preconditions: Done is closed.
func (p *Process) KilledBy(sig syscall.Signal) bool {
	ws, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	return ok && ws.Signaled() && ws.Signal() == sig
}

// Used gives the processor time of the ended process and of its children. Preconditions: Done is closed.
func (p *Process) Used() time.Duration {
	return p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime()
}

// End asks the process to end and waits; after patience it kills it, which is an error, as is an exit with another status than 0.
func (p *Process) End(patience time.Duration) error {
	_ = p.signal(unix.SIGCONT)
	if err := p.signal(unix.SIGTERM); err != nil {
		return errors.Join(err, p.Kill())
	}
	select {
	case <-p.done:
		return p.err
	case <-time.After(patience):
		return errors.Join(fmt.Errorf("process %d (%s) did not end within %v of SIGTERM", p.PID(), p.cmd.Path, patience), p.Kill())
	}
}

// Kill kills the process, if it runs, and waits until it is gone.
func (p *Process) Kill() error {
	if err := p.signal(unix.SIGKILL); err != nil {
		return err
	}
	<-p.done
	return nil
}

// Pause stops the process where it is; Resume lets it go on.
func (p *Process) Pause() error { return p.signal(unix.SIGSTOP) }

// Resume lets a paused process go on.
func (p *Process) Resume() error { return p.signal(unix.SIGCONT) }

// signal sends a signal; to a process that has ended it does nothing.
func (p *Process) signal(sig syscall.Signal) error {
	err := p.cmd.Process.Signal(sig)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// CPU gives the processor time that all threads of a process have used so far, ended ones too. Unlike /proc/PID/stat, which counts
// ticks of 10 ms, it is exact. Time that the kernel spends for the process elsewhere (interrupts, its workers of block devices) is
// not in it.
func CPU(pid int) (time.Duration, error) {
	const schedClock = 2                         // CPUCLOCK_SCHED of the kernel's include/linux/posix-timers.h
	clock := int32(^uint32(pid)<<3) | schedClock // MAKE_PROCESS_CPUCLOCK
	var ts unix.Timespec
	if err := unix.ClockGettime(clock, &ts); err != nil {
		return 0, fmt.Errorf("clock of process %d: %w", pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

// Strays counts the threads of a process that may run on another core than the one given. The kernel's own threads of an io_uring
// are among a process's threads, and do not inherit its affinity.
func Strays(pid, core int) (int, error) {
	dir := fmt.Sprintf("/proc/%d/task", pid)
	tasks, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, t := range tasks {
		var tid int
		if _, err := fmt.Sscan(t.Name(), &tid); err != nil {
			continue
		}
		var set unix.CPUSet
		if err := unix.SchedGetaffinity(tid, &set); err != nil {
			continue // it has just ended
		}
		if set.Count() != 1 || !set.IsSet(core) {
			n++
		}
	}
	return n, nil
}
