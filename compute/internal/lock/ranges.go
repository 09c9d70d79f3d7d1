package lock

import (
	"math"

	"github.com/crakefs/crake/wire"
)

// Owner is who has a lock.
type Owner struct {
	Session wire.SessionID
	Owner   uint64
}

// Range is a byte-range lock (or a flock: 0 to the end). End is inclusive.
type Range struct {
	Owner Owner
	Start uint64
	End   uint64
	Type  uint8 // wire.LockRead or wire.LockWrite
	PID   uint32
}

// ranges are the locks of one space (fcntl or flock) of one inode, in order of Start; those of one owner do not overlap.
type ranges []Range

// conflict finds the first lock (lowest Start) of another owner that is in the way, or nil.
func (rs ranges) conflict(r Range) *Range {
	for i := range rs {
		if rs[i].Start > r.End {
			break
		}
		if blocks(&rs[i], &r) {
			return &rs[i]
		}
	}
	return nil
}

// blocks tells whether a held lock is in the way of a wanted one.
func blocks(held, want *Range) bool {
	return held.Owner != want.Owner && held.Start <= want.End && want.Start <= held.End &&
		(held.Type == wire.LockWrite || want.Type == wire.LockWrite)
}

// set gives the owner the type on [r.Start, r.End], whatever it had there before: parts of its locks outside stay,
// equal neighbours become one. LockUnlock only takes away. It does not look at other owners.
func (rs ranges) set(r Range) ranges {
	out := make(ranges, 0, len(rs)+2)
	for _, h := range rs {
		switch {
		case h.Owner != r.Owner || h.End < r.Start || h.Start > r.End:
			// Apart; but an equal neighbour is swallowed.
			if h.Owner == r.Owner && h.Type == r.Type && h.PID == r.PID && adjacent(&h, &r) {
				r.Start, r.End = min(r.Start, h.Start), max(r.End, h.End)
				continue
			}
			out = append(out, h)
		case h.Type == r.Type && h.PID == r.PID:
			r.Start, r.End = min(r.Start, h.Start), max(r.End, h.End)
		default:
			if h.Start < r.Start {
				left := h
				left.End = r.Start - 1
				out = append(out, left)
			}
			if h.End > r.End {
				right := h
				right.Start = r.End + 1
				out = append(out, right)
			}
		}
	}
	if r.Type != wire.LockUnlock {
		out = append(out, r)
	}
	sortRanges(out)
	return out
}

func adjacent(a, b *Range) bool {
	return a.End != math.MaxUint64 && a.End+1 == b.Start || b.End != math.MaxUint64 && b.End+1 == a.Start
}

// sortRanges orders by Start; insertion sort, because all but a few are in order already.
func sortRanges(rs ranges) {
	for i := 1; i < len(rs); i++ {
		for j := i; j > 0 && rs[j].Start < rs[j-1].Start; j-- {
			rs[j], rs[j-1] = rs[j-1], rs[j]
		}
	}
}

// drop takes away all locks for which gone is true.
func (rs ranges) drop(gone func(*Range) bool) ranges {
	out := rs[:0]
	for i := range rs {
		if !gone(&rs[i]) {
			out = append(out, rs[i])
		}
	}
	return out
}
