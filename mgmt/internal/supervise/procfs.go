package supervise

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Found is a living process that belongs to this cluster by its command line.
type Found struct {
	Name  string // value of --name
	PID   int
	Start uint64 // in clock ticks since the machine booted
	Args  []string
}

// argValue gives what follows flag in args, as "flag value" or "flag=value".
func argValue(args []string, flag string) (string, bool) {
	for i, a := range args {
		if a == flag && i+1 < len(args) {
			return args[i+1], true
		}
		if v, ok := strings.CutPrefix(a, flag+"="); ok {
			return v, true
		}
	}
	return "", false
}

// matches reports whether args hold all the flag-value pairs of identity.
func matches(args, identity []string) bool {
	for i := 0; i+1 < len(identity); i += 2 {
		if v, ok := argValue(args, identity[i]); !ok || v != identity[i+1] {
			return false
		}
	}
	return true
}

// Scan finds all living processes whose command line holds the identity, oldest first. Processes that end meanwhile are
// left out.
func Scan(identity []string) ([]Found, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var out []Found
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if f, ok := inspect(pid); ok && f.Name != "" && matches(f.Args, identity) {
			out = append(out, f)
		}
	}
	slices.SortFunc(out, func(a, b Found) int {
		switch {
		case a.Start != b.Start:
			return int(int64(a.Start - b.Start))
		default:
			return a.PID - b.PID
		}
	})
	return out, nil
}

// inspect reads what /proc says of a process; false when there is none, or it is a zombie.
func inspect(pid int) (Found, bool) {
	before, ok := startTime(pid)
	if !ok {
		return Found{}, false
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return Found{}, false
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxCmdline))
	if err != nil || len(b) == 0 {
		return Found{}, false
	}
	// The pid may have changed hands between the two reads.
	if after, ok := startTime(pid); !ok || after != before {
		return Found{}, false
	}
	args := strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
	name, _ := argValue(args, "--name")
	return Found{Name: name, PID: pid, Start: before, Args: args}, true
}

// startTime gives when a process was started, in clock ticks since boot; false when there is none, or it is a zombie.
func startTime(pid int) (uint64, bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false
	}
	// The second field is the command in parentheses and may hold anything, so count from the last parenthesis.
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return 0, false
	}
	f := strings.Fields(string(b[i+1:]))
	if len(f) < 20 || f[0] == "Z" || f[0] == "X" {
		return 0, false
	}
	t, err := strconv.ParseUint(f[19], 10, 64) // field 22 of the line
	return t, err == nil
}

// Alive reports whether the process of that pid that was started then still lives.
func Alive(pid int, start uint64) bool {
	t, ok := startTime(pid)
	return ok && t == start
}

// StartTime gives when a living process was started, in clock ticks since boot.
func StartTime(pid int) (uint64, bool) { return startTime(pid) }

// bootID tells boots of the machine apart: pids and start times of one mean nothing in another.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// UsersOf lists processes that use something below a mount point, as "pid (command)": those whose working directory,
// root, executable or open files lie there. For people, when a mount point is busy; at most limit.
func UsersOf(mount string, limit int) []string {
	var out []string
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil || len(out) >= limit {
			continue
		}
		dir := filepath.Join("/proc", e.Name())
		links := []string{filepath.Join(dir, "cwd"), filepath.Join(dir, "root"), filepath.Join(dir, "exe")}
		if fds, err := os.ReadDir(filepath.Join(dir, "fd")); err == nil {
			for _, fd := range fds {
				links = append(links, filepath.Join(dir, "fd", fd.Name()))
			}
		}
		if slices.ContainsFunc(links, func(l string) bool { return below(l, mount) }) {
			comm, _ := os.ReadFile(filepath.Join(dir, "comm")) // it may have ended: then without its name
			out = append(out, fmt.Sprintf("%s (%s)", e.Name(), strings.TrimSpace(string(comm))))
		}
	}
	return out
}

func below(link, mount string) bool {
	t, err := os.Readlink(link)
	return err == nil && (t == mount || strings.HasPrefix(t, mount+"/"))
}

// pidfd is a handle on one process that no reuse of its pid can confuse.
type pidfd struct{ f *os.File }

// openPidfd opens a handle on the process; syscall.ESRCH when there is none.
func openPidfd(pid int) (*pidfd, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("pidfd_open %d: %w", pid, err)
	}
	return &pidfd{os.NewFile(uintptr(fd), "pidfd")}, nil
}

// wait returns nil when the process has ended, an error when the handle was closed before.
func (p *pidfd) wait() error {
	rc, err := p.f.SyscallConn()
	if err != nil {
		return err
	}
	return rc.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		return err == nil && n > 0
	})
}

// signal sends a signal; a process that has ended already is no error.
func (p *pidfd) signal(sig unix.Signal) error {
	rc, err := p.f.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = rc.Control(func(fd uintptr) { serr = unix.PidfdSendSignal(int(fd), sig, nil, 0) })
	if errors.Is(serr, unix.ESRCH) {
		serr = nil
	}
	return errors.Join(err, serr)
}

func (p *pidfd) close() error { return p.f.Close() }
