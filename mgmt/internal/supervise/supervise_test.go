package supervise

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/wire/procfs"
)

// TestMain makes this binary play the processes that are supervised: "dummy MODE --name N --cluster C".
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "dummy" {
		dummy(os.Args[2])
	}
	os.Exit(m.Run())
}

func dummy(mode string) {
	switch mode {
	case "sleep":
		fmt.Println("sleeping")
		time.Sleep(time.Hour)
	case "stubborn": // does not mind SIGTERM
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("ready")
		time.Sleep(time.Hour)
	case "fail":
		fmt.Fprintln(os.Stderr, "some line")
		fmt.Fprintln(os.Stderr, "device is upside down")
		os.Exit(3)
	case "cores":
		c, err := procfs.AllowedCores()
		fmt.Println(c, err)
		time.Sleep(time.Hour)
	case "supervisor": // keeps one process running until it is killed
		run, _ := argValue(os.Args, "--run")
		cluster, _ := argValue(os.Args, "--of")
		s, err := New(Config{RunDir: run, LogDir: run, Identity: []string{"--cluster", cluster}, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
		if err != nil {
			panic(err)
		}
		go func() { _ = s.Start(context.Background(), dummySpec("a", cluster, "sleep")) }()
		_ = s.Run(context.Background())
	}
	os.Exit(0)
}

func dummySpec(name, cluster, mode string) Spec {
	return Spec{Name: name, Binary: "/proc/self/exe", Args: []string{"dummy", mode, "--name", name, "--cluster", cluster}}
}

type exit struct {
	name string
	pid  int
	how  string
}

type fixture struct {
	*Supervisor
	t       *testing.T
	dir     string
	cluster string
	ctx     context.Context
	mu      sync.Mutex
	exits   []exit // guarded by mu
}

func newFixture(t *testing.T) *fixture {
	f := &fixture{t: t, dir: t.TempDir(), cluster: fmt.Sprintf("test-%d-%d", os.Getpid(), time.Now().UnixNano())}
	t.Cleanup(func() { // whatever a failed test left
		all, _ := Scan([]string{"--cluster", f.cluster})
		for _, p := range all {
			_ = syscall.Kill(p.PID, syscall.SIGKILL)
		}
	})
	return f
}

// begin makes a supervisor and runs it; the returned function ends it and leaves its processes.
func (f *fixture) begin() (end func()) {
	f.t.Helper()
	s, err := New(Config{
		RunDir: f.dir, LogDir: f.dir, Identity: []string{"--cluster", f.cluster}, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		OnExit: func(name string, pid int, how string) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.exits = append(f.exits, exit{name, pid, how})
		},
	})
	if err != nil {
		f.t.Fatal(err)
	}
	f.Supervisor = s
	ctx, cancel := context.WithCancel(context.Background())
	f.ctx = ctx
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Run(ctx) }()
	end = func() { cancel(); <-done }
	f.t.Cleanup(end)
	return end
}

func (f *fixture) start(name, mode string, cores ...int) {
	f.t.Helper()
	spec := dummySpec(name, f.cluster, mode)
	spec.Cores = cores
	if err := f.Start(f.ctx, spec); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) pid(name string) int {
	f.t.Helper()
	f.until(name+" runs", func() bool { return f.Status()[name].PID != 0 })
	return f.Status()[name].PID
}

func (f *fixture) lastExits() []exit {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.exits)
}

func (f *fixture) log(name string) string {
	b, _ := os.ReadFile(filepath.Join(f.dir, name+".log"))
	return string(b)
}

func (f *fixture) until(what string, ok func() bool) {
	f.t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			f.t.Fatalf("not in time: %s; status %+v; exits %+v", what, f.Status(), f.lastExits())
		}
	}
}

// Claim: a process that is killed is seen to end at once and is started again; its exit tells how.
func TestRestart(t *testing.T) {
	f := newFixture(t)
	f.begin()
	f.start("a", "sleep")
	pid := f.pid("a")
	f.until("it speaks", func() bool { return strings.Contains(f.log("a"), "sleeping") })
	began := time.Now()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	f.until("exit seen", func() bool { return len(f.lastExits()) == 1 })
	if d := time.Since(began); d > time.Second {
		t.Errorf("exit seen after %v, want under a second", d)
	}
	if e := f.lastExits()[0]; e.pid != pid || e.name != "a" || e.how != "signal: killed: sleeping" {
		t.Errorf("exit %+v", e)
	}
	f.until("second run", func() bool { p := f.Status()["a"].PID; return p != 0 && p != pid })
	if st := f.Status()["a"]; st.Restarts != 1 {
		t.Errorf("restarts %d, want 1", st.Restarts)
	}
	if killed, err := f.Stop(t.Context(), "a", 5*time.Second); killed || err != nil {
		t.Errorf("stop: killed %v, %v", killed, err)
	}
	if all, _ := Scan([]string{"--cluster", f.cluster}); len(all) != 0 {
		t.Errorf("left running: %+v", all)
	}
	if _, err := os.Stat(filepath.Join(f.dir, "a.json")); !os.IsNotExist(err) {
		t.Errorf("record is left: %v", err)
	}
}

