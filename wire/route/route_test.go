package route

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

var cluster = wire.ClusterID{4, 2}

// town is a mgmt and some other processes over a network in memory.
type town struct {
	t   *testing.T
	net *rpc.Mem

	mu      sync.Mutex
	m       *wire.ClusterMap
	changed chan struct{}
	watches int
}

func newTown(t *testing.T) *town {
	checkGoroutines(t)
	w := &town{t: t, net: rpc.NewMem(), changed: make(chan struct{})}
	w.m = &wire.ClusterMap{Generation: 1, Cluster: cluster, K: 2, M: 1, Buckets: 2}
	for id := wire.ProcID(10); id < 14; id++ {
		w.m.Processes = append(w.m.Processes, wire.ProcInfo{ID: id, Incarnation: 1, Role: wire.RoleCompute, State: wire.ProcUp,
			Name: fmt.Sprint("proc", id), Addrs: []string{fmt.Sprint("mem:", id)}})
	}
	w.m.Processes[2].Role, w.m.Processes[3].Role = wire.RoleDrive, wire.RoleDrive
	w.m.Owners = []wire.BucketOwner{{Proc: 10, Epoch: 5}, {Proc: 11, Epoch: 6}}
	w.m.Drives = []wire.DriveInfo{{ID: 1, Proc: 12, State: wire.DriveUp}, {ID: 2, Proc: 13, State: wire.DriveDown}}
	return w
}

func checkGoroutines(t *testing.T) {
	t.Cleanup(func() {
		buf := make([]byte, 1<<20)
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
			left := ""
			for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n")[1:] {
				if strings.Contains(g, "crake/wire/") && !strings.Contains(g, "testing.tRunner") {
					left += g + "\n\n"
				}
			}
			if left == "" {
				return
			}
			if time.Now().After(end) {
				t.Errorf("goroutines are left:\n%s", left)
				return
			}
		}
	})
}

// serve runs a process at mem:name until the test ends, or stop is called. Its id is the number that the name begins with.
func (w *town) serve(name string, h rpc.Handler) (stop func()) {
	var id wire.ProcID
	_, _ = fmt.Sscanf(name, "%d", &id) // mgmt has none
	o := rpc.Options{Self: rpc.Self{Cluster: cluster, Role: wire.RoleCompute, Proc: id}, Net: w.net.Host(name), Handler: h, AnyCluster: true}
	o.Generation = func() wire.Generation { w.mu.Lock(); defer w.mu.Unlock(); return w.m.Generation }
	l, err := rpc.Listen("mem:"+name, o)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- l.Serve(ctx) }()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	w.t.Cleanup(stop)
	return stop
}

// serveMgmt answers MWatchMap as mgmt does.
func (w *town) serveMgmt() (stop func()) {
	return w.serve("mgmt", func(ctx context.Context, r *rpc.Request) (wire.Message, wire.Data, error) {
		var req wire.WatchMapReq
		if err := req.Decode(r.Meta); err != nil || r.Header.Method != wire.MWatchMap {
			return nil, nil, wire.Errorf("test", wire.KindVersion, "", "method %v, %v", r.Header.Method, err)
		}
		for {
			w.mu.Lock()
			m, ch := w.m, w.changed
			w.watches++
			w.mu.Unlock()
			if m.Generation > req.After {
				return &wire.WatchMapResp{Map: *m}, nil, nil
			}
			select {
			case <-ch:
			case <-ctx.Done():
				return nil, nil, ctx.Err()
			}
		}
	})
}

// change publishes a new map; quiet does not wake those who watch.
func (w *town) change(quiet bool, f func(m *wire.ClusterMap)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var m wire.ClusterMap
	if err := m.Decode(w.m.Append(nil)); err != nil {
		w.t.Fatal(err)
	}
	m.Generation++
	f(&m)
	w.m = &m
	if !quiet {
		close(w.changed)
		w.changed = make(chan struct{})
	}
}

func (w *town) router(c Config) *Router {
	c.Self = rpc.Self{Cluster: cluster, Role: wire.RoleFrontend, Proc: 1}
	c.Mgmt, c.Net = "mem:mgmt", w.net.Host("router")
	r := New(c)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
		r.Close()
	})
	return r
}

func answer(n uint64) rpc.Handler {
	return func(_ context.Context, r *rpc.Request) (wire.Message, wire.Data, error) {
		r.Data.Release()
		return &wire.AppendResp{Len: n}, nil, nil
	}
}

