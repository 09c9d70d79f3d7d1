package meta

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/crakefs/crake/compute/internal/txn"
	"github.com/crakefs/crake/wire"
)

// Bucket is an open bucket: all methods are safe for concurrent use, and return *wire.Error.
//
// Kinds that any method may give besides those of its message: KindUnavailable (the bucket failed or is closed, or a
// lock was not to be had in time: ask again), KindMoved (an inode of another bucket), KindStaleSession, KindCorrupt.
type Bucket struct {
	// Immutable after Open.
	cfg   Config
	log   *slog.Logger
	db    *pebble.DB
	locks *lockTable
	// firstNumber is the lowest stripe number that this Bucket may give out.
	firstNumber uint64
	ownCaches   []interface{ Unref() }

	// inside counts the requests that use the database. Not a RWMutex: requests nest (the data store asks for numbers), and
	// an inner one must not stand behind a waiting Close.
	inside atomic.Int64
	idle   chan struct{} // told when inside falls to 0 after closed; holds one
	closed atomic.Bool
	failed atomic.Pointer[error]

	replies replies
	inos    sequence // of inodes
	numbers sequence // of stripes and segments
	txnSeqs sequence // of transactions

	mu sync.Mutex // guards what follows; held for steps in memory only
	// sum is what the counters record would say if all that is applied were merged.
	sum      counters
	orphans  map[wire.Ino]struct{}
	coord    *txn.Coordinator
	part     *txn.Participant
	prepared map[wire.TxnID]*preparedTxn
	// forgetting counts decision records that are being removed.
	forgetting int
	cleanups   map[cleanupID]*cleanup
	reports    map[wire.Ino]struct{}
	// lastReport is when block counts were last reported to another bucket.
	lastReport time.Time
	segments   segments
	nextDir    uint64 // where the next new directory goes

	kick chan struct{} // wakes Run; holds one
}

// system records.
const (
	sysSuper    = "super"
	sysCounters = "counters"
	sysInos     = "inos"
	sysNumbers  = "numbers"
	sysTxns     = "txns"
)

// Open opens the bucket's database (a new one if there is none), loads what it needs in memory, and takes the locks of
// transactions in doubt and of truncations under way. Run must be started next, to settle those.
func Open(ctx context.Context, cfg Config) (*Bucket, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	b := &Bucket{
		cfg: cfg, log: cfg.Log.With(slog.Int("bucket", int(cfg.Bucket))), locks: newLockTable(),
		replies: replies{sessions: map[wire.SessionID]*sessionReplies{}},
		orphans: map[wire.Ino]struct{}{}, prepared: map[wire.TxnID]*preparedTxn{},
		cleanups: map[cleanupID]*cleanup{}, reports: map[wire.Ino]struct{}{},
		coord: txn.NewCoordinator(), part: txn.NewParticipant(), kick: make(chan struct{}, 1), idle: make(chan struct{}, 1),
	}
	b.segments.init()
	b.ownMissingCaches()
	err := b.guard(func() (err error) {
		b.db, err = pebble.Open(cfg.Dir, b.pebbleOptions())
		return err
	})
	if err != nil {
		b.dropCaches()
		if pebble.IsCorruptionError(err) {
			return nil, wire.E("meta.open", wire.KindCorrupt, b.id(), err)
		}
		return nil, wire.E("meta.open", wire.KindUnavailable, b.id(), err)
	}
	if err := b.load(ctx); err != nil {
		_ = b.Close()
		return nil, err
	}
	b.wake()
	return b, nil
}

