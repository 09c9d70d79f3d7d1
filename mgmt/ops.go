package mgmt

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/mgmt/api"
	"github.com/crakefs/crake/mgmt/internal/leader"
	"github.com/crakefs/crake/mgmt/internal/supervise"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

// createFilesystem makes the record of a filesystem and waits until rootsLoop has made its root.
func (w *worker) createFilesystem(ctx context.Context, name string) (*api.Filesystem, error) {
	var ferr error
	err := w.d.Commit(ctx, func(now leader.Millis, c *leader.Core) { _, ferr = c.AddFS(now, name) })
	if wire.KindOf(ferr) == wire.KindExists {
		return nil, fail(http.StatusConflict, "crake fs ls lists them", "there is a filesystem %q already", name)
	}
	if err := errors.Join(ferr, err); err != nil {
		return nil, err
	}
	wctx, cancel := context.WithTimeout(ctx, rootWait)
	defer cancel()
	for {
		m, next := w.d.Map()
		if m.FS(name) != nil {
			break
		}
		select {
		case <-next:
		case <-wctx.Done():
			return nil, fail(http.StatusServiceUnavailable, "it will appear by itself; see crake status for what is missing",
				"filesystem %q is noted, but its root directory could not be made in %v", name, rootWait)
		}
	}
	for _, f := range w.filesystems() {
		if f.Name == name {
			return &f, nil
		}
	}
	return nil, fail(http.StatusNotFound, "", "filesystem %q was removed meanwhile", name)
}

// removeFilesystem removes an empty filesystem.
func (w *worker) removeFilesystem(ctx context.Context, name string) error {
	w.opMu.Lock()
	defer w.opMu.Unlock()
	var f *leader.FS
	var mounts []string
	err := w.d.Commit(ctx, func(now leader.Millis, c *leader.Core) {
		have := c.State().FSNamed(name)
		if have == nil {
			return
		}
		for _, p := range c.State().Procs {
			if p.FS == have.ID {
				mounts = append(mounts, p.Mount)
			}
		}
		if len(mounts) == 0 {
			c.FSDeleting(now, have.ID, true)
		}
		v := *have
		f = &v
	})
	switch {
	case err != nil:
		return err
	case f == nil:
		return fail(http.StatusNotFound, "crake fs ls lists them", "there is no filesystem %q", name)
	case len(mounts) > 0:
		return fail(http.StatusConflict, "unmount it first: crake umount "+mounts[0], "filesystem %q is mounted at %s", name, strings.Join(mounts, ", "))
	}
	actx, cancel := context.WithTimeout(ctx, rootWait)
	defer cancel()
	err = w.router.Bucket(actx, f.Root.Bucket(), &rpc.Call{Method: wire.MDropRoot, Req: &wire.MakeRootReq{FS: f.ID, Root: f.Root}})
	if err != nil && wire.KindOf(err) != wire.KindNotFound && f.Made {
		// It stays. Should the removal have happened all the same (an answer that was lost), the next try finds it gone.
		cerr := w.d.Commit(context.WithoutCancel(ctx), func(now leader.Millis, c *leader.Core) { c.FSDeleting(now, f.ID, false) })
		if wire.KindOf(err) == wire.KindNotEmpty {
			err = fail(http.StatusConflict, "mount it and remove its content first", "filesystem %q is not empty", name)
		}
		return errors.Join(err, cerr)
	}
	return w.d.Commit(context.WithoutCancel(ctx), func(now leader.Millis, c *leader.Core) { c.FSGone(now, f.ID) })
}

// addMount starts a frontend and waits until it is mounted. What does not come up is taken away again.
func (w *worker) addMount(ctx context.Context, fs, path string) (*api.Mount, error) {
	path, err := mountPoint(path)
	if err != nil {
		return nil, err
	}
	w.opMu.Lock()
	defer w.opMu.Unlock()
	name, err := w.addFrontend(ctx, fs, path)
	if err != nil {
		return nil, err
	}
	w.nudge()
	m, err := w.awaitMount(ctx, name)
	if err == nil {
		w.event(wire.SeverityInfo, "mount.add", name, fmt.Sprintf("%s at %s", fs, path))
		return m, nil
	}
	// The caller may have gone; what was begun is taken away nevertheless.
	cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), graceFrontend)
	defer cancel()
	return nil, errors.Join(err, w.dropFrontend(cctx, name, path))
}

