package compute

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"

	"github.com/crakefs/crake/compute/internal/lease"
	"github.com/crakefs/crake/compute/internal/own"
	"github.com/crakefs/crake/compute/internal/server"
	"github.com/crakefs/crake/compute/internal/session"
	"github.com/crakefs/crake/compute/internal/store"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/identity"
	"github.com/crakefs/crake/wire/member"
	"github.com/crakefs/crake/wire/route"
	"github.com/crakefs/crake/wire/rpc"
)

// process is all of one run.
type process struct {
	cfg    Config
	log    *slog.Logger
	arena  *wire.Arena
	router *route.Router
	store  *store.Store
	owner  *own.Owner
	sess   *session.Tracker
	lease  *own.Lease
	server *server.Server
	cache  *pebble.Cache
	files  *pebble.FileCache

	listener *route.Listener
	stopping atomic.Bool
	member   *member.Member
	leaser   leaser // of the goroutine that sends heartbeats
}

// Run runs a compute process until ctx ends (an orderly stop: nil) or it must not go on: mgmt runs a newer incarnation
// (KindStaleSession), refuses it (KindRefused), or it cannot listen. It returns when all that it started has ended.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	p, err := newProcess(cfg)
	if err != nil {
		return err
	}
	defer p.free()
	return p.run(ctx)
}

func newProcess(cfg Config) (*process, error) {
	if cfg.Arena == 0 {
		cfg.Arena = defaultArenaBytes
	}
	if cfg.Memory == 0 {
		cfg.Memory = defaultMemoryBytes
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	id, err := identity.LoadIf(cfg.Identity)
	if err != nil {
		return nil, err
	}
	p := &process{cfg: cfg, log: cfg.Log, lease: own.NewLease(own.BootClock)}
	p.leaser.p = p
	if p.arena, err = wire.NewArena(int(cfg.Arena)); err != nil {
		return nil, fmt.Errorf("arena of %d bytes: %w", cfg.Arena, err)
	}
	cacheBytes, _ := cfg.memory(1)
	p.cache = pebble.NewCache(cacheBytes)
	p.files = pebble.NewFileCache(1, fileCacheFiles)
	self := rpc.Self{Cluster: cfg.Cluster, Role: wire.RoleCompute, Proc: cfg.Proc, Version: cfg.Version}
	p.router = route.New(route.Config{
		Self: self, Mgmt: cfg.Mgmt, Wire: cfg.Wire, Identity: id, TLS: cfg.Encrypt, Arena: p.arena, Handler: p.handle, OnMap: p.onMap, Net: cfg.Net, Log: cfg.Log,
		Capture: cfg.Capture,
	})
	p.member = p.newMember(self)
	p.store = store.New(store.Config{
		Ask: p.router.Drive, Up: p.router.DriveUp, Map: p.router.Map, Arena: p.arena, Report: p.member.BadStrip, Log: cfg.Log,
	})
	p.sess = session.New(session.Hooks{
		Cancel: func(s wire.SessionID) { p.owner.CancelSession(s) },
		Ended:  func(s wire.SessionID) { p.owner.EndSession(s) },
	})
	p.owner = own.New(own.Config{
		Proc: cfg.Proc, Open: p.openBucket, Peer: peer{p}, Log: cfg.Log, Leases: lease.Config{}, Changed: p.member.Kick, Alive: p.sess.Alive,
		Deposed: func(err error) bool { return errors.Is(err, wire.KindStaleEpoch) },
	})
	p.server = server.New(server.Config{
		Owner: p.owner, Sessions: p.sess, Lease: p.lease, Router: p.router, Log: cfg.Log,
	})
	if p.listener, err = p.router.Listen(cfg.Listen, rpc.Options{Handler: p.handle, MaxHandlers: server.MaxHandlers}); err != nil {
		p.free()
		return nil, err
	}
	return p, nil
}

// free gives back what newProcess took. Preconditions: nothing of it runs.
func (p *process) free() {
	p.router.Close()
	p.files.Unref()
	p.cache.Unref()
	if err := p.arena.Close(); err != nil {
		p.log.Warn("memory for data was not given back", "err", err)
	}
}

func (p *process) run(ctx context.Context) error {
	// What serves goes on while buckets are closed; so it does not end with ctx but with inner.
	inner, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var wg sync.WaitGroup
	failed := make(chan error, 2)
	wg.Go(func() {
		if err := p.listener.Serve(inner); err != nil && inner.Err() == nil {
			failed <- err
		}
	})
	err := p.register(ctx)
	if err == nil {
		wg.Go(func() { _ = p.router.Run(inner) }) // these four always give nil
		wg.Go(func() { _ = p.store.Run(inner) })
		wg.Go(func() { _ = p.sess.Run(inner) })
		wg.Go(func() { _ = p.member.SendEvents(inner) })
		wg.Go(func() {
			if err := p.heartbeats(inner); err != nil {
				failed <- err
			}
		})
		select {
		case <-ctx.Done():
		case err = <-failed:
			p.lease.End()
		}
		p.log.Info("compute stops", "name", p.cfg.Name, "err", err)
		p.stopping.Store(true)
		p.owner.Close()
		if err == nil {
			p.member.Goodbye(inner)
		}
	}
	stop()
	wg.Wait()
	p.server.Wait()
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}

// handle answers all requests, on whichever connection they come.
func (p *process) handle(ctx context.Context, req *rpc.Request) (wire.Message, wire.Data, error) {
	if p.stopping.Load() {
		req.Data.Release()
		return nil, nil, wire.E("compute", wire.KindShutdown, p.cfg.Name, nil)
	}
	return p.server.Handle(ctx, req)
}

// onMap acts on a new map, in this order: sessions that it lacks may do nothing any more, then buckets come and go.
func (p *process) onMap(m *wire.ClusterMap) {
	p.sess.Mark(m)
	p.owner.SetMap(m)
}

// peer reaches sessions and mgmt for lease managers.
type peer struct{ p *process }

// Recall implements lease.Peer.
func (x peer) Recall(ctx context.Context, req *wire.RecallReq) error {
	return x.p.sess.Recall(ctx, req)
}

// Evict implements lease.Peer.
func (x peer) Evict(ctx context.Context, s wire.SessionID, reason string) error {
	return x.p.router.Mgmt(ctx, &rpc.Call{Method: wire.MEvict, Req: &wire.EvictReq{Session: s, Reason: reason}, Resp: &wire.Empty{}})
}
