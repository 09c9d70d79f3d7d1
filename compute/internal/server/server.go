// Package server answers the requests of a compute process: it checks who asks, finds the bucket, runs the operation in
// it, and checks again before it answers.
package server

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/crakefs/crake/compute/internal/meta"
	"github.com/crakefs/crake/compute/internal/own"
	"github.com/crakefs/crake/compute/internal/session"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/route"
	"github.com/crakefs/crake/wire/rpc"
)

// Config configures a Server; all fields are required but Log.
type Config struct {
	Owner    *own.Owner
	Sessions *session.Tracker
	Lease    *own.Lease
	Router   *route.Router
	Log      *slog.Logger
}

// Server answers requests. Handle is safe for concurrent use.
type Server struct {
	c       Config
	methods map[wire.Method]method
	stat    stat
	bg      sync.WaitGroup // refreshes of stat
}

// New makes a server.
func New(c Config) *Server {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	s := &Server{c: c}
	s.methods = s.table()
	return s
}

// Wait waits for what the server does in the background. Preconditions: no request comes any more.
func (s *Server) Wait() { s.bg.Wait() }

// caller says who may ask for a method.
type caller uint8

const (
	byFrontend caller = 1 << iota
	byCompute
	byMgmt   // and tools
	byAnyone = byFrontend | byCompute | byMgmt
)

func callerOf(r wire.Role) caller {
	switch r {
	case wire.RoleFrontend:
		return byFrontend
	case wire.RoleCompute:
		return byCompute
	case wire.RoleMgmt, wire.RoleClient:
		return byMgmt
	}
	return 0
}

// method says how a request is answered.
type method struct {
	by caller
	// free: it is answered without the right to serve (the state of a bucket, for people).
	free bool
	run  func(ctx context.Context, req *rpc.Request) (wire.Message, error)
}

// call is one request in a bucket.
type call struct {
	// ctx ends at the request's deadline, when the bucket is to be closed or the session is dead, but not when the asker
	// goes away: a mutation is done or not done, and its reply recorded.
	ctx context.Context
	// peer is the ctx of the connection: it ends when the asker cancels. For waits only.
	peer    context.Context
	bucket  *own.Bucket
	db      *meta.Bucket
	session wire.SessionID
	data    wire.Data // borrowed
}

// Handle is the rpc.Handler of the process.
func (s *Server) Handle(ctx context.Context, req *rpc.Request) (wire.Message, wire.Data, error) {
	defer req.Data.Release()
	m, ok := s.methods[req.Header.Method]
	if !ok {
		return nil, nil, wire.Errorf("compute", wire.KindVersion, "", "method %#x", uint16(req.Header.Method))
	}
	if role := req.Conn.Peer().Role; m.by&callerOf(role) == 0 {
		return nil, nil, wire.Errorf("compute", wire.KindPermission, "", "method %#x is not for a %v", uint16(req.Header.Method), role)
	}
	if m.free {
		resp, err := m.run(ctx, req)
		return resp, nil, err
	}
	if !s.c.Lease.Valid() {
		return nil, nil, fenced()
	}
	if err := s.c.Sessions.Wait(ctx, req.Header.Generation); err != nil {
		return nil, nil, err
	}
	resp, err := m.run(ctx, req)
	if !s.c.Lease.Valid() {
		// It was done, perhaps, but another process may own the bucket by now and may have gone on from another state: only
		// it can tell how things are, errors (no such name) too.
		return nil, nil, fenced()
	}
	return resp, nil, err
}

func fenced() error {
	return wire.Errorf("compute", wire.KindUnavailable, "", "no heartbeat was answered in time, so this process may not serve")
}

// where tells what a request is about.
type where[Q any] func(*Q) (wire.BucketID, wire.SessionID)

// inBucket makes a method that runs in a serving bucket, for a session unless where gives 0.
func inBucket[Q any, PQ interface {
	*Q
	wire.Message
}](s *Server, by caller, use own.Use, w where[Q], do func(c *call, q *Q) (wire.Message, error)) method {
	return method{by: by, run: func(ctx context.Context, req *rpc.Request) (wire.Message, error) {
		q := new(Q)
		if err := PQ(q).Decode(req.Meta); err != nil {
			return nil, err
		}
		id, sess := w(q)
		c := &call{peer: ctx, session: sess, data: req.Data}
		alive := context.Background()
		if by == byFrontend {
			tok, err := s.c.Sessions.Begin(sess, req.Conn.Peer().Proc, req.Conn)
			if err != nil {
				return nil, err
			}
			defer tok.End()
			alive = tok.Ctx()
		}
		b, err := s.bucket(id, req.Header.Epoch)
		if err != nil {
			return nil, err
		}
		c.bucket = b
		if use == 0 {
			return do(c, q)
		}
		bctx, db, err := b.Enter(use)
		if err != nil {
			return nil, err
		}
		defer b.Leave()
		deadline, ok := ctx.Deadline()
		if !ok {
			deadline = time.Now().Add(defaultDeadline)
		}
		op := &opCtx{bucket: bctx, session: alive, deadline: deadline}
		defer op.end()
		c.ctx = op
		c.db = db
		resp, err := do(c, q)
		switch {
		case b.Lost():
			// As for the lease in Handle.
			return nil, wire.E("compute", wire.KindMoved, fmt.Sprint(id), nil)
		case err != nil && op.Err() == context.Canceled && wire.KindOf(err) == wire.KindInterrupted:
			// The bucket closes, or the session is dead (and asks no more). The next owner knows whether it was done.
			return nil, wire.E("compute", wire.KindUnavailable, fmt.Sprint(id), err)
		}
		return resp, err
	}}
}

// bucket finds a bucket that this process owns under the epoch that the sender believes in.
func (s *Server) bucket(id wire.BucketID, epoch wire.Epoch) (*own.Bucket, error) {
	b := s.c.Owner.Bucket(id)
	if b == nil {
		return nil, wire.E("compute", wire.KindMoved, fmt.Sprint(id), nil)
	}
	if b.Epoch != epoch {
		return nil, wire.Errorf("compute", wire.KindMoved, fmt.Sprint(id), "epoch %d here, asked for %d", b.Epoch, epoch)
	}
	return b, nil
}
