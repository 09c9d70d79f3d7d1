package lease

import (
	"container/list"
	"fmt"
	"time"

	"github.com/crakefs/crake/wire"
)

// Use says what a request is about to do with the inodes that it pins.
type Use uint8

// The uses.
const (
	// UseRead looks at the inode: what another session holds back under a write lease has to be published first.
	UseRead Use = 1
	// UseChange changes the inode: no other session may keep anything of it in a cache. Changes by several sessions may
	// run side by side (creates in one directory), because the bucket orders them; but then none gets a lease.
	UseChange Use = 2
	// UseExclusive asks for the write lease: no other session holds a lease or changes the inode meanwhile.
	UseExclusive Use = 3
)

// Recall is a message that the driver has to send. The table waits for Answered with the same Seq, or for the end of
// the session.
type Recall struct {
	Session   wire.SessionID
	Ino       wire.Ino
	To        wire.LeaseMode
	Seq       uint64
	GrantedAt time.Time      // when the lease was granted
	From      wire.LeaseMode // the mode that the session has now
}

// Table knows who holds which lease of the inodes of one bucket. It has no goroutine, clock or socket: every method is
// a step, after which Take tells what has to be done. It is not safe for concurrent use.
//
// Invariant: if a session holds LeaseWrite on an inode, no other session holds anything on it.
// Invariant: no lease is granted on an inode while another session's change of it waits or runs.
// Invariant: seq rises with every grant and every recall.
type Table struct {
	limit    int // leases a session
	seq      uint64
	files    map[wire.Ino]*file
	sessions map[wire.SessionID]*holder
	leases   int
	recalls  []Recall
	done     []*Pin
	free     []*file
}

// file is an inode with leases or pins.
type file struct {
	ino    wire.Ino
	leases []*held
	pins   []*Pin
	excl   []*Pin // the pins with UseExclusive, in order of arrival
	// counts tells how many pins each session has, to skip the comparison with others when there are none.
	counts []count
	// tainted counts the pins that are tainted here.
	tainted int
}

type count struct {
	session wire.SessionID
	n       int
}

// held is a lease of one session on one inode.
type held struct {
	session    wire.SessionID
	file       *file
	mode       wire.LeaseMode
	seq        uint64 // of the newest grant
	writeSince uint64 // seq at which it became a write lease
	at         time.Time
	// recalling: a recall to sentTo with sentSeq is on its way; want is the lowest mode asked for meanwhile.
	recalling bool
	sentTo    wire.LeaseMode
	sentSeq   uint64
	want      wire.LeaseMode
	age       *list.Element // in holder.byAge
}

// holder is a session with leases.
type holder struct {
	byAge *list.List // of *held, the oldest grant first
}

// Pin is a request's use of inodes, from Pin to Unpin.
type Pin struct {
	Session wire.SessionID
	Use     Use
	// Wake is closed by the driver once the pin is ready or failed; the table does not touch it.
	Wake  chan struct{}
	seq   uint64
	ready bool
	// waited: it was not ready at once, so somebody waits for Take to name it.
	waited bool
	err    error
	ended  bool
	files  []pinFile
}

type pinFile struct {
	f       *file
	index   int  // in f.pins
	tainted bool // another session's change ran beside it: what was read may be old, so no lease
}

// Ready tells that nothing is in the way of the request any more.
func (p *Pin) Ready() bool { return p.ready }

// Err tells why the pin never becomes ready: its session ended.
func (p *Pin) Err() error { return p.err }

// NewTable makes an empty table whose sequence starts above firstSeq; limit bounds the leases of a session (0: default).
func NewTable(firstSeq uint64, limit int) *Table {
	if limit <= 0 {
		limit = DefaultSessionLeases
	}
	return &Table{
		limit: limit, seq: firstSeq,
		files: map[wire.Ino]*file{}, sessions: map[wire.SessionID]*holder{},
	}
}

// Take gives, and forgets, the recalls to send and the pins that have become ready or failed since they were made.
func (t *Table) Take() (recalls []Recall, done []*Pin) {
	recalls, done = t.recalls, t.done
	t.recalls, t.done = nil, nil
	return recalls, done
}

