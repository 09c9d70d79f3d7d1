package store

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

// deleter frees strips in the background, drive by drive, for as long as it takes.
type deleter struct {
	s    *Store
	kick chan struct{}

	mu     sync.Mutex
	drives map[wire.DriveID]*deleteQueue // guarded by mu
	// dropped counts ids that were forgotten because a queue was full; guarded by mu.
	dropped uint64
}

// deleteQueue is what waits for one drive. Guarded by deleter.mu.
type deleteQueue struct {
	jobs  []deleteJob
	busy  bool
	after time.Time     // not before; after a failure
	delay time.Duration // the next one after a failure
}

// deleteJob deletes an id, or seals it.
type deleteJob struct {
	b    *Bucket
	id   wire.StripID
	seal bool
	due  time.Time // zero: at once
}

func newDeleter(s *Store) *deleter {
	return &deleter{s: s, kick: make(chan struct{}, 1), drives: map[wire.DriveID]*deleteQueue{}}
}

// Delete frees stripes and segments that nothing points to any more: only to be called once the commit that dropped them
// is durable. It does not wait; what is lost by a crash is a leak, which CollectLeaks finds.
func (b *Bucket) Delete(locs ...wire.Location) {
	for i := range locs {
		l := &locs[i]
		for pos, d := range l.Drives {
			if d != 0 && (l.Kind != wire.LocStripe || l.Geometry().LenBlocks(pos) > 0) {
				b.s.del.add(d, deleteJob{b: b, id: l.ID.WithPos(pos)})
			}
		}
	}
}

// DeleteStrips frees single strips, as Delete does.
func (b *Bucket) DeleteStrips(d wire.DriveID, ids ...wire.StripID) {
	for _, id := range ids {
		b.s.del.add(d, deleteJob{b: b, id: id})
	}
}

// orphan deletes what a failed write may have left: now, and again once the failed request cannot land any more.
func (q *deleter) orphan(b *Bucket, d wire.DriveID, id wire.StripID) {
	q.add(d, deleteJob{b: b, id: id})
	q.add(d, deleteJob{b: b, id: id, due: time.Now().Add(q.s.c.OrphanDelay)})
}

// seal ends a replica of a segment.
func (q *deleter) seal(b *Bucket, d wire.DriveID, id wire.StripID) {
	q.add(d, deleteJob{b: b, id: id, seal: true})
}

func (q *deleter) add(d wire.DriveID, j deleteJob) {
	q.mu.Lock()
	dq := q.drives[d]
	if dq == nil {
		dq = &deleteQueue{}
		q.drives[d] = dq
	}
	if len(dq.jobs) < MaxPendingDeletes {
		dq.jobs = append(dq.jobs, j)
	} else {
		q.dropped++
	}
	q.mu.Unlock()
	select {
	case q.kick <- struct{}{}:
	default:
	}
}

// PendingDeletes tells how many strips wait to be freed, and how many were forgotten because too many waited.
func (s *Store) PendingDeletes() (waiting int, forgotten uint64) {
	s.del.mu.Lock()
	defer s.del.mu.Unlock()
	for _, dq := range s.del.drives {
		waiting += len(dq.jobs)
	}
	return waiting, s.del.dropped
}

// run works until ctx ends. Drives are served side by side, each by one goroutine at a time.
func (q *deleter) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	tick := time.NewTicker(100 * time.Millisecond) // for delayed and repeated jobs
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-q.kick:
		}
		now := time.Now()
		q.mu.Lock()
		for d, dq := range q.drives {
			if dq.busy || now.Before(dq.after) {
				continue
			}
			if batch := dq.take(now); len(batch) > 0 {
				dq.busy = true
				wg.Go(func() { q.work(ctx, d, dq, batch) })
			}
		}
		q.mu.Unlock()
	}
}

// take removes the jobs that are due, all of one bucket and kind, at most MaxDeleteIDs.
func (dq *deleteQueue) take(now time.Time) []deleteJob {
	var batch []deleteJob
	rest := dq.jobs[:0]
	for _, j := range dq.jobs {
		fits := len(batch) == 0 || j.b == batch[0].b && j.seal == batch[0].seal && len(batch) < MaxDeleteIDs
		if fits && !j.due.After(now) {
			batch = append(batch, j)
		} else {
			rest = append(rest, j)
		}
	}
	clear(dq.jobs[len(rest):])
	dq.jobs = rest
	return batch
}

func (q *deleter) work(ctx context.Context, d wire.DriveID, dq *deleteQueue, batch []deleteJob) {
	err := q.do(ctx, d, batch)
	q.mu.Lock()
	defer q.mu.Unlock()
	dq.busy = false
	if err == nil {
		dq.delay = 0
		select { // there may be more
		case q.kick <- struct{}{}:
		default:
		}
		return
	}
	dq.delay = min(max(2*dq.delay, 250*time.Millisecond), 8*time.Second)
	dq.after = time.Now().Add(dq.delay)
	if room := MaxPendingDeletes - len(dq.jobs); len(batch) > room {
		q.dropped += uint64(len(batch) - room)
		batch = batch[:room]
	}
	dq.jobs = append(dq.jobs, batch...)
}

// do sends one batch. Answers that trying again would not change count as done.
func (q *deleter) do(ctx context.Context, d wire.DriveID, batch []deleteJob) error {
	b := batch[0].b
	if b.alive("strip.delete") != nil {
		// The new owner finds what is left (CollectLeaks), or the same process does when it opens the bucket again.
		return nil
	}
	var err error
	if batch[0].seal {
		for _, j := range batch {
			if _, serr := b.Seal(ctx, d, j.id); serr != nil {
				err = serr
			}
		}
	} else {
		ids := make([]wire.StripID, len(batch))
		for i, j := range batch {
			ids[i] = j.id
		}
		req := &wire.DeleteReq{Drive: d, Epoch: b.epoch, IDs: ids}
		err = b.ask(ctx, d, QuickTimeout, &rpc.Call{Method: wire.MDriveDelete, Req: req})
	}
	if errors.Is(err, wire.KindNotFound) || errors.Is(err, wire.KindStaleEpoch) {
		return nil
	}
	return err
}

// CollectLeaks deletes strips and segments of file data on the reachable drives that has denies: what a crash left
// between a write and its commit, or between a commit and the deletes that follow it. To be called after the bucket's
// database has opened. It gives the number of strips that were queued for deletion.
func (b *Bucket) CollectLeaks(ctx context.Context, has func(id wire.StripID) (bool, error)) (int, error) {
	leaks := 0
	for _, class := range []wire.Class{wire.ClassData, wire.ClassSegment} {
		list, err := b.List(ctx, class)
		if err != nil {
			return leaks, err
		}
		for _, l := range list {
			ok, err := has(l.ID)
			if err != nil {
				return leaks, err
			}
			if !ok {
				b.DeleteStrips(l.Drive, l.ID)
				leaks++
			}
		}
	}
	return leaks, nil
}
