// Command drivespeed measures one drive against fio (io_uring) on the same device in the same run: a real `crake drive` process on one
// core, driven over its unix socket by this process on another. It prints a table, or JSON.
//
//	make bench-drive                                        all devices, five runs
//	make bench-drive BENCHFLAGS='--devices ram --runs 1'    some of it
//	make bench-drive BENCHFLAGS='--devices disk --jobs read4k-d1,put128k-d8 --runs 1 --perf'
//
// run.go has the order of things, device.go the devices, job.go the jobs and what fio does for each, report.go the table.
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
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/bench/internal/driveload"
	"github.com/crakefs/crake/bench/internal/fio"
	"github.com/crakefs/crake/bench/internal/pinned"
	"github.com/crakefs/crake/wire/procfs"
)

// config is what the command line says.
type config struct {
	bin     string // the crake binary
	devices []string
	dir     string // on the disk to measure
	ramDir  string // on tmpfs
	size    int64  // bytes that are read; writes have as much
	runs    int
	seconds float64
	jobs    []job
	format  string
	perf    bool
	spin    bool // both sides may spin, each having its core to itself
	cores   cores
}

// What can be printed.
const (
	formatTable    = "table"
	formatMarkdown = "markdown"
	formatJSON     = "json"
)

// cores are where the two sides run.
type cores struct {
	drive int // also fio
	load  int // this process
}

func main() {
	if len(os.Args) == 4 && os.Args[1] == echoCommand {
		exit(echoMain(os.Args[2], os.Args[3] == "true"))
	}
	cfg, err := parse(os.Args[1:], os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		exit(err)
	}
	if err := pinSelf(cfg); err != nil {
		exit(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	rep, err := run(ctx, cfg, os.Stderr)
	if rep != nil {
		if werr := rep.write(os.Stdout, cfg.format); err == nil {
			err = werr
		}
	}
	exit(err)
}

// exit ends the process, with what went wrong.
func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "drivespeed:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// parse reads the command line and says what is wrong with it or with the machine.
func parse(args []string, out io.Writer) (*config, error) {
	cfg := &config{}
	fs := flag.NewFlagSet("drivespeed", flag.ContinueOnError)
	fs.SetOutput(out)
	devices := fs.String("devices", "disk,loop,ram", "what to measure: disk is a file in --dir, loop a loop device on such a file, ram a file in --ram-dir")
	fs.StringVar(&cfg.dir, "dir", "/var/tmp", "directory on the disk to measure; everything in it of ours is removed at the end")
	fs.StringVar(&cfg.ramDir, "ram-dir", "/dev/shm", "directory on a tmpfs")
	size := fs.String("size", "1GiB", "bytes that are read; a device has four times as much: reads and writes, Crake and fio")
	fs.IntVar(&cfg.runs, "runs", 5, "how often to measure each figure; the median counts")
	fs.Float64Var(&cfg.seconds, "seconds", 3, "how long to measure each")
	jobs := fs.String("jobs", "all", "which jobs: "+strings.Join(jobNames(allJobs()), ","))
	fs.StringVar(&cfg.format, "f", formatTable, "what to print: table, markdown or json")
	fs.BoolVar(&cfg.perf, "perf", false, "record profiles of both sides with perf, and print where their time goes")
	fs.BoolVar(&cfg.spin, "spin", true, "both sides wait by looking for a moment before they sleep, as a process does that has its core to itself (--dedicated-core)")
	where := fs.String("cores", "", "core of the drive and of fio, and core of the load, such as 1,0 (default: the last and the first)")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	var errs []error
	var err error
	if cfg.size, err = parseSize(*size); err != nil {
		errs = append(errs, fmt.Errorf("--size: %w", err))
	}
	if cfg.devices, err = parseDevices(*devices); err != nil {
		errs = append(errs, err)
	}
	if cfg.jobs, err = parseJobs(*jobs); err != nil {
		errs = append(errs, err)
	}
	if cfg.cores, err = parseCores(*where); err != nil {
		errs = append(errs, err)
	}
	if !slices.Contains([]string{formatTable, formatMarkdown, formatJSON}, cfg.format) {
		errs = append(errs, fmt.Errorf("-f %s: want table, markdown or json", cfg.format))
	}
	if cfg.runs < 1 || cfg.seconds < 0.05 {
		errs = append(errs, errors.New("--runs and --seconds must be positive"))
	}
	if fs.NArg() > 0 {
		errs = append(errs, fmt.Errorf("what is %q? there are only flags", fs.Arg(0)))
	}
	errs = append(errs, fio.Installed(), cfg.findBinary())
	if cfg.perf {
		errs = append(errs, perfUsable(cfg.bin))
	}
	return cfg, errors.Join(errs...)
}

func (cfg *config) findBinary() error {
	if cfg.bin = os.Getenv("CRAKE_BIN"); cfg.bin == "" {
		return errors.New("CRAKE_BIN names no binary; use make bench-drive")
	}
	_, err := os.Stat(cfg.bin)
	return err
}

func (cfg *config) duration() time.Duration { return time.Duration(cfg.seconds * float64(time.Second)) }

// parseSize reads a number of bytes, such as 512MiB. The jobs need whole requests of 1 MiB.
func parseSize(text string) (int64, error) {
	num, unit := text, int64(1)
	for _, u := range []struct {
		name  string
		bytes int64
	}{{"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}} {
		if s, ok := strings.CutSuffix(text, u.name); ok {
			num, unit = s, u.bytes
		}
	}
	n, err := strconv.ParseInt(num, 10, 32)
	switch {
	case err != nil:
		return 0, fmt.Errorf("%q is no size; want a whole number with MiB or GiB", text)
	case n*unit < minSizeBytes || n*unit%(1<<20) != 0:
		return 0, fmt.Errorf("%s: want at least %d MiB, in whole MiB", text, minSizeBytes>>20)
	}
	return n * unit, nil
}

// parseCores chooses two cores. On fewer there would be nothing to compare: the load would take the drive's time.
func parseCores(text string) (c cores, err error) {
	if text != "" {
		if n, err := fmt.Sscanf(text, "%d,%d", &c.drive, &c.load); err != nil || n != 2 || c.drive == c.load {
			return c, fmt.Errorf("--cores %q: want two different numbers, such as 1,0", text)
		}
		return c, nil
	}
	all, err := procfs.AllowedCores()
	if err != nil {
		return c, err
	}
	if len(all) < 2 {
		return c, fmt.Errorf("this process may use %d core; the measurement needs two, one for the drive and one for the load", len(all))
	}
	return cores{drive: all[len(all)-1], load: all[0]}, nil
}

// pinSelf goes on on the load's core alone.
func pinSelf(cfg *config) error {
	now, err := procfs.AllowedCores()
	if err != nil || slices.Equal(now, []int{cfg.cores.load}) {
		return err
	}
	return pinned.Exec(cfg.cores.load, append(os.Args[1:], fmt.Sprintf("--cores=%d,%d", cfg.cores.drive, cfg.cores.load)))
}

// echoCommand makes this binary the echo: see driveload.ServeEcho.
const echoCommand = "echo"

func echoMain(addr string, spins bool) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	s, end := pinned.Spinner(ctx, spins)
	return errors.Join(driveload.ServeEcho(ctx, addr, benchCluster, s), end())
}
