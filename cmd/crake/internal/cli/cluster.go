package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/crakefs/crake/cmd/crake/internal/size"
	"github.com/crakefs/crake/mgmt/api"
)

// list describes a listing command: how it asks and how it prints.
type list[T any] struct {
	use, short, example string
	columns             []column[T]
	fetch               func(ctx context.Context, c *api.Client) ([]T, error)
}

// listCmd makes the command of a listing.
func listCmd[T any](a *app, l list[T]) *cobra.Command {
	var dir dirFlag
	var format formatFlag
	c := &cobra.Command{
		Use: l.use, Short: l.short, Example: l.example, Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return dir.ask(cmd.Context(), 0, func(ctx context.Context, c *api.Client) error {
				rows, err := l.fetch(ctx, c)
				if err != nil {
					return err
				}
				return printList(a.out, format.value, rows, l.columns)
			})
		},
	}
	dir.register(c)
	format.register(c, formatTable, formatJSON, formatCSV)
	return c
}

func (a *app) clusterCmd() *cobra.Command {
	return a.group("cluster", "look into the parts of a cluster", "Lists the processes, drives, buckets and placement groups of a cluster.",
		a.processCmd(), a.drivesCmd(), a.bucketCmd(), a.pgCmd())
}

// psColumns are the columns that dev ps promises.
var psColumns = []column[api.Process]{
	{"role", func(p api.Process) string { return p.Role }},
	{"name", func(p api.Process) string { return p.Name }},
	{"pid", func(p api.Process) string { return pidText(p.PID) }},
	{"cores", func(p api.Process) string { return intList(p.Cores) }},
	{"version", func(p api.Process) string { return p.Version }},
	{"state", func(p api.Process) string { return p.State }},
}

func pidText(pid int) string {
	if pid == 0 {
		return ""
	}
	return fmt.Sprint(pid)
}

func (a *app) bucketCmd() *cobra.Command {
	return listCmd(a, list[api.Bucket]{
		use: "bucket", short: "list the buckets (the shards of metadata) and who owns them", example: "  crake cluster bucket\n  crake cluster bucket -f json",
		fetch: func(ctx context.Context, c *api.Client) ([]api.Bucket, error) { return c.Buckets(ctx, true) },
		columns: []column[api.Bucket]{
			{"id", func(b api.Bucket) string { return fmt.Sprint(b.ID) }},
			{"owner", func(b api.Bucket) string { return b.Owner }},
			{"epoch", func(b api.Bucket) string { return fmt.Sprint(b.Epoch) }},
			{"state", func(b api.Bucket) string { return b.State }},
			{"inodes", func(b api.Bucket) string { return fmt.Sprint(b.Inodes) }},
			{"data", func(b api.Bucket) string { return size.Format(int64(b.DataBytes)) }},
			{"stripes", func(b api.Bucket) string { return fmt.Sprint(b.Stripes) }},
			{"segments", func(b api.Bucket) string { return fmt.Sprint(b.Segments) }},
			{"leases", func(b api.Bucket) string { return fmt.Sprint(b.Leases) }},
			{"open txns", func(b api.Bucket) string { return fmt.Sprint(b.OpenTxns) }},
			{"error", func(b api.Bucket) string { return b.Error }},
		},
	})
}

func (a *app) pgCmd() *cobra.Command {
	return listCmd(a, list[api.PG]{
		use: "pg", short: "list the placement groups (which drives share stripes)", example: "  crake cluster pg",
		fetch: func(ctx context.Context, c *api.Client) ([]api.PG, error) { return c.PGs(ctx) },
		columns: []column[api.PG]{
			{"id", func(p api.PG) string { return fmt.Sprint(p.ID) }},
			{"drives", func(p api.PG) string { return idList(p.Drives) }},
			{"up", func(p api.PG) string { return fmt.Sprint(p.Up) }},
		},
	})
}

func (a *app) eventsCmd() *cobra.Command {
	var filter api.EventFilter
	c := listCmd(a, list[api.Event]{
		use: "events", short: "what happened in the cluster, oldest first",
		example: "  crake events\n  crake events --severity warning --limit 20\n  crake events --type strip. -f json",
		fetch:   func(ctx context.Context, c *api.Client) ([]api.Event, error) { return c.Events(ctx, filter) },
		columns: []column[api.Event]{
			{"id", func(e api.Event) string { return fmt.Sprint(e.ID) }},
			{"time", func(e api.Event) string { return e.Time.Local().Format("2006-01-02 15:04:05.000") }},
			{"severity", func(e api.Event) string { return e.Severity }},
			{"type", func(e api.Event) string { return e.Type }},
			{"process", func(e api.Event) string { return e.Process }},
			{"text", func(e api.Event) string { return e.Text }},
		},
	})
	c.Flags().IntVar(&filter.Limit, "limit", api.DefaultEvents, fmt.Sprintf("the newest so many, at most %d", api.MaxEvents))
	c.Flags().Uint64Var(&filter.After, "after", 0, "only those with a greater id")
	c.Flags().StringVar(&filter.Severity, "severity", "", "at least this: info, warning, error")
	c.Flags().StringVar(&filter.Type, "type", "", "only this type, such as process.exit, or all that begin so when it ends with a dot")
	return c
}
