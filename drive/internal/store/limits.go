package store

import "time"

// The store's limits. Each bounds a queue, a buffer or a wait.
const (
	// maxIOs bounds device IOs at once: as deep as one NVMe queue pays, and each takes an OS thread while it blocks.
	maxIOs = 64
	// maxMutations bounds Put, Append, Seal, Delete and Fence at once, and so the journal records that wait: others wait
	// for a slot, in order of arrival.
	maxMutations = 256
	// deleteChunk is how many ids are taken under one hold of the lock (about 0.2 ms), and journaled as one group.
	deleteChunk = 256
	// maxReadRanges and maxDeleteIDs are the protocol's.
	maxReadRanges = 256
	maxDeleteIDs  = 4096
	// maxListEntries is the protocol's; also the default.
	maxListEntries = 16384
	// parallelReads is how many parts of one request are read at once from a device that gains from it.
	parallelReads = 16
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
	// checkpointSlice is how many strips a checkpoint takes under one hold of the lock: some 50 microseconds.
	checkpointSlice = 512
	// checkpointTries: a checkpoint does not fit only when strips come and go while it is taken, near the limit of their
	// number.
	checkpointTries = 3
	// scanWindowBytes is the buffer for reading segments and strips through.
	scanWindowBytes = 256 << 10
	// ringWindowBytes is the buffer for reading the journal through.
	ringWindowBytes = 1 << 20
	// verifyBytes bounds what one Verify reads.
	verifyBytes = 64 << 20
	// maxVerifyStrips bounds the strips of one Verify; also the default.
	maxVerifyStrips = 1024
	// eventInterval is the least time between two events of one type.
	eventInterval = time.Second
)

// DefaultVerifyRate bounds what Verify reads, in bytes a second: a tenth of a device, so that reads do not feel it.
const DefaultVerifyRate = 200 << 20
