package uring

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

func (r *Ring) register(op uint32, arg unsafe.Pointer, n uint32) error {
	for {
		_, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), uintptr(op), uintptr(arg), uintptr(n), 0, 0)
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return errno
		}
	}
}

// probe fails when the kernel lacks one of the operations.
func (r *Ring) probe(want ...Op) error {
	var p probe
	if err := r.register(regProbe, unsafe.Pointer(&p), maxProbeOps); err != nil {
		return fmt.Errorf("the kernel's io_uring does not tell its operations: %w", err)
	}
	for _, op := range want {
		if int(op) >= min(int(p.opsLen), maxProbeOps) || p.ops[op].flags&probeSupported == 0 {
			return fmt.Errorf("the kernel's io_uring lacks operation %d: %w", op, unix.ENOSYS)
		}
	}
	return nil
}

// RegisterFiles makes a table of n empty places for files.
func (r *Ring) RegisterFiles(n int) error {
	fds := make([]int32, n)
	for i := range fds {
		fds[i] = -1
	}
	if err := r.register(regFiles, unsafe.Pointer(unsafe.SliceData(fds)), uint32(n)); err != nil {
		return fmt.Errorf("register files: %w", err)
	}
	return nil
}

// UpdateFile puts a file in a place of the table; -1 empties it. The kernel holds the file until the place is emptied and the IOs on
// it have ended; a little longer where it cleans up in the background (before 6.14).
func (r *Ring) UpdateFile(i, fd int) error {
	var pin runtime.Pinner
	defer pin.Unpin()
	fd32 := int32(fd)
	u := filesUpdate{offset: uint32(i), fds: addr(&pin, &fd32)}
	if err := r.register(regFilesUpdate, unsafe.Pointer(&u), 1); err != nil {
		return fmt.Errorf("register file: %w", err)
	}
	return nil
}

// MaxBuffers is the kernel's limit of places for buffers.
const MaxBuffers = 1 << 14

// RegisterBuffers makes a table of n empty places for memory.
func (r *Ring) RegisterBuffers(n int) error {
	var pin runtime.Pinner
	defer pin.Unpin()
	none := make([]unix.Iovec, n)
	a := rsrcRegister{nr: uint32(n), data: addr(&pin, unsafe.SliceData(none))}
	if err := r.register(regBuffers2, unsafe.Pointer(&a), uint32(unsafe.Sizeof(a))); err != nil {
		return fmt.Errorf("register buffers: %w", err)
	}
	return nil
}

// UpdateBuffer puts memory in a place of the table, which populates and pins it; nil empties the place. IOs under way keep the pages
// that they began with; a fixed IO submitted later on an empty place fails with EFAULT. mem must not be of the Go heap.
func (r *Ring) UpdateBuffer(i int, mem []byte) error {
	var pin runtime.Pinner
	defer pin.Unpin()
	var iov unix.Iovec
	if len(mem) > 0 {
		iov.Base = unsafe.SliceData(mem)
		iov.SetLen(len(mem))
	}
	u := rsrcUpdate{offset: uint32(i), data: addr(&pin, &iov), nr: 1}
	if err := r.register(regBuffersUpdate, unsafe.Pointer(&u), uint32(unsafe.Sizeof(u))); err != nil {
		return fmt.Errorf("register buffer: %w", err)
	}
	return nil
}

// addr is an address as the ABI has it, of what stays there until pin ends: a stack would move.
func addr[T any](pin *runtime.Pinner, p *T) uint64 {
	pin.Pin(p)
	return uint64(uintptr(unsafe.Pointer(p)))
}
