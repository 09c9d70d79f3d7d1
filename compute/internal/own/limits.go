package own

import "time"

// Limits of ownership.
const (
	// DefaultOpening bounds the buckets that fence, list and replay at once: each asks all drives, so more would only
	// queue there; the wait for other buckets and for sessions does not count.
	DefaultOpening = 8
	// settleWait bounds how long an opening bucket waits for other buckets to settle what is in doubt. Past it the bucket
	// serves; the keys in doubt stay locked, and no lease on them is granted, until their transactions are settled.
	settleWait = time.Second
	// drainGrace is how long the requests that run when a bucket closes may take to end by themselves.
	drainGrace = 100 * time.Millisecond
	// drainAbort is when those that still have not ended are cut off from the drives.
	drainAbort = 2 * time.Second
	// reopenMin and reopenMax bound the pause before a bucket that failed is opened again.
	reopenMin = 50 * time.Millisecond
	reopenMax = 5 * time.Second
	// failAfter is how long a bucket may fail to open before it is told as failed, which people are alarmed by: drives that
	// start together with the compute are there well before.
	failAfter = 2 * time.Second
	// orphanRetry is the pause before inodes without a name that could not be deleted are tried again.
	orphanRetry = time.Second
	// MaxReclaimItems bounds the leases, opens and locks together that one MReclaim may carry.
	MaxReclaimItems = 1 << 20
)
