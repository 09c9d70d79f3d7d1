package meta

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/crakefs/crake/wire"
)

// The lock table: shared and exclusive locks on inodes, regions, locations and rename trees, in order of arrival.
//
// An operation takes all its locks at once, sorted; spaces are in the order in which an operation may add to what it
// has. So within a bucket nobody waits in a circle. Waits end at a deadline all the same, because the lock of a
// transaction in doubt can last as long as its coordinator is away.
//
// A lock is given back as soon as the change is applied to the memtable, before it is durable: else creates in one
// directory would wait for one flush each. The entry remembers the commit (as ticket), and whoever takes the lock next
// and only reads must wait for the ticket before it answers. Who writes need not: its own commit comes later in the log.

// lockSpace is the kind of a lock, in lock order.
type lockSpace uint8

const (
	spaceRename  lockSpace = 1 // id: inode of a filesystem's root
	spaceInode   lockSpace = 2 // id: inode: its record, names in it, xattrs, extents of region 0
	spaceRegions lockSpace = 3 // id: inode: extents of its regions above 0 in this bucket
	spaceLoc     lockSpace = 4 // id: number: live count; taken while committing only
)

type lockID struct {
	space lockSpace
	id    uint64
}

// String gives the lock as people read it.
func (l lockID) String() string {
	space := [...]string{"lock", "renames", "inode", "regions", "location"}[min(int(l.space), 4)]
	return fmt.Sprintf("%s %x", space, l.id)
}

func compareLocks(a, b lockID) int {
	if c := cmp.Compare(a.space, b.space); c != 0 {
		return c
	}
	return cmp.Compare(a.id, b.id)
}

// lockWant is a lock that an operation asks for.
type lockWant struct {
	lockID
	exclusive bool
}

func wantInode(ino wire.Ino, exclusive bool) lockWant {
	return lockWant{lockID{spaceInode, uint64(ino)}, exclusive}
}

func wantRegions(ino wire.Ino, exclusive bool) lockWant {
	return lockWant{lockID{spaceRegions, uint64(ino)}, exclusive}
}

// ticket is a commit that is applied but not yet durable.
type ticket struct {
	done chan struct{} // closed when it is durable or has failed
	err  error         // set before done is closed
}

func (t *ticket) wait() error {
	<-t.done
	return t.err
}

type lockWaiter struct {
	h         *held
	exclusive bool
	granted   chan struct{}
}

// lockEntry is a lock that is held, waited for, or whose last change is not durable.
type lockEntry struct {
	id        lockID
	exclusive bool
	by        *held // who has it exclusively, for people; nil otherwise
	readers   int
	queue     []*lockWaiter
	last      *ticket // of the last change; nil when it is durable
}

type lockShard struct {
	mu sync.Mutex
	m  map[lockID]*lockEntry
}

type lockTable struct {
	shards [lockShards]lockShard
}

func newLockTable() *lockTable {
	t := &lockTable{}
	for i := range t.shards {
		t.shards[i].m = map[lockID]*lockEntry{}
	}
	return t
}

func (t *lockTable) shard(id lockID) *lockShard {
	h := id.id*0x9e3779b97f4a7c15 + uint64(id.space)
	return &t.shards[h>>32%lockShards]
}

// held is a set of locks, until release.
type held struct {
	table *lockTable
	// Immutable: when they were asked for, and for which transaction of another bucket; zero is an operation of this one.
	since   time.Time
	txn     wire.TxnID
	locks   []lockWant
	tickets []*ticket // changes that were not durable when the locks were taken
}

// errLockTime says that a lock was not to be had in time; it is the cause of an error that tells who has it.
var errLockTime = wire.Errorf("meta.lock", wire.KindUnavailable, "", "not to be had in time")

// acquire takes all locks, in lock order. It waits at most wait, and not past ctx. wants is sorted in place.
// Preconditions: the caller holds no lock of an equal or later space.
func (t *lockTable) acquire(ctx context.Context, wait time.Duration, wants ...lockWant) (*held, error) {
	return t.acquireFor(ctx, wire.TxnID{}, wait, wants...)
}

// acquireFor is acquire for a transaction that another bucket coordinates.
func (t *lockTable) acquireFor(ctx context.Context, txn wire.TxnID, wait time.Duration, wants ...lockWant) (*held, error) {
	slices.SortFunc(wants, func(a, b lockWant) int { return compareLocks(a.lockID, b.lockID) })
	h := &held{table: t, since: time.Now(), txn: txn, locks: wants[:0]}
	var timer *time.Timer
	for i := 0; i < len(wants); {
		w := wants[i]
		for i++; i < len(wants) && wants[i].lockID == w.lockID; i++ {
			w.exclusive = w.exclusive || wants[i].exclusive
		}
		waiter := t.take(h, w)
		if waiter != nil {
			if timer == nil {
				timer = time.NewTimer(wait)
				defer timer.Stop()
			}
			if err := t.wait(ctx, timer, w, waiter); err != nil {
				h.release(nil)
				return nil, err
			}
			t.note(h, w)
		}
		h.locks = append(h.locks, w)
	}
	return h, nil
}

