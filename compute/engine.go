package compute

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/crakefs/crake/compute/internal/logfs"
	"github.com/crakefs/crake/compute/internal/meta"
	"github.com/crakefs/crake/compute/internal/own"
	"github.com/crakefs/crake/compute/internal/store"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

// openBucket is the own.Opener: it fences every reachable drive, adopts the bucket's files, and opens its database.
func (p *process) openBucket(ctx context.Context, b *own.Bucket) (*own.Engine, error) {
	m := p.router.Map()
	if m == nil {
		return nil, wire.E("compute.open", wire.KindUnavailable, "", errors.New("no cluster map"))
	}
	data := p.store.Bucket(b.ID, b.Epoch)
	files, err := logfs.Open(ctx, data) // fences first
	if err != nil {
		data.Close()
		return nil, err
	}
	files.PretendAfterLoss() // meta asks for Err after every commit
	mine := 0
	for _, o := range m.Owners {
		if o.Proc == p.cfg.Proc {
			mine++
		}
	}
	_, memTable := p.cfg.memory(mine)
	db, err := meta.Open(ctx, meta.Config{
		Bucket: b.ID, Epoch: b.Epoch, Buckets: int(m.Buckets), StripeBlocks: int(m.K) * wire.StripBytes / wire.BlockSize,
		FS: files, Cache: p.cache, FileCache: p.files, MemTableBytes: memTable,
		Data: data, Leases: b.Leases, Opens: b.Opens, Sessions: p.sess, Peers: p.askBucket, Arena: p.arena,
		Log: p.log, OnFail: b.Fail,
	})
	if err != nil {
		files.Close()
		data.Close()
		return nil, err
	}
	data.SetNextNumber(db.NextNumber)

	ended := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-data.Deposed():
			b.Fail(wire.Errorf("compute.bucket", wire.KindStaleEpoch, "", "a drive has seen a newer owner than epoch %d", b.Epoch))
		case <-ended:
		}
	})
	// The order matters: closing the files makes writes fail that wait for their drives, and data's appends end with it.
	abort := sync.OnceFunc(func() {
		files.Close()
		data.Close()
	})
	return &own.Engine{
		DB:         db,
		Background: func(ctx context.Context) { p.collectLeaks(ctx, data, db) },
		Abort:      abort,
		Close: func() error {
			err := db.Close()
			close(ended)
			watch.Wait()
			abort()
			return err
		},
	}, nil
}

// askBucket sends a request to the owner of a bucket, perhaps to ourselves, until it is answered.
func (p *process) askBucket(ctx context.Context, b wire.BucketID, call *rpc.Call) error {
	if done, err := p.server.Local(ctx, b, call); done {
		return err
	}
	return p.router.Bucket(ctx, b, call)
}

// collectLeaks deletes strips of file data that a crash left behind: between a write and its commit, or between a commit
// and the deletes that follow it.
func (p *process) collectLeaks(ctx context.Context, data *store.Bucket, db *meta.Bucket) {
	sleep(ctx, leakDelay)
	for range leakTries {
		if ctx.Err() != nil {
			return
		}
		n, err := data.CollectLeaks(ctx, db.HasLocation)
		switch {
		case err == nil && n > 0:
			p.log.Info("leaked strips are deleted", "bucket", data.ID(), "strips", n)
			return
		case err == nil:
			return
		case errors.Is(err, wire.KindStaleEpoch):
			return
		}
		p.log.Info("leaked strips were not all looked for", "bucket", data.ID(), "err", err)
		sleep(ctx, leakRetry)
	}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
