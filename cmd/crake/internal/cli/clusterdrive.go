package cli

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/crakefs/crake/cmd/crake/internal/size"
	"github.com/crakefs/crake/mgmt/api"
)

var driveColumns = []column[api.Drive]{
	{"id", func(d api.Drive) string { return fmt.Sprint(d.ID) }},
	{"process", func(d api.Drive) string { return d.Process }},
	{"state", func(d api.Drive) string { return d.State }},
	{"size", func(d api.Drive) string { return size.Format(int64(d.SizeBytes)) }},
	{"free", func(d api.Drive) string { return size.Format(int64(d.FreeBytes)) }},
	{"strips", func(d api.Drive) string { return fmt.Sprint(d.Strips) }},
	{"read", func(d api.Drive) string { return size.Format(int64(d.ReadBytes)) }},
	{"written", func(d api.Drive) string { return size.Format(int64(d.WriteBytes)) }},
	{"times r/w/f", func(d api.Drive) string { return nanos(d.ReadNs) + "/" + nanos(d.WriteNs) + "/" + nanos(d.FlushNs) }},
	{"queued", func(d api.Drive) string { return fmt.Sprint(d.Queued) }},
	{"errors", func(d api.Drive) string { return fmt.Sprint(d.Errors) }},
	{"corrupt", func(d api.Drive) string { return fmt.Sprint(d.Corrupt) }},
	{"engine", func(d api.Drive) string { return engineText(&d) }},
	{"flush", func(d api.Drive) string { return d.Flush }},
	{"path", func(d api.Drive) string { return d.Path }},
	{"problem", func(d api.Drive) string { return d.Reason + d.Problem }},
}

// engineText gives how a drive does IO, and why not by io_uring.
func engineText(d *api.Drive) string {
	if d.EngineReason == "" {
		return d.Engine
	}
	return d.Engine + ": " + d.EngineReason
}

// nanos gives a mean time as people read it; 0 is "-": too few to tell.
func nanos(ns uint64) string {
	d := time.Duration(ns)
	switch {
	case ns == 0:
		return "-"
	case d < time.Millisecond:
		return fmt.Sprintf("%.0fus", float64(ns)/1e3)
	case d < time.Second:
		return fmt.Sprintf("%.1fms", float64(ns)/1e6)
	}
	return fmt.Sprintf("%.1fs", d.Seconds())
}

func (a *app) drivesCmd() *cobra.Command {
	var dir dirFlag
	var format formatFlag
	c := &cobra.Command{
		Use: "drive [ID]", Short: "list the drives, or tell all about one; deactivate or activate one",
		Long: `Lists the drives, or tells all that is known of one. Counters are since its process started; times are the means of a device's reads,
writes and flushes over the last ten seconds. States: up; down (its process does not answer, it is expected back); failed (its device is broken,
or it was deactivated: nothing is written to it or read from it until it is activated).`,
		Example: "  crake cluster drive\n  crake cluster drive 3\n  crake cluster drive -f json | jq '.[] | select(.state != \"up\")'\n  crake cluster drive deactivate 3 --reason 'to be swapped'\n  crake cluster drive activate 3",
		Args:    optionalDrive,
		RunE: func(cmd *cobra.Command, arg []string) error {
			return dir.ask(cmd.Context(), 0, func(ctx context.Context, c *api.Client) error {
				rows, err := c.Drives(ctx)
				if err != nil {
					return err
				}
				if len(arg) == 0 {
					return printList(a.out, format.value, rows, driveColumns)
				}
				id, err := driveID(arg[0])
				if err != nil {
					return err
				}
				for i := range rows {
					if rows[i].ID == id {
						return printOneDrive(a.out, format.value, &rows[i])
					}
				}
				return fmt.Errorf("there is no drive %d; crake cluster drive lists them", id)
			})
		},
	}
	dir.register(c)
	format.register(c, formatTable, formatJSON, formatCSV)
	c.AddCommand(a.deactivateCmd(), a.activateCmd())
	return c
}

// optionalDrive takes one drive id or nothing.
func optionalDrive(cmd *cobra.Command, got []string) error {
	if len(got) == 0 {
		return nil
	}
	if err := args("ID")(cmd, got); err != nil {
		return err
	}
	if _, err := driveID(got[0]); err != nil {
		return usageError{fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())}
	}
	return nil
}

// theDrive takes exactly one drive id.
func theDrive(cmd *cobra.Command, got []string) error {
	if err := args("ID")(cmd, got); err != nil {
		return err
	}
	return optionalDrive(cmd, got)
}

func driveID(s string) (uint32, error) {
	id, err := strconv.ParseUint(s, 10, 32)
	if err != nil || id == 0 {
		return 0, fmt.Errorf("%q is no drive id, want a number from 1 on", s)
	}
	return uint32(id), nil
}

