package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/crakefs/crake/bench/internal/devcluster"
)

// processRow is a line of `crake cluster process -f json`.
type processRow struct {
	ID         uint32    `json:"id"`
	Name       string    `json:"name"`
	Role       string    `json:"role"`
	State      string    `json:"state"`
	PID        int       `json:"pid"`
	Addrs      []string  `json:"addrs"`
	ArenaBytes int64     `json:"arena_bytes"`
	ArenaUsed  int64     `json:"arena_used_bytes"`
	Links      []linkRow `json:"links"`
}

type linkRow struct {
	Peer           string `json:"peer"`
	Transport      string `json:"transport"`
	Connections    int    `json:"connections"`
	SentInline     uint64 `json:"sent_inline_bytes"`
	SentByRef      uint64 `json:"sent_by_ref_bytes"`
	ReceivedInline uint64 `json:"received_inline_bytes"`
	ReceivedByRef  uint64 `json:"received_by_ref_bytes"`
}

// transports are what a cluster may be asked for, and what its links must then say.
var transports = []struct {
	want  string
	flags []string
}{
	{"shm", nil}, // the default
	{"unix", []string{"--wire", "unix"}},
	{"tcp", []string{"--wire", "tcp"}},
	{"tcp+tls", []string{"--wire", "tcp", "--wire-encryption"}},
}

// workers gives the processes that pass data: all but mgmt and its keeper.
func workers(t *testing.T, c *devcluster.Cluster) []processRow {
	t.Helper()
	var all, out []processRow
	must(t, c.JSON(&all, "cluster", "process"))
	for _, p := range all {
		if p.Role != "mgmt" {
			out = append(out, p)
		}
	}
	return out
}

// waitLinks waits until all processes are up and every one has links, all of them by the transport that is wanted: each compute with
// each drive and the other compute, the frontend with all of both.
func waitLinks(t *testing.T, c *devcluster.Cluster, want string) {
	t.Helper()
	eventually(t, devcluster.UpTimeout, func() string {
		for _, p := range workers(t, c) {
			least := map[string]int{"drive": 2, "compute": 6, "frontend": 2}[p.Role]
			if p.State != "up" || len(p.Links) < least {
				return fmt.Sprintf("%s is %s and has %d links, want %d at least", p.Name, p.State, len(p.Links), least)
			}
			for _, l := range p.Links {
				if l.Transport != want || l.Peer == "" || l.Connections == 0 {
					return fmt.Sprintf("%s: %+v, want transport %s", p.Name, l, want)
				}
			}
		}
		return ""
	})
}

// sentBytes sums up what the processes that are there have sent on their links.
func sentBytes(t *testing.T, c *devcluster.Cluster) (inline, byRef uint64) {
	t.Helper()
	for _, p := range workers(t, c) {
		for _, l := range p.Links {
			inline += l.SentInline
			byRef += l.SentByRef
		}
	}
	return inline, byRef
}

// Whatever transport is asked for, every link of every process uses it, and says so; data survives the death of a drive, a compute
// and mgmt under load; and by shared memory hardly a byte of the data of large requests passes through a socket.
func TestS4wTransports(t *testing.T) {
	for _, tr := range transports {
		t.Run(tr.want, func(t *testing.T) {
			c := start(t, devcluster.Options{DriveSize: "512MiB", Flags: tr.flags})
			r := random(t)
			const bytes = 24 << 20
			sums := map[string]string{"before": writeRandom(t, filepath.Join(c.Mount, "before"), bytes, r)}
			allThere(t, c, sums)
			waitLinks(t, c, tr.want)
			eventually(t, 10*time.Second, func() string {
				switch inline, byRef := sentBytes(t, c); {
				case tr.want == "shm" && (byRef < bytes || inline > byRef/8):
					return fmt.Sprintf("%d bytes were sent inline, %d by reference", inline, byRef)
				case tr.want != "shm" && (inline < bytes || byRef != 0):
					return fmt.Sprintf("%d bytes were sent inline, %d by reference", inline, byRef)
				}
				return ""
			})
			l := startLoad(t, filepath.Join(c.Mount, "load"), 2, r)
			for _, victim := range []string{"drive2", "compute1", "mgmt", "compute0"} {
				l.alive(20, 30*time.Second)
				_, err := c.Kill(victim)
				must(t, err)
				must(t, c.WaitState(devcluster.UpTimeout, "all up after the death of "+victim, devcluster.AllUp))
			}
			l.alive(20, 30*time.Second)
			waitLinks(t, c, tr.want)
			t.Logf("%d files hold what was written; the slowest operation took %v", l.check(), time.Duration(l.slowest.Load()).Round(time.Millisecond))
			allThere(t, c, sums)
		})
	}
}

