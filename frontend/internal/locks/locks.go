// Package locks remembers which locks the session's callers hold on a file, so that a close knows what to drop and a new
// owner of the bucket can be told. It decides nothing: the bucket's owner does.
package locks

import (
	"slices"

	"github.com/crakefs/crake/wire"
)

// Held is one lock: the bytes from Start to End (inclusive), of one owner.
type Held struct {
	Owner      uint64
	Start, End uint64
	Type       uint8 // wire.LockRead or wire.LockWrite
	Flock      bool
	PID        uint32
}

// Table is the locks of one file. The zero value has none. Not safe for concurrent use.
type Table struct {
	held []Held
}

// Set notes that a lock was granted or, with Type LockUnlock, dropped: of the same owner and space it replaces whatever
// overlaps.
func (t *Table) Set(l Held) {
	out := t.held[:0:0]
	for _, h := range t.held {
		if h.Owner != l.Owner || h.Flock != l.Flock || h.End < l.Start || h.Start > l.End {
			out = append(out, h)
			continue
		}
		if h.Start < l.Start {
			head := h
			head.End = l.Start - 1
			out = append(out, head)
		}
		if h.End > l.End {
			tail := h
			tail.Start = l.End + 1
			out = append(out, tail)
		}
	}
	if l.Type != wire.LockUnlock {
		out = append(out, l)
	}
	t.held = out
}

// Has tells whether the owner holds anything.
func (t *Table) Has(owner uint64, flock bool) bool {
	return slices.ContainsFunc(t.held, func(h Held) bool { return h.Owner == owner && h.Flock == flock })
}

// Within gives what the owner holds in [start, end], cut to it.
func (t *Table) Within(owner uint64, flock bool, start, end uint64) []Held {
	var out []Held
	for _, h := range t.held {
		if h.Owner == owner && h.Flock == flock && h.Start <= end && h.End >= start {
			h.Start, h.End = max(h.Start, start), min(h.End, end)
			out = append(out, h)
		}
	}
	return out
}

// All gives every lock.
func (t *Table) All() []Held { return slices.Clone(t.held) }

// Empty says that there are none.
func (t *Table) Empty() bool { return len(t.held) == 0 }
