package core

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/crakefs/crake/wire"
)

// reclaimer tells every new owner of a bucket what this session holds there.
type reclaimer struct {
	fs *FS

	mu      sync.Mutex
	buckets map[wire.BucketID]*bucketClaim
}

type bucketClaim struct {
	owner   wire.BucketOwner // the newest; guarded by the reclaimer's mu
	running bool             // a goroutine is at it; likewise
	cancel  context.CancelFunc
}

func (r *reclaimer) init(fs *FS) {
	r.fs = fs
	r.buckets = map[wire.BucketID]*bucketClaim{}
}

// OnMap takes a new cluster map. Requests of any kind that go to an owner before it has our claim are refused there and
// sent again, so nothing need wait for it here.
func (fs *FS) OnMap(m *wire.ClusterMap) {
	r := &fs.reclaim
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, owner := range m.Owners {
		b := wire.BucketID(i)
		c := r.buckets[b]
		if c == nil {
			c = &bucketClaim{}
			r.buckets[b] = c
		}
		if owner == c.owner || owner.Proc == 0 {
			continue
		}
		c.owner = owner
		if c.cancel != nil {
			c.cancel()
		}
		if !c.running {
			c.running = true
			fs.spawn(func() { r.run(b, c) })
		}
	}
}

// run claims until the newest owner has answered. One at a time for a bucket, so that no older claim comes after a newer.
func (r *reclaimer) run(b wire.BucketID, c *bucketClaim) {
	var done wire.BucketOwner
	for {
		r.mu.Lock()
		owner := c.owner
		if owner == done || r.fs.bg.Err() != nil {
			c.running, c.cancel = false, nil
			r.mu.Unlock()
			return
		}
		ctx, cancel := context.WithCancel(r.fs.bg)
		c.cancel = cancel
		r.mu.Unlock()
		err := r.claim(ctx, b)
		cancel()
		switch {
		case err == nil:
			done = owner
		case errors.Is(err, wire.KindInterrupted) || errors.Is(err, wire.KindShutdown):
			// A newer owner, or the end.
		default:
			r.fs.log.Warn("claim refused", "bucket", b, "epoch", owner.Epoch, "err", err)
			_ = r.fs.wait(ctx, 100*time.Millisecond)
		}
	}
}

func (r *reclaimer) claim(ctx context.Context, b wire.BucketID) error {
	fs := r.fs
	inodes := fs.table.all(func(i wire.Ino) bool { return i.Bucket() == b })
	byIno := make(map[wire.Ino]*inode, len(inodes))
	defer func() {
		for _, in := range inodes {
			fs.table.put(in)
		}
	}()
	req := &wire.ReclaimReq{Session: fs.sess.id, Bucket: b}
	for _, in := range inodes {
		byIno[in.ino] = in
		in.mu.Lock()
		if mode := in.lease.Reclaim(fs.now()); mode > wire.LeaseNone {
			req.Leases = append(req.Leases, wire.HeldLease{Ino: in.ino, Mode: mode})
		}
		if in.srvOpen || in.opening || in.closing {
			req.Opens = append(req.Opens, in.ino)
		}
		for _, l := range in.locks.All() {
			req.Locks = append(req.Locks, wire.LockReq{Op: wire.OpID{Session: fs.sess.id}, Ino: in.ino, Owner: l.Owner,
				Start: l.Start, End: l.End, Type: l.Type, Flock: l.Flock, PID: l.PID})
		}
		in.wake()
		in.mu.Unlock()
	}
	var resp wire.ReclaimResp
	if err := fs.ask(ctx, b, wire.MReclaim, req, &resp); err != nil {
		return err
	}
	for _, ino := range resp.Lost {
		if in := byIno[ino]; in != nil {
			fs.log.Warn("lease lost at a change of owner", "ino", ino)
			in.loseLease()
		}
	}
	return nil
}
