package mgmt

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/crakefs/crake/mgmt/api"
	"github.com/crakefs/crake/mgmt/internal/driver"
	"github.com/crakefs/crake/mgmt/internal/events"
	"github.com/crakefs/crake/mgmt/internal/leader"
	"github.com/crakefs/crake/mgmt/internal/store"
	"github.com/crakefs/crake/mgmt/internal/supervise"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/procfs"
	"github.com/crakefs/crake/wire/route"
	"github.com/crakefs/crake/wire/rpc"
)

// serverID is this server: the only one.
const serverID wire.ServerID = 1

// defaultFS is the filesystem that a new cluster gets.
const defaultFS = "default"

// worker is mgmt itself.
type worker struct {
	// immutable
	c       *Config
	file    *api.ClusterFile
	cluster wire.ClusterID
	cores   []int // to pin processes to
	pinAll  bool  // cores are fewer than all that we may use: pin frontends too
	began   time.Time
	log     *slog.Logger
	st      *store.Store
	d       *driver.Driver
	sup     *supervise.Supervisor
	ev      *events.Log
	router  *route.Router
	ids     *issuer
	socket  *rpc.Listener // of the processes; set before they are started
	kick    chan struct{} // capacity 1: compare wishes and what runs
	end     context.CancelCauseFunc
	tcp     string // address of the API over TCP, with the real port; "" is none

	resting   map[string]bool // processes of failed drives that are not started again; owned by reconcileLoop
	openings  map[string]int  // runs (pids) of drives whose long opening was told, by name; owned by reconcileLoop
	stopAsked chan struct{}   // closed when the orderly stop begins

	opMu sync.Mutex // one change of mounts or filesystems, or the stop, at a time; never taken under mu

	mu       sync.Mutex
	stopping bool            // guarded by mu
	formed   bool            // everything wanted was up once; guarded by mu
	started  map[string]bool // frontends that were given to the supervisor; guarded by mu
	failures map[string]int  // runs of a frontend in a row that ended before they were ready; guarded by mu
}

// errStopped ends the worker after the orderly stop of the cluster.
var errStopped = errors.New("the cluster was stopped")

func runWorker(ctx context.Context, c *Config) (err error) {
	debug.SetGCPercent(gcPercent)
	debug.SetMemoryLimit(memoryLimit)
	ready := false
	defer func() {
		if err != nil && !ready {
			text := strings.ReplaceAll(err.Error(), "\n", "; ")
			err = errors.Join(err, os.WriteFile(errorFile(c.Dir), []byte(text), 0o600))
		}
	}()
	for _, d := range []string{api.RunDir(c.Dir), api.LogDir(c.Dir)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	lock, err := takeLock(api.WorkerLock(c.Dir))
	if err != nil {
		return fmt.Errorf("mgmt runs already for %s: %w", c.Dir, err)
	}
	defer lock.Close()
	if err := lock.Truncate(0); err != nil {
		return err
	}
	w, err := newWorker(c)
	if err != nil {
		return err
	}
	ctx, w.end = context.WithCancelCause(ctx)
	defer w.end(nil)
	old, err := w.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.st.Close()) }()
	if err := w.endUnproven(ctx, w.recognise(old.state)); err != nil {
		return err
	}
	err = w.run(ctx, old, func() error {
		ready = true
		return writePID(lock)
	})
	if errors.Is(context.Cause(ctx), errStopped) {
		w.log.Info("the cluster is stopped")
		_, werr := lock.WriteAt([]byte(stoppedMark), 0)
		return errors.Join(werr, lock.Truncate(int64(len(stoppedMark))))
	}
	return err
}

