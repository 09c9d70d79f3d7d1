// Package cli is the command tree of crake.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"github.com/crakefs/crake/cmd/crake/internal/roles"
)

// Exit statuses.
const (
	statusOK     = 0
	statusFailed = 1 // the command was understood and could not be done
	statusUsage  = 2 // wrong flag, argument or command
)

// app is what the commands share.
type app struct {
	version string
	out     io.Writer // what was asked for
	err     io.Writer // progress and errors
}

// usageError marks a wrong command line.
type usageError struct{ error }

// Unwrap gives the cause.
func (e usageError) Unwrap() error { return e.error }

// Main runs a command line and gives the exit status. Nothing that it started is left when it returns, but the cluster
// that dev up was asked for.
func Main(ctx context.Context, version string, args []string) int {
	return run(ctx, &app{version: version, out: os.Stdout, err: os.Stderr}, args)
}

func run(ctx context.Context, a *app, args []string) int {
	root := a.root()
	root.SetArgs(args)
	root.SetOut(a.out)
	root.SetErr(a.err)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return statusOK
	}
	fmt.Fprintf(a.err, "crake: %s\n", oneLine(err))
	if errors.As(err, &usageError{}) {
		return statusUsage
	}
	return statusFailed
}

// oneLine makes one line of an error, also of one that errors.Join made.
func oneLine(err error) string {
	var parts []string
	for line := range strings.Lines(err.Error()) {
		if line = strings.TrimSpace(line); line != "" {
			parts = append(parts, line)
		}
	}
	return strings.Join(parts, "; ")
}

func (a *app) root() *cobra.Command {
	root := a.group("crake", "a parallel filesystem that behaves like a local disk", `
Crake is a parallel filesystem that behaves like a local disk and survives the loss of drives and servers.

  crake dev up --dir DIR --mount MNT     forms a cluster on this machine and mounts it; the quickest start
  crake status                           how it is
  crake dev down --dir DIR               stops it; dev up brings it back

Commands that talk to a cluster find it by --dir DIR, else by $CRAKE_DIR, else it is the only one that runs on this machine.`)
	root.SilenceErrors, root.SilenceUsage = true, true
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())}
	})
	root.AddGroup(
		&cobra.Group{ID: "people", Title: "To use and look into a cluster:"},
		&cobra.Group{ID: "dev", Title: "To run one on this machine:"},
		&cobra.Group{ID: "roles", Title: "The roles (mgmt starts them):"},
	)
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("dev", a.devCmd())
	add("people", a.statusCmd(), a.clusterCmd(), a.fsCmd(), a.eventsCmd(), a.wireCmd(), a.mountCmd(), a.umountCmd())
	driveRole := roles.Drive(a.version)
	driveRole.AddCommand(a.inspectCmd(), a.checkCmd())
	add("roles", driveRole, roles.Compute(a.version), roles.Frontend(a.version), roles.Mgmt(a.version))
	root.AddCommand(a.versionCmd())
	return root
}

// group makes a command that only holds others: alone it prints its help, with an unknown word it fails.
func (a *app) group(use, short, long string, children ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short, Long: strings.TrimSpace(long),
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			msg := fmt.Sprintf("unknown command %q", strings.Join(append(strings.Fields(cmd.CommandPath()), args[0]), " "))
			if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
				msg += fmt.Sprintf(", did you mean %q?", s[0])
			}
			return usageError{fmt.Errorf("%s; see %s --help", msg, cmd.CommandPath())}
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(children...)
	return c
}

// args demands exactly the arguments that the names stand for.
func args(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, got []string) error {
		switch {
		case len(got) < len(names):
			return usageError{fmt.Errorf("%s is missing; see %s --help", strings.Join(names[len(got):], " "), cmd.CommandPath())}
		case len(got) > len(names):
			return usageError{fmt.Errorf("%q is one argument too many; see %s --help", got[len(names)], cmd.CommandPath())}
		}
		return nil
	}
}

// versionInfo is what version prints.
type versionInfo struct {
	Version  string `json:"version"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func (a *app) versionCmd() *cobra.Command {
	var format formatFlag
	c := &cobra.Command{
		Use: "version", Short: "print the version of this binary", Args: args(),
		Example: "  crake version\n  crake version -f json",
		RunE: func(*cobra.Command, []string) error {
			v := versionInfo{a.version, runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
			if format.is(formatJSON) {
				return printJSON(a.out, v)
			}
			_, err := fmt.Fprintf(a.out, "crake %s %s %s\n", v.Version, v.Go, v.Platform)
			return err
		},
	}
	format.register(c, formatTable, formatJSON)
	return c
}