func (c *Config) setDefaults() error {
	if c.StripeBlocks == 0 {
		c.StripeBlocks = defaultStripeBlocks
	}
	if c.Dir == "" {
		c.Dir = "db"
	}
	if c.MemTableBytes == 0 {
		c.MemTableBytes = defaultMemTableBytes
	}
	if c.LockWait == 0 {
		c.LockWait = DefaultLockWait
	}
	if c.doubtAge == 0 {
		c.doubtAge = doubtAge
	}
	if c.settlePause == 0 {
		c.settlePause = settlePause
	}
	if c.Now == nil {
		c.Now = func() int64 { return time.Now().UnixNano() }
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.nameHash == nil {
		c.nameHash = wire.NameHash
	}
	var errs []error
	need := func(ok bool, what string) {
		if !ok {
			errs = append(errs, errors.New(what))
		}
	}
	need(c.FS != nil, "no FS")
	need(c.Data != nil, "no Data")
	need(c.Leases != nil, "no Leases")
	need(c.Opens != nil, "no Opens")
	need(c.Sessions != nil, "no Sessions")
	need(c.Peers != nil, "no Peers")
	need(c.Arena != nil, "no Arena")
	need(c.Epoch != 0, "epoch 0")
	need(c.Buckets > int(c.Bucket) && c.Buckets <= wire.MaxBuckets, fmt.Sprintf("bucket %d of %d", c.Bucket, c.Buckets))
	need(c.StripeBlocks >= shortStripeBlocks && c.StripeBlocks <= regionBlocks, fmt.Sprintf("%d blocks in a stripe", c.StripeBlocks))
	if err := errors.Join(errs...); err != nil {
		return wire.E("meta.open", wire.KindInvalid, strconv.Itoa(int(c.Bucket)), err)
	}
	return nil
}

// ownMissingCaches makes small caches when the process shares none.
func (b *Bucket) ownMissingCaches() {
	if b.cfg.Cache == nil {
		b.cfg.Cache = pebble.NewCache(defaultCacheBytes)
		b.ownCaches = append(b.ownCaches, b.cfg.Cache)
	}
}

func (b *Bucket) dropCaches() {
	for _, c := range b.ownCaches {
		c.Unref()
	}
	b.ownCaches = nil
}

// load checks the superblock and reads what is kept in memory.
func (b *Bucket) load(ctx context.Context) error {
	for _, step := range []func() error{
		b.loadSuper, b.loadCounters, b.loadReplies, b.loadOrphans, b.loadZeroSegments, b.loadReports,
		b.loadDecided, func() error { return b.loadPrepared(ctx) }, func() error { return b.loadCleanups(ctx) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// loadSuper compares the superblock with the configuration, and notes the epoch in it.
func (b *Bucket) loadSuper() error {
	v, closer, ok, err := b.get(systemKey(sysSuper))
	if err != nil {
		return err
	}
	if ok {
		r := newReader(v)
		bucket, count, epoch := r.uvarint("bucket"), r.uvarint("buckets"), r.uvarint("epoch")
		err := r.done("superblock")
		_ = closer.Close()
		switch {
		case err != nil:
			return err
		case bucket != uint64(b.cfg.Bucket) || count != uint64(b.cfg.Buckets):
			return wire.Errorf("meta.open", wire.KindCorrupt, b.id(), "database of bucket %d of %d", bucket, count)
		case epoch > uint64(b.cfg.Epoch):
			return wire.Errorf("meta.open", wire.KindStaleEpoch, b.id(), "epoch %d was here before %d", epoch, b.cfg.Epoch)
		}
	}
	s := []byte{recordVersion}
	for _, v := range []uint64{uint64(b.cfg.Bucket), uint64(b.cfg.Buckets), uint64(b.cfg.Epoch)} {
		s = appendUvarint(s, v)
	}
	return b.set(systemKey(sysSuper), s)
}

func (b *Bucket) loadCounters() error {
	v, closer, ok, err := b.get(systemKey(sysCounters))
	if err != nil {
		return err
	}
	if ok {
		b.sum, err = decodeCounters(v)
		_ = closer.Close()
		if err != nil {
			return err
		}
	}
	for _, s := range []struct {
		q     *sequence
		name  string
		first uint64
		limit uint64
	}{
		{&b.inos, sysInos, wire.FirstInoSeq, 1<<47 - 1},
		{&b.numbers, sysNumbers, 1, wire.MaxStripNumber},
		{&b.txnSeqs, sysTxns, 1, 1<<63 - 1},
	} {
		s.q.b, s.q.name, s.q.limit = b, s.name, s.limit
		v, closer, ok, err := b.get(systemKey(s.name))
		if err != nil {
			return err
		}
		s.q.next = s.first
		if ok {
			r := newReader(v)
			s.q.next = r.uvarint("high water")
			err := r.done(s.name)
			_ = closer.Close()
			if err != nil {
				return err
			}
		}
		s.q.reserved = s.q.next
	}
	b.firstNumber = b.numbers.next
	return nil
}

func (b *Bucket) loadOrphans() error {
	return b.scan(newKey(tagOrphan), nil, func(k, _ []byte) (bool, error) {
		f, rest, ok := splitKey(k, 1)
		if !ok || len(rest) != 0 {
			return false, corruptKey(k)
		}
		b.orphans[wire.Ino(f[0])] = struct{}{}
		return true, nil
	})
}

// Close closes the database; requests that begin from now on fail with KindUnavailable, those under way are waited for
// (so cancel their contexts before). Run must have ended.
func (b *Bucket) Close() error {
	if b.closed.Swap(true) {
		return nil
	}
	for b.inside.Load() > 0 {
		<-b.idle
	}
	defer b.dropCaches()
	if b.failed.Load() == nil {
		if err := b.guard(b.db.Close); err != nil {
			return wire.E("meta.close", wire.KindOther, b.id(), err)
		}
		return nil
	}
	// A failed database may never finish closing: its log writer or a compaction may be stuck for good. What it holds is
	// some MiB; the bucket has a new owner or is opened anew.
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() { _ = recover() }()
		_ = b.db.Close()
	}()
	select {
	case <-done:
	case <-time.After(closeFailed):
		b.log.Warn("a failed bucket database does not close; its memory is given up")
	}
	return nil
}

// Err tells why the bucket has failed, or nil.
func (b *Bucket) Err() error {
	if p := b.failed.Load(); p != nil {
		return *p
	}
	return nil
}

// fail notes the first reason why the database cannot go on.
func (b *Bucket) fail(err error) {
	if !b.failed.CompareAndSwap(nil, &err) {
		return
	}
	b.log.Error("bucket failed", slog.Any("err", err))
	if b.cfg.OnFail != nil {
		b.cfg.OnFail(err)
	}
}

// state tells whether requests can be served.
func (b *Bucket) state() error {
	if p := b.failed.Load(); p != nil {
		return wire.E("meta", wire.KindUnavailable, b.id(), *p)
	}
	if b.closed.Load() {
		return wire.Errorf("meta", wire.KindUnavailable, b.id(), "closed")
	}
	return nil
}

func (b *Bucket) id() string { return "bucket " + strconv.Itoa(int(b.cfg.Bucket)) }

// apply commits a batch. With Sync it is visible at once and durable after batch.SyncWait; an error has failed the
// bucket.
func (b *Bucket) apply(batch *pebble.Batch, o *pebble.WriteOptions) error {
	if err := b.state(); err != nil {
		return err
	}
	err := b.guard(func() error {
		if o.Sync {
			return b.db.ApplyNoSyncWait(batch, o)
		}
		return b.db.Apply(batch, o)
	})
	if err != nil {
		b.fail(err)
		return wire.E("meta.commit", wire.KindUnavailable, b.id(), err)
	}
	return nil
}

// set writes one record durably.
func (b *Bucket) set(k key, v []byte) error {
	batch := b.db.NewBatch()
	defer func() { _ = batch.Close() }()
	if err := batch.Set(k, v, nil); err != nil {
		return b.dbError(err)
	}
	return b.applyWait(batch)
}

func (b *Bucket) applyWait(batch *pebble.Batch) error {
	if err := b.apply(batch, pebble.Sync); err != nil {
		return err
	}
	if err := b.durable(batch); err != nil {
		b.fail(err)
		return wire.E("meta.commit", wire.KindUnavailable, b.id(), err)
	}
	return nil
}

// durable waits until a batch is. Files that are lost to this process (a newer owner, an abort) report success to
// Pebble, which would panic in places where nothing can stop it, and tell the truth by Err (logfs.PretendAfterLoss).
func (b *Bucket) durable(batch *pebble.Batch) error {
	if err := batch.SyncWait(); err != nil {
		return err
	}
	if files, ok := b.cfg.FS.(interface{ Err() error }); ok {
		return files.Err()
	}
	return nil
}

// sequence gives numbers that are never given twice: a durable high-water mark is kept above all that were.
type sequence struct {
	b     *Bucket
	name  string
	limit uint64

	mu       sync.Mutex // held while the mark is written: once in counterChunk numbers
	next     uint64
	reserved uint64 // numbers below may be given
}

func (s *sequence) take() (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next >= s.limit {
		return 0, wire.Errorf("meta.number", wire.KindNoSpace, s.b.id(), "all numbers for %s are used up", s.name)
	}
	if s.next == s.reserved {
		mark := s.reserved + counterChunk
		if err := s.b.set(systemKey(s.name), appendUvarint([]byte{recordVersion}, mark)); err != nil {
			return 0, err
		}
		s.reserved = mark
	}
	s.next++
	return s.next - 1, nil
}

// NextNumber gives a number for a stripe or segment of this bucket that was never given before, even across crashes.
// From 1 to wire.MaxStripNumber.
func (b *Bucket) NextNumber() (uint64, error) {
	if err := b.enter(); err != nil {
		return 0, err
	}
	defer b.leave()
	return b.numbers.take()
}

// newIno gives the number of a new inode.
func (b *Bucket) newIno() (wire.Ino, error) {
	seq, err := b.inos.take()
	return wire.MakeIno(b.cfg.Bucket, seq), err
}

// Stat fills all but State and Leases.
func (b *Bucket) Stat() wire.BucketStatResp {
	r := wire.BucketStatResp{Bucket: b.cfg.Bucket, Epoch: b.cfg.Epoch}
	if err := b.Err(); err != nil {
		r.Error = err.Error()
	}
	b.mu.Lock()
	r.Inodes, r.DataBytes = uint64(max(b.sum.inodes, 0)), uint64(max(b.sum.blocks, 0))*wire.BlockSize
	r.Stripes, r.Segments = uint64(max(b.sum.stripes, 0)), uint64(max(b.sum.segments, 0))
	r.Orphans = uint64(len(b.orphans))
	r.OpenTxns = uint64(len(b.prepared) + b.coord.Open())
	b.mu.Unlock()
	if b.enter() == nil {
		r.TableBytes = b.db.Metrics().DiskSpaceUsage()
		b.leave()
	}
	return r
}

// Orphans lists the inodes without a name, for the server to check after all sessions have reclaimed.
func (b *Bucket) Orphans() []wire.Ino {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]wire.Ino, 0, len(b.orphans))
	for ino := range b.orphans {
		out = append(out, ino)
	}
	return out
}

// RecordedSessions lists the sessions that have reply records, for the server to drop those that are dead.
func (b *Bucket) RecordedSessions() []wire.SessionID {
	b.replies.mu.Lock()
	defer b.replies.mu.Unlock()
	out := make([]wire.SessionID, 0, len(b.replies.sessions))
	for s := range b.replies.sessions {
		out = append(out, s)
	}
	return out
}

func (b *Bucket) wake() {
	select {
	case b.kick <- struct{}{}:
	default:
	}
}

func (b *Bucket) crash(point string) {
	if b.cfg.Crash != nil {
		b.cfg.Crash(point)
	}
}
