package pinned

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/wire/procfs"
)

// childEnv makes this binary a parent that starts a process, says its id, and waits to be killed.
const childEnv = "PINNED_TEST_PARENT"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		all, err := procfs.AllowedCores()
		if err != nil {
			panic(err)
		}
		p, err := Start(exec.Command("sleep", "1000"), all[0])
		if err != nil {
			panic(err)
		}
		fmt.Println(p.PID())
		<-p.Done()
		return
	}
	os.Exit(m.Run())
}

func start(t *testing.T, core int, args ...string) *Process {
	t.Helper()
	p, err := Start(exec.Command(args[0], args[1:]...), core)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Kill() })
	return p
}

// Claim: a process runs on its core, and only there; threads elsewhere are seen.
func TestCore(t *testing.T) {
	all, err := procfs.AllowedCores()
	if err != nil {
		t.Fatal(err)
	}
	core := all[len(all)-1]
	p := start(t, core, "sleep", "1000")
	if n, err := Strays(p.PID(), core); err != nil || n != 0 {
		t.Errorf("%d threads are not on core %d: %v", n, core, err)
	}
	if n, err := Strays(p.PID(), core+1); err != nil || n != 1 {
		t.Errorf("%d threads are not on core %d: %v", n, core+1, err)
	}
	after, err := procfs.AllowedCores()
	if err != nil || len(after) != len(all) {
		t.Errorf("this process may use cores %v now, and could use %v before: %v", after, all, err)
	}
}

// Claim: a process does not outlive who started it, even one that is killed.
func TestDiesWithParent(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), childEnv+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(line, &pid); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(pid, 0) // readable when the process has ended
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(fds, 10_000); n != 1 {
		_ = unix.Kill(pid, unix.SIGKILL)
		t.Errorf("process %d outlives its parent: %v", pid, err)
	}
}

// Claim: End is for what ends by itself when asked to, and kills the rest; a paused process can be ended.
func TestEnd(t *testing.T) {
	all, err := procfs.AllowedCores()
	if err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	p := start(t, all[0], "sleep", "1000")
	if err := p.Pause(); err != nil {
		t.Fatal(err)
	}
	if err := p.End(10 * time.Second); !errors.As(err, &exit) { // sleep has no handler of SIGTERM
		t.Errorf("End of a sleep: %v", err)
	}
	if !p.KilledBy(unix.SIGTERM) || p.KilledBy(unix.SIGKILL) {
		t.Error("it was not SIGTERM that ended it")
	}
	p = startReady(t, all[0], "trap 'exit 0' TERM; echo ready; while :; do :; done")
	if err := p.Pause(); err != nil {
		t.Fatal(err)
	}
	for state(t, p.PID()) != "T" {
		time.Sleep(time.Millisecond)
	}
	if err := p.End(10 * time.Second); err != nil {
		t.Errorf("End of a paused process that obeys: %v", err)
	}
	p = startReady(t, all[0], "trap '' TERM; echo ready; while :; do :; done")
	if err := p.End(50 * time.Millisecond); err == nil {
		t.Error("End of a process that ignores SIGTERM is no error")
	}
	select {
	case <-p.Done():
	default:
		t.Error("it lives on")
	}
	if err := p.Kill(); err != nil {
		t.Errorf("Kill of a process that has ended: %v", err)
	}
	if _, err := Start(exec.Command("/nonexistent/program"), all[0]); err == nil || !strings.Contains(err.Error(), "/nonexistent/program") {
		t.Errorf("start of nothing: %v", err)
	}
}

// startReady starts a shell script and waits for its first line.
func startReady(t *testing.T, core int, script string) *Process {
	t.Helper()
	cmd := exec.Command("sh", "-c", script)
	out, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout = w
	p, err := Start(cmd, core)
	_ = w.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Kill() })
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return p
}

// Claim: CPU counts what a process works, and nothing while it is paused.
func TestCPU(t *testing.T) {
	all, err := procfs.AllowedCores()
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, all[0], "dd", "if=/dev/zero", "of=/dev/null", "bs=1M", "status=none") // most of its time is the kernel's
	read := func() time.Duration {
		d, err := CPU(p.PID())
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	for read() < 50*time.Millisecond { // it must get there
		time.Sleep(time.Millisecond)
	}
	if err := p.Pause(); err != nil {
		t.Fatal(err)
	}
	for state(t, p.PID()) != "T" { // the signal needs a moment to arrive
		time.Sleep(time.Millisecond)
	}
	before := read()
	time.Sleep(20 * time.Millisecond)
	if now := read(); now != before {
		t.Errorf("a paused process worked for %v", now-before)
	}
	if err := p.Resume(); err != nil {
		t.Fatal(err)
	}
	for read() < before+50*time.Millisecond {
		time.Sleep(time.Millisecond)
	}
	if err := p.Pause(); err != nil {
		t.Fatal(err)
	}
	for state(t, p.PID()) != "T" {
		time.Sleep(time.Millisecond)
	}
	last := read()
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if got := p.Used(); got < last-20*time.Millisecond || got > last+20*time.Millisecond { // the end of a process costs some, too
		t.Errorf("it used %v by its clock, and %v by its end", last, got)
	}
	if _, err := CPU(p.PID()); err == nil {
		t.Error("a process that has ended has a clock")
	}
}

// state gives the state of a process as the kernel writes it; T is stopped.
func state(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	return f[0]
}
