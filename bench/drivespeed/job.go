package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/crakefs/crake/bench/internal/driveload"
	"github.com/crakefs/crake/bench/internal/fio"
)

// job is a kind of work at a depth.
type job struct {
	kind  driveload.Kind
	depth int
}

func (j job) name() string { return fmt.Sprintf("%s-d%d", j.kind, j.depth) }

// unit of the job's figure: what is small is counted, what is large is weighed.
func (j job) unit() string {
	if j.kind.Bytes() > 4<<10 {
		return "MiB/s"
	}
	return "IOPS"
}

// figure turns operations a second into the unit.
func (j job) figure(opsPerSecond float64) float64 {
	if j.unit() == "MiB/s" {
		return opsPerSecond * float64(j.kind.Bytes()) / (1 << 20)
	}
	return opsPerSecond
}

// allJobs are the jobs of the drive's issue, and the writes at depth 8, where the group commit shows.
func allJobs() []job {
	return []job{
		{driveload.Read4K, 1}, {driveload.Read4K, 32}, {driveload.Append, 1}, {driveload.Append, 8},
		{driveload.Put, 1}, {driveload.Put, 8}, {driveload.Read1M, 1}, {driveload.Read1M, 4},
	}
}

func jobNames(jobs []job) []string {
	var out []string
	for _, j := range jobs {
		out = append(out, j.name())
	}
	return out
}

// parseJobs reads names of jobs; any depth will do.
func parseJobs(text string) ([]job, error) {
	all := allJobs()
	if text == "all" {
		return all, nil
	}
	var out []job
	for name := range strings.SplitSeq(text, ",") {
		kind, depth, _ := strings.Cut(name, "-d")
		n, err := strconv.Atoi(depth)
		known := slices.ContainsFunc(all, func(j job) bool { return j.kind == driveload.Kind(kind) })
		if !known || err != nil || n < 1 || n > maxDepth {
			return nil, fmt.Errorf("--jobs: there is no %q; there are %s, and other depths up to %d", name, strings.Join(jobNames(all), ","), maxDepth)
		}
		out = append(out, job{kind: driveload.Kind(kind), depth: n})
	}
	return out, nil
}

// fioEngine is a way in which fio does IO.
type fioEngine string

const (
	ioUring fioEngine = "io_uring"
	psync   fioEngine = "psync"
)

// fioJob gives the fio job that asks the same of the device: the same sizes and depths. It reads where the drive has the strips to
// read, and writes to the half of the device that is not the drive's. (Reading other places is no comparison: a virtual disk may
// have one in its host's memory and not another; twice the speed was seen.) Writes at depth 8 are 8 threads that each wait for their flush, as 8 callers of a drive do; so are all requests of psync, which knows no
// other depth.
func (j job) fioJob(d *device, engine fioEngine, duration time.Duration) fio.Job {
	f := fio.Job{
		Path: d.path, Offset: d.data, SizeBytes: d.half / 2, BlockSize: j.kind.Bytes(), Depth: j.depth, Threads: 1,
		Engine: string(engine), Direct: d.direct, Duration: duration,
	}
	switch j.kind {
	case driveload.Read4K:
		f.RW = "randread"
	case driveload.Read1M:
		f.RW = "read"
	default:
		f.RW, f.Offset, f.Flush = "write", d.half, d.flush
	}
	if j.kind.Writes() || engine == psync {
		f.Depth, f.Threads = 1, j.depth
	}
	return f
}
