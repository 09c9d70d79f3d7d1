// Package route keeps the cluster map of a process fresh, finds who owns what, and is the one place for retries.
package route

import (
	"context"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

// Router sends requests to buckets, drives and mgmt by the newest cluster map. All methods are safe for concurrent use.
type Router struct{ impl }

type impl struct{}

// Config configures a Router.
type Config struct {
	Self    rpc.Self
	Mgmt    string      // address of the local mgmt
	Arena   *wire.Arena // where data of answers lands
	Handler rpc.Handler // for requests that come back on connections made here (recalls); may be nil
	// OnMap is called for every new map, in order, from one goroutine; may be nil.
	OnMap func(m *wire.ClusterMap)
	// OnClose is called when a connection made here has ended; may be nil.
	OnClose func(c *rpc.Conn, err error)
}

// New makes a Router without a map; Run it.
func New(c Config) *Router { panic("todo") }

// Run watches mgmt for new maps until ctx ends. Mgmt being away is no error: it tries again for ever, and the last map
// stays in use.
func (r *Router) Run(ctx context.Context) error { panic("todo") }

// SetMap installs a map that came another way (an answer of mgmt, a test) if it is newer.
func (r *Router) SetMap(m *wire.ClusterMap) { panic("todo") }

// Map gives the newest map, never to be changed; nil when there is none yet.
func (r *Router) Map() *wire.ClusterMap { panic("todo") }

// WaitMap waits until the map is at least at generation g (any map for 0).
func (r *Router) WaitMap(ctx context.Context, g wire.Generation) (*wire.ClusterMap, error) { panic("todo") }

// Mgmt asks the local mgmt, once.
func (r *Router) Mgmt(ctx context.Context, call *rpc.Call) error { panic("todo") }

// Bucket asks the owner of a bucket, with the epoch of the map in the header. As long as ctx lives, a retryable error
// (wire.Kind.Retryable: moved, stale epoch, connection lost, unavailable, ...) makes it wait (for a newer map where that
// helps, else 2 ms doubling to 250 ms) and send the same request again. So a mutating request must carry its OpID.
func (r *Router) Bucket(ctx context.Context, b wire.BucketID, call *rpc.Call) error { panic("todo") }

// BucketOnce is Bucket without retries; conn is the connection that was used, or nil.
func (r *Router) BucketOnce(ctx context.Context, b wire.BucketID, call *rpc.Call) (conn *rpc.Conn, err error) {
	panic("todo")
}

// Drive asks the process of a drive, once: the caller knows what else it can do (another replica, reconstruction).
// A drive that the map says is down or failed, or whose process does not accept a connection at once, gives
// KindUnavailable quickly.
func (r *Router) Drive(ctx context.Context, d wire.DriveID, call *rpc.Call) error { panic("todo") }

// DriveUp reports whether the drive is worth asking: up in the map, and not found unreachable in the last moments.
func (r *Router) DriveUp(d wire.DriveID) bool { panic("todo") }

// Close closes all connections.
func (r *Router) Close() { panic("todo") }
