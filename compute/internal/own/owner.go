package own

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/crakefs/crake/compute/internal/lease"
	"github.com/crakefs/crake/compute/internal/lock"
	"github.com/crakefs/crake/compute/internal/meta"
	"github.com/crakefs/crake/compute/internal/opens"
	"github.com/crakefs/crake/wire"
)

// Engine is an opened bucket: its database and all below it.
type Engine struct {
	DB *meta.Bucket
	// Background runs once the bucket serves, until ctx ends: it finds leaked strips. May be nil.
	Background func(ctx context.Context)
	// Abort makes all writes to the drives fail from now on, those under way too. It does not wait.
	Abort func()
	// Close closes the database and all below. No request runs any more, and DB.Run has ended.
	Close func() error
}

// Opener fences the drives for the bucket's epoch, opens its files and its database. When the database fails later,
// Bucket.Fail is to be called, from any goroutine.
type Opener func(ctx context.Context, b *Bucket) (*Engine, error)

// Config configures an Owner. Required: Proc, Open, Peer, Alive.
type Config struct {
	Proc wire.ProcID
	Open Opener
	Peer lease.Peer
	Log  *slog.Logger
	// Leases is the pattern of each bucket's lease manager (Peer, Log and FirstSeq are filled in).
	Leases lease.Config
	// Opening bounds the buckets that open at once; 0: DefaultOpening.
	Opening int
	// Changed is called when the state of a bucket has changed, so that a heartbeat tells at once. Must not block.
	Changed func()
	// Alive tells whether a session is in the newest map.
	Alive func(wire.SessionID) bool
	// Deposed tells whether an error says that the bucket has a newer owner.
	Deposed func(error) bool
}

// Owner opens the buckets that the map gives to this process, and closes those that it takes away.
// SetMap is called by one goroutine; the other methods are safe for concurrent use.
type Owner struct {
	cfg   Config
	slots chan struct{} // one for each bucket that opens now

	ctx    context.Context // ends all lives
	cancel context.CancelFunc
	lives  sync.WaitGroup

	byID atomic.Pointer[map[wire.BucketID]*Bucket] // never changed, only replaced; by SetMap and Close

	mu      sync.Mutex
	stopped bool
	gen     wire.Generation // of the newest map acted upon
	genNews chan struct{}   // closed and replaced when gen rises
	ends    map[wire.BucketID]context.CancelFunc
	// old holds the buckets that are being closed, so that a new life of the same one waits for the former to end.
	old map[wire.BucketID]*Bucket
}

// New makes an owner of nothing.
func New(cfg Config) *Owner {
	if cfg.Opening <= 0 {
		cfg.Opening = DefaultOpening
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Changed == nil {
		cfg.Changed = func() {}
	}
	if cfg.Deposed == nil {
		cfg.Deposed = func(error) bool { return false }
	}
	o := &Owner{
		cfg: cfg, slots: make(chan struct{}, cfg.Opening),
		ends: map[wire.BucketID]context.CancelFunc{}, old: map[wire.BucketID]*Bucket{}, genNews: make(chan struct{}),
	}
	o.ctx, o.cancel = context.WithCancel(context.Background())
	o.byID.Store(&map[wire.BucketID]*Bucket{})
	return o
}

// Bucket finds a bucket that this process owns, or nil.
func (o *Owner) Bucket(id wire.BucketID) *Bucket { return (*o.byID.Load())[id] }

// Buckets gives all owned buckets, in no order.
func (o *Owner) Buckets() []*Bucket {
	m := *o.byID.Load()
	out := make([]*Bucket, 0, len(m))
	for _, b := range m {
		out = append(out, b)
	}
	return out
}

// SetMap acts on a new map; it does not wait for buckets to open or close.
func (o *Owner) SetMap(m *wire.ClusterMap) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if m.Generation <= o.gen {
		return
	}
	o.gen = m.Generation
	defer func() {
		close(o.genNews)
		o.genNews = make(chan struct{})
	}()
	if o.stopped {
		return
	}
	now := *o.byID.Load()
	next := make(map[wire.BucketID]*Bucket, len(now))
	alive := make(map[wire.SessionID]bool, len(m.Sessions))
	for _, s := range m.Sessions {
		alive[s.ID] = true
	}
	var opened []*Bucket
	for i, w := range m.Owners {
		id := wire.BucketID(i)
		b := now[id]
		if b != nil && (w.Proc != o.cfg.Proc || w.Epoch != b.Epoch) {
			o.end(b)
			b = nil
		}
		if b == nil && w.Proc == o.cfg.Proc {
			b = o.newBucket(id, w.Epoch, m)
			opened = append(opened, b)
		}
		if b != nil {
			next[id] = b
		}
	}
	for id, b := range now {
		if int(id) >= len(m.Owners) {
			o.end(b)
		}
	}
	o.byID.Store(&next)
	for _, b := range next {
		b.prune(alive)
	}
	for _, b := range opened {
		ctx, cancel := context.WithCancel(o.ctx)
		o.ends[b.ID] = cancel
		before := o.old[b.ID]
		o.lives.Go(func() { o.life(ctx, b, before) })
	}
}

