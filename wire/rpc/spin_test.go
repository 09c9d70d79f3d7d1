package rpc

import (
	"context"
	"runtime"
	"testing"

	"github.com/crakefs/crake/wire/spin"
)

// transportSpin is unix sockets in a process that spins, on one scheduler processor, as on a core of its own.
const transportSpin = "unix-spin"

// spin makes both sides tell a spinner of what arrives.
func (w *world) spin() {
	procs := runtime.GOMAXPROCS(1)
	s := spin.New()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	w.server.Spin, w.client.Spin = s, s
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
		runtime.GOMAXPROCS(procs)
	})
}

// TestSpinTold: both sides tell their spinner of each message.
func TestSpinTold(t *testing.T) {
	w := newWorld(t, "unix")
	w.server.Spin, w.client.Spin = spin.New(), spin.New()
	w.serve()
	c := w.dial()
	for range 10 {
		if err := c.Do(context.Background(), &Call{Method: mEcho}); err != nil {
			t.Fatal(err)
		}
	}
	if asked, answered := w.server.Spin.Events(), w.client.Spin.Events(); asked < 10 || answered < 10 {
		t.Errorf("10 requests and their answers: the spinners were told %d and %d times", asked, answered)
	}
}
