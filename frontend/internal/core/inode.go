package core

import (
	"container/list"
	"context"
	"sync"
	"time"

	"github.com/crakefs/crake/frontend/internal/dirty"
	"github.com/crakefs/crake/frontend/internal/lease"
	"github.com/crakefs/crake/frontend/internal/locks"
	"github.com/crakefs/crake/wire"
)

// inode is what this session knows of one inode. It is kept while somebody uses it, while it is open or dirty, and for a
// while for its lease.
//
// Invariant: no IO and no wait for memory under mu.
type inode struct {
	// immutable
	fs  *FS
	ino wire.Ino

	// guarded by the table's mu
	refs int           // users; evicted only at 0
	idle *list.Element // in the table's list when refs is 0

	mu sync.Mutex
	// guarded by mu

	change chan struct{} // closed and replaced at every change that somebody may wait for; nil when nobody does
	lease  lease.State
	asking bool // a request for a lease is under way

	known   bool        // attr holds what the cluster said under the lease, or what was written here since
	attr    wire.Attr   // size and times as a reader here must see them
	staleAt lease.Token // fields other than size, of answers asked for before, are out of date
	askedAt lease.Token // when attr was asked for
	meta    uint64      // rises at every change of size or mtime by this side
	pubMeta uint64      // meta when the cluster was last told
	pubbing bool        // a publish is under way
	srvEnd  uint64      // from here on the cluster has no data that counts

	data     dirty.File
	since    time.Time // of the oldest dirty data
	retryAt  time.Time // not before then, after an error
	busy     bool      // a truncate or punch is under way: no new data, no new sends
	sends    int       // of whole stripes, by themselves
	ready    []uint64  // stripes that are complete, by offset
	flights  map[uint64]struct{}
	flightID uint64
	content  uint64 // rises at every change of what a reader sees

	mapsGen  uint64            // maps of an older one are void
	mapsVer  map[uint64]uint64 // by region: likewise
	hot      *cachedMap        // the map used last, while the file is open here
	prepared map[uint64]struct{}

	err    error // of the last background write that failed
	errSeq uint64

	handles  int // open handles here
	srvOpen  bool
	opening  bool
	closing  bool // a release is under way
	closedAt time.Time

	dir      dirNames
	locks    locks.Table
	pages    bool // the kernel may have pages of it
	wb       bool // listed for write-back
	hurry    bool // closed: write back soon
	flushing bool // by the write-back
	refusals int  // of flushes by the write-back, in a row
}

// dirtyMeta says that the cluster does not know size and mtime.
func (in *inode) dirtyMeta() bool { return in.meta != in.pubMeta }

// unsent says that there is anything that the cluster does not have durably.
func (in *inode) unsent() bool { return !in.data.Clean() || in.dirtyMeta() }

// cached says that what is kept of the inode may be used: there is a lease, and the session that has it is alive.
func (in *inode) cached() bool { return in.lease.Cached() && in.fs.alive() }

// writable says that new data may be buffered.
func (in *inode) writable() bool { return in.lease.Writable() && in.fs.alive() }

// wake wakes all that wait for a change. mu is held.
func (in *inode) wake() {
	if in.change != nil {
		close(in.change)
		in.change = nil
	}
}

// await waits for a change. mu is held, released meanwhile, and held again when it returns.
func (in *inode) await(ctx context.Context) error {
	if in.change == nil {
		in.change = make(chan struct{})
	}
	ch := in.change
	in.mu.Unlock()
	defer in.mu.Lock()
	select {
	case <-ch:
		return nil
	case <-ctx.Done():
		return interrupted(ctx)
	case <-in.fs.bg.Done():
		return wire.E("frontend", wire.KindShutdown, "", nil)
	}
}

// table is the inodes in use, and idle ones with a lease.
type table struct {
	fs *FS

	mu      sync.Mutex
	m       map[wire.Ino]*inode
	lru     list.List   // of idle *inode, most recently used first
	voids   lease.Token // when the newest inode was forgotten after its lease was given back
	evictor bool        // leases are being given back
}

func (t *table) init(fs *FS) {
	t.fs = fs
	t.m = map[wire.Ino]*inode{}
}

