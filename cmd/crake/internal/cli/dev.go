package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/crakefs/crake/cmd/crake/internal/dev"
	"github.com/crakefs/crake/cmd/crake/internal/roles"
	"github.com/crakefs/crake/cmd/crake/internal/size"
	"github.com/crakefs/crake/mgmt/api"
	"github.com/crakefs/crake/wire/route"
)

func (a *app) devCmd() *cobra.Command {
	return a.group("dev", "run a one-server cluster on this machine", `
A one-server cluster in a directory: drives are preallocated files in it, every role runs as a process of its own, and
the filesystem is mounted by FUSE. The data stays when it is stopped.`, a.devUpCmd(), a.devDownCmd(), a.devPsCmd())
}

// protectionFlag is a flag such as 4+2.
type protectionFlag struct{ data, parity int }

// String gives the protection as people write it.
func (p *protectionFlag) String() string {
	if p.data == 0 {
		return ""
	}
	return fmt.Sprintf("%d+%d", p.data, p.parity)
}

// Type names the flag's value in the help.
func (p *protectionFlag) Type() string { return "K+M" }

// Set reads a protection.
func (p *protectionFlag) Set(s string) error {
	k, m, ok := strings.Cut(s, "+")
	data, err1 := strconv.Atoi(strings.TrimSpace(k))
	parity, err2 := strconv.Atoi(strings.TrimSpace(m))
	if !ok || err1 != nil || err2 != nil || data < 1 || parity < 1 {
		return errors.New("want data strips + parity strips, such as 4+2")
	}
	p.data, p.parity = data, parity
	return nil
}

// countFlag is a number from 1 on; 0 is "not said".
type countFlag int

// String gives the number.
func (n *countFlag) String() string {
	if *n == 0 {
		return ""
	}
	return strconv.Itoa(int(*n))
}

// Type names the flag's value in the help.
func (n *countFlag) Type() string { return "N" }

// Set reads a number.
func (n *countFlag) Set(s string) error {
	v, err := strconv.Atoi(s)
	if err != nil || v < 1 {
		return errors.New("want a number from 1 on")
	}
	*n = countFlag(v)
	return nil
}

func (a *app) devUpCmd() *cobra.Command {
	var dir, mount, listen string
	var drives, compute, buckets countFlag
	var driveSize size.Flag
	var protection protectionFlag
	var arenas arenaFlags
	var wire string
	var encrypt bool
	var timeout time.Duration
	c := &cobra.Command{
		Use: "up --dir DIR --mount MNT", Short: "form a cluster in DIR, or bring it back, and mount it at MNT", Args: args(),
		Long: `Forms a one-server cluster in DIR, or brings the one that is there back with its data, and returns when the mount answers.
What a cluster was formed with (drives, drive size, protection, buckets) stays; a flag that contradicts it is refused. The other settings are
kept until they are given anew.
When the first dev up of a directory fails, nothing of it is left.`,
		Example: `  crake dev up --dir /var/lib/crake --mount /mnt/weka
  crake dev up --dir /dev/shm/c --mount /mnt/c --drives 8 --drive-size 512MiB --protection 6+2`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg := dev.Config{
				Drives: int(drives), DriveBytes: int64(driveSize), Data: protection.data, Parity: protection.parity,
				Computes: int(compute), Buckets: int(buckets), APIListen: listen, Timeout: timeout,
				Format: roles.FormatDrive, Progress: a.err,
			}
			if err := arenas.check(); err != nil {
				return usageError{fmt.Errorf("%w; see crake dev up --help", err)}
			}
			cfg.Wire, cfg.Arenas = route.Wire(wire), arenas.sizes()
			if cmd.Flags().Changed("wire-encryption") {
				cfg.Encrypt = &encrypt
			}
			return a.devUp(cmd.Context(), cfg, dir, mount)
		},
	}
	f := c.Flags()
	f.StringVar(&dir, "dir", os.Getenv("CRAKE_DIR"), "directory of the cluster; made when it is not there")
	f.StringVar(&mount, "mount", "", "where to mount it: an empty directory")
	f.Var(&drives, "drives", fmt.Sprintf("number of drives (default %d)", dev.DefaultDrives))
	f.Var(&driveSize, "drive-size", fmt.Sprintf("size of each drive (default %s)", size.Format(dev.DefaultDriveBytes)))
	f.Var(&protection, "protection", fmt.Sprintf("data and parity strips of a stripe (default %d+%d)", dev.DefaultData, dev.DefaultParity))
	f.Var(&compute, "compute", fmt.Sprintf("number of compute processes (default %d)", dev.DefaultComputes))
	f.Var(&buckets, "buckets", fmt.Sprintf("number of shards of the metadata (default %d)", dev.DefaultBuckets))
	f.StringVar(&listen, "api", "", "also serve the REST API at this TCP address, such as 127.0.0.1:14000")
	f.StringVar(&wire, "wire", "", "how processes speak with each other: shm (shared memory), unix (sockets) or tcp (default shm)")
	f.BoolVar(&encrypt, "wire-encryption", false, "encrypt what they say by TCP (TLS 1.3); with --wire tcp")
	arenas.register(f)
	f.DurationVar(&timeout, "timeout", dev.DefaultTimeout, "give up when the mount does not answer in this time")
	return c
}

func (a *app) devUp(ctx context.Context, cfg dev.Config, dir, mount string) error {
	if dir == "" || mount == "" {
		return usageError{errors.New("dev up needs --dir DIR and --mount MNT; see crake dev up --help")}
	}
	var err error
	if cfg.Dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	if cfg.Mount, err = filepath.Abs(mount); err != nil {
		return err
	}
	if cfg.Binary, err = os.Executable(); err != nil {
		return err
	}
	if cfg.Timeout <= 0 {
		return usageError{errors.New("--timeout must be more than 0")}
	}
	if err := cfg.Wire.Validate(); err != nil {
		return usageError{fmt.Errorf("--wire %w", err)}
	}
	st, err := dev.Up(ctx, cfg)
	if err != nil {
		return err
	}
	return printStatus(a.out, st)
}

func (a *app) devDownCmd() *cobra.Command {
	var dir dirFlag
	var cfg dev.DownConfig
	c := &cobra.Command{
		Use: "down --dir DIR", Short: "unmount and stop a cluster; --wipe removes its data too", Args: args(),
		Long: `Unmounts and stops everything in order: frontends, computes, drives, mgmt. A mount point that somebody uses makes it refuse,
unless --force detaches it under them. The data stays for the next dev up, unless --wipe is given.`,
		Example: "  crake dev down --dir /var/lib/crake\n  crake dev down --dir /var/lib/crake --wipe",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if cfg.Dir, err = dir.find(); err != nil {
				return err
			}
			cfg.Progress = a.err
			return dev.Down(cmd.Context(), cfg)
		},
	}
	dir.register(c)
	c.Flags().BoolVar(&cfg.Wipe, "wipe", false, "remove the data and the directory as well")
	c.Flags().BoolVar(&cfg.Force, "force", false, "detach mounts that are in use; their users get errors")
	c.Flags().DurationVar(&cfg.Timeout, "timeout", dev.DefaultDownTimeout, "kill what has not stopped in this time")
	return c
}

func (a *app) devPsCmd() *cobra.Command {
	return listCmd(a, list[api.Process]{
		use: "ps", short: "list the processes: role, name, pid, cores, version, state",
		example: "  crake dev ps --dir /var/lib/crake\n  crake dev ps -f json",
		columns: psColumns,
		fetch:   func(ctx context.Context, c *api.Client) ([]api.Process, error) { return c.Processes(ctx) },
	})
}
