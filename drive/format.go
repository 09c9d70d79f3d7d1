package drive

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/drive/internal/store"
	"github.com/crakefs/crake/wire"
)

const opFormat = "drive.format"

// Format makes a drive of a device. It refuses a device that holds anything, unless forced, and one that a process has
// open in any case. A file that it created is removed again when it fails. Errors: KindInvalid (config), KindExists (it is
// this drive of this cluster already), KindRefused (it holds something else, or is in use), KindNoSpace, KindIO.
func Format(ctx context.Context, cfg FormatConfig) (err error) {
	if verr := cfg.Validate(); verr != nil {
		return wire.E(opFormat, wire.KindInvalid, cfg.Path, verr)
	}
	cfg.SizeBytes &^= wire.BlockSize - 1
	created, err := prepareFile(cfg)
	if created {
		defer func() {
			if err != nil {
				_ = os.Remove(cfg.Path)
			}
		}()
	}
	if err != nil {
		return err
	}
	dev, err := blockio.OpenFile(cfg.Path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dev.Close()) }()
	size := dev.Size()
	if cfg.SizeBytes != 0 && cfg.SizeBytes < size {
		size = cfg.SizeBytes
	}
	switch {
	case cfg.SizeBytes > dev.Size():
		return wire.Errorf(opFormat, wire.KindRefused, cfg.Path, "has %d bytes, not %d; give a smaller size, or remove it first", dev.Size(), cfg.SizeBytes)
	case size < minDeviceBytes:
		return wire.Errorf(opFormat, wire.KindRefused, cfg.Path, "%d bytes are too few; a drive has at least %d MiB", size, int64(minDeviceBytes)>>20)
	}
	if err := ctx.Err(); err != nil {
		return wire.E(opFormat, wire.KindInterrupted, cfg.Path, err)
	}
	if !created && !cfg.Force {
		if err := refuseForeign(dev, cfg); err != nil {
			return err
		}
	}
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	return store.Format(dev, &format.Superblock{
		Version: format.CurrentVersion, Drive: cfg.Drive, Cluster: cfg.Cluster,
		FormatID: binary.LittleEndian.Uint64(id[:]), Created: time.Now().UnixNano(), Geometry: format.DefaultGeometry(size),
	})
}

// prepareFile creates a file that is missing, and gives an empty one its size. created says that its content is ours.
func prepareFile(cfg FormatConfig) (created bool, err error) {
	st, err := os.Stat(cfg.Path)
	missing := errors.Is(err, os.ErrNotExist)
	switch {
	case err != nil && !missing:
		return false, wire.E(opFormat, wire.KindIO, cfg.Path, err)
	case !missing && (!st.Mode().IsRegular() || st.Size() > 0):
		return false, nil
	case cfg.SizeBytes == 0:
		return false, wire.Errorf(opFormat, wire.KindInvalid, cfg.Path, "does not exist or is empty; give a size to create it")
	}
	flags := os.O_RDWR
	if missing {
		flags |= os.O_CREATE | os.O_EXCL
	}
	f, err := os.OpenFile(cfg.Path, flags, 0o600)
	if err != nil {
		return false, wire.E(opFormat, wire.KindIO, cfg.Path, err)
	}
	defer func() {
		if cerr := f.Close(); err == nil && cerr != nil {
			err = wire.E(opFormat, wire.KindIO, cfg.Path, cerr)
		}
	}()
	size := cfg.SizeBytes
	if err := preallocate(f, size); err != nil {
		kind := wire.KindIO
		if errors.Is(err, unix.ENOSPC) {
			kind = wire.KindNoSpace
		}
		return missing, wire.Errorf(opFormat, kind, cfg.Path, "cannot allocate %d bytes: %w", size, err)
	}
	return missing, syncFile(f)
}

// preallocate gives a file its size and its blocks, so that a write never finds the filesystem full. On tmpfs only the
// size: blocks there are memory.
func preallocate(f *os.File, size int64) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return err
	}
	if fs.Type == unix.TMPFS_MAGIC {
		return f.Truncate(size)
	}
	for {
		err := unix.Fallocate(int(f.Fd()), 0, 0, size)
		switch {
		case err == unix.EINTR:
		case errors.Is(err, unix.EOPNOTSUPP):
			return f.Truncate(size) // such a filesystem cannot promise space anyway
		default:
			return err
		}
	}
}

// syncFile makes a file's size and its name durable.
func syncFile(f *os.File) error {
	if err := f.Sync(); err != nil {
		return wire.E(opFormat, wire.KindIO, f.Name(), err)
	}
	dir, err := os.Open(filepath.Dir(f.Name()))
	if err != nil {
		return wire.E(opFormat, wire.KindIO, f.Name(), err)
	}
	defer func() { _ = dir.Close() }()
	if err := dir.Sync(); err != nil {
		return wire.E(opFormat, wire.KindIO, f.Name(), err)
	}
	return nil
}

// refuseForeign refuses a device that holds something.
func refuseForeign(dev blockio.Device, cfg FormatConfig) error {
	c, err := format.Inspect(dev, blockio.AlignedBytes)
	if err != nil {
		return err
	}
	const force = "to destroy it, format with force"
	sb := c.Superblock
	switch {
	case sb != nil && sb.Cluster == cfg.Cluster && sb.Drive == cfg.Drive:
		return wire.Errorf(opFormat, wire.KindExists, cfg.Path, "is drive %d of this cluster already; %s", sb.Drive, force)
	case sb != nil && sb.Cluster == cfg.Cluster:
		return wire.Errorf(opFormat, wire.KindRefused, cfg.Path, "is drive %d of this cluster; %s", sb.Drive, force)
	case sb != nil:
		return wire.Errorf(opFormat, wire.KindRefused, cfg.Path, "is drive %d of another cluster (%s); %s", sb.Drive, sb.Cluster, force)
	case c.Foreign != "":
		return wire.Errorf(opFormat, wire.KindRefused, cfg.Path, "holds %s; %s", c.Foreign, force)
	}
	return nil
}
