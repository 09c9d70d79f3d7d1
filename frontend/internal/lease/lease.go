// Package lease holds what a session knows of its right to cache one inode. It has no goroutine, clock or lock in it:
// the owner of the inode guards it.
package lease

import "github.com/crakefs/crake/wire"

// Token says when a request began, by a counter of the whole process that only rises. A grant in the answer of a request
// that began before the lease was given up is void, because the owner of the bucket may have processed the two in
// either order.
type Token uint64

// State is the lease of one session on one inode.
//
// Invariant: mode never rises while a recall is pending, except by a grant that the owner made after that recall.
type State struct {
	mode     wire.LeaseMode
	recalled uint64         // Seq of the newest recall seen from the present owner of the bucket
	pending  bool           // a recall is being served: what it asks for must not grow
	target   wire.LeaseMode // of the pending recall
	voidAt   Token          // grants of requests that began before are void
}

// Mode gives what is held. While a recall is pending that may still be used for what is in hand, not for more dirty data.
func (s *State) Mode() wire.LeaseMode { return s.mode }

// Cached says that attributes and extents may be kept and used.
func (s *State) Cached() bool { return s.mode >= wire.LeaseRead }

// Writable says that new data may be buffered.
func (s *State) Writable() bool {
	return s.mode == wire.LeaseWrite && (!s.pending || s.target == wire.LeaseWrite)
}

// Pending says that a recall is being served.
func (s *State) Pending() bool { return s.pending }

// Grant takes the lease in an answer to a request that began at t, unless it is void. It reports whether the session
// now has at least the mode granted by right of this answer.
func (s *State) Grant(t Token, l wire.Lease) bool {
	if l.Mode == wire.LeaseNone || l.Seq <= s.recalled || t <= s.voidAt {
		return false
	}
	s.mode = max(s.mode, l.Mode)
	return true
}

// Recall notes a recall. It reports whether anything must be done: false when the lease is low enough already. After
// true, call Lower when all above to is flushed and forgotten.
func (s *State) Recall(seq uint64, to wire.LeaseMode) bool {
	s.recalled = max(s.recalled, seq)
	if s.mode <= to {
		return false
	}
	if s.pending {
		to = min(to, s.target)
	}
	s.pending, s.target = true, to
	return true
}

// Target gives the mode that the pending recalls leave; the present mode when there are none.
func (s *State) Target() wire.LeaseMode {
	if s.pending {
		return s.target
	}
	return s.mode
}

// Lower ends the pending recalls: the mode is now at most to. A recall to a lower mode that came meanwhile stays pending.
func (s *State) Lower(to wire.LeaseMode) {
	s.mode = min(s.mode, to)
	if s.mode <= s.target {
		s.pending = false
	}
}

// Abandon forgets pending recalls that were not finished: their asker is gone, and asks again if it still wants.
func (s *State) Abandon() { s.pending = false }

// GiveUp drops the lease at time now because this side returns it.
func (s *State) GiveUp(now Token) {
	s.mode, s.pending, s.voidAt = wire.LeaseNone, false, now
}

// Reclaim starts at time now to hand the lease over to a new owner of the bucket: grants of the old one that are still
// under way count no more, nor do its recalls. It gives what to claim.
func (s *State) Reclaim(now Token) wire.LeaseMode {
	s.voidAt = now
	s.recalled = 0
	s.pending = false
	return s.mode
}
