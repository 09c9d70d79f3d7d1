package core

import (
	"context"
	"sync"
	"time"

	"github.com/crakefs/crake/frontend/internal/locks"
	"github.com/crakefs/crake/wire"
)

// Flags of an open file that matter here, as open(2) has them on Linux.
const (
	openAccess = 0o3
	openAppend = 0o2000
	openDsync  = 0o10000
	openSync   = 0o4010000
	openDirect = 0o40000
)

// Handle is an open file. Its number is ID.
type Handle struct {
	ID uint64
	in *inode

	mu      sync.Mutex
	seenErr uint64 // of in.errSeq: errors up to there have been told to this opener
	ra      readahead
	lockers map[uint64]struct{} // owners of fcntl locks that were asked for through this handle; nil for none
}

// Ino gives the inode of the file.
func (h *Handle) Ino() wire.Ino { return h.in.ino }

type handles struct {
	mu   sync.Mutex
	m    map[uint64]*Handle
	last uint64
}

// Handle finds an open file by its number, or nil.
func (fs *FS) Handle(id uint64) *Handle {
	fs.handles.mu.Lock()
	defer fs.handles.mu.Unlock()
	return fs.handles.m[id]
}

// newHandle takes over the caller's reference on in, which is counted as open at its owner.
func (fs *FS) newHandle(in *inode) *Handle {
	h := &Handle{in: in}
	in.mu.Lock()
	in.handles++
	h.seenErr = in.errSeq
	in.mu.Unlock()
	t := &fs.handles
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last++
	h.ID = t.last
	t.m[h.ID] = h
	return h
}

// closeAll drops the readahead of all handles.
func (t *handles) closeAll() {
	for _, h := range t.list() {
		h.dropReadahead()
	}
}

// dropIdle drops readahead that nobody used for a while.
func (t *handles) dropIdle(now time.Time) {
	for _, h := range t.list() {
		h.mu.Lock()
		idle := len(h.ra.pieces) > 0 && now.Sub(h.ra.used) > raIdle
		h.mu.Unlock()
		if idle {
			h.dropReadahead()
		}
	}
}

func (t *handles) list() []*Handle {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]*Handle, 0, len(t.m))
	for _, h := range t.m {
		out = append(out, h)
	}
	return out
}

// Open opens a file; flags are those of open(2).
func (fs *FS) Open(ctx context.Context, ino wire.Ino, flags uint32) (*Handle, error) {
	in := fs.table.get(ino)
	want := wire.LeaseRead
	if flags&openAccess != 0 {
		want = wire.LeaseWrite
	}
	if err := fs.count(ctx, in, want); err != nil {
		fs.table.put(in)
		return nil, err
	}
	h := fs.newHandle(in)
	in.mu.Lock()
	in.opening = false
	in.wake()
	in.mu.Unlock()
	return h, nil
}

// count has the inode counted as open by its owner, once. On success opening is set, so that no release starts before
// the handle is made.
func (fs *FS) count(ctx context.Context, in *inode, want wire.LeaseMode) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	for in.opening || in.closing {
		if err := in.await(ctx); err != nil {
			return err
		}
	}
	in.opening = true
	if in.srvOpen && in.known && in.lease.Mode() >= want {
		return nil
	}
	gen, ver, cached := in.mapsGen, in.mapsVer[0], in.cached()
	in.mu.Unlock()
	t := fs.now()
	var resp wire.OpenResp
	req := &wire.OpenReq{Session: fs.sess.id, Ino: in.ino, Want: want, Extents: want == wire.LeaseRead}
	err := fs.ask(ctx, in.ino.Bucket(), wire.MOpen, req, &resp)
	in.mu.Lock()
	if err != nil {
		in.opening = false
		if !gone(err) {
			// It may be counted there all the same: released later.
			in.srvOpen, in.closedAt = true, time.Now()
		}
		in.wake()
		if in.srvOpen {
			fs.wb.list(in)
		}
		return err
	}
	in.srvOpen = true
	in.learnLocked(t, resp.Attr, resp.Lease)
	// They are as of the grant in the same answer, or the lease was held all the time.
	if same := in.mapsGen == gen && in.mapsVer[0] == ver; req.Extents && in.cached() && (same || !cached) {
		in.keepOpened(&resp.Extents)
	}
	return nil
}

// CreateFile makes a regular file and opens it.
func (fs *FS) CreateFile(ctx context.Context, c Create, flags uint32) (*Handle, wire.Attr, error) {
	want := wire.LeaseRead
	if flags&openAccess != 0 {
		want = wire.LeaseWrite
	}
	in, a, err := fs.make(ctx, c, true, want)
	if err != nil {
		return nil, wire.Attr{}, err
	}
	in.mu.Lock()
	in.srvOpen = true
	in.mu.Unlock()
	return fs.newHandle(in), a, nil
}

