package frontend

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/crakefs/crake/frontend/internal/core"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/away"
	"github.com/crakefs/crake/wire/identity"
	"github.com/crakefs/crake/wire/member"
	"github.com/crakefs/crake/wire/route"
	"github.com/crakefs/crake/wire/rpc"
	"github.com/crakefs/crake/wire/strip"
)

// frontend is a process of the cluster with a session, and the filesystem core that works in it. FUSE is not its matter.
type frontend struct {
	// immutable after join
	cfg      Config
	arena    *wire.Arena
	router   *route.Router
	listener *route.Listener
	member   *member.Member
	fs       *core.FS

	dropPages atomic.Pointer[func(ino wire.Ino)] // set once mounted
	core      atomic.Pointer[core.FS]            // fs, for handlers that may run before join returns
	ready     atomic.Bool
	life      sessionLife // of the goroutine that sends heartbeats

	tasks  sync.WaitGroup
	ctx    context.Context // of the tasks; its cause tells why the process ends
	stop   context.CancelCauseFunc
	fsStop context.CancelFunc // of fs.Run, which ends before the others
	fsDone chan struct{}
}

// join registers at mgmt and starts what a frontend needs. leave must be called when it succeeded.
func join(ctx context.Context, cfg Config) (m *frontend, err error) {
	cfg.setDefaults()
	m = &frontend{cfg: cfg, fsDone: make(chan struct{})}
	id, err := identity.LoadIf(cfg.Identity)
	if err != nil {
		return nil, err
	}
	m.ctx, m.stop = context.WithCancelCause(context.WithoutCancel(ctx))
	if m.arena, err = wire.NewArena(int(core.ArenaBytes(cfg.DirtyBytes, cfg.ArenaBytes))); err != nil {
		return nil, err
	}
	self := rpc.Self{Cluster: cfg.Cluster, Role: wire.RoleFrontend, Proc: cfg.Proc, Version: cfg.Version}
	m.router = route.New(route.Config{Self: self, Mgmt: cfg.Mgmt, Wire: cfg.Wire, Identity: id, TLS: cfg.Encrypt, Arena: m.arena, Handler: m.handle, OnMap: m.onMap,
		Net: cfg.Net, Log: cfg.Log, Capture: cfg.Capture})
	m.member = member.New(member.Config{Self: self, Name: cfg.Name, Cores: cfg.Cores, Ask: m.router.Mgmt, Log: cfg.Log,
		Arena: m.arena, Conns: m.router.Conns, Beat: m.beat, Answered: m.answered, Silent: m.silent})
	m.listener, err = m.router.Listen(cfg.Listen, rpc.Options{})
	if err != nil {
		m.router.Close()
		return nil, errors.Join(err, m.arena.Close())
	}
	m.task(m.listener.Serve)
	if err = m.register(ctx); err == nil {
		m.task(m.router.Run)
		m.task(m.member.Heartbeats)
		m.task(m.member.SendEvents)
		m.task(m.trim)
		err = m.open(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, m.leave())
	}
	return m, nil
}

// task runs f until the process ends. An error of f ends it.
func (m *frontend) task(f func(ctx context.Context) error) {
	m.tasks.Go(func() {
		if err := f(m.ctx); err != nil && m.ctx.Err() == nil {
			m.stop(err)
		}
	})
}

// open makes the filesystem core once the map knows the filesystem.
func (m *frontend) open(ctx context.Context) error {
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
	reader := strip.New(strip.Config{Drive: m.router.Drive, Up: m.router.DriveUp, Arena: m.arena, Report: m.member.BadStrip})
	fs, err := core.New(core.Config{Session: m.member.Session(), FS: *info, Cluster: m.router, Blocks: reader, Arena: m.arena,
		DirtyBytes: m.cfg.DirtyBytes, ReadBytes: m.cfg.ArenaBytes, DropPages: m.drop, Log: m.cfg.Log})
	if err != nil {
		return err
	}
	m.fs = fs
	fs.Renew(time.Now().Add(lease(m.router.Map().LeaseMs)))
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
func (m *frontend) drop(ino wire.Ino) {
	if f := m.dropPages.Load(); f != nil {
		(*f)(ino)
	}
}

func (m *frontend) onMap(cm *wire.ClusterMap) {
	if fs := m.core.Load(); fs != nil {
		fs.OnMap(cm)
	}
}

func (m *frontend) handle(ctx context.Context, req *rpc.Request) (wire.Message, wire.Data, error) {
	if fs := m.core.Load(); fs != nil {
		return fs.HandleRPC(ctx, req)
	}
	req.Data.Release()
	return nil, nil, wire.E("frontend", wire.KindUnavailable, "", errors.New("not ready"))
}

// leave ends everything. Data that is not durable yet is lost: sync before.
func (m *frontend) leave() error {
	if m.fsStop != nil {
		m.fsStop()
		<-m.fsDone
	}
	m.stop(context.Canceled)
	m.member.Goodbye(context.Background())
	m.router.Close()
	m.tasks.Wait()
	if err := m.arena.Close(); err != nil {
		// A reader that was hedged or a request that was given up may still hold memory for a moment: the process ends anyway.
		m.cfg.Log.Debug("arena", "err", err)
	}
	return nil
}

// register announces the process until mgmt answers.
func (m *frontend) register(ctx context.Context) error {
	resp, err := m.member.Register(ctx, m.listener.Addrs(), nil)
	if err != nil {
		return err
	}
	if resp.Session == 0 {
		return wire.Errorf("frontend.register", wire.KindRefused, m.cfg.Name, "mgmt gave no session")
	}
	m.router.SetMap(&resp.Map)
	return nil
}

// sessionLife is what the goroutine of the heartbeats knows of the session's lease.
type sessionLife struct {
	sent  time.Time // when the heartbeat under way was
	until time.Time // the session is sure to live
}

// lease gives how long after a heartbeat was sent the session is sure to live: a tenth less than mgmt's clock says.
func lease(ms uint32) time.Duration { return time.Duration(ms) * time.Millisecond * 9 / 10 }

func (m *frontend) beat(req *wire.HeartbeatReq) {
	req.Ready = m.ready.Load()
	if cm := m.router.Map(); cm != nil {
		req.Generation = cm.Generation
	}
	m.life.sent = time.Now()
}

func (m *frontend) answered(_ context.Context, resp *wire.HeartbeatResp) error {
	m.renew(m.life.sent.Add(lease(resp.LeaseMs)))
	return nil
}

// silent lengthens a session that is not over when it is certain that no mgmt runs: while none does nobody ends a session, and
// whichever comes next waits a whole lease before it does.
func (m *frontend) silent(ctx context.Context) {
	if at := time.Now(); at.Before(m.life.until) && away.Refused(ctx, m.cfg.Mgmt) {
		m.renew(at.Add(lease(m.router.Map().LeaseMs)))
	}
}

func (m *frontend) renew(until time.Time) {
	m.life.until = until
	if fs := m.core.Load(); fs != nil {
		fs.Renew(until)
	}
}

// trim gives memory back that a burst has left.
func (m *frontend) trim(ctx context.Context) error {
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
