package blockio

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/wire"
)

const errNoSpace = unix.ENOSPC

// Flush policies, in Info.Flush.
const (
	flushSync    = "fdatasync"
	flushTmpfs   = "none: tmpfs"
	flushThrough = "none: write through"
)

// file is an open regular file or block device; the engines do IO on it.
type file struct {
	f    *os.File
	fd   int // of f; f keeps it open
	size int64
	info Info
	// inCall says that io_uring may do IO on it inside of the call that submits it.
	inCall bool
}

// openFile opens path; a device that is in use it tries again for a while: see Engine.Open.
func openFile(path string, wait time.Duration) (*file, error) {
	for end := time.Now().Add(wait); ; time.Sleep(busyRetry) {
		f, err := tryOpen(path)
		busy := errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EWOULDBLOCK)
		if !busy || time.Now().After(end) {
			return f, err
		}
	}
}

func tryOpen(path string) (*file, error) {
	st, err := os.Stat(path)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, wire.E("device.open", wire.KindNotFound, path, err)
		}
		return nil, wire.E("device.open", wire.KindIO, path, err)
	}
	isBlock := st.Mode()&os.ModeDevice != 0 && st.Mode()&os.ModeCharDevice == 0
	if !isBlock && !st.Mode().IsRegular() {
		return nil, wire.Errorf("device.open", wire.KindRefused, path, "neither a regular file nor a block device (%s)", st.Mode().Type())
	}
	flags := os.O_RDWR
	if isBlock {
		flags |= unix.O_EXCL // refuses a device that is mounted or that another one has opened so
	}
	d := &file{info: Info{Path: path, Direct: true, Block: isBlock}}
	d.f, err = os.OpenFile(path, flags|unix.O_DIRECT, 0)
	if errors.Is(err, unix.EINVAL) {
		d.info.Direct, d.info.DirectReason = false, "the filesystem refuses O_DIRECT"
		d.f, err = os.OpenFile(path, flags, 0)
	}
	switch {
	case errors.Is(err, unix.EBUSY):
		return nil, wire.Errorf("device.open", wire.KindRefused, path, "in use (mounted, or open in another process); free it first: %w", err)
	case err != nil:
		return nil, wire.E("device.open", wire.KindIO, path, err)
	}
	d.fd = int(d.f.Fd())
	if err := d.setUp(); err != nil {
		_ = d.f.Close()
		return nil, err
	}
	return d, nil
}

// setUp locks the device, finds its size and decides on flushing.
func (d *file) setUp() error {
	path := d.info.Path
	if err := unix.Flock(d.fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return wire.Errorf("device.open", wire.KindRefused, path, "another process has it open (locked); stop that process first: %w", err)
		}
		return wire.E("device.open", wire.KindIO, path, fmt.Errorf("flock: %w", err))
	}
	size, err := d.f.Seek(0, io.SeekEnd)
	if err != nil {
		return wire.E("device.open", wire.KindIO, path, fmt.Errorf("size: %w", err))
	}
	d.size = size &^ (Align - 1)
	d.info.Flush, d.info.NeedsFlush, d.info.Fast, err = flushPolicy(d.fd, d.info.Block)
	if err != nil {
		return wire.E("device.open", wire.KindIO, path, err)
	}
	if d.inCall, err = worksInCall(d.fd, d.info.Block); err != nil {
		return wire.E("device.open", wire.KindIO, path, err)
	}
	d.info.FUA, err = canFUA(d.fd, d.info.Block)
	if err != nil {
		return wire.E("device.open", wire.KindIO, path, err)
	}
	d.info.Discard, d.info.DiscardReason, err = discardPolicy(d.fd, d.info.Block, d.info.Fast)
	if err != nil {
		return wire.E("device.open", wire.KindIO, path, err)
	}
	return nil
}

// flushPolicy tells why a commit flushes or not.
//
//   - tmpfs: memory; a flush would do nothing.
//   - block device whose queue says "write through": it has no volatile cache (or the kernel handles it), so a write that
//     returned is durable.
//   - else fdatasync: of a block device it flushes the device's cache; of a file it also commits the conversion of
//     preallocated extents, without which O_DIRECT data could be lost.
func flushPolicy(fd int, isBlock bool) (policy string, needs, fast bool, err error) {
	if !isBlock {
		var fs unix.Statfs_t
		if err := unix.Fstatfs(fd, &fs); err != nil {
			return "", false, false, fmt.Errorf("statfs: %w", err)
		}
		if fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.RAMFS_MAGIC {
			return flushTmpfs, false, true, nil
		}
		return flushSync, true, false, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", false, false, fmt.Errorf("stat: %w", err)
	}
	dir := sysDir(st.Rdev)
	if b, err := readQueue(dir, "write_cache"); err == nil && b == "write through" && !isLoop(dir) {
		return flushThrough, false, false, nil
	}
	return flushSync, true, false, nil
}

// worksInCall says whether io_uring may do IO on the file inside of the call that submits it, for as long as the device takes. Not on block devices
// and the filesystems that can be asked not to wait, and say so where they would have to: then a worker of the kernel does it. Every other one is
// suspected, such as FUSE, which does.
func worksInCall(fd int, isBlock bool) (bool, error) {
	if isBlock {
		return false, nil
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return false, fmt.Errorf("statfs: %w", err)
	}
	switch fs.Type {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC:
		return false, nil
	}
	return true, nil
}

// canFUA says whether the block device, or that on which the file's filesystem lies, writes through its cache when asked to. Where that
// cannot be told it does not.
func canFUA(fd int, isBlock bool) (bool, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false, fmt.Errorf("stat: %w", err)
	}
	dev := st.Dev
	if isBlock {
		dev = st.Rdev
	}
	b, err := readQueue(sysDir(dev), "fua")
	return err == nil && b == "1", nil
}

// isLoop says that the block device is a loop device: those say "write through" for what lies in a file's page cache.
func isLoop(sysDir string) bool {
	_, err := os.Stat(filepath.Join(sysDir, "loop"))
	return err == nil
}

// close drops the lock with the descriptor.
func (d *file) close() error {
	if err := d.f.Close(); err != nil {
		return wire.E("device.close", wire.KindIO, d.info.Path, err)
	}
	return nil
}
