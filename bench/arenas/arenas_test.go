package arenas

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/crakefs/crake/compute"
	"github.com/crakefs/crake/drive"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/identity"
	"github.com/crakefs/crake/wire/route"
	"github.com/crakefs/crake/wire/rpc"
	"github.com/crakefs/crake/wire/strip"
)

const (
	server       = wire.ServerID(1)
	mgmtProc     = wire.ProcID(0)
	buckets      = 4
	drives       = 6
	driveBytes   = 256 << 20
	driveProcs   = 2
	computeProcs = 2
	frontends    = 16
	workers      = 6 // of each frontend
	// The smallest arenas of drives and computes: their Validate refuses less. The frontends' bounds let four times as much be under way as the
	// computes have memory for requests; their own memory is little more than these.
	driveArena   = drive.MinArenaBytes
	computeArena = compute.MinArenaBytes
	clientArena  = 12 << 20
	clientDirty  = 4 << 20
	clientReads  = 4 << 20
	// longest is how long an operation may take: far above what a busy machine needs for all of them, and far below for ever.
	longest = 60 * time.Second
)

var cluster = wire.ClusterID{4, 5, 6}

// world is a cluster in this process.
type world struct {
	t    *testing.T
	how  route.Wire
	dir  string
	mgmt *fakeMgmt
	ca   *identity.CA
	own  *identity.Identity // of mgmt
	log  *slog.Logger
	root wire.Ino
	stop []func() // in this order
}

func (w *world) addr(name string) string { return "unix:" + filepath.Join(w.dir, name) }

// Claim: writers and readers who want many times what the smallest arenas of all roles hold are all served, each in bounded time: whoever waits
// for memory gets it, or is refused and tries again; nobody waits for ever.
func TestSmallestArenas(t *testing.T) {
	// Through sockets the data of every request takes memory on both sides; by shared memory the sender's is held for longer.
	for _, how := range []route.Wire{route.WireUnix, route.WireShm} {
		t.Run(string(how), func(t *testing.T) { smallest(t, how) })
	}
}

func smallest(t *testing.T, how route.Wire) {
	w := start(t, how)
	rounds := 3
	if testing.Short() {
		rounds = 1
	}
	var wg sync.WaitGroup
	var clients []*client
	for i := range frontends {
		c := w.client(wire.ProcID(100 + i))
		clients = append(clients, c)
		for n := range workers {
			wg.Go(func() { work(c, w.root, fmt.Sprintf("f%d-%d", i, n), rounds) })
		}
	}
	wg.Wait()
	for i, c := range clients {
		t.Logf("frontend %d: %d reads were refused and tried again", i, c.refused.Load())
	}
}

// work writes and reads by turns, long and short, each operation within its limit.
func work(c *client, root wire.Ino, name string, rounds int) {
	var f *file
	do := func(what string, op func(ctx context.Context) error) bool {
		ctx, cancel := context.WithTimeout(context.Background(), longest)
		defer cancel()
		begin := time.Now()
		if err := op(ctx); err != nil {
			c.t.Errorf("%s of %s, after %v: %v", what, name, time.Since(begin), err)
			return false
		}
		return true
	}
	if !do("create", func(ctx context.Context) (err error) { f, err = c.create(ctx, root, name); return err }) {
		return
	}
	for round := range rounds {
		for _, n := range []int{1 << 20, wire.BlockSize} {
			var ext *wire.ExtentsResp
			off := uint64(round%2) << 20
			if !do("write", func(ctx context.Context) (err error) { ext, err = f.write(ctx, off, n); return err }) ||
				!do("read", func(ctx context.Context) error { return f.read(ctx, ext) }) {
				return
			}
		}
	}
}

