package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/pflag"

	"github.com/crakefs/crake/cmd/crake/internal/dev"
	"github.com/crakefs/crake/cmd/crake/internal/roles"
	"github.com/crakefs/crake/cmd/crake/internal/size"
)

// arenaFlags are the sizes of the memory for file data of the processes of each role; 0 is "not said".
type arenaFlags [3]size.Flag

// arenaRoles are the roles of arenaFlags, in order, each with the least that works.
var arenaRoles = [...]struct {
	role  string
	least int64
}{{"drive", roles.MinDriveArena}, {"compute", roles.MinComputeArena}, {"frontend", roles.MinFrontendArena}}

func (a *arenaFlags) register(f *pflag.FlagSet) {
	for i, r := range arenaRoles {
		f.Var(&a[i], "arena-"+r.role, fmt.Sprintf("memory for file data of each %s, at least %s (default 64MiB)", r.role, size.Format(r.least)))
	}
}

// check lists the sizes with which a process would not start.
func (a *arenaFlags) check() error {
	var errs []error
	for i, r := range arenaRoles {
		if a[i] != 0 && int64(a[i]) < r.least {
			errs = append(errs, fmt.Errorf("--arena-%s %s: a %s needs at least %s", r.role, a[i].String(), r.role, size.Format(r.least)))
		}
	}
	return errors.Join(errs...)
}

func (a *arenaFlags) sizes() dev.Arenas {
	return dev.Arenas{Drive: int64(a[0]), Compute: int64(a[1]), Frontend: int64(a[2])}
}
