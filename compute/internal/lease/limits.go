package lease

import "time"

// Limits of the lease table and its driver.
const (
	// DefaultSessionLeases bounds the leases of one session in one bucket. A lease takes about 200 bytes here; past the
	// limit the session's oldest read leases are recalled, so a frontend that never drops any cannot fill our memory.
	DefaultSessionLeases = 1 << 16
	// MaxPinInodes bounds the inodes of one Hold: a rename touches two parents, two inodes and a few more across buckets.
	MaxPinInodes = 64
	// DefaultRecallTimeout is how long a session may leave a recall unanswered, and do nothing at all on the inode, before
	// mgmt is asked to end it. A frontend may have to write 128 MiB of dirty data first: at 10 MiB/s that takes 13 s.
	DefaultRecallTimeout = 20 * time.Second
	// MaxHold bounds the wait of a request that has no deadline of its own.
	MaxHold = 60 * time.Second
	// MaxWaitersPerSession bounds the requests of one session that wait for recalls. Each takes a handler of the
	// session's connection (rpc.Options.MaxHandlers), and the flush that another session's recall asks for needs one too.
	// Past it a request is answered KindUnavailable, and the sender asks again a little later.
	MaxWaitersPerSession = 256
	// minLeaseLife is how long a write lease is left alone after it was granted: so that two sessions that write the same
	// file each get something done before the lease moves, and the grant reaches its session before the recall does.
	minLeaseLife = 2 * time.Millisecond
	// recallRetryMin and recallRetryMax bound the pause before a recall that failed is sent again.
	recallRetryMin = 5 * time.Millisecond
	recallRetryMax = 250 * time.Millisecond
	// evictCall bounds one report to mgmt.
	evictCall = 5 * time.Second
)
