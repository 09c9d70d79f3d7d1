package store

import "time"

// Limits of this package.
const (
	// SegmentBytes is where an open data segment ends: large enough that segments are few, small enough that copying its
	// live blocks out is quick.
	SegmentBytes = 4 << 20
	// logRoomBytes is what a drive must have free to be chosen for a segment of a log. A drive that gets full on the way
	// ends the segment.
	logRoomBytes = 256 << 10
	// MaxAppendBlocks is the most blocks of one Append, and of one batch of them: with one checksum each they fit the head
	// block of a record (500), and 1 MiB a replica is written in about a millisecond.
	MaxAppendBlocks = 256
	// MaxQueuedAppends bounds the Appends of a bucket that wait. Beyond it Append gives KindUnavailable.
	MaxQueuedAppends = 4096
	// AppendTries is how many segments a batch is tried in, and PutTries how many drives a strip, before the write fails.
	// More than m drives that fail one after the other within one write are rather a cause that other drives share.
	AppendTries = 6
	PutTries    = 6
	// WriteTimeout is how long a drive may take for a write before it counts as failed. Far above any healthy flush; a
	// process that hangs is known to mgmt after about as long.
	WriteTimeout = 4 * time.Second
	// QuickTimeout is the same for requests that move no data (seal, fence, list, stat, delete).
	QuickTimeout = 3 * time.Second
	// SuspectFor is how long a drive that failed a write is passed over if others can take its place.
	SuspectFor = 2 * time.Second
	// MaxPerDomain is how many strips of a degraded stripe a failure domain may hold.
	MaxPerDomain = 2
	// PlaceTries is how many PGs are looked at for one that is wholly healthy.
	PlaceTries = 8
	// MaxListConcurrency bounds the drives that are fenced, listed or sealed at once.
	MaxListConcurrency = 32
	// MaxPendingDeletes bounds the ids that wait to be deleted on one drive (24 bytes each). What does not fit (a drive
	// that is away for long) is forgotten: CollectLeaks finds it when the bucket is opened next.
	MaxPendingDeletes = 64 << 10
	// MaxDeleteIDs is the most ids of one DeleteReq.
	MaxDeleteIDs = 4096
	// OrphanDelay is how long after a failed write its remains are deleted (again): later than a request that timed out
	// can still be in a queue of the drive.
	OrphanDelay = 2 * WriteTimeout
	// StatInterval is how often the drives' free space is asked for; in between it is counted down by what is written.
	StatInterval = time.Second
)

// reserveBytes is what data leaves free on a drive of that size, so that logs, tables and with them deletes always work:
// 3 %, at least 4 MiB (small test drives), at most 2 GiB.
func reserveBytes(size uint64) uint64 {
	return min(max(size/32, 4<<20), 2<<30)
}
