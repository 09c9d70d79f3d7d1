package mgmt

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/mgmt/api"
	"github.com/crakefs/crake/mgmt/internal/supervise"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/identity"
	"github.com/crakefs/crake/wire/rpc"
)

// cluster is a whole cluster of fake roles under a real mgmt, all of them processes.
type cluster struct {
	t   *testing.T
	dir string
	f   *api.ClusterFile
	c   *api.Client
}

func newCluster(t *testing.T, edit func(f *api.ClusterFile)) *cluster {
	t.Helper()
	// Short: the paths of unix sockets are in it.
	dir, err := os.MkdirTemp("", "crk")
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	f := &api.ClusterFile{
		Version: 1, ClusterID: fmt.Sprintf("%016x%016x", os.Getpid(), time.Now().UnixNano()), Name: "test", DataStrips: 4, ParityStrips: 2,
		Buckets: 16, Computes: 2, Binary: exe, LeaseMs: 2000, Mount: filepath.Join(dir, "mnt"),
	}
	for i := range 6 {
		f.Drives = append(f.Drives, api.DriveSpec{ID: uint32(i + 1), Path: fmt.Sprintf("%s/d%d", dir, i), SizeBytes: 1 << 20})
	}
	if edit != nil {
		edit(f)
	}
	if err := os.Mkdir(filepath.Join(dir, "mnt"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := api.WriteClusterFile(dir, f); err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, dir: dir, f: f, c: api.Open(dir)}
	t.Cleanup(func() {
		if t.Failed() {
			c.dump()
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := api.StopAndWait(ctx, dir, true); err != nil && !errors.Is(err, api.ErrNotRunning) {
			t.Errorf("stop: %v", err)
		}
		if left := c.procs(); len(left) != 0 {
			t.Errorf("left running: %+v", left)
			for _, p := range left {
				_ = syscall.Kill(p.PID, syscall.SIGKILL)
			}
		}
		_ = os.RemoveAll(dir)
	})
	return c
}

func (c *cluster) dump() {
	for _, n := range []string{"mgmt", "compute0", "frontend0", "frontend1"} {
		b, _ := os.ReadFile(api.LogPath(c.dir, n))
		c.t.Logf("--- %s\n%s", n, b[max(0, len(b)-6000):])
	}
}

// procs finds the fake processes of the cluster.
func (c *cluster) procs() []supervise.Found {
	all, err := supervise.Scan([]string{"--cluster", c.f.ClusterID})
	if err != nil {
		c.t.Fatal(err)
	}
	return all
}

func (c *cluster) launch() {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 20*time.Second)
	defer cancel()
	if err := api.Launch(ctx, c.f.Binary, c.dir); err != nil {
		c.t.Fatal(err)
	}
	c.ready()
}

// identity gives the one of the present run of a process.
func (c *cluster) identity(name string) *identity.Identity {
	c.t.Helper()
	id, err := identity.Load(api.IdentityPath(c.dir, name))
	if err != nil {
		c.t.Fatal(err)
	}
	return id
}

func (c *cluster) ready() *api.Status {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 20*time.Second)
	defer cancel()
	st, err := c.c.WaitReady(ctx, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	return st
}

func (c *cluster) until(what string, ok func() bool) time.Duration {
	c.t.Helper()
	began := time.Now()
	for !ok() {
		if time.Since(began) > 20*time.Second {
			st, err := c.c.Status(c.t.Context())
			c.t.Fatalf("not in time: %s; %+v, %v", what, st, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return time.Since(began)
}

func (c *cluster) proc(name string) api.Process {
	c.t.Helper()
	all, err := c.c.Processes(c.t.Context())
	if err != nil {
		return api.Process{}
	}
	for _, p := range all {
		if p.Name == name {
			return p
		}
	}
	return api.Process{}
}

func (c *cluster) kill(name string, sig syscall.Signal) int {
	c.t.Helper()
	pid := c.proc(name).PID
	if pid == 0 {
		c.t.Fatalf("%s does not run", name)
	}
	if err := syscall.Kill(pid, sig); err != nil {
		c.t.Fatal(err)
	}
	return pid
}

// owners counts the buckets that are served, by owner.
func (c *cluster) owners() map[string]int {
	n := map[string]int{}
	list, err := c.c.Buckets(c.t.Context(), false)
	if err != nil {
		return n
	}
	for _, b := range list {
		if b.State == "serving" {
			n[b.Owner]++
		}
	}
	return n
}

func (c *cluster) is(compute0, compute1 int) func() bool {
	return func() bool { n := c.owners(); return n["compute0"] == compute0 && n["compute1"] == compute1 }
}

// Claim: a cluster forms from its file, everything comes up, and every listing of the API tells it.
func TestFormAndList(t *testing.T) {
	t.Parallel()
	c := newCluster(t, func(f *api.ClusterFile) { f.APIListen = "127.0.0.1:0" })
	c.launch()
	ctx := t.Context()
	st := c.ready()
	if st.Health.State != api.HealthOK || st.Drives != (api.DriveCount{Up: 6, Total: 6}) || st.Buckets.Serving != 16 ||
		st.Processes["compute"] != (api.Count{Up: 2, Total: 2}) || len(st.Mounts) != 1 || !st.Mounts[0].Ready || st.Sessions != 1 {
		t.Errorf("status %+v", st)
	}
	if st.Capacity.RawBytes != 6<<20 || st.Capacity.UsableBytes != 4<<20 {
		t.Errorf("capacity %+v", st.Capacity)
	}
	if !c.is(8, 8)() {
		t.Errorf("owners %v", c.owners())
	}
	bs, err := c.c.Buckets(ctx, true)
	if err != nil || len(bs) != 16 || bs[3].Inodes != 7 || bs[3].Epoch != 1 {
		t.Errorf("buckets %+v, %v", bs, err)
	}
	ds, err := c.c.Drives(ctx)
	if err != nil || len(ds) != 6 || ds[0].State != "up" || ds[0].Process != "drive0" || ds[0].PGs == 0 {
		t.Errorf("drives %+v, %v", ds, err)
	}
	pgs, err := c.c.PGs(ctx)
	if err != nil || len(pgs) != 24 || pgs[0].Up != 6 {
		t.Errorf("groups %+v, %v", pgs, err)
	}
	fs, err := c.c.Filesystems(ctx)
	if err != nil || len(fs) != 1 || fs[0].Name != "default" || len(fs[0].Mounts) != 1 {
		t.Errorf("filesystems %+v, %v", fs, err)
	}
	ev, err := c.c.Events(ctx, api.EventFilter{Type: "cluster."})
	if err != nil || len(ev) != 1 || ev[0].Type != "cluster.form" {
		t.Errorf("events %+v, %v", ev, err)
	}
	ps, err := c.c.Processes(ctx)
	if err != nil || len(ps) != 2+6+2+1 {
		t.Errorf("processes %+v, %v", ps, err)
	}
	for _, p := range ps {
		if p.State != "up" || p.PID == 0 || p.RSSBytes == 0 || (p.Role == "drive" || p.Role == "compute") && len(p.Cores) != 1 {
			t.Errorf("process %+v", p)
		}
	}
	overTCP := api.New("tcp:" + st.Mgmt.APIListen)
	if got, err := overTCP.Status(ctx); err != nil || got.ClusterID != c.f.ClusterID {
		t.Errorf("over TCP: %+v, %v", got, err)
	}
	c.badRequests(st.Mgmt.APIListen)
}

// Claim: bad requests are answered with a clear error, and pages of other sites cannot use the API over TCP.
func (c *cluster) badRequests(tcp string) {
	for _, r := range []struct {
		method, path, body, typ, host string
		want                          int
	}{
		{"GET", "/api/v1/nothing", "", "", "", 404},
		{"POST", "/api/v1/filesystems", `{"name":"x y"}`, "application/json", "", 400},
		{"POST", "/api/v1/filesystems", `{"nam":"x"}`, "application/json", "", 400},
		{"POST", "/api/v1/filesystems", strings.Repeat(" ", maxBodyBytes+1), "application/json", "", 400},
		{"POST", "/api/v1/stop", `{}`, "text/plain", "", 415},
		{"POST", "/api/v1/stop", ``, "", "", 415},
		{"GET", "/api/v1/status", "", "", "evil.example", 403},
		{"GET", "/api/v1/events?limit=0x", "", "", "", 400},
		{"GET", "/api/v1/events?severity=loud", "", "", "", 400},
		{"POST", "/api/v1/drives/x/activate", `{}`, "application/json", "", 400},
		{"POST", "/api/v1/drives/0/activate", `{}`, "application/json", "", 400},
		{"POST", "/api/v1/drives/99/activate", `{}`, "application/json", "", 404},
		{"POST", "/api/v1/drives/1/activate", `{}`, "application/json", "", 409},
		{"POST", "/api/v1/drives/99/deactivate", `{}`, "application/json", "", 404},
		{"POST", "/api/v1/drives/1/deactivate", `{"why":1}`, "application/json", "", 400},
		{"GET", "/api/v1/buckets?detail=perhaps", "", "", "", 400},
	} {
		req, err := http.NewRequestWithContext(c.t.Context(), r.method, "http://"+tcp+r.path, strings.NewReader(r.body))
		if err != nil {
			c.t.Fatal(err)
		}
		if r.typ != "" {
			req.Header.Set("Content-Type", r.typ)
		}
		if r.host != "" {
			req.Host = r.host
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			c.t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != r.want {
			c.t.Errorf("%s %s: %d, want %d", r.method, r.path, resp.StatusCode, r.want)
		}
	}
}

// Claim: kill -9 of a compute: its buckets are named for the other within a second, and come back few at a time.
func TestComputeKilled(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	c.launch()
	c.kill("compute1", syscall.SIGKILL)
	if d := c.until("failover", func() bool { return c.owners()["compute0"] == 16 || c.owners()["compute1"] == 0 }); d > time.Second {
		t.Errorf("failover took %v", d)
	}
	c.until("all served", c.is(16, 0))
	c.until("spread again", c.is(8, 8))
	ev, err := c.c.Events(t.Context(), api.EventFilter{Type: "process.exit", Severity: api.SeverityWarning})
	if err != nil || len(ev) != 1 || ev[0].Process != "compute1" || !strings.Contains(ev[0].Text, "signal: killed") {
		t.Errorf("events %+v, %v", ev, err)
	}
}

// Claim: a compute that hangs is declared down after the lease and not before, is killed, and comes back.
func TestComputeHangs(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	c.launch()
	pid := c.kill("compute1", syscall.SIGHUP)
	d := c.until("failover", c.is(16, 0))
	if d < 1800*time.Millisecond || d > 4*time.Second {
		t.Errorf("failover after %v, the lease is 2 s", d)
	}
	c.until("new run", func() bool { p := c.proc("compute1"); return p.State == "up" && p.PID != pid })
	c.until("spread again", c.is(8, 8))
}

// Claim: kill -9 of mgmt: its keeper starts it again, it adopts every process, and generation, incarnations, sessions and
// owners are as before.
func TestMgmtKilled(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	c.launch()
	before := c.ready()
	procs := c.procs()
	owners, err := c.c.Buckets(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		pid := c.kill("mgmt", syscall.SIGKILL)
		d := c.until("mgmt is back", func() bool { p := c.proc("mgmt"); return p.PID != 0 && p.PID != pid })
		t.Logf("mgmt was away for %v", d)
	}
	c.until("all is well", func() bool { st, err := c.c.Status(t.Context()); return err == nil && st.Health.State == api.HealthOK })
	time.Sleep(3 * time.Second) // longer than a lease: nobody must be taken for dead
	after := c.ready()
	if after.Generation != before.Generation || after.Sessions != before.Sessions {
		t.Errorf("generation %d, %d sessions; were %d, %d", after.Generation, after.Sessions, before.Generation, before.Sessions)
	}
	if now := c.procs(); fmt.Sprint(now) != fmt.Sprint(procs) {
		t.Errorf("processes %+v, were %+v", now, procs)
	}
	now, err := c.c.Buckets(t.Context(), false)
	if err != nil || fmt.Sprint(now) != fmt.Sprint(owners) {
		t.Errorf("buckets %+v, %v, were %+v", now, err, owners)
	}
}

// Claim: what dies while mgmt is away is noticed when it comes back, and fails over at once, not after a lease.
func TestDeathWhileMgmtIsAway(t *testing.T) {
	t.Parallel()
	c := newCluster(t, func(f *api.ClusterFile) { f.LeaseMs = 20_000 })
	c.launch()
	keeper, worker := c.proc("keeper").PID, c.proc("mgmt").PID
	victim := c.proc("compute1").PID
	for _, pid := range []int{keeper, worker, victim} {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	c.until("all three are dead", func() bool { return !api.Running(c.dir) && len(c.procs()) == 8 })
	began := time.Now()
	c.launch()
	c.until("spread", func() bool { n := c.owners(); return n["compute0"]+n["compute1"] == 16 })
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("all served after %v", d)
	}
	if n := len(c.procs()); n != 9 {
		t.Errorf("%d processes, want 9", n)
	}
}

// Claim: a worker that is asked to end by somebody who is not its keeper comes back; a keeper that is asked to end leaves the cluster
// running, and the next one finds it.
func TestTerminated(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	c.launch()
	procs := c.procs()
	pid := c.kill("mgmt", syscall.SIGTERM)
	c.until("mgmt is back", func() bool { p := c.proc("mgmt"); return p.PID != 0 && p.PID != pid })
	c.kill("keeper", syscall.SIGTERM)
	c.until("mgmt has ended", func() bool { return !api.Running(c.dir) })
	if now := c.procs(); fmt.Sprint(now) != fmt.Sprint(procs) {
		t.Errorf("processes %+v, were %+v", now, procs)
	}
	c.launch()
	if now := c.procs(); fmt.Sprint(now) != fmt.Sprint(procs) {
		t.Errorf("processes %+v, were %+v", now, procs)
	}
}

// Claim: mgmt that hangs is killed by its keeper and comes back; nobody is taken for dead because of the silence.
func TestMgmtHangs(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	c.launch()
	procs := c.procs()
	pid := c.kill("mgmt", syscall.SIGSTOP)
	c.until("mgmt is back", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		st, err := c.c.Status(ctx)
		return err == nil && st.Mgmt.PID != pid && st.Health.State == api.HealthOK
	})
	time.Sleep(3 * time.Second) // longer than a lease
	if now := c.procs(); fmt.Sprint(now) != fmt.Sprint(procs) {
		t.Errorf("processes %+v, were %+v", now, procs)
	}
}

// Claim: an evicted session is gone from the map when the eviction is answered, and its frontend comes back with a new one.
func TestEvict(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	c.launch()
	cluster, err := c.f.Cluster()
	if err != nil {
		t.Fatal(err)
	}
	ask := func(id *identity.Identity, role wire.Role, proc wire.ProcID, method wire.Method, req, resp wire.Message) {
		t.Helper()
		conn, err := rpc.Dial(t.Context(), api.MgmtAddr(c.dir), rpc.Options{Self: rpc.Self{Cluster: cluster, Role: role, Proc: proc}, Identity: id})
		if err == nil {
			err = errors.Join(conn.Do(t.Context(), &rpc.Call{Method: method, Req: req, Resp: resp}), conn.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var before, after wire.WatchMapResp
	ask(nil, wire.RoleClient, 0, wire.MWatchMap, &wire.WatchMapReq{}, &before)
	old := before.Map.Sessions[0].ID
	pid := c.proc("frontend0").PID
	ask(c.identity("compute0"), wire.RoleCompute, wire.ProcID(c.proc("compute0").ID), wire.MEvict, &wire.EvictReq{Session: old, Reason: "no answer to a recall"}, &wire.Empty{})
	ask(nil, wire.RoleClient, 0, wire.MWatchMap, &wire.WatchMapReq{}, &after)
	if after.Map.HasSession(old) {
		t.Error("the session is still in the map")
	}
	if _, ok := supervise.StartTime(pid); ok {
		t.Error("its process still lives")
	}
	c.until("a new session", func() bool { p := c.proc("frontend0"); return p.PID != pid && p.Ready })
}

// Claim: when only the keeper dies, mgmt goes on, and a new keeper takes it over.
func TestKeeperKilled(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	c.launch()
	worker := c.proc("mgmt").PID
	c.kill("keeper", syscall.SIGKILL)
	c.until("keeper is dead", func() bool { return !api.Locked(api.KeeperLock(c.dir)) })
	c.launch()
	c.until("new keeper", func() bool { return c.proc("keeper").PID != 0 })
	if got := c.proc("mgmt").PID; got != worker {
		t.Fatalf("mgmt is %d, was %d", got, worker)
	}
	if err := syscall.Kill(worker, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.until("new mgmt", func() bool { p := c.proc("mgmt").PID; return p != 0 && p != worker })
	c.ready()
}

// Claim: an orderly stop ends everything; the next start brings the same cluster back: ids, filesystems, mounts, rising
// generation and epochs.
func TestStopAndStart(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	c.launch()
	ctx := t.Context()
	if _, err := c.c.CreateFilesystem(ctx, "second"); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(c.dir, "other")
	if err := os.Mkdir(other, 0o755); err != nil {
		t.Fatal(err)
	}
	if m, err := c.c.AddMount(ctx, "second", other); err != nil || !m.Ready || m.Name != "frontend1" {
		t.Fatalf("%+v, %v", m, err)
	}
	before := c.ready()
	if err := api.StopAndWait(ctx, c.dir, false); err != nil {
		t.Fatal(err)
	}
	if left := c.procs(); len(left) != 0 || api.Running(c.dir) {
		t.Fatalf("left running: %+v", left)
	}
	if err := api.StopAndWait(ctx, c.dir, false); !errors.Is(err, api.ErrNotRunning) {
		t.Errorf("second stop: %v", err)
	}
	c.f.Buckets, c.f.DataStrips = 32, 3 // must not be taken up
	if err := api.WriteClusterFile(c.dir, c.f); err != nil {
		t.Fatal(err)
	}
	c.launch()
	after := c.ready()
	if after.Generation <= before.Generation || after.ClusterID != before.ClusterID || after.Buckets.Total != 16 || after.Protection.Data != 4 {
		t.Errorf("after %+v", after)
	}
	if len(after.Filesystems) != 2 || len(after.Mounts) != 2 || after.Mounts[1].Path != other {
		t.Errorf("filesystems %+v, mounts %+v", after.Filesystems, after.Mounts)
	}
	if err := c.c.RemoveFilesystem(ctx, "second"); err == nil || !strings.Contains(err.Error(), "is mounted at "+other) {
		t.Errorf("removed a mounted filesystem: %v", err)
	}
	if err := c.c.RemoveMount(ctx, other); err != nil {
		t.Error(err)
	}
	if err := c.c.RemoveFilesystem(ctx, "second"); err != nil {
		t.Error(err)
	}
	ev, err := c.c.Events(ctx, api.EventFilter{Type: "settings.ignored"})
	if err != nil || len(ev) != 1 {
		t.Errorf("events %+v, %v", ev, err)
	}
}

// Claim: what people ask for and cannot have is one clear line, and leaves nothing behind.
func TestRefusals(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	c.launch()
	ctx := t.Context()
	if _, err := c.c.CreateFilesystem(ctx, "full"); err != nil {
		t.Fatal(err)
	}
	cursed := filepath.Join(c.dir, "cursed")
	if err := os.Mkdir(cursed, 0o755); err != nil {
		t.Fatal(err)
	}
	add := func(fs, path string) error { _, err := c.c.AddMount(ctx, fs, path); return err }
	create := func(name string) error { _, err := c.c.CreateFilesystem(ctx, name); return err }
	for _, r := range []struct {
		err  error
		want string
	}{
		{create("full"), "already"},
		{create("a/b"), "letters"},
		{c.c.RemoveFilesystem(ctx, "none"), "no filesystem"},
		{c.c.RemoveFilesystem(ctx, "default"), "is mounted at"},
		{c.c.RemoveFilesystem(ctx, "full"), "is not empty"},
		{add("none", c.dir), "no filesystem"},
		{add("full", "relative"), "absolute"},
		{add("full", c.dir+"/nothing"), "mkdir -p"},
		{add("full", c.f.Binary), "not a directory"},
		{add("full", c.f.Mount), "already"},
		{add("full", cursed), "mount point " + cursed + " is cursed"},
		{c.c.RemoveMount(ctx, "/nowhere"), "nothing of this cluster"},
	} {
		if r.err == nil || !strings.Contains(r.err.Error(), r.want) || strings.Contains(r.err.Error(), "\n") {
			t.Errorf("%v, want %q", r.err, r.want)
		}
	}
	if st := c.ready(); len(st.Mounts) != 1 || len(st.Filesystems) != 2 || st.Filesystems[1].Deleting {
		t.Errorf("left behind: %+v", st)
	}
}

// Claim: mgmt that cannot start says why in one line and does not stay.
func TestLaunchFails(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(f *api.ClusterFile){
		"core 4000 is not one": func(f *api.ClusterFile) { f.Cores = []int{4000} },
		"not a loopback":       func(f *api.ClusterFile) { f.APIListen = "0.0.0.0:0" },
	} {
		c := newCluster(t, edit)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		err := api.Launch(ctx, c.f.Binary, c.dir)
		cancel()
		if err == nil || !strings.Contains(err.Error(), name) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v, want %q", err, name)
		}
		if api.Running(c.dir) {
			t.Error("mgmt runs")
		}
	}
}

// Claim: only processes of this cluster are served, each only for itself; tools may read the map.
func TestStrangers(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	c.launch()
	cluster, err := c.f.Cluster()
	if err != nil {
		t.Fatal(err)
	}
	dial := func(self rpc.Self, id *identity.Identity) *rpc.Conn {
		conn, err := rpc.Dial(t.Context(), api.MgmtAddr(c.dir), rpc.Options{Self: self, Identity: id})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	tool := dial(rpc.Self{Role: wire.RoleClient}, nil)
	var m wire.WatchMapResp
	if err := tool.Do(t.Context(), &rpc.Call{Method: wire.MWatchMap, Req: &wire.WatchMapReq{}, Resp: &m}); err != nil || m.Map.Cluster != cluster {
		t.Errorf("map for a tool: %v", err)
	}
	victim, next := m.Map.Processes[0], m.Map.Processes[1]
	drive := dial(rpc.Self{Cluster: cluster, Role: wire.RoleDrive, Proc: next.ID}, c.identity(next.Name))
	for name, r := range map[string]struct {
		conn *rpc.Conn
		call rpc.Call
	}{
		"tool goodbye":    {tool, rpc.Call{Method: wire.MGoodbye, Req: &wire.GoodbyeReq{Proc: victim.ID, Incarnation: victim.Incarnation}}},
		"tool evict":      {tool, rpc.Call{Method: wire.MEvict, Req: &wire.EvictReq{Session: 1}}},
		"other's goodbye": {drive, rpc.Call{Method: wire.MGoodbye, Req: &wire.GoodbyeReq{Proc: victim.ID, Incarnation: victim.Incarnation}}},
		"other's beat":    {drive, rpc.Call{Method: wire.MHeartbeat, Req: &wire.HeartbeatReq{Proc: victim.ID}}},
		"other's trouble": {drive, rpc.Call{Method: wire.MDriveTrouble, Req: &wire.DriveTroubleReq{Proc: victim.ID, PID: 1, Drive: 1}}},
		"no such drive":   {drive, rpc.Call{Method: wire.MDriveTrouble, Req: &wire.DriveTroubleReq{Proc: next.ID, PID: 1, Drive: 99}}},
		"drive evicts":    {drive, rpc.Call{Method: wire.MEvict, Req: &wire.EvictReq{Session: 1}}},
		"register as":     {drive, rpc.Call{Method: wire.MRegister, Req: &wire.RegisterReq{Proc: victim.ID, Role: wire.RoleDrive, PID: 1}}},
	} {
		if err := r.conn.Do(t.Context(), &r.call); wire.KindOf(err) != wire.KindRefused {
			t.Errorf("%s: %v, want refused", name, err)
		}
	}
	if err := drive.Do(t.Context(), &rpc.Call{Method: wire.MCreate}); wire.KindOf(err) != wire.KindVersion {
		t.Errorf("unknown method: %v", err)
	}
	if st := c.ready(); st.Health.State != api.HealthOK {
		t.Errorf("health %+v", st.Health)
	}
}

// Claim: a mount point in use is found to be in use, by whom, and is not touched; one that is not used is not touched either.
func TestBusyMount(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatalf("mount (this test needs root): %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	if err := checkBusy(dir); err != nil {
		t.Errorf("not used: %v", err)
	}
	f, err := os.Create(filepath.Join(dir, "f"))
	if err != nil {
		t.Fatalf("the question unmounted it: %v", err)
	}
	defer f.Close()
	if err := checkBusy(dir); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("process %d (", os.Getpid())) {
		t.Errorf("used by us: %v", err)
	}
	var here, above unix.Stat_t
	if err := errors.Join(unix.Stat(dir, &here), unix.Stat(filepath.Dir(dir), &above)); err != nil || here.Dev == above.Dev {
		t.Errorf("it is not mounted any more: %v", err)
	}
	if err := checkBusy(t.TempDir()); err != nil {
		t.Errorf("not a mount point: %v", err)
	}
}

func TestHealth(t *testing.T) {
	good := healthInput{
		parity: 2, drives: &driveHealth{}, procs: map[string]api.Count{"compute": {Up: 2, Total: 2}},
		buckets: api.BucketCount{Total: 16, Serving: 16}, mounts: []api.Mount{{Path: "/m", Ready: true}},
		pgs: [][]bool{{true, true, true, true, true, true}},
	}
	for _, r := range []struct {
		want   string
		reason string
		edit   func(in *healthInput)
	}{
		{api.HealthOK, "", func(in *healthInput) {}},
		{api.HealthDegraded, "1 of 6 drives", func(in *healthInput) {
			in.drives.count.Up = 5
			in.pgs = [][]bool{{false, true, true, true, true, true}}
		}},
		{api.HealthDegraded, "bear no further loss", func(in *healthInput) { in.pgs = [][]bool{{false, false, true, true, true, true}} }},
		{api.HealthUnavailable, "have lost more than the 2", func(in *healthInput) { in.pgs = [][]bool{{false, false, false, true, true, true}} }},
		{api.HealthDegraded, "1 of 2 computes", func(in *healthInput) { in.procs = map[string]api.Count{"compute": {Up: 1, Total: 2}} }},
		{api.HealthUnavailable, "3 of 16 buckets have no owner", func(in *healthInput) { in.buckets.Unowned = 3 }},
		{api.HealthUnavailable, "1 of 16 buckets cannot", func(in *healthInput) { in.buckets.Failed = 1 }},
		{api.HealthUnavailable, "being opened", func(in *healthInput) { in.buckets.Opening = 1 }},
		{api.HealthStarting, "being opened", func(in *healthInput) { in.buckets.Opening, in.starting = 1, true }},
		{api.HealthOK, "", func(in *healthInput) { in.starting = true }},
		{api.HealthDegraded, "not ready", func(in *healthInput) { in.mounts = []api.Mount{{Path: "/m"}} }},
		{api.HealthDegraded, "drive 3 has failed: gone", func(in *healthInput) {
			in.drives.count, in.drives.failed = api.DriveCount{Up: 5, Total: 6, Failed: 1}, []driveNote{{id: 3, reason: "gone"}}
		}},
		{api.HealthDegraded, "drive 3 has failed: gone", func(in *healthInput) { // it is not waited for
			in.starting = true
			in.drives.count, in.drives.failed = api.DriveCount{Up: 5, Total: 6, Failed: 1}, []driveNote{{id: 3, reason: "gone"}}
		}},
		{api.HealthStarting, "2 of 6 drives are down", func(in *healthInput) { in.starting, in.drives.count.Up = true, 4 }},
		{api.HealthDegraded, "2 more drives have failed", func(in *healthInput) { in.drives.failed = make([]driveNote, maxNamed+2) }},
		{api.HealthDegraded, "drive 4 is slow: reads", func(in *healthInput) { in.drives.problems = []driveNote{{id: 4, problem: "slow: reads"}} }},
		{api.HealthUnavailable, "in 2 of 6 failure domains, and logs need 3: all writes wait", func(in *healthInput) { in.drives.upDomains = 2 }},
		{api.HealthStopping, "", func(in *healthInput) { in.stopping = true }},
	} {
		in := good
		in.drives = &driveHealth{count: api.DriveCount{Up: 6, Total: 6}, domains: 6, upDomains: 6}
		r.edit(&in)
		h := health(&in)
		if h.State != r.want || !strings.Contains(strings.Join(h.Reasons, "; "), r.reason) {
			t.Errorf("%+v, want %s, %q", h, r.want, r.reason)
		}
	}
}
