// Package core is the filesystem of one mount without FUSE: names, attributes, data and locks of one session, cached and
// buffered under its leases. See ../../doc.go for the walk of a request, the locks and the goroutines.
package core

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/ristretto/v2"
	"golang.org/x/sync/semaphore"

	"github.com/crakefs/crake/frontend/internal/lease"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
	"github.com/crakefs/crake/wire/strip"
)

// Cluster reaches the owners of buckets. route.Router is one; the tests' cluster in memory is the other. Safe for
// concurrent use; Bucket retries until ctx ends as route.Router.Bucket says.
type Cluster interface {
	Bucket(ctx context.Context, b wire.BucketID, call *rpc.Call) error
	Map() *wire.ClusterMap
}

// Blocks reads blocks from drives, as strip.Reader does. Safe for concurrent use.
type Blocks interface {
	Read(ctx context.Context, wants []strip.Want) ([]wire.Data, error)
}

// Config configures an FS.
type Config struct {
	Session wire.SessionID
	FS      wire.FSInfo
	Cluster Cluster
	Blocks  Blocks
	Arena   *wire.Arena // of at least ArenaBytes(DirtyBytes, ReadBytes)
	// DirtyBytes and ReadBytes bound memory; 0 is the default.
	DirtyBytes int64
	ReadBytes  int64
	// DropPages tells the kernel to write back and forget the pages that mmap made it keep of an inode. It may block
	// until the kernel has answered requests of its own. nil: there is no kernel.
	DropPages func(ino wire.Ino)
	Log       *slog.Logger // nil is slog.Default
}

// ArenaBytes gives the arena that an FS with these bounds needs.
func ArenaBytes(dirty, read int64) int64 {
	if dirty == 0 {
		dirty = DefaultDirtyBytes
	}
	if read == 0 {
		read = DefaultReadBytes
	}
	return dirty + read + reserveBytes
}

// FS is a mounted filesystem. All methods are safe for concurrent use. The contexts of their callers should end when Stopping is
// closed.
type FS struct {
	// immutable
	c       Config
	log     *slog.Logger
	began   time.Time
	sess    *session
	table   table
	extents *ristretto.Cache[uint64, *cachedMap]
	bg      context.Context // of what no caller can cancel
	stop    context.CancelFunc

	deadline atomic.Int64  // of the session, nanoseconds since began; 0 is never
	clock    atomic.Uint64 // makes lease.Tokens
	voidAll  atomic.Uint64 // attributes that were asked for before are stale, of every inode
	dirtySem *semaphore.Weighted
	names    atomic.Int64 // in all dirNames
	dirtyNow atomic.Int64 // bytes taken from dirtySem
	readSem  *semaphore.Weighted
	raSem    *semaphore.Weighted
	sendSem  *semaphore.Weighted

	workMu   sync.Mutex
	finished bool           // guarded by workMu: Run waits or has waited for work
	work     sync.WaitGroup // short goroutines: sends, prefetches

	handles handles
	wb      writeback
	space   space
	reclaim reclaimer
}

