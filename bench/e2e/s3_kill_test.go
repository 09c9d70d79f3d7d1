package e2e

import (
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/bench/internal/devcluster"
)

// maxPause is what an application may notice of a compute's death.
const maxPause = 5 * time.Second

// Claim 3, drives: any two drive processes die under load; reads and writes go on, checksums hold, and they return by themselves.
func TestS3KillTwoDrives(t *testing.T) {
	c := start(t, devcluster.Options{DriveSize: "512MiB"})
	r := random(t)
	l := startLoad(t, filepath.Join(c.Mount, "load"), 3, r)
	l.alive(30, 20*time.Second)
	rounds := 4
	if testing.Short() {
		rounds = 2
	}
	for round := range rounds {
		drives, err := c.Find("drive")
		must(t, err)
		r.Shuffle(len(drives), func(i, j int) { drives[i], drives[j] = drives[j], drives[i] })
		l.resetSlowest()
		for _, d := range drives[:2] {
			_, err := c.Kill(d.Name)
			must(t, err)
		}
		l.alive(20, 20*time.Second)
		waitBack(t, c, drives[:2])
		l.alive(10, 20*time.Second)
		t.Logf("round %d: killed %s and %s; slowest operation %v", round, drives[0].Name, drives[1].Name, time.Duration(l.slowest.Load()).Round(time.Millisecond))
	}
	t.Logf("%d files hold what was written", l.check())
	healthy(t, c)
}

// waitBack waits until the killed processes run again as others.
func waitBack(t *testing.T, c *devcluster.Cluster, killed []devcluster.Process) {
	t.Helper()
	must(t, c.WaitState(devcluster.UpTimeout, "the killed processes to return", func(ps []devcluster.Process) bool {
		back := 0
		for _, p := range ps {
			for _, k := range killed {
				if p.Name == k.Name && p.PID != k.PID && p.State == "up" {
					back++
				}
			}
		}
		return back == len(killed)
	}))
}

// Claim 3, drives, harder: two drives stay away (their processes are stopped, so they hang instead of being gone) while
// new data is written and all of it read back; then they go on.
func TestS3HungDrives(t *testing.T) {
	c := start(t, devcluster.Options{DriveSize: "512MiB"})
	r := random(t)
	before := filepath.Join(c.Mount, "before")
	want := writeRandom(t, before, 24<<20, r)
	drives, err := c.Find("drive")
	must(t, err)
	r.Shuffle(len(drives), func(i, j int) { drives[i], drives[j] = drives[j], drives[i] })
	for _, d := range drives[:2] {
		must(t, unix.Kill(d.PID, unix.SIGSTOP))
	}
	resume := sync.OnceFunc(func() {
		for _, d := range drives[:2] {
			_ = unix.Kill(d.PID, unix.SIGCONT) // may be gone: mgmt may have replaced a process that hangs
		}
	})
	t.Cleanup(resume)
	begin := time.Now()
	dropCaches(t)
	if got := mustSum(t, before); got != want {
		t.Error("what was written before reads differently with two drives away")
	}
	t.Logf("read 24 MiB with %s and %s stopped in %v", drives[0].Name, drives[1].Name, time.Since(begin).Round(time.Millisecond))
	begin = time.Now()
	during := filepath.Join(c.Mount, "during")
	want2 := writeRandom(t, during, 24<<20, r)
	t.Logf("wrote 24 MiB with both away in %v", time.Since(begin).Round(time.Millisecond))
	if got := mustSum(t, during); got != want2 {
		t.Error("what was written with two drives away reads differently")
	}
	resume()
	must(t, c.WaitState(devcluster.UpTimeout, "all processes", devcluster.AllUp))
	dropCaches(t)
	for path, w := range map[string]string{before: want, during: want2} {
		if got := mustSum(t, path); got != w {
			t.Errorf("%s differs after the drives have returned", path)
		}
	}
	healthy(t, c)
}

