// Command wirespeed measures one request and its answer between two processes, each with a core, or both with the same, and holds it
// against a bare exchange of as many bytes over a unix socket in Go: with nothing of ours but the spinner, where that is on. It prints a table.
//
//	make bench-wire
//	make bench-wire BENCHFLAGS='--runs 1 --seconds 0.2'
//
// One goroutine asks and waits, one request at a time. Figures are medians. Processor time is that of both processes and counts
// what was spun.
//
// case.go has what is measured, bare.go and crake.go the two ways, serve.go the answering process.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/bench/internal/pinned"
	"github.com/crakefs/crake/wire/procfs"
)

// config is what the command line says.
type config struct {
	runs    int
	seconds float64
	check   bool
	ask     int // core of the asking side, this process
	answer  int // core of the answering side, where it is another
}

func main() {
	if len(os.Args) == 5 && os.Args[1] == serveCommand {
		exit(serveMain(os.Args[2], os.Args[3], os.Args[4] == "true"))
	}
	cfg, err := parse(os.Args[1:], os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err == nil {
		err = pinSelf(cfg)
	}
	if err != nil {
		exit(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	exit(run(ctx, cfg, os.Stdout))
}

// exit ends the process, with what went wrong.
func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "wirespeed:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func parse(args []string, out io.Writer) (*config, error) {
	cfg := &config{}
	fs := flag.NewFlagSet("wirespeed", flag.ContinueOnError)
	fs.SetOutput(out)
	fs.IntVar(&cfg.runs, "runs", 5, "how often to measure each figure; the median counts")
	fs.Float64Var(&cfg.seconds, "seconds", 0.5, "how long to measure each")
	fs.BoolVar(&cfg.check, "check", false, fmt.Sprintf("fail where a request without data takes more than %.1f bare exchanges", target))
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if cfg.runs < 1 || cfg.seconds < 0.01 || fs.NArg() > 0 {
		return nil, errors.New("want --runs of at least 1, --seconds of at least 0.01, and nothing else")
	}
	all, err := procfs.AllowedCores()
	if err != nil {
		return nil, err
	}
	if env := os.Getenv(coresEnv); env != "" { // after pinSelf
		_, err := fmt.Sscanf(env, "%d,%d", &cfg.ask, &cfg.answer)
		return cfg, err
	}
	if len(all) < 2 {
		return nil, fmt.Errorf("this process may use %d core; the measurement needs two", len(all))
	}
	cfg.ask, cfg.answer = all[0], all[len(all)-1]
	return cfg, nil
}

// coresEnv tells the process that pinSelf makes which cores there were.
const coresEnv = "WIRESPEED_CORES"

// pinSelf goes on on the asking side's core alone.
func pinSelf(cfg *config) error {
	now, err := procfs.AllowedCores()
	if err != nil || slices.Equal(now, []int{cfg.ask}) {
		return err
	}
	if err := os.Setenv(coresEnv, fmt.Sprintf("%d,%d", cfg.ask, cfg.answer)); err != nil {
		return err
	}
	return pinned.Exec(cfg.ask, os.Args[1:])
}

// run measures all cases, in turns, so that what else happens on the machine meets all of them, and prints the table.
func run(ctx context.Context, cfg *config, out io.Writer) error {
	cases := allCases()
	bare, ours := make([][]sample, len(cases)), make([][]sample, len(cases))
	for range cfg.runs {
		for i, c := range cases {
			b, err := c.measure(ctx, cfg, wayBare)
			if err != nil {
				return fmt.Errorf("%v, bare: %w", c, err)
			}
			o, err := c.measure(ctx, cfg, wayCrake)
			if err != nil {
				return fmt.Errorf("%v: %w", c, err)
			}
			bare[i], ours[i] = append(bare[i], b), append(ours[i], o)
		}
	}
	fmt.Fprintf(out, "one request and its answer, median of %d runs of %v; us of time, us of processor time of both sides\n\n", cfg.runs, cfg.duration())
	fmt.Fprintf(out, " %-22s | bare us | Crake us | ratio | cpu bare | cpu Crake | allocs\n", "")
	var missed error
	for i, c := range cases {
		b, o := median(bare[i]), median(ours[i])
		ratio := o.us / b.us
		verdict := ""
		if c.data == 0 && ratio > target {
			verdict = fmt.Sprintf(" more than %.1f", target)
			if cfg.check {
				missed = errors.Join(missed, fmt.Errorf("%v: %.2f bare exchanges", c, ratio))
			}
		}
		fmt.Fprintf(out, " %-22v | %7.1f | %8.1f | %5.2f | %8.1f | %9.1f | %6.2f%s\n", c, b.us, o.us, ratio, b.cpu, o.cpu, o.allocs, verdict)
	}
	return missed
}

func (cfg *config) duration() time.Duration {
	return time.Duration(cfg.seconds * float64(time.Second))
}
