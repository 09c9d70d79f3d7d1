package compute

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crakefs/crake/compute/internal/store/storetest"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/route"
	"github.com/crakefs/crake/wire/rpc"
)

const (
	testBuckets = 4
	mgmtProc    = wire.ProcID(1)
	drivesProc  = wire.ProcID(2)
	rootUID     = 0
	// patience is when a test gives up. It is for the stalls of a machine that runs ten tests at once, which may be long; those
	// of ours are found by pace, or by the limits that a test states.
	patience = time.Minute
)

var testCluster = wire.ClusterID{1, 2, 3}

// cluster is a whole cluster in one process: drives in memory behind one drive process, a small mgmt, real computes,
// all on a network in memory. Each process is a host of its own name.
type cluster struct {
	t      *testing.T
	net    *rpc.Mem
	drives *storetest.Cluster
	mgmt   *fakeMgmt
	log    *slog.Logger
	root   wire.Ino
}

// fakeMgmt is a mgmt that does what the test says. Safe for concurrent use.
type fakeMgmt struct {
	t    *testing.T
	mu   sync.Mutex
	m    *wire.ClusterMap
	news chan struct{}
	// silent processes get no answer to heartbeats.
	silent  map[wire.ProcID]bool
	incs    map[wire.ProcID]wire.Incarnation
	reports map[wire.ProcID]*wire.HeartbeatReq
	evicted []wire.SessionID
	byes    []wire.ProcID
	session wire.SessionID
}

func newCluster(t *testing.T) *cluster {
	level := slog.LevelError
	if testing.Verbose() {
		level = slog.LevelDebug
	}
	c := &cluster{t: t, net: rpc.NewMem(), drives: storetest.New(t, 6, 4, 2)}
	c.log = slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: level}))
	m := *c.drives.Map()
	m.Cluster, m.LeaseMs, m.Generation, m.Buckets = testCluster, 2000, 10, testBuckets
	m.Drives = slices.Clone(m.Drives)
	for i := range m.Drives {
		m.Drives[i].Proc = drivesProc
	}
	m.Owners = make([]wire.BucketOwner, testBuckets)
	m.Processes = []wire.ProcInfo{
		{ID: drivesProc, Incarnation: 1, Role: wire.RoleDrive, State: wire.ProcUp, Name: "drives", Addrs: []string{"mem:drives"}},
	}
	c.root = wire.RootIno(1, testBuckets)
	m.FSs = []wire.FSInfo{{ID: 1, Root: c.root, Name: "default"}}
	c.mgmt = &fakeMgmt{
		t: t, m: &m, news: make(chan struct{}), silent: map[wire.ProcID]bool{}, incs: map[wire.ProcID]wire.Incarnation{},
		reports: map[wire.ProcID]*wire.HeartbeatReq{},
	}
	c.listen("mgmt", wire.RoleMgmt, mgmtProc, c.mgmt.handle, c.drives.Arena())
	c.listen("drives", wire.RoleDrive, drivesProc, c.driveRequest, c.drives.Arena())
	return c
}

// testWriter writes logs to the test.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(string(b[:len(b)-1]))
	return len(b), nil
}

func (c *cluster) listen(name string, role wire.Role, proc wire.ProcID, h rpc.Handler, arena *wire.Arena) {
	l, err := rpc.Listen("mem:"+name, rpc.Options{
		Self: rpc.Self{Cluster: testCluster, Role: role, Proc: proc, Version: "test"}, Arena: arena, Handler: h,
		Net: c.net.Host(name), Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = l.Serve(ctx) })
	c.t.Cleanup(func() { cancel(); wg.Wait() })
}

