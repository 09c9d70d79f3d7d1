// Package devcluster starts a real Crake cluster for a test or a measurement: the built binary, separate processes,
// drives as files in memory, a FUSE mount of its own. Close takes everything away again, whatever happened before.
package devcluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Times that bound what the harness waits for. They are no performance targets: a test of a target measures by itself.
const (
	commandTimeout = 2 * time.Minute // one crake command
	killTimeout    = 10 * time.Second
	// UpTimeout bounds how long WaitState waits by default.
	UpTimeout = 30 * time.Second
)

// Options say what cluster is wanted; zero values mean the defaults.
type Options struct {
	Drives     int      // default 6
	DriveSize  string   // default 256MiB
	Protection string   // default 4+2
	Compute    int      // default 2
	Buckets    int      // default 16
	Flags      []string // further flags of the first dev up, such as "--wire", "tcp"
	Parent     string   // directory in which the cluster's directory is made; default /dev/shm
}

// Cluster is a running (or stopped) cluster. Not safe for concurrent use, but for Crake, Processes and Kill.
type Cluster struct {
	Bin   string // the binary
	Dir   string // of the cluster, removed by Close
	Mount string // mount point, removed by Close
	opts  Options
	top   string // holds Dir, Mount and further mount points; "" once closed
}

// Process is a line of `crake dev ps -f json`.
type Process struct {
	Role    string `json:"role"`
	Name    string `json:"name"`
	PID     int    `json:"pid"`
	Cores   []int  `json:"cores"`
	Version string `json:"version"`
	State   string `json:"state"`
}

// New makes the directories of a cluster, and starts nothing.
func New(bin string, o Options) (*Cluster, error) {
	if o.Parent == "" {
		o.Parent = "/dev/shm"
	}
	top, err := os.MkdirTemp(o.Parent, "crake-e2e-")
	if err != nil {
		return nil, err
	}
	c := &Cluster{Bin: bin, Dir: filepath.Join(top, "c"), Mount: filepath.Join(top, "mnt"), opts: o, top: top}
	return c, os.Mkdir(c.Mount, 0o755)
}

// Scratch gives a directory outside of the mount that Close removes.
func (c *Cluster) Scratch() string {
	dir := filepath.Join(c.top, "scratch")
	_ = os.MkdirAll(dir, 0o755)
	return dir
}

// UpArgs gives the command line of dev up for this cluster.
func (c *Cluster) UpArgs() []string {
	o := c.opts
	args := []string{"dev", "up", "--dir", c.Dir, "--mount", c.Mount}
	add := func(flag string, v any, zero bool) {
		if !zero {
			args = append(args, flag, fmt.Sprint(v))
		}
	}
	if o.DriveSize == "" {
		o.DriveSize = "256MiB"
	}
	add("--drives", o.Drives, o.Drives == 0)
	add("--drive-size", o.DriveSize, false)
	add("--protection", o.Protection, o.Protection == "")
	add("--compute", o.Compute, o.Compute == 0)
	add("--buckets", o.Buckets, o.Buckets == 0)
	return append(args, o.Flags...)
}

// Up runs dev up: the first time with all flags, later with the directory and the mount point only.
func (c *Cluster) Up() error {
	args := c.UpArgs()
	if _, err := os.Stat(filepath.Join(c.Dir, "cluster.json")); err == nil {
		args = []string{"dev", "up", "--dir", c.Dir, "--mount", c.Mount}
	}
	_, err := c.Crake(args...)
	return err
}

// Down runs dev down and leaves the data.
func (c *Cluster) Down() error {
	_, err := c.Crake("dev", "down", "--dir", c.Dir)
	return err
}

// CommandError is a crake command that ended with a status other than 0.
type CommandError struct {
	Args   []string
	Status int
	Stderr string
	Err    error
}

// Error gives the command, the status and what it said.
func (e *CommandError) Error() string {
	return fmt.Sprintf("crake %s: %v: %s", strings.Join(e.Args, " "), e.Err, strings.TrimSpace(e.Stderr))
}

// Unwrap gives the cause.
func (e *CommandError) Unwrap() error { return e.Err }

// Crake runs the binary and gives its standard output.
func (c *Cluster) Crake(args ...string) ([]byte, error) {
	return Run(c.Bin, args...)
}

// Run runs a crake binary and gives its standard output. The error is a *CommandError.
func Run(bin string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, args...)
	cmd.Env = append(os.Environ(), "CRAKE_DIR=")
	cmd.WaitDelay = 2 * time.Second // a child that keeps the pipes open must not hold the test
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err == nil {
		return stdout.Bytes(), nil
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("no answer within %v: %w", commandTimeout, err)
	}
	return stdout.Bytes(), &CommandError{Args: args, Status: cmd.ProcessState.ExitCode(), Stderr: stderr.String(), Err: err}
}

