package route

import (
	"fmt"
	"strings"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

// Wire says how processes of one server speak with each other. Those of different servers speak by TCP, whatever it is.
type Wire string

// The ways to speak.
const (
	WireShm  Wire = "shm"  // by unix sockets, with data in memory that both have mapped; the empty string means it too
	WireUnix Wire = "unix" // by unix sockets, data as well
	WireTCP  Wire = "tcp"  // by TCP, as if they were on different servers
)

// Validate says what is wrong.
func (w Wire) Validate() error {
	switch w {
	case "", WireShm, WireUnix, WireTCP:
		return nil
	}
	return fmt.Errorf("%q: want %s, %s or %s", string(w), WireShm, WireUnix, WireTCP)
}

// shm says that data may pass by shared memory.
func (w Wire) shm() bool { return w == "" || w == WireShm }

// Schemes of addresses.
const (
	unixScheme = "unix:"
	tcpScheme  = "tcp:"
	memScheme  = "mem:"
)

// reach gives the addresses at which a process may be asked, best first. A unix address counts on its own server only: elsewhere there
// may be a socket of the same path, and another process behind it. An own server of 0 is not known: then every process is elsewhere.
func reach(w Wire, own wire.ServerID, p *wire.ProcInfo) []string {
	of := func(scheme string) (out []string) {
		for _, a := range p.Addrs {
			if strings.HasPrefix(a, scheme) {
				out = append(out, a)
			}
		}
		return out
	}
	local, tcp := of(unixScheme), of(tcpScheme)
	switch {
	case own == 0 || p.Server != own:
		local = nil
	case w == WireTCP && len(tcp) > 0:
		local = nil
	case len(local) > 0:
		tcp = nil
	}
	return append(append(of(memScheme), local...), tcp...)
}

// SameServer reports whether the newest map says that a process is on this server: then data may pass to and from it by shared memory. It is
// asked after the handshake, when Admit has found the peer in the map or has waited for a map that names it: so the answer is not that of a map
// which is a moment too old. Where processes have no identity (tests), a peer that is not in the map gets its data through the socket.
func (r *Router) SameServer(peer rpc.Self) bool {
	x := r.index.Load()
	if x == nil || x.own == 0 || peer.Role == wire.RoleMgmt || peer.Role == wire.RoleClient {
		return false
	}
	p := x.procs[peer.Proc]
	return p != nil && p.Server == x.own
}