// mountPoint checks the path of a new mount.
func mountPoint(path string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", fail(http.StatusBadRequest, "give an absolute path", "mount point %q", path)
	}
	path = filepath.Clean(path)
	if err := detachDead(path); err != nil {
		return "", fail(http.StatusConflict, "", "%v", err)
	}
	st, err := os.Stat(path)
	switch {
	case os.IsNotExist(err):
		return "", fail(http.StatusBadRequest, "make it first: mkdir -p "+path, "mount point %s does not exist", path)
	case err != nil:
		return "", fail(http.StatusBadRequest, "", "mount point %s: %v", path, err)
	case !st.IsDir():
		return "", fail(http.StatusBadRequest, "choose a directory", "mount point %s is not a directory", path)
	}
	return path, nil
}

func (w *worker) addFrontend(ctx context.Context, fs, path string) (name string, err error) {
	var ferr error
	err = w.d.Commit(ctx, func(now leader.Millis, c *leader.Core) {
		s := c.State()
		f := s.FSNamed(fs)
		if f == nil || f.Deleting {
			ferr = fail(http.StatusNotFound, "crake fs ls lists them", "there is no filesystem %q", fs)
			return
		}
		n := 0
		for _, p := range s.Procs {
			if p.Role == wire.RoleFrontend {
				n++
				if p.Mount == path {
					ferr = fail(http.StatusConflict, "choose another mount point, or crake umount "+path, "%s is a mount point of this cluster already", path)
					return
				}
			}
		}
		if n >= maxMounts {
			ferr = fail(http.StatusConflict, "", "%d mounts are the most of one server", maxMounts)
			return
		}
		// frontend0 is the mount of the cluster file.
		for i := 1; name == ""; i++ {
			if s.ProcNamed(fmt.Sprintf("frontend%d", i)) == nil {
				name = fmt.Sprintf("frontend%d", i)
			}
		}
		_, ferr = c.AddProc(now, leader.Proc{Name: name, Role: wire.RoleFrontend, Server: serverID, FS: f.ID, Mount: path})
		w.mu.Lock()
		delete(w.failures, name)
		delete(w.started, name)
		w.mu.Unlock()
	})
	if ferr != nil {
		return "", ferr
	}
	return name, err
}

// awaitMount waits until a frontend is mounted or has failed.
func (w *worker) awaitMount(ctx context.Context, name string) (*api.Mount, error) {
	ctx, cancel := context.WithTimeout(ctx, mountWait)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		_, next := w.d.Map()
		for _, m := range w.mounts() {
			if m.Name == name && m.Ready {
				return &m, nil
			}
			if m.Name == name && m.Error != "" {
				return nil, fail(http.StatusConflict, "", "mount at %s: %s", m.Path, m.Error)
			}
		}
		select {
		case <-next:
		case <-tick.C:
		case <-ctx.Done():
			return nil, fail(http.StatusGatewayTimeout, "see "+api.LogPath(w.c.Dir, name), "the mount was not ready in %v", mountWait)
		}
	}
}

// dropFrontend stops a frontend for good and takes its mount away.
func (w *worker) dropFrontend(ctx context.Context, name, path string) error {
	if err := w.d.Commit(ctx, func(now leader.Millis, c *leader.Core) {
		if p := c.State().ProcNamed(name); p != nil {
			c.SetWanted(now, p.ID, false)
		}
	}); err != nil {
		return err
	}
	killed, err := w.sup.Stop(ctx, name, graceFrontend)
	if err != nil {
		return err
	}
	if killed {
		w.event(wire.SeverityError, "mount.killed", name, fmt.Sprintf("it did not end in %v after SIGTERM and was killed; writes that were not synced are lost", graceFrontend))
	}
	return detachDead(path)
}

