package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/crakefs/crake/bench/internal/devcluster"
)

// driveRow is a line of `crake cluster drive -f json`, or what `crake cluster drive ID -f json` prints.
type driveRow struct {
	ID      uint32 `json:"id"`
	Process string `json:"process"`
	Path    string `json:"path"`
	State   string `json:"state"`
	Reason  string `json:"reason"`
	Problem string `json:"problem"`
	Errors  uint64 `json:"errors"`
	ReadNs  uint64 `json:"read_ns"`
}

// driveFailTimeout bounds the time until a broken device has failed: ten seconds with errors, or half a minute of restarts, and
// what a busy machine adds.
const driveFailTimeout = 90 * time.Second

func oneDrive(t *testing.T, c *devcluster.Cluster, id int) driveRow {
	t.Helper()
	var d driveRow
	must(t, c.JSON(&d, "cluster", "drive", fmt.Sprint(id)))
	return d
}

// waitDrive waits until a drive has a state.
func waitDrive(t *testing.T, c *devcluster.Cluster, id int, state string) driveRow {
	t.Helper()
	var d driveRow
	begin := time.Now()
	eventually(t, driveFailTimeout, func() string {
		if d = oneDrive(t, c, id); d.State != state {
			return fmt.Sprintf("drive %d is %s, want %s: %+v", id, d.State, state, d)
		}
		return ""
	})
	t.Logf("drive %d is %s after %v: %s", id, state, time.Since(begin).Round(100*time.Millisecond), d.Reason)
	return d
}

// saysFailed verifies that the listing, status and the events tell that a drive has failed, and why.
func saysFailed(t *testing.T, c *devcluster.Cluster, id int, why string) {
	t.Helper()
	if d := oneDrive(t, c, id); d.State != "failed" || !strings.Contains(d.Reason, why) {
		t.Errorf("drive %d: %+v, want failed because of %q", id, d, why)
	}
	out, err := c.Crake("status", "--dir", c.Dir)
	must(t, err)
	for _, want := range []string{"degraded", fmt.Sprintf("drive %d has failed", id), why, fmt.Sprintf("crake cluster drive activate %d", id)} {
		if !strings.Contains(string(out), want) {
			t.Errorf("status does not say %q:\n%s", want, out)
		}
	}
	var events []event
	must(t, c.JSON(&events, "events", "--type", "drive.failed"))
	for _, e := range events {
		if e.Process == fmt.Sprintf("drive%d", id-1) && e.Severity == "error" && strings.Contains(e.Text, why) {
			return
		}
	}
	t.Errorf("no event tells of drive %d and %q: %+v", id, why, events)
}

// allThere verifies what was written, read by a mount that has cached nothing.
func allThere(t *testing.T, c *devcluster.Cluster, sums map[string]string) {
	t.Helper()
	dropCaches(t)
	second := addMount(t, c, "default")
	for name, want := range sums {
		if got := mustSum(t, filepath.Join(second, name)); got != want {
			t.Errorf("%s reads differently", name)
		}
	}
	_, err := c.Crake("umount", "--dir", c.Dir, second)
	must(t, err)
}

// Two drives become shorter under load, one after the other: each fails within seconds and says why, the load feels nothing, all
// data is there, and both stay failed over kill -9 of mgmt and over a restart of everything.
func TestS9DrivesCutOff(t *testing.T) {
	c := start(t, devcluster.Options{DriveSize: "512MiB"})
	r := random(t)
	sums := map[string]string{"before": writeRandom(t, filepath.Join(c.Mount, "before"), 24<<20, r)}
	l := startLoad(t, filepath.Join(c.Mount, "load"), 2, r)
	l.alive(20, 20*time.Second)
	ids := r.Perm(6)[:2]
	for _, i := range ids {
		must(t, os.Truncate(filepath.Join(c.Dir, "drives", fmt.Sprintf("drive%d", i)), 48<<20))
		waitDrive(t, c, i+1, "failed")
		saysFailed(t, c, i+1, "has become shorter")
		l.alive(20, 20*time.Second)
	}
	sums["after"] = writeRandom(t, filepath.Join(c.Mount, "after"), 8<<20, r)
	t.Logf("%d files hold what was written; the slowest operation took %v", l.check(), time.Duration(l.slowest.Load()).Round(time.Millisecond))
	allThere(t, c, sums)
	_, err := c.Kill("mgmt")
	must(t, err)
	eventually(t, devcluster.UpTimeout, func() string {
		var d driveRow
		if err := c.JSON(&d, "cluster", "drive", fmt.Sprint(ids[0]+1)); err != nil || d.State != "failed" {
			return fmt.Sprintf("%+v, %v", d, err)
		}
		return ""
	})
	must(t, c.Down())
	must(t, c.Up())
	for _, i := range ids {
		saysFailed(t, c, i+1, "has become shorter")
	}
	allThere(t, c, sums)
}

// loopDevice makes a loop device of a file that goes away with the test.
func loopDevice(t *testing.T, file string) string {
	t.Helper()
	out, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput()
	if err != nil {
		t.Skipf("this test needs loop devices: %v: %s", err, out)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", dev).CombinedOutput(); err != nil {
			t.Errorf("losetup --detach %s: %v: %s", dev, err, out)
		}
	})
	return dev
}

