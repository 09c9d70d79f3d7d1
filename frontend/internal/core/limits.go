package core

import "time"

// Limits of this package. What is full waits, unless it says otherwise.
const (
	// DefaultDirtyBytes is how much written data may wait to be committed: a second or so of a fast writer.
	DefaultDirtyBytes = 128 << 20
	// DefaultReadBytes is how much read data may be in memory at once: half for reads under way, half for readahead.
	DefaultReadBytes = 64 << 20
	// reserveBytes of the arena are beyond both: old contents of blocks that are written in part, while they are sent.
	reserveBytes = 32 << 20
	// extentCacheBytes bounds the cache of extents: 20 million blocks' checksums would be 160 MiB; this is 2 million.
	extentCacheBytes = 16 << 20
	// maxIdleInodes bounds the inodes that are remembered only for their lease (about 700 bytes each). More are given
	// back to their owners, the least recently used first.
	maxIdleInodes = 32 << 10
	// maxNames bounds the names that are remembered (about 100 bytes each), maxDirNames those of one directory. When one is full, the
	// directory that wants more forgets all of its own.
	maxNames    = 128 << 10
	maxDirNames = 16 << 10
	// dropBatch is how many leases go back in one request.
	dropBatch = 512
	// maxSend is the longest data of one MWrite: two full stripes of 4+2. Longer ones keep memory frozen for longer.
	maxSend = 1 << 20
	// maxSends bounds the MWrites under way of the whole process, and maxFileSends those that leave a file by themselves.
	maxSends     = 24
	maxFileSends = 6
	// maxGroup and groupBytes bound the small files that go in one MWrite; smallFile is the largest of them.
	maxGroup   = 64
	groupBytes = 1 << 20
	smallFile  = 128 << 10
	// groupDelay is how long a closed file waits for others to go with it. Files that are removed at once never go.
	groupDelay = 50 * time.Millisecond
	// dirtyAge is how long written data may stay here when nobody asks for it.
	dirtyAge = 5 * time.Second
	// prepareAhead is how many regions of a file that grows are noted at once: 64 MiB of writes for one round trip.
	prepareAhead = 16
	// releaseDelay is how long a file stays open at its owner after the last close: a file that is opened again costs
	// nothing, and many go in one request of at most releaseBatch.
	releaseDelay = time.Second
	releaseBatch = 512
	// maxVersions bounds the regions of a file whose extents are known to have changed, before all are forgotten.
	maxVersions = 1024
	// mergeExtents is the longest extent list that is updated after a write; longer ones are asked for again.
	mergeExtents = 512
	// readTries is how often a read asks for extents again before it believes that the data is broken.
	readTries = 5
	// raMin and raMax bound the readahead window; raUnit is one piece of it.
	raMin  = 128 << 10
	raMax  = 4 << 20
	raUnit = 1 << 20
	// raIdle is when readahead that nobody used is dropped.
	raIdle = 3 * time.Second
	// maxRead is the longest read, as the kernel asks.
	maxRead = 1 << 20
	// plusParallel bounds the attribute requests of one readdirplus.
	plusParallel = 16
	// dirBatch is how many entries are asked for at once.
	dirBatch = 1024
	// spaceAge is how long the free space is believed.
	spaceAge = time.Second
	// recallTries is how often a recall tries to flush data that the cluster refuses before it gives the data up.
	recallTries = 3
	// pagesTimeout bounds how long a recall waits for the kernel to drop pages (see doc.go of the frontend).
	pagesTimeout = 2 * time.Second
	// leaseWaitMin and leaseWaitMax bound the pause between two requests for a lease that another session holds.
	leaseWaitMin = time.Millisecond
	leaseWaitMax = 50 * time.Millisecond
)
