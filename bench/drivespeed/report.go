package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/crakefs/crake/bench/internal/machine"
)

// sample is what one run of one job gave.
type sample struct {
	PerSecond float64 `json:"per_second"` // operations
	P50us     float64 `json:"p50_us"`
	P99us     float64 `json:"p99_us"`
	CPUus     float64 `json:"cpu_us_per_op"` // of the process that serves, or of fio
	Busy      float64 `json:"busy"`          // share of a core that it used
	LoadBusy  float64 `json:"load_busy"`     // share of a core that the load generator used
}

// series are the samples of all runs.
type series struct {
	Samples []sample `json:"samples"`
}

// median gives the median of a part of the samples, and the range; zeros when there are none.
func (s *series) median(part func(sample) float64) (median, low, high float64) {
	var all []float64
	for _, x := range s.Samples {
		all = append(all, part(x))
	}
	if len(all) == 0 {
		return 0, 0, 0
	}
	slices.Sort(all)
	return all[len(all)/2], all[0], all[len(all)-1]
}

func (s *series) middle(part func(sample) float64) float64 {
	m, _, _ := s.median(part)
	return m
}

func perSecond(s sample) float64 { return s.PerSecond }
func cpuOf(s sample) float64     { return s.CPUus }
func busyOf(s sample) float64    { return s.Busy }
func loadOf(s sample) float64    { return s.LoadBusy }

// row is a line of the table: a job on a device.
type row struct {
	Device string                `json:"device"`
	Job    string                `json:"job"`
	Unit   string                `json:"unit"`
	Fio    map[fioEngine]*series `json:"fio"`
	Wire   *series               `json:"wire_only"`
	Bare   *series               `json:"bare_socket,omitempty"` // at depth 1
	Crake  *series               `json:"crake"`
	// Best is the engine of fio that the ratio is against; Ratio is of the medians.
	Best  fioEngine `json:"fio_best"`
	Ratio float64   `json:"ratio"`
	// Bound is what device and wire allow together, in operations a second; see bound.
	Bound   float64 `json:"bound_per_second"`
	Verdict string  `json:"verdict"`

	job  job
	spin bool // both sides spin: how busy they are says nothing
}

// deviceInfo is what the drive says of a device.
type deviceInfo struct {
	Name   string `json:"name"`
	Engine string `json:"engine"`
	Flush  string `json:"flush"`
	Direct bool   `json:"direct"`
	// Strays is the most threads of the drive that were seen free to run on other cores: the kernel's workers of an io_uring.
	Strays int `json:"stray_threads"`
}

// report is everything that is printed.
type report struct {
	Time      time.Time    `json:"time"`
	Version   string       `json:"version"`
	Fio       string       `json:"fio_version"`
	Kernel    string       `json:"kernel"`
	Go        string       `json:"go"`
	Model     string       `json:"model"`
	DriveCore int          `json:"drive_core"`
	LoadCore  int          `json:"load_core"`
	Size      int64        `json:"size_bytes"`
	Runs      int          `json:"runs"`
	Seconds   float64      `json:"seconds"`
	Spin      bool         `json:"spin"` // both sides: processor time is also what was spun
	Devices   []deviceInfo `json:"devices"`
	Rows      []*row       `json:"rows"`
	Profiles  []*profile   `json:"profiles,omitempty"`

	wire map[string]*series // by job
	bare map[string]*series // by job
}

func newReport(cfg *config) *report {
	rep := &report{
		Time: time.Now().UTC(), Go: runtime.Version(), DriveCore: cfg.cores.drive, LoadCore: cfg.cores.load, Size: cfg.size,
		Runs: cfg.runs, Seconds: cfg.seconds, Spin: cfg.spin, wire: map[string]*series{}, bare: map[string]*series{}, Version: firstLine(cfg.bin, "version"), Fio: firstLine("fio", "--version"),
	}
	rep.Kernel, rep.Model = machine.Kernel(), machine.Model()
	return rep
}

// firstLine gives the first line that a command prints, "" when it fails.
func firstLine(name string, args ...string) string {
	out, _ := exec.Command(name, args...).Output()
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line)
}

func (rep *report) addDevice(d *device) {
	rep.Devices = append(rep.Devices, deviceInfo{Name: d.name, Engine: d.engine, Flush: d.flushPolicy, Direct: d.direct})
}

func (rep *report) addStrays(d *device, n int) {
	for i := range rep.Devices {
		if info := &rep.Devices[i]; info.Name == d.name {
			info.Strays = max(info.Strays, n)
		}
	}
}

func (rep *report) addWire(j job, s sample) { addTo(rep.wire, j, s) }
func (rep *report) addBare(j job, s sample) { addTo(rep.bare, j, s) }

func addTo(m map[string]*series, j job, s sample) {
	if m[j.name()] == nil {
		m[j.name()] = &series{}
	}
	m[j.name()].Samples = append(m[j.name()].Samples, s)
}

// row finds or makes the row of a job.
func (rep *report) row(d *device, j job) *row {
	for _, r := range rep.Rows {
		if r.Device == d.name && r.Job == j.name() {
			return r
		}
	}
	r := &row{
		Device: d.name, Job: j.name(), Unit: j.unit(), Fio: map[fioEngine]*series{}, Wire: rep.wire[j.name()], Bare: rep.bare[j.name()], Crake: &series{},
		job: j, spin: rep.Spin,
	}
	rep.Rows = append(rep.Rows, r)
	return r
}

func (rep *report) addFio(d *device, j job, engine fioEngine, s sample) {
	r := rep.row(d, j)
	if r.Fio[engine] == nil {
		r.Fio[engine] = &series{}
	}
	f := r.Fio[engine]
	f.Samples = append(f.Samples, s)
}

