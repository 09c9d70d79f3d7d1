package blockio

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/wire"
)

const errNoSpace = unix.ENOSPC

const (
	engineName   = "pread/pwrite"
	flushSync    = "fdatasync"
	flushTmpfs   = "none: tmpfs"
	flushThrough = "none: write through"
)

// fileDevice is a regular file or a block device.
type fileDevice struct {
	f    *os.File
	fd   int // of f; f keeps it open
	size int64
	info Info
}

// OpenFile opens a regular file or a block device for this process alone, with O_DIRECT where the filesystem allows it.
// Errors: KindNotFound, KindRefused (another process has it open, or it is neither file nor block device), KindIO.
func OpenFile(path string) (Device, error) {
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
	d := &fileDevice{info: Info{Path: path, Engine: engineName, Direct: true, Block: isBlock}}
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
func (d *fileDevice) setUp() error {
	path := d.info.Path
	if err := unix.Flock(d.fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return wire.Errorf("device.open", wire.KindRefused, path, "another process has it open (locked); stop that process first")
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
	dir := fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	for _, queue := range []string{"queue", "../queue"} { // a partition has its disk's queue
		b, err := os.ReadFile(filepath.Join(dir, queue, "write_cache"))
		if err == nil && strings.TrimSpace(string(b)) == "write through" && !isLoop(dir) {
			return flushThrough, false, false, nil
		}
	}
	return flushSync, true, false, nil
}

// isLoop says that the block device is a loop device: those say "write through" for what lies in a file's page cache.
func isLoop(sysDir string) bool {
	_, err := os.Stat(filepath.Join(sysDir, "loop"))
	return err == nil
}

func (d *fileDevice) Size() int64 { return d.size }
func (d *fileDevice) Info() Info  { return d.info }

// Close drops the lock with the descriptor.
func (d *fileDevice) Close() error {
	if err := d.f.Close(); err != nil {
		return wire.E("device.close", wire.KindIO, d.info.Path, err)
	}
	return nil
}

func (d *fileDevice) ReadAt(p []byte, off int64) error {
	if err := checkRange("device.read", d.info.Path, off, len(p), d.size); err != nil {
		return err
	}
	if !isAligned(p) {
		b := AlignedBytes(len(p)) // rare: data lives in aligned Bufs
		if err := d.ReadAt(b, off); err != nil {
			return err
		}
		copy(p, b)
		return nil
	}
	for n := 0; n < len(p); {
		got, err := unix.Pread(d.fd, p[n:], off+int64(n))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return ioError("device.read", d.info.Path, off, len(p), err)
		case got == 0:
			return ioError("device.read", d.info.Path, off, len(p), io.ErrUnexpectedEOF)
		default:
			n += got
		}
	}
	return nil
}

func (d *fileDevice) WriteAt(p []byte, off int64) error {
	if err := checkRange("device.write", d.info.Path, off, len(p), d.size); err != nil {
		return err
	}
	if !isAligned(p) {
		b := AlignedBytes(len(p)) // rare: data lives in aligned Bufs
		copy(b, p)
		return d.WriteAt(b, off)
	}
	for n := 0; n < len(p); {
		got, err := unix.Pwrite(d.fd, p[n:], off+int64(n))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return ioError("device.write", d.info.Path, off, len(p), err)
		case got == 0:
			return ioError("device.write", d.info.Path, off, len(p), io.ErrShortWrite)
		default:
			n += got
		}
	}
	return nil
}

func (d *fileDevice) WriteVecAt(parts [][]byte, off int64) error {
	total := partsLen(parts)
	if err := checkRange("device.write", d.info.Path, off, total, d.size); err != nil {
		return err
	}
	simple := true
	for _, p := range parts {
		simple = simple && isAligned(p) && len(p)%Align == 0
	}
	if !simple || len(parts) > maxIovecs {
		return d.writeGathered(parts, total, off)
	}
	for {
		got, err := unix.Pwritev(d.fd, parts, off)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return ioError("device.write", d.info.Path, off, total, err)
		case got == total:
			return nil
		default: // a short write: rare, so simply once more, gathered
			return d.writeGathered(parts, total, off)
		}
	}
}

// maxIovecs is the kernel's limit of parts in one call (UIO_MAXIOV).
const maxIovecs = 1024

func (d *fileDevice) writeGathered(parts [][]byte, total int, off int64) error {
	b := AlignedBytes(total)
	at := 0
	for _, p := range parts {
		at += copy(b[at:], p)
	}
	return d.WriteAt(b, off)
}

func (d *fileDevice) Flush() error {
	if !d.info.NeedsFlush {
		return nil
	}
	for {
		err := unix.Fdatasync(d.fd)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return wire.E("device.flush", wire.KindIO, d.info.Path, err)
		}
		return nil
	}
}
