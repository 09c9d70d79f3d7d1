// Package store keeps strips and segments on one device: it is the drive without its network. Read store.go (the state
// and how operations exclude each other), put.go (the pattern of every mutation), append.go, read.go, then recover.go and
// checkpoint.go; journal.go and flush.go are the group commit. ../../FORMAT.md has the layout, ../../doc.go the whole.
package store

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/drive/internal/health"
	"github.com/crakefs/crake/drive/internal/index"
	"github.com/crakefs/crake/drive/internal/sched"
	"github.com/crakefs/crake/wire"
)

// Config says what to open and whom to tell.
type Config struct {
	Cluster wire.ClusterID // the device must be of it; zero: any
	Drive   wire.DriveID   // the device must be this one; zero: any
	Arena   *wire.Arena    // data of reads lands here
	Log     *slog.Logger   // nil: the default
	// OnEvent is told of what people should know: a severity of wire, a type such as "strip.corrupt", a text. Called
	// from the goroutine of the operation; must not block. nil: nobody.
	OnEvent func(severity uint8, kind, text string)
	// VerifyRate bounds Verify, in bytes a second; 0 is DefaultVerifyRate.
	VerifyRate int
	// ScrubRate is what the drive's own scrub reads, in bytes a second; 0: as much as one pass a week takes, and at least 1 MiB;
	// negative: there is none.
	ScrubRate int
	// NoDiscard keeps the drive from telling the device what is free.
	NoDiscard bool
	// Health is told of every IO; nil: nobody is.
	Health *health.Monitor
}

// Store is an open device. All methods but Run are safe for concurrent use.
//
// Lock order: mu, then journal.mu, then flusher.mu. No IO under any of them.
type Store struct {
	// Immutable.
	dev     blockio.Device
	opened  blockio.Device // the device itself; dev may tell the monitor besides
	async   blockio.Async  // likewise, if it does IO that nobody waits for, else nil
	fast    bool           // it is in memory
	fua     bool           // it makes single writes durable without a flush
	sb      *format.Superblock
	cfg     Config
	log     *slog.Logger
	journal *journal
	flusher *flusher
	gate    *sched.Sched              // gives turns at the device
	slots   [priorities]chan struct{} // a slot for each mutation
	reserve uint64                    // blocks that file data must leave

	// counters since the start.
	reads, readBytes, writes, writeBytes, errors atomic.Uint64

	scrub     scrub
	corrupted corrupted
	discards  discards

	events  eventLimiter
	verify  verifies
	checkMu sync.Mutex // held by a checkpoint; guards area and checkSeq
	area    int        // of the newest checkpoint
	seq     uint64     // of the newest checkpoint

	mu      sync.RWMutex
	idx     *index.Index // what is durable
	alloc   *index.Allocator
	seen    map[wire.BucketID]wire.Epoch // newest epoch of requests, where newer than the index's
	fenced  map[wire.BucketID]wire.Epoch // epochs of which a Fence is durable and has waited, since the start
	busy    map[wire.StripID]*op         // ids that a mutation works on
	ops     map[*op]struct{}             // all mutations under way
	growing int64                        // record bytes that mutations under way may add
	oldest  *period                      // of reads; see reclaim
	current *period
	closing bool  // no new mutations
	failed  error // why no new mutations are taken until a restart, or nil
}

// newStore makes a store of a device whose state is not read yet.
func newStore(dev blockio.Device, sb *format.Superblock, cfg Config) *Store {
	s := &Store{
		sb: sb, cfg: cfg, log: cfg.Log, gate: sched.New(sched.DefaultLimits()),
		reserve: ReserveBlocks(sb),
		seen:    map[wire.BucketID]wire.Epoch{}, fenced: map[wire.BucketID]wire.Epoch{},
		busy: map[wire.StripID]*op{}, ops: map[*op]struct{}{}, current: &period{},
	}
	s.oldest = s.current
	s.async, _ = dev.(blockio.Async)
	s.opened, s.dev = dev, watch(dev, cfg.Health)
	s.fast, s.fua = dev.Info().Fast, dev.Info().FUA
	s.flusher, s.journal = &flusher{dev: s.dev}, newJournal(s.dev, sb)
	if _, ok := dev.(blockio.Durable); ok && dev.Info().NeedsFlush {
		s.flusher.durable = s.dev.(blockio.Durable)
	}
	s.journal.flusher = s.flusher
	s.slots = [priorities]chan struct{}{
		wire.PriorityClient: make(chan struct{}, maxMutations), wire.PriorityRebuild: make(chan struct{}, maxBackgroundMutations),
		wire.PriorityScrub: make(chan struct{}, maxBackgroundMutations),
	}
	return s
}

