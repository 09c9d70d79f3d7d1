package main

import (
	"context"
	"errors"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/bench/internal/pinned"
)

// serveCommand makes this binary the answering side: its way, its socket, whether it spins.
const serveCommand = "serve"

func serveMain(way, path string, spins bool) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	s, end := pinned.Spinner(ctx, spins)
	serve := serveCrake
	if way == wayBare {
		serve = serveBare
	}
	err := serve(ctx, path, s)
	stop() // also where it failed
	return errors.Join(err, end())
}
