package store

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/drive/internal/index"
	"github.com/crakefs/crake/wire"
)

// The limits of the scrub.
const (
	// scrubPass is how long one pass takes by default, and minScrubRate, in bytes a second, the least rate: a full drive of 16 TiB is
	// read at 28 MB/s, a hundredth of what it can do. Weekly is at the frequent end of what is usual (ZFS and md on Debian: monthly),
	// because what a scrub finds after the second copy is gone comes too late.
	scrubPass    = 7 * 24 * time.Hour
	minScrubRate = 1 << 20
	// scrubEvery is the least time from the beginning of one pass to that of the next: nobody gains from reading a few strips all the time.
	scrubEvery = time.Hour
	// scrubDelay is when the first pass begins: a process that has just started has better to do.
	scrubDelay = time.Minute
	// scrubBatch is how many ids are looked up under one hold of the lock.
	scrubBatch = 128
)

// scrub reads all strips and segments of the drive again and again and compares them with their checksums, at a low rate and after
// everybody else (sched.Scrub), so that what has rotted is found while it can still be rebuilt.
//
// It reads what is in the index, up to the acknowledged length: nothing that an operation under way writes, or that a crash may
// have left in doubt. What does not match is reported with an event and left as it is: readers verify blocks themselves, and
// may need those that are sound. What cannot be read is an error of the device, and counts for its health.
//
// The position is not kept across restarts: a pass begins at an id by chance, so that drives that restart often are read all over too.
type scrub struct {
	done   atomic.Uint64 // bytes of the pass under way
	total  atomic.Uint64
	passes atomic.Uint64
	pacer  pacer
	delay  time.Duration // set before Run, for tests: 0 is scrubDelay, and then scrubEvery
}

// runScrub makes one pass after the other until ctx ends.
func (s *Store) runScrub(ctx context.Context) {
	if s.cfg.ScrubRate < 0 {
		return
	}
	delay, every := s.scrub.delay, s.scrub.delay
	if delay == 0 {
		delay, every = scrubDelay, scrubEvery
	}
	rng := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	if !sleep(ctx, delay) {
		return
	}
	for {
		next := time.Now().Add(every)
		s.mu.RLock()
		first, ok := s.idx.Sample(rng)
		s.mu.RUnlock()
		if ok && s.scrubAll(ctx, first) {
			s.scrub.passes.Add(1)
		}
		if !sleep(ctx, time.Until(next)) {
			return
		}
	}
}

// scrubAll makes one pass: from an id to the end, and from the beginning to it. false: ctx ended.
func (s *Store) scrubAll(ctx context.Context, first wire.StripID) bool {
	s.scrub.done.Store(0)
	c := s.newChecker(&s.scrub.pacer, s.scrubRate)
	return s.scrubRange(ctx, c, before(first), wire.StripID{}) && s.scrubRange(ctx, c, wire.StripID{}, first)
}

// scrubItem is one strip or segment to be read.
type scrubItem struct {
	id    wire.StripID
	bytes uint64 // allocated
}

// scrubRange checks what has an id above after and below end (zero: to the last). false: ctx ended.
func (s *Store) scrubRange(ctx context.Context, c *checker, after, end wire.StripID) bool {
	items := make([]scrubItem, 0, scrubBatch)
	for {
		items = items[:0]
		s.mu.RLock()
		s.idx.Ascend(after, func(st index.Strip) bool {
			if !end.IsZero() && !st.ID.Less(end) {
				return false
			}
			bytes := st.LenBytes()
			if st.Segment != nil {
				bytes = st.Segment.AllocatedBytes()
			}
			items = append(items, scrubItem{st.ID, bytes})
			return len(items) < scrubBatch
		})
		s.scrub.total.Store((s.sb.DataBlocks() - s.alloc.FreeBlocks()) * format.BlockSize)
		s.mu.RUnlock()
		for _, it := range items {
			v, err := c.check(ctx, it.id)
			if err == nil && v == corrupt {
				err = s.reportCorrupt(ctx, it.id, "found by the scrub")
			}
			if err != nil {
				return false
			}
			s.scrub.done.Add(it.bytes)
			after = it.id
		}
		if len(items) == 0 {
			return true
		}
	}
}

// scrubRate gives the rate in bytes a second.
func (s *Store) scrubRate() int {
	if s.cfg.ScrubRate > 0 {
		return s.cfg.ScrubRate
	}
	return max(minScrubRate, int(s.scrub.total.Load()/uint64(scrubPass/time.Second)))
}

// corrupted are the strips and segments that were found not to match and are still there. Each is counted once, however often it is
// read; beyond maxCorrupted they are not told apart.
type corrupted struct {
	count atomic.Uint64

	mu  sync.Mutex
	ids map[wire.StripID]struct{}
}

// maxCorrupted bounds what is remembered: a drive with more is to be replaced.
const maxCorrupted = 4096

// found notes what a check said.
func (c *corrupted) found(id wire.StripID, v verdict) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, known := c.ids[id]
	switch {
	case v == corrupt && !known:
		c.count.Add(1)
		if c.ids == nil {
			c.ids = map[wire.StripID]struct{}{}
		}
		if len(c.ids) < maxCorrupted {
			c.ids[id] = struct{}{}
		}
	case known && (v == sound || v == absent):
		delete(c.ids, id)
	}
}

// reportCorrupt tells of what does not match. Events of a type are limited, but each of these names what must be healed: so it
// waits until the event may leave. Errors: of ctx.
func (s *Store) reportCorrupt(ctx context.Context, id wire.StripID, how string) error {
	for !s.events.admit(eventCorrupt) {
		if !sleep(ctx, s.events.each()/4) {
			return ctx.Err()
		}
	}
	s.tell(wire.SeverityWarning, eventCorrupt, id.String()+": "+how)
	return nil
}

const eventCorrupt = "strip.corrupt"

// background starts what runs besides journal and checkpoints; the function that it gives waits for its end after ctx's.
func (s *Store) background(ctx context.Context) (wait func()) {
	var tasks sync.WaitGroup
	tasks.Go(func() { s.runScrub(ctx) })
	tasks.Go(func() { s.runDiscards(ctx) })
	return tasks.Wait
}

// fillStat adds the state of the background work. Preconditions: mu is held for reading.
func (s *Store) fillStat(st *wire.DriveStatResp) {
	st.Corrupt = s.corrupted.count.Load()
	st.ScrubTotal, st.ScrubPasses = s.scrub.total.Load(), s.scrub.passes.Load()
	st.ScrubDone = min(s.scrub.done.Load(), st.ScrubTotal)
	st.DiscardBytes = s.discards.bytes.Load()
	st.IndexBytes = s.idx.MemoryBytes() + index.MemoryBytes(s.sb.DataBlocks())
	if f := s.discards.freed; f != nil {
		st.IndexBytes += f.MemoryBytes()
	}
}
