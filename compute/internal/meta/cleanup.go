package meta

import (
	"context"
	"sync"
	"time"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
	"golang.org/x/sync/errgroup"
)

// When a file with regions in other buckets is truncated or deleted, those buckets drop their extents by a clean-up:
//
//  1. one batch: the new size (or no inode any more), and the clean-up record; from here on it is certain to happen
//  2. DropRegions to every bucket of a region with a marker past the new end, again and again until it answers
//  3. one batch: markers past the end and the clean-up record are gone, the block counts of the answers noted
//
// Work is proportional to the regions with markers, not to the size of the file. A truncation keeps the inode locked
// until 3, also across restarts: so nobody extends the file and meets its former data, and a late DropRegions of it
// cannot take data written since (the number of the truncation guards against those that come after 3).

type cleanupID struct {
	ino wire.Ino
	seq uint64
}

// cleanup is a clean-up under way.
type cleanup struct {
	cleanupID
	cleanupRec
	locks *held // of a truncation

	mu      sync.Mutex // held while it is worked on
	done    bool
	touched map[wire.BucketID]*wire.RegionBlocks // buckets that were asked, and what they have left
	blocks  uint64                               // of the inode after it
	version uint64
}

const (
	// cleanupPass bounds the markers looked at before what they name is dropped: 512 KiB of numbers.
	cleanupPass = 1 << 16
)

// dropRegionsFrom adds a clean-up of the regions above 0 from byte from on, if any has a marker; else it is nil.
func (t *tx) dropRegionsFrom(n *inode, from uint64, gone bool) (*cleanup, error) {
	if n.flags&flagRegions == 0 {
		return nil, nil
	}
	ino := n.attr.Ino
	any := false
	err := t.b.scan(inoPrefix(tagMarker, ino), inoPrefix(tagMarker, ino).u64(from/wire.RegionBytes), func(_, _ []byte) (bool, error) {
		any = true
		return false, nil
	})
	if err == nil && gone && !any { // other buckets may still remember that they have nothing
		err = t.b.scan(inoPrefix(tagRemote, ino), nil, func(_, _ []byte) (bool, error) {
			any = true
			return false, nil
		})
	}
	if err != nil || !any {
		return nil, err
	}
	n.truncSeq++
	cl := &cleanup{cleanupID: cleanupID{ino, n.truncSeq}, cleanupRec: cleanupRec{from: from, gone: gone}}
	t.onApplied = append(t.onApplied, func() {
		t.b.mu.Lock()
		t.b.cleanups[cl.cleanupID] = cl
		t.b.mu.Unlock()
	})
	if gone {
		t.onDurable = append(t.onDurable, t.b.wake)
	}
	return cl, t.set(cleanupKey(ino, cl.seq), cl.cleanupRec.append(nil))
}

// destroy deletes an inode that has no name and is not open, with all that belongs to it.
func (t *tx) destroy(n *inode) error {
	if n.local > 0 {
		s, err := t.b.loadExtents(n.attr.Ino, 0, regionBlocks)
		if err != nil {
			return err
		}
		n.local -= s.cut(t, 0, regionBlocks)
		if err := s.store(t); err != nil {
			return err
		}
	}
	err := t.b.eachXattr(n, func(name string) error { return t.del(xattrKey(n.attr.Ino, name)) })
	if err != nil {
		return err
	}
	if _, err := t.dropRegionsFrom(n, 0, true); err != nil {
		return err
	}
	t.remove(n)
	return nil
}

