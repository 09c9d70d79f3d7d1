package wire

// Requests that drives answer. All carry the drive, because a process may have several.

// Priority says how a drive orders a request among others. Within a priority connections take turns. Client reads go before
// client writes; then rebuild; then scrub. None starves: see drive/internal/sched.
type Priority uint8

// The priorities of requests; an unknown one counts as PriorityScrub.
const (
	PriorityClient  Priority = 0 // somebody waits: reads, writes and logs of clients and computes
	PriorityRebuild Priority = 1 // protection is restored
	PriorityScrub   Priority = 2 // nobody waits
)

// PutReq creates a whole strip; the data section holds it (whole blocks, 1 to MaxDataBytes). Idempotent: the same id
// with the same length and checksums again is success; other content is KindExists.
//
// wire:message
type PutReq struct {
	Drive DriveID
	Epoch Epoch
	ID    StripID
	Sums  []uint64 // xxhash64 of every block of the data section

	Priority Priority
}

// AppendReq extends a segment at exactly Offset with the SegRecords in the data section. A repeat of bytes that are
// acknowledged already is success; any other offset than the length is KindRange with the length in the error text.
// Offset 0 creates the segment. All records must carry the segment's id and chain from Offset.
//
// wire:message
type AppendReq struct {
	Drive  DriveID
	Epoch  Epoch
	ID     StripID
	Offset uint64 // bytes; a multiple of BlockSize

	Priority Priority
}

// AppendResp tells the segment's length after the append, in bytes.
//
// wire:message
type AppendResp struct {
	Len uint64 // bytes
}

// SealReq ends a segment: no append succeeds any more. Idempotent. KindNotFound if there is none of that id.
//
// wire:message
type SealReq struct {
	Drive DriveID
	Epoch Epoch
	ID    StripID
}

// SealResp tells the final length in bytes: the longest prefix of valid records.
//
// wire:message
type SealResp struct {
	Len uint64 // bytes
}

// ReadRange is a part of one strip or segment: whole blocks.
//
// wire:message
type ReadRange struct {
	ID     StripID
	Offset uint64 // bytes; a multiple of BlockSize
	Len    uint32 // bytes; a multiple of BlockSize
}

// ReadReq reads parts of strips and segments: at most 256 ranges and MaxDataBytes together.
//
// wire:message
type ReadReq struct {
	Drive  DriveID
	Ranges []ReadRange

	Priority Priority
}

// ReadResp tells for each range how it went; the data section holds, in order, the full length of each range whose
// status is KindNone and nothing for the others (KindNotFound; KindRange past what is durable; KindIO).
//
// wire:message
type ReadResp struct {
	Status []Kind
}

// DeleteReq frees strips and segments; what is not there counts as done. At most 4096 ids, all of buckets for which
// Epoch is not older than the fence.
//
// wire:message
type DeleteReq struct {
	Drive DriveID
	Epoch Epoch
	IDs   []StripID
}

// ListReq asks for the strips of one bucket and class, in order of id, from After (exclusive; zero is from the start).
//
// wire:message
type ListReq struct {
	Drive  DriveID
	Bucket BucketID
	Class  Class
	After  StripID
	Limit  uint32 // at most 16384; 0 is that
}

// ListEntry is a strip or segment that a drive holds.
//
// wire:message
type ListEntry struct {
	ID   StripID
	Len  uint64 // bytes
	Open bool   // a segment that is not sealed
	Sum  uint64 // of a strip: xxhash64 over the little-endian checksums of its blocks
}

// ListResp holds the strips; More says that there are others after the last.
//
// wire:message
type ListResp struct {
	Entries []ListEntry
	More    bool
}

// FenceReq makes the drive refuse Put, Append, Seal and Delete of the bucket with an epoch below Epoch, durably, and
// waits for those under way. An older or equal fence is success without effect, unless the drive has seen a newer one:
// then KindStaleEpoch.
//
// wire:message
type FenceReq struct {
	Drive  DriveID
	Bucket BucketID
	Epoch  Epoch
}

// VerifyReq reads strips of a bucket and class from After on and checks them against their checksums.
//
// wire:message
type VerifyReq struct {
	Drive  DriveID
	Bucket BucketID
	Class  Class
	After  StripID
	Limit  uint32 // strips
}

// VerifyResp names the bad strips among those looked at, and the last one looked at (zero when the end was reached).
//
// wire:message
type VerifyResp struct {
	Bad  []StripID
	Last StripID
}

// DriveStatReq asks for the state of a drive.
//
// wire:message
type DriveStatReq struct {
	Drive DriveID
}

// DriveStatResp is the state of a drive; counters are since the process started.
//
// wire:message
type DriveStatResp struct {
	Drive      DriveID
	SizeBytes  uint64 // for data
	FreeBytes  uint64 // of them
	Strips     uint64 // strips and segments that it holds
	Reads      uint64 // reads of the device
	ReadBytes  uint64 // that they read
	Writes     uint64 // writes of the device
	WriteBytes uint64 // that they wrote
	Flushes    uint64 // of the device's cache
	Errors     uint64 // of the device
	Engine     string // "pread/pwrite" or "io_uring"
	Flush      string // why each commit flushes or does not: "fdatasync", "none: tmpfs", "none: write through"
	Path       string // of the device

	// Mean time of a device IO, in nanoseconds, over about the last ten seconds; 0 when there were too few for a judgement.
	ReadNs  uint64
	WriteNs uint64 // likewise
	FlushNs uint64 // likewise
	// Queued is how many requests wait for their turn at the device now.
	Queued uint32
	// Corrupt counts strips and segments found not to match their checksums, by reads of their own drive (Verify, scrub).
	Corrupt uint64
	// ScrubDone are the bytes that the scrub's pass under way has read, of ScrubTotal.
	ScrubDone   uint64
	ScrubTotal  uint64 // bytes of that pass
	ScrubPasses uint64 // complete ones since the start
	// DiscardBytes have been told to the device as unused.
	DiscardBytes uint64
	// IndexBytes is the memory of the index and of the allocator.
	IndexBytes uint64
	// Fault says why the drive must be failed; empty: it is well. It stays until the process ends.
	Fault string
	// EngineReason says why the engine is not io_uring; empty: it is, or another was asked for.
	EngineReason string
}
