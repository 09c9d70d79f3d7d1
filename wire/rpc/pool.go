package rpc

import (
	"context"
	"slices"
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
	ended  []*Conn // not kept any more; Close waits for those that have not finished
	dials  sync.WaitGroup
}

// poolPeer is the state of one address, guarded by Pool.mu.
type poolPeer struct {
	conn    *Conn
	dialing chan struct{} // closed when the dial under way is over; nil: none
	giveUp  func()        // ends that dial
	dropped bool          // by Drop: nobody finds this state any more, and err is the answer to those who wait for it
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
			var dctx context.Context
			dctx, q.giveUp = context.WithCancel(p.ctx)
			q.dialing = make(chan struct{})
			p.dials.Add(1)
			go p.dial(dctx, addr, q) // not in the caller: its ctx may end before others' do
		}
		wait := q.dialing
		p.mu.Unlock()
		select {
		case <-wait:
			if err := p.whyDropped(q); err != nil {
				return nil, err // who listens there next is not whom the caller meant
			}
		case <-ctx.Done():
			return nil, ctxError(ctx.Err(), addr)
		}
	}
}

// dial dials once for all who wait.
func (p *Pool) dial(ctx context.Context, addr string, q *poolPeer) {
	defer p.dials.Done()
	c, err := Dial(ctx, addr, p.o)
	p.dialled(c, err, q)
	if err == nil {
		c.readmit(p.ctx)
	}
}

// dialled takes the outcome of a dial.
func (p *Pool) dialled(c *Conn, err error, q *poolPeer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	q.giveUp()
	if q.dropped { // those who wait have been told
		if c != nil {
			p.end(c)
		}
		return
	}
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

// Drop closes the connection to an address and gives up a dial under way, for a caller who knows that whoever was there is gone:
// its calls fail with KindConnLost and its dials with KindUnavailable, now. Of a machine that has vanished nothing else tells
// before TCP gives up, minutes later. Who asks for the address after that gets a new dial.
func (p *Pool) Drop(addr string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	q := p.peers[addr]
	if q == nil {
		return
	}
	delete(p.peers, addr)
	q.dropped, q.err = true, wire.Errorf("rpc.dial", wire.KindUnavailable, addr, "whoever listened there is gone")
	if q.dialing != nil {
		q.giveUp()
		close(q.dialing)
		q.dialing = nil
	}
	if q.conn != nil {
		p.end(q.conn)
	}
}

// whyDropped gives the error of a state that Drop has ended, or nil.
func (p *Pool) whyDropped(q *poolPeer) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if q.dropped {
		return q.err
	}
	return nil
}

// end closes a connection that the pool does not keep any more.
// Preconditions: p.mu is held.
func (p *Pool) end(c *Conn) {
	p.ended = slices.DeleteFunc(p.ended, func(c *Conn) bool {
		select {
		case <-c.finished:
			return true
		default:
			return false
		}
	})
	p.ended = append(p.ended, c)
	_ = c.Close()
}

// Close closes all connections and waits until their handlers have returned. Not to be called by a handler.
func (p *Pool) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	p.dials.Wait()
	p.mu.Lock()
	conns := p.ended
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
