package uring

import "unsafe"

// What follows is the kernel's ABI, include/uapi/linux/io_uring.h; nothing of it is newer than Linux 5.13 but the flags that New
// tries first and does without.

// Op is an operation code.
type Op uint8

// The operations that are used.
const (
	OpNop        Op = 0
	OpWritev     Op = 2
	OpFsync      Op = 3
	OpReadFixed  Op = 4
	OpWriteFixed Op = 5
	OpRead       Op = 22
	OpWrite      Op = 23
)

// Flags of an SQE.
const (
	FixedFile uint8 = 1 << 0 // FD is an index of the table of files
	Async     uint8 = 1 << 4 // do not try without blocking first: straight to a kernel thread
)

// FsyncDatasync makes OpFsync an fdatasync; it goes to OpFlags.
const FsyncDatasync uint32 = 1

// WriteDsync makes a write durable before it completes (RWF_DSYNC); it goes to OpFlags.
const WriteDsync uint32 = 2

// SQE is a submission queue entry.
type SQE struct {
	Op       Op
	Flags    uint8
	_        uint16
	FD       int32
	Off      uint64
	Addr     uint64 // of data or of iovecs; who submits keeps the memory where it is, see the package comment
	Len      uint32 // bytes, or count of iovecs
	OpFlags  uint32
	UserData uint64
	BufIndex uint16 // of the table of buffers, for the fixed operations
	_        uint16
	_        int32
	_        [2]uint64
}

// CQE is a completion queue entry.
type CQE struct {
	UserData uint64
	Res      int32 // bytes, or -errno
	Flags    uint32
}

// Params is struct io_uring_params: what is asked of the kernel at setup and what it answers.
type Params struct {
	SQEntries, CQEntries, Flags uint32
	sqThreadCPU, sqThreadIdle   uint32
	Features                    uint32
	wqFD                        uint32
	_                           [3]uint32
	SQ                          SQOffsets
	CQ                          CQOffsets
}

// SQOffsets says where in the map the parts of the submission ring lie.
type SQOffsets struct {
	Head, Tail, RingMask, RingEntries, Flags, Dropped, Array uint32
	_                                                        uint32
	_                                                        uint64
}

// CQOffsets says where in the map the parts of the completion ring lie.
type CQOffsets struct {
	Head, Tail, RingMask, RingEntries, Overflow, CQEs, Flags uint32
	_                                                        uint32
	_                                                        uint64
}

const (
	sqeBytes = 64
	cqeBytes = 16
)

var (
	_ = [1]struct{}{}[unsafe.Sizeof(SQE{})-sqeBytes] // asserted
	_ = [1]struct{}{}[unsafe.Sizeof(CQE{})-cqeBytes]
	_ = [1]struct{}{}[unsafe.Sizeof(Params{})-120]
	_ = [1]struct{}{}[unsafe.Sizeof(rsrcRegister{})-32]
	_ = [1]struct{}{}[unsafe.Sizeof(rsrcUpdate{})-32]
	_ = [1]struct{}{}[unsafe.Sizeof(filesUpdate{})-16]
	_ = [1]struct{}{}[unsafe.Sizeof(probe{})-16-8*maxProbeOps]
)

// Flags of io_uring_setup.
const (
	setupCQSize     = 1 << 3 // CQEntries is given
	setupSubmitAll  = 1 << 7 // 5.18: one bad SQE does not end a submission
	setupCoopTaskrn = 1 << 8 // 5.19: no interrupt to the submitting thread when an IO completes; see New
)

// Features of a kernel.
const (
	featSingleMmap   = 1 << 0 // 5.4: both rings are in one map
	featNoDrop       = 1 << 1 // 5.5: completions that do not fit are kept, not dropped
	featSubmitStable = 1 << 2 // 5.5: what an SQE points to besides data is consumed by the submission
	featuresNeeded   = featSingleMmap | featNoDrop | featSubmitStable
)

// enterGetEvents makes io_uring_enter complete what is pending.
const enterGetEvents = 1 << 0

// sqCQOverflow is a flag of the submission ring: completions wait in the kernel for room.
const sqCQOverflow = 1 << 1

// Offsets of the maps.
const (
	offRings = 0
	offSQEs  = 0x10000000
)

// Operations of io_uring_register.
const (
	regFiles         = 2
	regFilesUpdate   = 6
	regProbe         = 8
	regBuffers2      = 15 // 5.13
	regBuffersUpdate = 16 // 5.13
)

type rsrcRegister struct {
	nr, flags  uint32
	_          uint64
	data, tags uint64
}

type rsrcUpdate struct {
	offset     uint32
	_          uint32
	data, tags uint64
	nr, _      uint32
}

type filesUpdate struct {
	offset uint32
	_      uint32
	fds    uint64
}

const maxProbeOps = 64

type probe struct {
	lastOp, opsLen uint8
	_              uint16
	_              [3]uint32
	ops            [maxProbeOps]probeOp
}

type probeOp struct {
	op, _ uint8
	flags uint16
	_     uint32
}

const probeSupported = 1 << 0
