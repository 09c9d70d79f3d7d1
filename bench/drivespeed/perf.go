package main

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/bench/internal/pinned"
)

// profile tells where the processor time of one side went during a job.
type profile struct {
	What    string   `json:"what"`
	Symbols []string `json:"symbols"` // as perf prints them: share, object, symbol
}

// perfUsable says why --perf cannot work.
func perfUsable(bin string) error {
	if _, err := exec.LookPath("perf"); err != nil {
		return errors.New("--perf: perf is not installed; on Debian: apt-get install linux-perf")
	}
	f, err := elf.Open(bin)
	if err != nil {
		return fmt.Errorf("--perf: %s: %w", bin, err)
	}
	defer f.Close()
	if f.Section(".symtab") == nil {
		return fmt.Errorf("--perf: %s has no symbols (it was linked with -s); make bench-drive-perf builds one that has", bin)
	}
	return nil
}

// profile records both sides while a job is measured.
func (r *runner) profile(ctx context.Context, what string, s *server, measure func() error) (err error) {
	dir, err := os.MkdirTemp("", "crake-drivespeed-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	sides := []struct {
		name string
		pid  int
	}{{"drive", s.proc.PID()}, {"load", os.Getpid()}}
	var stops []func() error
	for _, side := range sides {
		stop, err := record(filepath.Join(dir, side.name), side.pid, r.cfg.cores.load)
		if err != nil {
			for _, stop := range stops {
				err = errors.Join(err, stop())
			}
			return err
		}
		stops = append(stops, stop)
	}
	err = measure()
	for i, stop := range stops {
		err = errors.Join(err, stop())
		if err == nil {
			var top []string
			top, err = topOf(ctx, filepath.Join(dir, sides[i].name), sides[i].pid)
			r.rep.Profiles = append(r.rep.Profiles, &profile{What: sides[i].name + ", " + what, Symbols: top})
		}
	}
	return err
}

// record starts perf on a process; stop ends it. The clock is the kernel's, because virtual machines often have no counters.
func record(path string, pid, core int) (stop func() error, err error) {
	cmd := exec.Command("perf", "record", "-q", "-e", "cpu-clock", "-F", "997", "-o", path, "-p", fmt.Sprint(pid))
	p, err := pinned.Start(cmd, core)
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(startTimeout); time.Now().Before(end); time.Sleep(pollPause) {
		if st, err := os.Stat(path); err == nil && st.Size() > 0 {
			break // it has attached; what it does before would take the load's time
		}
	}
	return func() error {
		if err := p.End(endPatience); err != nil && !p.KilledBy(unix.SIGTERM) {
			return fmt.Errorf("perf record: %w", err)
		}
		return nil // it has written its file, and says by which signal it ended
	}, nil
}

// topOf gives the symbols that took most in a process, without its children.
func topOf(ctx context.Context, path string, pid int) ([]string, error) {
	out, err := exec.CommandContext(ctx, "perf", "report", "-i", path, "--stdio", "--no-children", "-q", "--pid", fmt.Sprint(pid),
		"--sort", "dso,symbol").Output()
	if err != nil {
		return nil, fmt.Errorf("perf report: %w", err)
	}
	var top []string
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) > 0 && len(top) < topSymbols { // perf fills its columns with blanks
			top = append(top, strings.TrimSuffix(strings.Join(f, " "), " - -"))
		}
	}
	return top, nil
}

func (p *profile) print(w io.Writer) {
	fmt.Fprintf(w, "\nprofile of %s:\n", p.What)
	for _, s := range p.Symbols {
		fmt.Fprintf(w, "  %s\n", s)
	}
}