// What people see of the links: a column, a detail view by name and id, and status.
func TestS4wLinksShown(t *testing.T) {
	c := start(t, devcluster.Options{DriveSize: "128MiB", Flags: []string{"--wire", "tcp", "--arena-drive", "48MiB", "--arena-compute", "24MiB"}})
	waitLinks(t, c, "tcp")
	list, err := c.Crake("cluster", "process", "--dir", c.Dir)
	must(t, err)
	if head, _, _ := strings.Cut(string(list), "\n"); !strings.Contains(head, "TRANSPORT") || !strings.Contains(head, "ARENA") ||
		!strings.Contains(string(list), "of 48MiB") || !strings.Contains(string(list), "tcp 2") {
		t.Errorf("cluster process:\n%s", list)
	}
	for _, p := range workers(t, c) {
		if want := map[string]int64{"drive": 48 << 20, "compute": 24 << 20, "frontend": p.ArenaBytes}[p.Role]; p.ArenaBytes != want || want == 0 {
			t.Errorf("%s has an arena of %d bytes, want %d", p.Name, p.ArenaBytes, want)
		}
		if len(p.Addrs) != 2 || !strings.HasPrefix(p.Addrs[0], "unix:") || !strings.HasPrefix(p.Addrs[1], "tcp:127.0.0.1:") {
			t.Errorf("%s listens at %q", p.Name, p.Addrs)
		}
		byName, err := c.Crake("cluster", "process", p.Name, "--dir", c.Dir)
		must(t, err)
		byID, err := c.Crake("cluster", "process", fmt.Sprint(p.ID), "--dir", c.Dir)
		must(t, err)
		for _, want := range append([]string{p.Name, fmt.Sprint(p.PID), "PEER", "SENT BY REF", "LOANS"}, p.Addrs...) {
			if !strings.Contains(string(byName), want) || !strings.Contains(string(byID), want) {
				t.Errorf("cluster process %s does not say %q:\n%s\n%s", p.Name, want, byName, byID)
			}
		}
		var one processRow
		must(t, c.JSON(&one, "cluster", "process", p.Name))
		if one.ID != p.ID || len(one.Links) == 0 {
			t.Errorf("cluster process %s -f json: %+v", p.Name, one)
		}
	}
	if _, err := c.Crake("cluster", "process", "nobody", "--dir", c.Dir); err == nil || !strings.Contains(err.Error(), "no process nobody") {
		t.Errorf("a process that is not there: %v", err)
	}
	text, err := c.Crake("status", "--dir", c.Dir)
	must(t, err)
	if !strings.Contains(string(text), "tcp") {
		t.Errorf("status does not say how processes speak:\n%s", text)
	}
}

// Settings of the wire and of arenas are kept from one start to the next, and those that cannot be are refused, with what to do.
func TestS4wSettings(t *testing.T) {
	c := prepare(t, devcluster.Options{DriveSize: "128MiB", Flags: []string{"--wire", "unix"}})
	for _, bad := range []struct {
		says  string
		flags []string
	}{
		{"--wire-encryption is for --wire tcp", []string{"--wire-encryption"}},
		{"--wire-encryption is for --wire tcp", []string{"--wire", "shm", "--wire-encryption"}},
		{"want shm, unix or tcp", []string{"--wire", "pigeon"}},
		{"a drive needs at least 32MiB", []string{"--arena-drive", "31MiB"}},
		{"a compute needs at least 16MiB", []string{"--arena-compute", "1MiB"}},
		{"a frontend needs at least 8MiB", []string{"--arena-frontend", "4KiB"}},
	} {
		if _, err := c.Crake(append(c.UpArgs(), bad.flags...)...); err == nil || !strings.Contains(err.Error(), bad.says) {
			t.Errorf("%v: %v, want %q", bad.flags, err, bad.says)
		}
		if _, err := os.Stat(c.Dir); err == nil {
			t.Fatalf("%v: something was made", bad.flags)
		}
	}
	must(t, c.Up())
	waitLinks(t, c, "unix")
	again := func(flags ...string) error {
		_, err := c.Crake(append([]string{"dev", "up", "--dir", c.Dir, "--mount", c.Mount}, flags...)...)
		return err
	}
	if err := again("--wire", "tcp"); err == nil || !strings.Contains(err.Error(), "dev down") {
		t.Errorf("a change of a running cluster: %v", err)
	}
	must(t, again("--wire", "unix")) // is no change
	must(t, c.Down())
	must(t, again())
	waitLinks(t, c, "unix")
	must(t, c.Down())
	must(t, again("--wire", "tcp", "--arena-compute", "32MiB"))
	waitLinks(t, c, "tcp")
	for _, p := range workers(t, c) {
		if p.Role == "compute" && p.ArenaBytes != 32<<20 {
			t.Errorf("%s has an arena of %d bytes", p.Name, p.ArenaBytes)
		}
	}
}

