package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/crakefs/crake/bench/internal/driveload"
	"github.com/crakefs/crake/bench/internal/fio"
	"github.com/crakefs/crake/bench/internal/pinned"
	"github.com/crakefs/crake/wire/procfs"
)

// TestMain makes this binary the echo, as main does.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == echoCommand {
		exit(echoMain(os.Args[2], os.Args[3] == "true"))
	}
	os.Exit(m.Run())
}

// buildCrake gives the binary under test.
func buildCrake(t *testing.T) string {
	t.Helper()
	if bin := os.Getenv("CRAKE_BIN"); bin != "" {
		return bin
	}
	bin := filepath.Join(t.TempDir(), "crake")
	cmd := exec.Command("go", "build", "-ldflags", "-s -w", "-o", bin, "../../cmd/crake")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return bin
}

func testConfig(t *testing.T, bin string) *config {
	t.Helper()
	if err := fio.Installed(); err != nil {
		t.Fatal(err)
	}
	all, err := procfs.AllowedCores()
	if err != nil {
		t.Fatal(err)
	}
	ram, err := os.MkdirTemp("/dev/shm", "crake-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if left, err := os.ReadDir(ram); err != nil || len(left) > 0 {
			t.Errorf("%v is left in %s (%v)", left, ram, err)
		}
		if err := os.RemoveAll(ram); err != nil {
			t.Error(err)
		}
		if left := childrenOf(t); len(left) > 0 {
			t.Errorf("processes are left: %v", left)
		}
	})
	t.Setenv("TMPDIR", ram) // so that what the echo leaves would be seen, too
	return &config{
		bin: bin, devices: []string{deviceRAM}, dir: t.TempDir(), ramDir: ram, size: minSizeBytes, runs: 1, seconds: 0.1, jobs: allJobs(),
		cores: cores{drive: all[len(all)-1], load: all[0]}, // the same where there is but one: nothing is judged here
	}
}

// childrenOf gives the command lines of the processes that this one has started and that live.
func childrenOf(t *testing.T) []string {
	t.Helper()
	var out []string
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range tasks {
		b, _ := os.ReadFile(f) // of a thread that has just ended there are none
		for pid := range strings.FieldsSeq(string(b)) {
			line, _ := os.ReadFile("/proc/" + pid + "/cmdline")
			out = append(out, fmt.Sprintf("%s %q", pid, line))
		}
	}
	return out
}

