package rpc

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/capture"
)

// errDone says that the connection has ended; callers turn it into KindConnLost with the reason.
var errDone = errors.New("connection ended")

// Conn is an authenticated connection to one peer. All methods are safe for concurrent use.
//
// Goroutines: one reads (read), one writes what callers could not write at once (writer.run), one looks for stalls (watch), one takes packets
// from the descriptor channel, if there is one (shm.run); one for each handler. All end when the connection does, which finish waits for.
//
// Lock order: none of mu, serveMu, window.mu and writer.mu is taken while another is held, but that writer.mu and serveMu may be held
// when Bufs are released, and reqContext.mu is taken under serveMu. Releasing a Buf that is borrowed takes, one at a time, releases.mu of the
// connection that it came from, and, if that has ended, lender.mu of those that it was passed on to; borrower.mu is before Loans.mu. All of
// these are leaves: under none of them is a Buf released, or anything sent but a packet on a channel, which does not wait.
type Conn struct {
	// immutable
	o       Options
	s       stream
	w       *writer
	out     *window // what the peer lets us ask
	peer    Self
	peerKey wire.ProcKey
	version uint16 // of the protocol
	tap     *capture.Conn
	own     *hello
	log     *slog.Logger
	shm     *shm // nil: data goes through the stream

	done     chan struct{} // closed when the connection has ended
	finished chan struct{} // closed after OnClose
	ctx      context.Context
	cancel   context.CancelFunc

	mu     sync.Mutex
	calls  map[uint64]*pending // asked and not answered, also those nobody waits for any more
	spare  []*pending
	nextID uint64
	err    error // why it ended
	ended  bool

	serveMu     sync.Mutex
	serving     map[uint64]*served // requests of the peer that are not answered
	queue       []*served          // those that have no handler yet
	running     int                // handlers at work
	idle        []*worker          // goroutines of handlers that wait for work
	noMore      bool               // the connection has ended: nobody waits idle any more
	handlers    sync.WaitGroup     // goroutines of handlers, and requests that Start has taken
	servedBytes int                // request data of serving
	spareServed spareRing

	rxBytes  atomic.Uint64 // received, for the watch on stalls
	landed   atomic.Uint64 // data received through the stream
	midFrame atomic.Bool   // part of a frame is there, and the rest is awaited from the peer
}