// ReleaseOrphan deletes the inode if it has no name and Opens no longer has it open. To be called whenever the last
// open of an inode has ended; quick when there is nothing to do.
func (b *Bucket) ReleaseOrphan(ctx context.Context, ino wire.Ino) error {
	if err := b.enter(); err != nil {
		return err
	}
	defer b.leave()
	if err := b.checkHere("meta.release", ino); err != nil {
		return err
	}
	// The lock first: an unlink that still counted on the open may be about to make the orphan.
	orphan := false
	err := b.locked(ctx, []wire.Ino{ino}, false, func() error {
		orphan = b.isOrphan(ino)
		return nil
	})
	if err != nil || !orphan || b.cfg.Opens.IsOpen(ino) {
		return err
	}
	release, err := b.cfg.Leases.Hold(ctx, 0, []wire.Ino{ino}, true)
	if err != nil {
		return err
	}
	defer release()
	h, err := b.locks.acquire(ctx, b.cfg.LockWait, wantInode(ino, true))
	if err != nil {
		return err
	}
	defer h.release(nil)
	if !b.isOrphan(ino) || b.cfg.Opens.IsOpen(ino) {
		return nil
	}
	t := b.newTx(b.cfg.Now())
	defer t.close()
	n, err := t.inode(ino)
	if err != nil {
		return err
	}
	if n != nil {
		if err := t.destroy(n); err != nil {
			return err
		}
	}
	if err := t.unorphan(ino); err != nil {
		return err
	}
	return t.commit(h, nil, nil)
}

func (b *Bucket) isOrphan(ino wire.Ino) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, ok := b.orphans[ino]
	return ok
}

// loadCleanups finds the clean-ups under way, and locks the inodes of truncations.
func (b *Bucket) loadCleanups(ctx context.Context) error {
	return b.scan(newKey(tagCleanup), nil, func(k, v []byte) (bool, error) {
		f, rest, ok := splitKey(k, 2)
		if !ok || len(rest) != 0 {
			return false, corruptKey(k)
		}
		rec, err := decodeCleanup(v)
		if err != nil {
			return false, err
		}
		cl := &cleanup{cleanupID: cleanupID{wire.Ino(f[0]), f[1]}, cleanupRec: rec}
		if !rec.gone {
			cl.locks, err = b.locks.acquire(ctx, time.Second, wantInode(cl.ino, true))
			if err != nil {
				return false, wire.Errorf("meta.open", wire.KindCorrupt, b.id(), "a truncated inode is locked: %w", err)
			}
		}
		b.cleanups[cl.cleanupID] = cl
		return true, nil
	})
}

// cleanUp carries a clean-up through. Whoever else works on it already is waited for.
func (b *Bucket) cleanUp(ctx context.Context, cl *cleanup) error {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if cl.done {
		return nil
	}
	if err := b.askedBefore(cl); err != nil {
		return err
	}
	first := cl.from / wire.RegionBytes
	for next, more := first, true; more; {
		var regions map[wire.BucketID][]uint64
		var last uint64
		var err error
		regions, last, more, err = b.markers(cl.ino, next)
		if err != nil {
			return err
		}
		if err := b.dropAll(ctx, cl, regions, !more); err != nil {
			return err
		}
		b.crash("cleanup.dropped")
		if more {
			if err := b.forgetMarkers(cl, max(next, (cl.from+wire.RegionBytes-1)/wire.RegionBytes), last+1); err != nil {
				return err
			}
			next = last + 1
		}
	}
	return b.finishCleanup(cl)
}

// askedBefore makes sure that buckets which heard of this truncation before a restart hear of its end.
func (b *Bucket) askedBefore(cl *cleanup) error {
	if cl.touched != nil {
		return nil
	}
	touched := map[wire.BucketID]*wire.RegionBlocks{}
	prefix := inoPrefix(tagRemote, cl.ino)
	err := b.scan(prefix, nil, func(k, _ []byte) (bool, error) {
		if len(k) != len(prefix)+2+snapBytes {
			return false, corruptKey(k)
		}
		touched[wire.BucketID(uint16(k[len(prefix)])<<8|uint16(k[len(prefix)+1]))] = nil
		return true, nil
	})
	if err == nil {
		cl.touched = touched
	}
	return err
}