// moveDrives changes where the drives of a stopped cluster are.
func moveDrives(t *testing.T, c *devcluster.Cluster, where func(id int, path string) string) {
	t.Helper()
	path := filepath.Join(c.Dir, "cluster.json")
	b, err := os.ReadFile(path)
	must(t, err)
	var f map[string]any
	must(t, json.Unmarshal(b, &f))
	for i, d := range f["drives"].([]any) {
		spec := d.(map[string]any)
		spec["path"] = where(i+1, spec["path"].(string))
	}
	b, err = json.Marshal(f)
	must(t, err)
	must(t, os.WriteFile(path, b, 0o600))
}

// A block device that takes no more writes (a disk that has used up its spare blocks, or a path that was made read-only): the
// drive fails, whether its process survives or has to start again and again. Made whole and activated, it is used again.
func TestS9ReadOnlyDevice(t *testing.T) {
	t.Parallel() // it mostly waits
	c := prepare(t, devcluster.Options{DriveSize: "256MiB"})
	must(t, c.Up())
	must(t, c.Down())
	loop := loopDevice(t, filepath.Join(c.Dir, "drives", "drive1"))
	t.Cleanup(func() { _ = c.Down() }) // before the loop device is taken away
	moveDrives(t, c, func(id int, path string) string {
		if id == 2 {
			return loop
		}
		return path
	})
	must(t, c.Up())
	if d := oneDrive(t, c, 2); d.Path != loop || d.State != "up" {
		t.Fatalf("drive 2: %+v", d)
	}
	l := startLoad(t, filepath.Join(c.Mount, "load"), 2, random(t))
	l.alive(20, 20*time.Second)
	t.Cleanup(func() { _ = exec.Command("blockdev", "--setrw", loop).Run() }) // the kernel would keep it for the next user of the loop device
	command(t, 10*time.Second, "", nil, "blockdev", "--setro", loop)
	d := waitDrive(t, c, 2, "failed")
	saysFailed(t, c, 2, "operation not permitted")
	l.alive(20, 20*time.Second)
	command(t, 10*time.Second, "", nil, "blockdev", "--setrw", loop)
	_, err := c.Crake("cluster", "drive", "activate", "2", "--dir", c.Dir)
	must(t, err)
	waitDrive(t, c, 2, "up")
	l.alive(20, 20*time.Second)
	t.Logf("%d files hold what was written; %d errors were counted", l.check(), d.Errors)
	healthy(t, c)
}

// A drive that is missing when the cluster starts: everything else comes up, the drive fails after half a minute of trying, is not
// tried any more, and comes back by activate when the file is there again.
func TestS9MissingDrive(t *testing.T) {
	t.Parallel() // it mostly waits
	c := start(t, devcluster.Options{DriveSize: "256MiB"})
	r := random(t)
	sums := map[string]string{"f": writeRandom(t, filepath.Join(c.Mount, "f"), 16<<20, r)}
	must(t, c.Down())
	file := filepath.Join(c.Dir, "drives", "drive4")
	must(t, os.Rename(file, file+".away"))
	must(t, c.Up())
	sums["g"] = writeRandom(t, filepath.Join(c.Mount, "g"), 4<<20, r)
	waitDrive(t, c, 5, "failed")
	saysFailed(t, c, 5, "no such file")
	allThere(t, c, sums)
	must(t, os.Rename(file+".away", file))
	_, err := c.Crake("cluster", "drive", "activate", "5", "--dir", c.Dir)
	must(t, err)
	waitDrive(t, c, 5, "up")
	allThere(t, c, sums)
	healthy(t, c)
}

// By hand under load: two drives are deactivated and the third is refused in numbers; their processes may die meanwhile; activated,
// they serve again what they hold. Again and again.
func TestS9DeactivateUnderLoad(t *testing.T) {
	c := start(t, devcluster.Options{Drives: 7, DriveSize: "384MiB"})
	r := random(t)
	sums := map[string]string{"f": writeRandom(t, filepath.Join(c.Mount, "f"), 24<<20, r)}
	l := startLoad(t, filepath.Join(c.Mount, "load"), 2, r)
	l.alive(20, 20*time.Second)
	drive := func(what string, i int, more ...string) error {
		_, err := c.Crake(append([]string{"cluster", "drive", what, fmt.Sprint(i + 1), "--dir", c.Dir}, more...)...)
		return err
	}
	// The same two in every round: what is written while they are out has no protection left, and lacks theirs until there is a rebuild.
	order := r.Perm(7)
	for round := range 3 {
		for _, i := range order[:2] {
			must(t, drive("deactivate", i, "--reason", "a test of round "+fmt.Sprint(round)))
			saysFailed(t, c, i+1, "deactivated by hand: a test of round "+fmt.Sprint(round))
		}
		err := drive("deactivate", order[2])
		if err == nil || !strings.Contains(err.Error(), "3 failure domains would be out") {
			t.Errorf("the third of 4+2: %v", err)
		}
		if round == 1 {
			_, err := c.Kill(fmt.Sprintf("drive%d", order[0]))
			must(t, err)
		}
		l.alive(20, 20*time.Second)
		sums[fmt.Sprintf("g%d", round)] = writeRandom(t, filepath.Join(c.Mount, fmt.Sprintf("g%d", round)), 4<<20, r)
		for _, i := range order[:2] {
			must(t, drive("activate", i))
			waitDrive(t, c, i+1, "up")
		}
		l.alive(20, 20*time.Second)
	}
	t.Logf("%d files hold what was written; the slowest operation took %v", l.check(), time.Duration(l.slowest.Load()).Round(time.Millisecond))
	allThere(t, c, sums)
	healthy(t, c)
}