// op is a mutation under way.
type op struct {
	ids    []wire.StripID
	one    [1]wire.StripID // memory of ids
	epoch  wire.Epoch
	origin sched.Origin
	alone  bool          // what it writes next is made durable at once: see isAlone
	growth int64         // what of Store.growing is its
	done   chan struct{} // closed at its end; nil until someone waits. Guarded by Store.mu.
}

func (o *op) touches(b wire.BucketID) bool {
	for _, id := range o.ids {
		if id.Bucket() == b {
			return true
		}
	}
	return false
}

// wait gives what is closed at the op's end. Preconditions: Store.mu is held.
func (o *op) wait() <-chan struct{} {
	if o.done == nil {
		o.done = make(chan struct{})
	}
	return o.done
}

// begin registers a mutation of ids at an epoch and returns with mu held, once no other mutation works on any of them.
// Errors (mu is free then): KindStaleEpoch, KindShutdown, KindIO after a failure, KindInterrupted.
//
// A delete of several ids in chunks takes them in ascending order, and an op takes all of its ids at once, so nobody
// waits in a circle.
func (s *Store) begin(ctx context.Context, name string, epoch wire.Epoch, ids ...wire.StripID) (*op, error) {
	o := &op{epoch: epoch, origin: sched.OriginOf(ctx)}
	o.ids = append(o.one[:0], ids...)
	for {
		s.mu.Lock()
		if err := s.admit(name, epoch, ids); err != nil {
			s.mu.Unlock()
			return nil, err
		}
		other := s.busyWith(ids)
		if other == nil {
			break
		}
		done := other.wait()
		s.mu.Unlock()
		select {
		case <-done:
		case <-ctx.Done():
			return nil, wire.E(name, wire.KindInterrupted, ids[0].String(), ctx.Err())
		}
	}
	for _, id := range ids {
		s.busy[id] = o
		if b := id.Bucket(); epoch > s.epoch(b) {
			s.seen[b] = epoch
		}
	}
	s.ops[o] = struct{}{}
	return o, nil
}

func (s *Store) busyWith(ids []wire.StripID) *op {
	for _, id := range ids {
		if o := s.busy[id]; o != nil {
			return o
		}
	}
	return nil
}

// admit says whether a mutation may begin. Preconditions: mu is held.
func (s *Store) admit(name string, epoch wire.Epoch, ids []wire.StripID) error {
	if s.failed != nil {
		return wire.E(name, wire.KindIO, "", s.failed)
	}
	if s.closing {
		return wire.E(name, wire.KindShutdown, "", nil)
	}
	for _, id := range ids {
		if newest := s.epoch(id.Bucket()); epoch < newest {
			return wire.Errorf(name, wire.KindStaleEpoch, id.String(), "epoch %d, the newest is %d", epoch, newest)
		}
	}
	return nil
}

// epoch gives the newest epoch known of a bucket. Preconditions: mu is held.
func (s *Store) epoch(b wire.BucketID) wire.Epoch { return max(s.seen[b], s.idx.Epoch(b)) }

// end is the end of a mutation. Preconditions: mu is held.
func (s *Store) end(o *op) {
	for _, id := range o.ids {
		delete(s.busy, id)
	}
	delete(s.ops, o)
	s.growing -= o.growth
	if o.done != nil {
		close(o.done)
	}
}

