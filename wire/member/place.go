package member

import (
	"errors"
	"fmt"
	"strings"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/route"
)

// Place is who a process is and where: what the configuration of every role begins with.
type Place struct {
	Name    string         // unique in the cluster
	Proc    wire.ProcID    // its slot
	Cluster wire.ClusterID // that it belongs to
	Mgmt    string         // address of the local mgmt
	Listen  []string       // addresses to listen on, best first
	Wire    route.Wire     // how it speaks with processes of its server
	// Identity is the file that proves who it is. It may be missing where all addresses are "mem:", in tests.
	Identity string
}

// Check lists all that is wrong, by the names of the flags.
func (p Place) Check() []error {
	var errs []error
	need := func(ok bool, flag string) {
		if !ok {
			errs = append(errs, errors.New(flag+" is missing"))
		}
	}
	need(p.Name != "", "--name")
	need(p.Proc != 0, "--proc")
	need(p.Cluster != wire.ClusterID{}, "--cluster")
	real := false
	address := func(flag, addr string) {
		kind, rest, ok := strings.Cut(addr, ":")
		real = real || kind != "mem"
		if !ok || rest == "" || kind != "unix" && kind != "tcp" && kind != "mem" {
			errs = append(errs, fmt.Errorf("%s: address %q: use unix:/path or tcp:host:port", flag, addr))
		}
	}
	address("--mgmt", p.Mgmt)
	need(len(p.Listen) > 0, "--listen")
	for _, a := range p.Listen {
		address("--listen", a)
	}
	if len(p.Listen) > maxListen {
		errs = append(errs, fmt.Errorf("--listen: %d addresses, at most %d", len(p.Listen), maxListen))
	}
	need(p.Identity != "" || !real, "--identity")
	if err := p.Wire.Validate(); err != nil {
		errs = append(errs, fmt.Errorf("--wire %w", err))
	}
	return errs
}
