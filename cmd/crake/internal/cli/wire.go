package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/crakefs/crake/cmd/crake/internal/size"
	"github.com/crakefs/crake/mgmt/api"
	"github.com/crakefs/crake/wire/capture"
	"github.com/crakefs/crake/wire/dump"
)

// formatText is the format of lines for people.
const formatText = "text"

// wireCmd makes crake wire.
func (a *app) wireCmd() *cobra.Command {
	return a.group("wire", "look at what processes say to each other", `
Looks at the frames of the wire protocol: wire capture takes them from a running process, wire dump prints them. The protocol
is described in wire/PROTOCOL.md, its methods and messages in wire/MESSAGES.md.

  crake wire capture drive0 --seconds 5 -o drive0.cap     what drive0 sends and receives in five seconds
  crake wire dump drive0.cap                              a line for each frame
  crake wire capture compute1 -o - | crake wire dump -    as it happens`, a.captureCmd(), a.dumpCmd())
}

// captureCmd makes crake wire capture.
func (a *app) captureCmd() *cobra.Command {
	var dir dirFlag
	var seconds float64
	var out string
	var data int
	longest := size.Flag(256 << 20)
	c := &cobra.Command{
		Use: "capture NAME", Short: "take the frames of a running process", Args: args("NAME"),
		Long: strings.TrimSpace(`
Takes the frames that a process of this machine sends and receives from now on, on all its connections: headers and messages, and with
--data the beginning of the file data. The process need not be started anew, is not held up (what cannot be kept is counted), and forgets all
about it afterwards. NAME is as crake dev ps shows it, or mgmt. Only root and the user of the process may do this: messages hold names
of files, and --data what is in them.`),
		Example: "  crake wire capture drive0 --seconds 5 -o drive0.cap\n  crake wire capture compute1 -o - | crake wire dump - --errors\n  crake wire capture frontend0 --data 64 --max 1MiB -o f.cap",
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case out == "":
				return usageError{errors.New("-o FILE is missing (- is standard output); see crake wire capture --help")}
			case seconds < 0:
				return usageError{errors.New("--seconds is negative")}
			case data < 0 || data > capture.MaxDataBytes:
				return usageError{fmt.Errorf("--data %d: 0 to %d bytes", data, capture.MaxDataBytes)}
			case longest < 64<<10:
				return usageError{errors.New("--max: 64 KiB or more")}
			}
			root, err := dir.find()
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			if seconds > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, time.Duration(seconds*float64(time.Second)))
				defer cancel()
			}
			return a.capture(ctx, root, args[0], out, data, int64(longest))
		},
	}
	dir.register(c)
	c.Flags().StringVarP(&out, "output", "o", "", "file to write, - for standard output")
	c.Flags().Float64Var(&seconds, "seconds", 0, "how long; 0: until it is interrupted")
	c.Flags().IntVar(&data, "data", 0, "bytes of each data section to keep, at most 4096")
	c.Flags().Var(&longest, "max", "end when so much is captured")
	return c
}

// capture writes the capture of a process until ctx ends or it is as long as it may be.
func (a *app) capture(ctx context.Context, dir, name, out string, data int, longest int64) error {
	if out == "-" && isTerminal(a.out) {
		return usageError{errors.New("a capture is not for a terminal: -o FILE, or ... | crake wire dump -")}
	}
	path := capture.SocketPath(api.ProcAddr(dir, name))
	in, err := capture.Look(ctx, path, data)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) || err != nil && ctx.Err() == nil {
		return fmt.Errorf("%s of the cluster in %s cannot be looked at: is it running, and are you root? crake dev ps lists processes: %w", name, dir, err)
	} else if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = in.Stop() })
	defer stop()
	defer in.Close()
	w := a.out
	if out != "-" {
		f, err := os.OpenFile(out, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		w = f
	}
	n, err := io.Copy(w, io.LimitReader(in, longest))
	if err == nil && n == longest { // the rest up to the last whole frame
		_ = in.Stop() // it may have ended by itself
		var rest int64
		rest, err = io.Copy(w, in)
		n += rest
	}
	if err == nil && n == 0 && ctx.Err() == nil {
		err = fmt.Errorf("%s turned this away: too many look at it already, or it is of another user; see %s", name, api.LogPath(dir, name))
	}
	if err == nil && out != "-" {
		fmt.Fprintf(a.err, "%s: %s\n", out, bytesText(uint64(n)))
	}
	return err
}

