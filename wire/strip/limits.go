package strip

import (
	"time"

	"github.com/crakefs/crake/wire"
)

// Limits of this package.
const (
	// DefaultHedgeDelay is long against a healthy drive's answer (a 128 KiB read takes under 1 ms, a flush that stands
	// before it some 10 ms) and short against what a person notices; so hedges are rare and cost little.
	DefaultHedgeDelay = 50 * time.Millisecond
	// MaxRanges is the most ranges of one ReadReq, as the drive accepts it.
	MaxRanges = 256
	// MaxBatchBytes bounds one answer of a drive; several such requests go out at once. Well below MaxDataBytes, so that
	// one frame does not stand long before others.
	MaxBatchBytes = 1 << 20
	// MaxCombinations bounds the sets of helpers that are tried for a block that does not come out right. 8+3 with one
	// strip gone has 45 sets; a stripe for which this is not enough has more liars than its parity can name.
	MaxCombinations = 1024
	// maxSegmentBlocks bounds the place of a block in a segment: 1 TiB, far beyond any, so that sums do not overflow.
	maxSegmentBlocks = 1 << 28
	// ReportInterval is how long a strip that was reported bad is not reported again.
	ReportInterval = time.Minute
	// MaxReported bounds the memory of what was reported. When it is full it is forgotten whole: some are told twice.
	MaxReported = 4096
)

// zeros stands for the rows that a short strip lacks. Never written to.
var zeros = make([]byte, wire.StripBytes)
