package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/crakefs/crake/bench/internal/devcluster"
)

// measurements are the figures that the first version promises, in the order in which they are taken: idle memory first, before any
// work has filled a cache.
var measurements = []measurement{
	{name: "idle memory, sum of RSS", unit: "MiB", target: 600, lower: true, take: idleMemory("VmRSS:")},
	{name: "idle memory, proportional (PSS)", unit: "MiB", target: 600, lower: true, take: idlePSS},
	{name: "1 MiB sequential write, direct, 4 jobs", unit: "MiB/s", target: 400, take: fioMiB("write")},
	{name: "1 MiB sequential read, direct, 4 jobs", unit: "MiB/s", target: 800, take: fioMiB("read")},
	{name: "4 KiB random read, depth 1, mean latency", unit: "us", target: 150, lower: true, take: randomRead},
	{name: "create of empty files, one directory, 1 thread", unit: "1/s", target: 2000, take: creates(1)},
	{name: "create of empty files, one directory, 8 threads", unit: "1/s", target: 2000, take: creates(8)},
	{name: "stat of uncached files, 8 threads", unit: "1/s", target: 10_000, take: stats(8)},
}

// fioReport is the part of fio's JSON that counts.
type fioReport struct {
	Jobs []struct {
		Error int
		Read  fioSide
		Write fioSide
	}
}

type fioSide struct {
	BWBytes float64 `json:"bw_bytes"`
	ClatNs  struct {
		Mean float64
	} `json:"clat_ns"`
}

func fio(args ...string) (*fioReport, error) {
	cmd := exec.Command("fio", append([]string{"--output-format=json", "--group_reporting", "--randrepeat=0"}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("fio: %w: %s", err, stderr.String())
	}
	var rep fioReport
	out := stdout.Bytes()
	if i := bytes.IndexByte(out, '{'); i > 0 { // fio prints notes before
		out = out[i:]
	}
	if err := json.Unmarshal(out, &rep); err != nil {
		return nil, fmt.Errorf("fio: %w", err)
	}
	if len(rep.Jobs) == 0 || rep.Jobs[0].Error != 0 {
		return nil, errors.New("fio failed: " + stderr.String())
	}
	return &rep, nil
}

func dropCaches() error { return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0) }

// fioMiB measures sequential throughput of 4 jobs of 256 MiB. The read job reads what fio lays out before.
func fioMiB(rw string) func(*devcluster.Cluster) (float64, error) {
	return func(c *devcluster.Cluster) (float64, error) {
		if err := dropCaches(); err != nil {
			return 0, err
		}
		rep, err := fio("--name=seq", "--directory="+c.Mount, "--rw="+rw, "--bs=1m", "--direct=1", "--ioengine=psync", "--numjobs=4", "--size=256m", "--end_fsync=1")
		if err != nil {
			return 0, err
		}
		return (rep.Jobs[0].Read.BWBytes + rep.Jobs[0].Write.BWBytes) / (1 << 20), nil
	}
}

func randomRead(c *devcluster.Cluster) (float64, error) {
	// The file is laid out by the first call, then read through a fresh page cache.
	base := []string{"--name=rand", "--directory=" + c.Mount, "--size=256m", "--direct=1", "--ioengine=psync"}
	if _, err := os.Stat(filepath.Join(c.Mount, "rand.0.0")); err != nil {
		if _, err := fio(append(base, "--rw=write", "--bs=1m", "--end_fsync=1")...); err != nil {
			return 0, err
		}
	}
	if err := dropCaches(); err != nil {
		return 0, err
	}
	rep, err := fio(append(base, "--rw=randread", "--bs=4k", "--runtime=8", "--time_based")...)
	if err != nil {
		return 0, err
	}
	return rep.Jobs[0].Read.ClatNs.Mean / 1000, nil
}

// dirs counts the directories that runs have used.
var dirs atomic.Int64

// parallel runs f for 0 to n-1 in so many threads and gives how many a second were done.
func parallel(threads, n int, f func(i int) error) (float64, error) {
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, threads)
	begin := time.Now()
	for w := range threads {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for errs[w] == nil {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				errs[w] = f(i)
			}
		}()
	}
	wg.Wait()
	return float64(n) / time.Since(begin).Seconds(), errors.Join(errs...)
}

func createFiles(c *devcluster.Cluster, dir string, threads, n int) (float64, error) {
	return parallel(threads, n, func(i int) error {
		f, err := os.OpenFile(filepath.Join(c.Mount, dir, fmt.Sprintf("file%d", i)), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		return f.Close()
	})
}

func creates(threads int) func(*devcluster.Cluster) (float64, error) {
	return func(c *devcluster.Cluster) (float64, error) {
		dir := fmt.Sprintf("create%d", dirs.Add(1))
		if err := os.Mkdir(filepath.Join(c.Mount, dir), 0o755); err != nil {
			return 0, err
		}
		return createFiles(c, dir, threads, 10_000)
	}
}

// stats measures stat of files that no cache knows: the cluster has been stopped and started since they were made.
func stats(threads int) func(*devcluster.Cluster) (float64, error) {
	return func(c *devcluster.Cluster) (float64, error) {
		const n = 20_000
		dir := filepath.Join(c.Mount, "stat")
		if _, err := os.Stat(dir); err != nil {
			if err := os.Mkdir(dir, 0o755); err != nil {
				return 0, err
			}
			if _, err := createFiles(c, "stat", 8, n); err != nil {
				return 0, err
			}
		}
		if err := c.Down(); err != nil {
			return 0, err
		}
		if err := dropCaches(); err != nil {
			return 0, err
		}
		if err := c.Up(); err != nil {
			return 0, err
		}
		return parallel(threads, n, func(i int) error {
			_, err := os.Lstat(filepath.Join(dir, fmt.Sprintf("file%d", i)))
			return err
		})
	}
}

// idleMemory sums a line of /proc/PID/status over all processes of the cluster, some seconds after the start.
func idleMemory(field string) func(*devcluster.Cluster) (float64, error) {
	return func(c *devcluster.Cluster) (float64, error) {
		time.Sleep(5 * time.Second)
		return sumMemory(c, "status", field)
	}
}

func idlePSS(c *devcluster.Cluster) (float64, error) { return sumMemory(c, "smaps_rollup", "Pss:") }

func sumMemory(c *devcluster.Cluster, file, field string) (float64, error) {
	total := 0.0
	pids := c.PIDs()
	if len(pids) < 10 {
		return 0, fmt.Errorf("only %d processes run", len(pids))
	}
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			if len(f) >= 2 && f[0] == field {
				kib, err := strconv.ParseFloat(f[1], 64)
				if err != nil {
					return 0, err
				}
				total += kib / 1024
			}
		}
	}
	return total, nil
}
