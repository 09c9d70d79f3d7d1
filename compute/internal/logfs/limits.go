package logfs

import (
	"time"

	"github.com/crakefs/crake/wire"
)

// Limits of this package.
const (
	// SegmentBytes is where a segment of a log ends and the next begins.
	SegmentBytes = 4 << 20
	// MaxRecordBytes is the most that waits for Sync: when a log has that much it is written without being asked.
	MaxRecordBytes = 1 << 20
	// firstPendBytes is the first size of the buffer for what waits; it grows fourfold.
	firstPendBytes = 60 << 10
	// InlineBytes is the largest file that lies in its description: with name and header it fits one block.
	InlineBytes = 3 << 10
	// MirrorBelowBytes is the largest chunk that is mirrored; larger ones are erasure-coded.
	MirrorBelowBytes = wire.ShortStripeBytes
	// MaxRewriteBytes is the largest file that can be written at random places (OpenReadWrite): it is held in memory.
	MaxRewriteBytes = 8 << 20
	// MaxNameBytes bounds the path of a file.
	MaxNameBytes = 1024
	// ReadAheadBytes is what a handle opened for sequential reading fetches at once.
	ReadAheadBytes = 256 << 10
	// MaxWindows bounds the windows that Prefetch fills in one FS; beyond it does nothing.
	MaxWindows = 8
	// ReadPatience is how long a read is tried again that finds too few drives.
	ReadPatience = 2 * time.Second
	// MaxRetryDelay bounds the pause between attempts to write.
	MaxRetryDelay = 500 * time.Millisecond
	// openConcurrency bounds what Open repairs side by side.
	openConcurrency = 16
	// segmentReadBytes is the piece in which a segment of a log is read: more than any record.
	segmentReadBytes = 2 * MaxRecordBytes
	// descReadBytes bounds one request for descriptions.
	descReadBytes = 4 << 20
)
