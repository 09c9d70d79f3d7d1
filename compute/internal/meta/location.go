package meta

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"github.com/crakefs/crake/wire"
)

// Locations: every stripe and segment that extents point to has a record with its number of live blocks. The record of a
// stripe goes with its last live block, in the same batch. A segment may still take appends, and others may have
// appended to it already and not yet committed; so a segment without live blocks is only marked, and goes when it can no
// longer get any: see segments.

// locState is what a tx changes about one location.
type locState struct {
	number uint64
	delta  int64          // live blocks
	fresh  *wire.Location // written by this operation: there may be no record yet
	owners []ownerAt
}

type ownerAt struct {
	block uint32
	owner owner
}

func (t *tx) loc(number uint64) *locState {
	for i := range t.locs {
		if t.locs[i].number == number {
			return &t.locs[i]
		}
	}
	t.locs = append(t.locs, locState{number: number})
	return &t.locs[len(t.locs)-1]
}

// use notes that an extent now points to n blocks of a location that this operation has written.
func (t *tx) use(loc *wire.Location, block uint32, o owner) {
	s := t.loc(loc.ID.Number())
	s.fresh = loc
	s.delta += int64(o.blocks)
	s.owners = append(s.owners, ownerAt{block, o})
	t.delta.blocks += int64(o.blocks)
}

// drop notes that n blocks of a location are no longer used.
func (t *tx) drop(number, n uint64) {
	t.loc(number).delta -= int64(n)
	t.delta.blocks -= int64(n)
}

// settleLocations locks the locations that changed and puts their new records into the batch.
func (t *tx) settleLocations() (*held, error) {
	if len(t.locs) == 0 {
		return nil, nil
	}
	wants := make([]lockWant, len(t.locs))
	for i := range t.locs {
		wants[i] = lockWant{lockID{spaceLoc, t.locs[i].number}, true}
	}
	// Held by others for the time of a commit in memory, so this wait is short.
	h, err := t.b.locks.acquire(context.Background(), DefaultLockWait, wants...)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(t.locs, func(a, b locState) int { return cmp.Compare(a.number, b.number) })
	for i := range t.locs {
		if err := t.settleLocation(&t.locs[i]); err != nil {
			h.release(nil)
			return nil, err
		}
	}
	return h, nil
}

func (t *tx) settleLocation(s *locState) error {
	l, err := t.b.readLocation(s.number)
	if err != nil {
		return err
	}
	isNew := l == nil
	if isNew {
		if s.fresh == nil {
			return wire.Errorf("meta.extent", wire.KindCorrupt, "", "no record of location %d", s.number)
		}
		l = &location{loc: *s.fresh}
	}
	before := l.live
	if l.live = uint64(int64(before) + s.delta); int64(l.live) < 0 {
		return wire.Errorf("meta.extent", wire.KindCorrupt, l.loc.ID.String(), "%d live blocks, %d dropped", before, -s.delta)
	}
	for _, o := range s.owners {
		if err := t.set(ownerKey(s.number, o.block), o.owner.append(nil)); err != nil {
			return err
		}
	}
	segment := l.loc.Kind == wire.LocSegment
	switch {
	case l.live == 0 && !segment:
		return t.forget(l, !isNew)
	case isNew && segment:
		t.delta.segments++
	case isNew:
		t.delta.stripes++
	}
	if segment && l.live == 0 {
		number := s.number
		t.onApplied = append(t.onApplied, func() { t.b.segments.empty(number) })
		t.onDurable = append(t.onDurable, func() {
			if len(t.b.segments.free()) > 0 {
				t.b.wake()
			}
		})
		if err := t.set(zeroKey(number), appendFlagRecord(nil)); err != nil {
			return err
		}
	} else if segment && before == 0 && !isNew {
		number := s.number
		t.onApplied = append(t.onApplied, func() { t.b.segments.used(number) })
		if err := t.del(zeroKey(number)); err != nil {
			return err
		}
	}
	return t.set(locKey(s.number), l.append(nil))
}

// forget removes the record of a location without live blocks; its strips are deleted once that is durable.
func (t *tx) forget(l *location, recorded bool) error {
	number := l.loc.ID.Number()
	if recorded {
		if l.loc.Kind == wire.LocSegment {
			t.delta.segments--
		} else {
			t.delta.stripes--
		}
	}
	t.onDurable = append(t.onDurable, func() { t.b.cfg.Data.Delete(l.loc) })
	if err := t.del(locKey(number)); err != nil {
		return err
	}
	if l.loc.Kind == wire.LocStripe {
		return t.del(ownerKey(number, 0)) // a stripe is written for one run
	}
	if err := t.del(zeroKey(number)); err != nil {
		return err
	}
	prefix := newKey(tagOwner).u64(number)
	if err := t.batch.DeleteRange(prefix, prefix.after(), nil); err != nil {
		return t.b.dbError(err)
	}
	return nil
}

