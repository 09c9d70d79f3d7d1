package e2e

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/bench/internal/devcluster"
)

// The commands do what their help says, and what later checks rely on.
func TestCommands(t *testing.T) {
	c := start(t, devcluster.Options{})
	ps, err := c.Processes()
	must(t, err)
	count := map[string]int{}
	for _, p := range ps {
		count[p.Role]++
		if p.Name == "" || p.PID == 0 || p.Version == "" || p.State != "up" {
			t.Errorf("dev ps: %+v", p)
		}
		if (p.Role == "drive" || p.Role == "compute") && len(p.Cores) != 1 {
			t.Errorf("dev ps: %s is pinned to cores %v, want one", p.Name, p.Cores)
		}
		if err := unix.Kill(p.PID, 0); err != nil {
			t.Errorf("dev ps names process %d as %s: %v", p.PID, p.Name, err)
		}
	}
	if count["drive"] != 6 || count["compute"] != 2 || count["frontend"] != 1 || count["mgmt"] < 1 {
		t.Errorf("dev ps counts %v", count)
	}
	out, err := c.Crake("dev", "ps", "--dir", c.Dir)
	must(t, err)
	if head, _, _ := strings.Cut(string(out), "\n"); strings.Join(strings.Fields(head), " ") != "ROLE NAME PID CORES VERSION STATE" {
		t.Errorf("dev ps begins with %q", head)
	}
	out, err = c.Crake("status", "--dir", c.Dir)
	must(t, err)
	for _, want := range []string{"health", "ok", "4+2", "16 of 16 serving", "usable", "6 of 6 up", c.Mount} {
		if !strings.Contains(string(out), want) {
			t.Errorf("status does not say %q:\n%s", want, out)
		}
	}
	for _, what := range []string{"process", "drive", "bucket", "pg"} {
		var rows []map[string]any
		must(t, c.JSON(&rows, "cluster", what))
		text, err := c.Crake("cluster", what, "--dir", c.Dir, "-f", "csv")
		must(t, err)
		lines, err := csv.NewReader(strings.NewReader(string(text))).ReadAll()
		must(t, err)
		if len(rows) == 0 || len(lines) != len(rows)+1 {
			t.Errorf("cluster %s lists %d as JSON and %d as CSV", what, len(rows), len(lines)-1)
		}
	}
	t.Run("Filesystems", func(t *testing.T) { filesystems(t, c) })
	t.Run("OnlyCluster", func(t *testing.T) {
		// Other tests' clusters are gone: this one is found without --dir, also by umount.
		mnt := addMount(t, c, "default")
		if out, err := c.Crake("status"); err != nil || !strings.Contains(string(out), c.Dir) {
			t.Errorf("status without --dir: %v, %s", err, out)
		}
		_, err := c.Crake("umount", mnt)
		must(t, err)
		if m := c.Mounts(); len(m) != 1 {
			t.Errorf("mounts after umount: %v", m)
		}
	})
}

func filesystems(t *testing.T, c *devcluster.Cluster) {
	_, err := c.Crake("fs", "create", "--dir", c.Dir, "scratch")
	must(t, err)
	mnt := addMount(t, c, "scratch")
	must(t, os.WriteFile(filepath.Join(mnt, "only here"), []byte("x"), 0o600))
	if _, err := os.Stat(filepath.Join(c.Mount, "only here")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file of one filesystem is seen in another: %v", err)
	}
	if err := os.Rename(filepath.Join(mnt, "only here"), filepath.Join(c.Mount, "moved")); !errors.Is(err, unix.EXDEV) {
		t.Errorf("rename from one filesystem to another: %v, want EXDEV", err)
	}
	var list []struct {
		Name   string
		Mounts []string
	}
	must(t, c.JSON(&list, "fs", "ls"))
	if len(list) != 2 {
		t.Errorf("fs ls: %+v", list)
	}
	// It comes back with the cluster.
	must(t, c.Down())
	must(t, c.Up())
	if got, err := os.ReadFile(filepath.Join(mnt, "only here")); err != nil || string(got) != "x" {
		t.Errorf("a further mount after a restart: %q, %v", got, err)
	}
	must(t, os.Remove(filepath.Join(mnt, "only here")))
	_, err = c.Crake("umount", "--dir", c.Dir, mnt)
	must(t, err)
	_, err = c.Crake("fs", "rm", "--dir", c.Dir, "scratch")
	must(t, err)
	must(t, c.JSON(&list, "fs", "ls"))
	if len(list) != 1 || list[0].Name != "default" {
		t.Errorf("fs ls after rm: %+v", list)
	}
}

// dev down cleans up when mgmt and its keeper are dead, and dev up brings back what then still runs.
func TestDownAndUpWithoutMgmt(t *testing.T) {
	c := start(t, devcluster.Options{})
	must(t, writeSynced(filepath.Join(c.Mount, "f"), []byte("data")))
	killMgmt(t, c)
	if got, err := os.ReadFile(filepath.Join(c.Mount, "f")); err != nil || string(got) != "data" {
		t.Errorf("the mount without mgmt: %q, %v", got, err)
	}
	must(t, c.Down())
	if pids, mounts := c.PIDs(), c.Mounts(); len(pids) != 0 || len(mounts) != 0 {
		t.Errorf("dev down without mgmt left processes %v, mounts %v", pids, mounts)
	}
	must(t, c.Down()) // again: nothing to do is no error
	must(t, c.Up())
	killMgmt(t, c)
	must(t, c.Up())
	if got, err := os.ReadFile(filepath.Join(c.Mount, "f")); err != nil || string(got) != "data" {
		t.Errorf("after dev up: %q, %v", got, err)
	}
	must(t, c.Up()) // of a cluster that runs
	healthy(t, c)
}