// driveRequest answers for all drives.
func (c *cluster) driveRequest(ctx context.Context, req *rpc.Request) (wire.Message, wire.Data, error) {
	defer req.Data.Release()
	call := &rpc.Call{Method: req.Header.Method, Epoch: req.Header.Epoch, Data: req.Data}
	var drive func() wire.DriveID
	switch req.Header.Method {
	case wire.MDrivePut:
		q := &wire.PutReq{}
		call.Req, call.Resp, drive = q, &wire.Empty{}, func() wire.DriveID { return q.Drive }
	case wire.MDriveAppend:
		q := &wire.AppendReq{}
		call.Req, call.Resp, drive = q, &wire.AppendResp{}, func() wire.DriveID { return q.Drive }
	case wire.MDriveSeal:
		q := &wire.SealReq{}
		call.Req, call.Resp, drive = q, &wire.SealResp{}, func() wire.DriveID { return q.Drive }
	case wire.MDriveRead:
		q := &wire.ReadReq{}
		call.Req, call.Resp, drive = q, &wire.ReadResp{}, func() wire.DriveID { return q.Drive }
	case wire.MDriveDelete:
		q := &wire.DeleteReq{}
		call.Req, call.Resp, drive = q, &wire.Empty{}, func() wire.DriveID { return q.Drive }
	case wire.MDriveList:
		q := &wire.ListReq{}
		call.Req, call.Resp, drive = q, &wire.ListResp{}, func() wire.DriveID { return q.Drive }
	case wire.MDriveFence:
		q := &wire.FenceReq{}
		call.Req, call.Resp, drive = q, &wire.Empty{}, func() wire.DriveID { return q.Drive }
	case wire.MDriveStat:
		q := &wire.DriveStatReq{}
		call.Req, call.Resp, drive = q, &wire.DriveStatResp{}, func() wire.DriveID { return q.Drive }
	default:
		return nil, nil, wire.E("drive", wire.KindVersion, "", nil)
	}
	if err := call.Req.Decode(req.Meta); err != nil {
		return nil, nil, err
	}
	err := c.drives.Ask(ctx, drive(), call)
	if err != nil {
		return nil, nil, err
	}
	return call.Resp, call.RespData, nil
}

func (f *fakeMgmt) handle(ctx context.Context, req *rpc.Request) (wire.Message, wire.Data, error) {
	defer req.Data.Release()
	switch req.Header.Method {
	case wire.MRegister:
		var q wire.RegisterReq
		if err := q.Decode(req.Meta); err != nil {
			return nil, nil, err
		}
		return f.register(&q), nil, nil
	case wire.MHeartbeat:
		var q wire.HeartbeatReq
		if err := q.Decode(req.Meta); err != nil {
			return nil, nil, err
		}
		return f.heartbeat(ctx, &q)
	case wire.MWatchMap:
		var q wire.WatchMapReq
		if err := q.Decode(req.Meta); err != nil {
			return nil, nil, err
		}
		return f.watch(ctx, &q), nil, nil
	case wire.MEvict:
		var q wire.EvictReq
		if err := q.Decode(req.Meta); err != nil {
			return nil, nil, err
		}
		f.mu.Lock()
		f.evicted = append(f.evicted, q.Session)
		f.mu.Unlock()
		f.endSession(q.Session)
		return &wire.Empty{}, nil, nil
	case wire.MGoodbye:
		var q wire.GoodbyeReq
		if err := q.Decode(req.Meta); err != nil {
			return nil, nil, err
		}
		f.mu.Lock()
		f.byes = append(f.byes, q.Proc)
		f.mu.Unlock()
		return &wire.Empty{}, nil, nil
	case wire.MEvent:
		return &wire.Empty{}, nil, nil
	}
	return nil, nil, wire.E("mgmt", wire.KindVersion, "", nil)
}

// edit publishes a changed map.
func (f *fakeMgmt) edit(change func(m *wire.ClusterMap)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := *f.m
	m.Processes, m.Owners, m.Sessions = slices.Clone(m.Processes), slices.Clone(m.Owners), slices.Clone(m.Sessions)
	change(&m)
	m.Generation++
	f.m = &m
	close(f.news)
	f.news = make(chan struct{})
}

func (f *fakeMgmt) now() *wire.ClusterMap {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.m
}

func (f *fakeMgmt) register(q *wire.RegisterReq) *wire.RegisterResp {
	var resp wire.RegisterResp
	f.edit(func(m *wire.ClusterMap) {
		f.incs[q.Proc]++
		resp.Incarnation = f.incs[q.Proc]
		p := m.Proc(q.Proc)
		if p == nil {
			m.Processes = append(m.Processes, wire.ProcInfo{ID: q.Proc})
			p = &m.Processes[len(m.Processes)-1]
		}
		p.Incarnation, p.Role, p.Name, p.Addrs, p.State = resp.Incarnation, q.Role, q.Name, q.Addrs, wire.ProcUp
		for i := range m.Owners { // what the last run had is nobody's
			if m.Owners[i].Proc == q.Proc {
				m.Owners[i].Proc = 0
			}
		}
		if q.Role == wire.RoleFrontend {
			f.session++
			resp.Session = f.session
			m.Sessions = append(m.Sessions, wire.SessionInfo{ID: f.session, Proc: q.Proc})
		}
	})
	resp.Map = *f.now()
	return &resp
}