// JSON runs a crake command with -f json and decodes what it prints.
func (c *Cluster) JSON(into any, args ...string) error {
	out, err := c.Crake(append(args, "--dir", c.Dir, "-f", "json")...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(out, into); err != nil {
		return fmt.Errorf("crake %s printed no JSON: %w: %.200s", strings.Join(args, " "), err, out)
	}
	return nil
}

// Processes gives the processes as dev ps tells them.
func (c *Cluster) Processes() ([]Process, error) {
	var ps []Process
	err := c.JSON(&ps, "dev", "ps")
	return ps, err
}

// Find gives the processes of a role, in order of name.
func (c *Cluster) Find(role string) ([]Process, error) {
	ps, err := c.Processes()
	if err != nil {
		return nil, err
	}
	var out []Process
	for _, p := range ps {
		if p.Role == role {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b Process) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Kill kills a process of the cluster by name with SIGKILL and gives the process id that it had.
func (c *Cluster) Kill(name string) (int, error) {
	ps, err := c.Processes()
	if err != nil {
		return 0, err
	}
	for _, p := range ps {
		if p.Name != name || p.PID == 0 {
			continue
		}
		if !c.owns(p.PID) {
			return 0, fmt.Errorf("dev ps names process %d as %s, which is none of this cluster", p.PID, name)
		}
		return p.PID, unix.Kill(p.PID, unix.SIGKILL)
	}
	return 0, fmt.Errorf("no running process %s", name)
}

// WaitState waits until every process that dev ps names satisfies ok.
func (c *Cluster) WaitState(timeout time.Duration, what string, ok func([]Process) bool) error {
	var last []Process
	var err error
	for end := time.Now().Add(timeout); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if last, err = c.Processes(); err == nil && ok(last) {
			return nil
		}
	}
	return fmt.Errorf("waited %v for %s: processes %+v, error %v", timeout, what, last, err)
}

// AllUp reports whether every process is up.
func AllUp(ps []Process) bool {
	for _, p := range ps {
		if p.State != "up" {
			return false
		}
	}
	return len(ps) > 0
}

// PIDs finds every process whose command line names the cluster's directory, this process aside.
func (c *Cluster) PIDs() []int {
	var out []int
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err == nil && pid != os.Getpid() && c.owns(pid) {
			out = append(out, pid)
		}
	}
	return out
}

// owns reports whether a process is one of this cluster: its binary runs, and a word of its command line lies in its directory.
func (c *Cluster) owns(pid int) bool {
	if c.top == "" {
		return false
	}
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil || strings.TrimSuffix(exe, " (deleted)") != c.Bin {
		return false
	}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return false
	}
	return bytes.Contains(line, []byte(c.top+"/"))
}

// KillAll kills every process of the cluster with SIGKILL, all as near to the same moment as it can: mgmt first, so
// that nothing is restarted, and waits until they are gone.
func (c *Cluster) KillAll() error {
	pids := c.PIDs()
	slices.SortFunc(pids, func(a, b int) int { return rank(a) - rank(b) })
	for _, pid := range pids {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	for end := time.Now().Add(killTimeout); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		rest := c.PIDs()
		if len(rest) == 0 {
			return nil
		}
		for _, pid := range rest { // one that was being started while we looked
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	return fmt.Errorf("processes %v outlived SIGKILL for %v", c.PIDs(), killTimeout)
}

// rank orders mgmt before the others.
func rank(pid int) int {
	line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if bytes.Contains(line, []byte("\x00mgmt\x00")) {
		return 0
	}
	return 1
}

// AddMount makes a further mount point, removed by Close. It mounts nothing.
func (c *Cluster) AddMount() (string, error) {
	return os.MkdirTemp(c.top, "mnt-")
}

// Mounts gives the mount points of the cluster that are in the kernel's table.
func (c *Cluster) Mounts() []string {
	table, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil
	}
	var out []string
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line)
		if len(f) > 2 && strings.HasPrefix(f[1], c.top+"/") {
			out = append(out, f[1])
		}
	}
	return out
}

// Logs gives the ends of all logs, for a test that failed.
func (c *Cluster) Logs(lines int) string {
	var b strings.Builder
	files, _ := filepath.Glob(filepath.Join(c.Dir, "log", "*"))
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil || len(text) == 0 {
			continue
		}
		all := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
		fmt.Fprintf(&b, "--- %s\n%s\n", filepath.Base(f), strings.Join(all[max(0, len(all)-lines):], "\n"))
	}
	return b.String()
}

// Close stops the cluster and removes all that it had. It says what did not stop by itself: an orderly `dev down` must
// leave no process and no mount, so either is an error, after it has been taken away by force.
func (c *Cluster) Close() error {
	if c.top == "" {
		return nil
	}
	var errs []error
	if _, err := os.Stat(filepath.Join(c.Dir, "cluster.json")); err == nil {
		if _, err := c.Crake("dev", "down", "--dir", c.Dir, "--wipe"); err != nil {
			errs = append(errs, err)
		} else {
			if pids := c.PIDs(); len(pids) > 0 {
				errs = append(errs, fmt.Errorf("dev down left processes %v", pids))
			}
			if m := c.Mounts(); len(m) > 0 {
				errs = append(errs, fmt.Errorf("dev down left mounts %v", m))
			}
			if _, err := os.Stat(c.Dir); err == nil {
				errs = append(errs, fmt.Errorf("dev down --wipe left %s", c.Dir))
			}
		}
	}
	if err := c.KillAll(); err != nil { // closes /dev/fuse, so that nothing hangs on the mount any more
		errs = append(errs, err)
	}
	for _, m := range c.Mounts() {
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m, err))
		}
	}
	if err := os.RemoveAll(c.top); err != nil {
		errs = append(errs, err)
	}
	c.top = ""
	return errors.Join(errs...)
}
