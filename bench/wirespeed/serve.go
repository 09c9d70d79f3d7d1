package main

import (
	"context"
	"errors"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/wire/spin"
)

// serveCommand makes this binary the answering side: its way, its socket, whether it spins.
const serveCommand = "serve"

func serveMain(way, path string, spins bool) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	s, end := startSpinner(ctx, spins)
	serve := serveCrake
	if way == wayBare {
		serve = serveBare
	}
	err := serve(ctx, path, s)
	stop() // also where it failed
	return errors.Join(err, end())
}

// startSpinner starts a spinner where one is wanted, else gives nil. end waits until it has ended with ctx.
func startSpinner(ctx context.Context, wanted bool) (s *spin.Spinner, end func() error) {
	if !wanted {
		return nil, func() error { return nil }
	}
	s = spin.New()
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	return s, func() error { return <-done }
}