// removeMount unmounts path and stops its frontend. A mount point in use stays as it is.
func (w *worker) removeMount(ctx context.Context, path string) error {
	if !filepath.IsAbs(path) {
		return fail(http.StatusBadRequest, "give an absolute path", "mount point %q", path)
	}
	path = filepath.Clean(path)
	w.opMu.Lock()
	defer w.opMu.Unlock()
	name := ""
	w.d.Look(func(_ leader.Millis, c *leader.Core) {
		for _, p := range c.State().Procs {
			if p.Role == wire.RoleFrontend && p.Mount == path {
				name = p.Name
			}
		}
	})
	if name == "" {
		return fail(http.StatusNotFound, "crake status lists the mounts", "nothing of this cluster is mounted at %s", path)
	}
	if err := checkBusy(path); err != nil {
		return err
	}
	if err := w.dropFrontend(context.WithoutCancel(ctx), name, path); err != nil {
		return err
	}
	w.event(wire.SeverityInfo, "mount.remove", name, path)
	return nil
}

// checkBusy asks the kernel whether a mount point is in use. MNT_EXPIRE is the question without the deed: the first call only
// marks a mount that nobody uses.
func checkBusy(path string) error {
	err := unix.Unmount(path, unix.MNT_EXPIRE)
	if err != unix.EBUSY {
		return nil // EAGAIN: not in use; EINVAL: not mounted, all the better
	}
	who := "somebody"
	if users := supervise.UsersOf(path, maxUsers); len(users) > 0 {
		who = "process " + strings.Join(users, ", ")
	}
	return fail(http.StatusConflict, "let it leave (cd elsewhere, close files), then try again", "%s is in use by %s", path, who)
}

// stop begins the orderly stop of everything; it goes on after the answer and ends this process.
func (w *worker) stop(ctx context.Context, force bool) (*api.StopResponse, error) {
	w.opMu.Lock()
	defer w.opMu.Unlock()
	resp := &api.StopResponse{PID: os.Getpid(), KeeperPID: w.keeperPID()}
	w.mu.Lock()
	already := w.stopping
	w.mu.Unlock()
	if already {
		return resp, nil
	}
	if !force {
		for _, m := range w.mounts() {
			if err := checkBusy(m.Path); err != nil {
				return nil, err
			}
		}
	}
	w.mu.Lock()
	w.stopping = true
	w.mu.Unlock()
	if err := w.d.Commit(ctx, func(now leader.Millis, c *leader.Core) { c.SetStopping(now, true) }); err != nil {
		w.log.Warn("stopping all the same", "err", err)
	}
	w.event(wire.SeverityInfo, "cluster.stop", "", "everything is stopped in order")
	close(w.stopAsked)
	return resp, nil
}

// stopLoop waits until a stop is asked for and does it.
func (w *worker) stopLoop(ctx context.Context) error {
	select {
	case <-w.stopAsked:
		w.stopAll(ctx)
	case <-ctx.Done():
	}
	return nil
}

func (w *worker) stopAll(ctx context.Context) {
	roles := []struct {
		role  wire.Role
		grace time.Duration
	}{{wire.RoleFrontend, graceFrontend}, {wire.RoleCompute, graceCompute}, {wire.RoleDrive, graceDrive}}
	for _, r := range roles {
		var wg sync.WaitGroup
		for name, path := range w.named(r.role) {
			wg.Go(func() {
				killed, err := w.sup.Stop(ctx, name, r.grace)
				if killed || err != nil {
					w.event(wire.SeverityError, "process.stop", name, fmt.Sprintf("killed: %v; %v", killed, err))
				}
				if path == "" {
					return
				}
				if err := detachDead(path); err != nil {
					w.event(wire.SeverityError, "mount.stop", name, err.Error())
				}
			})
		}
		wg.Wait()
	}
	if ctx.Err() == nil {
		w.end(errStopped)
	}
}

// named gives the names of the slots of a role with their mount points.
func (w *worker) named(role wire.Role) map[string]string {
	out := map[string]string{}
	w.d.Look(func(_ leader.Millis, c *leader.Core) {
		for _, p := range c.State().Procs {
			if p.Role == role {
				out[p.Name] = p.Mount
			}
		}
	})
	return out
}
