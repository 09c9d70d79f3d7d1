package lock

// Limits of the lock table.
const (
	// MaxSessionLocks bounds the locks of one session in one bucket: about 100 bytes each. Past it: KindOverLimit (ENOLCK).
	MaxSessionLocks = 1 << 16
	// MaxSessionWaiters bounds the waiting requests of one session: each takes a handler of the session's connection, and
	// the unlock that ends the wait needs one too. Past it: KindUnavailable, and the sender asks again a little later.
	MaxSessionWaiters = 256
	// maxSearch bounds the steps of one search for a circle of waiters. Past it the search says that there is none: the
	// waiters then wait until they are interrupted, as they would for a circle across buckets.
	maxSearch = 1 << 14
)
