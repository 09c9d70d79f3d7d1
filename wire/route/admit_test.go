package route

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/identity"
	"github.com/crakefs/crake/wire/rpc"
)

func key(b byte) wire.ProcKey { return wire.ProcKey{b} }

// admitMap is a map of a compute that is up, a drive that is down, a frontend with a session, one without, and a compute that has never
// registered.
func admitMap(g wire.Generation) *wire.ClusterMap {
	return &wire.ClusterMap{Generation: g, Processes: []wire.ProcInfo{
		{ID: 1, Role: wire.RoleCompute, State: wire.ProcUp, Name: "compute0", Incarnation: 4, Key: key(1)},
		{ID: 2, Role: wire.RoleDrive, State: wire.ProcDown, Name: "drive0", Key: key(2)},
		{ID: 3, Role: wire.RoleFrontend, State: wire.ProcUp, Name: "frontend0", Key: key(3)},
		{ID: 4, Role: wire.RoleFrontend, State: wire.ProcDown, Name: "frontend1", Key: key(4)},
		{ID: 5, Role: wire.RoleCompute, Name: "compute1"},
	}, Sessions: []wire.SessionInfo{{ID: 9, Proc: 3}}}
}

// Claim: the map decides who may connect: the run that it names, also when that is down; mgmt always. Others are refused after admitWait,
// and told why.
func TestAdmit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(Config{Self: rpc.Self{Cluster: cluster, Role: wire.RoleDrive, Proc: 7}})
		defer r.Close()
		ask := func(role wire.Role, proc wire.ProcID, k wire.ProcKey) (time.Duration, error) {
			start := time.Now()
			err := r.Admit(t.Context(), rpc.Self{Role: role, Proc: proc}, k)
			return time.Since(start), err
		}
		if d, err := ask(wire.RoleCompute, 1, key(1)); d != admitWait || wire.KindOf(err) != wire.KindUnavailable || !strings.Contains(err.Error(), "no cluster map yet") {
			t.Error("without a map:", d, err)
		}
		if _, err := ask(wire.RoleMgmt, 0, key(77)); err != nil {
			t.Error("mgmt, without a map:", err)
		}
		r.SetMap(admitMap(3))
		for _, c := range []struct {
			role wire.Role
			proc wire.ProcID
			key  wire.ProcKey
			want string
		}{
			{wire.RoleCompute, 1, key(1), ""},
			{wire.RoleDrive, 2, key(2), ""}, // down: it may come back
			{wire.RoleFrontend, 3, key(3), ""},
			{wire.RoleMgmt, 0, key(77), ""},
			{wire.RoleCompute, 1, key(9), "its session ended: another run of compute0 is registered (incarnation 4 in map 3)"},
			{wire.RoleCompute, 6, key(1), "process 6 is not in map 3"},
			{wire.RoleDrive, 1, key(1), "process 1 is compute, not drive"},
			{wire.RoleFrontend, 4, key(4), "its session ended: map 3 has none of frontend1"},
			{wire.RoleCompute, 5, key(5), "no run of it has registered"},
			{wire.RoleCompute, 5, wire.ProcKey{}, "no run of it has registered"},
			{wire.RoleClient, 0, key(1), "process 0 is not in map 3"},
		} {
			d, err := ask(c.role, c.proc, c.key)
			switch {
			case c.want == "" && (err != nil || d != 0):
				t.Errorf("%s %d: %v after %v", c.role, c.proc, err, d)
			case c.want != "" && (wire.KindOf(err) != wire.KindRefused || !strings.Contains(err.Error(), c.want) || d != admitWait):
				t.Errorf("%s %d: %v after %v, want %q", c.role, c.proc, err, d, c.want)
			}
		}
		// A peer that has registered a moment ago is waited for, and the map is asked for.
		time.AfterFunc(admitWait/2, func() {
			m := admitMap(4)
			m.Processes[0].Key = key(9)
			r.SetMap(m)
		})
		if d, err := ask(wire.RoleCompute, 1, key(9)); err != nil || d != admitWait/2 || len(r.kick) != 1 {
			t.Error("a newer map:", d, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), admitWait/4)
		defer cancel()
		start := time.Now()
		if err := r.Admit(ctx, rpc.Self{Role: wire.RoleCompute, Proc: 1}, key(1)); wire.KindOf(err) != wire.KindRefused || time.Since(start) != admitWait/4 {
			t.Error("the asker's time:", err)
		}
	})
}

