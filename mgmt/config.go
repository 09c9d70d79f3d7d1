package mgmt

import (
	"context"
	"errors"
	"log/slog"

	"github.com/crakefs/crake/mgmt/api"
	"github.com/crakefs/crake/wire/capture"
)

// Config configures mgmt. Everything about the cluster is in DIR/cluster.json (api.ClusterFile).
type Config struct {
	// Dir is the cluster's folder, absolute.
	Dir string
	// Version is of this software.
	Version string
	// Worker is the hidden flag --worker: this process is mgmt itself. Without it, it is the keeper, which runs
	// "EXECUTABLE mgmt --dir Dir --worker" and starts it again when it crashes.
	Worker bool
	// Executable is the binary of the worker; "" is this process's own.
	Executable string
	// Capture is where people can look at the frames; nil: nowhere. The keeper has none.
	Capture *capture.Tap
	// Log gets events; nil is slog.Default().
	Log *slog.Logger
}

// Validate lists all that is wrong.
func (c *Config) Validate() error {
	var errs []error
	if c.Dir == "" {
		errs = append(errs, errors.New("--dir is missing"))
	} else if err := api.CheckDir(c.Dir); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Run runs mgmt until ctx ends, or the cluster is stopped by the API. When ctx ends, the processes of the cluster go on, and
// the next mgmt adopts them. Errors of the first start (a bad cluster file, an address in use) end it.
func Run(ctx context.Context, c Config) error {
	if err := c.Validate(); err != nil {
		return err
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Worker {
		return runWorker(ctx, &c)
	}
	return runKeeper(ctx, &c)
}
