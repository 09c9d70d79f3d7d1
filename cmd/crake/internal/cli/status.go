package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/crakefs/crake/cmd/crake/internal/size"
	"github.com/crakefs/crake/mgmt/api"
)

func (a *app) statusCmd() *cobra.Command {
	var dir dirFlag
	var format formatFlag
	c := &cobra.Command{
		Use: "status", Short: "how the cluster is: protection, processes, buckets, capacity, health", Args: args(),
		Example: "  crake status --dir /var/lib/crake\n  crake status -f json | jq .health",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return dir.ask(cmd.Context(), 0, func(ctx context.Context, c *api.Client) error {
				st, err := c.Status(ctx)
				if err != nil {
					return err
				}
				if format.is(formatJSON) {
					return printJSON(a.out, st)
				}
				return printStatus(a.out, st)
			})
		},
	}
	dir.register(c)
	format.register(c, formatTable, formatJSON)
	return c
}

// printStatus prints what fits on a page: one line a subject.
func printStatus(w io.Writer, st *api.Status) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	line := func(what, format string, args ...any) {
		fmt.Fprintf(tw, "%s\t%s\n", what, fmt.Sprintf(format, args...))
	}
	line("cluster", "%s (%s), generation %d", st.Name, st.ClusterID, st.Generation)
	line("version", "%s", st.Version)
	line("health", "%s", healthText(st.Health))
	line("protection", "%d+%d: any %s may fail", st.Protection.Data, st.Protection.Parity, plural(st.Protection.Parity, "drive"))
	line("processes", "%s", processText(st.Processes))
	line("drives", "%s", driveText(st.Drives))
	line("buckets", "%s", bucketText(st.Buckets))
	line("capacity", "%s free of %s usable (%s of %s raw)", size.Format(int64(st.Capacity.UsableFreeBytes)),
		size.Format(int64(st.Capacity.UsableBytes)), size.Format(int64(st.Capacity.RawFreeBytes)), size.Format(int64(st.Capacity.RawBytes)))
	for _, fs := range st.Filesystems {
		where := "not mounted here"
		if len(fs.Mounts) > 0 {
			where = "at " + strings.Join(fs.Mounts, ", ")
		}
		if fs.Deleting {
			where = "is being removed"
		}
		line("filesystem", "%s %s", fs.Name, where)
	}
	for _, m := range st.Mounts {
		if !m.Ready {
			line("mount", "%s at %s is not ready %s", m.FS, m.Path, m.Error)
		}
	}
	for _, advice := range st.Advice {
		line("advice", "%s", advice)
	}
	line("wire", "%s", wireText(st))
	line("directory", "%s", st.Mgmt.Dir)
	if st.Mgmt.APIListen != "" {
		line("api", "http://%s%s", st.Mgmt.APIListen, api.Prefix)
	}
	return tw.Flush()
}

func wireText(st *api.Status) string {
	if st.WireEncryption {
		return st.Wire + ", encrypted"
	}
	return st.Wire
}

func healthText(h api.Health) string {
	if len(h.Reasons) == 0 {
		return h.State
	}
	return h.State + ": " + strings.Join(h.Reasons, "; ")
}

func processText(counts map[string]api.Count) string {
	var parts []string
	seen := map[string]bool{}
	add := func(role string) {
		if c, ok := counts[role]; ok && !seen[role] {
			seen[role] = true
			parts = append(parts, fmt.Sprintf("%s %d/%d", role, c.Up, c.Total))
		}
	}
	for _, role := range []string{"drive", "compute", "frontend", "mgmt"} {
		add(role)
	}
	var rest []string
	for role := range counts {
		rest = append(rest, role)
	}
	slices.Sort(rest)
	for _, role := range rest {
		add(role)
	}
	return strings.Join(parts, ", ") + " up"
}

func driveText(d api.DriveCount) string {
	s := fmt.Sprintf("%d of %d up", d.Up, d.Total)
	if down := d.Total - d.Up - d.Failed; down > 0 {
		s += fmt.Sprintf(", %d down", down)
	}
	if d.Failed > 0 {
		s += fmt.Sprintf(", %d failed", d.Failed)
	}
	return s
}

func bucketText(b api.BucketCount) string {
	s := fmt.Sprintf("%d of %d serving", b.Serving, b.Total)
	for _, p := range []struct {
		n    int
		what string
	}{{b.Opening, "opening"}, {b.Failed, "failed"}, {b.Unowned, "without an owner"}} {
		if p.n > 0 {
			s += fmt.Sprintf(", %d %s", p.n, p.what)
		}
	}
	return s
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
