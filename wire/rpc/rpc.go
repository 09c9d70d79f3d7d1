package rpc

import (
	"context"
	"log/slog"
	"time"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/capture"
	"github.com/crakefs/crake/wire/identity"
)

// Self says who this process is, in the handshake.
type Self struct {
	Cluster wire.ClusterID // zero: not known yet (a tool; accepted only where Options.AnyCluster)
	Role    wire.Role
	Proc    wire.ProcID
	Version string // of the software
}

// Handler answers requests. It runs in a goroutine of its own for each request, at most Options.MaxHandlers at once.
// ctx ends at the request's deadline, when the asker cancels or when the connection breaks; neither it nor req may be used when the
// handler has returned (what was derived from ctx may). The handler owns req.Data
// (and must release it) and gives away data. An error that is a *wire.Error travels as it is; any other as KindOther.
type Handler func(ctx context.Context, req *Request) (resp wire.Message, data wire.Data, err error)

// Request is a request as it arrived.
type Request struct {
	Conn   *Conn       // asked on; a handler may ask back on it
	Header wire.Header // as sent: method, epoch, generation, trace
	Meta   []byte      // encoded message; valid until the handler returns, or Answer
	Data   wire.Data   // the handler owns it, or who took the request

	books *served // what it is a part of
}

// Options configure connections and listeners. Zero values mean the defaults.
type Options struct {
	Self    Self
	Arena   *wire.Arena // data sections land here
	Handler Handler     // nil: every request of the peer is refused
	// Start, if not nil, is offered each request before Handler, in the connection's reading goroutine; so it must not block.
	// True: it has taken the request (and its Data) and will call req.Answer exactly once, at once or later, from any
	// goroutine; ctx, req and req.Meta are valid until then, and the connection is not over before. False: it has done nothing, and
	// Handler gets the request. MaxHandlers does not count what is taken; the peer's window bounds it. Not offered while the answers
	// of the connection back up. A ctx whose Done is not asked for costs nothing.
	Start func(ctx context.Context, req *Request) bool
	// Kick, if not nil, is called in the reading goroutine after Start has taken requests and no further frame is at hand:
	// what Start has queued should begin now. It must not block. It may be called while calls of other connections' Start are under way.
	Kick func()
	// AnyCluster makes a listener accept peers of no cluster, and of role client without proof: tools. Only for a unix socket, which its
	// user alone can open (mgmt's).
	AnyCluster bool
	// Identity, if not nil, is what this process proves itself with; it then refuses peers that prove nothing. Nil takes anybody (tests).
	Identity *identity.Identity
	// Admit decides whether a peer that has proved to be what it said, by the certificate named key, may connect. It may wait, as long as
	// ctx lives (2 s), and must be safe for concurrent use. Its error, which should have KindRefused or KindUnavailable, is told to the
	// peer. Nil admits all. It is not asked about peers without proof.
	Admit func(ctx context.Context, peer Self, key wire.ProcKey) error
	// TLS encrypts "tcp:" connections with the certificates of the identities, which must be there. Both sides must have it or not.
	TLS         bool
	MaxHandlers int // handlers at once on one connection; default 256
	DialTimeout time.Duration
	// OnClose is called once when a connection has ended, after the last handler returned and all that Start took is answered.
	OnClose func(c *Conn, err error)
	// Generation is called for each frame sent, to fill the header; nil is 0.
	Generation func() wire.Generation
	// OnGeneration is called when a peer's frame carries a newer generation than Generation gives; must not block.
	OnGeneration func(g wire.Generation)
	// Net is the network of "mem:" addresses; nil where none is used.
	Net *Mem
	// Shm lets data pass by reference on unix connections whose peer wants it too: it stays in the sender's arena, which the receiver has
	// mapped, and read only: who writes to data that has arrived ends in a fault. Needs an Arena. Without effect on other transports.
	Shm bool
	// ShmWith says whether data may pass by reference to and from this peer, which must be a process of the same server that is trusted;
	// nil is any. It is asked once, after the handshake.
	ShmWith func(peer Self) bool
	// Capture is where people can look at the frames; nil: nowhere.
	Capture *capture.Tap
	// Log gets events (a peer dropped, a handshake refused); nil is slog.Default().
	Log *slog.Logger
}

func (o *Options) logger() *slog.Logger {
	if o.Log != nil {
		return o.Log
	}
	return slog.Default()
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