func (rep *report) addCrake(d *device, j job, s sample) {
	r := rep.row(d, j)
	r.Crake.Samples = append(r.Crake.Samples, s)
	r.judge()
}

// judge compares the medians and says what limits.
func (r *row) judge() {
	best := 0.0
	for engine, s := range r.Fio {
		if m := s.middle(perSecond); m > best {
			best, r.Best = m, engine
		}
	}
	if best == 0 {
		return
	}
	r.Ratio = r.Crake.middle(perSecond) / best
	r.Bound = r.bound(best)
	switch {
	case r.Ratio >= target:
		r.Verdict = "reached"
	case r.Crake.middle(perSecond) >= target*r.Bound:
		r.Verdict = "limit: the wire"
	case !r.spin && r.Crake.middle(busyOf) >= busyCore:
		r.Verdict = "limit: CPU of the drive"
	case !r.spin && r.Crake.middle(loadOf) >= busyCore:
		r.Verdict = "limit: CPU of the load"
	default:
		r.Verdict = "MISSED"
	}
}

// bound gives what can be had over the wire when the drive itself costs nothing. One request at a time takes as long as the device and
// the wire one after the other; many at once go as fast as the slower of the two.
func (r *row) bound(device float64) float64 {
	wire := 0.0
	if r.Wire != nil {
		wire = r.Wire.middle(perSecond)
	}
	switch {
	case wire == 0:
		return device
	case r.job.depth == 1:
		return 1 / (1/device + 1/wire)
	}
	return min(device, wire)
}

// write prints the report in a format: table, markdown (the table for BENCHMARKS.md) or json.
func (rep *report) write(w io.Writer, format string) error {
	if format == formatJSON {
		b, err := json.MarshalIndent(rep, "", "  ")
		if err != nil {
			return err
		}
		_, err = w.Write(append(b, '\n'))
		return err
	}
	rep.writeHead(w)
	if format == formatMarkdown {
		fmt.Fprintf(w, "| %s |\n|%s\n", strings.Join(columns(), " | "), strings.Repeat("---|", len(columns())))
		for _, r := range rep.Rows {
			fmt.Fprintf(w, "| %s |\n", strings.Join(r.cells(), " | "))
		}
	} else {
		tw := tabwriter.NewWriter(w, 0, 8, 1, ' ', tabwriter.Debug)
		fmt.Fprintf(tw, " %s\n", strings.Join(columns(), "\t "))
		for _, r := range rep.Rows {
			fmt.Fprintf(tw, " %s\n", strings.Join(r.cells(), "\t "))
		}
		if err := tw.Flush(); err != nil {
			return err
		}
	}
	for _, p := range rep.Profiles {
		p.print(w)
	}
	return nil
}

// writeHead says what was measured, and on what.
func (rep *report) writeHead(w io.Writer) {
	fmt.Fprintf(w, "%s\n%s against %s, kernel %s, %s, drive on core %d, load on core %d (%s)\n", rep.Time.Format("2006-01-02 15:04 UTC"),
		rep.Version, rep.Fio, rep.Kernel, rep.Go, rep.DriveCore, rep.LoadCore, rep.Model)
	fmt.Fprintf(w, "median (low to high) of %d runs of %g s; %d MiB are read; us/op is processor time", rep.Runs, rep.Seconds, rep.Size>>20)
	if rep.Spin {
		fmt.Fprint(w, ", also what was spun (--spin=false: without)")
	}
	fmt.Fprintln(w)
	for _, d := range rep.Devices {
		fmt.Fprintf(w, "%s: engine %s, flush %s, O_DIRECT %v", d.Name, d.Engine, d.Flush, d.Direct)
		if d.Strays > 0 {
			fmt.Fprintf(w, "; %d threads of the drive were free to run on other cores (their time is counted)", d.Strays)
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintln(w)
}

// columns are the heads of the table.
func columns() []string {
	return []string{
		"device", "job", "unit", "fio", "by", "Crake", "Crake/fio", "socket", "wire only", "fio+wire", "us/op fio", "wire", "Crake",
		"busy drive", "load", "90 %",
	}
}

// cells are the row's; empty where it was not measured to its end.
func (r *row) cells() []string {
	out := make([]string, len(columns()))
	out[0], out[1], out[2] = r.Device, r.Job, r.Unit
	best := r.Fio[r.Best]
	if best == nil || r.Wire == nil {
		return out
	}
	whole := func(perSecond float64) string { return fmt.Sprintf("%.0f", r.job.figure(perSecond)) }
	spread := func(s *series) string {
		m, low, high := s.median(perSecond)
		return fmt.Sprintf("%s (%s to %s)", whole(m), whole(low), whole(high))
	}
	by := string(r.Best)
	for engine, s := range r.Fio {
		if engine != r.Best {
			by += fmt.Sprintf("; %s: %s", engine, whole(s.middle(perSecond)))
		}
	}
	out[3], out[4], out[5], out[6] = spread(best), by, spread(r.Crake), fmt.Sprintf("%.2f", r.Ratio)
	if r.Bare != nil {
		out[7] = whole(r.Bare.middle(perSecond))
	}
	out[8], out[9] = whole(r.Wire.middle(perSecond)), whole(r.Bound)
	for i, s := range []*series{best, r.Wire, r.Crake} {
		out[10+i] = fmt.Sprintf("%.1f", s.middle(cpuOf))
	}
	out[13], out[14] = fmt.Sprintf("%.0f %%", 100*r.Crake.middle(busyOf)), fmt.Sprintf("%.0f %%", 100*r.Crake.middle(loadOf))
	out[15] = r.Verdict
	return out
}