// Claim: a run gives every figure of every row, verified data, JSON and a table; and leaves nothing.
func TestRun(t *testing.T) {
	cfg := testConfig(t, buildCrake(t))
	rep, err := run(t.Context(), cfg, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if len(rep.Rows) != len(cfg.jobs) {
		t.Fatalf("%d rows of %d", len(rep.Rows), len(cfg.jobs))
	}
	for i, r := range rep.Rows {
		if r.Device != deviceRAM || r.Job != cfg.jobs[i].name() || r.Verdict == "" || r.Ratio <= 0 || r.Bound <= 0 || r.Best == "" {
			t.Errorf("row %d: %+v", i, r)
		}
		if (cfg.jobs[i].depth == 1) != (r.Bare != nil) || r.Bare != nil && r.Bare.Samples[0].PerSecond <= 0 {
			t.Errorf("%s, bare socket: %+v", r.Job, r.Bare)
		}
		for name, s := range map[string]*series{"io_uring": r.Fio[ioUring], "psync": r.Fio[psync], "wire": r.Wire, "crake": r.Crake} {
			if s == nil || len(s.Samples) != 1 {
				t.Fatalf("%s, %s: %+v", r.Job, name, s)
			}
			x := s.Samples[0]
			if x.PerSecond <= 0 || x.P50us <= 0 || x.P99us < x.P50us {
				t.Errorf("%s, %s: %+v", r.Job, name, x)
			}
			if (name == "wire" || name == "crake") && (x.CPUus <= 0 || x.Busy <= 0 || x.LoadBusy <= 0) {
				t.Errorf("%s, %s: %+v", r.Job, name, x)
			}
		}
	}
	var table, markdown, asJSON bytes.Buffer
	if err := errors.Join(rep.write(&table, formatTable), rep.write(&markdown, formatMarkdown), rep.write(&asJSON, formatJSON)); err != nil {
		t.Fatal(err)
	}
	var again report
	if err := json.Unmarshal(asJSON.Bytes(), &again); err != nil || len(again.Rows) != len(rep.Rows) {
		t.Errorf("JSON: %v, %d rows", err, len(again.Rows))
	}
	for _, j := range cfg.jobs {
		for _, text := range []string{table.String(), markdown.String()} {
			if strings.Count(text, j.name()) != 1 {
				t.Errorf("%s is not in the table once:\n%s", j.name(), text)
			}
		}
	}
	for line := range strings.Lines(markdown.String()) {
		if n := strings.Count(line, "|"); strings.HasPrefix(line, "|") && n != len(columns())+1 {
			t.Errorf("%d bars, want %d: %s", n, len(columns())+1, line)
		}
	}
}

// Claim: a run that is interrupted ends soon, says so, and leaves nothing.
func TestInterrupted(t *testing.T) {
	cfg := testConfig(t, buildCrake(t))
	cfg.seconds, cfg.jobs = 1000, cfg.jobs[:1]
	for _, step := range []string{"wire only", "ram, read4k-d1"} {
		c := *cfg
		if step != "wire only" {
			c.seconds = 0.05 // the wire's job is done soon; then fio's is made to last
		}
		ctx, cancel := context.WithCancel(t.Context())
		_, err := run(ctx, &c, writerFunc(func(p []byte) {
			if strings.HasPrefix(string(p), step) {
				c.seconds = 1000
				time.AfterFunc(50*time.Millisecond, cancel)
			}
		}))
		cancel()
		if !errors.Is(err, context.Canceled) && (err == nil || !strings.Contains(err.Error(), "cancel")) {
			t.Errorf("interrupted at %q: %v", step, err)
		}
	}
}

type writerFunc func(p []byte)

func (f writerFunc) Write(p []byte) (int, error) {
	f(p)
	return len(p), nil
}

// Claim: a drive that does not start gives an error with its last words, and nothing is left.
func TestNoDrive(t *testing.T) {
	cfg := testConfig(t, "/bin/false")
	d, err := newDevice(cfg, deviceRAM)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.close(); err != nil {
			t.Error(err)
		}
	}()
	if _, err := (&runner{cfg: cfg}).startDrive(t.Context(), d); err == nil || !strings.Contains(err.Error(), "crake drive format") {
		t.Errorf("a binary that only fails: %v", err)
	}
	cfg.bin = filepath.Join(t.TempDir(), "half")
	write := func(serve string) {
		if err := os.WriteFile(cfg.bin, []byte("#!/bin/sh\n[ \"$2\" = format ] && exit 0\n"+serve+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	write("exec sleep 1000")
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := (&runner{cfg: cfg}).startDrive(ctx, d); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a drive that never answers: %v", err)
	}
	write("echo 'the device is too wet' >&2; exit 3")
	if _, err := (&runner{cfg: cfg}).startDrive(t.Context(), d); err == nil || !strings.Contains(err.Error(), "too wet") {
		t.Errorf("a drive that does not start: %v", err)
	}
}

// Claim: a loop device passes O_DIRECT on, and is gone after close, and its file with it.
func TestLoop(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test makes a loop device: run it as root")
	}
	cfg := testConfig(t, "")
	cfg.dir = diskDir(t)
	d, err := newDevice(cfg, deviceLoop)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(d.path, "/dev/loop") || !d.direct {
		t.Errorf("%+v", d)
	}
	f := d.loop.name
	if err := d.close(); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile("/sys/block/" + f + "/loop/backing_file"); err == nil && strings.Contains(string(b), d.dir) {
		t.Errorf("%s still has %s", f, b)
	}
	if _, err := os.Stat(d.dir); err == nil {
		t.Errorf("%s is still there", d.dir)
	}
}

// diskDir gives a directory that is not on a tmpfs.
func diskDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "crake-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// Claim: what cannot work is refused before anything is made, all of it at once, and the text says what to do.
func TestParse(t *testing.T) {
	t.Setenv("CRAKE_BIN", "/bin/true")
	for _, c := range []struct {
		args string
		want []string
	}{
		{"--devices floppy", []string{`no "floppy"`, "disk,loop,ram"}},
		{"--jobs read4k-d65", []string{`no "read4k-d65"`, "read4k-d1"}},
		{"--jobs read5k-d1", []string{`no "read5k-d1"`}},
		{"--jobs read4k", []string{`no "read4k"`}},
		{"--size 10", []string{"16 MiB"}},
		{"--size 1.5GiB --runs 0", []string{"no size", "--runs"}},
		{"--size 99999999999MiB", []string{"no size"}},
		{"--cores 1,1", []string{"two different"}},
		{"--cores x", []string{"two different"}},
		{"-f xml", []string{"markdown or json"}},
		{"disk", []string{"only flags"}},
	} {
		_, err := parse(append(strings.Fields(c.args), "--cores=1,0")[:len(strings.Fields(c.args))], io.Discard)
		for _, want := range c.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: error %v, want one with %q", c.args, err, want)
			}
		}
	}
	cfg, err := parse([]string{"--devices", "ram,disk", "--jobs", "put128k-d3,read4k-d1", "--size", "2GiB", "--cores", "3,2", "-f", "json"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Join(cfg.devices, ",") != "ram,disk" || strings.Join(jobNames(cfg.jobs), ",") != "put128k-d3,read4k-d1" || cfg.size != 2<<30 ||
		cfg.cores != (cores{drive: 3, load: 2}) || cfg.format != formatJSON || cfg.runs != 5 {
		t.Errorf("%+v", cfg)
	}
	t.Setenv("CRAKE_BIN", "")
	if _, err := parse([]string{"--cores=1,0"}, io.Discard); err == nil || !strings.Contains(err.Error(), "make bench-drive") {
		t.Errorf("no binary: %v", err)
	}
}

// Claim: devices go where they belong, and are refused where there is no room.
func TestCheckParent(t *testing.T) {
	disk := diskDir(t)
	for _, c := range []struct {
		dir  string
		ram  bool
		need int64
		want string
	}{
		{"/dev/shm", false, 1, "--dir"}, {disk, true, 1, "--ram-dir"}, {disk, false, 1 << 60, "smaller --size"}, {disk + "/none", false, 1, "no such"},
		{disk, false, 1, ""}, {"/dev/shm", true, 1, ""},
	} {
		err := checkParent(c.dir, c.ram, c.need)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// Claim: fio reads where the drive's data lies, writes to the half that is not the drive's, and does as many things at once as the drive is asked.
func TestFioJob(t *testing.T) {
	d := &device{path: "x", half: 1 << 30, data: 3 << 20, direct: true, flush: true}
	for _, c := range []struct {
		j       job
		engine  fioEngine
		rw      string
		off     int64
		d, thr  int
		flushes bool
	}{
		{job{driveload.Read4K, 32}, ioUring, "randread", 3 << 20, 32, 1, false},
		{job{driveload.Read4K, 32}, psync, "randread", 3 << 20, 1, 32, false},
		{job{driveload.Append, 8}, ioUring, "write", 1 << 30, 1, 8, true},
		{job{driveload.Put, 1}, ioUring, "write", 1 << 30, 1, 1, true},
		{job{driveload.Read1M, 4}, ioUring, "read", 3 << 20, 4, 1, false},
	} {
		f := c.j.fioJob(d, c.engine, time.Second)
		if f.RW != c.rw || f.Offset != c.off || f.Depth != c.d || f.Threads != c.thr || f.Flush != c.flushes || f.SizeBytes != 1<<29 ||
			!f.Direct || f.BlockSize != c.j.kind.Bytes() {
			t.Errorf("%s by %s: %+v", c.j.name(), c.engine, f)
		}
	}
}

// Claim: the verdict names what limits.
func TestJudge(t *testing.T) {
	one := func(perSecond, busy, load float64) *series {
		return &series{Samples: []sample{{PerSecond: perSecond, Busy: busy, LoadBusy: load}}}
	}
	for _, c := range []struct {
		depth       int
		wire, crake *series
		bound       float64
		want        string
	}{
		{8, one(1000, 1, 1), one(91, 0.1, 0.1), 100, "reached"},
		{8, one(50, 1, 1), one(46, 0.99, 0.1), 50, "limit: the wire"},
		{1, one(100, 1, 1), one(46, 0.5, 0.5), 50, "limit: the wire"},
		{8, one(1000, 1, 1), one(50, 0.95, 0.95), 100, "limit: CPU of the drive"},
		{8, one(1000, 1, 1), one(50, 0.5, 0.95), 100, "limit: CPU of the load"},
		{8, one(1000, 1, 1), one(50, 0.5, 0.5), 100, "MISSED"},
	} {
		r := &row{Fio: map[fioEngine]*series{ioUring: one(100, 1, 0), psync: one(90, 1, 0)}, Wire: c.wire, Crake: c.crake, job: job{driveload.Put, c.depth}}
		r.judge()
		if spun := *r; strings.Contains(c.want, "CPU") {
			spun.spin = true
			if spun.judge(); spun.Verdict != "MISSED" {
				t.Errorf("%+v, spinning: %q", c, spun.Verdict)
			}
		}
		if r.Verdict != c.want || r.Best != ioUring || r.Bound < c.bound*0.999 || r.Bound > c.bound*1.001 {
			t.Errorf("%+v: %q by %s, bound %g", c, r.Verdict, r.Best, r.Bound)
		}
	}
	s := &series{Samples: []sample{{PerSecond: 5}, {PerSecond: 1}, {PerSecond: 3}}}
	if m, low, high := s.median(perSecond); m != 3 || low != 1 || high != 5 {
		t.Errorf("median %g (%g to %g)", m, low, high)
	}
}

// Claim: a profile names the symbols of a process that works. perf is no part of what the tests need, so it may be missing.
func TestProfile(t *testing.T) {
	if _, err := exec.LookPath("perf"); err != nil {
		t.Skip("perf is not installed")
	}
	all, err := procfs.AllowedCores()
	if err != nil {
		t.Fatal(err)
	}
	busy, err := pinned.Start(exec.Command("sh", "-c", "while :; do :; done"), all[0])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = busy.Kill() }()
	var top []string
	for try := 0; try < 20 && len(top) == 0; try++ { // perf on a busy machine may attach late, and see nothing
		path := filepath.Join(t.TempDir(), "perf.data")
		stop, err := record(path, busy.PID(), all[len(all)-1])
		if err != nil {
			t.Fatal(err)
		}
		began, err := pinned.CPU(busy.PID())
		for now := began; err == nil && now < began+200*time.Millisecond; now, err = pinned.CPU(busy.PID()) {
			time.Sleep(10 * time.Millisecond)
		}
		if err := errors.Join(err, stop()); err != nil {
			t.Fatal(err)
		}
		if top, err = topOf(t.Context(), path, busy.PID()); err != nil {
			t.Fatal(err)
		}
	}
	if len(top) == 0 || len(top) > topSymbols || !strings.Contains(top[0], "%") {
		t.Errorf("profile of a loop: %q", top)
	}
	if err := perfUsable("/nonexistent"); err == nil {
		t.Error("a binary that is not there can be profiled")
	}
}