// workerPID gives the process of a worker that is up, from its lock file.
func workerPID(dir string) (int, bool) {
	b, err := os.ReadFile(api.WorkerLock(dir))
	if err != nil {
		return 0, false
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	return pid, err == nil && pid > 0
}

func newWorker(c *Config) (*worker, error) {
	w := &worker{
		c: c, began: time.Now(), log: c.Log, kick: make(chan struct{}, 1),
		stopAsked: make(chan struct{}),
		started:   map[string]bool{}, failures: map[string]int{}, openings: map[string]int{},
	}
	var err error
	if w.file, err = api.ReadClusterFile(c.Dir); err != nil {
		return nil, err
	}
	if w.cluster, err = w.file.Cluster(); err != nil {
		return nil, err
	}
	all, err := procfs.AllowedCores()
	if err != nil {
		return nil, err
	}
	w.cores = w.file.Cores
	if len(w.cores) == 0 {
		w.cores = all
	}
	w.pinAll = len(w.cores) < len(all)
	for _, core := range w.cores {
		if !contains(all, core) {
			return nil, fmt.Errorf("core %d is not one that mgmt may use (%v); correct \"cores\" in %s", core, all,
				filepath.Join(c.Dir, api.ClusterFileName))
		}
	}
	if w.ids, err = newIssuer(c.Dir, w.cluster); err != nil {
		return nil, err
	}
	w.sup, err = w.newSupervisor()
	return w, err
}

// newSupervisor makes a supervisor that knows which processes of the cluster run.
func (w *worker) newSupervisor() (*supervise.Supervisor, error) {
	return supervise.New(supervise.Config{
		RunDir: api.RunDir(w.c.Dir), LogDir: api.LogDir(w.c.Dir),
		Identity: []string{"--cluster", w.file.ClusterID, "--mgmt", api.MgmtAddr(w.c.Dir)},
		OnExit:   w.onExit, Log: w.log,
	})
}

func contains(list []int, v int) bool {
	for _, x := range list {
		if x == v {
			return true
		}
	}
	return false
}

// stored is what the store held when mgmt started.
type stored struct {
	docs  map[string][]byte
	state *leader.State
	fresh bool // no cluster was formed yet
}

// open opens the store, becomes leader and loads or forms the cluster.
func (w *worker) open(ctx context.Context) (old stored, err error) {
	if w.st, err = store.Open(ctx, api.EtcdDir(w.c.Dir), w.log); err != nil {
		return old, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.st.Close())
		}
	}()
	if err := w.st.Lead(ctx, fmt.Sprintf("server %d", serverID)); err != nil {
		return old, err
	}
	if old.docs, err = w.st.Load(ctx); err != nil {
		return old, err
	}
	if old.state, err = leader.Decode(old.docs); err != nil {
		return old, err
	}
	ev, err := w.st.LoadEvents(ctx)
	if err != nil {
		return old, err
	}
	w.ev = events.New(w.st, ev, w.log)
	if old.state == nil {
		old.fresh = true
		old.state = leader.Form(leader.Settings{
			Cluster: w.file.ClusterID, Name: w.file.Name, K: w.file.DataStrips, M: w.file.ParityStrips, Buckets: w.file.Buckets,
			FormedAt: time.Now().UnixNano(),
		})
		return old, nil
	}
	set := old.state.Settings
	if set.Cluster != w.file.ClusterID {
		return old, fmt.Errorf("%s holds cluster %s, but %s names %s: restore the right file", api.EtcdDir(w.c.Dir), set.Cluster,
			api.ClusterFileName, w.file.ClusterID)
	}
	if set.K != w.file.DataStrips || set.M != w.file.ParityStrips || set.Buckets != w.file.Buckets {
		w.event(wire.SeverityWarning, "settings.ignored", "", fmt.Sprintf(
			"%s says protection %d+%d and %d buckets; the cluster was formed with %d+%d and %d, and keeps that",
			api.ClusterFileName, w.file.DataStrips, w.file.ParityStrips, w.file.Buckets, set.K, set.M, set.Buckets))
	}
	return old, nil
}

func (w *worker) event(severity uint8, typ, proc, text string) {
	w.ev.Add(severity, typ, proc, text, time.Now())
}

