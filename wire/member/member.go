package member

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/procfs"
	"github.com/crakefs/crake/wire/rpc"
)

// Config says who the process is, how it reaches mgmt, and what its role does of its own. Required: Self, Name, Ask.
type Config struct {
	Self  rpc.Self // role, slot and version
	Name  string   // unique in the cluster, such as "compute0"
	Cores []uint32 // that it is pinned to; empty when it is not
	// Ask asks the local mgmt once; route.Router.Mgmt is one.
	Ask func(ctx context.Context, call *rpc.Call) error
	// Arena is the process's memory for data, and Conns gives its connections: heartbeats tell of both. They may be nil.
	Arena *wire.Arena
	Conns func() []*rpc.Conn
	// HeartbeatTimeout bounds one heartbeat; 0 is 2 s.
	HeartbeatTimeout time.Duration
	// Log gets events; nil is slog.Default().
	Log *slog.Logger

	// Beat adds what the role tells with the heartbeat that is sent next; who and how large the process is stand in it. What a
	// lease is counted from is the clock as it is now. May be nil.
	Beat func(req *wire.HeartbeatReq)
	// Answered acts on an answer, within the time of the heartbeat: ctx. Its error makes the answer count as silence. May be nil.
	Answered func(ctx context.Context, resp *wire.HeartbeatResp) error
	// Silent is called after a heartbeat that was not answered. May be nil.
	Silent func(ctx context.Context)
	// Check is called after each heartbeat, answered or not; its error ends the life. May be nil.
	Check func(ctx context.Context) error
}

// Member is one run of a process as a member of the cluster. Kick, Event and BadStrip may be called at any time by any goroutine.
type Member struct {
	cfg  Config
	log  *slog.Logger
	kick chan struct{} // a heartbeat is due at once; capacity 1

	events  chan *wire.EventReq
	dropped atomic.Uint64 // events, since it was last logged

	// Of the registration; set by Register, before what reads them starts.
	incarnation wire.Incarnation
	session     wire.SessionID
}

// New makes a member that has not registered.
func New(cfg Config) *Member {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.HeartbeatTimeout == 0 {
		cfg.HeartbeatTimeout = heartbeatTimeout
	}
	return &Member{cfg: cfg, log: cfg.Log, kick: make(chan struct{}, 1), events: make(chan *wire.EventReq, maxEvents)}
}

// Session gives the session that a frontend was registered with.
func (m *Member) Session() wire.SessionID { return m.session }

// Register announces the process, which listens at addrs and has the drives open, until mgmt answers. Errors: what mgmt refuses with
// (KindRefused, KindVersion, KindAuthentication), and ctx's.
func (m *Member) Register(ctx context.Context, addrs []string, drives []wire.DriveInfo) (*wire.RegisterResp, error) {
	self := &m.cfg.Self
	req := &wire.RegisterReq{
		Proc: self.Proc, Role: self.Role, PID: uint32(os.Getpid()), Name: m.cfg.Name, Version: self.Version,
		Addrs: addrs, Drives: drives, Cores: m.cfg.Cores,
	}
	for pause := registerRetryMin; ; pause = min(2*pause, registerRetryMax) {
		resp := &wire.RegisterResp{}
		err := m.ask(ctx, registerTimeout, wire.MRegister, req, resp)
		switch {
		case err == nil:
			m.incarnation, m.session = resp.Incarnation, resp.Session
			m.log.Info("registered", "name", m.cfg.Name, "proc", self.Proc, "incarnation", m.incarnation, "session", m.session,
				"generation", resp.Map.Generation)
			return resp, nil
		case errors.Is(err, wire.KindRefused), errors.Is(err, wire.KindVersion), errors.Is(err, wire.KindAuthentication):
			return nil, err
		}
		wait(ctx, pause, nil)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
}

// Kick makes a heartbeat go out at once; it does not wait.
func (m *Member) Kick() {
	select {
	case m.kick <- struct{}{}:
	default:
	}
}

// Heartbeats tells mgmt that the process lives, until ctx ends (nil), mgmt says that this run is over (KindStaleSession, KindRefused) or
// Config.Check fails.
// Preconditions: Register has succeeded.
func (m *Member) Heartbeats(ctx context.Context) error {
	quiet := false // the silence has been logged
	for {
		err := m.Heartbeat(ctx)
		pause := heartbeatEvery
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, wire.KindStaleSession), errors.Is(err, wire.KindRefused):
			return err
		case err != nil:
			if !quiet {
				m.log.Warn("mgmt does not answer heartbeats", "err", err)
			}
			quiet, pause = true, heartbeatRetry
			if m.cfg.Silent != nil {
				m.cfg.Silent(ctx)
			}
		case quiet:
			m.log.Info("mgmt answers heartbeats again")
			quiet = false
		}
		if m.cfg.Check != nil {
			if err := m.cfg.Check(ctx); err != nil {
				return err
			}
		}
		if err == nil {
			wait(ctx, heartbeatGap, nil)
		}
		wait(ctx, pause, m.kick)
	}
}

// Heartbeat sends one. It is called by Heartbeats, and by Config.Check when something must be told before the end.
func (m *Member) Heartbeat(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.HeartbeatTimeout)
	defer cancel()
	req := &wire.HeartbeatReq{
		Proc: m.cfg.Self.Proc, Incarnation: m.incarnation, Session: m.session, RSSBytes: procfs.RSS(os.Getpid()), Ready: true,
	}
	if m.cfg.Arena != nil {
		st := m.cfg.Arena.Stats()
		req.Arena = wire.ArenaReport{
			Bytes: uint64(st.Size), Used: uint64(st.Used), Lent: uint64(st.Lent), Quarantined: uint64(st.Quarantined),
		}
	}
	if m.cfg.Conns != nil {
		req.Links = links(m.cfg.Conns())
	}
	if m.cfg.Beat != nil {
		m.cfg.Beat(req)
	}
	var resp wire.HeartbeatResp
	if err := m.cfg.Ask(ctx, &rpc.Call{Method: wire.MHeartbeat, Req: req, Resp: &resp}); err != nil {
		return err
	}
	if m.cfg.Answered != nil {
		return m.cfg.Answered(ctx, &resp)
	}
	return nil
}

// Goodbye tells mgmt that this run holds nothing any more; nothing if it has not registered. Ctx is not of the process's life,
// which is over.
func (m *Member) Goodbye(ctx context.Context) {
	if m.incarnation == 0 {
		return // mgmt does not know us
	}
	req := &wire.GoodbyeReq{Proc: m.cfg.Self.Proc, Incarnation: m.incarnation}
	if err := m.ask(ctx, goodbyeTimeout, wire.MGoodbye, req, &wire.Empty{}); err != nil {
		m.log.Info("mgmt did not take the goodbye", "err", err)
	}
}

// ask sends a request to mgmt, once.
func (m *Member) ask(ctx context.Context, timeout time.Duration, method wire.Method, req, resp wire.Message) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return m.cfg.Ask(ctx, &rpc.Call{Method: method, Req: req, Resp: resp})
}

// wait waits for d, the end of ctx, or wake.
func wait(ctx context.Context, d time.Duration, wake <-chan struct{}) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-wake:
	case <-ctx.Done():
	}
}