// Leases gives the number of leases.
func (t *Table) Leases() int { return t.leases }

// Pin begins the use of inodes. If the pin is not ready at once, recalls have been asked for, and Take will tell.
// Session 0 stands for the bucket itself (clean-up); it holds no leases.
// Preconditions: 1 to MaxPinInodes inodes; Unpin follows.
func (t *Table) Pin(session wire.SessionID, use Use, inos []wire.Ino) *Pin {
	p := &Pin{Session: session, Use: use, seq: t.seq, files: make([]pinFile, 0, len(inos))}
	for i, ino := range inos {
		if containsIno(inos[:i], ino) {
			continue
		}
		f := t.file(ino)
		p.files = append(p.files, pinFile{f: f, index: len(f.pins)})
		f.pins = append(f.pins, p)
		f.add(session)
		if use == UseExclusive {
			f.excl = append(f.excl, p)
		}
	}
	t.check(p)
	p.waited = !p.ready
	return p
}

func containsIno(inos []wire.Ino, ino wire.Ino) bool {
	for _, i := range inos {
		if i == ino {
			return true
		}
	}
	return false
}

// Unpin ends the use; idempotent.
func (t *Table) Unpin(p *Pin) {
	if p.ended {
		return
	}
	p.ended = true
	for i := range p.files {
		f := p.files[i].f
		t.unlink(p, &p.files[i])
		// Only a change may have been in the way of others.
		if p.Use != UseRead {
			t.recheck(f)
		}
		t.tidy(f)
	}
}

func (t *Table) unlink(p *Pin, pf *pinFile) {
	f := pf.f
	last := len(f.pins) - 1
	moved := f.pins[last]
	f.pins[pf.index] = moved
	moved.of(f).index = pf.index
	f.pins[last] = nil
	f.pins = f.pins[:last]
	f.remove(p.Session)
	if pf.tainted {
		f.tainted--
	}
	if p.Use == UseExclusive {
		for i, q := range f.excl {
			if q == p {
				f.excl = append(f.excl[:i], f.excl[i+1:]...)
				break
			}
		}
	}
}

// of finds the pin's entry for a file.
func (p *Pin) of(f *file) *pinFile {
	for i := range p.files {
		if p.files[i].f == f {
			return &p.files[i]
		}
	}
	panic("lease: pin without its file")
}

// check makes the pin ready if nothing is in its way, else asks for the recalls that it takes.
func (t *Table) check(p *Pin) {
	if p.ready || p.err != nil || p.ended {
		return
	}
	ok := true
	for i := range p.files {
		if !t.clear(p, p.files[i].f) {
			ok = false
		}
	}
	if !ok {
		return
	}
	p.ready = true
	if p.waited {
		t.done = append(t.done, p)
	}
	for i := range p.files {
		t.taint(p, &p.files[i])
	}
}

// taint marks pins of different sessions that run on the same inode, at least one of them a change.
func (t *Table) taint(p *Pin, pf *pinFile) {
	f := pf.f
	if len(f.counts) < 2 {
		return
	}
	for _, q := range f.pins {
		if q.Session == p.Session || !q.ready {
			continue
		}
		if q.Use != UseRead {
			pf.taint()
		}
		if p.Use != UseRead {
			q.of(f).taint()
		}
	}
}

func (pf *pinFile) taint() {
	if !pf.tainted {
		pf.tainted = true
		pf.f.tainted++
	}
}

// clear tells whether nothing on this file is in the pin's way.
func (t *Table) clear(p *Pin, f *file) bool {
	if f.only(p.Session) {
		return true
	}
	if p.Use != UseRead && t.behindExclusive(p, f) {
		// Its owner is about to be granted the lease: a recall now could overtake the grant.
		return false
	}
	ok := true
	for _, h := range f.leases {
		switch {
		case h.session == p.Session:
		case p.Use == UseRead:
			// A write lease that was granted after we came is no obstacle: what had been written before we were asked was
			// published when that lease was granted.
			if h.mode == wire.LeaseWrite && h.writeSince <= p.seq {
				t.recall(h, wire.LeaseRead)
				ok = false
			}
		default:
			t.recall(h, wire.LeaseNone)
			ok = false
		}
	}
	if p.Use == UseExclusive && ok {
		for _, q := range f.pins {
			if q.Session != p.Session && q.ready && q.Use == UseChange {
				return false
			}
		}
	}
	return ok
}