// New makes an FS. Run it.
func New(c Config) (*FS, error) {
	if c.DirtyBytes == 0 {
		c.DirtyBytes = DefaultDirtyBytes
	}
	if c.ReadBytes == 0 {
		c.ReadBytes = DefaultReadBytes
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	cache, err := ristretto.NewCache(&ristretto.Config[uint64, *cachedMap]{
		NumCounters: extentCacheBytes / 256 * 10 / 8, // ten times the entries that fit, at 2 KiB each
		MaxCost:     extentCacheBytes, BufferItems: 64, IgnoreInternalCost: true,
	})
	if err != nil {
		return nil, wire.E("frontend.cache", wire.KindOther, "", err)
	}
	fs := &FS{
		c: c, log: c.Log, began: time.Now(), sess: newSession(c.Session), extents: cache,
		dirtySem: semaphore.NewWeighted(c.DirtyBytes),
		readSem:  semaphore.NewWeighted(max(c.ReadBytes/2, 2*maxRead)),
		raSem:    semaphore.NewWeighted(c.ReadBytes / 2),
		sendSem:  semaphore.NewWeighted(maxSends),
	}
	fs.bg, fs.stop = context.WithCancel(context.Background())
	fs.table.init(fs)
	fs.handles.m = map[uint64]*Handle{}
	fs.wb.init()
	fs.reclaim.init(fs)
	return fs, nil
}

// Renew tells until when the session is sure to be alive. After that nothing cached is used and nothing more buffered, until
// it is renewed: others may have been given our leases. Never called: for ever.
func (fs *FS) Renew(until time.Time) { fs.deadline.Store(int64(max(until.Sub(fs.began), 1))) }

// alive says that the session is.
func (fs *FS) alive() bool {
	d := fs.deadline.Load()
	return d == 0 || time.Since(fs.began) < time.Duration(d)
}

// Stopping is closed when Run is at its end: the cluster will not be asked any more.
func (fs *FS) Stopping() <-chan struct{} { return fs.bg.Done() }

// Root gives the inode of the root directory.
func (fs *FS) Root() wire.Ino { return fs.c.FS.Root }

// Run does what must be done in the background until ctx ends. Then requests that wait for the cluster fail. Call Sync before
// to lose nothing.
func (fs *FS) Run(ctx context.Context) error {
	tick := time.NewTicker(groupDelay)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			fs.stop()
			fs.workMu.Lock()
			fs.finished = true
			fs.workMu.Unlock()
			fs.work.Wait()
			fs.handles.closeAll()
			fs.extents.Close()
			return nil
		case <-tick.C:
		case <-fs.wb.kick:
		}
		now := time.Now()
		fs.writeBack(now)
		fs.releaseOld(now)
		fs.handles.dropIdle(now)
		fs.table.evict()
	}
}

// now gives a time that is later than every one given before.
func (fs *FS) now() lease.Token { return lease.Token(fs.clock.Add(1)) }

// spawn runs a short piece of work in a goroutine that Run waits for. (What is spawned after Run has ended finds bg at its end and
// does nothing of length; nobody waits for it.)
func (fs *FS) spawn(f func()) {
	fs.workMu.Lock()
	tracked := !fs.finished
	if tracked {
		fs.work.Add(1)
	}
	fs.workMu.Unlock()
	go func() {
		if tracked {
			defer fs.work.Done()
		}
		f()
	}()
}

// ask sends a request that changes nothing.
func (fs *FS) ask(ctx context.Context, b wire.BucketID, m wire.Method, req, resp wire.Message) error {
	return fs.c.Cluster.Bucket(ctx, b, &rpc.Call{Method: m, Req: req, Resp: resp})
}

// mutate sends a request that changes something, exactly once: fill puts the OpID in.
func (fs *FS) mutate(ctx context.Context, b wire.BucketID, m wire.Method, resp wire.Message, fill func(op wire.OpID) wire.Message) error {
	op := fs.sess.begin()
	defer fs.sess.end(op)
	return fs.c.Cluster.Bucket(ctx, b, &rpc.Call{Method: m, Req: fill(op), Resp: resp})
}

// bucketOf gives the bucket that maps a region.
func (fs *FS) bucketOf(ino wire.Ino, region uint64) wire.BucketID {
	if region == 0 {
		return ino.Bucket()
	}
	return wire.RegionBucket(ino, region, int(fs.c.Cluster.Map().Buckets))
}

// stripeBytes gives the data of a full stripe.
func (fs *FS) stripeBytes() uint64 {
	if m := fs.c.Cluster.Map(); m != nil && m.K > 0 {
		return uint64(m.K) * wire.StripBytes
	}
	return wire.StripBytes
}

// wait pauses for d, or until ctx or the FS ends.
func (fs *FS) wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return interrupted(ctx)
	case <-fs.bg.Done():
		return wire.E("frontend", wire.KindShutdown, "", nil)
	}
}

func interrupted(ctx context.Context) error {
	return wire.E("frontend", wire.KindInterrupted, "", context.Cause(ctx))
}
