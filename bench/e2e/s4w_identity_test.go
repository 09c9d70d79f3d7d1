package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/bench/internal/devcluster"
	"github.com/crakefs/crake/wire"
)

// mapProc is what `crake cluster process -f json` tells of a process, as far as it is needed here.
type mapProc struct {
	ID   uint32 `json:"id"`
	Name string `json:"name"`
	PID  int    `json:"pid"`
	Role string `json:"role"`
}

// knock shakes hands with the process of a name, on its unix socket.
func knock(c *devcluster.Cluster, p *party, cluster wire.ClusterID, name string) (who, refused string, err error) {
	conn, err := net.Dial("unix", filepath.Join(c.Dir, "run", name+".sock"))
	if err != nil {
		return "", "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	return p.prove(conn, cluster)
}

// Claim 5: every process refuses a stranger, and a run of a process that is over, and tells it why; so does mgmt when such a run registers. The
// newest run is taken by all, also when mgmt was restarted and found the processes running.
func TestS4wIdentities(t *testing.T) {
	c := start(t, devcluster.Options{})
	cluster := clusterID(t, c)
	sockets, err := filepath.Glob(filepath.Join(c.Dir, "run", "*.sock"))
	must(t, err)
	var names []string
	for _, s := range sockets {
		if n := strings.TrimSuffix(filepath.Base(s), ".sock"); n != "api" && !strings.HasPrefix(n, "etcd") {
			names = append(names, n)
		}
	}
	if len(names) != 10 {
		t.Fatalf("sockets of %v, want 6 drives, 2 computes, 1 frontend, mgmt", names)
	}
	t.Run("Stranger", func(t *testing.T) {
		for _, name := range names {
			strangers(t, c, cluster, name)
		}
	})

	saved := map[string]string{}
	before := map[string]int{}
	for _, name := range []string{"drive0", "compute0"} {
		b, err := os.ReadFile(identityPath(c.Dir, name))
		must(t, err)
		saved[name] = filepath.Join(t.TempDir(), name)
		must(t, os.WriteFile(saved[name], b, 0o600))
		before[name], err = c.Kill(name)
		must(t, err)
	}
	must(t, c.WaitState(devcluster.UpTimeout, "new runs", func(ps []devcluster.Process) bool {
		again := 0
		for _, p := range ps {
			if was, ok := before[p.Name]; ok && p.PID != 0 && p.PID != was {
				again++
			}
		}
		return again == 2 && devcluster.AllUp(ps)
	}))
	t.Run("OldRun", func(t *testing.T) { oldRun(t, c, cluster, saved, names) })
	t.Run("RegisterAsOldRun", func(t *testing.T) { registerAsOldRun(t, c, saved["compute0"]) })
	newRuns(t, c, cluster, names)

	// Mgmt is restarted and adopts; everybody stays who he is.
	ps, err := c.Find("mgmt")
	must(t, err)
	was, err := c.Processes()
	must(t, err)
	worker := 0
	for _, p := range ps {
		if p.Name == "mgmt" {
			worker = p.PID
		}
	}
	must(t, unix.Kill(worker, unix.SIGKILL))
	must(t, c.WaitState(devcluster.UpTimeout, "a new mgmt", func(ps []devcluster.Process) bool {
		for _, p := range ps {
			if p.Name == "mgmt" && p.PID == worker {
				return false
			}
		}
		return devcluster.AllUp(ps)
	}))
	now, err := c.Processes()
	must(t, err)
	for _, a := range was {
		for _, b := range now {
			if a.Name == b.Name && a.PID != b.PID && a.Name != "mgmt" {
				t.Errorf("%s was restarted", a.Name)
			}
		}
	}
	newRuns(t, c, cluster, names)
	must(t, writeSynced(filepath.Join(c.Mount, "after"), []byte("works")))
	healthy(t, c)
	must(t, c.Down())
	if left, err := filepath.Glob(identityPath(c.Dir, "*")); err != nil || len(left) > 0 {
		t.Errorf("identity files that dev down left: %v, %v", left, err)
	}
}

// strangers knock without an identity: as a tool, and as a process of the cluster.
func strangers(t *testing.T, c *devcluster.Cluster, cluster wire.ClusterID, name string) {
	t.Helper()
	process := helloOf(cluster, 1, 1)
	process[10], process[12] = byte(wire.RoleCompute), 7
	sumHello(process)
	for who, hello := range map[string][]byte{"a tool": helloOf(cluster, 1, 1), "a process": process} {
		got := converse(t, filepath.Join(c.Dir, "run", name+".sock"), attack{name: who, send: hello})
		why := refusedFor(wire.KindAuthentication)(got)
		if name == "mgmt" && who == "a tool" {
			if len(got) < 128 || binary.LittleEndian.Uint16(got[8:]) != 0 {
				t.Errorf("mgmt does not take a tool")
			}
			continue
		}
		if why != "" {
			t.Errorf("%s at %s: %s", who, name, why)
		}
	}
}

// oldRun knocks everywhere with the identities of runs that are over.
func oldRun(t *testing.T, c *devcluster.Cluster, cluster wire.ClusterID, saved map[string]string, names []string) {
	var wg sync.WaitGroup // they take their time: a newer map might know the key
	defer wg.Wait()
	for whose, path := range saved {
		p, err := readParty(path)
		must(t, err)
		for _, name := range names {
			wg.Go(func() {
				_, refused, err := knock(c, p, cluster, name)
				if err != nil || !strings.Contains(refused, "its session ended") {
					t.Errorf("the old run of %s at %s: %q, %v", whose, name, refused, err)
				}
			})
		}
	}
}

// registerAsOldRun starts a process by hand as mgmt does, but with an identity of an earlier run: it ends and says why.
func registerAsOldRun(t *testing.T, c *devcluster.Cluster, identity string) {
	var ps []mapProc
	must(t, c.JSON(&ps, "cluster", "process"))
	var id uint32
	for _, p := range ps {
		if p.Name == "compute0" {
			id = p.ID
		}
	}
	cluster := clusterID(t, c)
	cmd := exec.Command(c.Bin, "compute", "--name", "compute0", "--proc", fmt.Sprint(id), "--cluster", cluster.String(),
		"--mgmt", "unix:"+filepath.Join(c.Dir, "run", "mgmt.sock"), "--listen", "unix:"+filepath.Join(t.TempDir(), "s"), "--identity", identity)
	done := make(chan struct{})
	var out []byte
	var err error
	go func() { out, err = cmd.CombinedOutput(); close(done) }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		_ = cmd.Process.Kill()
		<-done
		t.Fatalf("it does not end; it said %s", out)
	}
	if err == nil || !strings.Contains(string(out), "mgmt has started a newer run of it") {
		t.Errorf("it ended with %v and said %s", err, out)
	}
}

// newRuns knocks everywhere with the identities of the present runs.
func newRuns(t *testing.T, c *devcluster.Cluster, cluster wire.ClusterID, names []string) {
	t.Helper()
	for _, whose := range []string{"drive0", "compute1", "frontend0"} {
		p, err := readParty(identityPath(c.Dir, whose))
		must(t, err)
		for _, name := range names {
			who, refused, err := knock(c, p, cluster, name)
			if err != nil || refused != "" || !strings.HasPrefix(who, "crake://"+cluster.String()+"/"+strings.TrimRight(name, "0123456789")+"/") {
				t.Errorf("%s at %s: it is %q, says %q, %v", whose, name, who, refused, err)
			}
		}
	}
}
