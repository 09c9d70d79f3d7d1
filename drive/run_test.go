package drive_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/crakefs/crake/drive"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/identity"
	"github.com/crakefs/crake/wire/rpc"
)

var testCluster = wire.ClusterID{0xc1, 2, 3}

// fakeMgmt answers what a drive asks of mgmt.
type fakeMgmt struct {
	addr string
	stop func()

	mu         sync.Mutex
	registered []wire.RegisterReq
	beats      []wire.HeartbeatReq
	events     []wire.EventReq
	troubles   []wire.DriveTroubleReq
	goodbyes   int
	refuse     wire.Kind // heartbeats get this
}

// identities are those of the roles in these tests, by one CA; that of drives is a file for each.
var identities = map[wire.Role]*identity.Identity{}

var testCA = sync.OnceValue(func() *identity.CA {
	ca, err := identity.NewCA(testCluster)
	if err != nil {
		panic(err)
	}
	for _, role := range []wire.Role{wire.RoleCompute, wire.RoleFrontend} {
		if identities[role], err = ca.Issue(role, procOf(role)); err != nil {
			panic(err)
		}
	}
	return ca
})

// procOf gives the process that plays a role in these tests.
func procOf(role wire.Role) wire.ProcID { return 10 + wire.ProcID(role) }

func identityOf(t *testing.T, role wire.Role, proc wire.ProcID) *identity.Identity {
	t.Helper()
	id, err := testCA().Issue(role, proc)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// identityFile writes the identity of a drive process.
func identityFile(t *testing.T, proc wire.ProcID) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "identity")
	if err := identityOf(t, wire.RoleDrive, proc).Write(path); err != nil {
		t.Fatal(err)
	}
	return path
}

func startMgmt(t *testing.T, dir string) *fakeMgmt {
	t.Helper()
	m := &fakeMgmt{addr: "unix:" + filepath.Join(dir, "mgmt.sock")}
	arena := testArena(t)
	o := rpc.Options{Self: rpc.Self{Cluster: testCluster, Role: wire.RoleMgmt}, Arena: arena, Handler: m.handle, Identity: identityOf(t, wire.RoleMgmt, 0)}
	l, err := rpc.Listen(m.addr, o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = l.Serve(ctx) }()
	m.stop = func() { cancel(); <-done }
	t.Cleanup(m.stop)
	return m
}