// end takes the ownership of a bucket away. Preconditions: mu is held.
func (o *Owner) end(b *Bucket) {
	b.lose()
	o.ends[b.ID]()
	delete(o.ends, b.ID)
	o.old[b.ID] = b
}

func (o *Owner) newBucket(id wire.BucketID, epoch wire.Epoch, m *wire.ClusterMap) *Bucket {
	lc := o.cfg.Leases
	lc.Peer, lc.Log = o.cfg.Peer, o.cfg.Log
	// Sequences rise over all owners: 2^24 epochs of 2^40 grants each.
	lc.FirstSeq = uint64(epoch) << 40
	b := &Bucket{
		ID: id, Epoch: epoch, Leases: lease.NewManager(lc), Locks: lock.NewManager(), Opens: opens.New(),
		done: make(chan struct{}), news: make(chan struct{}, 1), orphanNews: make(chan struct{}, 1), state: wire.BucketOpening,
		missing: map[wire.SessionID]struct{}{}, reclaimed: map[wire.SessionID]struct{}{},
	}
	for _, s := range m.Sessions {
		b.missing[s.ID] = struct{}{}
	}
	return b
}

// CancelSession fails what waits on behalf of a session that the map no longer has.
func (o *Owner) CancelSession(s wire.SessionID) {
	for _, b := range o.Buckets() {
		b.Leases.CancelSession(s)
		b.Locks.CancelSession(s)
	}
}

// EndSession drops what a session held, once no request of it runs any more.
func (o *Owner) EndSession(s wire.SessionID) {
	for _, b := range o.Buckets() {
		b.Locks.EndSession(s)
		b.Leases.EndSession(s)
		last := b.Opens.EndSession(s)
		ctx, db, err := b.Enter(UseOpen)
		if err != nil {
			continue // it looks at all orphans when it has opened
		}
		if !o.spawn(func() {
			defer b.Leave()
			o.clean(ctx, b, db, s, last)
		}) {
			b.Leave()
		}
	}
}

// spawn runs f in a goroutine that Close waits for, or tells false when the owner is closed.
func (o *Owner) spawn(f func()) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.stopped {
		return false
	}
	o.lives.Go(f)
	return true
}

// clean deletes what a dead session was the last to have open, and its reply records.
func (o *Owner) clean(ctx context.Context, b *Bucket, db *meta.Bucket, s wire.SessionID, last []wire.Ino) {
	for _, ino := range last {
		if err := db.ReleaseOrphan(ctx, ino); err != nil {
			o.cfg.Log.Warn("an inode without a name could not be deleted yet", "bucket", b.ID, "ino", ino, "err", err)
			b.RetryOrphans()
			break
		}
	}
	if err := db.DropSession(ctx, s); err != nil {
		o.cfg.Log.Warn("reply records of a dead session could not be dropped", "bucket", b.ID, "session", s, "err", err)
	}
}

// Reports describes, for a heartbeat, all owned buckets, and those that are still being closed; and the generation of
// the map that this follows from: mgmt gives a bucket to the next owner once we have seen the map that takes it from us
// and do not name it any more.
func (o *Owner) Reports() (wire.Generation, []wire.BucketReport) {
	o.mu.Lock()
	defer o.mu.Unlock()
	bs := *o.byID.Load()
	out := make([]wire.BucketReport, 0, len(bs)+len(o.old))
	for _, b := range bs {
		out = append(out, b.Report())
	}
	for id, b := range o.old {
		if bs[id] == nil {
			r := b.Report()
			r.State = wire.BucketOpening // anything but closed: it closes
			out = append(out, r)
		}
	}
	return o.gen, out
}

// WaitGen waits until a map of this generation has been acted upon.
func (o *Owner) WaitGen(ctx context.Context, g wire.Generation) error {
	for {
		o.mu.Lock()
		gen, news := o.gen, o.genNews
		o.mu.Unlock()
		if gen >= g {
			return nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Close ends all ownership in an orderly way: it returns when all buckets are closed.
func (o *Owner) Close() {
	o.mu.Lock()
	o.stopped = true
	for _, b := range *o.byID.Load() {
		o.end(b)
	}
	o.byID.Store(&map[wire.BucketID]*Bucket{})
	o.mu.Unlock()
	o.cancel()
	o.lives.Wait()
}
