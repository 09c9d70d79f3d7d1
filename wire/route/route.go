package route

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/capture"
	"github.com/crakefs/crake/wire/identity"
	"github.com/crakefs/crake/wire/rpc"
)

// Config configures a Router.
type Config struct {
	Self rpc.Self
	Mgmt string // address of the local mgmt
	// Wire says how to speak with processes of this server.
	Wire Wire
	// Server is this process's server, where the map does not tell because it does not name the process (mgmt); 0 else.
	Server  wire.ServerID
	Arena   *wire.Arena // where data of answers lands
	Handler rpc.Handler // for requests that come back on connections made here (recalls); may be nil
	// OnMap is called for every new map, in order, from one goroutine at a time; may be nil.
	OnMap func(m *wire.ClusterMap)
	// OnClose is called when a connection made here has ended; may be nil.
	OnClose func(c *rpc.Conn, err error)
	// Identity is what this process proves itself with (see rpc.Options); nil in tests. Whom it connects to must then be in the map.
	Identity *identity.Identity
	// TLS encrypts connections over TCP, those made and those taken.
	TLS bool
	// Net is the network of "mem:" addresses; nil where none is used.
	Net *rpc.Mem
	// Capture is as in rpc.Options.
	Capture *capture.Tap
	// Log gets events; nil is slog.Default().
	Log *slog.Logger
}

// Router sends requests to buckets, drives and mgmt by the newest cluster map. All methods are safe for concurrent use.
type Router struct {
	// immutable
	c    Config
	pool *rpc.Pool
	kick chan struct{} // capacity 1: a newer map than ours is known to exist

	index atomic.Pointer[index] // of the newest map; nil before the first

	setMu sync.Mutex // orders SetMap and OnMap

	mu        sync.Mutex
	changed   chan struct{} // closed at every new map, and made anew
	away      map[wire.ProcID]time.Time
	listeners []*rpc.Listener // only grows
}

// New makes a Router without a map; Run it.
func New(c Config) *Router {
	r := &Router{c: c, kick: make(chan struct{}, 1), changed: make(chan struct{}), away: map[wire.ProcID]time.Time{}}
	o := r.options()
	o.Handler, o.OnClose = c.Handler, c.OnClose
	r.pool = rpc.NewPool(o)
	return r
}

// options gives what all connections of the process have in common, made or taken.
func (r *Router) options() rpc.Options {
	return rpc.Options{
		Self: r.c.Self, Arena: r.c.Arena, Net: r.c.Net, Log: r.c.Log,
		Identity: r.c.Identity, Admit: r.Admit, TLS: r.c.TLS, Capture: r.c.Capture, Shm: r.c.Wire.shm() && r.c.Arena != nil, ShmWith: r.SameServer,
		Generation: r.generation, OnGeneration: func(wire.Generation) { r.refresh() },
	}
}

// Close closes all connections that were made. Those that were taken end with Listener.Serve.
func (r *Router) Close() { r.pool.Close() }

// Mgmt asks the local mgmt, once.
func (r *Router) Mgmt(ctx context.Context, call *rpc.Call) error {
	c, err := r.pool.Get(ctx, []string{r.c.Mgmt})
	if err == nil {
		err = expect(c, wire.RoleMgmt, 0)
	}
	if err != nil {
		return err
	}
	return c.Do(ctx, call)
}
