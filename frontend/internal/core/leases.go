package core

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/crakefs/crake/frontend/internal/lease"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

// learn takes an answer about the inode to a request that began at t: attributes and perhaps a lease. It gives the attributes as
// a reader here must see them.
func (in *inode) learn(t lease.Token, a wire.Attr, l wire.Lease) wire.Attr {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.learnLocked(t, a, l)
}

func (in *inode) learnLocked(t lease.Token, a wire.Attr, l wire.Lease) wire.Attr {
	had := in.lease.Mode()
	granted := in.lease.Grant(t, l)
	if granted && had < wire.LeaseRead {
		// What was kept without a lease may be out of date.
		in.mapsGen++
		in.mapsVer = nil
		if !in.unsent() {
			in.known = false
		}
	}
	if granted && had < wire.LeaseWrite && in.lease.Mode() == wire.LeaseWrite {
		in.srvEnd = max(a.Size, in.data.End())
		in.prepared = nil
	}
	out := in.merge(a)
	if in.cached() && (!in.known || a.Version >= in.attr.Version) {
		// What was known at askedAt is contained in a newer version, whenever that was asked for.
		if !in.known {
			in.askedAt = 0
		}
		in.attr, in.known, in.askedAt = out, true, max(in.askedAt, t)
		if a.Mode&modeType == modeDir && a.Size == 0 && in.quietSince(t) {
			in.dir.complete = true // the size of a directory is the number of its names
		}
	}
	in.wake()
	return out
}

// merge puts what was changed here into attributes from the cluster. mu is held.
func (in *inode) merge(a wire.Attr) wire.Attr {
	if in.known && in.unsent() {
		if in.dirtyMeta() {
			a.Size, a.Mtime = in.attr.Size, in.attr.Mtime
			a.Ctime = max(a.Ctime, in.attr.Ctime)
		}
		a.Blocks = max(a.Blocks, (a.Size+511)/512)
	}
	return a
}

// fresh says that attr is what stat may show. mu is held.
func (in *inode) fresh() bool {
	return in.known && in.cached() && in.askedAt > in.staleAt && uint64(in.askedAt) > in.fs.voidAll.Load()
}

// stale makes the next stat ask again. (The size stays known.)
func (in *inode) stale() {
	in.mu.Lock()
	in.staleAt = in.fs.now()
	in.mu.Unlock()
}

// getAttr asks the inode's owner, wanting a lease.
func (fs *FS) getAttr(ctx context.Context, in *inode, want wire.LeaseMode) (wire.Attr, error) {
	t := fs.now()
	var resp wire.AttrResp
	req := &wire.GetAttrReq{Session: fs.sess.id, Ino: in.ino, Want: want}
	if err := fs.ask(ctx, in.ino.Bucket(), wire.MGetAttr, req, &resp); err != nil {
		return wire.Attr{}, err
	}
	return in.learn(t, resp.Attr, resp.Lease), nil
}

// lockWritable takes the write lease if need be. On success mu is held, the lease allows to write, size is known and no truncate is
// under way.
func (fs *FS) lockWritable(ctx context.Context, in *inode) error {
	pause := leaseWaitMin
	in.mu.Lock()
	for {
		if in.lease.Pending() || in.busy || in.asking {
			if err := in.await(ctx); err != nil {
				in.mu.Unlock()
				return err
			}
			continue
		}
		if in.writable() && in.known {
			return nil
		}
		in.asking = true
		in.mu.Unlock()
		_, err := fs.getAttr(ctx, in, wire.LeaseWrite)
		in.mu.Lock()
		in.asking = false
		in.wake()
		if err != nil {
			in.mu.Unlock()
			return err
		}
		if in.writable() && in.known || in.lease.Pending() {
			continue
		}
		// Another session has it or wants it too. Both back off by chance, so that one comes first.
		in.mu.Unlock()
		if err := fs.wait(ctx, pause+rand.N(pause)); err != nil {
			return err
		}
		pause = min(2*pause, leaseWaitMax)
		in.mu.Lock()
	}
}