// Claim: maps come in order, to Map, WaitMap and OnMap; mgmt being away keeps the last one, and its return brings the next.
func TestWatch(t *testing.T) {
	w := newTown(t)
	var mu sync.Mutex
	var seen []wire.Generation
	r := w.router(Config{OnMap: func(m *wire.ClusterMap) { mu.Lock(); seen = append(seen, m.Generation); mu.Unlock() }})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	if _, err := r.WaitMap(ctx, 0); wire.KindOf(err) != wire.KindTimeout {
		t.Error(err)
	}
	cancel()
	if r.Map() != nil {
		t.Error("a map from nowhere")
	}
	stop := w.serveMgmt()
	for g := wire.Generation(1); g < 5; g++ {
		m, err := r.WaitMap(t.Context(), g)
		if err != nil || m.Generation < g || r.Map().Generation < g {
			t.Fatal(m, err)
		}
		w.change(false, func(*wire.ClusterMap) {})
	}
	_, _ = r.WaitMap(t.Context(), 5)
	stop()
	w.change(false, func(*wire.ClusterMap) {})
	if r.Map().Generation != 5 {
		t.Error("the last map is gone")
	}
	w.serveMgmt()
	if _, err := r.WaitMap(t.Context(), 6); err != nil {
		t.Error(err)
	}
	r.SetMap(&wire.ClusterMap{Generation: 3})
	r.SetMap(nil)
	mu.Lock()
	defer mu.Unlock()
	if fmt.Sprint(seen) != "[1 2 3 4 5 6]" {
		t.Error(seen)
	}
}

