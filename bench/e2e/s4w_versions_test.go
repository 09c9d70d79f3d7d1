package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/bench/internal/devcluster"
	"github.com/crakefs/crake/mgmt/api"
)

// nextVersion is the software version of the next release's test build; see wire/versions.go.
const nextVersion = "e2e-next"

// buildNext builds the next release, which speaks one more version of the protocol.
func buildNext(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "crake-next")
	env := []string{"CGO_ENABLED=0"}
	command(t, 5*time.Minute, "", env, "go", "build", "-trimpath", "-tags", "crake_next", "-ldflags", "-s -w -X main.version="+nextVersion, "-o", bin, "../../cmd/crake")
	return bin
}

// mixed is a cluster whose processes run one of two versions each. Their binaries are links, which the test turns: who is killed comes back
// with the other version.
type mixed struct {
	t     *testing.T
	c     *devcluster.Cluster
	links string // folder of a link for each name
	next  string
}

// startMixed starts a cluster of four drives (2+1), two computes and frontend0, all of the version under test, and frontend1, which is of
// the next one as soon as it is mounted.
func startMixed(t *testing.T, next string) *mixed {
	t.Helper()
	o := devcluster.Options{Drives: 4, Protection: "2+1", Buckets: 8, Runs: []string{next}, Binaries: map[string]string{}}
	m := &mixed{t: t, links: t.TempDir(), next: next}
	for _, name := range []string{"mgmt", "drive0", "drive1", "drive2", "drive3", "compute0", "compute1", "frontend0", "frontend1"} {
		o.Binaries[name] = filepath.Join(m.links, name)
		m.turn(name, crakeBin)
	}
	m.turn("frontend1", next)
	m.c = start(t, o)
	return m
}

// turn makes the next start of a process one of bin.
func (m *mixed) turn(name, bin string) {
	m.t.Helper()
	link := filepath.Join(m.links, name)
	must(m.t, os.Symlink(bin, link+".new"))
	must(m.t, os.Rename(link+".new", link))
}

// restart kills processes by SIGKILL, one after the other, after it has turned their links to bin, and waits until each serves again.
func (m *mixed) restart(bin string, names ...string) {
	m.t.Helper()
	for _, name := range names {
		m.turn(name, bin)
		pid, err := m.c.Kill(name)
		must(m.t, err)
		must(m.t, m.c.WaitState(devcluster.UpTimeout, name+" of "+bin, func(ps []devcluster.Process) bool {
			i := slices.IndexFunc(ps, func(p devcluster.Process) bool { return p.Name == name })
			return i >= 0 && ps[i].PID != pid && (ps[i].Version == nextVersion) == (bin == m.next) && devcluster.AllUp(ps)
		}))
	}
}

// restartMgmt kills mgmt with its keeper, which would start its own version again, and starts both from bin.
func (m *mixed) restartMgmt(bin string) {
	m.t.Helper()
	m.turn("mgmt", bin)
	for _, pid := range m.c.PIDs() {
		if line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && strings.Contains(string(line), "\x00mgmt\x00") {
			must(m.t, unix.Kill(pid, unix.SIGKILL))
		}
	}
	eventually(m.t, 10*time.Second, func() string {
		if api.Running(m.c.Dir) {
			return "mgmt still runs"
		}
		return ""
	})
	must(m.t, api.Launch(m.t.Context(), filepath.Join(m.links, "mgmt"), m.c.Dir))
	must(m.t, m.c.WaitState(devcluster.UpTimeout, "all processes", devcluster.AllUp))
}

// spread waits until each compute serves its share of the buckets: one that has just come back gets it only after a while.
func (m *mixed) spread() {
	m.t.Helper()
	eventually(m.t, devcluster.UpTimeout, func() string {
		var all []api.Bucket
		if err := m.c.JSON(&all, "cluster", "bucket"); err != nil {
			return err.Error()
		}
		served := map[string]int{}
		for _, b := range all {
			if b.State == "serving" {
				served[b.Owner]++
			}
		}
		if served["compute0"] < len(all)/2 || served["compute1"] < len(all)/2 {
			return fmt.Sprintf("of %d buckets computes serve %v", len(all), served)
		}
		return ""
	})
}

// logged gives the lines of a process's log.
func (m *mixed) logged(name string) string {
	m.t.Helper()
	text, err := os.ReadFile(filepath.Join(m.c.Dir, "log", name+".log"))
	must(m.t, err)
	return string(text)
}