// start brings a cluster up.
func start(t *testing.T, how route.Wire) *world {
	dir, err := os.MkdirTemp("/dev/shm", "crake-arenas-")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, how: how, dir: dir, log: slog.New(slog.NewTextHandler(io.Discard, nil)), root: wire.RootIno(1, buckets)}
	t.Cleanup(func() {
		for _, stop := range w.stop {
			stop()
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	m := wire.ClusterMap{Generation: 1, Cluster: cluster, K: 4, M: 2, Buckets: buckets, LeaseMs: 20000, Name: "arenas",
		Owners: make([]wire.BucketOwner, buckets), FSs: []wire.FSInfo{{ID: 1, Root: w.root, Name: "default"}}}
	for i := range drives {
		id := wire.DriveID(i + 1)
		m.Drives = append(m.Drives, wire.DriveInfo{ID: id, Server: server, Domain: uint32(id)})
		pg := wire.PGInfo{ID: wire.PGID(id)}
		for j := range drives {
			pg.Drives = append(pg.Drives, wire.DriveID((i+j)%drives+1))
		}
		m.PGs = append(m.PGs, pg)
	}
	w.mgmt = &fakeMgmt{m: m, news: make(chan struct{}), incs: map[wire.ProcID]wire.Incarnation{}, serving: map[wire.BucketID]bool{},
		keys: map[wire.ProcID]wire.ProcKey{}}
	if w.ca, err = identity.NewCA(cluster); err != nil {
		t.Fatal(err)
	}
	w.own, _ = w.identity(wire.RoleMgmt, mgmtProc)
	w.listen()
	for i := range driveProcs {
		w.drive(wire.ProcID(10+i), i)
	}
	w.eventually("all drives are up", func(m *wire.ClusterMap) bool {
		for i := range m.Drives {
			if m.Drives[i].State != wire.DriveUp {
				return false
			}
		}
		return true
	})
	for i := range computeProcs {
		w.compute(wire.ProcID(20 + i))
	}
	w.eventually("all computes are up", func(m *wire.ClusterMap) bool { return len(m.Processes) == driveProcs+computeProcs })
	w.mgmt.edit(func(m *wire.ClusterMap) {
		for i := range m.Owners {
			m.Owners[i] = wire.BucketOwner{Proc: wire.ProcID(20 + i%computeProcs), Epoch: 1}
		}
	})
	w.eventually("all buckets are served", func(*wire.ClusterMap) bool { return w.mgmt.served() })
	w.makeRoot()
	return w
}

func (w *world) eventually(what string, ok func(m *wire.ClusterMap) bool) {
	w.t.Helper()
	for end := time.Now().Add(longest); ; time.Sleep(5 * time.Millisecond) {
		if m, _ := w.mgmt.now(); ok(&m) {
			return
		}
		if time.Now().After(end) {
			w.t.Fatalf("not in %v: %s", longest, what)
		}
	}
}

// identity issues the identity of a process, and gives the file that it is in.
func (w *world) identity(role wire.Role, proc wire.ProcID) (*identity.Identity, string) {
	w.t.Helper()
	id, err := w.ca.Issue(role, proc)
	if err != nil {
		w.t.Fatal(err)
	}
	path := filepath.Join(w.dir, fmt.Sprintf("%d.identity", proc))
	if err := id.Write(path); err != nil {
		w.t.Fatal(err)
	}
	w.mgmt.knows(proc, id.Key())
	return id, path
}

func (w *world) listen() {
	l, err := rpc.Listen(w.addr("mgmt"), rpc.Options{Self: rpc.Self{Cluster: cluster, Role: wire.RoleMgmt, Proc: mgmtProc}, Identity: w.own,
		Handler: w.mgmt.handle, Log: w.log})
	if err != nil {
		w.t.Fatal(err)
	}
	w.background(l.Serve)
}

// background runs a process until the end; who began last ends first.
func (w *world) background(run func(ctx context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := run(ctx); err != nil && ctx.Err() == nil {
			w.t.Errorf("a process ended: %v", err)
		}
	}()
	w.stop = append([]func(){func() { cancel(); <-done }}, w.stop...)
}

func (w *world) drive(proc wire.ProcID, n int) {
	_, file := w.identity(wire.RoleDrive, proc)
	cfg := drive.Config{Wire: w.how, Name: fmt.Sprintf("drives%d", n), Proc: proc, Cluster: cluster, Mgmt: w.addr("mgmt"), Listen: []string{w.addr(fmt.Sprintf("drives%d", n))},
		Identity: file, Arena: driveArena, ScrubRate: -1, Log: w.log}
	for id := n + 1; id <= drives; id += driveProcs {
		path := filepath.Join(w.dir, fmt.Sprintf("drive%d", id))
		err := drive.Format(context.Background(), drive.FormatConfig{Path: path, Cluster: cluster, Drive: wire.DriveID(id), SizeBytes: driveBytes})
		if err != nil {
			w.t.Fatal(err)
		}
		cfg.Devices = append(cfg.Devices, drive.Device{Path: path, ID: wire.DriveID(id)})
	}
	w.background(func(ctx context.Context) error { return drive.Run(ctx, cfg) })
}

func (w *world) compute(proc wire.ProcID) {
	name := fmt.Sprintf("compute%d", proc)
	_, file := w.identity(wire.RoleCompute, proc)
	cfg := compute.Config{Wire: w.how, Name: name, Proc: proc, Cluster: cluster, Mgmt: w.addr("mgmt"), Listen: []string{w.addr(name)}, Arena: computeArena, Memory: 64 << 20,
		Identity: file, Log: w.log}
	w.background(func(ctx context.Context) error { return compute.Run(ctx, cfg) })
}

// makeRoot makes the filesystem's root, as mgmt does.
func (w *world) makeRoot() {
	r := route.New(route.Config{Self: rpc.Self{Cluster: cluster, Role: wire.RoleMgmt, Proc: mgmtProc}, Identity: w.own, Server: server, Mgmt: w.addr("mgmt"), Log: w.log})
	defer r.Close()
	m, _ := w.mgmt.now()
	r.SetMap(&m)
	ctx, cancel := context.WithTimeout(context.Background(), longest)
	defer cancel()
	call := &rpc.Call{Method: wire.MMakeRoot, Req: &wire.MakeRootReq{FS: 1, Root: w.root, Mode: 0o755}, Resp: &wire.Empty{}}
	if err := r.Bucket(ctx, w.root.Bucket(), call); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) client(proc wire.ProcID) *client {
	arena, err := wire.NewArena(clientArena)
	if err != nil {
		w.t.Fatal(err)
	}
	c := &client{t: w.t, arena: arena, dirty: semaphore.NewWeighted(clientDirty), reads: semaphore.NewWeighted(clientReads)}
	id, _ := w.identity(wire.RoleFrontend, proc)
	c.router = route.New(route.Config{Self: rpc.Self{Cluster: cluster, Role: wire.RoleFrontend, Proc: proc}, Identity: id, Wire: w.how, Mgmt: w.addr("mgmt"), Arena: arena, Log: w.log})
	c.reader = strip.New(strip.Config{Drive: c.router.Drive, Up: c.router.DriveUp, Arena: arena})
	ctx, cancel := context.WithTimeout(context.Background(), longest)
	defer cancel()
	var resp wire.RegisterResp
	req := &wire.RegisterReq{Proc: proc, Role: wire.RoleFrontend, PID: 1, Name: fmt.Sprintf("frontend%d", proc)}
	if err := c.router.Mgmt(ctx, &rpc.Call{Method: wire.MRegister, Req: req, Resp: &resp}); err != nil {
		w.t.Fatal(err)
	}
	c.session = resp.Session
	c.router.SetMap(&resp.Map)
	w.background(func(ctx context.Context) error {
		defer c.router.Close()
		return c.router.Run(ctx)
	})
	return c
}