// Claim: a watch that mgmt has forgotten is put anew when a frame tells of a newer map.
func TestKick(t *testing.T) {
	w := newTown(t)
	w.serveMgmt()
	w.serve("10", answer(1))
	r := w.router(Config{})
	if _, err := r.WaitMap(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond) // the next watch is at mgmt
	w.change(true, func(*wire.ClusterMap) {})
	if err := r.Bucket(t.Context(), 0, &rpc.Call{Method: wire.MLookup}); err != nil { // its answer has generation 2
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	for r.Map().Generation != 2 { // not WaitMap, which kicks itself
		select {
		case <-ctx.Done():
			t.Fatal("the new map does not come")
		case <-time.After(time.Millisecond):
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.watches > 10 {
		t.Error(w.watches, "watches")
	}
}

// Claim: Bucket follows a bucket to its new owner, with the new epoch, and sends the same request until it is answered; an error that
// is not retryable comes back at once.
func TestBucketMoves(t *testing.T) {
	w := newTown(t)
	w.serveMgmt()
	var first, second atomic.Int32
	w.serve("10", func(_ context.Context, r *rpc.Request) (wire.Message, wire.Data, error) {
		if r.Header.Epoch != 5 {
			t.Error("epoch", r.Header.Epoch)
		}
		if first.Add(1) == 3 {
			w.change(false, func(m *wire.ClusterMap) { m.Owners[0] = wire.BucketOwner{Proc: 11, Epoch: 9} })
		}
		return nil, nil, wire.Errorf("test", wire.KindMoved, "", "elsewhere")
	})
	w.serve("11", func(_ context.Context, r *rpc.Request) (wire.Message, wire.Data, error) {
		if r.Header.Epoch != 9 {
			t.Error("epoch", r.Header.Epoch)
		}
		var m wire.AppendResp
		if err := m.Decode(r.Meta); err != nil || m.Len != 44 {
			t.Error(m, err)
		}
		switch second.Add(1) {
		case 1:
			return nil, nil, wire.Errorf("test", wire.KindUnavailable, "", "opening")
		case 2:
			_ = r.Conn.Close()
			return nil, nil, nil
		}
		return &wire.AppendResp{Len: 7}, nil, nil
	})
	r := w.router(Config{})
	var resp wire.AppendResp
	if err := r.Bucket(t.Context(), 0, &rpc.Call{Method: wire.MWrite, Req: &wire.AppendResp{Len: 44}, Resp: &resp}); err != nil || resp.Len != 7 {
		t.Error(resp, err)
	}
	if second.Load() != 3 {
		t.Error(second.Load())
	}
	start := time.Now()
	if err := r.Bucket(t.Context(), 9, &rpc.Call{}); wire.KindOf(err) != wire.KindInvalid || time.Since(start) > 2*time.Second {
		t.Error(err)
	}
	conn, err := r.BucketOnce(t.Context(), 0, &rpc.Call{Req: &wire.AppendResp{Len: 44}})
	if err != nil || conn == nil {
		t.Error(err)
	}
}

// Claim: a request to an owner that says nothing goes to the next one as soon as the map tells that the owner is down, has gone, or runs
// elsewhere. A new run at the old address keeps its connection, and a drive process that is down too.
func TestOwnerVanishes(t *testing.T) {
	for name, vanish := range map[string]func(p *wire.ProcInfo){
		"down":      func(p *wire.ProcInfo) { p.State = wire.ProcDown },
		"gone":      func(p *wire.ProcInfo) { p.ID = 99 },
		"elsewhere": func(p *wire.ProcInfo) { p.Incarnation++; p.Addrs = []string{"mem:10b"} },
	} {
		t.Run(name, func(t *testing.T) {
			w := newTown(t)
			w.serveMgmt()
			arrived := make(chan struct{})
			w.serve("10", func(ctx context.Context, r *rpc.Request) (wire.Message, wire.Data, error) {
				close(arrived)
				<-ctx.Done()
				return nil, nil, ctx.Err()
			})
			w.serve("11", answer(7))
			r := w.router(Config{})
			got := make(chan error, 1)
			go func() { got <- r.Bucket(t.Context(), 0, &rpc.Call{Method: wire.MLookup}) }()
			<-arrived
			w.net.Partition("router", "10")
			w.change(false, func(m *wire.ClusterMap) {
				if vanish(&m.Processes[0]); name != "elsewhere" {
					m.Processes[0].Addrs = nil
				}
				m.Owners[0] = wire.BucketOwner{Proc: 11, Epoch: 6}
			})
			select {
			case err := <-got:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(20 * time.Second):
				t.Error("it waits for the old owner")
			}
			w.net.Heal("router", "10")
		})
	}
	w := newTown(t)
	w.serveMgmt()
	w.serve("10", answer(1))
	w.serve("12", answer(1))
	r := w.router(Config{})
	if _, err := r.WaitMap(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	before, err := r.BucketOnce(t.Context(), 0, &rpc.Call{Method: wire.MLookup})
	if err != nil {
		t.Fatal(err)
	}
	drive, err := r.pool.Get(t.Context(), []string{"mem:12"})
	if err != nil {
		t.Fatal(err)
	}
	w.change(false, func(m *wire.ClusterMap) {
		m.Processes[0].Incarnation++
		m.Processes[2].State = wire.ProcDown
	})
	if _, err := r.WaitMap(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	if after, err := r.BucketOnce(t.Context(), 0, &rpc.Call{Method: wire.MLookup}); err != nil || after != before {
		t.Error("the connection to a new run was dropped:", err)
	}
	if c, err := r.pool.Get(t.Context(), []string{"mem:12"}); err != nil || c != drive {
		t.Error("the connection to a drive was dropped:", err)
	}
}

// Claim: Bucket ends with its ctx and tells both why and what was in the way.
func TestBucketGivesUp(t *testing.T) {
	w := newTown(t)
	w.serveMgmt()
	r := w.router(Config{})
	for b := range wire.BucketID(2) { // nobody listens there
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Millisecond)
		start := time.Now()
		err := r.Bucket(ctx, b, &rpc.Call{Method: wire.MLookup})
		if wire.KindOf(err) != wire.KindTimeout || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "nobody listens") {
			t.Error(err)
		}
		if d := time.Since(start); d > time.Second {
			t.Error("took", d)
		}
		cancel()
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if err := r.Bucket(ctx, 0, &rpc.Call{Method: wire.MLookup}); wire.KindOf(err) != wire.KindInterrupted {
		t.Error(err)
	}
}

// Claim: a drive that is down, gone or unknown fails at once, and for a moment is not even tried; one that came back is used.
func TestDrive(t *testing.T) {
	w := newTown(t)
	w.serveMgmt()
	r := w.router(Config{})
	if _, err := r.WaitMap(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	ask := func(d wire.DriveID) (time.Duration, error) {
		start := time.Now()
		err := r.Drive(t.Context(), d, &rpc.Call{Method: wire.MDriveStat})
		return time.Since(start), err
	}
	for _, d := range []wire.DriveID{1, 1, 2, 77} { // nobody listens; again; down in the map; unknown
		if took, err := ask(d); wire.KindOf(err) != wire.KindUnavailable || took > 400*time.Millisecond {
			t.Error(d, took, err)
		}
		if r.DriveUp(d) {
			t.Error(d, "is up")
		}
	}
	stop := w.serve("12", answer(1))
	deadline := time.Now().Add(2 * time.Second)
	for !r.DriveUp(1) && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	if _, err := ask(1); err != nil {
		t.Error(err)
	}
	stop()
	if took, err := ask(1); err == nil || took > 400*time.Millisecond {
		t.Error(took, err)
	}
	// A new run of its process, told by a new map, is tried at once though the old one was away a moment ago.
	if _, err := ask(1); wire.KindOf(err) != wire.KindUnavailable || r.DriveUp(1) {
		t.Error(err)
	}
	w.change(false, func(m *wire.ClusterMap) { m.Processes[2].Incarnation++ })
	if _, err := r.WaitMap(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	if !r.DriveUp(1) {
		t.Error("the new run is not tried")
	}
}

// Claim: a process that takes connections and says nothing costs a bounded time once, then nothing for a moment.
func TestDriveHangs(t *testing.T) {
	w := newTown(t)
	w.serveMgmt()
	w.serve("12", answer(1))
	r := w.router(Config{})
	if _, err := r.WaitMap(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	w.net.Partition("router", "12")
	for i, limit := range []time.Duration{2 * time.Second, 400 * time.Millisecond} {
		start := time.Now()
		err := r.Drive(t.Context(), 1, &rpc.Call{Method: wire.MDriveStat})
		if took := time.Since(start); wire.KindOf(err) != wire.KindUnavailable || took > limit {
			t.Error(i, took, err)
		}
	}
	w.net.Heal("router", "12")
}
