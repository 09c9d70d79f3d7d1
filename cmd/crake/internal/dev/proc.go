package dev

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/mgmt/api"
)

// process is a running process whose command line is that of a role.
type process struct {
	pid  int
	role string
	args []string // after the role
}

// flag gives the value of a flag of the command line, written as "--name value" or "--name=value".
func (p process) flag(name string) string {
	for i, a := range p.args {
		if v, ok := strings.CutPrefix(a, "--"+name+"="); ok {
			return v
		}
		if a == "--"+name && i+1 < len(p.args) {
			return p.args[i+1]
		}
	}
	return ""
}

// dir gives the directory of the cluster that the process belongs to, or "".
func (p process) dir() string {
	if d := p.flag("dir"); d != "" {
		return d
	}
	sock, ok := strings.CutPrefix(p.flag("mgmt"), "unix:")
	if !ok {
		return ""
	}
	if dir := filepath.Dir(filepath.Dir(sock)); "unix:"+sock == api.MgmtAddr(dir) {
		return dir
	}
	return ""
}

// roles in the order in which they are stopped.
var stopOrder = []string{"mgmt", "frontend", "compute", "drive"}

// readProcess reads a command line; ok is false when it is not one of a role of crake.
func readProcess(pid int) (p process, ok bool) {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return p, false
	}
	words := strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
	if len(words) < 3 || !slices.Contains(stopOrder, words[1]) {
		return p, false
	}
	p = process{pid: pid, role: words[1], args: words[2:]}
	return p, p.dir() != ""
}

// processes finds every running process of a role, of any cluster.
func processes() []process {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var out []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if p, ok := readProcess(pid); ok {
			out = append(out, p)
		}
	}
	return out
}

// RunningDirs gives the directories of the clusters whose mgmt runs on this machine.
func RunningDirs() []string {
	var out []string
	for _, p := range processes() {
		if p.role == "mgmt" && !slices.Contains(out, p.dir()) {
			out = append(out, p.dir())
		}
	}
	slices.Sort(out)
	return out
}

// DirOfMount gives the directory of the cluster that is mounted at path, or "".
func DirOfMount(path string) string {
	for _, p := range processes() {
		if p.role == "frontend" && p.flag("mount") == path {
			return p.dir()
		}
	}
	return ""
}

// processesOf gives the running processes of a cluster in the order in which they are stopped.
func processesOf(dir string) []process {
	out := slices.DeleteFunc(processes(), func(p process) bool { return p.dir() != dir })
	slices.SortStableFunc(out, func(a, b process) int {
		return slices.Index(stopOrder, a.role) - slices.Index(stopOrder, b.role)
	})
	return out
}

// signal sends a signal to the process if it is still the one that was found: a pidfd holds the process, then the
// command line is compared, so a process that has got the same id since is never hit.
func (p process) signal(sig unix.Signal) error {
	fd, err := unix.PidfdOpen(p.pid, 0)
	if err == unix.ESRCH {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if now, ok := readProcess(p.pid); !ok || now.role != p.role || !slices.Equal(now.args, p.args) {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != unix.ESRCH {
		return err
	}
	return nil
}

// sweep ends all processes of a cluster, mgmt first so that it restarts nothing, then frontends, computes, drives: politely, and
// by SIGKILL after patience. It gives what it ended. Dead mounts of the frontends are detached.
func sweep(ctx context.Context, dir string, patience time.Duration) ([]process, error) {
	var ended []process
	for _, role := range stopOrder {
		for end := time.Now().Add(patience); ; {
			alive := slices.DeleteFunc(processesOf(dir), func(p process) bool { return p.role != role })
			if len(alive) == 0 {
				break
			}
			late := time.Now().After(end)
			for _, p := range alive {
				known := slices.ContainsFunc(ended, func(q process) bool { return q.pid == p.pid })
				if known && !late {
					continue
				}
				sig := unix.SIGTERM
				if late {
					sig = unix.SIGKILL
				}
				if err := p.signal(sig); err != nil {
					return ended, fmt.Errorf("process %d (%s): %w", p.pid, p.role, err)
				}
				if !known {
					ended = append(ended, p)
				}
			}
			if late && time.Now().After(end.Add(patience)) {
				return ended, fmt.Errorf("process %d (%s) does not end, even by SIGKILL; it may wait for a device", alive[0].pid, role)
			}
			select {
			case <-ctx.Done():
				return ended, ctx.Err()
			case <-time.After(pollPause):
			}
		}
	}
	for _, p := range ended {
		if mnt := p.flag("mount"); p.role == "frontend" && mnt != "" {
			if err := detachDead(mnt); err != nil {
				return ended, err
			}
		}
	}
	return ended, nil
}

// mount is a line of the kernel's mount table.
type mount struct {
	source, fstype string
}

// mountAt finds what is mounted at path, the uppermost when there are several.
func mountAt(path string) (m mount, ok bool) {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	table, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return m, false
	}
	for line := range bytes.Lines(table) {
		f := strings.Fields(string(line))
		if len(f) >= 3 && unescape(f[1]) == path {
			m, ok = mount{source: unescape(f[0]), fstype: f[2]}, true
		}
	}
	return m, ok
}

// unescape undoes the octal escapes of the mount table.
func unescape(s string) string {
	for _, e := range []struct{ from, to string }{{`\040`, " "}, {`\011`, "\t"}, {`\012`, "\n"}, {`\134`, `\`}} {
		s = strings.ReplaceAll(s, e.from, e.to)
	}
	return s
}

// detachDead detaches a FUSE mount whose process is gone (a stat of it says "not connected"). Anything else at path is
// left as it is.
func detachDead(path string) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != unix.ENOTCONN {
		return nil
	}
	m, ok := mountAt(path)
	if !ok || m.fstype != "fuse.crake" {
		return nil
	}
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("the dead mount at %s: %w; try umount -l %s", path, err, path)
	}
	return nil
}
