package mgmt

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/crakefs/crake/mgmt/api"
	"github.com/crakefs/crake/mgmt/internal/leader"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/identity"
	"github.com/crakefs/crake/wire/rpc"
)

// issuer makes the identities of processes and knows which run of each is the newest: only that may speak with mgmt. Safe for concurrent
// use; mu is the innermost lock.
type issuer struct {
	ca  *identity.CA
	own *identity.Identity // of this mgmt; in memory only

	mu     sync.Mutex
	newest map[wire.ProcID]wire.ProcKey // of the runs that have not ended
}

// newIssuer opens the CA of the cluster, or makes it when there is none.
func newIssuer(dir string, cluster wire.ClusterID) (*issuer, error) {
	path := api.CAPath(dir)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	ca, err := identity.OpenCA(path, cluster)
	if err != nil {
		return nil, err
	}
	own, err := ca.Issue(wire.RoleMgmt, 0)
	return &issuer{ca: ca, own: own, newest: map[wire.ProcID]wire.ProcKey{}}, err
}

func (i *issuer) note(id wire.ProcID, key wire.ProcKey) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.newest[id] = key
}

// revoke ends what the newest run of a process was given: it has ended.
func (i *issuer) revoke(id wire.ProcID) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.newest, id)
}

// admit is rpc.Options.Admit. A process that registers is not in the map yet, so mgmt goes by what it has issued.
func (i *issuer) admit(_ context.Context, peer rpc.Self, key wire.ProcKey) error {
	return i.mayConnect(peer, key)
}

// mayConnect gives the reason why a process that has proved who it is may not connect, or nil.
func (i *issuer) mayConnect(peer rpc.Self, key wire.ProcKey) error {
	i.mu.Lock()
	newest, runs := i.newest[peer.Proc]
	i.mu.Unlock()
	switch {
	case peer.Role == wire.RoleMgmt:
		return refuse(peer, "it is another mgmt, and this one leads")
	case !runs:
		return refuse(peer, "its session ended: mgmt has started no run of it that has not ended")
	case newest != key:
		return refuse(peer, "its session ended: mgmt has started a newer run of it")
	}
	return nil
}

// issue makes the identity of a run that is about to start, and ends what an earlier one was given.
func (w *worker) issue(name string, role wire.Role, id wire.ProcID) error {
	run, err := w.ids.ca.Issue(role, id)
	if err == nil {
		err = run.Write(api.IdentityPath(w.c.Dir, name))
	}
	if err != nil {
		return fmt.Errorf("an identity for %s: %w", name, err)
	}
	w.ids.note(id, run.Key())
	w.socket.Expel(w.ids.mayConnect)
	return nil
}

// recognise finds out, when mgmt starts, with which identities the processes run that an earlier mgmt has started. It gives the names of
// those that have none, or one that this CA has not issued.
func (w *worker) recognise(s *leader.State) (unproven []string) {
	for name := range w.sup.Found() {
		id, err := identity.Load(api.IdentityPath(w.c.Dir, name))
		p := s.ProcNamed(name)
		if err == nil && p != nil {
			_, err = w.ids.own.Verify(id.Certificate())
		}
		if err == nil && p != nil && id.Name() == (identity.Name{Cluster: w.cluster, Role: p.Role, Proc: p.ID}) {
			w.ids.note(p.ID, id.Key())
			continue
		}
		w.log.Warn("a process of this cluster cannot prove who it is; it is started anew", "name", name, "err", err)
		unproven = append(unproven, name)
	}
	return unproven
}

// endUnproven ends processes of which nobody would take a word, so that they are started anew: those of a version that knew no
// identities, or all, if the CA was lost.
func (w *worker) endUnproven(ctx context.Context, names []string) error {
	if len(names) == 0 {
		return nil
	}
	var wg sync.WaitGroup
	for _, name := range names {
		wg.Go(func() {
			if err := w.sup.StopFound(ctx, name, graceFrontend); err != nil && ctx.Err() == nil {
				w.event(wire.SeverityError, "process.stop", name, err.Error())
			}
		})
	}
	wg.Wait()
	var err error
	w.sup, err = w.newSupervisor() // which does not find them any more
	return err
}
