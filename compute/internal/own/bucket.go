package own

import (
	"context"
	"fmt"
	"sync"

	"github.com/crakefs/crake/compute/internal/lease"
	"github.com/crakefs/crake/compute/internal/lock"
	"github.com/crakefs/crake/compute/internal/meta"
	"github.com/crakefs/crake/compute/internal/opens"
	"github.com/crakefs/crake/wire"
)

// Bucket is a bucket that this process owns under one epoch. Leases, locks and opens live as long as the ownership; the
// database may fail and be opened again meanwhile.
type Bucket struct {
	// Immutable.
	ID     wire.BucketID
	Epoch  wire.Epoch
	Leases *lease.Manager
	Locks  *lock.Manager
	Opens  *opens.Table

	done chan struct{} // closed when the life of the bucket here is over
	news chan struct{} // capacity 1: missing or failed changed
	// orphanNews wakes the goroutine that deletes inodes without a name; capacity 1.
	orphanNews chan struct{}

	mu      sync.Mutex
	state   wire.BucketState
	err     string
	db      *meta.Bucket    // set while requests may run
	lost    bool            // ownership is over: no request starts any more
	failed  error           // of the database that is open now
	ctx     context.Context // of the requests that use db
	running int             // requests that use db
	idle    chan struct{}   // not nil while drain waits; closed when running is 0
	// missing: the sessions that have to reclaim before the bucket serves. reclaimed: those that have.
	missing   map[wire.SessionID]struct{}
	reclaimed map[wire.SessionID]struct{}
}

// Use says what state of the bucket a request needs.
type Use uint8

// The uses.
const (
	// UseServing is for requests of frontends and mgmt: all is settled and reclaimed.
	UseServing Use = 1
	// UseOpen is for transactions and clean-ups of other buckets: the database is open. Two opening buckets that wait for
	// each other could otherwise wait for ever. (A transaction that begins needs leases held off, which is refused until the
	// bucket serves: lease.Manager.Shut. One that was prepared under the former owner is answered.)
	UseOpen Use = 2
)

// Enter begins a request and gives the database, and a ctx that ends when the bucket is to be closed; Leave ends it.
// Errors: KindMoved, KindUnavailable (not there yet).
func (b *Bucket) Enter(use Use) (context.Context, *meta.Bucket, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.lost:
		return nil, nil, b.moved()
	case b.db == nil || use == UseServing && b.state != wire.BucketServing:
		return nil, nil, wire.Errorf("bucket.enter", wire.KindUnavailable, fmt.Sprint(b.ID), "state %v %s", b.state, b.err)
	}
	b.running++
	return b.ctx, b.db, nil
}

// Lost tells whether the ownership is over.
func (b *Bucket) Lost() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.lost
}

// Leave ends a request.
func (b *Bucket) Leave() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.running--; b.running == 0 && b.idle != nil {
		close(b.idle)
		b.idle = nil
	}
}

func (b *Bucket) moved() error {
	return wire.Errorf("bucket.enter", wire.KindMoved, fmt.Sprint(b.ID), "epoch %d is over here", b.Epoch)
}

// State tells how far the bucket is.
func (b *Bucket) State() (wire.BucketState, string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state, b.err
}

// Report describes the bucket for a heartbeat.
func (b *Bucket) Report() wire.BucketReport {
	s, e := b.State()
	return wire.BucketReport{Bucket: b.ID, Epoch: b.Epoch, State: s, Error: e}
}

func (b *Bucket) setState(s wire.BucketState, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.state, b.err = s, ""
	if err != nil {
		b.err = err.Error()
	}
}

// attach lets requests at the database; ctx is theirs.
func (b *Bucket) attach(ctx context.Context, db *meta.Bucket) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.db, b.ctx = db, ctx
}

// bar keeps new requests from the database.
func (b *Bucket) bar() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.db = nil
	if b.state == wire.BucketServing {
		b.state = wire.BucketOpening
	}
}

// drain waits for the requests that run. They have been told to end: their ctx is over, and nobody may wait for leases
// or locks.
func (b *Bucket) drain() {
	b.mu.Lock()
	idle := b.idle
	if b.running > 0 && idle == nil {
		idle = make(chan struct{})
		b.idle = idle
	}
	b.mu.Unlock()
	if idle != nil {
		<-idle
	}
}

// lose ends the ownership: from now on every request is told to go elsewhere.
func (b *Bucket) lose() {
	b.mu.Lock()
	b.lost = true
	b.mu.Unlock()
}

