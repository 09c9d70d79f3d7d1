package meta

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/crakefs/crake/wire"
	"golang.org/x/sync/errgroup"
)

// Run settles transactions in doubt, clean-ups, reports and empty segments until ctx ends. It always returns nil.
func (b *Bucket) Run(ctx context.Context) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var complained time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-b.kick:
		case <-timer.C:
		}
		if b.enter() == nil {
			// That others are away is no event here; that a record makes no sense will not pass by itself.
			err := b.round(ctx, false)
			if errors.Is(err, wire.KindCorrupt) && time.Since(complained) > complainPause {
				complained = time.Now()
				b.log.Error("bucket: something cannot be settled", slog.Any("err", err))
			}
			b.leave()
		}
		// Reports are gathered for a moment; the rest waits for others to come back.
		if b.PendingWork() > 0 {
			timer.Reset(b.cfg.settlePause)
		} else {
			timer.Reset(time.Hour)
		}
	}
}

// Settle does what Run does until nothing is left, or ctx ends (then with an error).
func (b *Bucket) Settle(ctx context.Context) error {
	for {
		if err := b.enter(); err != nil {
			return err
		}
		b.mu.Lock()
		for _, p := range b.prepared {
			p.since = time.Time{} // do not wait for the decision: ask
		}
		b.mu.Unlock()
		err := b.round(ctx, true)
		b.leave()
		if b.PendingWork() == 0 {
			return nil
		}
		if ctx.Err() != nil {
			return errors.Join(ctxError("meta.settle", ctx), err)
		}
		if err := pause(ctx, retryMin); err != nil {
			return err
		}
	}
}

// PendingWork counts transactions in doubt or not told to all, clean-ups and reports that Run still has to do.
func (b *Bucket) PendingWork() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.prepared) + b.coord.Open() + len(b.cleanups) + len(b.reports) + b.forgetting
}

// round tries everything once (reports only when it is time for them, or all); the first error is given, but stops
// nothing else.
func (b *Bucket) round(ctx context.Context, all bool) error {
	var g errgroup.Group
	g.SetLimit(settleParallel)
	call := func(f func(ctx context.Context) error) {
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, settleCall)
			defer cancel()
			return f(ctx)
		})
	}
	b.mu.Lock()
	decided := b.coord.Decided(settleBatch)
	b.mu.Unlock()
	for id, buckets := range decided {
		for _, bucket := range buckets {
			call(func(ctx context.Context) error {
				err := b.decideAt(ctx, id, bucket, true)
				if err == nil {
					b.acked(id, bucket)
				}
				return err
			})
		}
	}
	for _, p := range b.doubts() {
		call(func(ctx context.Context) error { return b.resolve(ctx, p) })
	}
	for _, cl := range b.idleCleanups() {
		call(func(ctx context.Context) error { return b.cleanUp(ctx, cl) })
	}
	if home, inos := b.pendingReports(); len(inos) > 0 && b.reportNow(all) {
		call(func(ctx context.Context) error { return b.report(ctx, home, inos) })
	}
	call(b.freeSegments)
	return g.Wait()
}

// reportNow tells whether it is time for a report.
func (b *Bucket) reportNow(all bool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !all && time.Since(b.lastReport) < b.cfg.settlePause {
		return false
	}
	b.lastReport = time.Now()
	return true
}

// idleCleanups lists clean-ups that no request works on.
func (b *Bucket) idleCleanups() []*cleanup {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []*cleanup
	for _, cl := range b.cleanups {
		if len(out) == settleBatch {
			break
		}
		if cl.mu.TryLock() {
			cl.mu.Unlock()
			out = append(out, cl)
		}
	}
	return out
}

// MakeRoot makes the root directory of a filesystem. Idempotent.
func (b *Bucket) MakeRoot(ctx context.Context, req *wire.MakeRootReq) error {
	if err := b.enter(); err != nil {
		return err
	}
	defer b.leave()
	if err := b.checkRoot(req); err != nil {
		return err
	}
	return b.withRoot(ctx, req, func(t *tx, n *inode) error {
		if n != nil {
			return nil
		}
		op := &wire.TxnOp{Kind: opMakeInode, Ino: req.Root, Mode: modeDir | req.Mode&07777, UID: req.UID, GID: req.GID,
			FS: req.FS, Other: req.Root}
		_, err := t.makeInode(op)
		return err
	})
}

// DropRoot removes the root directory of a filesystem; KindNotEmpty if there is anything in it. Idempotent.
func (b *Bucket) DropRoot(ctx context.Context, req *wire.MakeRootReq) error {
	if err := b.enter(); err != nil {
		return err
	}
	defer b.leave()
	if err := b.checkRoot(req); err != nil {
		return err
	}
	release, err := b.cfg.Leases.Hold(ctx, 0, []wire.Ino{req.Root}, true)
	if err != nil {
		return err
	}
	defer release()
	return b.withRoot(ctx, req, func(t *tx, n *inode) error {
		if n == nil || n.attr.Nlink == 0 {
			return nil
		}
		if n.entries != 0 {
			return wire.E("meta.droproot", wire.KindNotEmpty, inoName(req.Root), nil)
		}
		n.attr.Nlink = 0
		t.touch(n)
		return t.nameless(n)
	})
}

func (b *Bucket) checkRoot(req *wire.MakeRootReq) error {
	if req.FS == 0 || req.FS >= wire.FirstInoSeq-1 || req.Root != wire.RootIno(req.FS, b.cfg.Buckets) {
		return wire.Errorf("meta.root", wire.KindInvalid, inoName(req.Root), "of filesystem %d", req.FS)
	}
	return b.checkHere("meta.root", req.Root)
}

func (b *Bucket) withRoot(ctx context.Context, req *wire.MakeRootReq, f func(t *tx, n *inode) error) error {
	h, err := b.locks.acquire(ctx, b.cfg.LockWait, wantInode(req.Root, true))
	if err != nil {
		return err
	}
	defer h.release(nil)
	t := b.newTx(b.cfg.Now())
	defer t.close()
	n, err := t.inode(req.Root)
	if err == nil {
		err = f(t, n)
	}
	if err != nil {
		return err
	}
	if err := t.commit(h, nil, nil); err != nil {
		return err
	}
	return h.durable() // when there was nothing to commit
}