// run listens, leads and supervises until ctx ends.
func (w *worker) run(ctx context.Context, old stored, ready func() error) error {
	self := rpc.Self{Cluster: w.cluster, Role: wire.RoleMgmt, Version: w.c.Version}
	w.router = route.New(route.Config{
		Self: self, Mgmt: api.MgmtAddr(w.c.Dir), Server: serverID, Wire: w.file.Wire, Identity: w.ids.own, TLS: w.file.WireEncryption, Log: w.log,
		Capture: w.c.Capture,
	})
	defer w.router.Close()
	l, err := rpc.Listen(api.MgmtAddr(w.c.Dir), rpc.Options{
		Self: self, Handler: w.handle, AnyCluster: true, Identity: w.ids.own, Admit: w.ids.admit, Generation: w.generation, Log: w.log,
		Capture: w.c.Capture,
	})
	if err != nil {
		return err
	}
	w.socket = l
	// From here on processes can reach us, so leases that are granted anew may run: see doc.go, "When mgmt is away".
	if err := w.lead(old); err != nil {
		return errors.Join(err, l.Close())
	}
	servers, err := w.listenAPI()
	if err != nil {
		return errors.Join(err, l.Close())
	}
	// Two groups: what decides ends before what listens, so that nobody who finds us gone is decided upon later.
	decide, dctx := errgroup.WithContext(ctx)
	listen, lctx := errgroup.WithContext(context.WithoutCancel(ctx))
	lctx, stopListen := context.WithCancel(lctx)
	defer stopListen()
	decide.Go(func() error { return w.d.Run(dctx) })
	decide.Go(func() error { return w.sup.Run(dctx) })
	decide.Go(func() error { return w.reconcileLoop(dctx) })
	decide.Go(func() error { return w.rootsLoop(dctx) })
	decide.Go(func() error { return w.watchStore(dctx) })
	decide.Go(func() error { return w.stopLoop(dctx) })
	listen.Go(func() error { return l.Serve(lctx) })
	listen.Go(func() error { return w.ev.Run(lctx) })
	for _, s := range servers {
		listen.Go(func() error { return s.serve(lctx) })
	}
	failed := context.AfterFunc(lctx, func() { w.end(context.Canceled) }) // a listener that failed ends all
	defer failed()
	if err := ready(); err != nil {
		w.end(err)
	}
	w.log.Info("mgmt leads", "cluster", w.file.ClusterID, "pid", os.Getpid(), "formed", old.fresh)
	err = decide.Wait()
	failed()
	stopListen()
	return errors.Join(err, listen.Wait())
}

// watchStore ends the worker when etcd has ended or the lead is lost; the keeper starts it again.
func (w *worker) watchStore(ctx context.Context) error {
	select {
	case err := <-w.st.Failed():
		return fmt.Errorf("etcd ended: %w", err)
	case <-w.st.Lost():
		if ctx.Err() != nil {
			return nil
		}
		return store.ErrNotLeader
	case <-ctx.Done():
		return nil
	}
}

// lead starts the leader and brings its slots in line with the cluster file and the processes that were found.
func (w *worker) lead(old stored) error {
	lease := w.file.LeaseMs
	if lease == 0 {
		lease = defaultLeaseMs
	}
	var err error
	w.d, err = driver.New(old.state, lease, driver.Config{
		Store: w.st, Docs: old.docs, Log: w.log,
		OnEvent: func(e leader.Event) { w.event(e.Severity, e.Type, e.Proc, e.Text) },
		OnKill:  w.onKill,
		OnMap:   func(m *wire.ClusterMap) { w.router.SetMap(m); w.nudge() },
	})
	if err != nil {
		return err
	}
	w.d.Do(func(now leader.Millis, c *leader.Core) {
		w.buryDead(now, c)
		err = w.slots(now, c)
	})
	if old.fresh {
		w.event(wire.SeverityInfo, "cluster.form", "", fmt.Sprintf("%s: %d drives, protection %d+%d, %d buckets",
			w.file.Name, len(w.file.Drives), w.file.DataStrips, w.file.ParityStrips, w.file.Buckets))
	} else {
		w.event(wire.SeverityInfo, "mgmt.start", "mgmt", fmt.Sprintf("pid %d leads", os.Getpid()))
	}
	return err
}

// buryDead tells the core of runs that ended while mgmt was away.
func (w *worker) buryDead(now leader.Millis, c *leader.Core) {
	alive := map[string]map[uint32]bool{}
	for name, all := range w.sup.Found() {
		alive[name] = map[uint32]bool{}
		for _, f := range all {
			alive[name][uint32(f.PID)] = true
		}
	}
	for _, id := range c.State().ProcIDs() {
		p := c.State().Procs[id]
		for _, r := range append([]leader.Run{{PID: p.PID}}, p.Old...) {
			if r.PID != 0 && !alive[p.Name][r.PID] {
				c.Exited(now, id, r.PID)
			}
		}
	}
}

