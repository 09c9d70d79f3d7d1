// Package fio runs one job of fio (github.com/axboe/fio) and gives what it measured.
package fio

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/crakefs/crake/bench/internal/pinned"
)

// Job says what fio shall do.
type Job struct {
	Path      string // the file or device; it exists, and fio does not change its length
	Offset    int64  // fio keeps to the SizeBytes at Offset
	SizeBytes int64
	RW        string // as --rw has it: randread, read, write
	BlockSize int    // bytes
	Depth     int    // IOs at once in each thread
	Threads   int    // each in its own equal part when they write, else all in all of it
	Engine    string // io_uring or psync
	Direct    bool
	Flush     bool // fdatasync after every write, before it counts as done
	Duration  time.Duration
	MaxIOs    int // of each thread, whatever Duration says; 0: as many as Duration allows
}

// Result is what a job measured.
type Result struct {
	IOPS    float64
	P50     time.Duration // of an IO, with its flush where there is one
	P99     time.Duration
	IOs     int64
	CPU     time.Duration // of the whole fio process, its start included
	Elapsed time.Duration
}

// Installed says how to get fio when it is missing.
func Installed() error {
	if _, err := exec.LookPath("fio"); err != nil {
		return errors.New("fio is not installed; on Debian: apt-get install fio (make deps does it)")
	}
	return nil
}

// args gives the command line.
func (j *Job) args() []string {
	part := j.SizeBytes / int64(j.Threads)
	if !strings.Contains(j.RW, "write") {
		part = j.SizeBytes
	}
	part &^= int64(j.BlockSize) - 1
	a := []string{
		"--name=job", "--output-format=json", "--group_reporting", "--thread", "--randrepeat=0", "--norandommap", "--allow_file_create=0",
		"--overwrite=1", "--filename=" + j.Path, "--rw=" + j.RW, "--ioengine=" + j.Engine,
		fmt.Sprintf("--bs=%d", j.BlockSize), fmt.Sprintf("--iodepth=%d", j.Depth), fmt.Sprintf("--numjobs=%d", j.Threads),
		fmt.Sprintf("--offset=%d", j.Offset), fmt.Sprintf("--size=%d", part), fmt.Sprintf("--direct=%d", oneIf(j.Direct)),
	}
	if part != j.SizeBytes {
		a = append(a, fmt.Sprintf("--offset_increment=%d", part))
	}
	if j.Engine == "io_uring" {
		a = append(a, "--registerfiles", "--fixedbufs")
	}
	if j.Flush {
		a = append(a, "--fdatasync=1")
	}
	if j.MaxIOs > 0 {
		return append(a, fmt.Sprintf("--number_ios=%d", j.MaxIOs))
	}
	return append(a, "--time_based", fmt.Sprintf("--runtime=%dms", j.Duration.Milliseconds()))
}

func oneIf(b bool) int {
	if b {
		return 1
	}
	return 0
}

// report is the part of fio's JSON that counts.
type report struct {
	Jobs []struct {
		Error       int
		Read, Write side
		Sync        struct {
			LatNs latency `json:"lat_ns"`
		}
	}
}

type side struct {
	TotalIOs int64 `json:"total_ios"`
	IOPS     float64
	Runtime  int64   // ms
	ClatNs   latency `json:"clat_ns"`
}

type latency struct {
	Percentile map[string]float64
}

// Run runs the job on a core. Cancelling ctx kills it.
func Run(ctx context.Context, core int, j Job) (Result, error) {
	cmd := exec.Command("fio", j.args()...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	began := time.Now()
	p, err := pinned.Start(cmd, core)
	if err != nil {
		return Result{}, err
	}
	select {
	case <-p.Done():
	case <-ctx.Done():
		return Result{}, errors.Join(ctx.Err(), p.Kill())
	}
	if err := p.Err(); err != nil {
		return Result{}, fmt.Errorf("fio %s: %w: %s", strings.Join(j.args(), " "), err, strings.TrimSpace(stderr.String()))
	}
	r, err := parse(stdout.Bytes())
	if err != nil {
		return r, fmt.Errorf("fio %s: %w: %s", strings.Join(j.args(), " "), err, strings.TrimSpace(stderr.String()))
	}
	r.CPU, r.Elapsed = p.Used(), time.Since(began)
	// fio adds up what its threads did each in their own time. Where the scheduler lets them run one after the other, that is not what
	// they did together.
	r.IOPS = min(r.IOPS, float64(r.IOs)/j.Duration.Seconds())
	return r, nil
}

// parse reads fio's JSON.
func parse(out []byte) (r Result, err error) {
	if i := bytes.IndexByte(out, '{'); i > 0 { // fio prints notes before
		out = out[i:]
	}
	var rep report
	if err := json.Unmarshal(out, &rep); err != nil {
		return r, err
	}
	if len(rep.Jobs) != 1 {
		return r, fmt.Errorf("%d jobs in its report, want 1", len(rep.Jobs))
	}
	j := rep.Jobs[0]
	if j.Error != 0 {
		return r, fmt.Errorf("error %d", j.Error)
	}
	s := &j.Read
	if j.Write.TotalIOs > 0 {
		s = &j.Write
	}
	if s.TotalIOs == 0 {
		return r, errors.New("it did nothing")
	}
	r.IOPS, r.IOs = s.IOPS, s.TotalIOs
	// A write is done when it is flushed: fio counts the two apart, and runs them one after the other.
	r.P50 = time.Duration(s.ClatNs.Percentile["50.000000"] + j.Sync.LatNs.Percentile["50.000000"])
	r.P99 = time.Duration(s.ClatNs.Percentile["99.000000"] + j.Sync.LatNs.Percentile["99.000000"])
	return r, nil
}
