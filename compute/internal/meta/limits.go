package meta

import "time"

// Limits of a bucket.
const (
	// MaxAppendBlocks is the most blocks of one Data.Append: 1 MiB, so that small writes behind it wait briefly.
	MaxAppendBlocks = 256
	// DefaultLockWait bounds the wait for locks of one bucket when the request has no earlier deadline.
	DefaultLockWait = 10 * time.Second
)
