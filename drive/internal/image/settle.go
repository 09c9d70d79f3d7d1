package image

import (
	"sync"
	"time"

	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/drive/internal/index"
	"github.com/crakefs/crake/wire"
)

// Settlement is what became of the operations that were under way: what opening does, and drive check shows.
type Settlement struct {
	Drop     []wire.StripID // puts whose data is not theirs: they never were
	Segments []SegmentEnd   // all open segments, in no order
}

// Adopt gives the open segments of the index the lengths that were found.
func (st *Settlement) Adopt() {
	for _, e := range st.Segments {
		e.Segment.Len, e.Segment.Damaged = e.Len, e.Err != nil
	}
}

// SegmentEnd is the end of an open segment.
type SegmentEnd struct {
	Segment *index.Segment
	Len     uint64       // bytes of sound records
	Erase   []format.Run // single blocks beyond that look like records of the segment, and must never count
	Err     error        // KindIO: what lies from Len on could not be read, so neither erased; it takes no append
}

// Settle finds out what became of the operations that were under way.
//
// A put above the low water whose data does not match its checksum was not acknowledged: its record and its data were
// written at once. One whose data cannot be read, also after some tries, is dropped too: were it kept, a repeat of the put would be answered as done,
// and perhaps its data never came. A reader of what was acknowledged after all finds it missing instead of unreadable, and heals it
// either way.
//
// Errors: what read gives but KindIO, which belongs to the strip or segment.
func (s *State) Settle(read ReadRun) (*Settlement, error) {
	st := &Settlement{}
	read = patient(read)
	var open []*index.Segment
	s.Index.Segments(func(seg *index.Segment) {
		if !seg.Sealed {
			open = append(open, seg)
		}
	})
	st.Segments = make([]SegmentEnd, len(open))
	bad := make([]bool, len(s.Suspects))
	err := eachInParallel(len(s.Suspects)+len(open), func(i int, w *Window) (err error) {
		if i < len(s.Suspects) {
			bad[i], err = s.isBad(w, read, s.Suspects[i].ID)
			return err
		}
		i -= len(s.Suspects)
		st.Segments[i], err = findEnd(w, read, open[i])
		return err
	})
	for i, b := range bad {
		if b {
			st.Drop = append(st.Drop, s.Suspects[i].ID)
		}
	}
	return st, err
}

// patient reads again what could not be read, a few times: what Settle cannot read is given up for good.
func patient(read ReadRun) ReadRun {
	return func(r format.Run, p []byte) error {
		err := read(r, p)
		for delay := firstRetry; delay <= lastRetry && wire.KindOf(err) == wire.KindIO; delay *= 10 {
			time.Sleep(delay)
			err = read(r, p)
		}
		return err
	}
}

// isBad says whether a strip's data is not what its record says.
func (s *State) isBad(w *Window, read ReadRun, id wire.StripID) (bool, error) {
	strip, ok := s.Index.Get(id)
	if !ok || strip.Segment != nil {
		return false, nil
	}
	w.reset(read, s.Index.Runs(id), strip.LenBytes())
	sum, err := StripSum(w)
	if err != nil && wire.KindOf(err) != wire.KindIO {
		return false, err
	}
	return err != nil || sum != strip.Sum, nil
}

// findEnd finds the end of an open segment.
func findEnd(w *Window, read ReadRun, seg *index.Segment) (SegmentEnd, error) {
	w.reset(read, seg.Runs, seg.AllocatedBytes())
	e := SegmentEnd{Segment: seg}
	e.Len, e.Err = ScanSegment(w, seg.ID, seg.Len)
	for off := e.Len; off < w.End && e.Err == nil; off += format.BlockSize {
		var b []byte
		if b, e.Err = w.Get(off, format.BlockSize); e.Err == nil && claimsPlace(b, seg.ID, off) {
			e.Erase = append(e.Erase, index.Part(seg.Runs, off/format.BlockSize, 1, nil)[0])
		}
	}
	if e.Err != nil && wire.KindOf(e.Err) != wire.KindIO {
		return e, e.Err
	}
	return e, nil
}

// eachInParallel calls f for 0 to n-1, some at once, each with a window of its own. It gives the first error.
func eachInParallel(n int, f func(i int, w *Window) error) error {
	var mu sync.Mutex
	var first error
	next := 0
	take := func() (int, bool) {
		mu.Lock()
		defer mu.Unlock()
		next++
		return next - 1, next <= n && first == nil
	}
	var wg sync.WaitGroup
	for range min(settleReads, n) {
		wg.Go(func() {
			w := &Window{buf: blockio.AlignedBytes(windowBytes)}
			for i, ok := take(); ok; i, ok = take() {
				if err := f(i, w); err != nil {
					mu.Lock()
					if first == nil {
						first = err
					}
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return first
}
