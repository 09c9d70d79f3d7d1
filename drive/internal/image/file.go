package image

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/wire"
)

// File is a file or block device that is only read: it is opened O_RDONLY, so the kernel holds us to it, and a file on a
// read-only filesystem will do. Safe for concurrent use.
type File struct {
	path  string
	f     *os.File
	fd    int // of f; f keeps it open
	size  int64
	block bool
}

// OpenFile opens a device for reading. It refuses one that a drive serves: what is on it changes while it is read, so every
// finding could be false. The lock is shared: others may read too, a drive may not start meanwhile.
// Errors: KindNotFound, KindRefused (in use, or neither file nor block device), KindIO.
func OpenFile(path string) (*File, error) {
	const name = "device.open"
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, wire.E(name, wire.KindNotFound, path, err)
	case err != nil:
		return nil, wire.E(name, wire.KindIO, path, err)
	}
	d := &File{path: path, block: st.Mode()&os.ModeDevice != 0 && st.Mode()&os.ModeCharDevice == 0}
	if !d.block && !st.Mode().IsRegular() {
		return nil, wire.Errorf(name, wire.KindRefused, path, "neither a regular file nor a block device (%s)", st.Mode().Type())
	}
	flags := os.O_RDONLY
	if d.block {
		flags |= unix.O_EXCL // refuses a device that is mounted or that a drive has opened so
	}
	d.f, err = os.OpenFile(path, flags|unix.O_DIRECT, 0)
	if errors.Is(err, unix.EINVAL) {
		d.f, err = os.OpenFile(path, flags, 0) // the filesystem refuses O_DIRECT
	}
	switch {
	case errors.Is(err, unix.EBUSY):
		return nil, wire.Errorf(name, wire.KindRefused, path, "in use (mounted, or a running drive has it); stop that first")
	case err != nil:
		return nil, wire.E(name, wire.KindIO, path, err)
	}
	d.fd = int(d.f.Fd())
	if err := d.setUp(); err != nil {
		_ = d.f.Close()
		return nil, err
	}
	return d, nil
}

// setUp locks the device and finds its size.
func (d *File) setUp() error {
	if err := unix.Flock(d.fd, unix.LOCK_SH|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return wire.Errorf("device.open", wire.KindRefused, d.path, "a running drive has it open; stop that first (crake dev down, or end its process)")
		}
		return wire.E("device.open", wire.KindIO, d.path, fmt.Errorf("flock: %w", err))
	}
	size, err := d.f.Seek(0, io.SeekEnd)
	if err != nil {
		return wire.E("device.open", wire.KindIO, d.path, fmt.Errorf("size: %w", err))
	}
	d.size = size &^ (format.BlockSize - 1)
	return nil
}

// Path gives the path as opened.
func (d *File) Path() string { return d.path }

// IsBlock says that it is a block device, not a file.
func (d *File) IsBlock() bool { return d.block }

// Size implements Reader.
func (d *File) Size() int64 { return d.size }

// ReadAt implements Reader. Errors: KindIO.
func (d *File) ReadAt(p []byte, off int64) error {
	if off < 0 || off%format.BlockSize != 0 || len(p)%format.BlockSize != 0 || off > d.size-int64(len(p)) {
		return wire.Errorf("device.read", wire.KindIO, d.path, "%d bytes at %d: not whole blocks of a device of %d bytes", len(p), off, d.size)
	}
	for n := 0; n < len(p); {
		got, err := unix.Pread(d.fd, p[n:], off+int64(n))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return wire.E("device.read", wire.KindIO, fmt.Sprintf("%s: %d bytes at %d", d.path, len(p), off), err)
		case got == 0:
			return wire.E("device.read", wire.KindIO, fmt.Sprintf("%s: %d bytes at %d", d.path, len(p), off), io.ErrUnexpectedEOF)
		default:
			n += got
		}
	}
	return nil
}

// Close gives the device free. No other method may be running or called afterwards.
func (d *File) Close() error {
	if err := d.f.Close(); err != nil {
		return wire.E("device.close", wire.KindIO, d.path, err)
	}
	return nil
}

var _ Reader = (*File)(nil)
var _ Reader = blockio.Device(nil)