// behindExclusive tells whether a change has to wait for another session's exclusive use of the file.
func (t *Table) behindExclusive(p *Pin, f *file) bool {
	if len(f.excl) == 0 || p.Use == UseChange && f.hasReady(p.Session) {
		return false // a request within a request of the same session goes on, else it would wait for itself
	}
	for i, q := range f.excl {
		if q == p {
			return false
		}
		if q.Session == p.Session {
			continue
		}
		if p.Use == UseExclusive {
			return true // in order of arrival; neighbours of one session share their turn
		}
		if q.ready {
			return true
		}
		// The first in the line waits only for changes that run already: none may start, or it would never get its turn.
		// (While it still waits for leases, changes go on: the holder may need one to give its lease back.)
		if i == 0 && !f.leasedByOthers(q.Session) {
			return true
		}
	}
	return false
}

func (f *file) hasReady(s wire.SessionID) bool {
	for _, q := range f.pins {
		if q.Session == s && q.ready && q.Use != UseRead {
			return true
		}
	}
	return false
}

func (f *file) leasedByOthers(s wire.SessionID) bool {
	for _, h := range f.leases {
		if h.session != s {
			return true
		}
	}
	return false
}

// only tells that nobody but the session has anything to do with the file.
func (f *file) only(s wire.SessionID) bool {
	for _, c := range f.counts {
		if c.session != s {
			return false
		}
	}
	return !f.leasedByOthers(s)
}

func (f *file) add(s wire.SessionID) {
	for i := range f.counts {
		if f.counts[i].session == s {
			f.counts[i].n++
			return
		}
	}
	f.counts = append(f.counts, count{s, 1})
}

func (f *file) remove(s wire.SessionID) {
	for i := range f.counts {
		if f.counts[i].session != s {
			continue
		}
		if f.counts[i].n--; f.counts[i].n == 0 {
			last := len(f.counts) - 1
			f.counts[i] = f.counts[last]
			f.counts = f.counts[:last]
		}
		return
	}
}

func (f *file) lease(s wire.SessionID) *held {
	for _, h := range f.leases {
		if h.session == s {
			return h
		}
	}
	return nil
}

// recheck looks at all waiting pins of a file again, the exclusive ones first and in order.
func (t *Table) recheck(f *file) {
	for i := 0; i < len(f.excl); i++ {
		t.check(f.excl[i])
	}
	for i := 0; i < len(f.pins); i++ {
		t.check(f.pins[i])
	}
}

// recall asks that a lease be reduced. One recall of a lease is on its way at a time; a lower mode follows.
func (t *Table) recall(h *held, to wire.LeaseMode) {
	if h.recalling {
		h.want = min(h.want, to)
		return
	}
	t.seq++
	h.recalling, h.sentTo, h.want, h.sentSeq = true, to, to, t.seq
	t.recalls = append(t.recalls, Recall{
		Session: h.session, Ino: h.file.ino, To: to, Seq: t.seq, GrantedAt: h.at, From: h.mode,
	})
}

// Answered says that the session has given up what the recall of this Seq asked for. An unknown Seq has no effect.
func (t *Table) Answered(session wire.SessionID, ino wire.Ino, seq uint64) {
	f := t.files[ino]
	if f == nil {
		return
	}
	h := f.lease(session)
	if h == nil || !h.recalling || h.sentSeq != seq {
		return
	}
	h.recalling = false
	h.mode = min(h.mode, h.sentTo)
	switch {
	case h.mode == wire.LeaseNone:
		t.drop(h)
	case h.want < h.mode:
		t.recall(h, h.want)
	}
	t.recheck(f)
	t.tidy(f)
}

// Pending tells whether the recall of this Seq still waits for its answer.
func (t *Table) Pending(session wire.SessionID, ino wire.Ino, seq uint64) bool {
	f := t.files[ino]
	if f == nil {
		return false
	}
	h := f.lease(session)
	return h != nil && h.recalling && h.sentSeq == seq
}

