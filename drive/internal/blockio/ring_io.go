package blockio

import (
	"fmt"
	"io"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/drive/internal/uring"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/copies"
)

// prepare makes an IO of what its user has set.
func (io *IO) prepare(d *ringDevice) {
	io.dev, io.fail, io.tries, io.parts, io.flags = d, nil, 0, nil, 0
	io.rest, io.at = io.P, io.Off
	switch {
	case io.Flush:
		io.op = uring.OpFsync
		if !d.info.NeedsFlush {
			io.op = uring.OpNop
		}
	case io.Write:
		io.prepareWrite()
	default:
		io.op = uring.OpRead
		if io.fail = checkRange("device.read", d.info.Path, io.Off, len(io.P), d.size); io.fail == nil && !isAligned(io.P) {
			io.fail = wire.Errorf("device.read", wire.KindInvalid, d.info.Path, "memory that does not start on a block")
		}
	}
	if io.fail != nil || !io.Flush && io.bytes() == 0 {
		io.op = uring.OpNop
	}
}

// bytes gives the length of a read or write.
func (io *IO) bytes() int {
	if io.Vec != nil {
		return partsLen(io.Vec)
	}
	return len(io.P)
}

// prepareWrite is prepare of a write.
func (io *IO) prepareWrite() {
	d, n := io.dev, io.bytes()
	io.op = uring.OpWrite
	if io.Durable && d.info.NeedsFlush {
		io.flags = uring.WriteDsync
	}
	if io.fail = checkRange("device.write", d.info.Path, io.Off, n, d.size); io.fail != nil {
		return
	}
	switch {
	case io.Vec == nil && !isAligned(io.P):
		io.rest = AlignedBytes(n) // rare: data lives in aligned Bufs
		copies.Add(copies.Gather, copy(io.rest, io.P))
	case len(io.Vec) == 1 && isAligned(io.Vec[0]):
		io.rest = io.Vec[0]
	case io.Vec != nil && !areSimple(io.Vec):
		io.rest = gather(io.Vec, n)
	case io.Vec != nil:
		io.op = uring.OpWritev
		for _, p := range io.Vec {
			if len(p) > 0 {
				v := unix.Iovec{Base: &p[0]}
				v.SetLen(len(p))
				io.parts = append(io.parts, v)
			}
		}
	}
}

// entry is what the kernel is told of io: what is left of it.
func (io *IO) entry(table *regions) uring.SQE {
	e := uring.SQE{Op: io.op, Flags: uring.FixedFile, FD: io.dev.place, Off: uint64(io.at)}
	if io.tries > 0 {
		e.Flags |= uring.Async
	}
	switch io.op {
	case uring.OpNop:
		e = uring.SQE{Op: uring.OpNop, FD: -1}
	case uring.OpFsync:
		e.Off, e.OpFlags = 0, uring.FsyncDatasync
	case uring.OpWritev:
		e.Addr, e.Len = io.pointer(unsafe.Pointer(unsafe.SliceData(io.parts))), uint32(len(io.parts))
	default:
		e.Addr, e.Len = io.pointer(unsafe.Pointer(unsafe.SliceData(io.rest))), uint32(len(io.rest))
		e.OpFlags = io.flags
		io.fixed = false
		if table == nil || io.tries > 0 {
			break
		}
		if i, ok := table.find(io.rest); ok {
			io.fixed = true
			e.BufIndex = i
			e.Op = uring.OpReadFixed
			if io.op == uring.OpWrite {
				e.Op = uring.OpWriteFixed
			}
		}
	}
	return e
}

// pointer is an address for the kernel. The memory stays there until the IO has ended: a slot refers to io and io to the memory, and
// what lies on the heap is not moved (what io refers to is never on a stack, because io is not).
func (io *IO) pointer(p unsafe.Pointer) uint64 { return uint64(uintptr(p)) }

// advance notes what the kernel says of io. more: there is something left to do. Errors that are uring.ErrBroken are of the ring.
func (io *IO) advance(res int32) (more bool, err error) {
	if res < 0 {
		return io.failed(unix.Errno(-int64(res)))
	}
	switch io.op {
	case uring.OpNop:
		return false, io.fail
	case uring.OpFsync:
		return false, nil
	}
	left := len(io.rest)
	if io.op == uring.OpWritev {
		left = iovecsLen(io.parts)
	}
	n := int(res)
	switch {
	case n > left:
		return false, fmt.Errorf("%w: %d bytes done of %d", uring.ErrBroken, n, left)
	case n == left:
		return false, nil
	}
	// Short: the rest, from a block's start on. What is less than a block is the end of a file that was cut off.
	n &^= Align - 1
	if n == 0 {
		return false, io.errorOf(errEnd(io.op != uring.OpRead))
	}
	io.at += int64(n)
	if io.op == uring.OpWritev {
		io.parts = skipIovecs(io.parts, n)
	} else {
		io.rest = io.rest[n:]
	}
	return true, nil
}

// failed decides what to do about an error: io is begun again when it is none of the device.
func (io *IO) failed(errno unix.Errno) (more bool, err error) {
	again := false
	switch errno {
	case unix.EAGAIN, unix.EINTR, unix.ECANCELED:
		again = true
	case unix.EFAULT:
		again = io.fixed // the region was unregistered between Start and the submission; tries makes it a plain one
	}
	if again && io.tries < maxTries {
		io.tries++
		return true, nil
	}
	return false, io.errorOf(errno)
}

// errorOf wraps an error as the synchronous methods of all engines do.
func (io *IO) errorOf(err error) error {
	switch io.op {
	case uring.OpFsync:
		return flushError(io.dev.info.Path, err)
	case uring.OpRead:
		return ioError("device.read", io.dev.info.Path, io.Off, len(io.P), err)
	case uring.OpWritev:
		return ioError("device.write", io.dev.info.Path, io.Off, int(io.at-io.Off)+iovecsLen(io.parts), err)
	}
	return ioError("device.write", io.dev.info.Path, io.Off, io.bytes(), err)
}

// end gives io back to whoever started it, and lets Close go on when it was the last of the device.
func (io *IO) end(err error) {
	d := io.dev
	io.dev, io.rest, io.parts, io.fail, io.next = nil, nil, nil, nil, nil
	io.Done(io, err) // from here on io is not ours
	if d.busy.Add(-1) == 0 && d.closing.Load() {
		select {
		case d.idle <- struct{}{}:
		default:
		}
	}
}

// errEnd is the error of an IO that got nowhere.
func errEnd(write bool) error {
	if write {
		return io.ErrShortWrite
	}
	return io.ErrUnexpectedEOF
}

func iovecsLen(parts []unix.Iovec) int {
	n := 0
	for _, p := range parts {
		n += int(p.Len)
	}
	return n
}

// skipIovecs takes n bytes off the front. Preconditions: there are more than n.
func skipIovecs(parts []unix.Iovec, n int) []unix.Iovec {
	for n >= int(parts[0].Len) {
		n -= int(parts[0].Len)
		parts = parts[1:]
	}
	parts[0].Base = (*byte)(unsafe.Add(unsafe.Pointer(parts[0].Base), n))
	parts[0].Len -= uint64(n)
	return parts
}