// printOneDrive tells all about a drive.
func printOneDrive(w io.Writer, format string, d *api.Drive) error {
	switch format {
	case formatJSON:
		return printJSON(w, d)
	case formatCSV:
		return printList(w, format, []api.Drive{*d}, driveColumns)
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	line := func(what, format string, args ...any) {
		fmt.Fprintf(tw, "%s\t%s\n", what, fmt.Sprintf(format, args...))
	}
	line("drive", "%d at %s", d.ID, d.Path)
	line("process", "%s", d.Process)
	line("state", "%s", stateText(d))
	if d.Problem != "" {
		line("problem", "%s", d.Problem)
	}
	if d.Troubles > 0 {
		line("troubles", "its process ended %s in the last ten minutes because of the device; crake events --type drive.", times(d.Troubles))
	}
	line("space", "%s free of %s, %d strips, in %s", size.Format(int64(d.FreeBytes)), size.Format(int64(d.SizeBytes)), d.Strips, plural(d.PGs, "placement group"))
	line("domain", "%d", d.Domain)
	line("engine", "%s", orDash(engineText(d)))
	line("flush", "%s", orDash(d.Flush))
	line("reads", "%d, %s, each %s", d.Reads, size.Format(int64(d.ReadBytes)), nanos(d.ReadNs))
	line("writes", "%d, %s, each %s", d.Writes, size.Format(int64(d.WriteBytes)), nanos(d.WriteNs))
	line("flushes", "%d, each %s", d.Flushes, nanos(d.FlushNs))
	line("queued", "%s", plural(int(d.Queued), "request"))
	line("errors", "%d of IO, %d of checksums", d.Errors, d.Corrupt)
	line("scrub", "%s", scrubText(d))
	line("discarded", "%s", size.Format(int64(d.DiscardBytes)))
	line("index", "%s of memory", size.Format(int64(d.IndexBytes)))
	return tw.Flush()
}

func stateText(d *api.Drive) string {
	if d.Reason == "" {
		return d.State
	}
	return d.State + ": " + d.Reason
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

func scrubText(d *api.Drive) string {
	s := fmt.Sprintf("%d complete", d.ScrubPasses)
	if d.ScrubTotalBytes > 0 {
		s += fmt.Sprintf(", %s of %s of the pass under way", size.Format(int64(d.ScrubDoneBytes)), size.Format(int64(d.ScrubTotalBytes)))
	}
	return s
}

func (a *app) deactivateCmd() *cobra.Command {
	var dir dirFlag
	var format formatFlag
	var reason string
	var force bool
	c := &cobra.Command{
		Use: "deactivate ID", Short: "make a drive failed by hand: nothing is written to it or read from it any more", Args: theDrive,
		Long: `Makes a drive failed by hand, as before it is swapped. Nothing is written to it or read from it until crake cluster drive activate. What lies
on it is rebuilt from other drives at every read. Refused when data would become unavailable or all writes would wait, unless forced.`,
		Example: "  crake cluster drive deactivate 3 --reason 'to be swapped'",
		RunE: func(cmd *cobra.Command, arg []string) error {
			return a.changeDrive(cmd.Context(), &dir, &format, arg[0], func(ctx context.Context, c *api.Client, id uint32) (string, error) {
				return "is failed from now on; crake cluster drive activate " + arg[0] + " ends that", c.DeactivateDrive(ctx, id, reason, force)
			})
		},
	}
	dir.register(c)
	format.register(c, formatTable, formatJSON)
	c.Flags().StringVar(&reason, "reason", "", "why, for the listing and the events")
	c.Flags().BoolVar(&force, "force", false, "even if data becomes unavailable or all writes wait")
	return c
}

func (a *app) activateCmd() *cobra.Command {
	var dir dirFlag
	var format formatFlag
	c := &cobra.Command{
		Use: "activate ID", Short: "take a failed drive into use again after a repair", Args: theDrive,
		Long: `Takes a failed drive into use again, with what it holds: its process is started if need be, and it is up when that has opened the device.
What was written while it was away lies on other drives, or has less protection; nothing that it holds is out of date.`,
		Example: "  crake cluster drive activate 3",
		RunE: func(cmd *cobra.Command, arg []string) error {
			return a.changeDrive(cmd.Context(), &dir, &format, arg[0], func(ctx context.Context, c *api.Client, id uint32) (string, error) {
				return "is used again as soon as its process has opened it; crake cluster drive " + arg[0] + " tells", c.ActivateDrive(ctx, id)
			})
		},
	}
	dir.register(c)
	format.register(c, formatTable, formatJSON)
	return c
}

// changeDrive does something with a drive and prints what has become of it.
func (a *app) changeDrive(ctx context.Context, dir *dirFlag, format *formatFlag, arg string, do func(ctx context.Context, c *api.Client, id uint32) (string, error)) error {
	id, err := driveID(arg)
	if err != nil {
		return err
	}
	return dir.ask(ctx, 0, func(ctx context.Context, c *api.Client) error {
		text, err := do(ctx, c, id)
		if err != nil {
			return err
		}
		if !format.is(formatJSON) {
			_, err = fmt.Fprintf(a.out, "drive %d %s\n", id, text)
			return err
		}
		rows, err := c.Drives(ctx)
		if err != nil {
			return err
		}
		for i := range rows {
			if rows[i].ID == id {
				return printJSON(a.out, &rows[i])
			}
		}
		return fmt.Errorf("drive %d is gone", id)
	})
}
