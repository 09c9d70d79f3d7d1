package driveload

import (
	"math/bits"
	"time"
)

// subBuckets divides each power of two: a percentile is right to 1/32.
const subBuckets = 32

// histogram counts durations in buckets whose width grows with them.
type histogram struct {
	counts [64 * subBuckets]uint64
	n      uint64
}

func bucketOf(ns uint64) int {
	if ns < subBuckets {
		return int(ns)
	}
	shift := bits.Len64(ns) - 6 // leaves 6 bits, of which the first is 1
	return (shift+1)*subBuckets + int(ns>>shift)&(subBuckets-1)
}

// middle gives a duration in the middle of a bucket.
func middle(bucket int) time.Duration {
	if bucket < subBuckets {
		return time.Duration(bucket)
	}
	shift := bucket/subBuckets - 1
	low := uint64(subBuckets|bucket%subBuckets) << shift
	return time.Duration(low + uint64(1)<<shift/2)
}

func (h *histogram) add(d time.Duration) {
	h.counts[bucketOf(uint64(max(d, 0)))]++
	h.n++
}

func (h *histogram) merge(o *histogram) {
	for i, c := range o.counts {
		h.counts[i] += c
	}
	h.n += o.n
}

// quantile gives the duration that the share q of all is at most; 0 when there are none.
func (h *histogram) quantile(q float64) time.Duration {
	rank := uint64(q * float64(h.n))
	for i, c := range h.counts {
		if c > rank {
			return middle(i)
		}
		rank -= c
	}
	return 0
}
