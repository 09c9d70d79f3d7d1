package uring

import (
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrBroken says that what the kernel and we share contradicts itself. Nothing is known then of the IOs under way, nor of their memory.
var ErrBroken = errors.New("the ring is broken")

// Ring is an io_uring. Push, Pending and Submit are one side, Reap and Overflowed the other: each side must be used by one
// goroutine at a time (Submit may run while others Push), both sides may run at once. The register methods may run at any time.
type Ring struct {
	// Immutable.
	fd       int
	features uint32
	maps     [][]byte
	sqes     []SQE
	cqes     []CQE

	// Shared with the kernel; see the package comment.
	sqHead, sqTail, sqFlags *uint32
	cqHead, cqTail          *uint32

	// The submitting side's.
	tail uint32 // of the submission ring
	// The reaping side's.
	head uint32 // of the completion ring
}

// Setup is the system call io_uring_setup, or what a test puts in its place.
type Setup func(entries uint32, p *Params) (fd int, err error)

// KernelSetup is io_uring_setup.
func KernelSetup(entries uint32, p *Params) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(p)), 0)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// New makes a ring for sqEntries submissions at once and cqEntries completions (powers of two). Completions must never be more
// than the ring takes, so at most cqEntries IOs may be under way. Errors are what the kernel says: ENOSYS (no io_uring), EPERM
// (forbidden, by seccomp or kernel.io_uring_disabled), and those of a kernel before 5.13, which lacks what we need.
//
// A completion is posted by the thread that submitted the IO, when it next leaves the kernel. By default it is interrupted for that
// wherever it runs. IORING_SETUP_COOP_TASKRUN spares the interrupt: a thread that computes then posts at its next system call or
// timer tick, up to 4 ms late, although an IO of somebody else is ready. coop asks for it; kernels before 5.19 do without.
func New(sqEntries, cqEntries uint32, coop bool, setup Setup) (*Ring, error) {
	flags := uint32(setupSubmitAll)
	if coop {
		flags |= setupCoopTaskrn
	}
	var p Params
	var fd int
	var err error
	for _, extra := range []uint32{flags, 0} {
		p = Params{CQEntries: cqEntries, Flags: setupCQSize | extra}
		if fd, err = setup(sqEntries, &p); !errors.Is(err, unix.EINVAL) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("io_uring_setup: %w", err)
	}
	r := &Ring{fd: fd}
	if err := r.open(&p); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// open maps the ring and finds out whether the kernel can what we need.
func (r *Ring) open(p *Params) error {
	if missing := featuresNeeded &^ p.Features; missing != 0 {
		return fmt.Errorf("the kernel's io_uring lacks features %#x: %w", missing, unix.ENOSYS)
	}
	sqEnd := uint64(p.SQ.Array) + 4*uint64(p.SQEntries)
	cqEnd := uint64(p.CQ.CQEs) + cqeBytes*uint64(p.CQEntries)
	rings, err := r.mmap(max(sqEnd, cqEnd), offRings)
	if err != nil {
		return err
	}
	sqes, err := r.mmap(sqeBytes*uint64(p.SQEntries), offSQEs)
	if err != nil {
		return err
	}
	if err := r.attach(p, rings, sqes); err != nil {
		return err
	}
	return r.probe(OpNop, OpWritev, OpFsync, OpReadFixed, OpWriteFixed, OpRead, OpWrite)
}

// maxMapBytes bounds what we map on the kernel's word: rings of 32768 entries, its own limit, take less.
const maxMapBytes = 16 << 20

func (r *Ring) mmap(n uint64, off int64) ([]byte, error) {
	if n == 0 || n > maxMapBytes {
		return nil, fmt.Errorf("%w: a map of %d bytes", ErrBroken, n)
	}
	m, err := unix.Mmap(r.fd, off, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("map of the ring: %w", err)
	}
	r.maps = append(r.maps, m)
	return m, nil
}

// OnMemory makes a ring of memory that no kernel looks at, for tests of what uses rings: they play the kernel's part. rings and sqes
// start on a page's or at least an 8 byte boundary and outlive the ring. Errors: ErrBroken when p does not fit them.
func OnMemory(p *Params, rings, sqes []byte) (*Ring, error) {
	r := &Ring{fd: -1}
	return r, r.attach(p, rings, sqes)
}

// attach finds the parts of the ring in its maps. rings and sqes start on a page.
func (r *Ring) attach(p *Params, rings, sqes []byte) error {
	word := func(off uint32) *uint32 {
		if off%4 != 0 || uint64(off)+4 > uint64(len(rings)) {
			return nil
		}
		return (*uint32)(unsafe.Pointer(&rings[off]))
	}
	r.features = p.Features
	r.sqHead, r.sqTail, r.sqFlags = word(p.SQ.Head), word(p.SQ.Tail), word(p.SQ.Flags)
	r.cqHead, r.cqTail = word(p.CQ.Head), word(p.CQ.Tail)
	for _, w := range []*uint32{r.sqHead, r.sqTail, r.sqFlags, r.cqHead, r.cqTail} {
		if w == nil {
			return fmt.Errorf("%w: an index lies outside of the map", ErrBroken)
		}
	}
	sqMask, cqMask, array := word(p.SQ.RingMask), word(p.CQ.RingMask), word(p.SQ.Array)
	switch {
	case !isPowerOf2(p.SQEntries) || !isPowerOf2(p.CQEntries):
		return fmt.Errorf("%w: %d and %d entries", ErrBroken, p.SQEntries, p.CQEntries)
	case sqMask == nil || *sqMask != p.SQEntries-1 || cqMask == nil || *cqMask != p.CQEntries-1:
		return fmt.Errorf("%w: the masks do not fit %d and %d entries", ErrBroken, p.SQEntries, p.CQEntries)
	case array == nil || uint64(p.SQ.Array)+4*uint64(p.SQEntries) > uint64(len(rings)) ||
		p.CQ.CQEs%8 != 0 || uint64(p.CQ.CQEs)+cqeBytes*uint64(p.CQEntries) > uint64(len(rings)) ||
		sqeBytes*uint64(p.SQEntries) > uint64(len(sqes)):
		return fmt.Errorf("%w: entries lie outside of the map", ErrBroken)
	}
	r.sqes = unsafe.Slice((*SQE)(unsafe.Pointer(&sqes[0])), p.SQEntries)
	r.cqes = unsafe.Slice((*CQE)(unsafe.Pointer(&rings[p.CQ.CQEs])), p.CQEntries)
	// The ring proper holds indexes of SQEs; place i is always SQE i.
	for i := range unsafe.Slice(array, p.SQEntries) {
		unsafe.Slice(array, p.SQEntries)[i] = uint32(i)
	}
	r.tail, r.head = atomic.LoadUint32(r.sqTail), atomic.LoadUint32(r.cqHead)
	return nil
}

func isPowerOf2(n uint32) bool { return n != 0 && n&(n-1) == 0 }

// FD gives the ring's descriptor. A poll of it says that it can be read while completions wait, and each new one wakes anew.
func (r *Ring) FD() int { return r.fd }

// CQEntries is how many IOs may be under way.
func (r *Ring) CQEntries() int { return len(r.cqes) }

// Push puts an entry at the end of the submission ring; false: it is full. The entry may be begun from now on, and is with Submit.
func (r *Ring) Push(e *SQE) (bool, error) {
	n, err := r.Pending()
	if err != nil || n == len(r.sqes) {
		return false, err
	}
	r.sqes[r.tail&uint32(len(r.sqes)-1)] = *e
	r.tail++
	atomic.StoreUint32(r.sqTail, r.tail)
	return true, nil
}

// Pending counts the entries that the kernel has not consumed.
func (r *Ring) Pending() (int, error) {
	n := r.tail - atomic.LoadUint32(r.sqHead)
	if n > uint32(len(r.sqes)) {
		return 0, fmt.Errorf("%w: %d submissions pending of %d", ErrBroken, n, len(r.sqes))
	}
	return int(n), nil
}

// Submit gives n entries to the kernel; it may consume fewer, without an error. Errors: EINTR, EAGAIN and ENOMEM (no memory for a
// request), EBUSY (completions have overflowed): try again, the latter after reaping. Others stay.
//
// The call is raw: it does not wait, so the scheduler need not know of it. That saves up to a switch of threads for each, when
// the runtime takes the processor away from a call of more than 20 microseconds: a submission of 32 IOs takes about 100.
//
// Some files do their IO inside of the call (those of FUSE, of some network filesystems): while such a device is slow, or for ever when it
// hangs, the only scheduler processor would stand still in it, and so would whoever else wants the ring, in the kernel. No ring is for them.
func (r *Ring) Submit(n int) error {
	if _, _, errno := unix.RawSyscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(n), 0, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// Reap copies completions to out, frees their places, and gives their number.
func (r *Ring) Reap(out []CQE) (int, error) {
	n := atomic.LoadUint32(r.cqTail) - r.head
	if n > uint32(len(r.cqes)) {
		return 0, fmt.Errorf("%w: %d completions in a ring of %d", ErrBroken, n, len(r.cqes))
	}
	n = min(n, uint32(len(out)))
	if n == 0 {
		return 0, nil
	}
	for i := range n {
		out[i] = r.cqes[(r.head+i)&uint32(len(r.cqes)-1)]
	}
	r.head += n
	atomic.StoreUint32(r.cqHead, r.head)
	return int(n), nil
}

// Overflowed says that completions wait in the kernel for room in the ring; GetEvents brings them, once there is room.
func (r *Ring) Overflowed() bool { return atomic.LoadUint32(r.sqFlags)&sqCQOverflow != 0 }

// GetEvents lets the kernel post what it can, without waiting.
func (r *Ring) GetEvents() error {
	_, _, errno := unix.RawSyscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), 0, 0, enterGetEvents, 0, 0)
	if errno != 0 && errno != unix.EINTR {
		return fmt.Errorf("io_uring_enter: %w", errno)
	}
	return nil
}

// Close gives the ring back. Preconditions: no IO is under way (the kernel would let it end, and write to its memory), and nobody
// uses the ring or its descriptor.
func (r *Ring) Close() error {
	var errs []error
	for _, m := range r.maps {
		errs = append(errs, unix.Munmap(m))
	}
	r.maps = nil
	if r.fd >= 0 {
		errs = append(errs, unix.Close(r.fd))
		r.fd = -1
	}
	return errors.Join(errs...)
}
