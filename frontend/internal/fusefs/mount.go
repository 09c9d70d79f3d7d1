package fusefs

import (
	"fmt"
	"log/slog"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/frontend/internal/mnt"
	"github.com/crakefs/crake/wire"
)

const (
	// Subtype makes `mount` show the type fuse.crake.
	Subtype = "crake"
	// maxRequest is the kernel's largest READ and WRITE, without its sysctl being raised.
	maxRequest = 1 << 20
	// maxBackground is how many requests that nobody sits and waits for (asynchronous direct IO, readahead) the kernel sends at once:
	// a few jobs at depth 32.
	maxBackground = 256
	// maxRequestBytes bounds the memory that holds write requests under way. While it is full none is read from the kernel.
	maxRequestBytes = 128 << 20
	// pageReadaheadKiB is how far the kernel reads ahead for mmaps.
	pageReadaheadKiB = 1024
)

// Mount mounts f at point, with mount(2), and serves it. Served is closed after the last request, when somebody has unmounted it.
// The calling process must not touch what it has mounted.
func (f *FS) Mount(point, source string, log *slog.Logger) (served <-chan struct{}, err error) {
	server, err := fuse.NewServer(f, point, &fuse.MountOptions{
		AllowOther: true, FsName: source, Name: Subtype, Options: []string{"default_permissions"},
		// As of a disk: setuid programs and devices work. (Zero would mean nosuid and nodev.)
		DirectMountStrict: true, DirectMountFlags: unix.MS_MGC_VAL,
		MaxWrite: maxRequest, MaxBackground: maxBackground, MaxInflightRequestBytes: maxRequestBytes,
		EnableLocks: true, DisableSplice: true, ExplicitDataCacheControl: true,
		ExtraCapabilities: fuse.CAP_ASYNC_DIO | fuse.CAP_DIRECT_IO_ALLOW_MMAP | fuse.CAP_READDIRPLUS_AUTO,
		Logger:            slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	})
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", point, err)
	}
	f.server.Store(server)
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve()
	}()
	if err := mnt.SetReadahead(point, pageReadaheadKiB); err != nil {
		log.Info("kernel readahead stays as it is", "err", err)
	}
	return done, nil
}

// DropPages makes the kernel write back and forget the pages of an inode. It may block until requests of the kernel have been
// answered, so it must not be called by one.
func (f *FS) DropPages(ino wire.Ino) {
	if s := f.server.Load(); s != nil {
		_ = s.InodeNotify(f.Node(ino), 0, 0) // ENOENT: the kernel does not know it
	}
}
