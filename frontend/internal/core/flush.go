package core

import (
	"context"
	"errors"

	"github.com/cespare/xxhash/v2"

	"github.com/crakefs/crake/frontend/internal/dirty"
	"github.com/crakefs/crake/frontend/internal/extmap"
	"github.com/crakefs/crake/frontend/internal/lease"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

// send is one file's part of an MWrite under way.
type send struct {
	in     *inode
	id     uint64 // in in.flights
	began  lease.Token
	region uint64
	batch  *dirty.Batch
	size   uint64 // of the file when the batch was taken
	// publish: the write carries size and mtime, which are as of meta.
	publish bool
	mtime   int64
	meta    uint64
}

// take freezes what is to be sent of [off, off+n), which lies in one region, at most maxBytes. It gives nil when there is nothing.
// mu is held.
func (in *inode) take(off, n uint64, maxBytes int) *send {
	b := in.data.Take(off, n, maxBytes)
	if b.Len() == 0 {
		return nil
	}
	in.flightID++
	if in.flights == nil {
		in.flights = map[uint64]struct{}{}
	}
	in.flights[in.flightID] = struct{}{}
	return &send{in: in, id: in.flightID, began: in.fs.now(), region: off / wire.RegionBytes, batch: b, size: in.attr.Size, meta: in.meta,
		mtime: in.attr.Mtime}
}

// carry lets the write carry size and mtime, if nothing else of the file is to be committed before them. mu is held.
func (s *send) carry() {
	in := s.in
	s.publish = s.region == 0 && in.data.DirtyBytes() == 0 && len(in.flights) == 1 && !in.pubbing && in.dirtyMeta()
	if s.publish {
		in.pubbing = true
	}
}

// end takes the batch's outcome; ext and attr are the answer's parts for this file, or nil. With quiet an error is not noted.
func (s *send) end(err error, quiet bool, ext *wire.ExtentsResp, attr *wire.Attr) {
	in := s.in
	in.mu.Lock()
	defer in.mu.Unlock()
	if err == nil {
		in.srvEnd = max(in.srvEnd, s.batch.End())
		in.fs.space.commit(s.batch.Bytes())
		in.remap(s.region, func(old *extmap.Map) *extmap.Map {
			if ext == nil {
				return nil
			}
			m, err := extmap.New(ext)
			if err != nil {
				return nil
			}
			return old.With(m)
		})
		in.data.Done(s.batch)
	} else {
		in.data.Undo(s.batch)
		if !quiet {
			in.fail(err)
		}
		if errors.Is(err, wire.KindNoSpace) {
			in.fs.space.refused()
		}
		if gone(err) && !quiet {
			in.giveUpData(err)
		}
	}
	if s.publish {
		in.published(s.began, s.meta, err, attr)
	}
	delete(in.flights, s.id)
	in.wake()
}

// published takes the outcome of telling the cluster size and mtime as of meta, which began at began. mu is held.
func (in *inode) published(began lease.Token, meta uint64, err error, attr *wire.Attr) {
	in.pubbing = false
	if err != nil {
		return
	}
	in.pubMeta = max(in.pubMeta, meta)
	if attr != nil && attr.Ino == in.ino {
		in.learnLocked(began, *attr, wire.Lease{})
	}
}

// writeReq makes the request of several sends to one bucket, and its data section, which borrows the batches' memory.
func (fs *FS) writeReq(ctx context.Context, b wire.BucketID, sends []*send) (*wire.WriteReq, wire.Data, error) {
	req := &wire.WriteReq{Bucket: b}
	var data wire.Data
	alloc := func() (*wire.Buf, error) { return fs.c.Arena.AllocFor(ctx, wire.BlockSize, wire.UseMore) }
	for _, s := range sends {
		err := s.batch.Partial(alloc, func(off uint64, block []byte, lo, hi int) error {
			return fs.readBase(ctx, s.in, off, block, lo, hi)
		})
		if err != nil {
			return nil, nil, err
		}
		w := wire.FileWrite{Ino: s.in.ino, Region: s.region, Publish: s.publish}
		if s.publish {
			w.Size, w.Mtime = s.size, s.mtime
		}
		s.batch.Runs(func(off uint64, d wire.Data) {
			n := d.Len()
			run := wire.WriteRun{Off: off, Len: min(uint64(n), s.size-off), Sums: make([]uint64, 0, n/wire.BlockSize)}
			d.Blocks(func(_ int, block []byte) { run.Sums = append(run.Sums, xxhash.Sum64(block)) })
			w.Runs = append(w.Runs, run)
			data = append(data, d...)
		})
		req.Files = append(req.Files, w)
	}
	return req, data, nil
}

// transmit sends the batches, all of one bucket, in one request, and ends them. It gives the outcome. With several, the error is not
// noted at the files: the caller sends each by itself to learn whose it is.
func (fs *FS) transmit(sends []*send) error {
	ctx := fs.bg
	first := sends[0]
	b := fs.bucketOf(first.in.ino, first.region)
	var resp wire.WriteResp
	err := fs.prepare(ctx, first)
	if err == nil {
		err = fs.mwrite(ctx, b, sends, &resp)
		if errors.Is(err, wire.KindLeaseLost) && len(sends) == 1 {
			// It was lost at a change of owner. What was written was written under it: take it again and go on.
			first.in.loseLease()
			if err = fs.lockWritableDraining(ctx, first.in); err == nil {
				err = fs.mwrite(ctx, b, sends, &resp)
			}
		}
	}
	if err == nil && len(resp.Extents) != len(sends) {
		resp.Extents = nil
	}
	attrs := resp.Attrs
	for i, s := range sends {
		var ext *wire.ExtentsResp
		if resp.Extents != nil {
			ext = &resp.Extents[i]
		}
		var attr *wire.Attr
		if s.publish && len(attrs) > 0 {
			attr, attrs = &attrs[0], attrs[1:]
		}
		s.end(err, len(sends) > 1, ext, attr)
	}
	return err
}

func (fs *FS) mwrite(ctx context.Context, b wire.BucketID, sends []*send, resp *wire.WriteResp) error {
	req, data, err := fs.writeReq(ctx, b, sends)
	if err != nil {
		return err
	}
	req.Op = fs.sess.begin()
	defer fs.sess.end(req.Op)
	return fs.c.Cluster.Bucket(ctx, b, &rpc.Call{Method: wire.MWrite, Req: req, Resp: resp, Data: data})
}

// lockWritableDraining takes the write lease again for data that is in flight, even while a recall waits for just that.
func (fs *FS) lockWritableDraining(ctx context.Context, in *inode) error {
	pause := leaseWaitMin
	for {
		if _, err := fs.getAttr(ctx, in, wire.LeaseWrite); err != nil {
			return err
		}
		in.mu.Lock()
		ok := in.lease.Mode() == wire.LeaseWrite
		in.mu.Unlock()
		if ok {
			return nil
		}
		if err := fs.wait(ctx, pause); err != nil {
			return err
		}
		pause = min(2*pause, leaseWaitMax)
	}
}

// prepare has the inode note the region of a send, and those that a growing file needs next, before data goes there.
func (fs *FS) prepare(ctx context.Context, s *send) error {
	if s.region == 0 {
		return nil
	}
	in := s.in
	in.mu.Lock()
	if _, ok := in.prepared[s.region]; ok {
		in.mu.Unlock()
		return nil
	}
	regions := []uint64{s.region}
	if _, before := in.prepared[s.region-1]; before || s.region == 1 {
		for r := s.region + 1; r < s.region+prepareAhead && r < wire.MaxFileBytes/wire.RegionBytes; r++ {
			regions = append(regions, r)
		}
	}
	in.mu.Unlock()
	err := fs.mutate(ctx, in.ino.Bucket(), wire.MPrepare, &wire.Empty{}, func(op wire.OpID) wire.Message {
		return &wire.PrepareReq{Op: op, Ino: in.ino, Regions: regions}
	})
	if err != nil {
		return err
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.prepared == nil || len(in.prepared) > maxVersions {
		in.prepared = map[uint64]struct{}{}
	}
	for _, r := range regions {
		in.prepared[r] = struct{}{}
	}
	return nil
}

// flush makes durable what was written to [off, off+n) before it was called, and with publish size and mtime too. ctx ends only
// the waiting: what is under way goes on. The error is that of the sends it waited for.
//
// Two rounds are enough, whoever else writes or flushes: in the first what is not under way is sent, and all that is under way is waited
// for; what was under way and written again meanwhile is sent in the second.
func (fs *FS) flush(ctx context.Context, in *inode, off, n uint64, publish bool) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	failed, meta, size, mtime := in.errSeq, in.meta, in.attr.Size, in.attr.Mtime
	for range 2 {
		if in.data.Clean() {
			break
		}
		if err := fs.sendRange(ctx, in, off, n, publish); err != nil {
			return err
		}
		last := in.flightID
		for in.underWay(last) {
			if err := in.await(ctx); err != nil {
				return err
			}
		}
		if in.errSeq != failed {
			return in.err
		}
	}
	if !publish {
		return nil
	}
	for in.pubMeta < meta {
		if in.pubbing || in.busy {
			if err := in.await(ctx); err != nil {
				return err
			}
			if in.errSeq != failed {
				return in.err
			}
			continue
		}
		fs.publish(in, meta, size, mtime)
		if in.errSeq != failed {
			return in.err
		}
	}
	return nil
}

// underWay says that a send with an id of at most last has not ended. mu is held.
func (in *inode) underWay(last uint64) bool {
	for id := range in.flights {
		if id <= last {
			return true
		}
	}
	return false
}

// sendRange starts to send what is dirty in [off, off+n), in parallel. mu is held on entry and return.
func (fs *FS) sendRange(ctx context.Context, in *inode, off, n uint64, publish bool) error {
	end := off + n
	for at := off; at < end; {
		for in.busy {
			if err := in.await(ctx); err != nil {
				return err
			}
		}
		first, ok := in.data.FirstIn(at, end-at)
		if !ok {
			return nil
		}
		at = first
		if !fs.sendSem.TryAcquire(1) {
			in.mu.Unlock()
			err := fs.sendSem.Acquire(ctx, 1)
			in.mu.Lock()
			if err != nil {
				return interrupted(ctx)
			}
			if in.busy {
				fs.sendSem.Release(1)
				continue
			}
		}
		s := in.take(at, min(end, fs.sendEnd(in, at))-at, maxSend)
		if s == nil {
			fs.sendSem.Release(1)
			continue
		}
		at = max(at+wire.BlockSize, s.batch.End())
		if publish {
			s.carry()
		}
		fs.spawn(func() {
			_ = fs.transmit([]*send{s}) // noted at the file
			fs.sendSem.Release(1)
		})
	}
	return nil
}

// sendEnd gives how far a send that starts with the block at off may reach: of data without gaps to the end of a stripe, so that
// what follows starts on one; else to the end of the region, so that scattered blocks go together. mu is held.
func (fs *FS) sendEnd(in *inode, off uint64) uint64 {
	stripe := fs.stripeBytes()
	base := off / wire.RegionBytes * wire.RegionBytes
	regionEnd := base + wire.RegionBytes
	start := base + (off-base)/stripe*stripe
	if end := min(start+stripe, regionEnd); !in.data.Ready(off, end-off) {
		return regionEnd
	}
	return min(start+max(maxSend/stripe, 1)*stripe, regionEnd)
}

// publish tells the cluster size and mtime, as of meta. All data below has been committed. mu is held on entry and return.
func (fs *FS) publish(in *inode, meta, size uint64, mtime int64) {
	in.pubbing = true
	began := fs.now()
	in.mu.Unlock()
	var resp wire.AttrResp
	err := fs.mutate(fs.bg, in.ino.Bucket(), wire.MPublish, &resp, func(op wire.OpID) wire.Message {
		return &wire.PublishReq{Op: op, Ino: in.ino, Size: size, Mtime: mtime}
	})
	in.mu.Lock()
	if err != nil {
		in.fail(err)
		if gone(err) {
			in.giveUpData(err)
		}
	}
	in.published(began, meta, err, &resp.Attr)
	in.wake()
}

// sendReady sends whole stripes that the last write of n bytes at off completed, by themselves. mu is held.
func (fs *FS) sendReady(in *inode, off uint64, n int) {
	stripe := fs.stripeBytes()
	for at := off; at < off+uint64(n); {
		base := at / wire.RegionBytes * wire.RegionBytes
		start := base + (at-base)/stripe*stripe
		end := min(start+stripe, base+wire.RegionBytes)
		if in.data.Ready(start, end-start) && (len(in.ready) == 0 || in.ready[len(in.ready)-1] != start) {
			in.ready = append(in.ready, start)
		}
		at = end
	}
	fs.pumpReady(in)
}

// pumpReady starts sends of complete stripes, a few at once. mu is held.
func (fs *FS) pumpReady(in *inode) {
	stripe := fs.stripeBytes()
	for len(in.ready) > 0 && in.sends < maxFileSends && !in.busy && fs.sendSem.TryAcquire(1) {
		start := in.ready[0]
		in.ready = in.ready[1:]
		region := start / wire.RegionBytes
		end := min(start+stripe, (region+1)*wire.RegionBytes)
		for len(in.ready) > 0 && in.ready[0] == end && end/wire.RegionBytes == region && end-start+stripe <= maxSend {
			end = min(end+stripe, (region+1)*wire.RegionBytes)
			in.ready = in.ready[1:]
		}
		s := in.take(start, end-start, int(end-start))
		if s == nil {
			fs.sendSem.Release(1)
			continue
		}
		in.sends++
		fs.spawn(func() {
			_ = fs.transmit([]*send{s})
			fs.sendSem.Release(1)
			in.mu.Lock()
			in.sends--
			fs.pumpReady(in)
			in.mu.Unlock()
		})
	}
	if len(in.ready) == 0 {
		in.ready = nil
	}
}

// Fsync makes the file's data and size durable, and tells what earlier background writes met.
func (fs *FS) Fsync(ctx context.Context, h *Handle) error {
	err := fs.flush(ctx, h.in, 0, wholeFile, true)
	if old := h.takeErr(); err == nil {
		err = old
	}
	return err
}
