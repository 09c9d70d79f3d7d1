// Package copyload writes and reads a file on a cluster whose binary counts copied bytes (wire/copies), and tells what that took: bytes
// moved at each place, by role, and processor time.
package copyload

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/bench/internal/devcluster"
	"github.com/crakefs/crake/wire/copies"
)

// Tag is the build tag of a binary that counts.
const Tag = "crake_copies"

// answerTimeout bounds how long a process may take to write its counters to its log. clockTick is the kernel's unit of a process's times.
const (
	answerTimeout = 10 * time.Second
	clockTick     = time.Second / 100
)

// Roles are the roles that file data passes through, from the application on.
var Roles = []string{"frontend", "compute", "drive"}

// Cost is what a phase took, or all since the processes began.
type Cost struct {
	Bytes map[string]map[copies.Place]int64 // by role
	CPU   map[string]time.Duration          // by role
}

// Total gives the bytes of a place, of all roles.
func (c *Cost) Total(p copies.Place) int64 {
	n := int64(0)
	for _, role := range Roles {
		n += c.Bytes[role][p]
	}
	return n
}

// AllCPU gives the processor time of all roles.
func (c *Cost) AllCPU() time.Duration {
	t := time.Duration(0)
	for _, role := range Roles {
		t += c.CPU[role]
	}
	return t
}

// Phase gives what f takes.
func Phase(c *devcluster.Cluster, f func() error) (*Cost, error) {
	before, err := now(c)
	if err != nil {
		return nil, err
	}
	if err := f(); err != nil {
		return nil, err
	}
	after, err := now(c)
	if err != nil {
		return nil, err
	}
	for _, role := range Roles {
		for p := range after.Bytes[role] {
			after.Bytes[role][p] -= before.Bytes[role][p]
		}
		after.CPU[role] -= before.CPU[role]
	}
	return after, nil
}

// now asks all processes for their counters.
func now(c *devcluster.Cluster) (*Cost, error) {
	ps, err := c.Processes()
	if err != nil {
		return nil, err
	}
	cost := &Cost{Bytes: map[string]map[copies.Place]int64{}, CPU: map[string]time.Duration{}}
	for _, role := range Roles {
		cost.Bytes[role] = map[copies.Place]int64{}
	}
	for _, p := range ps {
		if !slices.Contains(Roles, p.Role) {
			continue
		}
		if err := cost.add(c, &p); err != nil {
			return nil, fmt.Errorf("%s: %w", p.Name, err)
		}
	}
	return cost, nil
}

func (c *Cost) add(cluster *devcluster.Cluster, p *devcluster.Process) error {
	log := filepath.Join(cluster.Dir, "log", p.Name+".log")
	_, before, err := answers(log)
	if err != nil {
		return err
	}
	if err := unix.Kill(p.PID, unix.SIGUSR1); err != nil {
		return err
	}
	for end := time.Now().Add(answerTimeout); ; time.Sleep(5 * time.Millisecond) {
		line, n, err := answers(log)
		if err != nil {
			return err
		}
		if n > before {
			if err := c.parse(p.Role, line); err != nil {
				return err
			}
			break
		}
		if time.Now().After(end) {
			return fmt.Errorf("no counters in %s within %v: was the binary built with -tags %s?", log, answerTimeout, Tag)
		}
	}
	cpu, err := cpuTime(p.PID)
	c.CPU[p.Role] += cpu
	return err
}

// answers gives the last whole line of counters in a log, and how many there are.
func answers(path string) (last string, n int, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", 0, err
	}
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, strconv.Quote(copies.Message)) && strings.HasSuffix(line, "\n") {
			last, n = line, n+1
		}
	}
	return last, n, nil
}

func (c *Cost) parse(role, line string) error {
	for _, p := range copies.Places() {
		_, rest, ok := strings.Cut(line, " "+p.String()+"=")
		if !ok {
			return fmt.Errorf("no %s in %q", p, line)
		}
		n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
		if err != nil {
			return err
		}
		c.Bytes[role][p] += n
	}
	return nil
}

// cpuTime gives the processor time of a process so far, of user and kernel.
func cpuTime(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(b), ") ") // the name may have blanks
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat: %q", pid, b)
	}
	ticks := time.Duration(0)
	for _, s := range f[11:13] { // utime, stime
		n, err := strconv.Atoi(s)
		if err != nil {
			return 0, err
		}
		ticks += time.Duration(n)
	}
	return ticks * clockTick, nil
}

// Print writes a table of what a phase has moved, in bytes for each byte of file data.
func (c *Cost) Print(w io.Writer, what string, bytes int64) {
	fmt.Fprintf(w, "%s, %d MiB: bytes for each byte of the file\n", what, bytes>>20)
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "\t"+strings.Join(Roles, "\t")+"\tall\t")
	row := func(name string, value func(role string) float64) {
		sum := 0.0
		fmt.Fprintf(tw, "%s\t", name)
		for _, role := range Roles {
			sum += value(role)
			fmt.Fprintf(tw, "%.4f\t", value(role))
		}
		fmt.Fprintf(tw, "%.4f\t\n", sum)
	}
	per := func(n int64) float64 { return float64(n) / float64(bytes) }
	for _, p := range copies.Places() {
		name := p.String()
		if !p.IsCopy() {
			name = "(" + name + ")"
		}
		row(name, func(role string) float64 { return per(c.Bytes[role][p]) })
	}
	row("copied", func(role string) float64 {
		n := int64(0)
		for _, p := range copies.Places() {
			if p.IsCopy() {
				n += c.Bytes[role][p]
			}
		}
		return per(n)
	})
	row("CPU s/GiB", func(role string) float64 { return c.CPU[role].Seconds() / float64(bytes) * (1 << 30) })
	_ = tw.Flush()
	fmt.Fprintln(w)
}