// newConn starts a connection whose hellos were exchanged.
func newConn(s stream, o Options, own, peer *hello, version uint16) *Conn {
	c := &Conn{
		o: o, s: s, w: newWriter(s), peer: peer.self, peerKey: peer.key, version: version, own: own, log: o.logger(),
		out:  newWindow(int(min(peer.windowReqs, wire.MaxInFlight)), int(min(peer.windowData, 1<<40))),
		done: make(chan struct{}), finished: make(chan struct{}),
		calls: map[uint64]*pending{}, serving: map[uint64]*served{},
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	if c.o.MaxHandlers == 0 {
		c.o.MaxHandlers = defaultMaxHandlers
	}
	c.w.onDrain = c.startQueued
	if o.Capture != nil {
		c.tap = o.Capture.Conn(&capture.ConnInfo{Own: own.encode(), Peer: peer.encode(), Version: version, Name: s.name()})
		c.w.tap = c.tap
	}
	var wg sync.WaitGroup
	if k := socketOf(s); k != nil && k.ch != nil {
		c.shm = newShm(c, k.ch)
		wg.Go(func() { c.fail(c.shm.run()) })
	}
	wg.Go(func() { c.fail(c.read()) })
	wg.Go(func() {
		if err := c.w.run(c.done); err != nil {
			c.fail(err)
		}
	})
	wg.Go(c.watch)
	go c.finish(&wg)
	return c
}

// Peer tells who is at the other end.
func (c *Conn) Peer() Self { return c.peer }

// PeerKey names the certificate by which the peer proved to be Peer; zero: it has proved nothing.
func (c *Conn) PeerKey() wire.ProcKey { return c.peerKey }

// Done is closed when the connection has ended.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err tells why it ended; nil while it lives.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection; calls under way fail with KindConnLost. It does not wait for handlers: OnClose tells.
func (c *Conn) Close() error {
	c.fail(wire.E("rpc.conn", wire.KindConnLost, c.s.name(), errors.New("closed by this side")))
	return nil
}

// fail ends the connection for the first reason given.
func (c *Conn) fail(err error) {
	if wire.KindOf(err) == wire.KindOther {
		err = wire.E("rpc.conn", wire.KindConnLost, c.s.name(), err)
	}
	c.mu.Lock()
	if c.ended {
		c.mu.Unlock()
		return
	}
	c.ended, c.err = true, err
	calls := c.calls
	c.calls = nil
	c.mu.Unlock()
	close(c.done)
	_ = c.s.close()
	if c.shm != nil {
		c.shm.ch.close()
	}
	c.cancel()
	c.w.stop()
	for _, p := range calls {
		p.finish(c.lost())
	}
}

// lost gives the error of a call that the end of the connection ended.
func (c *Conn) lost() error {
	return wire.E("rpc.call", wire.KindConnLost, c.s.name(), c.Err())
}

// finish waits until everything of an ended connection has returned and tells OnClose.
func (c *Conn) finish(wg *sync.WaitGroup) {
	wg.Wait()
	c.stopServing()
	if c.shm != nil {
		c.shm.close()
	}
	err := c.Err()
	if k := wire.KindOf(err); k != wire.KindConnLost && k != wire.KindShutdown {
		c.log.Warn("peer dropped", "peer", c.s.name(), "role", c.peer.Role.String(), "proc", uint32(c.peer.Proc), "err", err)
	}
	if c.o.OnClose != nil {
		c.o.OnClose(c, err)
	}
	close(c.finished)
}

// watch ends the connection when its peer stops in the middle of a frame, or takes nothing of what is written to it.
func (c *Conn) watch() {
	t := time.NewTicker(watchEvery)
	defer t.Stop()
	var rx, tx uint64
	rxSince, txSince := time.Now(), time.Now()
	for {
		select {
		case <-c.done:
			return
		case <-t.C:
		}
		now := time.Now()
		if n := c.rxBytes.Load(); n != rx || !c.midFrame.Load() {
			rx, rxSince = n, now
		}
		if n := c.w.txBytes.Load(); n != tx || !c.w.waiting.Load() {
			tx, txSince = n, now
		}
		if now.Sub(rxSince) >= stallTimeout {
			c.fail(wire.Errorf("rpc.read", wire.KindBadFrame, c.s.name(), "the peer stopped in the middle of a frame for %v", stallTimeout))
		}
		if now.Sub(txSince) >= stallTimeout {
			c.fail(wire.Errorf("rpc.write", wire.KindConnLost, c.s.name(), "the peer took nothing for %v", stallTimeout))
		}
	}
}

// header starts the header of a frame to send.
func (c *Conn) header(kind wire.FrameKind, id uint64) wire.Header {
	h := wire.Header{Kind: kind, ID: id}
	if c.o.Generation != nil {
		h.Generation = c.o.Generation()
	}
	return h
}

// sawGeneration tells of a map that is newer than ours.
func (c *Conn) sawGeneration(g wire.Generation) {
	if g != 0 && c.o.OnGeneration != nil && (c.o.Generation == nil || g > c.o.Generation()) {
		c.o.OnGeneration(g)
	}
}

// isEnd says that err is an ordinary end of a stream between frames.
func isEnd(err error) bool { return errors.Is(err, io.EOF) }

// lostBecause gives the error of a call whose answer broke off.
func (c *Conn) lostBecause(err error) error {
	return wire.E("rpc.call", wire.KindConnLost, c.s.name(), err)
}

// checkWindow refuses request data past the window that the handshake told.
func (c *Conn) checkWindow(n int) error {
	c.serveMu.Lock()
	defer c.serveMu.Unlock()
	if c.servedBytes > 0 && uint64(c.servedBytes+n) > c.own.windowData {
		return wire.Errorf("rpc.read", wire.KindBadFrame, c.s.name(), "%d bytes of request data while %d are unanswered, past the window of %d",
			n, c.servedBytes, c.own.windowData)
	}
	return nil
}