// Two neighbouring versions of the protocol speak: with the released software (frontend0) and the next release (frontend1) mounted side by
// side, mgmt, drives and computes go through all combinations of the two under load, by kill -9 of one process after the other; then odd
// drives and computes are of the next one. The load sees no error and no wrong byte, in two trees and in one that both mounts share. The
// next release verifies the fields and the method that it adds with every peer that has them, and none with those that do not.
func TestS4wVersions(t *testing.T) {
	next := buildNext(t)
	t.Run("Mixed", func(t *testing.T) { mixedVersions(t, next) })
	t.Run("TooOld", func(t *testing.T) { tooOld(t, next) })
}

func mixedVersions(t *testing.T, next string) {
	m := startMixed(t, next)
	second := addMount(t, m.c, "default")
	r := random(t)
	loads := []*load{startLoad(t, filepath.Join(m.c.Mount, "load0"), 1, r), startLoad(t, filepath.Join(second, "load1"), 1, r)}
	shared := startShared(t, m.c.Mount, second)
	alive := func() {
		t.Helper()
		for _, l := range append(loads, shared) {
			l.alive(8, 20*time.Second)
		}
	}
	drives, computes := []string{"drive0", "drive1", "drive2", "drive3"}, []string{"compute0", "compute1"}
	transact := func() { // computes take part in each other's transactions
		t.Helper()
		m.spread()
		shared.alive(40, 20*time.Second)
	}
	begin := time.Now()
	// A Gray code: each of the eight combinations of the three roles, each with both frontends, by one change at a time.
	alive()
	for _, step := range []func(){
		func() { m.restart(next, computes...) },
		func() { m.restart(next, drives...) },
		func() { m.restart(crakeBin, computes...) },
		func() { m.restartMgmt(next) },
		func() { m.restart(next, computes...); transact() },
		func() { m.restart(crakeBin, drives...) },
		func() { m.restart(crakeBin, computes...) },
		func() { m.restart(next, "drive1", "drive3", "compute1") }, // and mixed within a role
	} {
		step()
		alive()
	}
	t.Logf("all combinations in %v", time.Since(begin).Round(time.Millisecond))
	// One of each role dies once more; a frontend takes its mount with it, so its load ends before.
	m.restart(crakeBin, "drive0", "compute0")
	m.restart(next, "drive3", "compute1")
	_, err := m.c.Kill("mgmt")
	must(t, err)
	must(t, m.c.WaitState(devcluster.UpTimeout, "mgmt", devcluster.AllUp))
	alive()
	transact() // now computes of both versions
	shared.check()
	loads[1].check()
	m.restart(next, "frontend1")
	t.Logf("%d and %d files hold what was written", loads[0].check(), loads[1].check())
	loads[0].check()
	m.restart(crakeBin, "frontend0")
	loads[0].check()
	healthy(t, m.c)
	m.checkLogs()
}

// sharedParents are as many directories as both computes certainly have some of.
const sharedParents = 16

// startShared starts a load in which each mount writes what the other reads, so that leases are recalled from frontends of both versions,
// and makes and moves directories, which takes transactions between computes.
func startShared(t *testing.T, a, b string) *load {
	t.Helper()
	for i := range sharedParents {
		must(t, os.MkdirAll(filepath.Join(a, "shared", fmt.Sprint("p", i)), 0o755))
	}
	l := &load{t: t, stop: make(chan struct{}), files: map[string]string{}}
	l.wg.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-l.stop:
				return
			default:
			}
			if err := l.share(n, a, b); err != nil {
				l.fail(err)
				return
			}
			a, b = b, a
		}
	})
	t.Cleanup(l.halt)
	return l
}

// share does one round: x writes, y reads.
func (l *load) share(n int, x, y string) error {
	data := make([]byte, 1+n*7919%300_000)
	fill(data, uint64(n))
	dir := fmt.Sprintf("shared/p%d/d%d", n%sharedParents, n)
	moved := fmt.Sprintf("shared/p%d/d%d", (n+1)%sharedParents, n)
	return l.timed(func() error {
		if err := os.Mkdir(filepath.Join(x, dir), 0o755); err != nil {
			return err
		}
		name := "shared/both"
		if err := os.WriteFile(filepath.Join(x, name), data, 0o644); err != nil {
			return err
		}
		got, err := sum(filepath.Join(y, name))
		if err != nil {
			return err
		}
		if got != sumOf(data) {
			return fmt.Errorf("round %d: %s holds %s through the other mount, %s was written", n, name, got, sumOf(data))
		}
		if err := os.Rename(filepath.Join(y, dir), filepath.Join(y, moved)); err != nil {
			return err
		}
		return os.Remove(filepath.Join(x, moved))
	})
}