// dumpCmd makes crake wire dump.
func (a *app) dumpCmd() *cobra.Command {
	var format formatFlag
	var o dump.Options
	var methods []string
	var id, trace string
	c := &cobra.Command{
		Use: "dump FILE...", Short: "print captured frames",
		Long: strings.TrimSpace(`
Prints captured frames, one a line: when, from whom to whom, what, how long the answer took. With -v the message follows, field by field. FILE is a
capture (crake wire capture), or the raw bytes of one direction of a connection, from its first byte or from the beginning of a frame;
- is standard input. What cannot be read is an error that names the place; what comes before is printed.`),
		Example: "  crake wire dump drive0.cap\n  crake wire dump -v --method DriveRead --method DrivePut drive0.cap\n" +
			"  crake wire dump --errors *.cap\n  crake wire dump -f json drive0.cap | jq -r 'select(.took_ns > 1e6) | .method'\n" +
			"  crake wire capture compute0 -o - | crake wire dump - --trace 5f1a",
		Args: func(cmd *cobra.Command, got []string) error {
			if len(got) == 0 {
				return usageError{fmt.Errorf("FILE is missing; see %s --help", cmd.CommandPath())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, name := range methods {
				m, err := dump.ParseMethod(name)
				if err != nil {
					return usageError{fmt.Errorf("--method: %w", err)}
				}
				o.Methods = append(o.Methods, m)
			}
			var err error
			if o.ID, err = numberFlag("--id", id, 10); err != nil {
				return err
			}
			if o.Trace, err = numberFlag("--trace", trace, 16); err != nil {
				return err
			}
			o.JSON = format.is(formatJSON)
			return a.dump(args, o)
		},
	}
	c.Flags().BoolVarP(&o.Messages, "verbose", "v", false, "print the fields of messages, and captured data")
	c.Flags().StringArrayVar(&methods, "method", nil, "only frames of this method, such as DriveRead or 0x0104; may be repeated")
	c.Flags().StringVar(&id, "id", "", "only the request with this id and its answer")
	c.Flags().StringVar(&trace, "trace", "", "only frames of this trace, hexadecimal as printed")
	c.Flags().BoolVar(&o.Errors, "errors", false, "only answers that are errors")
	format.register(c, formatText, formatJSON)
	return c
}

// numberFlag reads a number that may be missing.
func numberFlag(flag, text string, base int) (*uint64, error) {
	if text == "" {
		return nil, nil
	}
	n, err := strconv.ParseUint(strings.TrimPrefix(text, "0x"), base, 64)
	if err != nil {
		return nil, usageError{fmt.Errorf("%s %q: want a number in base %d", flag, text, base)}
	}
	return &n, nil
}

func (a *app) dump(paths []string, o dump.Options) error {
	w := bufio.NewWriter(a.out)
	for _, path := range paths {
		if err := dumpOne(w, path, len(paths) > 1 && !o.JSON, o); err != nil {
			return errors.Join(w.Flush(), err)
		}
	}
	return w.Flush()
}

func dumpOne(w *bufio.Writer, path string, title bool, o dump.Options) error {
	f := os.Stdin
	if path != "-" {
		var err error
		if f, err = os.Open(path); err != nil {
			return err
		}
		defer f.Close()
	}
	if title {
		fmt.Fprintf(w, "# %s\n", path)
	}
	if err := dump.Print(w, f, o, w.Flush); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
