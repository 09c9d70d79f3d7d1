// Package blockio is the drive's way to its devices: one interface, its implementation over files and block devices by
// pread and pwrite with O_DIRECT, and, for tests, a device in memory that loses and tears what was not flushed, and
// decorators that add errors, delay, bit rot and a full device.
package blockio

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/drive/internal/uring"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/copies"
)

// Align is the alignment, in bytes, of every offset, length and memory address of an IO: one block.
const Align = wire.BlockSize

// Device is a range of bytes that survives.
//
// All offsets and lengths are multiples of Align. Memory should be aligned too; an implementation may copy what is not.
// All methods are safe for concurrent use; overlapping concurrent writes leave either's bytes, sector by sector.
// A write is durable when a Flush that began after it returned has returned, or, if Info().NeedsFlush is false, when it
// returned. Errors are *wire.Error: KindIO, KindNoSpace (a thin device is full), KindInvalid (misuse).
type Device interface {
	// ReadAt fills p from off.
	ReadAt(p []byte, off int64) error
	// WriteAt writes p at off. p must not change before it returns.
	WriteAt(p []byte, off int64) error
	// WriteVecAt writes the parts one after the other, the first at off.
	WriteVecAt(parts [][]byte, off int64) error
	// Flush makes everything durable that was written before it was called.
	Flush() error
	// Discard tells the device that nobody needs n bytes at off any more: from its beginning on they may read as anything, until
	// they are written again. Nothing is durable of it without a Flush, and none is needed. It may take long and block a thread.
	// Without Info().Discard it does nothing.
	Discard(off, n int64) error
	// Size gives the bytes of the device; it does not change while the device is open.
	Size() int64
	// Info describes the device.
	Info() Info
	// Close gives the device free. No other method may be running or called afterwards.
	Close() error
}

// IO is one read, write or flush of an Async device. Whoever makes it may use it again, also from Done.
type IO struct {
	// Immutable from Start until Done.
	Flush   bool     // as Device.Flush; all else is unused then
	Write   bool     // else a read
	Durable bool     // of a write of P: as Durable.WriteDurable
	Off     int64    // on the device
	P       []byte   // memory, borrowed until Done; aligned, or it is copied
	Vec     [][]byte // of a write, if not nil: what is written in place of P, as by Device.WriteVecAt; borrowed likewise
	// Done is called once, from the engine's goroutine, when the IO has ended; err as the methods of Device give it. It must not
	// block; it may call Start and Kick.
	Done func(io *IO, err error)

	// The engine's, from Start until Done.
	dev   *ringDevice
	op    uring.Op
	rest  []byte       // of P: what is still to be done
	parts []unix.Iovec // the same of a vectored write
	at    int64        // where rest or parts go
	fixed bool         // the entry was one on a registered region
	tries uint8        // how often the kernel has sent it back
	flags uint32       // for the kernel, of a write
	fail  error        // misuse: how it ends, by way of an entry that does nothing
	next  *IO          // in the list of those that wait
}

// Async is a device that does IO without a goroutine or thread waiting for it. Safe for concurrent use.
type Async interface {
	Device
	// Start queues an IO. It does not block and does not call Done itself. It is begun at the latest with the next Kick by
	// anybody; the engine may begin it before.
	Start(io *IO)
	// Kick gives all that is queued to the kernel, in one system call where possible.
	Kick()
}

// Info describes a device.
type Info struct {
	Path   string // as opened
	Engine string // how IO is done: "io_uring", "pread/pwrite", "memory"
	// EngineReason says why it is not io_uring; empty: it is, or it was asked for.
	EngineReason string
	Flush        string // why a commit flushes or not: "fdatasync", "none: tmpfs", "none: write through"
	// NeedsFlush says that a write is durable only after Flush.
	NeedsFlush bool
	// FUA says that a write can be made durable by itself, without a flush of the device's cache; see Durable.
	FUA bool
	// Direct says that IO passes the page cache by; DirectReason tells why not.
	Direct       bool
	DirectReason string
	// Fast says that an IO is a copy in memory, so that doing several at once on one core gains nothing.
	Fast bool
	// Block says that it is a block device, not a file.
	Block bool
	// Discard says what Discard does, "blkdiscard" or "punch hole"; empty: nothing, for DiscardReason.
	Discard       string
	DiscardReason string
}

// AlignedBytes gives zeroed memory of n bytes that starts on a multiple of Align. Garbage collected; for buffers that
// live long or are rare. Data travels in wire.Buf.
func AlignedBytes(n int) []byte {
	b := make([]byte, n+Align)
	skip := 0
	if rest := int(uintptr(unsafe.Pointer(unsafe.SliceData(b))) % Align); rest != 0 {
		skip = Align - rest
	}
	return b[skip : skip+n : skip+n]
}

func isAligned(p []byte) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(p)))%Align == 0
}

// checkDiscard is checkRange for lengths beyond int32.
func checkDiscard(path string, off, n, size int64) error {
	if off < 0 || n < 0 || off%Align != 0 || n%Align != 0 || n > size || off > size-n {
		return wire.Errorf("device.discard", wire.KindInvalid, path, "%d bytes at %d: not whole blocks of a device of %d bytes", n, off, size)
	}
	return nil
}

// checkRange reports misuse: an IO outside the device or not in whole blocks.
func checkRange(op, path string, off int64, n int, size int64) error {
	if off < 0 || off%Align != 0 || n%Align != 0 || off+int64(n) > size {
		return wire.Errorf(op, wire.KindInvalid, path, "%d bytes at %d: not whole blocks of a device of %d bytes", n, off, size)
	}
	return nil
}

// ioError wraps what the kernel said about an IO.
func ioError(op, path string, off int64, n int, err error) error {
	kind := wire.KindIO
	if errors.Is(err, errNoSpace) {
		kind = wire.KindNoSpace
	}
	return wire.E(op, kind, fmt.Sprintf("%s: %d bytes at %d", path, n, off), err)
}

// flushError wraps what the kernel said about a flush.
func flushError(path string, err error) error { return wire.E("device.flush", wire.KindIO, path, err) }

// maxIovecs is the kernel's limit of parts in one call (UIO_MAXIOV).
const maxIovecs = 1024

// areSimple says that parts can be written as they are: whole blocks in aligned memory.
func areSimple(parts [][]byte) bool {
	for _, p := range parts {
		if !isAligned(p) || len(p)%Align != 0 {
			return false
		}
	}
	return len(parts) <= maxIovecs
}

// gather copies the parts into one.
func gather(parts [][]byte, total int) []byte {
	copies.Add(copies.Gather, total)
	b := AlignedBytes(total)
	at := 0
	for _, p := range parts {
		at += copy(b[at:], p)
	}
	return b
}

func partsLen(parts [][]byte) int {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	return n
}
