package meta

import (
	"time"

	"github.com/crakefs/crake/wire"
)

// Limits of a bucket. What is refused past one gets KindOverLimit unless the line says otherwise.
const (
	// MaxAppendBlocks is the most blocks of one Data.Append: 1 MiB, so that small writes behind it wait briefly.
	MaxAppendBlocks = 256
	// DefaultLockWait bounds the wait for locks of one bucket when the request has no earlier deadline; then
	// KindUnavailable. It outlasts the failover of the coordinator of a transaction in doubt.
	DefaultLockWait = 10 * time.Second
	// MaxReaddirEntries is the most entries of one answer: at 400 bytes each under 2 MiB.
	MaxReaddirEntries = 4096
	// MaxWriteFiles is the most files of one WriteReq: each is compared with the others, and locked.
	MaxWriteFiles = 1024
	// MaxPrepareRegions is the most regions of one PrepareReq (32 KiB of numbers, 16 GiB of file).
	MaxPrepareRegions = 4096
	// MaxXattrs is the most extended attributes of one inode.
	MaxXattrs = 1024
	// regionBlocks is the number of blocks of a region.
	regionBlocks = wire.RegionBytes / wire.BlockSize
	// shortStripeBlocks is the least run that becomes a stripe at once.
	shortStripeBlocks = wire.ShortStripeBytes / wire.BlockSize
	// defaultStripeBlocks is k*32 for k = 4.
	defaultStripeBlocks = 4 * wire.StripBytes / wire.BlockSize
	// maxExtentBlocks bounds an extent from disk: a region.
	maxExtentBlocks = regionBlocks
	// probeWindow is how many slots after its hash a name may lie in. With 63-bit hashes a second name at one slot is
	// rare even in a directory of 100 million entries (one pair in a thousand of such directories).
	probeWindow = 64
	// parallelWrites bounds the stripes and appends of one WriteReq under way at once: 8 MiB are 16 stripes of 4+2.
	parallelWrites = 16
	// dropChunkRegions is the most regions of one DropRegionsReq: 64 GiB of file, 128 KiB of numbers.
	dropChunkRegions = 16384
	// dropBatchBlocks is where DropRegions ends a batch and begins the next: the batch then is some 100 KiB.
	dropBatchExtents = 2048
	// maxRepliesPerSession bounds reply records that a session has not acknowledged. It may have MaxInFlight requests at
	// once on each connection; the rest is margin for lost answers.
	maxRepliesPerSession = 8 * wire.MaxInFlight
	// counterChunk is how many inode numbers, stripe numbers or transaction numbers are reserved by one durable write.
	counterChunk = 4096
	// prepareLockWait bounds the wait of one side of a transaction for locks while the other side holds some: past it both
	// let go and try again, so that two transactions that cross never wait for each other for longer.
	prepareLockWait = 100 * time.Millisecond
	// retryMin and retryMax bound the pause before such a transaction tries again.
	retryMin = 2 * time.Millisecond
	retryMax = 100 * time.Millisecond
	// staleRounds is how often an operation looks again when a name changes under it, before KindUnavailable.
	staleRounds = 1000
	// doubtAge is how long a prepared transaction waits for the decision before it asks the coordinator: many times the
	// duration of a healthy one.
	doubtAge = 500 * time.Millisecond
	// settlePause is the pause between rounds of settling as long as something is left to do: also how long changes of
	// block counts are gathered before they are reported to the inode's bucket.
	settlePause = 200 * time.Millisecond
	// settleCall bounds one call of the settling to another bucket.
	settleCall = 5 * time.Second
	// settleParallel bounds its calls at once.
	settleParallel = 8
	// complainPause bounds how often a bucket says that it cannot settle something because of corrupt records.
	complainPause = time.Minute
	// settleBatch bounds the transactions, clean-ups and reports looked at in one round; the rest waits for the next.
	settleBatch = 256
	// abortCall bounds how long a coordinator tells a participant that it gave up; who is not told asks.
	abortCall = 500 * time.Millisecond
	// maxParticipantTxns bounds prepared transactions of a bucket; more are refused with KindUnavailable.
	maxParticipantTxns = 16384
	// maxTxnOps bounds the steps of one TxnPrepareReq.
	maxTxnOps = 16
	// lockShards splits the lock table, so that two cores seldom meet on one mutex.
	lockShards = 64
)

// Limits of the database.
const (
	defaultMemTableBytes = 4 << 20
	defaultCacheBytes    = 8 << 20
	// memTables is how many memtables may wait for their flush before writes wait.
	memTables = 4
	// l0Compact and l0Stop are the sublevels at which compaction starts and writes wait.
	l0Compact = 2
	l0Stop    = 20
	// lBaseBytes is the size of the first level: a few memtables.
	lBaseBytes = 16 << 20
	// maxOpenFiles bounds the tables that a bucket keeps open when it has no shared file cache.
	maxOpenFiles = 64
	// closeFailed bounds how long Close waits for a database that has failed.
	closeFailed = 2 * time.Second
)
