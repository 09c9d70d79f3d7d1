package store

import (
	"time"

	"github.com/crakefs/crake/wire"
)

// The store's limits. Each bounds a queue, a buffer or a wait.
const (
	// maxIOBytes bounds one IO: a longer one would hold up those behind it for more than a millisecond, and gains nothing.
	maxIOBytes = 1 << 20
	// maxMutations bounds Put, Append, Seal, Delete and Fence of clients at once, and so, with those of other priorities, the
	// journal records that wait: others wait for a slot, in order of arrival. A connection has as many handlers at most, so even
	// if its requests hold all slots, another's waits for one of them to end.
	maxMutations = 256
	// maxBackgroundMutations is that of each other priority: more than the scheduler lets them do at once.
	maxBackgroundMutations = 64
	// priorities is the number of values of wire.Priority.
	priorities = wire.PriorityScrub + 1
	// deleteChunk is how many ids are taken under one hold of the lock (about 0.2 ms), and journaled as one group.
	deleteChunk = 256
	// maxReadRanges and maxDeleteIDs are the protocol's.
	maxReadRanges = 256
	maxDeleteIDs  = 4096
	// maxListEntries is the protocol's; also the default.
	maxListEntries = 16384
	// maxInlineBytes bounds what is read from memory in the goroutine that takes requests off a connection: a few microseconds of
	// copying, less than it takes to hand it to another.
	maxInlineBytes = 64 << 10
	// maxKeptPieces bounds the IOs that a Reading or Writing keeps for later ones, some 200 bytes each.
	maxKeptPieces = 64
	// maxKeptHead bounds the memory for heads of records that a Writing keeps, in bytes: a head of 500 checksums.
	maxKeptHead = 8 << 10
	// minChunkBytes and maxChunkBytes bound what a segment is given at a time: as much as it has, so that few journal
	// records are needed, and little is wasted when it ends early.
	minChunkBytes = 256 << 10
	maxChunkBytes = 4 << 20
	// maxSegmentRuns bounds the runs of one segment: 16 GiB in whole chunks.
	maxSegmentRuns = 4096
	// reserveShare: a 32nd of the data area, at most maxReserveBytes, is kept from file data, so that computes can still
	// commit deletions (to their logs) when the drive is full.
	reserveShare    = 32
	maxReserveBytes = 1 << 30
	// fenceShare: a 16th of what a checkpoint holds, at most 1 MiB, is kept from strips for the epochs of buckets. On a drive of 16 MiB
	// these are 3700 buckets; from 3 GiB on, all there can be.
	fenceShare = 16
	// checkpointSlice is how many strips a checkpoint takes under one hold of the lock: some 50 microseconds.
	checkpointSlice = 512
	// checkpointTries: a checkpoint does not fit only when strips come and go while it is taken, near the limit of their
	// number.
	checkpointTries = 3
	// verifyBytes bounds what one Verify reads.
	verifyBytes = 64 << 20
	// maxVerifyStrips bounds the strips of one Verify; also the default.
	maxVerifyStrips = 1024
	// eventInterval is the least time between two events of one type.
	eventInterval = time.Second
)

// DefaultVerifyRate bounds what Verify reads, in bytes a second: a tenth of a device, so that reads do not feel it.
const DefaultVerifyRate = 200 << 20