// slots makes the slots that the cluster file asks for, and takes the wish from those that it does not.
func (w *worker) slots(now leader.Millis, c *leader.Core) error {
	wanted := map[string]bool{}
	slot := func(p leader.Proc) (wire.ProcID, error) {
		wanted[p.Name] = true
		if have := c.State().ProcNamed(p.Name); have != nil {
			c.SetWanted(now, have.ID, true)
			return have.ID, nil
		}
		return c.AddProc(now, p)
	}
	for _, spec := range w.file.Drives {
		id := wire.DriveID(spec.ID)
		proc, err := slot(leader.Proc{Name: fmt.Sprintf("drive%d", spec.ID-1), Role: wire.RoleDrive, Server: serverID, Drive: id})
		if err != nil {
			return err
		}
		if err := c.AddDrive(now, leader.Drive{
			ID: id, Proc: proc, Server: serverID, Domain: spec.ID, SizeBytes: uint64(spec.SizeBytes), Path: spec.Path,
		}); err != nil {
			return err
		}
	}
	for i := range w.file.Computes {
		if _, err := slot(leader.Proc{Name: fmt.Sprintf("compute%d", i), Role: wire.RoleCompute, Server: serverID}); err != nil {
			return err
		}
	}
	if len(c.State().FSs) == 0 && c.State().Counters.FS == 1 {
		if _, err := c.AddFS(now, defaultFS); err != nil {
			return err
		}
	}
	for _, id := range c.State().ProcIDs() {
		if p := c.State().Procs[id]; p != nil && p.Role != wire.RoleFrontend && !wanted[p.Name] {
			c.SetWanted(now, id, false)
		}
	}
	return w.firstMount(now, c)
}

// firstMount brings the slot of frontend0 in line with the mount of the cluster file. Further mounts are only in the
// store.
func (w *worker) firstMount(now leader.Millis, c *leader.Core) error {
	const name = "frontend0"
	have := c.State().ProcNamed(name)
	fs := c.State().FSNamed(defaultFS)
	switch {
	case w.file.Mount == "" || fs == nil:
		if have != nil {
			c.SetWanted(now, have.ID, false)
		}
		return nil
	case have != nil:
		c.SetWanted(now, have.ID, true)
		c.SetMount(now, have.ID, fs.ID, w.file.Mount)
		return nil
	}
	_, err := c.AddProc(now, leader.Proc{Name: name, Role: wire.RoleFrontend, Server: serverID, FS: fs.ID, Mount: w.file.Mount})
	return err
}

// onKill kills a run that has lost its right to serve.
func (w *worker) onKill(k leader.Kill) {
	w.log.Warn("killing a process", "name", k.Name, "pid", k.PID, "why", k.Why)
	if err := w.sup.Kill(k.Name, int(k.PID)); err != nil {
		w.event(wire.SeverityError, "process.kill", k.Name, fmt.Sprintf("cannot kill pid %d: %v", k.PID, err))
	}
}

// onExit is called by the supervisor when a process has ended.
func (w *worker) onExit(name string, pid int, how string) {
	w.mu.Lock()
	stopping := w.stopping
	w.mu.Unlock()
	expected := stopping
	w.d.Do(func(now leader.Millis, c *leader.Core) {
		p := c.State().ProcNamed(name)
		if p == nil {
			expected = true
			return
		}
		w.ids.revoke(p.ID)
		expected = expected || !p.Wanted
		ready := c.Live(p.ID).Ready && p.PID == uint32(pid)
		w.mu.Lock()
		if ready {
			w.failures[name] = 0
		} else if !strings.HasPrefix(how, "signal: ") {
			w.failures[name]++
		}
		w.mu.Unlock()
		if pid != 0 {
			c.Exited(now, p.ID, uint32(pid))
		}
	})
	if err := os.Remove(api.IdentityPath(w.c.Dir, name)); err != nil && !os.IsNotExist(err) {
		w.log.Warn("cannot remove an identity", "name", name, "err", err)
	}
	if !expected {
		w.event(wire.SeverityWarning, "process.exit", name, fmt.Sprintf("pid %d: %s", pid, how))
	}
}

func (w *worker) generation() wire.Generation {
	if w.d == nil { // asked before we lead
		return 0
	}
	if m, _ := w.d.Map(); m != nil {
		return m.Generation
	}
	return 0
}

func (w *worker) nudge() {
	select {
	case w.kick <- struct{}{}:
	default:
	}
}

func (w *worker) clusterHex() string { return hex.EncodeToString(w.cluster[:]) }
