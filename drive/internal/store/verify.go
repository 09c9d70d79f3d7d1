package store

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/drive/internal/image"
	"github.com/crakefs/crake/drive/internal/index"
	"github.com/crakefs/crake/drive/internal/sched"
	"github.com/crakefs/crake/wire"
)

// The limits of Verify, with those in limits.go.
const (
	// maxVerifies bounds the Verifies at once, each with a buffer of 256 KiB; others wait.
	maxVerifies = 4
	// minPause is how far who is paced may be ahead: shorter sleeps would only cost wake-ups.
	minPause = 20 * time.Millisecond
)

// stripInfo is what ascend shows.
type stripInfo = index.Strip

// ascend calls f for the strips of a bucket and class above after, in order, until it gives false. f must be short: mu is
// held for reading.
func (s *Store) ascend(bucket wire.BucketID, class wire.Class, after wire.StripID, f func(st *stripInfo) bool) {
	first := wire.MakeStripID(bucket, class, 0, 0, 0, 0)
	if class == 0 {
		return // no strip has it
	}
	if after.Less(first) {
		after = before(first)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	s.idx.Ascend(after, func(st stripInfo) bool {
		if st.ID.Bucket() != bucket || st.ID.Class() != class {
			return false
		}
		return f(&st)
	})
}

// before gives the id just below.
func before(id wire.StripID) wire.StripID {
	if id.Lo == 0 {
		id.Hi--
	}
	id.Lo--
	return id
}

// Verify reads strips and segments of a bucket and class from after on and checks them; see wire.VerifyReq. It reads at a bounded
// rate, shared by all Verifies, and may look at fewer than asked for. bad has what does not match and what cannot be read: both are to
// be rebuilt. Errors: KindInterrupted.
func (s *Store) Verify(ctx context.Context, bucket wire.BucketID, class wire.Class, after wire.StripID, limit int) (bad []wire.StripID, last wire.StripID, err error) {
	const name = "drive.verify"
	if limit <= 0 || limit > maxVerifyStrips {
		limit = maxVerifyStrips
	}
	if err := s.verify.enter(ctx); err != nil {
		return nil, last, wire.E(name, wire.KindInterrupted, "", err)
	}
	defer s.verify.leave()
	var ids []wire.StripID
	more, size := false, uint64(0)
	s.ascend(bucket, class, after, func(st *stripInfo) bool {
		if more = len(ids) == limit || size > verifyBytes; more {
			return false
		}
		ids = append(ids, st.ID)
		size += st.LenBytes()
		return true
	})
	c := s.newChecker(&s.verify.pacer, func() int { return s.cfg.VerifyRate })
	for _, id := range ids {
		v, err := c.check(ctx, id)
		if err != nil {
			return nil, last, wire.E(name, wire.KindInterrupted, id.String(), err)
		}
		if v == corrupt || v == unreadable {
			bad = append(bad, id)
		}
		if v == corrupt {
			s.event(wire.SeverityWarning, eventCorrupt, id.String()+": found by verification")
		}
		last = id
	}
	if !more {
		last = wire.StripID{}
	}
	return bad, last, nil
}

// verifies is the state of the Verifies under way. Zero is ready.
type verifies struct {
	pacer pacer
	mu    sync.Mutex
	slots chan struct{} // one for each Verify under way
}

// enter waits until a Verify may begin; leave must follow. Errors: of ctx.
func (v *verifies) enter(ctx context.Context) error {
	v.mu.Lock()
	if v.slots == nil {
		v.slots = make(chan struct{}, maxVerifies)
	}
	v.mu.Unlock()
	select {
	case v.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (v *verifies) leave() { <-v.slots }

// verdict is what a check of a strip or segment says.
type verdict int

const (
	sound      verdict = iota
	corrupt            // it was read, and does not match its checksums
	unreadable         // the device gives an error
	absent             // deleted, before or meanwhile
)

// checker reads strips and segments through, one after the other, at a rate. Not safe for concurrent use.
type checker struct {
	s     *Store
	pacer *pacer
	rate  func() int // bytes a second
	w     *image.Window

	// What is being checked.
	ctx     context.Context
	id      wire.StripID
	runs    []format.Run
	sum     uint64
	segment *index.Segment
}

func (s *Store) newChecker(p *pacer, rate func() int) *checker {
	c := &checker{s: s, pacer: p, rate: rate}
	c.w = image.NewWindow(c.readRun, nil, 0)
	return c
}

// errAbsent ends a check of what was deleted.
var errAbsent = errors.New("deleted")

// check reads one strip or segment, as long as it is when this begins, and compares it with its checksums. Errors: of ctx.
func (c *checker) check(ctx context.Context, id wire.StripID) (verdict, error) {
	s := c.s
	s.mu.RLock()
	st, found := s.idx.Get(id)
	c.ctx, c.id, c.runs, c.sum, c.segment = ctx, id, s.idx.Runs(id), st.Sum, st.Segment
	length := uint64(0)
	if found {
		length = st.LenBytes()
	}
	s.mu.RUnlock()
	if !found {
		s.corrupted.found(id, absent)
		return absent, nil
	}
	c.w.Reset(c.readRun, c.runs, length)
	var err error
	var ok bool
	if st.Segment != nil {
		var end uint64
		end, err = image.ScanSegment(c.w, id, 0)
		ok = end == length
	} else {
		var sum uint64
		sum, err = image.StripSum(c.w)
		ok = sum == st.Sum
	}
	v := corrupt
	switch {
	case ctx.Err() != nil:
		return sound, ctx.Err()
	case errors.Is(err, errAbsent):
		v = absent
	case err != nil:
		v = unreadable
		s.ioFailed("verification of "+id.String(), err)
	case ok:
		v = sound
	}
	s.corrupted.found(id, v)
	return v, nil
}

// readRun reads a part, once it is due and its turn has come. Only then does it count as a read under way: one of a whole
// segment at a low rate would keep all that is deleted meanwhile from becoming free for minutes. So what is read may be
// gone by now.
func (c *checker) readRun(r format.Run, p []byte) error {
	s := c.s
	if err := c.pacer.pace(c.ctx, len(p), c.rate()); err != nil {
		return err
	}
	t := s.turn(sched.Scrub, 0, len(p))
	defer s.giveTurn(t)
	s.mu.RLock()
	same := c.isSame()
	under := s.enterRead()
	s.mu.RUnlock()
	defer s.leaveRead(under)
	if !same {
		return errAbsent
	}
	return s.dev.ReadAt(p, s.dataOffset(r))
}

// isSame says that what is being checked is still there, in its place: a segment only grows or ends, and then its acknowledged
// bytes stay; a strip may be deleted and put again elsewhere. Preconditions: mu is held for reading.
func (c *checker) isSame() bool {
	st, found := c.s.idx.Get(c.id)
	if !found || st.Segment != c.segment {
		return false
	}
	return st.Segment != nil || st.Sum == c.sum && slices.Equal(c.s.idx.Runs(c.id), c.runs)
}

// pacer bounds a rate, of all who share it together. Zero is ready.
type pacer struct {
	mu  sync.Mutex
	due time.Time // when what was let through so far is due
}

// pace waits until what was let through before is due, and lets n bytes through. Who waits holds nothing. Errors: of ctx.
func (p *pacer) pace(ctx context.Context, n, bytesPerSecond int) error {
	now := time.Now()
	p.mu.Lock()
	if p.due.Before(now) {
		p.due = now
	}
	wait := p.due.Sub(now)
	p.due = p.due.Add(time.Duration(float64(n) / float64(bytesPerSecond) * float64(time.Second)))
	p.mu.Unlock()
	if wait < minPause {
		return ctx.Err()
	}
	if !sleep(ctx, wait) {
		return ctx.Err()
	}
	return nil
}

// eventLimiter lets one event of a type through in each interval: a failing device fails thousands of times a second.
type eventLimiter struct {
	interval time.Duration // set before Run, for tests: 0 is eventInterval
	mu       sync.Mutex
	last     map[string]time.Time
}

func (l *eventLimiter) each() time.Duration {
	if l.interval == 0 {
		return eventInterval
	}
	return l.interval
}

func (l *eventLimiter) admit(kind string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if last, ok := l.last[kind]; ok && now.Sub(last) < l.each() {
		return false
	}
	if l.last == nil {
		l.last = map[string]time.Time{}
	}
	l.last[kind] = now
	return true
}
