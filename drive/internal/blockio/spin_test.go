package blockio

import (
	"context"
	"runtime"
	"testing"

	"github.com/crakefs/crake/wire/spin"
)

// TestSpinning: a ring in a process that spins, on one scheduler processor, does all IO right, deep and one at a time, and tells of completions.
func TestSpinning(t *testing.T) {
	procs := runtime.GOMAXPROCS(1)
	defer runtime.GOMAXPROCS(procs)
	s := spin.New()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	ds, arena := ringDevices(t, EngineConfig{Spin: s}, 3, 2<<20)
	conformance(t, ds[0])
	told := s.Events()
	if told == 0 {
		t.Error("the spinner was not told of completions")
	}
	for i, depth := range []int{1, 16} {
		runAsyncModel(t, ds[1+i], arena, depth, 500, uint64(depth))
	}
	if s.Events() == told {
		t.Error("the spinner was not told of completions of asynchronous IO")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