func (m *fakeMgmt) handle(ctx context.Context, req *rpc.Request) (wire.Message, wire.Data, error) {
	defer req.Data.Release()
	if req.Header.Method == wire.MWatchMap {
		<-ctx.Done() // there is no newer map
		return nil, nil, ctx.Err()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch req.Header.Method {
	case wire.MRegister:
		var r wire.RegisterReq
		if err := r.Decode(req.Meta); err != nil {
			return nil, nil, err
		}
		m.registered = append(m.registered, r)
		resp := &wire.RegisterResp{Incarnation: wire.Incarnation(len(m.registered)), Map: wire.ClusterMap{Generation: 1}}
		for _, role := range []wire.Role{wire.RoleCompute, wire.RoleFrontend} {
			resp.Map.Processes = append(resp.Map.Processes, wire.ProcInfo{ID: procOf(role), Role: role, Key: identities[role].Key()})
			resp.Map.Sessions = append(resp.Map.Sessions, wire.SessionInfo{ID: 1, Proc: procOf(role)})
		}
		return resp, nil, nil
	case wire.MHeartbeat:
		var r wire.HeartbeatReq
		if err := r.Decode(req.Meta); err != nil {
			return nil, nil, err
		}
		m.beats = append(m.beats, r)
		if m.refuse != wire.KindNone {
			return nil, nil, wire.E("mgmt.heartbeat", m.refuse, "", nil)
		}
		return &wire.HeartbeatResp{LeaseMs: 3000}, nil, nil
	case wire.MEvent:
		var r wire.EventReq
		if err := r.Decode(req.Meta); err != nil {
			return nil, nil, err
		}
		m.events = append(m.events, r)
	case wire.MDriveTrouble:
		var r wire.DriveTroubleReq
		if err := r.Decode(req.Meta); err != nil {
			return nil, nil, err
		}
		m.troubles = append(m.troubles, r)
	case wire.MGoodbye:
		m.goodbyes++
	}
	return &wire.Empty{}, nil, nil
}

func (m *fakeMgmt) wait(t *testing.T, what string, f func() bool) {
	t.Helper()
	for range 500 {
		m.mu.Lock()
		ok := f()
		m.mu.Unlock()
		if ok {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("mgmt never saw: %s", what)
}

func testArena(t *testing.T) *wire.Arena {
	t.Helper()
	a, err := wire.NewArena(64<<20, wire.ArenaDebug())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

// runningDrive is a drive process in this one.
type runningDrive struct {
	addr string
	stop func() error
	done chan error
}

func startDrive(t *testing.T, dir string, m *fakeMgmt, devices ...drive.Device) *runningDrive {
	t.Helper()
	id := identityFile(t, 2)
	d := &runningDrive{addr: "unix:" + filepath.Join(dir, "drive0.sock"), done: make(chan error, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	before := len(m.registered)
	go func() {
		d.done <- drive.Run(ctx, drive.Config{
			Name: "drive0", Proc: 2, Cluster: testCluster, Mgmt: m.addr, Listen: []string{d.addr}, Identity: id, Devices: devices, Version: "test",
			Log: slog.New(slog.DiscardHandler),
		})
	}()
	var once sync.Once
	var result error
	d.stop = func() error {
		once.Do(func() { cancel(); result = <-d.done })
		return result
	}
	t.Cleanup(func() { _ = d.stop() })
	m.wait(t, "registration", func() bool { return len(m.registered) > before })
	return d
}

func dial(t *testing.T, addr string, arena *wire.Arena, role wire.Role) *rpc.Conn {
	t.Helper()
	c, err := rpc.Dial(context.Background(), addr, rpc.Options{
		Self: rpc.Self{Cluster: testCluster, Role: role, Proc: procOf(role)}, Arena: arena, Identity: identities[role],
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func format(t *testing.T, path string, id wire.DriveID) {
	t.Helper()
	if err := drive.Format(t.Context(), drive.FormatConfig{Path: path, Cluster: testCluster, Drive: id, SizeBytes: 64 << 20}); err != nil {
		t.Fatal(err)
	}
}

func block(t *testing.T, arena *wire.Arena, fill byte, n int) (wire.Data, []uint64) {
	t.Helper()
	b, err := arena.Alloc(t.Context(), n*wire.BlockSize)
	if err != nil {
		t.Fatal(err)
	}
	var sums []uint64
	for i := range n {
		part := b.Bytes()[i*wire.BlockSize:][:wire.BlockSize]
		for j := range part {
			part[j] = fill + byte(i)
		}
		sums = append(sums, xxhash.Sum64(part))
	}
	return b.Data(n * wire.BlockSize), sums
}

// ask sends a request.
func ask(t *testing.T, c *rpc.Conn, method wire.Method, req, resp wire.Message, data wire.Data) (wire.Data, error) {
	t.Helper()
	call := &rpc.Call{Method: method, Req: req, Resp: resp, Data: data}
	err := c.Do(t.Context(), call)
	return call.RespData, err
}

// flatten copies data and releases it.
func flatten(data wire.Data) (b []byte) {
	for _, p := range data {
		b = append(b, p.B...)
	}
	data.Release()
	return b
}

// TestServe: every method through a socket, for two devices of one process, and everything again after a restart.
func TestServe(t *testing.T) {
	dir := t.TempDir()
	m := startMgmt(t, dir)
	devs := []drive.Device{{Path: filepath.Join(dir, "a"), ID: 1}, {Path: filepath.Join(dir, "b"), ID: 2}}
	for _, d := range devs {
		format(t, d.Path, d.ID)
	}
	d := startDrive(t, dir, m, devs...)
	arena := testArena(t)
	c := dial(t, d.addr, arena, wire.RoleCompute)
	do := func(c *rpc.Conn, method wire.Method, req, resp wire.Message, data wire.Data) (wire.Data, error) {
		return ask(t, c, method, req, resp, data)
	}
	must := func(_ wire.Data, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	strip := wire.MakeStripID(3, wire.ClassData, 1, 5, 0, 77)
	data, sums := block(t, arena, 1, 32)
	defer data.Release()
	seg := wire.MakeStripID(3, wire.ClassSegment, 1, 6, 0, 78)
	rec, err := arena.Alloc(t.Context(), wire.BlockSize)
	if err != nil {
		t.Fatal(err)
	}
	defer rec.Release()
	(&wire.SegRecord{ID: seg, Payload: 3, Epoch: 4}).EncodeHead(rec.Bytes(), []byte("abc"))
	for _, dev := range devs {
		must(do(c, wire.MDriveFence, &wire.FenceReq{Drive: dev.ID, Bucket: 3, Epoch: 4}, nil, nil))
		must(do(c, wire.MDrivePut, &wire.PutReq{Drive: dev.ID, Epoch: 4, ID: strip, Sums: sums}, nil, data))
		var ar wire.AppendResp
		must(do(c, wire.MDriveAppend, &wire.AppendReq{Drive: dev.ID, Epoch: 4, ID: seg}, &ar, wire.Data{{Buf: rec, B: rec.Bytes()}}))
		if ar.Len != wire.BlockSize {
			t.Errorf("append: length %d", ar.Len)
		}
	}
	_, err = do(c, wire.MDrivePut, &wire.PutReq{Drive: 1, Epoch: 3, ID: strip.WithPos(2), Sums: sums}, nil, data)
	if !errors.Is(err, wire.KindStaleEpoch) {
		t.Errorf("put at an old epoch: %v", err)
	}
	_, err = do(c, wire.MDriveStat, &wire.DriveStatReq{Drive: 3}, nil, nil)
	if !errors.Is(err, wire.KindMoved) {
		t.Errorf("a drive that is not here: %v", err)
	}
	_, err = do(dial(t, d.addr, arena, wire.RoleFrontend), wire.MDriveDelete, &wire.DeleteReq{Drive: 1, Epoch: 4, IDs: []wire.StripID{strip}}, nil, nil)
	if !errors.Is(err, wire.KindPermission) {
		t.Errorf("a frontend deletes: %v", err)
	}
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	m.wait(t, "goodbye", func() bool { return m.goodbyes == 1 })

	d = startDrive(t, dir, m, devs...)
	c = dial(t, d.addr, arena, wire.RoleFrontend)
	for _, dev := range devs {
		var rr wire.ReadResp
		got, err := do(c, wire.MDriveRead, &wire.ReadReq{Drive: dev.ID, Ranges: []wire.ReadRange{
			{ID: strip, Offset: 0, Len: 2 * wire.BlockSize}, {ID: strip.WithPos(3), Len: wire.BlockSize},
			{ID: strip, Offset: 32 * wire.BlockSize, Len: wire.BlockSize}, {ID: seg, Len: wire.BlockSize},
		}}, &rr, nil)
		must(nil, err)
		want := append(bytes.Clone(data[0].B[:2*wire.BlockSize]), rec.Bytes()...)
		flat := flatten(got)
		kinds := []wire.Kind{wire.KindNone, wire.KindNotFound, wire.KindRange, wire.KindNone}
		for i, k := range kinds {
			if len(rr.Status) != len(kinds) || rr.Status[i] != k {
				t.Fatalf("statuses %v, want %v", rr.Status, kinds)
			}
		}
		if !bytes.Equal(flat, want) {
			t.Errorf("drive %d: %d bytes read differ from the %d written", dev.ID, len(flat), len(want))
		}
	}
	var lr wire.ListResp
	must(do(c, wire.MDriveList, &wire.ListReq{Drive: 2, Bucket: 3, Class: wire.ClassSegment}, &lr, nil))
	if len(lr.Entries) != 1 || lr.Entries[0].ID != seg || !lr.Entries[0].Open || lr.Entries[0].Len != wire.BlockSize {
		t.Errorf("list: %+v", lr)
	}
	var vr wire.VerifyResp
	must(do(c, wire.MDriveVerify, &wire.VerifyReq{Drive: 2, Bucket: 3, Class: wire.ClassData}, &vr, nil))
	if len(vr.Bad) != 0 || !vr.Last.IsZero() {
		t.Errorf("verify: %+v", vr)
	}
	c = dial(t, d.addr, arena, wire.RoleCompute)
	var sr wire.SealResp
	must(do(c, wire.MDriveSeal, &wire.SealReq{Drive: 1, Epoch: 4, ID: seg}, &sr, nil))
	must(do(c, wire.MDriveDelete, &wire.DeleteReq{Drive: 1, Epoch: 4, IDs: []wire.StripID{strip, seg, strip.WithPos(9)}}, nil, nil))
	var st wire.DriveStatResp
	must(do(c, wire.MDriveStat, &wire.DriveStatReq{Drive: 1}, &st, nil))
	if sr.Len != wire.BlockSize || st.Strips != 0 || st.Engine == "" || st.Flush == "" {
		t.Errorf("seal %+v, stat %+v", sr, st)
	}
}

// TestStaleRunEnds: when mgmt says that a newer run exists, the process ends by itself.
func TestStaleRunEnds(t *testing.T) {
	dir := t.TempDir()
	m := startMgmt(t, dir)
	format(t, filepath.Join(dir, "a"), 1)
	d := startDrive(t, dir, m, drive.Device{Path: filepath.Join(dir, "a"), ID: 1})
	m.wait(t, "heartbeat", func() bool { return len(m.beats) > 0 && len(m.beats[0].Drives) == 1 })
	m.mu.Lock()
	m.refuse = wire.KindStaleSession
	m.mu.Unlock()
	select {
	case err := <-d.done:
		if !errors.Is(err, wire.KindStaleSession) {
			t.Errorf("Run: %v", err)
		}
		d.done <- err
	case <-time.After(5 * time.Second):
		t.Fatal("the process does not end")
	}
}

// TestOpenRefuses: what cannot be served is refused with a line that says what is wrong.
func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	m := startMgmt(t, dir)
	path := filepath.Join(dir, "a")
	format(t, path, 1)
	startDrive(t, dir, m, drive.Device{Path: path, ID: 1})
	run := func(cluster wire.ClusterID, d drive.Device) error {
		return drive.Run(t.Context(), drive.Config{
			Name: "x", Proc: 3, Cluster: cluster, Mgmt: m.addr, Listen: []string{"unix:" + filepath.Join(dir, "x.sock")}, Identity: identityFile(t, 3), Devices: []drive.Device{d},
			Log: slog.New(slog.DiscardHandler),
		})
	}
	other := filepath.Join(dir, "b")
	format(t, other, 2)
	for _, c := range []struct {
		name string
		err  error
		want string
	}{
		{"open elsewhere", run(testCluster, drive.Device{Path: path, ID: 1}), "another process has it open"},
		{"another cluster", run(wire.ClusterID{1}, drive.Device{Path: other, ID: 2}), "belongs to cluster"},
		{"another drive", run(testCluster, drive.Device{Path: other, ID: 3}), "is drive 2, not 3"},
		{"missing", run(testCluster, drive.Device{Path: other + "x", ID: 3}), "not found"},
		{"no drive id", run(testCluster, drive.Device{Path: other}), "--drive-id"},
	} {
		if c.err == nil || !strings.Contains(c.err.Error(), c.want) || strings.Contains(c.err.Error(), "\n") {
			t.Errorf("%s: %v; want one line with %q", c.name, c.err, c.want)
		}
	}
}
