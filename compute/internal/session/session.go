// Package session knows which sessions are alive, on which connection each is reached, and which requests of each run.
//
// Together they make the barrier of generations: once a request of another session says that it has seen a map in which
// a session is gone, no request of the gone session has an effect any more. So Mark refuses new requests at once, Drain
// waits for those that run, and only then counts the map as applied; Begin makes a request wait until the map it has
// seen is applied here too.
package session

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

// MaxBarrierWait bounds the wait of a request for a map that it has seen and we have not: a map comes within
// milliseconds; a barrier waits for requests that run. Past it: KindStaleGeneration, and the sender asks again.
const MaxBarrierWait = 5 * time.Second

// Conn is the connection of a session: *rpc.Conn.
type Conn interface {
	Do(ctx context.Context, call *rpc.Call) error
	Done() <-chan struct{}
}

// Hooks are what ends with a session.
type Hooks struct {
	// Cancel fails what waits on behalf of the session; called as soon as the map lacks it. Must not block.
	Cancel func(wire.SessionID)
	// Ended drops what the session holds; called once no request of it runs any more.
	Ended func(wire.SessionID)
}

// Tracker follows the sessions of the map. All methods are safe for concurrent use.
type Tracker struct {
	hooks Hooks

	mu       sync.Mutex
	marked   wire.Generation // newest map seen
	applied  wire.Generation // newest map of which all gone sessions are drained
	changed  chan struct{}   // closed and replaced when applied rises
	sessions map[wire.SessionID]*state
	ended    []*state      // gone from the map, not yet drained
	work     chan struct{} // wakes Run; capacity 1
}

type state struct {
	id       wire.SessionID
	proc     wire.ProcID
	conn     Conn
	connNews chan struct{}   // closed and replaced when conn changes or the session ends
	ctx      context.Context // ends with the session
	cancel   context.CancelFunc
	running  int
	ended    bool
	idle     chan struct{} // closed when ended and nothing runs
}

// New makes a tracker without sessions; Run it.
func New(h Hooks) *Tracker {
	return &Tracker{
		hooks: h, changed: make(chan struct{}), sessions: map[wire.SessionID]*state{}, work: make(chan struct{}, 1),
	}
}

// Mark takes note of a new map: requests of sessions that it lacks are refused from now on.
func (t *Tracker) Mark(m *wire.ClusterMap) {
	t.mu.Lock()
	if m.Generation <= t.marked {
		t.mu.Unlock()
		return
	}
	t.marked = m.Generation
	alive := make(map[wire.SessionID]bool, len(m.Sessions))
	for _, s := range m.Sessions {
		alive[s.ID] = true
		if t.sessions[s.ID] == nil {
			n := &state{id: s.ID, proc: s.Proc, connNews: make(chan struct{}), idle: make(chan struct{})}
			n.ctx, n.cancel = context.WithCancel(context.Background())
			t.sessions[s.ID] = n
		}
	}
	var gone []wire.SessionID
	for id, s := range t.sessions {
		if alive[id] {
			continue
		}
		delete(t.sessions, id)
		s.ended = true
		s.cancel()
		close(s.connNews)
		if s.running == 0 {
			close(s.idle)
		}
		t.ended = append(t.ended, s)
		gone = append(gone, id)
	}
	t.mu.Unlock()
	for _, id := range gone {
		if t.hooks.Cancel != nil {
			t.hooks.Cancel(id)
		}
	}
	select {
	case t.work <- struct{}{}:
	default:
	}
}

// Run drains the sessions that are gone, until ctx ends.
func (t *Tracker) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.work:
		}
		t.mu.Lock()
		gen, ended := t.marked, t.ended
		t.ended = nil
		t.mu.Unlock()
		for _, s := range ended {
			select {
			case <-s.idle:
			case <-ctx.Done():
				return nil
			}
			if t.hooks.Ended != nil {
				t.hooks.Ended(s.id)
			}
		}
		t.mu.Lock()
		t.applied = gen
		close(t.changed)
		t.changed = make(chan struct{})
		t.mu.Unlock()
	}
}

// Wait waits until the map of generation g is applied here, at most MaxBarrierWait: KindStaleGeneration.
func (t *Tracker) Wait(ctx context.Context, g wire.Generation) error {
	t.mu.Lock()
	if g <= t.applied {
		t.mu.Unlock()
		return nil
	}
	timer := time.NewTimer(MaxBarrierWait)
	defer timer.Stop()
	for g > t.applied {
		changed, have := t.changed, t.applied
		t.mu.Unlock()
		select {
		case <-changed:
		case <-timer.C:
			return wire.Errorf("session.barrier", wire.KindStaleGeneration, "", "map %d is not here yet, have %d", g, have)
		case <-ctx.Done():
			return wire.Errorf("session.barrier", wire.KindStaleGeneration, "", "map %d is not here yet, have %d: %w", g, have, ctx.Err())
		}
		t.mu.Lock()
	}
	t.mu.Unlock()
	return nil
}

// Token is a request of a session that runs; End it.
type Token struct {
	t *Tracker
	s *state
}

// Begin starts a request of a session, which came on conn from process proc. The caller has waited for the request's
// generation. Errors: KindStaleSession, KindPermission (the session belongs to another process).
func (t *Tracker) Begin(id wire.SessionID, proc wire.ProcID, conn Conn) (Token, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.sessions[id]
	if s == nil {
		return Token{}, wire.Errorf("session.begin", wire.KindStaleSession, fmt.Sprint(id), "not alive in map %d", t.marked)
	}
	if s.proc != proc {
		return Token{}, wire.Errorf("session.begin", wire.KindPermission, fmt.Sprint(id), "belongs to process %d, not %d", s.proc, proc)
	}
	if s.conn != conn {
		s.conn = conn
		close(s.connNews)
		s.connNews = make(chan struct{})
	}
	s.running++
	return Token{t, s}, nil
}

// Ctx ends when the session does: a request of a dead session gives up, because the barrier waits for it.
func (r Token) Ctx() context.Context { return r.s.ctx }

// End ends the request.
func (r Token) End() {
	r.t.mu.Lock()
	defer r.t.mu.Unlock()
	if r.s.running--; r.s.running == 0 && r.s.ended {
		close(r.s.idle)
	}
}

// Alive reports whether the session may still change things. Session 0, nobody's, always may.
func (t *Tracker) Alive(id wire.SessionID) bool {
	if id == 0 {
		return true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.sessions[id] != nil
}

// Recall asks the session to reduce a lease, on the connection that its newest request came on. Without a live one it
// waits for the session to come back, until ctx ends.
func (t *Tracker) Recall(ctx context.Context, req *wire.RecallReq) error {
	for {
		t.mu.Lock()
		s := t.sessions[req.Session]
		if s == nil {
			t.mu.Unlock()
			return wire.E("session.recall", wire.KindStaleSession, fmt.Sprint(req.Session), nil)
		}
		conn, news := s.conn, s.connNews
		t.mu.Unlock()
		if conn != nil {
			select {
			case <-conn.Done():
			default:
				return conn.Do(ctx, &rpc.Call{Method: wire.MRecall, Req: req, Resp: &wire.RecallResp{}})
			}
		}
		select {
		case <-news:
		case <-ctx.Done():
			return wire.Errorf("session.recall", wire.KindConnLost, fmt.Sprint(req.Session), "the session has no connection here")
		}
	}
}
