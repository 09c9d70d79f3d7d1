package mgmt

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/crakefs/crake/mgmt/api"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/identity"
	"github.com/crakefs/crake/wire/rpc"
)

// Claim: mgmt speaks only with the newest run of each process and with tools; who has no proof, one of another CA, or one of a run that is
// over, is told why. Each start has a key of its own, and the map has it.
func TestOnlyNewestRun(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	c.launch()
	cluster, err := c.f.Cluster()
	if err != nil {
		t.Fatal(err)
	}
	other, err := identity.NewCA(cluster)
	if err != nil {
		t.Fatal(err)
	}
	old := c.identity("drive0")
	self := rpc.Self{Cluster: cluster, Role: old.Name().Role, Proc: old.Name().Proc}
	forged, err := other.Issue(self.Role, self.Proc)
	if err != nil {
		t.Fatal(err)
	}
	dial := func(id *identity.Identity) error {
		conn, err := rpc.Dial(t.Context(), api.MgmtAddr(c.dir), rpc.Options{Self: self, Identity: id})
		if err == nil {
			err = conn.Close()
		}
		return err
	}
	if err := dial(old); err != nil {
		t.Errorf("the newest run: %v", err)
	}
	pid := c.proc("drive0").PID
	c.kill("drive0", syscall.SIGKILL)
	c.until("drive0 is back", func() bool { p := c.proc("drive0"); return p.PID != 0 && p.PID != pid && p.Ready })
	now := c.identity("drive0")
	if now.Key() == old.Key() {
		t.Error("a restart did not change the key")
	}
	tool, err := rpc.Dial(t.Context(), api.MgmtAddr(c.dir), rpc.Options{Self: rpc.Self{Role: wire.RoleClient}})
	if err != nil {
		t.Fatal(err)
	}
	defer tool.Close()
	var m wire.WatchMapResp
	if err := tool.Do(t.Context(), &rpc.Call{Method: wire.MWatchMap, Req: &wire.WatchMapReq{}, Resp: &m}); err != nil {
		t.Fatal(err)
	}
	if got := m.Map.Proc(self.Proc).Key; got != now.Key() {
		t.Errorf("the map has key %s, the run %s", got, now.Key())
	}
	for name, e := range map[string]struct {
		id   *identity.Identity
		kind wire.Kind
		want string
	}{
		"no proof":      {nil, wire.KindAuthentication, "refused by the peer"},
		"another CA":    {forged, wire.KindAuthentication, "none that this cluster's mgmt issued"},
		"a run is over": {old, wire.KindRefused, "its session ended: mgmt has started a newer run of it"},
	} {
		if err := dial(e.id); wire.KindOf(err) != e.kind || !strings.Contains(err.Error(), e.want) {
			t.Errorf("%s: %v, want %q", name, err, e.want)
		}
	}
	if err := dial(now); err != nil {
		t.Errorf("the newest run: %v", err)
	}
	for _, path := range []string{api.CAPath(c.dir), api.IdentityPath(c.dir, "drive0"), filepath.Join(api.RunDir(c.dir), "mgmt.sock")} {
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v; want mode 0600", path, fi.Mode(), err)
		}
	}
}

// Claim: when a newer run of a process is started, the connections that the earlier one still has to mgmt end.
func TestIssueEndsOldConnections(t *testing.T) {
	dir := t.TempDir()
	cluster := wire.ClusterID{1}
	ids, err := newIssuer(dir, cluster)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(api.RunDir(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	w := &worker{c: &Config{Dir: dir}, ids: ids}
	w.socket, err = rpc.Listen("unix:"+dir+"/s", rpc.Options{Self: rpc.Self{Cluster: cluster, Role: wire.RoleMgmt}, Identity: ids.own, Admit: ids.admit})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	ctx := t.Context()
	go func() { done <- w.socket.Serve(ctx) }()
	t.Cleanup(func() { <-done })
	conns := map[wire.ProcID]*rpc.Conn{}
	for _, proc := range []wire.ProcID{1, 2} {
		if err := w.issue("p", wire.RoleDrive, proc); err != nil {
			t.Fatal(err)
		}
		id, err := identity.Load(api.IdentityPath(dir, "p"))
		if err != nil {
			t.Fatal(err)
		}
		o := rpc.Options{Self: rpc.Self{Cluster: cluster, Role: wire.RoleDrive, Proc: proc}, Identity: id}
		if conns[proc], err = rpc.Dial(ctx, w.socket.Addr(), o); err != nil {
			t.Fatal(err)
		}
		defer conns[proc].Close()
	}
	if err := w.issue("p", wire.RoleDrive, 1); err != nil {
		t.Fatal(err)
	}
	<-conns[1].Done()
	call := rpc.Call{Method: wire.MHeartbeat}
	if err := conns[2].Do(ctx, &call); wire.KindOf(err) != wire.KindRefused { // there is no handler, but a connection
		t.Errorf("another process: %v", err)
	}
	ids.revoke(2)
	w.socket.Expel(ids.mayConnect)
	<-conns[2].Done()
}

// Claim: a mgmt that starts again knows the identities of the processes that it finds; processes that have none of this CA are ended, and
// started anew.
func TestUnprovenAreStartedAnew(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	c.launch()
	before := map[string]int{}
	for _, p := range c.procs() {
		before[p.Name] = p.PID
	}
	worker := c.proc("mgmt").PID
	// drive1 has lost its file, and drive2 has one for another process.
	if err := os.Remove(api.IdentityPath(c.dir, "drive1")); err != nil {
		t.Fatal(err)
	}
	if err := c.identity("drive3").Write(api.IdentityPath(c.dir, "drive2")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(worker, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.until("new mgmt", func() bool { p := c.proc("mgmt").PID; return p != 0 && p != worker })
	c.ready()
	for _, p := range c.procs() {
		if lost := p.Name == "drive1" || p.Name == "drive2"; (before[p.Name] != p.PID) != lost {
			t.Errorf("%s is pid %d, was %d", p.Name, p.PID, before[p.Name])
		}
	}
	if n := len(c.procs()); n != len(before) {
		t.Errorf("%d processes, were %d", n, len(before))
	}
}

// Claim: the identity file of a process is gone when it has ended, and a CA that is there is not replaced.
func TestIdentityFilesGo(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	c.launch()
	ca, err := os.ReadFile(api.CAPath(c.dir))
	if err != nil {
		t.Fatal(err)
	}
	if err := api.StopAndWait(t.Context(), c.dir, true); err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(api.IdentityPath(c.dir, "*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	c.launch()
	if again, err := os.ReadFile(api.CAPath(c.dir)); err != nil || string(again) != string(ca) {
		t.Errorf("the CA is another: %v", err)
	}
}