// With arenas of the least size on every role and as little for unsynced writes as may be, several writers and readers of 1 MiB and
// of 4 KiB at once all get on, in bounded time and without an error: nothing waits in a circle.
func TestS4wSmallArenas(t *testing.T) {
	for _, wire := range []string{"shm", "unix"} {
		t.Run(wire, func(t *testing.T) {
			c := start(t, devcluster.Options{DriveSize: "768MiB", Flags: []string{
				"--wire", wire, "--arena-drive", "32MiB", "--arena-compute", "16MiB", "--arena-frontend", "8MiB"}})
			must(t, c.Down())
			editSettings(t, c, map[string]any{"frontend_dirty_bytes": 8 << 20})
			must(t, c.Up())
			waitLinks(t, c, wire)
			for _, p := range workers(t, c) {
				if want := map[string]int64{"drive": 32 << 20, "compute": 16 << 20, "frontend": 48 << 20}[p.Role]; p.ArenaBytes > want || p.ArenaBytes == 0 {
					t.Errorf("%s has an arena of %d bytes, want %d at most", p.Name, p.ArenaBytes, want)
				}
			}
			l := startLoad(t, filepath.Join(c.Mount, "load"), 2, random(t))
			dir := filepath.Join(c.Mount, "fio")
			must(t, os.Mkdir(dir, 0o755))
			// What readers read is laid out first; writers verify what they wrote at their end.
			const layOut, run = 2 * time.Minute, 3 * time.Minute
			common := []string{"--directory=" + dir, "--ioengine=psync", "--size=32m", "--group_reporting", "--end_fsync=1", "--minimal"}
			command(t, layOut, "/", nil, "fio", append(common, "--name=lay", "--rw=write", "--bs=1m", "--numjobs=2", "--filename_format=read.$jobnum")...)
			begin := time.Now()
			command(t, run, "/", nil, "fio", append(common,
				"--time_based", "--runtime=10",
				"--name=write1m", "--rw=write", "--bs=1m", "--numjobs=3",
				"--name=write4k", "--rw=randwrite", "--bs=4k", "--numjobs=3",
				"--name=direct1m", "--rw=randwrite", "--bs=1m", "--direct=1", "--numjobs=2",
				"--name=read1m", "--rw=read", "--bs=1m", "--direct=1", "--numjobs=2", "--filename_format=read.$jobnum",
				"--name=read4k", "--rw=randread", "--bs=4k", "--direct=1", "--numjobs=3", "--filename_format=read.0",
			)...)
			t.Logf("fio took %v for 10 s of load", time.Since(begin).Round(100*time.Millisecond))
			l.alive(20, 30*time.Second)
			t.Logf("%d files hold what was written; the slowest operation took %v", l.check(), time.Duration(l.slowest.Load()).Round(time.Millisecond))
			eventually(t, 30*time.Second, func() string { // all that was lent or taken has come back
				for _, p := range workers(t, c) {
					if p.Role != "frontend" && p.ArenaUsed > p.ArenaBytes/8 {
						return fmt.Sprintf("%s has %d of %d bytes of its arena in use, and nothing is going on", p.Name, p.ArenaUsed, p.ArenaBytes)
					}
				}
				return ""
			})
		})
	}
}

// editSettings changes keys of the cluster file of a cluster that does not run.
func editSettings(t *testing.T, c *devcluster.Cluster, change map[string]any) {
	t.Helper()
	path := filepath.Join(c.Dir, "cluster.json")
	text, err := os.ReadFile(path)
	must(t, err)
	var f map[string]any
	must(t, json.Unmarshal(text, &f))
	for k, v := range change {
		f[k] = v
	}
	text, err = json.Marshal(f)
	must(t, err)
	must(t, os.WriteFile(path, text, 0o600))
}