// get gives the inode with a reference of the caller, who calls put.
func (t *table) get(ino wire.Ino) *inode {
	t.mu.Lock()
	defer t.mu.Unlock()
	in := t.m[ino]
	if in == nil {
		in = &inode{fs: t.fs, ino: ino}
		// A grant that was asked for while we knew the inode, and gave its lease back, must not count now.
		in.lease.GiveUp(t.voids)
		t.m[ino] = in
	}
	if in.idle != nil {
		t.lru.Remove(in.idle)
		in.idle = nil
	}
	in.refs++
	return in
}

func (t *table) put(in *inode) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if in.refs--; in.refs == 0 {
		in.idle = t.lru.PushFront(in)
	}
}

// all gives every inode of a bucket, or of all, each with a reference.
func (t *table) all(match func(wire.Ino) bool) []*inode {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []*inode
	for ino, in := range t.m {
		if !match(ino) {
			continue
		}
		if in.idle != nil {
			t.lru.Remove(in.idle)
			in.idle = nil
		}
		in.refs++
		out = append(out, in)
	}
	return out
}

// evict gives the leases of long unused inodes back when there are too many, in the background.
func (t *table) evict() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.evictor || t.lru.Len() <= maxIdleInodes {
		return
	}
	t.evictor = true
	t.fs.spawn(func() {
		t.shrink()
		t.mu.Lock()
		t.evictor = false
		t.mu.Unlock()
	})
}

// shrink brings the idle inodes down to seven eighths of the bound.
func (t *table) shrink() {
	for {
		victims := t.victims()
		if len(victims) == 0 {
			return
		}
		byBucket := map[wire.BucketID][]wire.Ino{}
		for _, in := range victims {
			in.mu.Lock()
			held := in.lease.Mode() > wire.LeaseNone
			in.mu.Unlock()
			if held {
				b := in.ino.Bucket()
				byBucket[b] = append(byBucket[b], in.ino)
			}
			in.loseLease()
		}
		for b, inos := range byBucket {
			req := &wire.LeaseDropReq{Session: t.fs.sess.id, Bucket: b, Inos: inos}
			if err := t.fs.ask(t.fs.bg, b, wire.MLeaseDrop, req, &wire.Empty{}); err != nil {
				t.fs.log.Warn("leases could not be given back", "bucket", b, "err", err)
			}
		}
		t.mu.Lock()
		t.voids = t.fs.now()
		t.mu.Unlock()
		for _, in := range victims {
			in.mu.Lock()
			in.lease.GiveUp(t.fs.now()) // grants from before the owner forgot it
			in.mu.Unlock()
			t.forget(in)
		}
	}
}

// victims picks idle inodes to forget, each with a reference, so that they stay known (and grants to them void) until
// their owner has answered.
func (t *table) victims() []*inode {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []*inode
	excess := t.lru.Len() - maxIdleInodes*7/8
	for e := t.lru.Back(); e != nil && excess > 0 && len(out) < dropBatch; excess-- {
		in := e.Value.(*inode)
		e = e.Prev()
		if !in.mu.TryLock() {
			continue
		}
		free := !in.srvOpen && in.handles == 0 && !in.unsent() && in.locks.Empty() && !in.wb && !in.lease.Pending()
		in.mu.Unlock()
		if free {
			t.lru.Remove(in.idle)
			in.idle = nil
			in.refs++
			out = append(out, in)
		}
	}
	return out
}

// forget drops a victim's reference, and the inode with it unless somebody has come to need it.
func (t *table) forget(in *inode) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if in.refs--; in.refs > 0 {
		return
	}
	in.mu.Lock()
	needed := in.srvOpen || in.unsent() || in.wb || in.lease.Mode() > wire.LeaseNone || !in.locks.Empty()
	in.mu.Unlock()
	if needed {
		in.idle = t.lru.PushFront(in)
		return
	}
	delete(t.m, in.ino)
}

// loseLease forgets the lease and all that it allowed to keep, now.
func (in *inode) loseLease() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.lease.GiveUp(in.fs.now())
	in.dropCaches()
	in.wake()
}

// dropCaches forgets what only a lease allows to keep. mu is held. What is unsent stays.
func (in *inode) dropCaches() {
	if !in.unsent() {
		in.known = false
	}
	in.clearNames()
	in.content++
	in.mapsGen++
	in.mapsVer = nil
	in.prepared = nil
}