// Claim: a new map ends the connections, made and taken, of runs that are over, and of nobody else; a request to one that is over, or to
// somebody else at its address, is to be tried again.
func TestNewMapEndsConnections(t *testing.T) {
	checkGoroutines(t)
	ca, err := identity.NewCA(cluster)
	if err != nil {
		t.Fatal(err)
	}
	net := rpc.NewMem()
	issue := func(role wire.Role, proc wire.ProcID) *identity.Identity {
		id, err := ca.Issue(role, proc)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	ids := map[wire.ProcID]*identity.Identity{1: issue(wire.RoleCompute, 1), 2: issue(wire.RoleCompute, 2), 3: issue(wire.RoleDrive, 3)}
	m := func(g wire.Generation) *wire.ClusterMap {
		m := &wire.ClusterMap{Generation: g, Cluster: cluster, Owners: []wire.BucketOwner{{Proc: 1, Epoch: 1}, {Proc: 2, Epoch: 1}}}
		for id, at := range map[wire.ProcID]string{1: "mem:1", 2: "mem:2", 3: "mem:3"} {
			m.Processes = append(m.Processes, wire.ProcInfo{ID: id, Role: ids[id].Name().Role, State: wire.ProcUp, Addrs: []string{at}, Key: ids[id].Key()})
		}
		return m
	}
	process := func(id wire.ProcID) (*Router, *Listener) {
		self := rpc.Self{Cluster: cluster, Role: ids[id].Name().Role, Proc: id}
		r := New(Config{Self: self, Identity: ids[id], Net: net})
		l, err := r.Listen([]string{m(1).Proc(id).Addrs[0]}, rpc.Options{Handler: func(context.Context, *rpc.Request) (wire.Message, wire.Data, error) { return nil, nil, nil }})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- l.Serve(ctx) }()
		t.Cleanup(func() { cancel(); <-done; r.Close() })
		r.SetMap(m(1))
		return r, l
	}
	drive, _ := process(3)
	one, _ := process(1)
	process(2)
	connect := func(b wire.BucketID) *rpc.Conn {
		t.Helper()
		c, err := drive.BucketOnce(t.Context(), b, &rpc.Call{})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	first, second := connect(0), connect(1)
	ids[1] = issue(wire.RoleCompute, 1) // a newer run
	drive.SetMap(m(2))
	<-first.Done()
	if again := connect(1); again != second {
		t.Error("a connection to another process was ended")
	}
	if _, err := drive.BucketOnce(t.Context(), 0, &rpc.Call{}); wire.KindOf(err) != wire.KindUnavailable || !strings.Contains(err.Error(), "its session ended") {
		t.Errorf("a run that is over: %v", err)
	}
	// The drive itself becomes another run: who had its connection ends it.
	taken := one.Conns()
	ids[3] = issue(wire.RoleDrive, 3)
	one.SetMap(m(3))
	for _, c := range taken {
		<-c.Done()
	}
	// Somebody else listens at the address of bucket 0's owner.
	wrong := m(4)
	wrong.Owners[0].Proc = 2
	wrong.Proc(2).Addrs = []string{"mem:1"}
	wrong.Proc(1).Addrs = nil
	wrong.Proc(1).Key = one.c.Identity.Key()
	drive.SetMap(wrong)
	// The two still take each other: the map that the other has must name the drive that is.
	ids[3] = drive.c.Identity
	one.SetMap(m(5))
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) { // the last dial's failure is remembered for a moment
		_, err := drive.BucketOnce(t.Context(), 0, &rpc.Call{})
		if wire.KindOf(err) == wire.KindUnavailable && strings.Contains(err.Error(), "there is compute 1, not compute 2") {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("another at the address: %v", err)
		}
	}
}