// markers lists regions with markers from next on, by bucket, at most cleanupPass.
func (b *Bucket) markers(ino wire.Ino, next uint64) (regions map[wire.BucketID][]uint64, last uint64, more bool, err error) {
	regions = map[wire.BucketID][]uint64{}
	n := 0
	err = b.scan(inoPrefix(tagMarker, ino), inoPrefix(tagMarker, ino).u64(next), func(k, _ []byte) (bool, error) {
		f, rest, ok := splitKey(k, 2)
		if !ok || len(rest) != snapBytes {
			return false, corruptKey(k)
		}
		if n == cleanupPass {
			more = true
			return false, nil
		}
		n++
		last = f[1]
		bucket := wire.RegionBucket(ino, f[1], b.cfg.Buckets)
		regions[bucket] = append(regions[bucket], f[1])
		return true, nil
	})
	return regions, last, more, err
}

// dropAll asks every bucket to drop its regions; with last, those asked before learn that it was the last.
func (b *Bucket) dropAll(ctx context.Context, cl *cleanup, regions map[wire.BucketID][]uint64, last bool) error {
	for bucket := range regions {
		if _, ok := cl.touched[bucket]; !ok {
			cl.touched[bucket] = nil
		}
	}
	var ask []wire.BucketID
	for bucket := range cl.touched {
		if last || len(regions[bucket]) > 0 {
			ask = append(ask, bucket)
		}
	}
	left := make([]*wire.RegionBlocks, len(ask))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(settleParallel)
	for i, bucket := range ask {
		g.Go(func() (err error) {
			left[i], err = b.dropAt(ctx, cl, bucket, regions[bucket], last)
			return err
		})
	}
	err := g.Wait()
	for i, bucket := range ask {
		if left[i] != nil {
			cl.touched[bucket] = left[i]
		}
	}
	return err
}

// dropAt asks one bucket, in portions.
func (b *Bucket) dropAt(ctx context.Context, cl *cleanup, bucket wire.BucketID, regions []uint64, last bool) (*wire.RegionBlocks, error) {
	for {
		n := min(len(regions), dropChunkRegions)
		req := &wire.DropRegionsReq{Bucket: bucket, Ino: cl.ino, FromOff: cl.from, Regions: regions[:n], Seq: cl.seq,
			Last: last && n == len(regions), Gone: cl.gone}
		var resp wire.DropRegionsResp
		if err := b.cfg.Peers(ctx, bucket, &rpc.Call{Method: wire.MDropRegions, Req: req, Resp: &resp}); err != nil {
			return nil, err
		}
		if regions = regions[n:]; len(regions) == 0 {
			return &resp.Blocks, nil
		}
	}
}

// forgetMarkers removes the markers [from, to) between passes.
func (b *Bucket) forgetMarkers(cl *cleanup, from, to uint64) error {
	if from >= to {
		return nil
	}
	t := b.newTx(b.cfg.Now())
	defer t.close()
	p := inoPrefix(tagMarker, cl.ino)
	if err := t.batch.DeleteRange(p.u64(from), inoPrefix(tagMarker, cl.ino).u64(to), nil); err != nil {
		return b.dbError(err)
	}
	return t.commit(nil, nil, nil)
}

// finishCleanup is the last batch.
func (b *Bucket) finishCleanup(cl *cleanup) error {
	t := b.newTx(b.cfg.Now())
	defer t.close()
	whole := (cl.from + wire.RegionBytes - 1) / wire.RegionBytes // first region that is dropped entirely
	markers := inoPrefix(tagMarker, cl.ino)
	if err := t.batch.DeleteRange(inoPrefix(tagMarker, cl.ino).u64(whole), markers.after(), nil); err != nil {
		return b.dbError(err)
	}
	if err := t.del(cleanupKey(cl.ino, cl.seq)); err != nil {
		return err
	}
	if cl.gone {
		p := inoPrefix(tagRemote, cl.ino)
		if err := t.batch.DeleteRange(p, p.after(), nil); err != nil {
			return b.dbError(err)
		}
	} else if err := t.settleSize(cl); err != nil {
		return err
	}
	b.crash("cleanup.finish")
	if err := t.commit(cl.locks, nil, nil); err != nil {
		return err
	}
	cl.done = true
	b.mu.Lock()
	delete(b.cleanups, cl.cleanupID)
	b.mu.Unlock()
	return nil
}

