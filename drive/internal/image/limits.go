package image

import (
	"time"

	"github.com/crakefs/crake/drive/internal/format"
)

// The limits of reading. Each bounds a buffer or a number of IOs.
const (
	// windowBytes is the buffer for reading segments and strips through.
	windowBytes = 256 << 10
	// ringBytes is the buffer for reading the journal through: large reads, and room for the largest batch.
	ringBytes = 4 << 20
	// aheadBytes is what one read of checkpoint or journal takes: as fast as any device reads. A multiple of a page.
	aheadBytes = 64 * format.PageBytes
	// aheadReads is how many such reads are under way while records are replayed: enough to keep a device busy, 16 MiB of memory.
	aheadReads = 4
	// settleReads is how many strips and segments are verified at once, after a crash (at most 256 puts, store.maxMutations,
	// and all open segments) and by CheckData; each takes windowBytes. One read of 128 KiB at a time is far from what a device can.
	settleReads = 8
	// firstRetry and lastRetry bound how long Settle waits before it reads again, ten times longer each time. The kernel has tried for
	// much longer before it says that a read failed, so this is for passing trouble only; together it is under a second for the most strips
	// that can be in doubt on a device that reads nothing.
	firstRetry = time.Millisecond
	lastRetry  = 10 * time.Millisecond
	// checkSlice is how many strips CheckData takes from the index at a time.
	checkSlice = 4096
)
