package frontend

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/crakefs/crake/frontend/internal/core"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/away"
	"github.com/crakefs/crake/wire/procfs"
	"github.com/crakefs/crake/wire/route"
	"github.com/crakefs/crake/wire/rpc"
	"github.com/crakefs/crake/wire/strip"
)

// member is a process of the cluster with a session, and the filesystem core that works in it. FUSE is not its matter.
type member struct {
	// immutable after join
	cfg         Config
	arena       *wire.Arena
	router      *route.Router
	listener    *rpc.Listener
	incarnation wire.Incarnation
	session     wire.SessionID
	fs          *core.FS

	dropPages atomic.Pointer[func(ino wire.Ino)] // set once mounted
	core      atomic.Pointer[core.FS]            // fs, for handlers that may run before join returns
	ready     atomic.Bool
	events    chan *wire.EventReq
	dropped   atomic.Uint64 // events

	tasks  sync.WaitGroup
	ctx    context.Context // of the tasks; its cause tells why the process ends
	stop   context.CancelCauseFunc
	fsStop context.CancelFunc // of fs.Run, which ends before the others
	fsDone chan struct{}
}

// join registers at mgmt and starts what a frontend needs. leave must be called when it succeeded.
func join(ctx context.Context, cfg Config) (m *member, err error) {
	cfg.setDefaults()
	m = &member{cfg: cfg, events: make(chan *wire.EventReq, maxEvents), fsDone: make(chan struct{})}
	m.ctx, m.stop = context.WithCancelCause(context.WithoutCancel(ctx))
	if m.arena, err = wire.NewArena(int(core.ArenaBytes(cfg.DirtyBytes, cfg.ArenaBytes))); err != nil {
		return nil, err
	}
	self := rpc.Self{Cluster: cfg.Cluster, Role: wire.RoleFrontend, Proc: cfg.Proc, Version: cfg.Version}
	m.router = route.New(route.Config{Self: self, Mgmt: cfg.Mgmt, Arena: m.arena, Handler: m.handle, OnMap: m.onMap,
		Net: cfg.Net, Log: cfg.Log})
	m.listener, err = rpc.Listen(cfg.Listen, rpc.Options{Self: self, Arena: m.arena, Net: cfg.Net, Log: cfg.Log})
	if err != nil {
		m.router.Close()
		return nil, errors.Join(err, m.arena.Close())
	}
	m.task(m.listener.Serve)
	if err = m.register(ctx); err == nil {
		m.task(m.router.Run)
		m.task(m.heartbeats)
		m.task(m.sendEvents)
		m.task(m.trim)
		err = m.open(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, m.leave())
	}
	return m, nil
}

// task runs f until the process ends. An error of f ends it.
func (m *member) task(f func(ctx context.Context) error) {
	m.tasks.Go(func() {
		if err := f(m.ctx); err != nil && m.ctx.Err() == nil {
			m.stop(err)
		}
	})
}

// open makes the filesystem core once the map knows the filesystem.
func (m *member) open(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, fsWait)
	defer cancel()
	var info *wire.FSInfo
	for {
		cm := m.router.Map()
		if info = cm.FS(m.cfg.FS); info != nil && !info.Deleting {
			break
		}
		if _, err := m.router.WaitMap(ctx, cm.Generation+1); err != nil {
			return wire.Errorf("frontend.open", wire.KindNotFound, m.cfg.FS, "the cluster has no filesystem %q; crake fs ls lists them", m.cfg.FS)
		}
	}
	reader := strip.New(strip.Config{Drive: m.router.Drive, Up: m.router.DriveUp, Arena: m.arena, Report: m.badStrip})
	fs, err := core.New(core.Config{Session: m.session, FS: *info, Cluster: m.router, Blocks: reader, Arena: m.arena,
		DirtyBytes: m.cfg.DirtyBytes, ReadBytes: m.cfg.ArenaBytes, DropPages: m.drop, Log: m.cfg.Log})
	if err != nil {
		return err
	}
	m.fs = fs
	fs.Renew(time.Now().Add(m.lease(m.router.Map().LeaseMs)))
	m.core.Store(fs)
	fs.OnMap(m.router.Map())
	var fctx context.Context
	fctx, m.fsStop = context.WithCancel(m.ctx)
	m.tasks.Go(func() {
		defer close(m.fsDone)
		_ = fs.Run(fctx) // gives no error
	})
	return nil
}

// drop makes the kernel drop pages, when there is a mount.
func (m *member) drop(ino wire.Ino) {
	if f := m.dropPages.Load(); f != nil {
		(*f)(ino)
	}
}

func (m *member) onMap(cm *wire.ClusterMap) {
	if fs := m.core.Load(); fs != nil {
		fs.OnMap(cm)
	}
}

func (m *member) handle(ctx context.Context, req *rpc.Request) (wire.Message, wire.Data, error) {
	if fs := m.core.Load(); fs != nil {
		return fs.HandleRPC(ctx, req)
	}
	req.Data.Release()
	return nil, nil, wire.E("frontend", wire.KindUnavailable, "", errors.New("not ready"))
}

// leave ends everything. Data that is not durable yet is lost: sync before.
func (m *member) leave() error {
	if m.fsStop != nil {
		m.fsStop()
		<-m.fsDone
	}
	m.stop(context.Canceled)
	m.goodbye()
	m.router.Close()
	m.tasks.Wait()
	if err := m.arena.Close(); err != nil {
		// A reader that was hedged or a request that was given up may still hold memory for a moment: the process ends anyway.
		m.cfg.Log.Debug("arena", "err", err)
	}
	return nil
}

