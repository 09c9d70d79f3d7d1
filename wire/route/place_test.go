package route

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/identity"
	"github.com/crakefs/crake/wire/rpc"
)

// Claim: a unix address counts on its own server only, whatever is asked for; among processes of one server the setting decides.
func TestReach(t *testing.T) {
	both := []string{"unix:/a", "tcp:h:1"}
	for _, c := range []struct {
		name  string
		wire  Wire
		own   wire.ServerID
		peer  wire.ServerID
		addrs []string
		want  []string
	}{
		{"own server", "", 1, 1, both, []string{"unix:/a"}},
		{"own server, unix", WireUnix, 1, 1, both, []string{"unix:/a"}},
		{"own server, tcp", WireTCP, 1, 1, both, []string{"tcp:h:1"}},
		{"own server, tcp, the peer has none", WireTCP, 1, 1, []string{"unix:/a"}, []string{"unix:/a"}},
		{"own server, the peer has tcp only", WireShm, 1, 1, []string{"tcp:h:1"}, []string{"tcp:h:1"}},
		{"another server", WireShm, 1, 2, both, []string{"tcp:h:1"}},
		{"another server, unix", WireUnix, 1, 2, both, []string{"tcp:h:1"}},
		{"another server without tcp", "", 1, 2, []string{"unix:/a"}, nil},
		{"own server not known", "", 0, 0, both, []string{"tcp:h:1"}},
		{"several, in order", "", 1, 2, []string{"tcp:h:2", "unix:/a", "tcp:h:1"}, []string{"tcp:h:2", "tcp:h:1"}},
		{"in memory", "", 0, 3, []string{"mem:a"}, []string{"mem:a"}},
	} {
		got := reach(c.wire, c.own, &wire.ProcInfo{Server: c.peer, Addrs: c.addrs})
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// serverMap is a map of two processes: 1, which asks, on server 1, and 2, the owner of bucket 0.
func serverMap(g wire.Generation, peer wire.ServerID, addrs ...string) *wire.ClusterMap {
	return &wire.ClusterMap{
		Generation: g, Cluster: cluster, Buckets: 1, Owners: []wire.BucketOwner{{Proc: 2, Epoch: 1}},
		Processes: []wire.ProcInfo{
			{ID: 1, Server: 1, Role: wire.RoleFrontend, State: wire.ProcUp, Name: "frontend0"},
			{ID: 2, Server: peer, Role: wire.RoleCompute, State: wire.ProcUp, Name: "compute0", Addrs: addrs},
		},
	}
}

// pair makes the routers of processes 1 and 2; the second listens at addrs until the test ends. They have identities of ca, if it is not nil.
func pair(t *testing.T, w Wire, ca *identity.CA, addrs ...string) (asker, owner *Router, l *Listener) {
	checkGoroutines(t)
	make1 := func(id wire.ProcID, role wire.Role) *Router {
		var who *identity.Identity
		if ca != nil {
			var err error
			if who, err = ca.Issue(role, id); err != nil {
				t.Fatal(err)
			}
		}
		arena, err := wire.NewArena(32<<20, wire.ArenaDebug())
		if err != nil {
			t.Fatal(err)
		}
		r := New(Config{
			Self: rpc.Self{Cluster: cluster, Role: role, Proc: id}, Mgmt: "unix:" + filepath.Join(t.TempDir(), "nobody"), Wire: w, Arena: arena,
			Identity: who,
		})
		t.Cleanup(func() {
			r.Close()
			if err := arena.Close(); err != nil {
				t.Error(err)
			}
		})
		return r
	}
	asker, owner = make1(1, wire.RoleFrontend), make1(2, wire.RoleCompute)
	l, err := owner.Listen(addrs, rpc.Options{Handler: answer(7)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- l.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return asker, owner, l
}

func ask(r *Router) (*rpc.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return r.BucketOnce(ctx, 0, &rpc.Call{Method: wire.MDriveAppend, Req: &wire.AppendReq{}, Resp: &wire.AppendResp{}})
}

// bothBy waits until both sides of a connection, of which owner has no other, say that they speak by want. A side puts a connection on its
// books, and shares memory, after it may have answered a first request.
func bothBy(t *testing.T, conn *rpc.Conn, owner *Router, want string) {
	t.Helper()
	var other []*rpc.Conn
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if other = owner.Conns(); len(other) == 1 && conn.Transport() == want && other[0].Transport() == want {
			return
		}
	}
	t.Errorf("by %s, and the other side has %d connections; want %s", conn.Transport(), len(other), want)
}

// Claim: a process listens at all addresses that it was given; who asks takes the one that fits, and both sides know the transport.
func TestListenAtSeveral(t *testing.T) {
	for _, c := range []struct {
		wire   Wire
		server wire.ServerID // of the owner
		want   string
	}{
		{WireShm, 1, rpc.TransportShm}, {WireUnix, 1, rpc.TransportUnix}, {WireTCP, 1, rpc.TransportTCP}, {WireShm, 2, rpc.TransportTCP},
	} {
		t.Run(string(c.wire)+" "+c.want, func(t *testing.T) {
			asker, owner, l := pair(t, c.wire, nil, "unix:"+filepath.Join(t.TempDir(), "s"), "tcp:127.0.0.1:0")
			if a := l.Addrs(); len(a) != 2 || a[1] == "tcp:127.0.0.1:0" {
				t.Fatalf("addresses %q", a)
			}
			m := serverMap(1, c.server, l.Addrs()...)
			asker.SetMap(m)
			owner.SetMap(m)
			conn, err := ask(asker)
			if err != nil {
				t.Fatal(err)
			}
			if mine := asker.Conns(); len(mine) != 1 || mine[0] != conn {
				t.Fatalf("%d connections", len(mine))
			}
			bothBy(t, conn, owner, c.want)
		})
	}
}

// Claim: a unix path that the map names for a process of another server is never dialled, though somebody listens there.
func TestPathOfAnotherServer(t *testing.T) {
	asker, owner, l := pair(t, WireShm, nil, "unix:"+filepath.Join(t.TempDir(), "s"))
	asker.SetMap(serverMap(1, 2, l.Addrs()...))
	if _, err := ask(asker); !errors.Is(err, wire.KindUnavailable) {
		t.Errorf("asked a process of another server: %v", err)
	}
	if n := len(owner.Conns()); n != 0 {
		t.Errorf("%d connections to a path of another server", n)
	}
	asker.SetMap(serverMap(2, 1, l.Addrs()...)) // the same path, on this server
	if _, err := ask(asker); err != nil {
		t.Error(err)
	}
}

// Claim: only a process that the map places on this server gets at its memory; mgmt, tools and who is not named do not.
func TestSameServer(t *testing.T) {
	r := New(Config{Self: rpc.Self{Cluster: cluster, Role: wire.RoleFrontend, Proc: 1}, Mgmt: "mem:mgmt"})
	defer r.Close()
	compute := rpc.Self{Role: wire.RoleCompute, Proc: 2}
	if r.SameServer(compute) {
		t.Error("without a map")
	}
	r.SetMap(serverMap(1, 2))
	if r.SameServer(compute) {
		t.Error("another server")
	}
	r.SetMap(serverMap(2, 1))
	if !r.SameServer(compute) {
		t.Error("not the same server")
	}
	for _, peer := range []rpc.Self{{Role: wire.RoleCompute, Proc: 3}, {Role: wire.RoleMgmt}, {Role: wire.RoleClient, Proc: 2}} {
		if r.SameServer(peer) {
			t.Errorf("%+v", peer)
		}
	}
}

// Claim: a peer that the map does not name yet, because the map is a moment late, is waited for; then data passes by shared memory, for as
// long as the connection lives.
func TestMapIsLate(t *testing.T) {
	ca, err := identity.NewCA(cluster)
	if err != nil {
		t.Fatal(err)
	}
	asker, owner, l := pair(t, WireShm, ca, "unix:"+filepath.Join(t.TempDir(), "s"))
	m := serverMap(2, 1, l.Addrs()...)
	m.Processes[0].Key, m.Processes[1].Key = asker.c.Identity.Key(), owner.c.Identity.Key()
	m.Sessions = []wire.SessionInfo{{ID: 1, Proc: 1}}
	before := serverMap(1, 1, l.Addrs()...)
	before.Processes = before.Processes[1:] // the asker is not in it
	owner.SetMap(before)
	asker.SetMap(m)
	done := make(chan error, 1)
	var conn *rpc.Conn
	go func() {
		var err error
		conn, err = ask(asker)
		done <- err
	}()
	select {
	case <-owner.kick: // it has looked, and asks for a newer map
	case err := <-done:
		t.Fatalf("it was not waited for a map: %v", err)
	}
	owner.SetMap(m)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	bothBy(t, conn, owner, rpc.TransportShm)
}

// Claim: when one of several addresses cannot be had nothing listens, and no socket is left.
func TestListenFails(t *testing.T) {
	r := New(Config{Self: rpc.Self{Cluster: cluster, Role: wire.RoleFrontend, Proc: 1}, Mgmt: "mem:mgmt"})
	defer r.Close()
	path := filepath.Join(t.TempDir(), "s")
	if _, err := r.Listen([]string{"unix:" + path, "tcp:256.0.0.1:1"}, rpc.Options{}); err == nil {
		t.Fatal("listens at an address that does not exist")
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}