func (f *fakeMgmt) heartbeat(ctx context.Context, q *wire.HeartbeatReq) (wire.Message, wire.Data, error) {
	f.mu.Lock()
	silent, inc, gen, lease := f.silent[q.Proc], f.incs[q.Proc], f.m.Generation, f.m.LeaseMs
	if inc == q.Incarnation && !silent {
		f.reports[q.Proc] = q
	}
	f.mu.Unlock()
	if silent {
		<-ctx.Done()
		return nil, nil, ctx.Err()
	}
	if inc != q.Incarnation {
		return nil, nil, wire.E("mgmt.heartbeat", wire.KindStaleSession, "", nil)
	}
	return &wire.HeartbeatResp{Generation: gen, LeaseMs: lease}, nil, nil
}

func (f *fakeMgmt) watch(ctx context.Context, q *wire.WatchMapReq) *wire.WatchMapResp {
	for {
		f.mu.Lock()
		m, news := f.m, f.news
		f.mu.Unlock()
		if m.Generation > q.After {
			return &wire.WatchMapResp{Map: *m}
		}
		select {
		case <-news:
		case <-ctx.Done():
			return &wire.WatchMapResp{Map: *m}
		}
	}
}

func (f *fakeMgmt) endSession(s wire.SessionID) {
	f.edit(func(m *wire.ClusterMap) {
		m.Sessions = slices.DeleteFunc(m.Sessions, func(i wire.SessionInfo) bool { return i.ID == s })
	})
}

// assign makes a process the owner of buckets (all, if none are named), under new epochs.
func (f *fakeMgmt) assign(p wire.ProcID, buckets ...wire.BucketID) {
	f.edit(func(m *wire.ClusterMap) {
		for i := range m.Owners {
			if len(buckets) == 0 || slices.Contains(buckets, wire.BucketID(i)) {
				m.Owners[i] = wire.BucketOwner{Proc: p, Epoch: m.Owners[i].Epoch + 1}
			}
		}
	})
}

// report gives what the owner last said of a bucket under its newest epoch.
func (f *fakeMgmt) report(b wire.BucketID) (r wire.BucketReport) {
	f.mu.Lock()
	defer f.mu.Unlock()
	o := f.m.Owners[b]
	if hb := f.reports[o.Proc]; hb != nil {
		for _, r := range hb.Buckets {
			if r.Bucket == b && r.Epoch == o.Epoch {
				return r
			}
		}
	}
	return r
}

// move takes a bucket from its owner in an orderly way and gives it to another.
func (f *fakeMgmt) move(t *testing.T, b wire.BucketID, to wire.ProcID) {
	from := f.now().Owners[b].Proc
	f.edit(func(m *wire.ClusterMap) { m.Owners[b].Proc = 0 })
	gen := f.now().Generation
	eventually(t, fmt.Sprintf("bucket %d is given up", b), func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		hb := f.reports[from]
		return hb != nil && hb.Generation >= gen && !slices.ContainsFunc(hb.Buckets, func(r wire.BucketReport) bool { return r.Bucket == b })
	})
	f.assign(to, b)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in %v: %s", patience, what)
		}
	}
}

func (c *cluster) served(b wire.BucketID) bool { return c.mgmt.report(b).State == wire.BucketServing }

func (c *cluster) waitServed() {
	c.t.Helper()
	eventually(c.t, "all buckets are served", func() bool {
		for b := range wire.BucketID(testBuckets) {
			if !c.served(b) {
				return false
			}
		}
		return true
	})
}

// run is a compute process that runs.
type run struct {
	p    *process
	stop context.CancelFunc
	err  chan error
}

