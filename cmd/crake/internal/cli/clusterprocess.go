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

var processColumns = append(slices.Clone(psColumns),
	column[api.Process]{"memory", func(p api.Process) string { return size.Format(int64(p.RSSBytes)) }},
	column[api.Process]{"arena", arenaText},
	column[api.Process]{"transport", func(p api.Process) string { return transportText(p.Links) }},
	column[api.Process]{"up since", func(p api.Process) string { return since(p.StartedAt) }},
	column[api.Process]{"restarts", func(p api.Process) string { return fmt.Sprint(p.Restarts) }},
	column[api.Process]{"last exit", func(p api.Process) string { return p.LastExit }},
)

func (a *app) processCmd() *cobra.Command {
	var dir dirFlag
	var format formatFlag
	c := &cobra.Command{
		Use: "process [ID|NAME]", Short: "list the processes, or tell all about one",
		Long: `Lists the processes, or tells all that is known of one: how much of its arena (the memory for file data) is in use, and its links, which sum
up the connections with each peer: by which transport, how many, and how much data passed since they began, copied through the socket
or by reference in shared memory. TRANSPORT counts connections.`,
		Example: "  crake cluster process\n  crake cluster process compute0\n  crake cluster process -f json | jq '.[] | select(.state != \"up\")'",
		Args: func(cmd *cobra.Command, got []string) error {
			if len(got) == 0 {
				return nil
			}
			return args("ID|NAME")(cmd, got)
		},
		RunE: func(cmd *cobra.Command, arg []string) error {
			return dir.ask(cmd.Context(), 0, func(ctx context.Context, c *api.Client) error {
				rows, err := c.Processes(ctx)
				if err != nil {
					return err
				}
				if len(arg) == 0 {
					return printList(a.out, format.value, rows, processColumns)
				}
				for i := range rows {
					if rows[i].Name == arg[0] || rows[i].ID != 0 && fmt.Sprint(rows[i].ID) == arg[0] {
						return printOneProcess(a.out, format.value, &rows[i])
					}
				}
				return fmt.Errorf("there is no process %s; crake cluster process lists them", arg[0])
			})
		},
	}
	dir.register(c)
	format.register(c, formatTable, formatJSON, formatCSV)
	return c
}

var linkColumns = []column[api.Link]{
	{"peer", func(l api.Link) string { return peerText(l) }},
	{"transport", func(l api.Link) string { return l.Transport }},
	{"connections", func(l api.Link) string { return fmt.Sprint(l.Connections) }},
	{"sent inline", func(l api.Link) string { return size.Format(int64(l.SentInlineBytes)) }},
	{"sent by ref", func(l api.Link) string { return size.Format(int64(l.SentByRefBytes)) }},
	{"received inline", func(l api.Link) string { return size.Format(int64(l.ReceivedInlineBytes)) }},
	{"received by ref", func(l api.Link) string { return size.Format(int64(l.ReceivedByRefBytes)) }},
	{"loans", func(l api.Link) string { return fmt.Sprint(l.Loans) }},
	{"lent now", func(l api.Link) string { return size.Format(int64(l.LoanBytes)) }},
}

// printOneProcess tells all about a process.
func printOneProcess(w io.Writer, format string, p *api.Process) error {
	switch format {
	case formatJSON:
		return printJSON(w, p)
	case formatCSV:
		return printList(w, format, []api.Process{*p}, processColumns)
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	line := func(what, format string, args ...any) {
		fmt.Fprintf(tw, "%s\t%s\n", what, fmt.Sprintf(format, args...))
	}
	line("process", "%s, %s %d, version %s", p.Name, p.Role, p.ID, orDash(p.Version))
	line("state", "%s", p.State)
	if p.Note != "" {
		line("note", "%s", p.Note)
	}
	line("pid", "%s, on cores %s", orDash(pidText(p.PID)), orDash(intList(p.Cores)))
	line("up since", "%s, %s, incarnation %d", orDash(since(p.StartedAt)), plural(p.Restarts, "restart"), p.Incarnation)
	if p.LastExit != "" {
		line("last exit", "%s", p.LastExit)
	}
	line("memory", "%s", size.Format(int64(p.RSSBytes)))
	line("arena", "%s", orDash(arenaText(*p)))
	if p.ArenaLentBytes+p.ArenaQuarantinedBytes > 0 {
		line("lent", "%s, and %s in quarantine", size.Format(int64(p.ArenaLentBytes)), size.Format(int64(p.ArenaQuarantinedBytes)))
	}
	line("listens at", "%s", orDash(strings.Join(p.Addrs, ", ")))
	line("log", "%s", p.Log)
	line("transport", "%s", orDash(transportText(p.Links)))
	if err := tw.Flush(); err != nil {
		return err
	}
	if len(p.Links) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	return printList(w, formatTable, p.Links, linkColumns)
}

func peerText(l api.Link) string {
	if l.Peer == "" {
		return "others"
	}
	return l.Peer
}

// arenaText tells how much of a process's memory for data is in use, such as "3MiB of 64MiB"; "" when nobody knows.
func arenaText(p api.Process) string {
	if p.ArenaBytes == 0 {
		return ""
	}
	return size.Format(int64(p.ArenaUsedBytes)) + " of " + size.Format(int64(p.ArenaBytes))
}

// transportText counts the connections of a process by transport, such as "shm 8, tcp 3"; "" when it has none.
func transportText(links []api.Link) string {
	count := map[string]int{}
	var names []string
	for _, l := range links {
		if count[l.Transport] == 0 {
			names = append(names, l.Transport)
		}
		count[l.Transport] += l.Connections
	}
	slices.Sort(names)
	for i, n := range names {
		names[i] = fmt.Sprintf("%s %d", n, count[n])
	}
	return strings.Join(names, ", ")
}
