package blockio

import (
	"io"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/wire/copies"
)

// preadDevice does each IO by a blocking system call of its caller's thread.
type preadDevice struct {
	*file // immutable
}

// Size implements Device.
func (d *preadDevice) Size() int64 { return d.size }

// Info implements Device.
func (d *preadDevice) Info() Info { return d.info }

// Close implements Device.
func (d *preadDevice) Close() error { return d.close() }

// Discard implements Device.
func (d *preadDevice) Discard(off, n int64) error { return d.discard(off, n) }

// ReadAt implements Device.
func (d *preadDevice) ReadAt(p []byte, off int64) error {
	if err := checkRange("device.read", d.info.Path, off, len(p), d.size); err != nil {
		return err
	}
	if !isAligned(p) {
		b := AlignedBytes(len(p)) // rare: data lives in aligned Bufs
		if err := d.ReadAt(b, off); err != nil {
			return err
		}
		copies.Add(copies.Gather, copy(p, b))
		return nil
	}
	for n := 0; n < len(p); { // whole blocks, also after a short one
		got, err := unix.Pread(d.fd, p[n:], off+int64(n))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return ioError("device.read", d.info.Path, off, len(p), err)
		case got < Align: // less than a block is left: the file was cut off
			return ioError("device.read", d.info.Path, off, len(p), io.ErrUnexpectedEOF)
		default:
			n += got &^ (Align - 1)
		}
	}
	return nil
}

// WriteAt implements Device.
func (d *preadDevice) WriteAt(p []byte, off int64) error {
	if err := checkRange("device.write", d.info.Path, off, len(p), d.size); err != nil {
		return err
	}
	if !isAligned(p) {
		b := AlignedBytes(len(p)) // rare: data lives in aligned Bufs
		copies.Add(copies.Gather, copy(b, p))
		return d.WriteAt(b, off)
	}
	return d.write(p, off, 0)
}

// write writes p, which is aligned, with RWF flags.
func (d *preadDevice) write(p []byte, off int64, flags int) error {
	for n := 0; n < len(p); { // whole blocks, also after a short one
		got, err := unix.Pwritev2(d.fd, [][]byte{p[n:]}, off+int64(n), flags)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return ioError("device.write", d.info.Path, off, len(p), err)
		case got < Align: // less than a block is left: the file was cut off
			return ioError("device.write", d.info.Path, off, len(p), io.ErrShortWrite)
		default:
			n += got &^ (Align - 1)
		}
	}
	return nil
}

// WriteVecAt implements Device.
func (d *preadDevice) WriteVecAt(parts [][]byte, off int64) error {
	total := partsLen(parts)
	if err := checkRange("device.write", d.info.Path, off, total, d.size); err != nil {
		return err
	}
	if !areSimple(parts) {
		return d.WriteAt(gather(parts, total), off)
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
			return d.WriteAt(gather(parts, total), off)
		}
	}
}

// Flush implements Device.
func (d *preadDevice) Flush() error {
	if !d.info.NeedsFlush {
		return nil
	}
	for {
		err := unix.Fdatasync(d.fd)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return flushError(d.info.Path, err)
		}
		return nil
	}
}
