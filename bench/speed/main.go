// Command speed measures the figures of BENCHMARKS.md on a one-server cluster whose drives are files in memory, so that
// software is measured and not a disk. It prints a table, and JSON with -json.
//
//	make bench                       one run
//	make bench BENCHFLAGS='-runs 5'  median and spread of five
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/crakefs/crake/bench/internal/devcluster"
	"github.com/crakefs/crake/bench/internal/machine"
)

// result is one figure.
type result struct {
	Name   string    `json:"name"`
	Unit   string    `json:"unit"`
	Target string    `json:"target"`
	Runs   []float64 `json:"runs"`
	Median float64   `json:"median"`
	Low    float64   `json:"low"`
	High   float64   `json:"high"`
	OK     bool      `json:"ok"` // the median reaches the target
}

// report is everything that -json prints.
type report struct {
	Time    time.Time `json:"time"`
	Version string    `json:"version"`
	Kernel  string    `json:"kernel"`
	Go      string    `json:"go"`
	CPUs    int       `json:"cpus"`
	Model   string    `json:"model"`
	Results []result  `json:"results"`
}

// measurement is a figure to take. It may be the higher the better, or the lower.
type measurement struct {
	name, unit string
	target     float64
	lower      bool // lower is better
	take       func(*devcluster.Cluster) (float64, error)
}

func main() {
	runs := flag.Int("runs", 1, "how often to measure each figure; the median counts")
	jsonPath := flag.String("json", "", "also write JSON to this file (- is standard output)")
	only := flag.String("only", "", "measure only figures whose name contains this")
	flag.Parse()
	if err := run(*runs, *jsonPath, *only); err != nil {
		fmt.Fprintln(os.Stderr, "speed:", err)
		os.Exit(1)
	}
}

func run(runs int, jsonPath, only string) (err error) {
	bin := os.Getenv("CRAKE_BIN")
	if bin == "" {
		return fmt.Errorf("CRAKE_BIN names no binary; use make bench")
	}
	c, err := devcluster.New(bin, devcluster.Options{DriveSize: "1GiB"})
	if err != nil {
		return err
	}
	defer func() {
		if cerr := c.Close(); err == nil {
			err = cerr
		}
	}()
	fmt.Fprintln(os.Stderr, "starting a cluster of six drives, 4+2, in memory")
	if err := c.Up(); err != nil {
		return err
	}
	rep := describe(bin)
	for _, m := range measurements {
		if !strings.Contains(m.name, only) {
			continue
		}
		r := result{Name: m.name, Unit: m.unit, Target: targetText(m)}
		for i := range runs {
			fmt.Fprintf(os.Stderr, "%s (%d of %d)\n", m.name, i+1, runs)
			v, err := m.take(c)
			if err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
			r.Runs = append(r.Runs, v)
		}
		sorted := slices.Sorted(slices.Values(r.Runs))
		r.Low, r.Median, r.High = sorted[0], sorted[len(sorted)/2], sorted[len(sorted)-1]
		r.OK = r.Median >= m.target && !m.lower || r.Median <= m.target && m.lower
		rep.Results = append(rep.Results, r)
	}
	printTable(rep)
	return writeJSON(rep, jsonPath)
}

func targetText(m measurement) string {
	if m.lower {
		return fmt.Sprintf("< %g", m.target)
	}
	return fmt.Sprintf("> %g", m.target)
}

func describe(bin string) *report {
	rep := &report{Time: time.Now().UTC(), Go: runtime.Version(), CPUs: runtime.NumCPU()}
	if out, err := devcluster.Run(bin, "version"); err == nil {
		rep.Version = strings.TrimSpace(string(out))
	}
	rep.Kernel, rep.Model = machine.Kernel(), machine.Model()
	return rep
}

func printTable(rep *report) {
	fmt.Printf("%s\n%s, kernel %s, %d CPUs (%s)\n\n", rep.Time.Format("2006-01-02 15:04 UTC"), rep.Version, rep.Kernel, rep.CPUs, rep.Model)
	tw := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "WHAT\tMEDIAN\tLOW\tHIGH\tUNIT\tTARGET\t")
	for _, r := range rep.Results {
		verdict := "reached"
		if !r.OK {
			verdict = "MISSED"
		}
		fmt.Fprintf(tw, "%s\t%.0f\t%.0f\t%.0f\t%s\t%s\t%s\n", r.Name, r.Median, r.Low, r.High, r.Unit, r.Target, verdict)
	}
	_ = tw.Flush()
}

func writeJSON(rep *report, path string) error {
	if path == "" {
		return nil
	}
	b, err := json.MarshalIndent(rep, "", "  ")
	if err != nil {
		return err
	}
	b = append(b, '\n')
	if path == "-" {
		_, err := os.Stdout.Write(b)
		return err
	}
	return os.WriteFile(path, b, 0o644)
}