// ask sends a request to mgmt, once.
func (m *member) ask(ctx context.Context, timeout time.Duration, method wire.Method, req, resp wire.Message) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return m.router.Mgmt(ctx, &rpc.Call{Method: method, Req: req, Resp: resp})
}

// final says that mgmt's answer ends this run.
func final(err error) bool {
	return errors.Is(err, wire.KindRefused) || errors.Is(err, wire.KindStaleSession) || errors.Is(err, wire.KindVersion) ||
		errors.Is(err, wire.KindAuthentication)
}

// register announces the process until mgmt answers.
func (m *member) register(ctx context.Context) error {
	req := &wire.RegisterReq{Proc: m.cfg.Proc, Role: wire.RoleFrontend, PID: uint32(os.Getpid()), Name: m.cfg.Name,
		Version: m.cfg.Version, Addrs: []string{m.listener.Addr()}, Cores: m.cfg.Cores}
	for pause := registerRetryMin; ; pause = min(2*pause, registerRetryMax) {
		var resp wire.RegisterResp
		err := m.ask(ctx, heartbeatTimeout, wire.MRegister, req, &resp)
		switch {
		case err == nil && resp.Session == 0:
			return wire.Errorf("frontend.register", wire.KindRefused, m.cfg.Name, "mgmt gave no session")
		case err == nil:
			m.incarnation, m.session = resp.Incarnation, resp.Session
			m.router.SetMap(&resp.Map)
			m.cfg.Log.Info("registered", "name", m.cfg.Name, "proc", m.cfg.Proc, "session", m.session, "generation", resp.Map.Generation)
			return nil
		case final(err):
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// lease gives how long after a heartbeat was sent the session is sure to live: a tenth less than mgmt's clock says.
func (m *member) lease(ms uint32) time.Duration { return time.Duration(ms) * time.Millisecond * 9 / 10 }

// heartbeats renews the session until ctx ends (nil) or mgmt says that it is over.
func (m *member) heartbeats(ctx context.Context) error {
	t := time.NewTicker(heartbeatEvery)
	defer t.Stop()
	quiet := false      // the failure has been logged
	var until time.Time // the session is sure to live
	for {
		sent := time.Now()
		req := &wire.HeartbeatReq{Proc: m.cfg.Proc, Incarnation: m.incarnation, Session: m.session, RSSBytes: procfs.RSS(os.Getpid()), Ready: m.ready.Load()}
		if cm := m.router.Map(); cm != nil {
			req.Generation = cm.Generation
		}
		var resp wire.HeartbeatResp
		err := m.ask(ctx, heartbeatTimeout, wire.MHeartbeat, req, &resp)
		if at := time.Now(); err != nil && at.Before(until) && away.Refused(ctx, m.cfg.Mgmt) {
			// While no mgmt runs nobody ends a session; whichever comes next waits a whole lease before it does.
			until = at.Add(m.lease(m.router.Map().LeaseMs))
			if fs := m.core.Load(); fs != nil {
				fs.Renew(until)
			}
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case final(err):
			return err
		case err != nil && !quiet:
			m.cfg.Log.Warn("mgmt does not answer heartbeats", "err", err)
		case err == nil:
			if quiet {
				m.cfg.Log.Info("mgmt answers heartbeats again")
			}
			until = sent.Add(m.lease(resp.LeaseMs))
			if fs := m.core.Load(); fs != nil {
				fs.Renew(until)
			}
		}
		quiet = err != nil
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// goodbye tells mgmt that the process ends in an orderly way.
func (m *member) goodbye() {
	if m.incarnation == 0 {
		return
	}
	err := m.ask(context.Background(), goodbyeTimeout, wire.MGoodbye, &wire.GoodbyeReq{Proc: m.cfg.Proc, Incarnation: m.incarnation}, &wire.Empty{})
	if err != nil {
		m.cfg.Log.Info("mgmt did not take the goodbye", "err", err)
	}
}

// badStrip reports a strip that a read found bad. It does not wait.
func (m *member) badStrip(bad strip.Bad) {
	typ := "strip.corrupt"
	if bad.Kind == wire.KindNotFound || bad.Kind == wire.KindRange {
		typ = "strip.missing"
	}
	e := &wire.EventReq{Proc: m.cfg.Proc, Severity: wire.SeverityWarning, Type: typ, Time: time.Now().UnixNano(),
		Text: fmt.Sprintf("drive %d, strip %v: %v", bad.Drive, bad.ID, bad.Kind)}
	select {
	case m.events <- e:
	default:
		m.dropped.Add(1)
	}
}

// sendEvents sends what is queued, once each.
func (m *member) sendEvents(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-m.events:
			if err := m.ask(ctx, heartbeatTimeout, wire.MEvent, e, &wire.Empty{}); err != nil && ctx.Err() == nil {
				m.cfg.Log.Warn("an event did not reach mgmt", "type", e.Type, "text", e.Text, "dropped", m.dropped.Load(), "err", err)
			}
		}
	}
}

// trim gives memory back that a burst has left.
func (m *member) trim(ctx context.Context) error {
	t := time.NewTicker(trimEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			m.arena.Trim()
		case <-ctx.Done():
			return nil
		}
	}
}
