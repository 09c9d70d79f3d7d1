package member

import (
	"errors"
	"fmt"
	"strings"

	"github.com/crakefs/crake/wire"
)

// Place is who a process is and where: what the configuration of every role begins with.
type Place struct {
	Name    string         // unique in the cluster
	Proc    wire.ProcID    // its slot
	Cluster wire.ClusterID // that it belongs to
	Mgmt    string         // address of the local mgmt
	Listen  string         // address to listen on
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
	for _, a := range []struct{ flag, addr string }{{"--mgmt", p.Mgmt}, {"--listen", p.Listen}} {
		kind, rest, ok := strings.Cut(a.addr, ":")
		if !ok || rest == "" || kind != "unix" && kind != "tcp" && kind != "mem" {
			errs = append(errs, fmt.Errorf("%s: address %q: use unix:/path or tcp:host:port", a.flag, a.addr))
		}
	}
	return errs
}