// Claim 3, compute: kill -9 of a compute under load; the other takes its buckets over, the application sees a pause of under 5 s and no
// error. Then the other one, which by then serves everything.
func TestS3KillCompute(t *testing.T) {
	c := start(t, devcluster.Options{DriveSize: "512MiB"})
	l := startLoad(t, filepath.Join(c.Mount, "load"), 3, random(t))
	l.alive(30, 20*time.Second)
	rounds := 4
	if testing.Short() {
		rounds = 2
	}
	for round := range rounds {
		computes, err := c.Find("compute")
		must(t, err)
		victim := computes[round%len(computes)]
		l.resetSlowest()
		_, err = c.Kill(victim.Name)
		must(t, err)
		l.alive(20, 20*time.Second)
		pause := time.Duration(l.slowest.Load())
		t.Logf("round %d: killed %s; the slowest operation took %v", round, victim.Name, pause.Round(time.Millisecond))
		if pause > maxPause {
			t.Errorf("an operation took %v when a compute was killed, want under %v", pause, maxPause)
		}
		waitBack(t, c, []devcluster.Process{victim})
		l.alive(10, 20*time.Second)
	}
	t.Logf("%d files hold what was written", l.check())
	healthy(t, c)
}

// A compute that hangs is found by its lease, and one that comes back must not serve what it has lost.
func TestS3HungCompute(t *testing.T) {
	c := start(t, devcluster.Options{DriveSize: "512MiB"})
	l := startLoad(t, filepath.Join(c.Mount, "load"), 2, random(t))
	l.alive(20, 20*time.Second)
	computes, err := c.Find("compute")
	must(t, err)
	must(t, unix.Kill(computes[0].PID, unix.SIGSTOP))
	resume := sync.OnceFunc(func() { _ = unix.Kill(computes[0].PID, unix.SIGCONT) })
	t.Cleanup(resume)
	time.Sleep(time.Second)
	l.alive(20, 30*time.Second) // the lease is 5 s
	resume()
	must(t, c.WaitState(devcluster.UpTimeout, "all processes", devcluster.AllUp))
	l.alive(20, 20*time.Second)
	t.Logf("%d files hold what was written; the slowest operation took %v", l.check(), time.Duration(l.slowest.Load()).Round(time.Millisecond))
	healthy(t, c)
}

// mgmt is not on the data path: with it dead the load goes on, and it returns by itself.
func TestS3KillMgmt(t *testing.T) {
	c := start(t, devcluster.Options{DriveSize: "384MiB"})
	l := startLoad(t, filepath.Join(c.Mount, "load"), 2, random(t))
	l.alive(20, 20*time.Second)
	for range 2 {
		l.resetSlowest()
		_, err := c.Kill("mgmt")
		must(t, err)
		l.alive(20, 20*time.Second)
		must(t, c.WaitState(devcluster.UpTimeout, "mgmt to return and to have all processes", devcluster.AllUp))
		t.Logf("the slowest operation took %v", time.Duration(l.slowest.Load()).Round(time.Millisecond))
	}
	t.Logf("%d files hold what was written", l.check())
	healthy(t, c)
}

// healthy waits until status says that all is well.
func healthy(t *testing.T, c *devcluster.Cluster) {
	t.Helper()
	eventually(t, devcluster.UpTimeout, func() string {
		var st struct {
			Health struct {
				State   string   `json:"state"`
				Reasons []string `json:"reasons"`
			} `json:"health"`
		}
		if err := c.JSON(&st, "status"); err != nil {
			return err.Error()
		}
		if st.Health.State != "ok" {
			return fmt.Sprintf("health is %s: %s", st.Health.State, strings.Join(st.Health.Reasons, "; "))
		}
		return ""
	})
}

