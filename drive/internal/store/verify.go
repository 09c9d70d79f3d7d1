package store

import (
	"context"
	"sync"
	"time"

	"github.com/crakefs/crake/drive/internal/image"
	"github.com/crakefs/crake/drive/internal/index"
	"github.com/crakefs/crake/wire"
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
// rate, one Verify at a time, and may look at fewer than asked for. Errors: KindInterrupted.
func (s *Store) Verify(ctx context.Context, bucket wire.BucketID, class wire.Class, after wire.StripID, limit int) (bad []wire.StripID, last wire.StripID, err error) {
	if limit <= 0 || limit > maxVerifyStrips {
		limit = maxVerifyStrips
	}
	s.verify.mu.Lock()
	defer s.verify.mu.Unlock()
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
	for _, id := range ids {
		n, ok := s.verifyOne(id)
		if !ok {
			bad = append(bad, id)
			s.event(wire.SeverityWarning, "strip.corrupt", id.String()+": found by verification")
		}
		if err := s.verify.pace(ctx, n, s.cfg.VerifyRate); err != nil {
			return nil, last, wire.E("drive.verify", wire.KindInterrupted, id.String(), err)
		}
		last = id
	}
	if !more {
		last = wire.StripID{}
	}
	return bad, last, nil
}

// verifyOne checks one strip or segment, as long as it was when this began, and tells the bytes read.
func (s *Store) verifyOne(id wire.StripID) (n uint64, ok bool) {
	s.mu.RLock()
	st, found := s.idx.Get(id)
	if !found {
		s.mu.RUnlock()
		return 0, true // deleted meanwhile
	}
	w := s.newWindow(s.idx.Runs(id), st.LenBytes())
	p := s.enterRead()
	s.mu.RUnlock()
	defer s.leaveRead(p)
	var err error
	if st.Segment != nil {
		var end uint64
		end, err = image.ScanSegment(w, id, 0)
		ok = end == w.End
	} else {
		var sum uint64
		sum, err = image.StripSum(w)
		ok = sum == st.Sum
	}
	if err != nil {
		s.ioFailed("verification of "+id.String(), err)
		return w.End, false
	}
	return w.End, ok
}

// pacer bounds a rate.
type pacer struct {
	mu sync.Mutex // held by who is paced
}

// pace waits as long as n bytes take.
func (p *pacer) pace(ctx context.Context, n uint64, bytesPerSecond int) error {
	t := time.NewTimer(time.Duration(float64(n) / float64(bytesPerSecond) * float64(time.Second)))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// eventLimiter lets one event of a type through in each eventInterval: a failing device fails thousands of times a second.
type eventLimiter struct {
	mu   sync.Mutex
	last map[string]time.Time
}

func (l *eventLimiter) admit(kind string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if last, ok := l.last[kind]; ok && now.Sub(last) < eventInterval {
		return false
	}
	if l.last == nil {
		l.last = map[string]time.Time{}
	}
	l.last[kind] = now
	return true
}