// Claim: one that fails each time gives its last words, and is tried again ever more slowly.
func TestBackoffAndLastWords(t *testing.T) {
	f := newFixture(t)
	f.begin()
	f.start("a", "fail")
	f.until("four exits", func() bool { return len(f.lastExits()) >= 4 })
	if h := f.lastExits()[0].how; h != "exit status 3: device is upside down" {
		t.Errorf("how = %q", h)
	}
	time.Sleep(300 * time.Millisecond)
	if n := len(f.lastExits()); n > 5 {
		t.Errorf("%d exits: no backoff", n)
	}
	if _, err := f.Stop(t.Context(), "a", time.Second); err != nil {
		t.Error(err)
	}
}

// Claim: a binary that cannot be started is reported and tried again, and does not stop the supervisor.
func TestNoBinary(t *testing.T) {
	f := newFixture(t)
	f.begin()
	spec := dummySpec("a", f.cluster, "sleep")
	spec.Binary = "/nonexistent/crake"
	if err := f.Start(f.ctx, spec); err != nil {
		t.Fatal(err)
	}
	f.until("exit", func() bool { return len(f.lastExits()) > 0 })
	if h := f.lastExits()[0].how; !strings.Contains(h, "/nonexistent/crake") || !strings.Contains(h, "no such file") {
		t.Errorf("how = %q", h)
	}
	f.start("a", "sleep") // the spec is repaired
	f.pid("a")
	if _, err := f.Stop(t.Context(), "a", 5*time.Second); err != nil {
		t.Error(err)
	}
}

// Claim: SIGTERM first, after the grace SIGKILL.
func TestStopKillsAfterGrace(t *testing.T) {
	f := newFixture(t)
	f.begin()
	f.start("a", "stubborn")
	f.until("ready", func() bool { return strings.Contains(f.log("a"), "ready") })
	began := time.Now()
	killed, err := f.Stop(t.Context(), "a", 300*time.Millisecond)
	if err != nil || !killed || time.Since(began) < 300*time.Millisecond {
		t.Errorf("killed %v, %v, after %v", killed, err, time.Since(began))
	}
}

// Claim: processes are pinned to their cores, in a session of their own, and our own threads are not.
func TestPinned(t *testing.T) {
	f := newFixture(t)
	f.begin()
	mine, err := procfs.AllowedCores()
	if err != nil {
		t.Fatal(err)
	}
	last := mine[len(mine)-1]
	f.start("a", "cores", last)
	f.until("it speaks", func() bool { return f.log("a") != "" })
	if want := fmt.Sprintf("[%d] <nil>\n", last); f.log("a") != want {
		t.Errorf("child has %q, want %q", f.log("a"), want)
	}
	if sid, err := unix.Getsid(f.pid("a")); err != nil || sid != f.pid("a") {
		t.Errorf("session %d, %v", sid, err)
	}
	if now, err := procfs.AllowedCores(); err != nil || !slices.Equal(now, mine) {
		t.Errorf("our cores became %v, %v", now, err)
	}
	if _, err := f.Stop(t.Context(), "a", 5*time.Second); err != nil {
		t.Error(err)
	}
}

// Claim: processes outlive their supervisor, killed or ended; the next one adopts them and sees them end.
func TestAdoptAfterKill(t *testing.T) {
	f := newFixture(t)
	// The supervisor is a process of its own and dies without a word.
	sup := exec.Command("/proc/self/exe", "dummy", "supervisor", "--run", f.dir, "--of", f.cluster)
	if err := sup.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	for end := time.Now().Add(10 * time.Second); pid == 0 && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if all, _ := Scan([]string{"--cluster", f.cluster}); len(all) == 1 && strings.Contains(f.log("a"), "sleeping") {
			pid = all[0].PID
		}
	}
	_ = sup.Process.Kill()
	_ = sup.Wait()
	if pid == 0 {
		t.Fatal("the process did not start")
	}
	for _, lostRecord := range []bool{false, true} {
		if lostRecord {
			if err := os.WriteFile(filepath.Join(f.dir, "a.json"), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		end := f.begin()
		f.start("a", "sleep")
		if got := f.pid("a"); got != pid || !f.Status()["a"].Adopted {
			t.Fatalf("record lost %v: pid %d runs, want %d adopted", lostRecord, got, pid)
		}
		if !lostRecord {
			end()
			if _, ok := startTime(pid); !ok {
				t.Fatal("it ended with its supervisor")
			}
		}
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	f.until("exit of the adopted", func() bool { e := f.lastExits(); return len(e) == 1 && e[0].pid == pid })
	f.until("new run", func() bool { p := f.Status()["a"].PID; return p != 0 && p != pid })
	if _, err := f.Stop(t.Context(), "a", 5*time.Second); err != nil {
		t.Error(err)
	}
}

// Claim: of two processes of one name the recorded one stays, the other is killed.
func TestAdoptDuplicates(t *testing.T) {
	f := newFixture(t)
	var cmds []*exec.Cmd
	for range 3 {
		c := exec.Command("/proc/self/exe", "dummy", "sleep", "--name", "a", "--cluster", f.cluster)
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		cmds = append(cmds, c)
		go func() { _ = c.Wait() }()
	}
	keep := cmds[1].Process.Pid
	start, _ := StartTime(keep)
	if err := writeRecord(f.dir, &record{Name: "a", PID: keep, Start: start, Boot: bootID()}); err != nil {
		t.Fatal(err)
	}
	f.until2(func() bool { all, _ := Scan([]string{"--cluster", f.cluster}); return len(all) == 3 })
	f.begin()
	f.start("a", "sleep")
	if got := f.pid("a"); got != keep {
		t.Fatalf("pid %d, want %d", got, keep)
	}
	f.until("others are gone", func() bool {
		all, _ := Scan([]string{"--cluster", f.cluster})
		return len(all) == 1 && all[0].PID == keep
	})
	if _, err := f.Stop(t.Context(), "a", 5*time.Second); err != nil {
		t.Error(err)
	}
}

func (f *fixture) until2(ok func() bool) {
	f.t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			f.t.Fatal("not in time")
		}
	}
}

