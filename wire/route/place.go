package route

import (
	"context"
	"fmt"
	"strings"
	"time"

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

// vouch decides whether data passes to and from a peer by shared memory: if the map says that the peer is on this server. The map may
// not name it yet, because it or this process has just come: that is waited for, a moment. Who is not named then gets its data through the
// socket, until a map names it: see welcome.
func (r *Router) vouch(peer rpc.Self) bool {
	if peer.Role == wire.RoleMgmt || peer.Role == wire.RoleClient || peer.Proc == 0 {
		return false // they are no processes of the map, and send no data
	}
	ctx, cancel := context.WithTimeout(r.life, vouchWait)
	defer cancel()
	for {
		next := r.nextMap()
		if x := r.index.Load(); x != nil && x.own != 0 {
			if p := x.procs[peer.Proc]; p != nil {
				return p.Server == x.own
			}
		}
		r.refresh()
		select {
		case <-next:
		case <-ctx.Done():
			return r.stranger(peer.Proc)
		}
	}
}

// stranger notes that a peer is not known. It gives false; true if a map has just named it.
func (r *Router) stranger(id wire.ProcID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if x := r.index.Load(); x.here(id) { // welcome may have looked already
		return true
	}
	r.strangers[id] = struct{}{}
	return false
}

// here reports whether the process is known to be on this server.
func (x *index) here(id wire.ProcID) bool {
	return x != nil && x.own != 0 && x.procs[id] != nil && x.procs[id].Server == x.own
}

// welcome ends the connections of peers that were strangers and are named by the newest map: the next ones, which they make at
// once, pass data by shared memory. Such a connection would otherwise stay as it is for as long as both live.
func (r *Router) welcome() {
	known := map[wire.ProcID]bool{}
	r.mu.Lock()
	x := r.index.Load()
	for id := range r.strangers {
		if x.procs[id] != nil && x.own != 0 {
			known[id] = x.here(id)
			delete(r.strangers, id)
		}
	}
	r.mu.Unlock()
	if len(known) == 0 {
		return
	}
	for _, c := range r.Conns() {
		if known[c.Peer().Proc] && c.Transport() == rpc.TransportUnix {
			_ = c.Close()
		}
	}
}

// Server gives this process's server: what Config says, else what the map does; 0 is not known yet.
func (r *Router) Server() wire.ServerID {
	if x := r.index.Load(); x != nil {
		return x.own
	}
	return r.c.Server
}

// vouchWait bounds the wait for a map that names a peer: maps come within milliseconds, and after a restart of mgmt within a second.
const vouchWait = 2 * time.Second
