package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/crakefs/crake/cmd/crake/internal/dev"
	"github.com/crakefs/crake/mgmt/api"
)

// askTimeout bounds one question to mgmt; it answers from memory.
const askTimeout = 15 * time.Second

// dirFlag is the flag --dir, by which a command finds its cluster.
type dirFlag struct{ dir string }

func (d *dirFlag) register(c *cobra.Command) {
	c.Flags().StringVar(&d.dir, "dir", "", "directory of the cluster (default $CRAKE_DIR, else the only cluster that runs here)")
}

// find gives the absolute directory of the cluster.
func (d *dirFlag) find() (string, error) {
	dir := d.dir
	if dir == "" {
		dir = os.Getenv("CRAKE_DIR")
	}
	if dir == "" {
		switch dirs := dev.RunningDirs(); len(dirs) {
		case 0:
			return "", errors.New("no cluster runs on this machine; start one with crake dev up, or name its directory by --dir DIR")
		case 1:
			dir = dirs[0]
		default:
			return "", fmt.Errorf("%d clusters run on this machine (%s); name one by --dir DIR", len(dirs), strings.Join(dirs, ", "))
		}
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(filepath.Join(dir, api.ClusterFileName)); errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("%s holds no cluster; name the directory that was given to crake dev up", dir)
	}
	return dir, nil
}

// ask finds the cluster and calls f with a client of its mgmt; limit 0 means askTimeout.
func (d *dirFlag) ask(ctx context.Context, limit time.Duration, f func(ctx context.Context, c *api.Client) error) error {
	dir, err := d.find()
	if err != nil {
		return err
	}
	if limit == 0 {
		limit = askTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	c := api.Open(dir)
	defer c.Close()
	return explain(dir, f(ctx, c))
}

// explain says what to do about an mgmt that does not answer.
func explain(dir string, err error) error {
	switch {
	case errors.Is(err, api.ErrNotRunning) && api.Running(dir):
		return fmt.Errorf("mgmt of the cluster in %s is starting or does not answer; try again, or see %s", dir, api.LogPath(dir, "mgmt"))
	case errors.Is(err, api.ErrNotRunning) && errors.Is(err, os.ErrPermission):
		return fmt.Errorf("the cluster in %s belongs to another user; run this as root", dir)
	case errors.Is(err, api.ErrNotRunning):
		return fmt.Errorf("the cluster in %s does not run; start it with crake dev up --dir %s --mount MNT", dir, dir)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("mgmt of the cluster in %s gave no answer in time; see %s", dir, api.LogPath(dir, "mgmt"))
	}
	return err
}
