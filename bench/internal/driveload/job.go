package driveload

import (
	"context"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/crakefs/crake/bench/internal/pinned"
)

// Kind says what a job does.
type Kind string

// The kinds of jobs.
const (
	Read4K Kind = "read4k" // random, 4 KiB
	Append Kind = "append4k"
	Put    Kind = "put128k"
	Read1M Kind = "read1m" // in order, 1 MiB: eight strips a request
)

// Bytes gives the size of one operation of a kind.
func (k Kind) Bytes() int {
	switch k {
	case Put:
		return StripBytes
	case Read1M:
		return 1 << 20
	}
	return 4 << 10
}

// Writes says whether the kind writes, so that its operations are durable before they count.
func (k Kind) Writes() bool { return k == Append || k == Put }

// Job is what to measure.
type Job struct {
	Kind     Kind
	Depth    int // requests at once
	Warmup   time.Duration
	Duration time.Duration
	PID      int // of the process whose processor time is measured; 0: none
}

// Result is what a job measured.
type Result struct {
	Ops     uint64
	Elapsed time.Duration
	P50     time.Duration
	P99     time.Duration
	CPU     time.Duration // that the process used
	Load    time.Duration // that the load generator used
}

// Phases of a job.
const (
	phaseWarmup int32 = iota
	phaseMeasure
	phaseEnd
)

// Run runs a job and takes away what it wrote.
func (s *Session) Run(ctx context.Context, j Job) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, jobDeadline)
	defer cancel()
	workers, err := s.workers(j)
	defer func() {
		for _, w := range workers {
			w.release()
		}
	}()
	if err != nil {
		return Result{}, err
	}
	var phase atomic.Int32
	hists := make([]histogram, j.Depth)
	errs := make([]error, j.Depth+1)
	var wg sync.WaitGroup
	for i, w := range workers {
		wg.Go(func() {
			if errs[i] = work(ctx, w, &phase, &hists[i]); errs[i] != nil {
				cancel()
			}
		})
	}
	r, err := measure(ctx, j, &phase)
	if err != nil {
		cancel()
	}
	wg.Wait()
	errs[j.Depth] = err
	if err := first(errs); err != nil {
		return r, fmt.Errorf("%s at depth %d: %w", j.Kind, j.Depth, err)
	}
	for i := range hists[1:] {
		hists[0].merge(&hists[i+1])
	}
	r.Ops, r.P50, r.P99 = hists[0].n, hists[0].quantile(0.5), hists[0].quantile(0.99)
	for len(workers) > 0 {
		w := workers[0]
		workers = workers[1:]
		if err := w.finish(ctx); err != nil {
			return r, fmt.Errorf("%s at depth %d, afterwards: %w", j.Kind, j.Depth, err)
		}
	}
	return r, nil
}

// workers makes the workers of a job; with an error, those made so far.
func (s *Session) workers(j Job) ([]worker, error) {
	var out []worker
	var cursor atomic.Uint64
	share := s.cfg.WriteBytes / 2 / int64(j.Depth)
	for i := range j.Depth {
		switch j.Kind {
		case Read4K:
			out = append(out, newRandomReader(s, i))
		case Read1M:
			out = append(out, newSequentialReader(s, j.Kind.Bytes(), &cursor))
		case Put:
			p, err := newPutter(s)
			if err != nil {
				return out, err
			}
			p.keep = int(max(share/StripBytes, 2))
			out = append(out, p)
		case Append:
			a, err := newAppender(s)
			if err != nil {
				return out, err
			}
			a.maxBytes = uint64(max(share/4, StripBytes))
			out = append(out, a)
		default:
			return out, fmt.Errorf("no such job: %q", j.Kind)
		}
	}
	return out, nil
}

// work does requests until the job ends, and counts those that end in the time measured.
func work(ctx context.Context, w worker, phase *atomic.Int32, h *histogram) error {
	began := time.Now()
	for {
		if err := w.step(ctx); err != nil {
			return err
		}
		now := time.Now()
		switch phase.Load() {
		case phaseMeasure:
			h.add(now.Sub(began))
		case phaseEnd:
			return nil
		}
		began = now
	}
}

// measure leads the phases and takes the times at their borders.
func measure(ctx context.Context, j Job, phase *atomic.Int32) (r Result, err error) {
	defer phase.Store(phaseEnd)
	if err := sleep(ctx, j.Warmup); err != nil {
		return r, err
	}
	clocks := func() (cpu, load time.Duration, err error) {
		if j.PID != 0 {
			if cpu, err = pinned.CPU(j.PID); err != nil {
				return 0, 0, err
			}
		}
		load, err = pinned.CPU(os.Getpid())
		return cpu, load, err
	}
	cpu0, load0, err := clocks()
	if err != nil {
		return r, err
	}
	began := time.Now()
	phase.Store(phaseMeasure)
	if err := sleep(ctx, j.Duration); err != nil {
		return r, err
	}
	phase.Store(phaseEnd)
	r.Elapsed = time.Since(began)
	cpu1, load1, err := clocks()
	if err != nil {
		return r, err
	}
	r.CPU, r.Load = cpu1-cpu0, load1-load0
	return r, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