// endUnlock ends a mutation and frees mu.
func (s *Store) endUnlock(o *op) {
	s.end(o)
	s.mu.Unlock()
}

// takeSlot waits for a slot for a mutation, and gives it; giveSlot must follow. Each priority has its own, so that a client never
// waits for a rebuild.
func (s *Store) takeSlot(ctx context.Context, name string) (chan struct{}, error) {
	slots := s.slots[min(sched.OriginOf(ctx).Priority, priorities-1)]
	select {
	case slots <- struct{}{}:
		return slots, nil
	default:
	}
	select {
	case slots <- struct{}{}:
		return slots, nil
	case <-ctx.Done():
		return nil, wire.E(name, wire.KindInterrupted, "", ctx.Err())
	}
}

func giveSlot(slots chan struct{}) { <-slots }

// fail ends all mutations until a restart, whose replay finds out what is really on the device. A failed flush is the
// usual reason: the kernel may have dropped what it could not write, and a later flush would succeed without it.
func (s *Store) fail(err error) {
	s.mu.Lock()
	first := s.failed == nil
	if first {
		s.failed = err
	}
	s.mu.Unlock()
	if first {
		s.event(wire.SeverityError, "drive.stopped", "no more writes are taken until a restart: "+err.Error())
	}
}

// sync makes durable what was written, if the device needs it.
func (s *Store) sync() error {
	err := s.flusher.sync()
	if err != nil {
		s.ioFailed("flush", err)
		s.fail(err)
	}
	return err
}

// syncUnless is sync for what may be durable already.
func (s *Store) syncUnless(durable bool) error {
	if durable {
		return nil
	}
	return s.sync()
}

// isAlone says that no mutation is under way but one. Then whatever was written before is durable or of no account, and what that
// one writes may be made durable write by write: nobody shares a flush with it.
// Preconditions: mu is held.
func (s *Store) isAlone() bool { return len(s.ops) == 1 }

// ioFailed counts and reports an error of the device.
func (s *Store) ioFailed(what string, err error) {
	s.errors.Add(1)
	s.event(wire.SeverityError, "drive.io", what+": "+err.Error())
}

func (s *Store) event(severity uint8, kind, text string) {
	if s.events.admit(kind) {
		s.tell(severity, kind, text)
	}
}

// tell is event without a limit.
func (s *Store) tell(severity uint8, kind, text string) {
	s.log.Warn("drive event", "drive", s.sb.Drive, "type", kind, "text", text)
	if s.cfg.OnEvent != nil {
		s.cfg.OnEvent(severity, kind, text)
	}
}

// Drive gives the id of the drive.
func (s *Store) Drive() wire.DriveID { return s.sb.Drive }

// Superblock gives the superblock; not to be changed.
func (s *Store) Superblock() *format.Superblock { return s.sb }

// Failed tells why the drive takes no more writes, or nil.
func (s *Store) Failed() error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.failed
}

// Stat gives the drive's state.
func (s *Store) Stat() wire.DriveStatResp {
	info := s.dev.Info()
	st := wire.DriveStatResp{
		Drive: s.sb.Drive, SizeBytes: uint64(s.sb.DataBytes), Engine: info.Engine, EngineReason: info.EngineReason, Flush: info.Flush, Path: info.Path,
		Reads: s.reads.Load(), ReadBytes: s.readBytes.Load(), Writes: s.writes.Load(), WriteBytes: s.writeBytes.Load(),
		Flushes: s.flusher.count.Load(), Errors: s.errors.Load(), Queued: uint32(s.gate.Waiting()),
	}
	s.cfg.Health.Fill(&st)
	s.mu.RLock()
	defer s.mu.RUnlock()
	if free := s.alloc.FreeBlocks(); free > s.reserve {
		st.FreeBytes = (free - s.reserve) * format.BlockSize
	}
	st.Strips = uint64(s.idx.Len())
	s.fillStat(&st)
	return st
}

// Device gives the device.
func (s *Store) Device() blockio.Device { return s.opened }
