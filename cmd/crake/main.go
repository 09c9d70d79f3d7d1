package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/crakefs/crake/cmd/crake/internal/cli"
)

// version is stamped by the Makefile (-ldflags "-X main.version=...").
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	status := cli.Main(ctx, version, os.Args[1:])
	stop()
	os.Exit(status)
}
