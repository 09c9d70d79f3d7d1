package rpc

import (
	"context"

	"github.com/crakefs/crake/wire"
)

// readmit asks Options.Admit once more, when a new connection stands where Expel finds it: what was expelled between the first answer and
// now would else stay. It ends the connection of a peer that is not admitted any more.
func (c *Conn) readmit(ctx context.Context) {
	if c.peerKey == (wire.ProcKey{}) || c.o.Admit == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, admitTimeout)
	defer cancel()
	if err := c.o.Admit(ctx, c.peer, c.peerKey); err != nil {
		c.fail(wire.E("rpc.conn", wire.KindConnLost, c.s.name(), err))
	}
}

// expel ends the connections whose peers have proved who they are and may not connect any more, as refuse says by an error.
func expel(conns []*Conn, refuse func(peer Self, key wire.ProcKey) error) {
	for _, c := range conns {
		if c.peerKey == (wire.ProcKey{}) {
			continue
		}
		if err := refuse(c.peer, c.peerKey); err != nil {
			c.log.Info("connection ended", "peer", c.s.name(), "err", err)
			c.fail(wire.E("rpc.conn", wire.KindConnLost, c.s.name(), err))
		}
	}
}

// Expel ends the connections whose peers may not connect any more: those for which refuse gives an error. Call it when what Options.Admit
// goes by has changed. refuse must not wait.
func (l *Listener) Expel(refuse func(peer Self, key wire.ProcKey) error) {
	expel(l.Conns(), refuse)
}

// Expel is Listener.Expel for the connections that were dialled here.
func (p *Pool) Expel(refuse func(peer Self, key wire.ProcKey) error) {
	expel(p.Conns(), refuse)
}
