package fio

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/crakefs/crake/wire/procfs"
)

func testJob(t *testing.T) Job {
	t.Helper()
	if err := Installed(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, make([]byte, 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	return Job{
		Path: path, Offset: 1 << 20, SizeBytes: 1 << 20, RW: "write", BlockSize: 4096, Depth: 1, Threads: 2, Engine: "psync",
		Duration: 100 * time.Millisecond,
	}
}

func core(t *testing.T) int {
	t.Helper()
	all, err := procfs.AllowedCores()
	if err != nil {
		t.Fatal(err)
	}
	return all[0]
}

// Claim: fio does what it is told, keeps to its part of the device, and does not change its length.
func TestRun(t *testing.T) {
	j := testJob(t)
	j.Flush = true
	r, err := Run(t.Context(), core(t), j)
	if err != nil {
		t.Fatal(err)
	}
	if r.IOPS <= 0 || r.IOs <= 0 || r.P50 <= 0 || r.P99 < r.P50 || r.CPU <= 0 || r.Elapsed < j.Duration {
		t.Errorf("%+v", r)
	}
	b, err := os.ReadFile(j.Path)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) != 2<<20 || slices.Max(b[:1<<20]) != 0 || slices.Max(b[1<<20:]) == 0 {
		t.Errorf("%d bytes, the largest of the first half is %d, of the second %d", len(b), slices.Max(b[:1<<20]), slices.Max(b[1<<20:]))
	}
}

// Claim: a job of one IO does not go on for its duration.
func TestMaxIOs(t *testing.T) {
	j := testJob(t)
	j.Duration, j.MaxIOs = time.Hour, 1
	r, err := Run(t.Context(), core(t), j)
	if err != nil || r.IOs != 2 { // of two threads
		t.Errorf("%d IOs, %v", r.IOs, err)
	}
}

// Claim: a job ends with its context, and errors say what fio said.
func TestErrors(t *testing.T) {
	j := testJob(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	j.Duration = time.Hour
	if _, err := Run(ctx, core(t), j); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("cancelled: %v", err)
	}
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range tasks {
		if pids, _ := os.ReadFile(f); len(pids) > 0 {
			t.Errorf("processes %s live on", pids)
		}
	}
	j = testJob(t)
	j.Path += "-not-there"
	if _, err := Run(t.Context(), core(t), j); err == nil || !strings.Contains(err.Error(), "-not-there") {
		t.Errorf("no file: %v", err)
	}
	if _, err := os.Stat(j.Path); err == nil {
		t.Error("fio made the file")
	}
}

// Claim: what fio prints is read, also after notes, and nonsense is an error.
func TestParse(t *testing.T) {
	const good = `note: something
{"jobs":[{"error":0,
 "read":{"total_ios":0,"iops":0,"clat_ns":{"percentile":{}}},
 "write":{"total_ios":500,"iops":1000.5,"clat_ns":{"percentile":{"50.000000":3000,"99.000000":9000}}},
 "sync":{"lat_ns":{"percentile":{"50.000000":1000,"99.000000":2000}}}}]}`
	r, err := parse([]byte(good))
	if err != nil || r.IOs != 500 || r.IOPS != 1000.5 || r.P50 != 4*time.Microsecond || r.P99 != 11*time.Microsecond {
		t.Errorf("%+v, %v", r, err)
	}
	for _, bad := range []string{
		"", "fio: command not understood", `{"jobs":[]}`, `{"jobs":[{"error":5,"read":{"total_ios":1}}]}`, `{"jobs":[{}]}`, `{"jobs":[{},{}]}`,
	} {
		if r, err := parse([]byte(bad)); err == nil {
			t.Errorf("%q gives %+v", bad, r)
		}
	}
}