// take takes the lock, or stands in line for it.
func (t *lockTable) take(h *held, w lockWant) *lockWaiter {
	s := t.shard(w.lockID)
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.m[w.lockID]
	if e == nil {
		e = &lockEntry{id: w.lockID}
		s.m[w.lockID] = e
	}
	if len(e.queue) == 0 && e.free(w.exclusive) {
		e.hold(h, w.exclusive)
		if e.last != nil {
			h.tickets = append(h.tickets, e.last)
		}
		return nil
	}
	waiter := &lockWaiter{h: h, exclusive: w.exclusive, granted: make(chan struct{})}
	e.queue = append(e.queue, waiter)
	return waiter
}

func (t *lockTable) wait(ctx context.Context, timer *time.Timer, w lockWant, waiter *lockWaiter) error {
	kind, cause := wire.KindUnavailable, error(errLockTime)
	select {
	case <-waiter.granted:
		return nil
	case <-timer.C:
	case <-ctx.Done():
	}
	if ctx.Err() != nil { // whichever woke us: both may be over
		e := ctxError("meta.lock", ctx)
		kind, cause = e.Kind, e.Err
	}
	s := t.shard(w.lockID)
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.m[w.lockID]
	err := wire.Errorf("meta.lock", kind, w.lockID.String(), "%s: %w", e.holder(), cause)
	if i := slices.Index(e.queue, waiter); i >= 0 {
		e.queue = slices.Delete(e.queue, i, i+1)
	} else {
		e.unhold(w.exclusive) // granted just now
	}
	e.grant()
	s.tidy(e)
	return err
}

// note adds the ticket of a lock that was waited for.
func (t *lockTable) note(h *held, w lockWant) {
	s := t.shard(w.lockID)
	s.mu.Lock()
	if e := s.m[w.lockID]; e.last != nil {
		h.tickets = append(h.tickets, e.last)
	}
	s.mu.Unlock()
}

// tryShared reports whether the lock is free for a reader right now and all is durable under it.
func (t *lockTable) tryShared(id lockID) bool {
	s := t.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.m[id]
	return e == nil || !e.exclusive && e.last == nil
}

func (e *lockEntry) free(exclusive bool) bool {
	return !e.exclusive && (!exclusive || e.readers == 0)
}

func (e *lockEntry) hold(h *held, exclusive bool) {
	if exclusive {
		e.exclusive, e.by = true, h
	} else {
		e.readers++
	}
}

func (e *lockEntry) unhold(exclusive bool) {
	switch {
	case exclusive && e.exclusive:
		e.exclusive, e.by = false, nil
	case !exclusive && e.readers > 0:
		e.readers--
	default:
		panic("meta: unlock of a lock that is not held")
	}
}

// holder describes who is in the way. Somebody who has had a lock for long is a transaction in doubt, or a mistake of ours.
func (e *lockEntry) holder() string {
	switch {
	case !e.exclusive && e.readers == 0:
		return "free"
	case !e.exclusive:
		return fmt.Sprintf("%d readers have it, %d wait", e.readers, len(e.queue))
	}
	who := "an operation"
	if id := e.by.txn; id != (wire.TxnID{}) {
		who = fmt.Sprintf("transaction %d of bucket %d, epoch %d,", id.Seq, id.Coordinator, id.Epoch)
	}
	return fmt.Sprintf("%s that came %v ago has it, %d wait", who, time.Since(e.by.since).Round(time.Millisecond), len(e.queue))
}

// grant gives the lock to those first in line.
func (e *lockEntry) grant() {
	for len(e.queue) > 0 && e.free(e.queue[0].exclusive) {
		w := e.queue[0]
		e.queue[0] = nil
		e.queue = e.queue[1:]
		e.hold(w.h, w.exclusive)
		close(w.granted)
	}
}

func (s *lockShard) tidy(e *lockEntry) {
	if !e.exclusive && e.readers == 0 && len(e.queue) == 0 && e.last == nil {
		delete(s.m, e.id)
	}
}

// release gives the locks back; idempotent. last is the change made under the exclusive ones, or nil: then settled has
// to follow when it is durable.
func (h *held) release(last *ticket) {
	if h == nil {
		return
	}
	for _, w := range h.locks {
		s := h.table.shard(w.lockID)
		s.mu.Lock()
		e := s.m[w.lockID]
		if w.exclusive && last != nil {
			e.last = last
		}
		e.unhold(w.exclusive)
		e.grant()
		s.tidy(e)
		s.mu.Unlock()
	}
	h.locks = nil
}

// settled tells that the change is durable.
func (t *lockTable) settled(locks []lockWant, last *ticket) {
	for _, w := range locks {
		if !w.exclusive {
			continue
		}
		s := t.shard(w.lockID)
		s.mu.Lock()
		if e := s.m[w.lockID]; e != nil && e.last == last {
			e.last = nil
			s.tidy(e)
		}
		s.mu.Unlock()
	}
}

// durable waits until everything that was seen under the locks is durable. It may be called after release.
func (h *held) durable() error {
	for _, t := range h.tickets {
		if err := t.wait(); err != nil {
			return wire.E("meta.commit", wire.KindUnavailable, "", err)
		}
	}
	h.tickets = nil
	return nil
}

// ctxError tells why a wait for ctx ended: nothing was done.
func ctxError(op string, ctx context.Context) *wire.Error {
	if ctx.Err() == context.DeadlineExceeded {
		return wire.E(op, wire.KindTimeout, "", ctx.Err())
	}
	return wire.E(op, wire.KindInterrupted, "", ctx.Err())
}