func (b *Bucket) readLocation(number uint64) (*location, error) {
	v, closer, ok, err := b.get(locKey(number))
	if err != nil || !ok {
		return nil, err
	}
	l, err := decodeLocation(v)
	_ = closer.Close()
	if err == nil && l.loc.ID.Number() != number {
		err = wire.Errorf("meta.decode", wire.KindCorrupt, l.loc.ID.String(), "found at number %d", number)
	}
	return l, err
}

// segments knows the segments without live blocks, and when they may go. Segment n can get no extent any more when
//
//   - a later Append has returned a higher number (the store never goes back), or n is of an earlier owner, and
//   - every write that had begun before it became empty has ended: such a write may have appended to n and be about to
//     commit its extents.
type segments struct {
	mu      sync.Mutex
	clock   uint64            // counts writes begun
	writing map[uint64]int    // writes under way, by the clock when they began
	newest  uint64            // highest segment number that an Append has returned
	zero    map[uint64]uint64 // segments without live blocks: clock when they became so
}

func (s *segments) init() {
	s.writing = map[uint64]int{}
	s.zero = map[uint64]uint64{}
}

// begin notes a write that may append; end follows.
func (s *segments) begin() (token uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clock++
	s.writing[s.clock] = 1
	return s.clock
}

// end reports whether there are empty segments that might go now.
func (s *segments) end(token uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.writing, token)
	return s.anyFree()
}

func (s *segments) appended(number uint64) {
	s.mu.Lock()
	s.newest = max(s.newest, number)
	s.mu.Unlock()
}

func (s *segments) empty(number uint64) {
	s.mu.Lock()
	s.zero[number] = s.clock
	s.mu.Unlock()
}

func (s *segments) used(number uint64) {
	s.mu.Lock()
	delete(s.zero, number)
	s.mu.Unlock()
}

func (s *segments) anyFree() bool {
	for n, at := range s.zero {
		if s.isFree(n, at) {
			return true
		}
	}
	return false
}

func (s *segments) isFree(number, at uint64) bool {
	if number >= s.newest {
		return false
	}
	for began := range s.writing {
		if began <= at {
			return false
		}
	}
	return true
}

// free lists the segments that can get no extent any more.
func (s *segments) free() []uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []uint64
	for n, at := range s.zero {
		if s.isFree(n, at) {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}

func (b *Bucket) loadZeroSegments() error {
	// Whatever was open belongs to an earlier owner: nothing is appended to it any more.
	b.segments.newest = b.firstNumber
	return b.scan(newKey(tagZero), nil, func(k, _ []byte) (bool, error) {
		f, rest, ok := splitKey(k, 1)
		if !ok || len(rest) != 0 {
			return false, corruptKey(k)
		}
		b.segments.empty(f[0])
		return true, nil
	})
}

// freeSegments forgets the empty segments that can get no extent any more.
func (b *Bucket) freeSegments(ctx context.Context) error {
	for _, number := range b.segments.free() {
		h, err := b.locks.acquire(ctx, b.cfg.LockWait, lockWant{lockID{spaceLoc, number}, true})
		if err != nil {
			return err
		}
		err = b.freeSegment(number, h)
		h.release(nil)
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *Bucket) freeSegment(number uint64, h *held) error {
	l, err := b.readLocation(number)
	if err != nil {
		return err
	}
	if l == nil || l.live != 0 {
		b.segments.used(number)
		return nil
	}
	t := b.newTx(b.cfg.Now())
	defer t.close()
	if err := t.forget(l, true); err != nil {
		return err
	}
	t.onApplied = append(t.onApplied, func() { b.segments.used(number) })
	return t.commit(h, nil, nil)
}

// HasLocation reports whether a strip or segment (any position) of class ClassData or ClassSegment is in use: extents
// point to it, or it has a number that was given out since Open. What it denies is a leak, and may be deleted.
func (b *Bucket) HasLocation(id wire.StripID) (bool, error) {
	if err := b.enter(); err != nil {
		return false, err
	}
	defer b.leave()
	if id.Bucket() != b.cfg.Bucket {
		return false, wire.E("meta.haslocation", wire.KindMoved, id.String(), nil)
	}
	if id.Number() >= b.firstNumber {
		return true, nil
	}
	l, err := b.readLocation(id.Number())
	if err != nil || l == nil {
		return false, err
	}
	return l.loc.ID.WithPos(0) == id.WithPos(0), nil
}

// Locations calls f for every stripe and segment that extents point to, in order of number, until f returns false.
// liveBlocks counts the blocks that extents use.
func (b *Bucket) Locations(ctx context.Context, f func(loc wire.Location, liveBlocks uint64) bool) error {
	if err := b.enter(); err != nil {
		return err
	}
	defer b.leave()
	return b.scan(newKey(tagLoc), nil, func(_, v []byte) (bool, error) {
		if ctx.Err() != nil {
			return false, ctxError("meta.locations", ctx)
		}
		l, err := decodeLocation(v)
		if err != nil {
			return false, err
		}
		return f(l.loc, l.live), nil
	})
}
