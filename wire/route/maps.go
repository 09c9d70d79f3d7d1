package route

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

// index finds things in a map without walking it. Immutable.
type index struct {
	m      *wire.ClusterMap
	own    wire.ServerID // of this process; 0: not known
	procs  map[wire.ProcID]*wire.ProcInfo
	reach  map[wire.ProcID][]string // where to ask each process, best first
	drives map[wire.DriveID]*wire.DriveInfo

	sessions map[wire.ProcID]bool // processes that have one
}

func newIndex(c *Config, m *wire.ClusterMap) *index {
	x := &index{
		m: m, own: c.Server, procs: map[wire.ProcID]*wire.ProcInfo{}, reach: map[wire.ProcID][]string{}, drives: map[wire.DriveID]*wire.DriveInfo{},
		sessions: map[wire.ProcID]bool{},
	}
	for i := range m.Processes {
		x.procs[m.Processes[i].ID] = &m.Processes[i]
	}
	if p := x.procs[c.Self.Proc]; x.own == 0 && p != nil {
		x.own = p.Server
	}
	for id, p := range x.procs {
		x.reach[id] = reach(c.Wire, x.own, p)
	}
	for i := range m.Drives {
		x.drives[m.Drives[i].ID] = &m.Drives[i]
	}
	for _, s := range m.Sessions {
		x.sessions[s.Proc] = true
	}
	return x
}

// Map gives the newest map, never to be changed; nil when there is none yet.
func (r *Router) Map() *wire.ClusterMap {
	if x := r.index.Load(); x != nil {
		return x.m
	}
	return nil
}

func (r *Router) generation() wire.Generation {
	if m := r.Map(); m != nil {
		return m.Generation
	}
	return 0
}

// SetMap installs a map that came another way (an answer of mgmt, a test) if it is newer. The caller does not change it any
// more. It returns after OnMap has.
func (r *Router) SetMap(m *wire.ClusterMap) {
	r.setMu.Lock()
	defer r.setMu.Unlock()
	if m == nil || m.Generation <= r.generation() {
		return
	}
	now := newIndex(&r.c, m)
	old := r.index.Swap(now)
	if old != nil {
		r.dropGone(old, now)
	}
	r.expel(now)
	r.mu.Lock()
	close(r.changed)
	r.changed = make(chan struct{})
	for id := range r.away { // a new run of a process is not the one that was away
		if old != nil && incarnation(old, id) != incarnation(now, id) {
			delete(r.away, id)
		}
	}
	r.mu.Unlock()
	if r.c.OnMap != nil {
		r.c.OnMap(m)
	}
}

// dropGone ends the connections and dials to computes that the map has given up. What they owned has another owner, or none, and
// nothing that they may still answer counts: so who waits for them asks anew now, and not when the network has given up
// a machine that vanished. An address where the map has a process stays: it may be the next run of the old one. Drives are left
// alone: they serve whether mgmt hears them or not.
func (r *Router) dropGone(old, now *index) {
	var used map[string]bool // addresses of processes that run, made when needed
	for id, p := range old.procs {
		if p.Role != wire.RoleCompute || p.State == wire.ProcDown {
			continue
		}
		if n := now.procs[id]; n != nil && n.State != wire.ProcDown && slices.Equal(now.reach[id], old.reach[id]) {
			continue
		}
		if used == nil {
			used = now.inUse()
		}
		for _, a := range old.reach[id] {
			if !used[a] {
				r.pool.Drop(a)
			}
		}
	}
}

// inUse gives the addresses of all processes that are not down.
func (x *index) inUse() map[string]bool {
	out := map[string]bool{}
	for id, p := range x.procs {
		if p.State != wire.ProcDown {
			for _, a := range x.reach[id] {
				out[a] = true
			}
		}
	}
	return out
}

func incarnation(x *index, id wire.ProcID) wire.Incarnation {
	if p := x.procs[id]; p != nil {
		return p.Incarnation
	}
	return 0
}

// nextMap gives a channel that is closed when the map after the present one comes.
func (r *Router) nextMap() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

// WaitMap waits until the map is at least at generation g (any map for 0).
func (r *Router) WaitMap(ctx context.Context, g wire.Generation) (*wire.ClusterMap, error) {
	for {
		next := r.nextMap()
		if m := r.Map(); m != nil && m.Generation >= g {
			return m, nil
		}
		r.refresh()
		select {
		case <-next:
		case <-ctx.Done():
			return nil, wire.Errorf("route.map", ctxKind(ctx.Err()), "", "no map of generation %d or later: the newest is %d: %w", g, r.generation(), ctx.Err())
		}
	}
}

// refresh asks mgmt for a newer map at once; it does not wait.
func (r *Router) refresh() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// Run watches mgmt for new maps until ctx ends. Mgmt being away is no error: it tries again for ever, and the last map
// stays in use.
//
// One question is always under way: "what is newer than this?", which mgmt answers when there is something. A kick (refresh) puts it
// anew, because mgmt may have lost it, and ends the wait after a failure. The new question is left alone for kickEvery, however many
// kicks come, or a slow mgmt would never get to answer.
func (r *Router) Run(ctx context.Context) error {
	backoff := minBackoff
	for ctx.Err() == nil {
		kicked, err := r.watchOnce(ctx)
		switch {
		case kicked:
		case err == nil || wire.KindOf(err) == wire.KindTimeout:
			backoff = minBackoff
		default:
			sleep(ctx, backoff, r.kick)
			backoff = min(2*backoff, maxBackoff)
		}
	}
	return nil
}

// watchOnce asks mgmt for a map newer than ours and waits for it; a kick ends the wait.
func (r *Router) watchOnce(ctx context.Context) (kicked bool, err error) {
	wctx, cancel := context.WithTimeout(ctx, watchTimeout)
	defer cancel()
	got := make(chan error, 1)
	var resp wire.WatchMapResp
	go func() {
		got <- r.Mgmt(wctx, &rpc.Call{Method: wire.MWatchMap, Req: &wire.WatchMapReq{After: r.generation()}, Resp: &resp})
	}()
	alone := time.NewTimer(kickEvery)
	defer alone.Stop()
	select {
	case err = <-got:
	case <-alone.C:
		select {
		case err = <-got:
		case <-r.kick:
			kicked = true
			cancel()
			err = <-got
		}
	}
	if err != nil {
		return kicked, err
	}
	before := r.generation()
	r.SetMap(&resp.Map)
	if r.generation() == before && resp.Map.Generation <= before && !kicked {
		// An early answer without news would make us ask in a circle.
		sleep(ctx, minBackoff, nil)
	}
	return kicked, nil
}

// sleep waits for d, the end of ctx or wake.
func sleep(ctx context.Context, d time.Duration, wake <-chan struct{}) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-wake:
	case <-t.C:
	}
}

// ctxKind gives the kind of the error of a ctx.
func ctxKind(err error) wire.Kind {
	if errors.Is(err, context.DeadlineExceeded) {
		return wire.KindTimeout
	}
	return wire.KindInterrupted
}
