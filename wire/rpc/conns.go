package rpc

import "slices"

// Conns gives the connections that are up.
func (l *Listener) Conns() []*Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]*Conn, 0, len(l.conns))
	for c := range l.conns {
		out = append(out, c)
	}
	return out
}

// Conns gives the connections that are up.
func (p *Pool) Conns() []*Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []*Conn
	for _, q := range p.peers {
		if q.alive() {
			out = append(out, q.conn)
		}
	}
	return slices.Clip(out)
}
