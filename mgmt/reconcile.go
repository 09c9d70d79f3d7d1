package mgmt

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/mgmt/api"
	"github.com/crakefs/crake/mgmt/internal/leader"
	"github.com/crakefs/crake/mgmt/internal/supervise"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/route"
	"github.com/crakefs/crake/wire/rpc"
)

// reconcileLoop starts what is wanted and does not run, and stops what runs and is not wanted.
func (w *worker) reconcileLoop(ctx context.Context) error {
	w.stopStrays(ctx)
	tick := time.NewTicker(reconcileEvery)
	defer tick.Stop()
	for {
		if err := supervise.BoundLog(api.LogPath(w.c.Dir, "mgmt")); err != nil {
			w.log.Warn("cannot bound a log", "err", err)
		}
		if err := w.reconcile(ctx); err != nil && ctx.Err() == nil {
			w.log.Error("cannot start what is wanted", "err", err)
		}
		w.noteOpenings()
		select {
		case <-w.kick:
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// stopStrays ends processes of this cluster that were running when mgmt started and are in no slot, or in one that is
// not wanted: a mount that was being removed when mgmt died.
func (w *worker) stopStrays(ctx context.Context) {
	wanted := map[string]bool{}
	w.d.Look(func(_ leader.Millis, c *leader.Core) {
		for _, p := range c.State().Procs {
			wanted[p.Name] = wanted[p.Name] || p.Wanted
		}
	})
	var wg sync.WaitGroup
	for name := range w.sup.Found() {
		if !wanted[name] {
			w.log.Info("stopping a process that is not wanted any more", "name", name)
			wg.Go(func() {
				if err := w.sup.StopFound(ctx, name, graceFrontend); err != nil && ctx.Err() == nil {
					w.event(wire.SeverityError, "process.stop", name, err.Error())
				}
			})
		}
	}
	wg.Wait()
}

func (w *worker) reconcile(ctx context.Context) error {
	w.mu.Lock()
	stopping := w.stopping
	w.mu.Unlock()
	if stopping {
		return nil
	}
	var specs, failed []supervise.Spec
	var leaving []string
	w.d.Look(func(_ leader.Millis, c *leader.Core) {
		pin := 0
		for _, id := range c.State().ProcIDs() {
			p := c.State().Procs[id]
			spec := w.spec(c.State(), p, pin)
			if p.Role != wire.RoleFrontend {
				pin++
			}
			switch {
			case !p.Wanted && p.Role == wire.RoleCompute && !ownsAny(c.State(), id):
				leaving = append(leaving, p.Name)
			case p.Wanted && driveFailed(c.State(), p):
				failed = append(failed, spec)
			case p.Wanted && (p.Role != wire.RoleFrontend || w.mountable(c, p)):
				specs = append(specs, spec)
			}
		}
	})
	running := w.sup.Status()
	var errs []error
	for _, s := range specs {
		if _, ok := running[s.Name]; ok && !w.resting[s.Name] {
			continue
		}
		errs = append(errs, w.sup.Start(ctx, s))
		w.mu.Lock()
		w.started[s.Name] = true
		w.mu.Unlock()
	}
	errs = append(errs, w.rest(ctx, failed, running))
	for _, name := range leaving {
		if _, err := w.sup.Stop(ctx, name, graceCompute); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func ownsAny(s *leader.State, id wire.ProcID) bool {
	for i := range s.Buckets {
		if s.Buckets[i].Owner == id || s.Buckets[i].From == id {
			return true
		}
	}
	return false
}

// mountable tells whether the frontend should be started: not before its root is served, because it could do nothing
// but fail.
func (w *worker) mountable(c *leader.Core, p *leader.Proc) bool {
	w.mu.Lock()
	was := w.started[p.Name]
	w.mu.Unlock()
	fs := c.State().FSs[p.FS]
	if fs == nil || !fs.Made {
		return false
	}
	_, found := w.sup.Found()[p.Name]
	return was || found || c.BucketState(fs.Root.Bucket()).State == wire.BucketServing
}

// spec says how the process of a slot is started. n is its number among those that are pinned to one core.
func (w *worker) spec(s *leader.State, p *leader.Proc, n int) supervise.Spec {
	args := []string{
		p.Role.String(), "--name", p.Name, "--proc", strconv.FormatUint(uint64(p.ID), 10), "--cluster", w.clusterHex(),
		"--mgmt", api.MgmtAddr(w.c.Dir), "--listen", api.ProcAddr(w.c.Dir, p.Name),
		"--identity", api.IdentityPath(w.c.Dir, p.Name),
	}
	args = append(args, w.wireArgs()...)
	size := func(flag string, bytes int64) {
		if bytes > 0 {
			args = append(args, flag, strconv.FormatInt(bytes, 10))
		}
	}
	name, role, id := p.Name, p.Role, p.ID
	issue := func() error { return w.issue(name, role, id) }
	spec := supervise.Spec{Name: p.Name, Before: issue, Binary: w.file.Binary, Cores: []int{w.cores[n%len(w.cores)]}}
	switch p.Role {
	case wire.RoleDrive:
		path := ""
		if d := s.Drives[p.Drive]; d != nil {
			path = d.Path
		}
		args = append(args, "--device", path, "--drive-id", strconv.FormatUint(uint64(p.Drive), 10))
		size("--arena", w.file.DriveArena)
	case wire.RoleCompute:
		size("--memory", w.file.ComputeMemory)
		size("--arena", w.file.ComputeArena)
	case wire.RoleFrontend:
		name := ""
		if f := s.FSs[p.FS]; f != nil {
			name = f.Name
		}
		args = append(args, "--fs", name, "--mount", p.Mount)
		size("--dirty", w.file.FrontendDirty)
		size("--arena", w.file.FrontendArena)
		spec.Cores = nil
		if w.pinAll {
			spec.Cores = w.cores
		}
		mount := p.Mount
		spec.Before = func() error { return errors.Join(issue(), detachDead(mount)) }
	}
	spec.Args = args
	return spec
}

// wireArgs says how the processes speak with each other. Who shall speak by TCP on one server does it by the loopback address, at a
// port that the kernel picks and registration tells.
func (w *worker) wireArgs() []string {
	var args []string
	if w.file.Wire != "" {
		args = append(args, "--wire", string(w.file.Wire))
	}
	if w.file.Wire == route.WireTCP {
		args = append(args, "--listen", "tcp:127.0.0.1:0")
	}
	if w.file.WireEncryption {
		args = append(args, "--wire-encryption")
	}
	return args
}

// detachDead takes away what a frontend that died has left at its mount point: a mount that answers "not connected".
// Anything else there is left alone.
func detachDead(path string) error {
	var st unix.Stat_t
	for range 8 { // several may lie upon each other
		if err := unix.Stat(path, &st); err != unix.ENOTCONN {
			return nil
		}
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("the dead mount at %s cannot be detached: %w", path, err)
		}
	}
	return nil
}

// rootsLoop makes the root directories of filesystems that were asked for.
func (w *worker) rootsLoop(ctx context.Context) error {
	for ctx.Err() == nil {
		var todo []leader.FS
		w.d.Look(func(_ leader.Millis, c *leader.Core) {
			for _, id := range c.State().FSIDs() {
				if f := c.State().FSs[id]; !f.Made {
					todo = append(todo, *f)
				}
			}
		})
		for _, f := range todo {
			if err := w.makeRoot(ctx, f); err != nil && ctx.Err() == nil {
				w.log.Info("root directory is not made yet", "fs", f.Name, "err", err)
			}
		}
		_, next := w.d.Map()
		select {
		case <-next:
		case <-time.After(reconcileEvery):
		case <-ctx.Done():
		}
	}
	return nil
}

func (w *worker) makeRoot(ctx context.Context, f leader.FS) error {
	m, _ := w.d.Map()
	if m == nil || m.Owners[f.Root.Bucket()].Proc == 0 {
		return nil // nobody owns its bucket yet: the next map tells
	}
	actx, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	err := w.router.Bucket(actx, f.Root.Bucket(), &rpc.Call{
		Method: wire.MMakeRoot, Req: &wire.MakeRootReq{FS: f.ID, Root: f.Root, Mode: unix.S_IFDIR | 0o755},
	})
	if err != nil {
		return err
	}
	return w.d.Commit(ctx, func(now leader.Millis, c *leader.Core) { c.FSMade(now, f.ID) })
}
