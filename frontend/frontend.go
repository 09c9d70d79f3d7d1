package frontend

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/frontend/internal/fusefs"
	"github.com/crakefs/crake/frontend/internal/mnt"
	"github.com/crakefs/crake/wire"
)

// Run mounts the filesystem and serves it until ctx ends or somebody unmounts it (nil), or the session is over. At the end it makes
// durable what was written, as far as the cluster lets it in bounded time, and always takes the mount away. It returns when everything
// that it started has ended. Errors at the start are one line that says what to do.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return wire.E("frontend.run", wire.KindInvalid, cfg.Name, err)
	}
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(processorsPerCore * runtime.GOMAXPROCS(0))
	}
	// Files are made with the mode that the kernel says.
	unix.Umask(0)
	point, err := mnt.Resolve(cfg.Mount)
	if err != nil {
		return err
	}
	if err := mnt.Prepare(point, "fuse."+fusefs.Subtype, source(cfg.FS)); err != nil {
		return err
	}
	m, err := join(ctx, cfg)
	if err != nil {
		return err
	}
	return errors.Join(m.serve(ctx, point), m.leave())
}

// source is what `mount` shows as the device.
func source(fs string) string { return "crake/" + fs }

// serve mounts, and serves until the end.
func (m *frontend) serve(ctx context.Context, point string) error {
	log := m.cfg.Log
	fs := fusefs.New(m.fs)
	served, err := fs.Mount(point, source(m.cfg.FS), log)
	if err != nil {
		return err
	}
	drop := fs.DropPages
	m.dropPages.Store(&drop)
	m.ready.Store(true)
	log.Info("mounted", "fs", m.cfg.FS, "mount", point, "session", m.member.Session())

	var cause error
	select {
	case <-ctx.Done():
	case <-served:
		log.Info("unmounted by somebody else", "mount", point)
	case <-m.ctx.Done():
		cause = context.Cause(m.ctx)
	}
	m.ready.Store(false)
	return errors.Join(cause, m.unmount(point, served, cause == nil))
}

// unmount makes durable what can be, takes the mount away and waits for the last requests. sync is false when the session is over:
// then the cluster takes nothing any more.
func (m *frontend) unmount(point string, served <-chan struct{}, sync bool) error {
	var errs []error
	flush := func() {
		if !sync {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), syncTimeout)
		defer cancel()
		if err := m.fs.Sync(ctx); err != nil {
			errs = append(errs, fmt.Errorf("written data may be lost: %w", err))
		}
	}
	flush()
	var lazy bool
	gone := make(chan error, 1)
	go func() { // an unmount may wait for requests that we serve
		var err error
		lazy, err = mnt.Unmount(point, unmountPatience)
		gone <- err
	}()
	select {
	case err := <-gone:
		errs = append(errs, err)
		if lazy {
			m.cfg.Log.Warn("the mount was in use and was detached; its users get errors", "mount", point)
		}
	case <-time.After(unmountPatience + serveTimeout):
		errs = append(errs, fmt.Errorf("unmount %s does not return", point))
	}
	select {
	case <-served:
	case <-time.After(serveTimeout):
	}
	flush() // pages of mmaps came with the unmount
	return errors.Join(errs...)
}
