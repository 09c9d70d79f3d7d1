// Package rpc carries requests between processes: one connection for each pair, multiplexed, both sides may ask.
// See doc.go of this package and ../PROTOCOL.md for the bytes.
package rpc

import (
	"context"
	"time"

	"github.com/crakefs/crake/wire"
)

// Self says who this process is, in the handshake.
type Self struct {
	Cluster wire.ClusterID // zero: not known yet (a tool; accepted only where Options.AnyCluster)
	Role    wire.Role
	Proc    wire.ProcID
	Version string // of the software
}

// Handler answers requests. It runs in a goroutine of its own for each request, at most Options.MaxHandlers at once.
// ctx ends at the request's deadline, when the asker cancels or when the connection breaks. The handler owns req.Data
// (and must release it) and gives away data. An error that is a *wire.Error travels as it is; any other as KindOther.
type Handler func(ctx context.Context, req *Request) (resp wire.Message, data wire.Data, err error)

// Request is a request as it arrived.
type Request struct {
	Conn   *Conn       // asked on; a handler may ask back on it
	Header wire.Header // as sent: method, epoch, generation, trace
	Meta   []byte      // encoded message; valid until the handler returns
	Data   wire.Data   // the handler owns it
}

// Options configure connections and listeners. Zero values mean the defaults.
type Options struct {
	Self        Self
	Arena       *wire.Arena // data sections land here
	Handler     Handler     // nil: every request of the peer is refused
	AnyCluster  bool        // accept peers of no cluster (mgmt does, from tools)
	MaxHandlers int         // handlers at once on one connection; default 256
	DialTimeout time.Duration
	// OnClose is called once when a connection has ended, after the last handler returned.
	OnClose func(c *Conn, err error)
	// Generation is called for each frame sent, to fill the header; nil is 0.
	Generation func() wire.Generation
	// OnGeneration is called when a peer's frame carries a newer generation than Generation gives; must not block.
	OnGeneration func(g wire.Generation)
}

// Call is one request and its answer.
type Call struct {
	Method wire.Method
	Epoch  wire.Epoch
	Trace  uint64
	Req    wire.Message // nil: no meta
	// Data is borrowed: the caller keeps its references, and keeps the bytes unchanged until Do returns. (Do takes
	// references of its own where it needs them longer.)
	Data wire.Data
	Resp wire.Message // decoded into; nil: ignored
	// RespData is the data section of the answer; the caller owns it.
	RespData wire.Data
}

// Conn is an authenticated connection to one peer. All methods are safe for concurrent use.
type Conn struct{ impl }

type impl struct{}

// Peer tells who is at the other end.
func (c *Conn) Peer() Self { panic("todo") }

// Do sends a request and waits for the answer. The ctx deadline travels; without one, 60 s. Errors: what the peer
// answered (*wire.Error), KindConnLost (it may have had an effect), KindTimeout (same), KindInterrupted when ctx was
// cancelled (a cancel frame has been sent).
func (c *Conn) Do(ctx context.Context, call *Call) error { panic("todo") }

// Close ends the connection; calls under way fail with KindConnLost.
func (c *Conn) Close() error { panic("todo") }

// Done is closed when the connection has ended.
func (c *Conn) Done() <-chan struct{} { panic("todo") }

// Err tells why it ended.
func (c *Conn) Err() error { panic("todo") }

// Dial connects to an address: "unix:/path", "tcp:host:port" or "mem:name" (see Mem).
func Dial(ctx context.Context, addr string, o Options) (*Conn, error) { panic("todo") }

// Listener accepts connections.
type Listener struct{}

// Listen starts to listen; a stale unix socket file of a dead process is replaced, a live one gives an error.
func Listen(addr string, o Options) (*Listener, error) { panic("todo") }

// Addr gives the address, with the real port when 0 was asked for.
func (l *Listener) Addr() string { panic("todo") }

// Serve accepts and answers until ctx ends, then closes all connections and waits for their handlers.
func (l *Listener) Serve(ctx context.Context) error { panic("todo") }

// Pool keeps one connection for each address in use and redials when one has ended.
type Pool struct{}

// NewPool makes a pool; all connections share o.
func NewPool(o Options) *Pool { panic("todo") }

// Get gives the live connection to one of addrs (best first), dialling when there is none. Concurrent callers share a dial; a
// failed dial is remembered for a short time (backoff), so that a dead peer costs little.
func (p *Pool) Get(ctx context.Context, addrs []string) (*Conn, error) { panic("todo") }

// Close closes all connections.
func (p *Pool) Close() { panic("todo") }
