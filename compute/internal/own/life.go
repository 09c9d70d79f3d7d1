package own

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/crakefs/crake/compute/internal/meta"
	"github.com/crakefs/crake/wire"
)

// life opens the bucket, serves it, opens it again when its database fails, and closes it when ctx ends.
func (o *Owner) life(ctx context.Context, b, before *Bucket) {
	log := o.cfg.Log.With("bucket", b.ID, "epoch", b.Epoch)
	defer close(b.done)
	defer o.forget(b)
	defer b.Leases.Close()
	if before != nil {
		<-before.done
	}
	pause := reopenMin
	var since time.Time // of the first failure in a row
	for ctx.Err() == nil {
		started := time.Now()
		err := o.serve(ctx, b)
		if ctx.Err() != nil {
			break
		}
		if time.Since(started) > reopenMax {
			pause, since = reopenMin, time.Time{}
		}
		if since.IsZero() {
			since = started
		}
		state := wire.BucketOpening // a compute that starts before the drives do has not failed
		if time.Since(since) >= failAfter || o.cfg.Deposed(err) {
			state = wire.BucketFailed
		}
		b.setState(state, err)
		o.cfg.Changed()
		if o.cfg.Deposed(err) {
			log.Info("bucket has a newer owner", "err", err)
			<-ctx.Done() // the map will say so
			break
		}
		log.Warn("bucket is not open, trying again", "pause", pause, "err", err)
		sleep(ctx, pause)
		pause = min(2*pause, reopenMax)
	}
	log.Info("bucket closed")
}

// forget lets go of a bucket that has been closed.
func (o *Owner) forget(b *Bucket) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.old[b.ID] == b {
		delete(o.old, b.ID)
	}
	o.cfg.Changed()
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// serve opens the bucket once and returns when ctx has ended or the database has failed, with everything closed.
func (o *Owner) serve(ctx context.Context, b *Bucket) error {
	start := time.Now()
	b.reset()
	if st, _ := b.State(); st != wire.BucketFailed { // else people go on seeing why
		b.setState(wire.BucketOpening, nil)
	}
	o.cfg.Changed()
	eng, err := o.open(ctx, b)
	if err != nil {
		return err
	}
	opened := time.Since(start)
	b.setState(wire.BucketOpening, nil)
	run, stop := context.WithCancel(context.Background())
	defer stop()
	b.attach(run, eng.DB)
	var wg sync.WaitGroup
	wg.Go(func() { _ = eng.DB.Run(run) }) // always nil
	err = o.prepare(ctx, b, eng.DB)
	if err == nil {
		o.cfg.Log.Info("bucket serves", "bucket", b.ID, "epoch", b.Epoch, "open", opened.Round(time.Millisecond),
			"total", time.Since(start).Round(time.Millisecond))
		o.cfg.Changed()
		wg.Go(func() {
			o.forgetSessions(run, b, eng.DB)
			o.orphans(run, b, eng.DB)
		})
		if eng.Background != nil {
			wg.Go(func() { eng.Background(run) })
		}
		err = b.wait(ctx, func() bool { return false })
	}
	// Closing: no request comes in, those that wait for leases, locks or other buckets give up, the rest ends.
	b.bar()
	gone := wire.E("bucket.close", wire.KindUnavailable, fmt.Sprint(b.ID), nil)
	if ctx.Err() != nil {
		gone = wire.E("bucket.close", wire.KindMoved, fmt.Sprint(b.ID), nil)
	}
	b.Leases.Bar(gone)
	b.Locks.Bar(gone)
	// What runs may end by itself first: a request that is cut off between commit and answer costs its sender a retry.
	grace := time.AfterFunc(drainGrace, stop)
	// A commit that cannot be written waits for its drives; nobody would be told of its success any more.
	abort := time.AfterFunc(drainAbort, eng.Abort)
	b.drain()
	grace.Stop()
	stop()
	wg.Wait()
	cerr := eng.Close()
	abort.Stop()
	if cerr != nil {
		o.cfg.Log.Info("bucket did not close cleanly, its next owner replays its log", "bucket", b.ID, "err", cerr)
	}
	return err
}

// forgetSessions drops reply records of sessions that died while the bucket moved.
func (o *Owner) forgetSessions(ctx context.Context, b *Bucket, db *meta.Bucket) {
	for _, s := range db.RecordedSessions() {
		if o.cfg.Alive(s) {
			continue
		}
		if err := db.DropSession(ctx, s); err != nil {
			o.cfg.Log.Warn("reply records of a dead session could not be dropped", "bucket", b.ID, "session", s, "err", err)
			return
		}
	}
}

// orphans deletes inodes without a name that no session has open: once when the bucket begins to serve, because sessions
// may have died while it moved, and again when somebody could not delete one.
func (o *Owner) orphans(ctx context.Context, b *Bucket, db *meta.Bucket) {
	for {
		failed := false
		for _, ino := range db.Orphans() {
			if ctx.Err() != nil {
				return
			}
			if b.Opens.IsOpen(ino) {
				continue
			}
			if err := db.ReleaseOrphan(ctx, ino); err != nil && !failed {
				failed = true
				o.cfg.Log.Warn("an inode without a name could not be deleted yet", "bucket", b.ID, "ino", ino, "err", err)
			}
		}
		if failed {
			sleep(ctx, orphanRetry)
			continue
		}
		select {
		case <-b.orphanNews:
		case <-ctx.Done():
			return
		}
	}
}

// open takes a slot and opens the bucket's files.
func (o *Owner) open(ctx context.Context, b *Bucket) (*Engine, error) {
	select {
	case o.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-o.slots }()
	return o.cfg.Open(ctx, b)
}

// prepare settles what the bucket's former owner left in doubt and waits for the sessions; then the bucket serves.
func (o *Owner) prepare(ctx context.Context, b *Bucket, db *meta.Bucket) error {
	settled, cancel := context.WithTimeout(ctx, settleWait)
	err := db.Settle(settled)
	cancel()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		o.cfg.Log.Warn("bucket serves with transactions or clean-ups unsettled", "bucket", b.ID, "left", db.PendingWork(), "err", err)
	}
	if b.missingSessions() > 0 {
		b.setState(wire.BucketReclaim, nil)
		o.cfg.Changed()
	}
	return b.wait(ctx, func() bool {
		if len(b.missing) > 0 {
			return false
		}
		b.state, b.err = wire.BucketServing, ""
		b.Leases.Shut(nil)
		return true
	})
}

// wait returns nil when ready (called with mu held) says so, ctx's error when it has ended, or why the database failed.
func (b *Bucket) wait(ctx context.Context, ready func() bool) error {
	for {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := b.failure(); err != nil {
			return err
		}
		b.mu.Lock()
		ok := ready()
		b.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-b.news:
		case <-ctx.Done():
		}
	}
}