// checkLogs reads what the next release has verified: all that must have been seen was, in pairs of both kinds, and nothing was wrong.
func (m *mixed) checkLogs() {
	m.t.Helper()
	logs, err := filepath.Glob(filepath.Join(m.c.Dir, "log", "*"))
	must(m.t, err)
	for _, path := range logs {
		text, err := os.ReadFile(path)
		must(m.t, err)
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, "next:") && !strings.Contains(line, "next: verified") {
				m.t.Errorf("%s: %s", filepath.Base(path), line)
			}
		}
	}
	// What processes must have verified, with whom; 1 and 2 are the versions of the connections.
	type seen struct {
		what, with string
		versions   []int
	}
	both, new := []int{1, 2}, []int{2}
	for role, all := range map[string][]seen{
		"drive": {{"request 0x101", "compute", both}, {"request 0x102", "compute", both}, {"request 0x104", "frontend", both},
			{"answer 0x502", "mgmt", both}, {"method 0x7e01", "compute", new}, {"method 0x7e01", "frontend", new}, {"method 0x7e01", "mgmt", new}},
		"compute": {{"request 0x20d", "frontend", both}, {"request 0x202", "frontend", both}, {"answer 0x102", "drive", both},
			{"answer 0x401", "frontend", both}, {"request 0x301", "compute", both}, {"answer 0x301", "compute", both},
			{"answer 0x502", "mgmt", both}, {"method 0x7e01", "frontend", new}, {"method 0x7e01", "drive", new}},
		"frontend": {{"answer 0x20d", "compute", both}, {"answer 0x104", "drive", both}, {"request 0x401", "compute", both},
			{"answer 0x502", "mgmt", both}, {"method 0x7e01", "compute", new}, {"method 0x7e01", "drive", new}},
		"mgmt": {{"request 0x502", "drive", both}, {"request 0x502", "compute", both}, {"request 0x502", "frontend", both}},
	} {
		text := ""
		for _, path := range logs {
			if strings.HasPrefix(filepath.Base(path), role) {
				text += m.logged(strings.TrimSuffix(filepath.Base(path), ".log"))
			}
		}
		for _, s := range all {
			for _, v := range s.versions {
				if want := fmt.Sprintf("next: verified %s with %s at version %d", s.what, s.with, v); !strings.Contains(text, want) {
					m.t.Errorf("no %s has %q in its log", role, want)
				}
			}
		}
	}
	if strings.Contains(m.logged("frontend0"), "next:") {
		m.t.Error("frontend0 is of the released version, and its log has lines of the next one")
	}
}

// tooOld: a compute of a release that has dropped all versions of today is refused by mgmt, and says so in its log, with both software
// versions and both ranges; so do mgmt's log and the cluster's events. The cluster goes on without it, and takes it again when it is of a
// version that both have.
func tooOld(t *testing.T, next string) {
	m := startMixed(t, next)
	far := filepath.Join(m.links, "far")
	must(t, os.WriteFile(far, []byte(fmt.Sprintf("#!/bin/sh\nCRAKE_FAR=1 exec %s \"$@\"\n", next)), 0o755))
	computes, err := m.c.Find("compute")
	must(t, err)
	parts := []string{"no common protocol version", nextVersion, computes[0].Version, "1 to 1", "3 to 5"}
	tells := func(text string) bool {
		for line := range strings.Lines(text) {
			if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) }) {
				return true
			}
		}
		return false
	}
	l := startLoad(t, filepath.Join(m.c.Mount, "load"), 1, random(t))
	l.alive(5, 20*time.Second)
	m.turn("compute1", far)
	_, err = m.c.Kill("compute1")
	must(t, err)
	for what, text := range map[string]func() string{
		"compute1's log": func() string { return m.logged("compute1") },
		"mgmt's log":     func() string { return m.logged("mgmt") },
		"crake events": func() string {
			out, err := m.c.Crake("events", "--dir", m.c.Dir)
			must(t, err)
			return string(out)
		},
	} {
		eventually(t, 20*time.Second, func() string {
			if s := text(); !tells(s) {
				return fmt.Sprintf("%s does not tell %q in one line:\n%s", what, parts, tail([]byte(s), 2000))
			}
			return ""
		})
	}
	var st struct {
		Health struct {
			Reasons []string `json:"reasons"`
		} `json:"health"`
	}
	must(t, m.c.JSON(&st, "status"))
	if !slices.ContainsFunc(st.Health.Reasons, func(r string) bool { return strings.Contains(r, "1 of 2 computes are down") }) {
		t.Errorf("status gives the reasons %q", st.Health.Reasons)
	}
	l.alive(5, 20*time.Second)
	m.turn("compute1", crakeBin)
	healthy(t, m.c)
	l.alive(5, 20*time.Second)
	t.Logf("%d files hold what was written", l.check())
}