// Busy tells whether a request of the session is using the inode.
func (t *Table) Busy(session wire.SessionID, ino wire.Ino) bool {
	f := t.files[ino]
	if f == nil {
		return false
	}
	for _, p := range f.pins {
		if p.Session == session && p.ready {
			return true
		}
	}
	return false
}

// Grant gives the session a lease of at most the mode wanted; LeaseNone when it cannot have one now. It never waits.
// A session that has more already keeps it. now is only stored.
// Preconditions: the session pins the inode since before it read what it is going to cache, or has just made the inode
// in a commit that nobody can have seen yet.
func (t *Table) Grant(session wire.SessionID, ino wire.Ino, want wire.LeaseMode, now time.Time) wire.Lease {
	if want == wire.LeaseNone || session == 0 {
		return wire.Lease{}
	}
	f := t.file(ino)
	defer t.tidy(f)
	h := f.lease(session)
	if h != nil && h.recalling {
		return wire.Lease{} // it is on its way out: an answer with a grant would cross the recall
	}
	mode := min(want, wire.LeaseWrite)
	if f.tainted > 0 || !f.only(session) {
		if t.contested(session, f) {
			return wire.Lease{}
		}
		for _, o := range f.leases {
			switch {
			case o.session == session:
			case o.mode == wire.LeaseWrite:
				return wire.Lease{}
			default:
				mode = min(mode, wire.LeaseRead)
			}
		}
	}
	t.seq++
	if h == nil {
		h = t.newLease(session, f)
	} else {
		t.sessions[session].byAge.MoveToBack(h.age)
	}
	if mode == wire.LeaseWrite && h.mode < wire.LeaseWrite {
		h.writeSince = t.seq
	}
	h.mode, h.seq, h.at = max(h.mode, mode), t.seq, now
	t.shrink(session)
	return wire.Lease{Mode: h.mode, Seq: h.seq}
}

// contested tells whether another session's change of the file runs, waits, or has run beside a request of ours.
func (t *Table) contested(session wire.SessionID, f *file) bool {
	exclusive := false
	for _, p := range f.pins {
		if p.Session == session && p.ready && p.Use == UseExclusive {
			exclusive = true
		}
	}
	for _, p := range f.pins {
		switch {
		case p.Session == session:
			if p.of(f).tainted {
				return true
			}
		case p.Use == UseRead:
		case exclusive && !p.ready:
			// It is behind us in the line, and will recall what we are granted.
		default:
			return true
		}
	}
	return false
}

func (t *Table) newLease(session wire.SessionID, f *file) *held {
	s := t.sessions[session]
	if s == nil {
		s = &holder{byAge: list.New()}
		t.sessions[session] = s
	}
	h := &held{session: session, file: f}
	h.age = s.byAge.PushBack(h)
	f.leases = append(f.leases, h)
	t.leases++
	return h
}

// shrink recalls the oldest read leases of a session that has too many. Those already on their way out count as gone.
func (t *Table) shrink(session wire.SessionID) {
	s := t.sessions[session]
	over := s.byAge.Len() - t.limit
	for e := s.byAge.Front(); e != nil && over > 0; e = e.Next() {
		h := e.Value.(*held)
		if h.recalling || h.mode == wire.LeaseRead && e != s.byAge.Back() {
			t.recall(h, wire.LeaseNone)
			over--
		}
	}
}

// Drop takes a lease back that its session gives up by itself, unless it was granted anew after seq (0: unconditional).
func (t *Table) Drop(session wire.SessionID, ino wire.Ino, seq uint64) {
	f := t.files[ino]
	if f == nil {
		return
	}
	h := f.lease(session)
	if h == nil || seq != 0 && h.seq > seq {
		return
	}
	t.drop(h)
	t.recheck(f)
	t.tidy(f)
}

