package dev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/crakefs/crake/mgmt/api"
)

// DownConfig says how dev down shall stop a cluster.
type DownConfig struct {
	Dir      string // absolute
	Force    bool   // detach mounts that are in use
	Wipe     bool   // remove the data as well
	Timeout  time.Duration
	Progress io.Writer
}

// DefaultDownTimeout bounds the orderly stop: a frontend may have dirty data to write.
const DefaultDownTimeout = 60 * time.Second

// Down stops a cluster in order. When mgmt is dead it ends what mgmt left behind. It gives an error, and stops nothing,
// when a mount is in use and Force is not set.
func Down(ctx context.Context, c DownConfig) error {
	say := func(format string, args ...any) {
		if c.Progress != nil {
			fmt.Fprintf(c.Progress, format+"\n", args...)
		}
	}
	f, err := api.ReadClusterFile(c.Dir)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s holds no cluster; name the directory that was given to crake dev up", c.Dir)
	}
	if err != nil && !c.Wipe {
		return err
	}
	unlock, err := lockDir(c.Dir)
	if err != nil {
		return err
	}
	defer unlock()
	if c.Timeout == 0 {
		c.Timeout = DefaultDownTimeout
	}
	if err := c.orderly(ctx, say); err != nil {
		return err
	}
	// Whatever is left now has no mgmt any more.
	left, err := sweep(ctx, c.Dir, sweepPatience)
	if err != nil {
		return err
	}
	if len(left) > 0 {
		say("ended %d processes that ran without mgmt", len(left))
	}
	if err := api.RemoveIdentities(c.Dir); err != nil {
		return err
	}
	if f != nil && f.Mount != "" {
		if err := detachDead(f.Mount); err != nil {
			return err
		}
	}
	if !c.Wipe {
		say("stopped; the data is in %s, crake dev up brings it back", c.Dir)
		return nil
	}
	rest, err := removeCluster(c.Dir)
	if err != nil {
		return err
	}
	if rest != "" {
		say("stopped and removed; %s also holds %s, which is left", c.Dir, rest)
		return nil
	}
	say("stopped and removed")
	return os.Remove(c.Dir)
}

// orderly asks mgmt to stop everything. That mgmt does not run or does not manage is no error: the sweep follows.
func (c *DownConfig) orderly(ctx context.Context, say func(string, ...any)) error {
	if !api.Running(c.Dir) {
		return nil
	}
	// Only when it takes its time: a refusal must be the one line that it is.
	slow := time.AfterFunc(time.Second, func() { say("stopping frontends, computes, drives and mgmt") })
	defer slow.Stop()
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	err := api.StopAndWait(ctx, c.Dir, c.Force)
	var refused *api.Error
	switch {
	case errors.As(err, &refused) && refused.Status == 409 && !c.Force:
		return err
	case err != nil && !errors.Is(err, api.ErrNotRunning):
		say("the orderly stop failed (%s); ending the processes", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return nil
}

// ours are the names of what a cluster's directory holds. Anything else in it is somebody else's and never removed.
var ours = []string{drivesName, formingName, "run", "log", "etcd", "mgmt", api.ClusterFileName}

// removeCluster removes what a cluster has in its directory, the cluster file last, and names what else lies there.
func removeCluster(dir string) (rest string, err error) {
	for _, name := range ours {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return "", err
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, ", "), nil
}

// topMissing gives the uppermost directory on the way to dir that does not exist, or "" when dir exists.
func topMissing(dir string) string {
	top := ""
	for at := dir; ; at = filepath.Dir(at) {
		if _, err := os.Lstat(at); err == nil || at == "/" {
			return top
		}
		top = at
	}
}

// removeEmpty removes dir and its parents up to top, as long as they are empty.
func removeEmpty(dir, top string) error {
	for at := dir; ; at = filepath.Dir(at) {
		if err := os.Remove(at); err != nil {
			return err
		}
		if at == top || at == "/" {
			return nil
		}
	}
}