// Flush is called at each close of a descriptor: it drops the fcntl locks of the closing process, starts to write back, and
// tells what earlier writes met, once for each opener.
func (fs *FS) Flush(ctx context.Context, h *Handle, owner uint64) error {
	in := h.in
	in.mu.Lock()
	held := in.locks.Has(owner, false)
	if in.unsent() {
		in.hurry = true
		fs.wb.list(in)
	}
	in.mu.Unlock()
	if held {
		unlock := locks.Held{Owner: owner, Start: 0, End: lastByte, Type: wire.LockUnlock}
		if err := fs.setLock(ctx, in, unlock, false); err != nil {
			return err
		}
	}
	return h.takeErr()
}

// takeErr gives the error of background writes that this opener has not been told yet, once.
func (h *Handle) takeErr() error {
	h.in.mu.Lock()
	defer h.in.mu.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.in.errSeq == h.seenErr {
		return nil
	}
	h.seenErr = h.in.errSeq
	return h.in.err
}

// Locks notes that owner asks for fcntl locks through this handle: what it still has when the handle ends goes with it.
//
// The kernel unlocks at the close of a file for locks of a process (by Flush with its owner), and by Release with a flag
// for flock, but not for locks of an open file (F_OFD_SETLK), whose owner appears nowhere else. When a handle ends, every
// process that had it has closed it, and so had its Flush: what is left are locks of the open file.
func (h *Handle) Locks(owner uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.lockers == nil {
		h.lockers = map[uint64]struct{}{}
	}
	h.lockers[owner] = struct{}{}
}

// dropLocks drops the fcntl locks that are left of a handle that ends.
func (fs *FS) dropLocks(ctx context.Context, h *Handle) {
	h.mu.Lock()
	owners := h.lockers
	h.lockers = nil
	h.mu.Unlock()
	for owner := range owners {
		h.in.mu.Lock()
		held := h.in.locks.Has(owner, false)
		h.in.mu.Unlock()
		if !held {
			continue
		}
		unlock := locks.Held{Owner: owner, Start: 0, End: lastByte, Type: wire.LockUnlock}
		if err := fs.setLock(ctx, h.in, unlock, false); err != nil {
			fs.log.Warn("locks not dropped", "ino", h.in.ino, "err", err)
		}
	}
}

// Release ends a handle. With flock its flock lock, whose owner is the handle's number, goes too.
func (fs *FS) Release(ctx context.Context, h *Handle, flock bool) {
	in := h.in
	t := &fs.handles
	t.mu.Lock()
	delete(t.m, h.ID)
	t.mu.Unlock()
	h.dropReadahead()
	fs.dropLocks(ctx, h)
	if flock {
		unlock := locks.Held{Owner: h.ID, Start: 0, End: lastByte, Type: wire.LockUnlock, Flock: true}
		if err := fs.setLock(ctx, in, unlock, false); err != nil {
			fs.log.Warn("flock not dropped", "ino", in.ino, "err", err)
		}
	}
	in.mu.Lock()
	if in.handles--; in.handles == 0 {
		in.hot = nil
		in.closedAt = time.Now()
		if in.unsent() {
			in.hurry = true
		}
		fs.wb.list(in)
	}
	in.mu.Unlock()
	fs.table.put(in)
}

// releaseOld tells owners of files that have been closed for a while, many at once.
func (fs *FS) releaseOld(now time.Time) {
	byBucket := map[wire.BucketID][]*inode{}
	for _, in := range fs.wb.inodes() {
		in.mu.Lock()
		b := in.ino.Bucket()
		if in.srvOpen && in.handles == 0 && !in.opening && !in.closing && in.data.Clean() && len(byBucket[b]) < releaseBatch &&
			now.Sub(in.closedAt) >= releaseDelay {
			in.closing = true
			byBucket[b] = append(byBucket[b], in)
		}
		in.mu.Unlock()
	}
	for b, list := range byBucket {
		fs.spawn(func() {
			req := &wire.ReleaseReq{Session: fs.sess.id, Bucket: b}
			for _, in := range list {
				req.Inos = append(req.Inos, in.ino)
			}
			err := fs.ask(fs.bg, b, wire.MRelease, req, &wire.Empty{})
			if err != nil {
				fs.log.Warn("files not released", "bucket", b, "files", len(list), "err", err)
			}
			for _, in := range list {
				in.mu.Lock()
				in.closing, in.srvOpen = false, false
				in.wake()
				in.mu.Unlock()
			}
		})
	}
}