func (t *Table) drop(h *held) {
	s := t.sessions[h.session]
	s.byAge.Remove(h.age)
	if s.byAge.Len() == 0 {
		delete(t.sessions, h.session)
	}
	f := h.file
	for i, o := range f.leases {
		if o == h {
			last := len(f.leases) - 1
			f.leases[i] = f.leases[last]
			f.leases[last] = nil
			f.leases = f.leases[:last]
			break
		}
	}
	h.mode, h.recalling = wire.LeaseNone, false
	t.leases--
}

// CancelSession fails the waiting pins of a session that is dead; they still have to be unpinned.
func (t *Table) CancelSession(session wire.SessionID) {
	t.cancel(func(p *Pin) bool { return p.Session == session },
		wire.Errorf("lease.hold", wire.KindStaleSession, fmt.Sprint(session), "the session has ended"))
}

// CancelAll fails all waiting pins; they still have to be unpinned.
func (t *Table) CancelAll(err error) {
	t.cancel(func(*Pin) bool { return true }, err)
}

func (t *Table) cancel(which func(*Pin) bool, err error) {
	for _, f := range t.files {
		for _, p := range f.pins {
			if which(p) && !p.ready && p.err == nil {
				p.err = err
				t.done = append(t.done, p)
			}
		}
	}
}

// EndSession drops all leases of a session.
// Preconditions: no request of it runs any more, and none will start.
func (t *Table) EndSession(session wire.SessionID) {
	s := t.sessions[session]
	if s == nil {
		return
	}
	for s.byAge.Len() > 0 {
		h := s.byAge.Front().Value.(*held)
		f := h.file
		t.drop(h)
		t.recheck(f)
		t.tidy(f)
	}
}

// Holds tells whether the session has at least this mode. A lease whose recall is on its way still counts.
func (t *Table) Holds(session wire.SessionID, ino wire.Ino, mode wire.LeaseMode) bool {
	f := t.files[ino]
	if f == nil {
		return false
	}
	h := f.lease(session)
	return h != nil && h.mode >= mode
}

// WriteHeld tells whether any session but this one has the write lease.
func (t *Table) WriteHeld(session wire.SessionID, ino wire.Ino) bool {
	f := t.files[ino]
	if f == nil {
		return false
	}
	for _, h := range f.leases {
		if h.session != session && h.mode == wire.LeaseWrite {
			return true
		}
	}
	return false
}

// Reclaim takes over what a session held from the bucket's former owner. Leases that conflict with what others have
// reclaimed already are lost (the first comes first served: with right sessions there are none). seq is what all
// leases of the session now have.
func (t *Table) Reclaim(session wire.SessionID, leases []wire.HeldLease, now time.Time) (lost []wire.Ino, seq uint64) {
	t.seq++
	seq = t.seq
	for _, l := range leases {
		if l.Mode == wire.LeaseNone {
			continue
		}
		f := t.file(l.Ino)
		ok := true
		for _, o := range f.leases {
			if o.session != session && (o.mode == wire.LeaseWrite || l.Mode >= wire.LeaseWrite) {
				ok = false
			}
		}
		if s := t.sessions[session]; s != nil && s.byAge.Len() >= 2*t.limit {
			ok = false // more than any session can have been granted
		}
		if !ok {
			lost = append(lost, l.Ino)
			t.tidy(f)
			continue
		}
		h := f.lease(session)
		if h == nil {
			h = t.newLease(session, f)
		}
		h.mode, h.seq, h.at = max(h.mode, min(l.Mode, wire.LeaseWrite)), seq, now
		if h.mode == wire.LeaseWrite {
			h.writeSince = seq
		}
	}
	return lost, seq
}

func (t *Table) file(ino wire.Ino) *file {
	f := t.files[ino]
	if f == nil {
		if n := len(t.free); n > 0 {
			f, t.free = t.free[n-1], t.free[:n-1]
		} else {
			f = &file{}
		}
		f.ino = ino
		t.files[ino] = f
	}
	return f
}

// tidy forgets a file that nobody uses.
func (t *Table) tidy(f *file) {
	if len(f.leases) > 0 || len(f.pins) > 0 || t.files[f.ino] != f {
		return
	}
	delete(t.files, f.ino)
	if len(t.free) < 256 {
		t.free = append(t.free, f)
	}
}