// Claim 3, everything at once: kill -9 of all processes at a random moment during fsynced files, dev up again: every file
// whose fsync returned is complete. The cluster lives through all rounds, so what an early round wrote is looked at in
// every later one too.
func TestS3KillAll(t *testing.T) {
	rounds := 20
	if testing.Short() {
		rounds = 4
	}
	c := start(t, devcluster.Options{DriveSize: "384MiB", Buckets: 8})
	r := random(t)
	acked := map[string]string{} // path below the mount -> SHA-256 of what fsync promised
	for round := range rounds {
		w := startSyncer(c.Mount, round, r.Uint64())
		delay := time.Duration(150+r.IntN(1500)) * time.Millisecond
		time.Sleep(delay)
		must(t, c.KillAll())
		files, ops := w.wait()
		maps.Copy(acked, files)
		begin := time.Now()
		if err := c.Up(); err != nil {
			t.Fatalf("round %d: dev up after kill -9 of everything: %v\n%s", round, err, c.Logs(20))
		}
		up := time.Since(begin)
		bad := 0
		for p, want := range acked {
			got, err := sum(filepath.Join(c.Mount, p))
			if err != nil || got != want {
				bad++
				t.Errorf("round %d (killed after %v): %s: %s, %v; fsync had promised %s", round, delay, p, got, err, want)
			}
		}
		if bad > 0 {
			t.FailNow()
		}
		t.Logf("round %2d: killed after %4d ms and %d operations, up in %v, %d files complete", round, delay.Milliseconds(), ops, up.Round(time.Millisecond), len(acked))
		prune(t, c.Mount, acked, r)
	}
	// What was not promised may be there or not, but all of it can be listed, read and removed.
	must(t, filepath.WalkDir(c.Mount, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		_, err = sum(path)
		return err
	}))
	entries, err := os.ReadDir(c.Mount)
	must(t, err)
	for _, e := range entries {
		must(t, os.RemoveAll(filepath.Join(c.Mount, e.Name())))
	}
	healthy(t, c)
}

// prune removes some promised files, so that the drives do not fill and freed space is written again.
func prune(t *testing.T, mount string, acked map[string]string, r *rand.Rand) {
	t.Helper()
	for p := range acked { // in random order
		if len(acked) > 200 && r.IntN(8) > 0 {
			must(t, os.Remove(filepath.Join(mount, p)))
			delete(acked, p)
		}
	}
}

// syncer writes files with fsync until the mount dies under it, and knows what was promised.
type syncer struct {
	wg    sync.WaitGroup
	mu    sync.Mutex
	files map[string]string // path below the mount -> SHA-256
	ops   int
}

// startSyncer starts four writers, each in a directory of its own whose creation is synced as well.
func startSyncer(mount string, round int, seed uint64) *syncer {
	s := &syncer{files: map[string]string{}}
	for i := range 4 {
		s.wg.Add(1)
		go func() {
			defer s.wg.Done()
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			dir := fmt.Sprintf("r%d-w%d", round, i)
			if os.Mkdir(filepath.Join(mount, dir), 0o755) != nil {
				return
			}
			for n := 0; s.one(mount, filepath.Join(dir, fmt.Sprintf("f%d", n)), r) == nil; n++ {
			}
		}()
	}
	return s
}

// one writes a file in one of the ways in which applications make files durable.
func (s *syncer) one(mount, name string, r *rand.Rand) error {
	data := make([]byte, []int{1, 500, 2048, 2049, 4096, 40_000, 66_000, 300_000, 1_200_000}[r.IntN(9)]+r.IntN(100))
	fill(data, r.Uint64())
	path := filepath.Join(mount, name)
	rename := r.IntN(3) == 0
	if rename {
		path += ".tmp"
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for part := data; len(part) > 0; {
		n := min(len(part), 1+r.IntN(len(data)))
		if _, err := f.Write(part[:n]); err != nil {
			return err
		}
		part = part[n:]
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if rename {
		// The answer to a rename is durable: a namespace change is acknowledged only then.
		if err := os.Rename(path, filepath.Join(mount, name)); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files[name] = sumOf(data)
	s.ops++
	return nil
}

// wait waits until all writers have met the dead mount, and gives what was promised.
func (s *syncer) wait() (files map[string]string, ops int) {
	s.wg.Wait()
	return s.files, s.ops
}
