package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/crakefs/crake/cmd/crake/internal/dev"
	"github.com/crakefs/crake/mgmt/api"
)

// mountTimeout bounds a mount or an unmount: a frontend's start, and the flush of what it has not written yet.
const mountTimeout = 90 * time.Second

var fsColumns = []column[api.Filesystem]{
	{"id", func(f api.Filesystem) string { return fmt.Sprint(f.ID) }},
	{"name", func(f api.Filesystem) string { return f.Name }},
	{"state", fsState},
	{"mounts", func(f api.Filesystem) string { return strings.Join(f.Mounts, " ") }},
}

func fsState(f api.Filesystem) string {
	if f.Deleting {
		return "deleting"
	}
	return "ready"
}

func (a *app) fsCmd() *cobra.Command {
	ls := listCmd(a, list[api.Filesystem]{
		use: "ls", short: "list the filesystems", example: "  crake fs ls",
		columns: fsColumns,
		fetch:   func(ctx context.Context, c *api.Client) ([]api.Filesystem, error) { return c.Filesystems(ctx) },
	})
	return a.group("fs", "create, list and remove filesystems", "The filesystems of a cluster. The first one is called default.", a.fsCreateCmd(), ls, a.fsRmCmd())
}

func (a *app) fsCreateCmd() *cobra.Command {
	var dir dirFlag
	var format formatFlag
	c := &cobra.Command{
		Use: "create NAME", Short: "create an empty filesystem", Args: args("NAME"),
		Example: "  crake fs create scratch\n  crake mount scratch /mnt/scratch",
		RunE: func(cmd *cobra.Command, arg []string) error {
			return dir.ask(cmd.Context(), mountTimeout, func(ctx context.Context, c *api.Client) error {
				fs, err := c.CreateFilesystem(ctx, arg[0])
				if err != nil {
					return err
				}
				if format.is(formatJSON) {
					return printJSON(a.out, fs)
				}
				_, err = fmt.Fprintf(a.out, "created filesystem %s; crake mount %s DIRECTORY mounts it\n", fs.Name, fs.Name)
				return err
			})
		},
	}
	dir.register(c)
	format.register(c, formatTable, formatJSON)
	return c
}

func (a *app) fsRmCmd() *cobra.Command {
	var dir dirFlag
	c := &cobra.Command{
		Use: "rm NAME", Short: "remove an empty filesystem that is not mounted", Args: args("NAME"),
		Example: "  crake fs rm scratch",
		RunE: func(cmd *cobra.Command, arg []string) error {
			return dir.ask(cmd.Context(), mountTimeout, func(ctx context.Context, c *api.Client) error {
				if err := c.RemoveFilesystem(ctx, arg[0]); err != nil {
					return err
				}
				_, err := fmt.Fprintf(a.out, "removed filesystem %s\n", arg[0])
				return err
			})
		},
	}
	dir.register(c)
	return c
}

func (a *app) mountCmd() *cobra.Command {
	var dir dirFlag
	c := &cobra.Command{
		Use: "mount FS MNT", Short: "mount a filesystem of a running cluster at a further directory", Args: args("FS", "MNT"),
		Long:    "Starts a further frontend of a running cluster and returns when the mount answers. The mount comes back when the cluster is started again; crake umount takes it away.",
		Example: "  crake mount default /mnt/second\n  crake mount --dir /var/lib/crake scratch /mnt/scratch",
		RunE: func(cmd *cobra.Command, arg []string) error {
			mnt, err := filepath.Abs(arg[1])
			if err != nil {
				return err
			}
			return dir.ask(cmd.Context(), mountTimeout, func(ctx context.Context, c *api.Client) error {
				if err := dev.CheckMountPoint(mnt); err != nil {
					return err
				}
				m, err := c.AddMount(ctx, arg[0], mnt)
				if err != nil {
					return err
				}
				if err := dev.MountAnswers(ctx, mnt); err != nil {
					return err
				}
				_, err = fmt.Fprintf(a.out, "%s is mounted at %s (%s, process %d)\n", m.FS, m.Path, m.Name, m.PID)
				return err
			})
		},
	}
	dir.register(c)
	return c
}

func (a *app) umountCmd() *cobra.Command {
	var dir dirFlag
	c := &cobra.Command{
		Use: "umount MNT", Short: "unmount what crake mount mounted and stop its frontend", Args: args("MNT"),
		Example: "  crake umount /mnt/second",
		RunE: func(cmd *cobra.Command, arg []string) error {
			mnt, err := filepath.Abs(arg[0])
			if err != nil {
				return err
			}
			if dir.dir == "" { // the mount says which cluster it belongs to
				dir.dir = dev.DirOfMount(mnt)
			}
			return dir.ask(cmd.Context(), mountTimeout, func(ctx context.Context, c *api.Client) error {
				if err := c.RemoveMount(ctx, mnt); err != nil {
					return err
				}
				_, err := fmt.Fprintf(a.out, "%s is unmounted\n", mnt)
				return err
			})
		},
	}
	dir.register(c)
	return c
}
