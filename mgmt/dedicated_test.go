package mgmt

import (
	"testing"

	"github.com/crakefs/crake/mgmt/internal/leader"
	"github.com/crakefs/crake/wire"
)

// Claim: processes are told that their core is theirs alone while each of the pinned ones has one and a core is left for all else; mounts
// are not pinned, and count for nothing.
func TestDedicatedCores(t *testing.T) {
	s := &leader.State{Procs: map[wire.ProcID]*leader.Proc{}}
	add := func(r wire.Role) {
		id := wire.ProcID(len(s.Procs) + 1)
		s.Procs[id] = &leader.Proc{ID: id, Role: r}
	}
	add(wire.RoleDrive)
	add(wire.RoleCompute)
	add(wire.RoleFrontend)
	add(wire.RoleFrontend)
	for cores, want := range map[int]bool{1: false, 2: false, 3: true, 4: true} {
		w := &worker{cores: make([]int, cores)}
		if got := w.coresAreDedicated(s); got != want {
			t.Errorf("two pinned processes on %d cores: %v", cores, got)
		}
	}
}