// Recall serves a recall: what is above req.To is flushed and forgotten when it returns nil. ctx ends when the asker no longer
// waits.
//
// It is never called by a request of the kernel, and waits for nothing that such a request holds: sends to computes (which serve the
// recalled session) and, for a bounded time, the kernel's giving back of pages.
func (fs *FS) Recall(ctx context.Context, req *wire.RecallReq) error {
	if req.Session != fs.sess.id {
		return nil // of a session of the past; nothing of it is alive here
	}
	in := fs.table.get(req.Ino)
	defer fs.table.put(in)
	pages := fs.dropPages(ctx, in, req)
	in.mu.Lock()
	if !in.lease.Recall(req.Seq, req.To) {
		in.mu.Unlock()
		return nil
	}
	err := fs.drain(ctx, in, req.To)
	in.mu.Unlock()
	if err == nil && pages {
		// A page that was read again between the first time and the end of the lease.
		fs.spawn(func() { fs.c.DropPages(in.ino) })
	}
	return err
}

// dropPages makes the kernel give back the pages of mmaps while the lease still allows us to take what was written to
// them. It reports whether there may be any.
func (fs *FS) dropPages(ctx context.Context, in *inode, req *wire.RecallReq) bool {
	in.mu.Lock()
	pages := in.pages && in.lease.Mode() > req.To && fs.c.DropPages != nil
	in.pages = in.pages && !pages
	in.mu.Unlock()
	if !pages {
		return false
	}
	done := make(chan struct{})
	fs.spawn(func() {
		defer close(done)
		fs.c.DropPages(in.ino)
	})
	timer := time.NewTimer(pagesTimeout)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		fs.log.Warn("the kernel keeps pages during a recall", "ino", in.ino)
	case <-ctx.Done():
	}
	return true
}

// drain flushes until the lease can be lowered to mode to, and lowers it. mu is held on entry and return.
func (fs *FS) drain(ctx context.Context, in *inode, to wire.LeaseMode) error {
	for try := 0; ; {
		if in.lease.Mode() <= to {
			return nil // another recall went as far
		}
		if !in.unsent() && !in.busy && !in.pubbing {
			in.lease.Lower(to)
			if in.lease.Mode() < wire.LeaseRead {
				in.dropCaches()
			}
			in.prepared = nil
			in.wake()
			return nil
		}
		if in.busy {
			if err := in.await(ctx); err != nil {
				in.abandon()
				return err
			}
			continue
		}
		in.mu.Unlock()
		err := fs.flush(ctx, in, 0, wholeFile, true)
		in.mu.Lock()
		switch {
		case err == nil:
			continue
		case ctx.Err() != nil || fs.bg.Err() != nil:
			in.abandon()
			return err
		}
		if try++; try >= recallTries {
			in.giveUpData(err)
		}
	}
}

// abandon ends a recall whose asker has gone. mu is held.
func (in *inode) abandon() {
	in.lease.Abandon()
	in.wake()
}

// giveUpData forgets what the cluster refuses to take. The openers learn of it. mu is held.
func (in *inode) giveUpData(err error) {
	if !gone(err) { // of a file that was removed nobody misses it
		in.fs.log.Error("written data is lost", "ino", in.ino, "bytes", in.data.DirtyBytes(), "err", err)
	}
	in.fail(err)
	in.data.DropDirty()
	in.ready = nil
	in.pubMeta = in.meta
	in.known = false
	in.content++
	in.wake()
}

// fail keeps the error of a background write for every opener. mu is held.
func (in *inode) fail(err error) {
	in.err = err
	in.errSeq++
	in.retryAt = time.Now().Add(time.Second)
}

// HandleRPC answers what computes ask on connections that this process made: recalls.
func (fs *FS) HandleRPC(ctx context.Context, req *rpc.Request) (wire.Message, wire.Data, error) {
	req.Data.Release()
	if req.Header.Method != wire.MRecall {
		return nil, nil, wire.Errorf("frontend", wire.KindVersion, "", "method %#x", uint16(req.Header.Method))
	}
	var r wire.RecallReq
	if err := r.Decode(req.Meta); err != nil {
		return nil, nil, err
	}
	if err := fs.Recall(ctx, &r); err != nil {
		return nil, nil, err
	}
	return &wire.RecallResp{}, nil, nil
}