// Claim: a stale record never makes us signal or adopt a foreign process.
func TestStaleRecord(t *testing.T) {
	f := newFixture(t)
	foreign := exec.Command("/proc/self/exe", "dummy", "sleep", "--name", "a", "--cluster", "another")
	if err := foreign.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = foreign.Process.Kill(); _ = foreign.Wait() }()
	pid := foreign.Process.Pid
	start, _ := StartTime(pid)
	if err := writeRecord(f.dir, &record{Name: "a", PID: pid, Start: start, Boot: bootID()}); err != nil {
		t.Fatal(err)
	}
	f.begin()
	f.start("a", "sleep")
	if got := f.pid("a"); got == pid {
		t.Fatal("adopted a foreign process")
	}
	if err := f.Kill("a", pid); err != nil {
		t.Fatal(err)
	}
	if err := f.Kill("b", f.pid("a")); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Stop(t.Context(), "a", 5*time.Second); err != nil {
		t.Error(err)
	}
	if _, ok := startTime(pid); !ok {
		t.Fatal("the foreign process was killed")
	}
	if e := f.lastExits(); len(e) != 1 || !strings.HasPrefix(e[0].how, "signal: terminated") {
		t.Fatalf("exits %+v: Kill with a wrong name killed", e)
	}
}

// Claim: a paused process is not started again, and resumes with Start.
func TestPause(t *testing.T) {
	f := newFixture(t)
	f.begin()
	f.start("a", "sleep")
	pid := f.pid("a")
	f.Pause("a")
	_ = syscall.Kill(pid, syscall.SIGKILL)
	f.until("exit", func() bool { return len(f.lastExits()) == 1 })
	time.Sleep(3 * firstBackoff)
	if p := f.Status()["a"].PID; p != 0 {
		t.Fatalf("pid %d was started while paused", p)
	}
	f.start("a", "sleep")
	f.pid("a")
	if _, err := f.Stop(t.Context(), "a", 5*time.Second); err != nil {
		t.Error(err)
	}
}

// Claim: a process whose arguments do not identify it is not started: it could never be found again.
func TestSpecMustIdentify(t *testing.T) {
	f := newFixture(t)
	f.begin()
	spec := dummySpec("a", "another", "sleep")
	if err := f.Start(f.ctx, spec); err == nil {
		t.Fatal("accepted")
	}
}

// Claim: a log that has grown too long is cut, and the writer's next line is in it.
func TestBoundLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.log")
	w, _, err := openLog(path)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	line := strings.Repeat("x", 1<<20-1) + "\n"
	for range maxLogBytes>>20 + 1 {
		if _, err := w.WriteString(line); err != nil {
			t.Fatal(err)
		}
	}
	if err := BoundLog(path); err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteString("next\n"); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil || string(b) != "next\n" {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	if st, err := os.Stat(path + ".1"); err != nil || st.Size() != maxLogBytes {
		t.Fatalf("%v, %v", st, err)
	}
	if got := lastWords(path, 1<<30); got != "next" {
		t.Fatalf("last words %q", got)
	}
}

func TestArgValue(t *testing.T) {
	args := strings.Fields("crake drive --name drive0 --proc=2 --empty")
	for flag, want := range map[string]string{"--name": "drive0", "--proc": "2"} {
		if v, ok := argValue(args, flag); !ok || v != want {
			t.Errorf("%s: %q, %v", flag, v, ok)
		}
	}
	for _, flag := range []string{"--empty", "--nam", "--other"} {
		if v, ok := argValue(args, flag); ok {
			t.Errorf("%s: %q", flag, v)
		}
	}
	if !matches(args, []string{"--name", "drive0", "--proc", "2"}) || matches(args, []string{"--name", strconv.Itoa(1)}) {
		t.Error("matches")
	}
}
