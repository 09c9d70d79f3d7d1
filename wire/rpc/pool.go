package rpc

import (
	"context"
	"sync"
	"time"

	"github.com/crakefs/crake/wire"
)

// Backoff of failed dials: a dead peer costs one dial in this time, and comes back at most this late.
const (
	minRedial = 10 * time.Millisecond
	maxRedial = 200 * time.Millisecond
)

// Pool keeps one connection for each address in use and redials when one has ended.
type Pool struct {
	o      Options
	ctx    context.Context // ends dials when the pool is closed
	cancel context.CancelFunc

	mu     sync.Mutex
	peers  map[string]*poolPeer
	closed bool
	dials  sync.WaitGroup
}

// poolPeer is the state of one address, guarded by Pool.mu.
type poolPeer struct {
	conn    *Conn
	dialing chan struct{} // closed when the dial under way is over; nil: none
	err     error         // of the last dial
	retryAt time.Time     // until then err is the answer
	backoff time.Duration
}

// NewPool makes a pool; all connections share o.
func NewPool(o Options) *Pool {
	p := &Pool{o: o, peers: map[string]*poolPeer{}}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// Get gives the live connection to one of addrs (best first), dialling when there is none. Concurrent callers share a dial; a
// failed dial is remembered for a short time (backoff), so that a dead peer costs little.
func (p *Pool) Get(ctx context.Context, addrs []string) (*Conn, error) {
	if c := p.live(addrs); c != nil {
		return c, nil
	}
	var err error = wire.Errorf("rpc.dial", wire.KindUnavailable, "", "the peer has no address")
	for _, a := range addrs {
		var c *Conn
		if c, err = p.get(ctx, a); err == nil {
			return c, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, err
}

// live gives a connection that is up already.
func (p *Pool) live(addrs []string) *Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range addrs {
		if q := p.peers[a]; q != nil && q.alive() {
			return q.conn
		}
	}
	return nil
}

func (q *poolPeer) alive() bool {
	if q.conn == nil {
		return false
	}
	select {
	case <-q.conn.Done():
		return false
	default:
		return true
	}
}

func (p *Pool) get(ctx context.Context, addr string) (*Conn, error) {
	for {
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return nil, wire.Errorf("rpc.dial", wire.KindShutdown, addr, "the pool is closed")
		}
		q := p.peers[addr]
		if q == nil {
			q = &poolPeer{}
			p.peers[addr] = q
		}
		if q.alive() {
			p.mu.Unlock()
			return q.conn, nil
		}
		if q.err != nil && time.Now().Before(q.retryAt) {
			err := q.err
			p.mu.Unlock()
			return nil, err
		}
		if q.dialing == nil {
			q.dialing = make(chan struct{})
			p.dials.Add(1)
			go p.dial(addr, q) // not in the caller: its ctx may end before others' do
		}
		wait := q.dialing
		p.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctxError(ctx.Err(), addr)
		}
	}
}

// dial dials once for all who wait.
func (p *Pool) dial(addr string, q *poolPeer) {
	defer p.dials.Done()
	c, err := Dial(p.ctx, addr, p.o)
	p.mu.Lock()
	defer p.mu.Unlock()
	q.conn, q.err = c, err
	if err != nil {
		q.backoff = min(max(2*q.backoff, minRedial), maxRedial)
		q.retryAt = time.Now().Add(q.backoff)
	} else {
		q.backoff = 0
	}
	close(q.dialing)
	q.dialing = nil
}

// Close closes all connections and waits until their handlers have returned. Not to be called by a handler.
func (p *Pool) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	p.dials.Wait()
	p.mu.Lock()
	var conns []*Conn
	for _, q := range p.peers {
		if q.conn != nil {
			conns = append(conns, q.conn)
		}
	}
	p.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
	}
	for _, c := range conns {
		<-c.finished
	}
}
