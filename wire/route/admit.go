package route

import (
	"context"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

// Admit decides whether a peer that has proved to be peer, by the certificate named key, may connect: the map must name that certificate for
// that process. It is what a process gives as rpc.Options.Admit, and safe for concurrent use. The peer may have registered a moment ago, so
// before it refuses it waits for a newer map, for admitWait at most. KindUnavailable: there is no map yet. KindRefused: the map does not
// know the process, or the run of it that this is.
func (r *Router) Admit(ctx context.Context, peer rpc.Self, key wire.ProcKey) error {
	ctx, cancel := context.WithTimeout(ctx, admitWait)
	defer cancel()
	for {
		next := r.nextMap()
		err := r.known(peer, key)
		if err == nil {
			return nil
		}
		r.refresh()
		select {
		case <-next:
		case <-ctx.Done():
			return err
		}
	}
}

// known is Admit by the map as it is now.
func (r *Router) known(peer rpc.Self, key wire.ProcKey) error {
	x := r.index.Load()
	if x == nil && peer.Role != wire.RoleMgmt {
		return wire.Errorf("route.admit", wire.KindUnavailable, r.c.Self.Role.String(),
			"this process has no cluster map yet: mgmt has not answered its registration")
	}
	return x.known(peer, key)
}

// known gives the reason why a process may not connect, or nil. Mgmt may always: it is not in the map, and only it can make its certificates. A
// process that is down may come back with the certificate that it had: only the next run ends the last one.
func (x *index) known(peer rpc.Self, key wire.ProcKey) error {
	if peer.Role == wire.RoleMgmt {
		return nil
	}
	refuse := func(name, format string, args ...any) error {
		return wire.Errorf("route.admit", wire.KindRefused, name, format, args...)
	}
	p := x.procs[peer.Proc]
	switch {
	case p == nil:
		return refuse("", "process %d is not in map %d", peer.Proc, x.m.Generation)
	case p.Role != peer.Role:
		return refuse(p.Name, "process %d is %s, not %s", peer.Proc, p.Role, peer.Role)
	case p.Key == wire.ProcKey{}:
		return refuse(p.Name, "no run of it has registered, says map %d", x.m.Generation)
	case p.Key != key:
		return refuse(p.Name, "its session ended: another run of %s is registered (incarnation %d in map %d)", p.Name, p.Incarnation, x.m.Generation)
	case p.Role == wire.RoleFrontend && !x.sessions[peer.Proc]:
		return refuse(p.Name, "its session ended: map %d has none of %s", x.m.Generation, p.Name)
	}
	return nil
}

// expel ends the connections, dialled here or accepted, of processes that are not what they were when they connected.
func (r *Router) expel(x *index) {
	r.mu.Lock()
	listeners := r.listeners
	r.mu.Unlock()
	r.pool.Expel(x.known)
	for _, l := range listeners {
		l.Expel(x.known)
	}
}

// expect refuses a connection whose other end has proved to be another than whom the map has at that address: its successor there is not whom
// the caller means.
func expect(c *rpc.Conn, role wire.Role, proc wire.ProcID) error {
	if peer := c.Peer(); c.PeerKey() != (wire.ProcKey{}) && (peer.Role != role || peer.Proc != proc) {
		return wire.Errorf("route.connect", wire.KindUnavailable, "", "there is %s %d, not %s %d", peer.Role, peer.Proc, role, proc)
	}
	return nil
}
