package rpc

import (
	"github.com/crakefs/crake/wire"
)

// featureShm, in both hellos of a unix connection: a descriptor channel follows (shm_channel.go), and data may pass by reference.
const featureShm = 1 << 0

// shm is what a connection has that passes data by reference; see docs/decisions/0007-shared-memory.md. Each side is lender
// (shm_lend.go) of what it sends and borrower (shm_borrow.go) of what it receives.
type shm struct {
	// immutable
	c       *Conn
	ch      *channel
	trusted bool // Options.ShmWith takes the peer: else nothing is offered to it, and what it offers is refused
	lend    lender
	borrow  borrower
	back    releases

	told bool // that an offer was refused; owned by run
}

// shmFeature gives the feature bit where this side can share memory on a stream.
func shmFeature(s stream, o *Options) uint64 {
	if k := socketOf(s); o.Shm && o.Arena != nil && k != nil && k.unix() {
		return featureShm
	}
	return 0
}

// socketOf gives the socket of a stream; nil: it is none.
func socketOf(s stream) *sockStream {
	if n, ok := s.(*namedStream); ok {
		s = n.stream
	}
	k, _ := s.(*sockStream)
	return k
}

// closeChannel closes the channel of a stream that becomes no connection.
func closeChannel(s stream) {
	if k := socketOf(s); k != nil && k.ch != nil {
		k.ch.close()
	}
}

// newShm begins to share memory over a channel that is ready. It does not start goroutines: run is to be called in one.
func newShm(c *Conn, ch *channel) *shm {
	s := &shm{c: c, ch: ch, trusted: c.o.ShmWith == nil || c.o.ShmWith(c.peer)}
	s.back.w, c.w.riders = c.w, &s.back
	s.lend.init(s, c.o.Arena)
	s.borrow.init(s, c.o.Arena)
	return s
}

// on says that data passes by reference, at least one way.
func (s *shm) on() bool { return s != nil && (s.lend.ready() || s.borrow.ready()) }

// run takes packets from the channel until the connection ends, and tells why. A peer that cuts it off has lost the connection.
func (s *shm) run() error {
	for {
		p, fds, err := s.ch.receive()
		if err == nil {
			err = s.packet(p, fds)
		}
		if err != nil {
			return wire.E("rpc.channel", wire.KindOf(err), s.c.s.name(), err)
		}
	}
}

// packet does what a packet of the peer says. It owns fds.
func (s *shm) packet(p packet, fds []int) error {
	if p.kind == packetOffer {
		answer := packet{kind: packetRefused, index: p.index}
		if err := s.borrow.offered(p, fds); err == nil {
			answer.kind = packetTaken
		} else if wire.KindOf(err) == wire.KindBadFrame {
			return err
		} else if !s.told { // once: a peer may offer for ever
			s.told = true
			s.c.log.Info("memory of a peer is not taken: its data comes through the socket", "peer", s.c.s.name(), "index", p.index, "reason", err)
		}
		return s.ch.send(answer)
	}
	if len(fds) > 0 {
		closeForeign(fds)
		return wire.Errorf("rpc.channel", wire.KindBadFrame, "", "descriptors with a packet of kind %d", p.kind)
	}
	switch p.kind {
	case packetTaken, packetRefused:
		return s.lend.answered(int(p.index), p.kind == packetTaken)
	case packetDrop:
		return s.borrow.dropped(int(p.index))
	}
	return wire.Errorf("rpc.channel", wire.KindBadFrame, "", "a packet of kind %d", p.kind)
}

// close ends the sharing. What is borrowed stays until it is released, what is lent until nobody can touch it.
// Preconditions: nothing of the connection runs any more.
func (s *shm) close() {
	s.back.close()
	s.borrow.close()
	s.lend.close()
}
