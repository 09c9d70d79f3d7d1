package lock

import (
	"fmt"
	"math"

	"github.com/crakefs/crake/wire"
)

// Table holds the locks of one bucket. It has no goroutine, clock or socket, and is not safe for concurrent use.
//
// Invariant: no two owners have conflicting locks on a byte of an inode.
// Invariant: every waiter has a held lock in its way.
type Table struct {
	files   map[wire.Ino]*file
	waits   map[Owner][]*Waiter // fcntl waiters by owner, for the search for circles
	held    map[wire.SessionID]int
	waiting map[wire.SessionID]int
	done    []*Waiter
}

type file struct {
	posix   ranges
	flock   ranges
	waiters []*Waiter // in order of arrival
}

// Waiter is a request that waits for its turn.
type Waiter struct {
	Ino   wire.Ino
	Range Range
	Flock bool
	// Err is set when the wait failed: KindDeadlock, KindStaleSession, KindMoved.
	Err error
	// Wake is closed by whoever drives the table; the table does not touch it.
	Wake  chan struct{}
	ended bool
}

// NewTable makes an empty table.
func NewTable() *Table {
	return &Table{
		files: map[wire.Ino]*file{}, waits: map[Owner][]*Waiter{},
		held: map[wire.SessionID]int{}, waiting: map[wire.SessionID]int{},
	}
}

// Take gives, and forgets, the waiters that were granted their lock or failed (Err).
func (t *Table) Take() []*Waiter {
	d := t.done
	t.done = nil
	return d
}

func (f *file) space(flock bool) *ranges {
	if flock {
		return &f.flock
	}
	return &f.posix
}

// check turns a request into a Range.
func check(req *wire.LockReq) (Range, error) {
	r := Range{
		Owner: Owner{req.Op.Session, req.Owner}, Start: req.Start, End: req.End, Type: req.Type, PID: req.PID,
	}
	if req.Flock {
		r.Start, r.End = 0, math.MaxUint64
	}
	if r.Start > r.End || r.Type > wire.LockUnlock {
		return r, wire.Errorf("lock.set", wire.KindInvalid, fmt.Sprint(uint64(req.Ino)), "range %d to %d, type %d", req.Start, req.End, req.Type)
	}
	return r, nil
}

// Test describes the first lock that is in the way of the one in req.
func (t *Table) Test(req *wire.LockReq) (wire.LockResp, error) {
	r, err := check(req)
	if err != nil {
		return wire.LockResp{}, err
	}
	f := t.files[req.Ino]
	if f == nil || r.Type == wire.LockUnlock {
		return wire.LockResp{Type: wire.LockUnlock}, nil
	}
	c := f.space(req.Flock).conflict(r)
	if c == nil {
		return wire.LockResp{Type: wire.LockUnlock}, nil
	}
	return wire.LockResp{Type: c.Type, Start: c.Start, End: c.End, PID: c.PID}, nil
}

// Set sets or drops the lock at once, or, with Wait, gives a Waiter that Take will name. Test is not looked at.
// Errors: KindWouldBlock, KindDeadlock, KindOverLimit, KindUnavailable (too many wait), KindInvalid.
func (t *Table) Set(req *wire.LockReq) (*Waiter, error) {
	r, err := check(req)
	if err != nil {
		return nil, err
	}
	id := fmt.Sprint
	f := t.file(req.Ino)
	defer t.tidy(req.Ino, f)
	sp := f.space(req.Flock)
	if r.Type == wire.LockUnlock {
		if t.apply(sp, r) {
			t.wake(req.Ino, f)
		}
		return nil, nil
	}
	if t.held[r.Owner.Session] >= MaxSessionLocks {
		return nil, wire.Errorf("lock.set", wire.KindOverLimit, id(uint64(req.Ino)), "the session has %d locks", MaxSessionLocks)
	}
	if req.Flock {
		// As Linux has it, changing the type of a flock drops the old one first, even if the new one cannot be had.
		if old := (*sp).of(r.Owner); old != nil && old.Type != r.Type {
			drop := r
			drop.Type = wire.LockUnlock
			t.apply(sp, drop)
			t.wake(req.Ino, f)
		}
	}
	if (*sp).conflict(r) == nil {
		t.apply(sp, r)
		t.wake(req.Ino, f) // a write lock that became a read lock lets others in
		return nil, nil
	}
	if !req.Wait {
		return nil, wire.E("lock.set", wire.KindWouldBlock, id(uint64(req.Ino)), nil)
	}
	if t.waiting[r.Owner.Session] >= MaxSessionWaiters {
		return nil, wire.Errorf("lock.set", wire.KindUnavailable, id(uint64(req.Ino)), "%d requests of the session wait for locks", MaxSessionWaiters)
	}
	w := &Waiter{Ino: req.Ino, Range: r, Flock: req.Flock}
	if !req.Flock && t.circle(w) {
		return nil, wire.E("lock.set", wire.KindDeadlock, id(uint64(req.Ino)), nil)
	}
	f.waiters = append(f.waiters, w)
	if !req.Flock {
		t.waits[r.Owner] = append(t.waits[r.Owner], w)
	}
	t.waiting[r.Owner.Session]++
	return w, nil
}

func (rs ranges) of(o Owner) *Range {
	for i := range rs {
		if rs[i].Owner == o {
			return &rs[i]
		}
	}
	return nil
}