func (b *Bucket) signal() {
	select {
	case b.news <- struct{}{}:
	default:
	}
}

// RetryOrphans makes the bucket look for inodes without a name that nobody has open; it does not wait.
func (b *Bucket) RetryOrphans() {
	select {
	case b.orphanNews <- struct{}{}:
	default:
	}
}

// Fail says that the database has failed; the life of the bucket closes it and opens it again. It does not wait.
func (b *Bucket) Fail(err error) {
	b.mu.Lock()
	if b.failed == nil {
		b.failed = err
	}
	b.mu.Unlock()
	b.signal()
}

// reset prepares for opening the database (again).
func (b *Bucket) reset() {
	b.mu.Lock()
	b.failed = nil
	b.mu.Unlock()
	b.Leases.Bar(nil)
	b.Leases.Shut(wire.Errorf("bucket.hold", wire.KindUnavailable, fmt.Sprint(b.ID), "not all sessions have reclaimed"))
	b.Locks.Bar(nil)
}

func (b *Bucket) failure() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.failed
}

// prune forgets sessions that need not reclaim any more, because the map lacks them.
func (b *Bucket) prune(alive map[wire.SessionID]bool) {
	b.mu.Lock()
	for id := range b.missing {
		if !alive[id] {
			delete(b.missing, id)
		}
	}
	for id := range b.reclaimed {
		if !alive[id] {
			delete(b.reclaimed, id)
		}
	}
	b.mu.Unlock()
	b.signal()
}

func (b *Bucket) missingSessions() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.missing)
}

// Reclaim takes over what a session held under the former owner. It is answered in every state until the bucket serves.
// A session that reclaims again, because it did not get the answer, is told which of the leases it does not have (it may
// have lost them to a recall since).
func (b *Bucket) Reclaim(req *wire.ReclaimReq) (*wire.ReclaimResp, error) {
	if n := len(req.Leases) + len(req.Opens) + len(req.Locks); n > MaxReclaimItems {
		return nil, wire.Errorf("bucket.reclaim", wire.KindOverLimit, fmt.Sprint(b.ID), "%d items", n)
	}
	b.mu.Lock()
	if b.lost {
		b.mu.Unlock()
		return nil, b.moved()
	}
	_, again := b.reclaimed[req.Session]
	serving := b.state == wire.BucketServing
	if again || serving {
		b.mu.Unlock()
		resp := &wire.ReclaimResp{}
		for _, l := range req.Leases {
			if !b.Leases.Holds(req.Session, l.Ino, l.Mode) {
				resp.Lost = append(resp.Lost, l.Ino)
			}
		}
		resp.Lease = b.Leases.Seq()
		return resp, nil
	}
	defer b.signal()
	defer b.mu.Unlock()
	// Under mu, so that the bucket does not begin to serve in the middle of it. None of the three tables waits.
	for _, ino := range req.Opens {
		if ino.Bucket() == b.ID {
			b.Opens.Opened(req.Session, ino)
		}
	}
	resp := &wire.ReclaimResp{}
	locks := make([]wire.LockReq, 0, len(req.Locks))
	for _, l := range req.Locks {
		l.Op.Session = req.Session
		if l.Ino.Bucket() == b.ID {
			locks = append(locks, l)
		}
	}
	resp.Lost = b.Locks.Reclaim(locks)
	leases := make([]wire.HeldLease, 0, len(req.Leases))
	for _, l := range req.Leases {
		if l.Ino.Bucket() == b.ID {
			leases = append(leases, l)
		} else {
			resp.Lost = append(resp.Lost, l.Ino)
		}
	}
	lost, seq := b.Leases.Reclaim(req.Session, leases)
	resp.Lost = append(resp.Lost, lost...)
	resp.Lease = seq
	b.reclaimed[req.Session] = struct{}{}
	delete(b.missing, req.Session)
	return resp, nil
}

// Stat describes the bucket.
func (b *Bucket) Stat() wire.BucketStatResp {
	b.mu.Lock()
	db := b.db
	if db != nil {
		b.running++
	}
	resp := wire.BucketStatResp{Bucket: b.ID, Epoch: b.Epoch, State: b.state, Error: b.err}
	b.mu.Unlock()
	if db == nil {
		return resp
	}
	defer b.Leave()
	st := db.Stat()
	st.Bucket, st.Epoch, st.State, st.Error = resp.Bucket, resp.Epoch, resp.State, resp.Error
	st.Leases = uint64(b.Leases.Leases())
	return st
}
