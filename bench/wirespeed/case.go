package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/crakefs/crake/bench/internal/pinned"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/spin"
)

// layout is where the two sides are, and how they wait.
type layout string

const (
	sameCore layout = "one core"
	twoCores layout = "two cores"
	spinning layout = "two cores, spinning"
)

// benchCase is one row of the table.
type benchCase struct {
	data   int // bytes of data in the answer
	layout layout
}

func (c benchCase) String() string {
	if c.data > 0 {
		return fmt.Sprintf("%s, %d KiB", c.layout, c.data>>10)
	}
	return string(c.layout)
}

func allCases() (out []benchCase) {
	for _, data := range []int{0, 4 << 10} {
		for _, l := range []layout{sameCore, twoCores, spinning} {
			out = append(out, benchCase{data, l})
		}
	}
	return out
}

// Ways to ask.
const (
	wayBare  = "bare"
	wayCrake = "crake"
)

// asker asks one at a time.
type asker interface {
	ask(ctx context.Context) error
	// allocs counts the heap allocations of both sides so far.
	allocs(ctx context.Context) (uint64, error)
	close() error
}

// sample is what one run has measured, for each request.
type sample struct {
	us     float64 // of time
	cpu    float64 // us of processor time of both sides
	allocs float64 // on the heap, of both sides
}

// median gives the run in the middle.
func median(s []sample) sample {
	s = slices.SortedFunc(slices.Values(s), func(a, b sample) int { return cmp.Compare(a.us, b.us) })
	return s[len(s)/2]
}

// request is what is asked: a short read of a drive.
func (c benchCase) request() *wire.ReadReq {
	return &wire.ReadReq{Drive: 1, Ranges: []wire.ReadRange{{Len: uint32(c.data)}}}
}

// bareBytes gives what a request and its answer have on the wire.
func (c benchCase) bareBytes() (request, answer int) {
	meta := len((&wire.ReadResp{Status: make([]wire.Kind, 1)}).Append(nil))
	return wire.HeaderBytes + len(c.request().Append(nil)), wire.HeaderBytes + meta + c.data
}

// measure starts the answering side, asks for the time, and ends it.
func (c benchCase) measure(ctx context.Context, cfg *config, way string) (s sample, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	dir, err := os.MkdirTemp("", "crake-wirespeed-")
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	exe, err := os.Executable()
	if err != nil {
		return s, err
	}
	path, core := filepath.Join(dir, "s"), cfg.answer
	if c.layout == sameCore {
		core = cfg.ask
	}
	cmd := exec.Command(exe, serveCommand, way, path, fmt.Sprint(c.layout == spinning))
	cmd.Stderr = os.Stderr
	peer, err := pinned.Start(cmd, core)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, peer.End(endPatience)) }()
	spinner, end := pinned.Spinner(ctx, c.layout == spinning)
	defer func() { err = errors.Join(err, end()) }()
	defer cancel()
	a, err := c.connect(ctx, way, path, spinner)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, a.close()) }()
	if _, err := c.rounds(ctx, a, time.Duration(float64(cfg.duration())*warmupShare)); err != nil {
		return s, err
	}
	before, err := costs(ctx, a, peer.PID())
	if err != nil {
		return s, err
	}
	n, err := c.rounds(ctx, a, cfg.duration())
	if err != nil {
		return s, err
	}
	after, err := costs(ctx, a, peer.PID())
	each := func(v float64) float64 { return v / float64(n) }
	return sample{each(after.us - before.us), each(after.cpu - before.cpu), each(after.allocs - before.allocs)}, err
}

// rounds asks for a while and counts.
func (c benchCase) rounds(ctx context.Context, a asker, d time.Duration) (n int, err error) {
	for began := time.Now(); time.Since(began) < d; n++ {
		if err := a.ask(ctx); err != nil {
			return n, err
		}
	}
	return n, ctx.Err()
}

var began = time.Now()

// costs tells the time, and what both sides have used so far.
func costs(ctx context.Context, a asker, peer int) (s sample, err error) {
	allocs, err := a.allocs(ctx)
	if err != nil {
		return s, err
	}
	s.us, s.allocs = float64(time.Since(began).Nanoseconds())/1000, float64(allocs)
	for _, pid := range []int{os.Getpid(), peer} {
		used, err := pinned.CPU(pid)
		if err != nil {
			return s, err
		}
		s.cpu += float64(used.Nanoseconds()) / 1000
	}
	return s, nil
}

// connect waits until the answering side is there.
func (c benchCase) connect(ctx context.Context, way, path string, s *spin.Spinner) (asker, error) {
	for late := time.Now().Add(startTimeout); ; {
		a, err := c.dial(ctx, way, path, s)
		if err == nil {
			return a, nil
		}
		select {
		case <-time.After(pollPause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if time.Now().After(late) {
			return nil, fmt.Errorf("the answering side does not answer within %v: %w", startTimeout, err)
		}
	}
}

func (c benchCase) dial(ctx context.Context, way, path string, s *spin.Spinner) (asker, error) {
	if way == wayBare {
		return c.dialBare(path, s)
	}
	return c.dialCrake(ctx, path, s)
}