// apply sets a range and keeps count of the session's locks; it tells whether anything may have become free.
func (t *Table) apply(sp *ranges, r Range) bool {
	before := (*sp).count(r.Owner.Session)
	if r.Type == wire.LockUnlock && before == 0 {
		return false
	}
	*sp = (*sp).set(r)
	t.addHeld(r.Owner.Session, (*sp).count(r.Owner.Session)-before)
	return true
}

func (rs ranges) count(s wire.SessionID) int {
	n := 0
	for i := range rs {
		if rs[i].Owner.Session == s {
			n++
		}
	}
	return n
}

func (t *Table) addHeld(s wire.SessionID, n int) {
	if t.held[s] += n; t.held[s] == 0 {
		delete(t.held, s)
	}
}

// wake grants waiters of the file their locks, in order of arrival, until none can be granted any more.
func (t *Table) wake(ino wire.Ino, f *file) {
	for again := true; again; {
		again = false
		for i := 0; i < len(f.waiters); i++ {
			w := f.waiters[i]
			sp := f.space(w.Flock)
			if (*sp).conflict(w.Range) != nil {
				continue
			}
			t.unlink(f, w)
			i--
			t.apply(sp, w.Range)
			t.done = append(t.done, w)
			again = true // it may have turned its own write lock into a read lock
		}
	}
	// Who waits for somebody else than before may now be part of a circle.
	for i := 0; i < len(f.waiters); i++ {
		if w := f.waiters[i]; !w.Flock && t.circle(w) {
			t.unlink(f, w)
			i--
			w.Err = wire.E("lock.set", wire.KindDeadlock, fmt.Sprint(uint64(ino)), nil)
			t.done = append(t.done, w)
		}
	}
}

// circle tells whether the owner of w would wait for itself: whether from the owners in its way, by what those wait
// for, the search comes back to it.
func (t *Table) circle(w *Waiter) bool {
	seen := map[Owner]bool{}
	todo := t.blockers(nil, w)
	for steps := 0; len(todo) > 0 && steps < maxSearch; steps++ {
		o := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if o == w.Range.Owner {
			return true
		}
		if seen[o] {
			continue
		}
		seen[o] = true
		for _, next := range t.waits[o] {
			todo = t.blockers(todo, next)
		}
	}
	return false
}

func (t *Table) blockers(out []Owner, w *Waiter) []Owner {
	f := t.files[w.Ino]
	if f == nil {
		return out
	}
	for i := range f.posix {
		if blocks(&f.posix[i], &w.Range) {
			out = append(out, f.posix[i].Owner)
		}
	}
	return out
}

// Cancel ends a wait; it tells whether the waiter still waited (else it has its lock, or has failed).
func (t *Table) Cancel(w *Waiter) bool {
	if w.ended {
		return false
	}
	f := t.files[w.Ino]
	t.unlink(f, w)
	t.tidy(w.Ino, f)
	return true
}

func (t *Table) unlink(f *file, w *Waiter) {
	w.ended = true
	f.waiters = without(f.waiters, w)
	o := w.Range.Owner
	if !w.Flock {
		if t.waits[o] = without(t.waits[o], w); len(t.waits[o]) == 0 {
			delete(t.waits, o)
		}
	}
	if t.waiting[o.Session]--; t.waiting[o.Session] == 0 {
		delete(t.waiting, o.Session)
	}
}

func without(ws []*Waiter, w *Waiter) []*Waiter {
	for i, o := range ws {
		if o == w {
			return append(ws[:i], ws[i+1:]...)
		}
	}
	return ws
}

// EndSession drops all locks of a session and fails its waiters.
func (t *Table) EndSession(s wire.SessionID) {
	t.end(func(o Owner) bool { return o.Session == s },
		wire.E("lock.set", wire.KindStaleSession, fmt.Sprint(s), nil))
}

// FailAll fails all waiters with err and keeps the locks: the bucket moves, and its next owner learns of them.
func (t *Table) FailAll(err error) {
	for _, f := range t.files {
		for len(f.waiters) > 0 {
			w := f.waiters[0]
			t.unlink(f, w)
			w.Err = err
			t.done = append(t.done, w)
		}
	}
}

func (t *Table) end(gone func(Owner) bool, err error) {
	for ino, f := range t.files {
		for i := 0; i < len(f.waiters); i++ {
			if w := f.waiters[i]; gone(w.Range.Owner) {
				t.unlink(f, w)
				i--
				w.Err = err
				t.done = append(t.done, w)
			}
		}
		drop := func(r *Range) bool {
			if gone(r.Owner) {
				t.addHeld(r.Owner.Session, -1)
				return true
			}
			return false
		}
		f.posix, f.flock = f.posix.drop(drop), f.flock.drop(drop)
		t.wake(ino, f)
		t.tidy(ino, f)
	}
}

// Locks gives the number of held locks.
func (t *Table) Locks() int {
	n := 0
	for _, c := range t.held {
		n += c
	}
	return n
}

func (t *Table) file(ino wire.Ino) *file {
	f := t.files[ino]
	if f == nil {
		f = &file{}
		t.files[ino] = f
	}
	return f
}

func (t *Table) tidy(ino wire.Ino, f *file) {
	if len(f.posix) == 0 && len(f.flock) == 0 && len(f.waiters) == 0 {
		delete(t.files, ino)
	}
}