// compute starts a compute process. host is its place in the network.
func (c *cluster) compute(proc wire.ProcID, host string) *run {
	ctx, cancel := context.WithCancel(context.Background())
	r := &run{stop: cancel, err: make(chan error, 1)}
	done := make(chan struct{})
	cfg := Config{
		Name: fmt.Sprintf("compute%d", proc), Proc: proc, Cluster: testCluster, Mgmt: "mem:mgmt", Listen: []string{"mem:" + host},
		Memory: minMemoryBytes, Version: "test", Log: c.log.With("on", host), Net: c.net.Host(host),
	}
	p, err := newProcess(cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	r.p = p
	go func() { // as Run does
		defer close(done)
		defer p.free()
		r.err <- p.run(ctx)
	}()
	c.t.Cleanup(func() {
		for _, other := range []string{"mgmt", "drives"} {
			c.net.Heal(host, other)
		}
		cancel()
		<-done
	})
	eventually(c.t, host+" registered", func() bool {
		p := c.mgmt.now().Proc(proc)
		return p != nil && slices.Contains(p.Addrs, "mem:"+host)
	})
	return r
}

// client is a frontend: it keeps what it is granted and reclaims it from new owners.
type client struct {
	t    *testing.T
	c    *cluster
	sess wire.SessionID
	r    *route.Router
	seq  atomic.Uint64
	stop func()

	mu     sync.Mutex
	leases map[wire.Ino]wire.Lease
	opens  map[wire.Ino]bool
	locks  []wire.LockReq
	owners map[wire.BucketID]wire.BucketOwner
	// onRecall decides about recalls; nil gives everything up at once.
	onRecall func(ctx context.Context, q *wire.RecallReq) error
	mute     bool // it does not reclaim
}

func (c *cluster) client(proc wire.ProcID) *client {
	host := fmt.Sprintf("client%d", proc)
	cl := &client{t: c.t, c: c, leases: map[wire.Ino]wire.Lease{}, opens: map[wire.Ino]bool{}, owners: map[wire.BucketID]wire.BucketOwner{}}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	cl.r = route.New(route.Config{
		Self: rpc.Self{Cluster: testCluster, Role: wire.RoleFrontend, Proc: proc, Version: "test"}, Mgmt: "mem:mgmt",
		Arena: c.drives.Arena(), Handler: cl.handle, Net: c.net.Host(host), Log: c.log,
		OnMap: func(m *wire.ClusterMap) { cl.onMap(ctx, &wg, m) },
	})
	var resp wire.RegisterResp
	req := &wire.RegisterReq{Proc: proc, Role: wire.RoleFrontend, PID: 1, Name: host}
	if err := cl.r.Mgmt(ctx, &rpc.Call{Method: wire.MRegister, Req: req, Resp: &resp}); err != nil {
		c.t.Fatal(err)
	}
	cl.sess = resp.Session
	cl.r.SetMap(&resp.Map)
	wg.Go(func() { _ = cl.r.Run(ctx) })
	cl.stop = sync.OnceFunc(func() { cancel(); cl.r.Close(); wg.Wait() })
	c.t.Cleanup(cl.stop)
	return cl
}

func (cl *client) onMap(ctx context.Context, wg *sync.WaitGroup, m *wire.ClusterMap) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	for i, o := range m.Owners {
		b := wire.BucketID(i)
		if o.Proc == 0 || cl.owners[b] == o || cl.mute {
			continue
		}
		cl.owners[b] = o
		req := &wire.ReclaimReq{Session: cl.sess, Bucket: b}
		for ino, l := range cl.leases {
			if ino.Bucket() == b && l.Mode > 0 {
				req.Leases = append(req.Leases, wire.HeldLease{Ino: ino, Mode: l.Mode})
			}
		}
		for ino := range cl.opens {
			if ino.Bucket() == b {
				req.Opens = append(req.Opens, ino)
			}
		}
		for _, l := range cl.locks {
			if l.Ino.Bucket() == b {
				req.Locks = append(req.Locks, l)
			}
		}
		wg.Go(func() {
			var resp wire.ReclaimResp
			err := cl.r.Bucket(ctx, b, &rpc.Call{Method: wire.MReclaim, Req: req, Resp: &resp})
			if err == nil && len(resp.Lost) > 0 {
				cl.t.Errorf("session %d lost leases of %v", cl.sess, resp.Lost)
			}
		})
	}
}

func (cl *client) handle(ctx context.Context, req *rpc.Request) (wire.Message, wire.Data, error) {
	defer req.Data.Release()
	var q wire.RecallReq
	if err := q.Decode(req.Meta); err != nil {
		return nil, nil, err
	}
	cl.mu.Lock()
	f := cl.onRecall
	cl.mu.Unlock()
	if f != nil {
		if err := f(ctx, &q); err != nil {
			return nil, nil, err
		}
	}
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if l, ok := cl.leases[q.Ino]; ok && l.Seq < q.Seq {
		l.Mode = min(l.Mode, q.To)
		cl.leases[q.Ino] = l
	}
	return &wire.RecallResp{}, nil, nil
}

