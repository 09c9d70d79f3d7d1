package member

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

// peers makes connections from a process to others, all in memory, and gives a pool that has them.
func peers(t *testing.T, all ...rpc.Self) *rpc.Pool {
	net := rpc.NewMem()
	arena, err := wire.NewArena(16 << 20)
	if err != nil {
		t.Fatal(err)
	}
	pool := rpc.NewPool(rpc.Options{Self: rpc.Self{Cluster: cluster, Role: wire.RoleCompute, Proc: 1}, Arena: arena, Net: net.Host("here")})
	t.Cleanup(func() {
		pool.Close()
		if err := arena.Close(); err != nil {
			t.Error(err)
		}
	})
	for i, self := range all {
		self.Cluster = cluster
		name := fmt.Sprint("mem:", i)
		echo := func(_ context.Context, r *rpc.Request) (wire.Message, wire.Data, error) {
			return &wire.Empty{}, r.Data, nil
		}
		l, err := rpc.Listen(name, rpc.Options{Self: self, Arena: arena, Handler: echo, Net: net.Host(name[4:])})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { done <- l.Serve(ctx) }()
		t.Cleanup(func() { cancel(); <-done })
		c, err := pool.Get(t.Context(), []string{name})
		if err != nil {
			t.Fatal(err)
		}
		b, err := arena.Alloc(t.Context(), 5000)
		if err != nil {
			t.Fatal(err)
		}
		call := rpc.Call{Method: wire.MDrivePut, Data: b.Data(5000)}
		if err := c.Do(t.Context(), &call); err != nil {
			t.Fatal(err)
		}
		call.RespData.Release()
		b.Release()
	}
	return pool
}

// Claim: links sum up connections by peer, in order, with what they carried; mgmt and tools are none.
func TestLinks(t *testing.T) {
	pool := peers(t,
		rpc.Self{Role: wire.RoleDrive, Proc: 9}, rpc.Self{Role: wire.RoleCompute, Proc: 3}, rpc.Self{Role: wire.RoleMgmt}, rpc.Self{Role: wire.RoleDrive, Proc: 9})
	want := []wire.LinkStat{
		{Peer: 3, Role: wire.RoleCompute, Conns: 1, Transport: "mem", SentInline: 5000, ReceivedInline: 5000},
		{Peer: 9, Role: wire.RoleDrive, Conns: 2, Transport: "mem", SentInline: 10000, ReceivedInline: 10000},
	}
	if got := links(pool.Conns()); !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// Claim: what is over the bound is summed up by transport; nothing is lost, and mgmt takes what comes out.
func TestLinksBound(t *testing.T) {
	transports := []string{"shm", "tcp", "tcp+tls", "unix", "mem"}
	var all []wire.LinkStat
	for i := range wire.MaxPeerLinks {
		all = append(all, wire.LinkStat{Peer: wire.ProcID(i + 1), Conns: 1, Transport: transports[i%len(transports)], SentByRef: uint64(i)})
	}
	if got := bound(all); !slices.Equal(got, all) {
		t.Error("what is within the bound was changed")
	}
	for i := range 1000 {
		all = append(all, wire.LinkStat{Peer: wire.ProcID(1000 + i), Conns: 2, Transport: transports[i%len(transports)], SentByRef: 7})
	}
	got := bound(all)
	if len(got) != wire.MaxPeerLinks {
		t.Fatalf("%d links", len(got))
	}
	var before, after wire.LinkStat
	for _, l := range all {
		add(&before, l)
	}
	for i, l := range got {
		add(&after, l)
		if rest := i >= wire.MaxPeerLinks-maxTransports; rest != (l.Peer == 0) {
			t.Errorf("link %d is of peer %d", i, l.Peer)
		}
	}
	if before != after {
		t.Errorf("%+v of %+v", after, before)
	}
}

// Claim: heartbeats carry links and the arena.
func TestHeartbeatTellsLinks(t *testing.T) {
	pool := peers(t, rpc.Self{Role: wire.RoleDrive, Proc: 4})
	arena, err := wire.NewArena(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer arena.Close()
	b, err := arena.Alloc(t.Context(), wire.BlockSize)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Release()
	inTime(t, false, func(g *fakeMgmt) {
		m := g.registered(Config{Arena: arena, Conns: pool.Conns})
		ctx, cancel := context.WithTimeout(g.t.Context(), time.Second)
		defer cancel()
		if err := m.Heartbeat(ctx); err != nil {
			t.Fatal(err)
		}
		hb := told(g, &g.hbs)[0]
		if len(hb.Links) != 1 || hb.Links[0].Peer != 4 || hb.Arena != (wire.ArenaReport{Bytes: 1 << 20, Used: wire.BlockSize}) {
			t.Errorf("%+v", hb)
		}
	})
}