// What was written and never synced reaches the drives before an orderly stop or an umount has ended.
func TestOrderlyStopKeepsUnsyncedData(t *testing.T) {
	c := start(t, devcluster.Options{})
	want := make([]byte, 5<<20)
	fill(want, random(t).Uint64())
	check := func(path, when string) {
		t.Helper()
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v", when, len(got), err)
		}
	}
	second := addMount(t, c, "default")
	must(t, os.WriteFile(filepath.Join(second, "a"), want, 0o600))
	_, err := c.Crake("umount", "--dir", c.Dir, second)
	must(t, err)
	check(filepath.Join(c.Mount, "a"), "after umount of the mount that wrote it")
	must(t, os.WriteFile(filepath.Join(c.Mount, "b"), want, 0o600))
	must(t, c.Down())
	must(t, c.Up())
	check(filepath.Join(c.Mount, "b"), "after dev down")
	// The same when nobody is there to stop it in order.
	must(t, os.WriteFile(filepath.Join(c.Mount, "c"), want, 0o600))
	killMgmt(t, c)
	must(t, c.Down())
	must(t, c.Up())
	check(filepath.Join(c.Mount, "c"), "after dev down without mgmt")
}

// killMgmt kills mgmt and its keeper, and nothing else.
func killMgmt(t *testing.T, c *devcluster.Cluster) {
	t.Helper()
	isMgmt := func(pid int) bool {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		return strings.Contains(string(line), "\x00mgmt\x00")
	}
	eventually(t, 10*time.Second, func() string {
		left := 0
		for _, pid := range c.PIDs() {
			if isMgmt(pid) {
				left++
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		if left > 0 {
			return "mgmt still runs"
		}
		return ""
	})
}

// A dev up that is interrupted, politely or not, leaves nothing that keeps the next one from working.
func TestInterruptedDevUp(t *testing.T) {
	c := prepare(t, devcluster.Options{DriveSize: "128MiB"})
	r := random(t)
	for _, sig := range []unix.Signal{unix.SIGINT, unix.SIGKILL} {
		for range 3 {
			cmd := exec.Command(crakeBin, c.UpArgs()...)
			must(t, cmd.Start())
			time.Sleep(time.Duration(5+r.IntN(900)) * time.Millisecond)
			must(t, cmd.Process.Signal(sig))
			err := cmd.Wait()
			if sig == unix.SIGINT {
				if _, serr := os.Stat(c.Dir); err != nil && !errors.Is(serr, os.ErrNotExist) {
					t.Errorf("an interrupted dev up left %s", c.Dir)
				}
				if err != nil && (len(c.PIDs()) > 0 || len(c.Mounts()) > 0) {
					t.Errorf("an interrupted dev up left processes %v, mounts %v", c.PIDs(), c.Mounts())
				}
			}
			// Whatever is there now: dev up works, and so does dev down.
			if _, err := c.Crake(c.UpArgs()...); err != nil {
				t.Fatalf("dev up after one that got signal %v: %v\n%s", sig, err, c.Logs(20))
			}
			must(t, writeSynced(filepath.Join(c.Mount, "f"), []byte("data")))
			_, err = c.Crake("dev", "down", "--dir", c.Dir, "--wipe")
			must(t, err)
		}
	}
}

// JSON keys never change meaning, and these are promised.
func TestPromisedKeys(t *testing.T) {
	c := start(t, devcluster.Options{DriveSize: "128MiB"})
	for _, p := range []struct {
		args []string
		keys string
	}{
		{[]string{"dev", "ps"}, "role name pid cores version state"},
		{[]string{"cluster", "process"}, "id role name pid cores version state rss_bytes restarts addrs arena_bytes arena_used_bytes arena_lent_bytes arena_quarantined_bytes links"},
		{[]string{"cluster", "drive"}, "id process path state size_bytes free_bytes reason problem read_ns write_ns flush_ns errors corrupt engine engine_reason flush"},
		{[]string{"cluster", "bucket"}, "id owner epoch state"},
		{[]string{"fs", "ls"}, "id name mounts"},
		{[]string{"events"}, "id time severity type text"},
	} {
		var rows []map[string]json.RawMessage
		must(t, c.JSON(&rows, p.args...))
		if len(rows) == 0 {
			t.Errorf("%v lists nothing", p.args)
			continue
		}
		for _, k := range strings.Fields(p.keys) {
			if _, ok := rows[0][k]; !ok {
				t.Errorf("%v has no key %s", p.args, k)
			}
		}
	}
	var st map[string]json.RawMessage
	must(t, c.JSON(&st, "status"))
	for _, k := range strings.Fields("cluster_id name version health protection processes buckets capacity filesystems mounts drives advice wire wire_encryption") {
		if _, ok := st[k]; !ok {
			t.Errorf("status has no key %s", k)
		}
	}
}