func (cl *client) op() wire.OpID {
	return wire.OpID{Session: cl.sess, Seq: cl.seq.Add(1)}
}

// try asks a bucket, and has patience.
func (cl *client) try(b wire.BucketID, m wire.Method, req, resp wire.Message) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return cl.r.Bucket(ctx, b, &rpc.Call{Method: m, Req: req, Resp: resp})
}

// once asks a bucket once, within d.
func (cl *client) once(d time.Duration, b wire.BucketID, m wire.Method, req, resp wire.Message) error {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	_, err := cl.r.BucketOnce(ctx, b, &rpc.Call{Method: m, Req: req, Resp: resp})
	return err
}

func (cl *client) do(b wire.BucketID, m wire.Method, req, resp wire.Message) {
	cl.t.Helper()
	if err := cl.try(b, m, req, resp); err != nil {
		cl.t.Fatalf("session %d, %T: %v", cl.sess, req, err)
	}
}

func (cl *client) granted(ino wire.Ino, l wire.Lease) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if l.Mode > 0 && l.Seq > cl.leases[ino].Seq {
		cl.leases[ino] = l
	}
}

func (cl *client) create(dir wire.Ino, name string, mode uint32) (*wire.EntryResp, error) {
	var resp wire.EntryResp
	err := cl.try(dir.Bucket(), wire.MCreate, &wire.CreateReq{Op: cl.op(), Parent: dir, Mode: mode, Name: name, Excl: true}, &resp)
	return &resp, err
}

const (
	modeFile = 0o100644
	modeDir  = 0o040755
)

func (cl *client) mustCreate(dir wire.Ino, name string, mode uint32) wire.Ino {
	cl.t.Helper()
	e, err := cl.create(dir, name, mode)
	if err != nil {
		cl.t.Fatalf("create %s: %v", name, err)
	}
	return e.Ino
}

func (cl *client) lookup(dir wire.Ino, name string) (wire.Ino, error) {
	var resp wire.EntryResp
	err := cl.try(dir.Bucket(), wire.MLookup, &wire.LookupReq{Session: cl.sess, Parent: dir, Name: name}, &resp)
	return resp.Ino, err
}

// getAttr asks for attributes and a lease.
func (cl *client) getAttr(ino wire.Ino, want wire.LeaseMode) *wire.AttrResp {
	cl.t.Helper()
	var resp wire.AttrResp
	cl.do(ino.Bucket(), wire.MGetAttr, &wire.GetAttrReq{Session: cl.sess, Ino: ino, Want: want}, &resp)
	cl.granted(ino, resp.Lease)
	return &resp
}

func (cl *client) names(dir wire.Ino) []string {
	cl.t.Helper()
	var out []string
	for cookie := uint64(0); ; {
		var resp wire.ReadDirResp
		cl.do(dir.Bucket(), wire.MReadDir, &wire.ReadDirReq{Session: cl.sess, Ino: dir, Cookie: cookie}, &resp)
		for _, e := range resp.Entries {
			out = append(out, e.Name)
			cookie = e.Cookie
		}
		if resp.EOF {
			slices.Sort(out)
			return out
		}
	}
}

// makeRoot makes the filesystem's root, as mgmt does.
func (c *cluster) makeRoot() {
	c.t.Helper()
	r := route.New(route.Config{
		Self: rpc.Self{Cluster: testCluster, Role: wire.RoleMgmt, Proc: mgmtProc, Version: "test"}, Mgmt: "mem:mgmt",
		Arena: c.drives.Arena(), Net: c.net.Host("mgmt"), Log: c.log,
	})
	defer r.Close()
	r.SetMap(c.mgmt.now())
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	req := &wire.MakeRootReq{FS: 1, Root: c.root, Mode: 0o755}
	if err := r.Bucket(ctx, c.root.Bucket(), &rpc.Call{Method: wire.MMakeRoot, Req: req, Resp: &wire.Empty{}}); err != nil {
		c.t.Fatal(err)
	}
}

func wantKind(t *testing.T, err error, k wire.Kind) {
	t.Helper()
	if !errors.Is(err, k) {
		t.Fatalf("got %v, want %v", err, k)
	}
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 3)) }