// settleSize notes what the buckets have left of a truncated inode.
func (t *tx) settleSize(cl *cleanup) error {
	n, err := t.inode(cl.ino)
	if err != nil || n == nil {
		return err
	}
	for bucket, r := range cl.touched {
		if r != nil {
			if err := t.noteRemote(n, bucket, r); err != nil {
				return err
			}
		}
	}
	n.setBlocks()
	cl.blocks, cl.version = n.attr.Blocks, n.attr.Version
	return nil
}

// DropRegions drops all extents of an inode at and after a byte, in regions that this bucket maps.
func (b *Bucket) DropRegions(ctx context.Context, req *wire.DropRegionsReq) (*wire.DropRegionsResp, error) {
	if err := b.enter(); err != nil {
		return nil, err
	}
	defer b.leave()
	if req.Bucket != b.cfg.Bucket {
		return nil, wire.E("meta.dropregions", wire.KindMoved, b.id(), nil)
	}
	for _, r := range req.Regions {
		if r == 0 || r >= wire.MaxFileBytes/wire.RegionBytes || wire.RegionBucket(req.Ino, r, b.cfg.Buckets) != b.cfg.Bucket {
			return nil, wire.Errorf("meta.dropregions", wire.KindInvalid, inoName(req.Ino), "region %d", r)
		}
	}
	h, err := b.locks.acquire(ctx, b.cfg.LockWait, wantRegions(req.Ino, true))
	if err != nil {
		return nil, err
	}
	defer h.release(nil)
	t := b.newTx(b.cfg.Now())
	defer func() { t.close() }()
	s, err := t.foreign(req.Ino)
	if err != nil {
		return nil, err
	}
	if !req.Gone && (req.Seq < s.f.dropSeq || req.Seq == s.f.dropSeq && s.f.dropped) {
		return s.answer(), nil // late: this truncation is over
	}
	for _, region := range req.Regions {
		if err := t.dropRegion(req, region); err != nil {
			return nil, err
		}
		if t.batch.Count() < dropBatchExtents {
			continue
		}
		if err := t.commit(nil, nil, nil); err != nil { // the lock stays
			return nil, err
		}
		t.close()
		t = b.newTx(b.cfg.Now())
	}
	if s, err = t.foreign(req.Ino); err != nil {
		return nil, err
	}
	s.dirty = true
	s.f.dropSeq, s.f.dropped = max(s.f.dropSeq, req.Seq), req.Last
	s.f.version++ // so that the inode's bucket knows of the record, and has it removed with the inode
	s.gone = req.Gone && req.Last
	resp := s.answer()
	if s.gone {
		resp.Blocks.Blocks = 0
	}
	b.crash("regions.drop")
	return resp, t.commit(h, nil, nil)
}

func (s *foreignState) answer() *wire.DropRegionsResp {
	return &wire.DropRegionsResp{Blocks: wire.RegionBlocks{Ino: s.ino, Blocks: s.f.blocks, Version: s.f.version}}
}

func (t *tx) dropRegion(req *wire.DropRegionsReq, region uint64) error {
	start, end := region*regionBlocks, (region+1)*regionBlocks
	from := max(req.FromOff, start*wire.BlockSize)
	if from >= end*wire.BlockSize {
		return nil
	}
	x, err := t.b.loadExtents(req.Ino, from/wire.BlockSize, end)
	if err != nil {
		return err
	}
	removed := x.trim(t, from, end)
	if err := x.store(t); err != nil {
		return err
	}
	return t.changeForeign(req.Ino, -int64(removed))
}
