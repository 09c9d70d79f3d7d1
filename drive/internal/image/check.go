package image

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/drive/internal/index"
	"github.com/crakefs/crake/wire"
)

// BadData is a strip or segment whose data is not what its checksums say, or could not be read.
type BadData struct {
	ID  wire.StripID
	Off int64 // on the device: where it starts, or of a segment, the first record that is not sound
	Err error // KindCorrupt or KindIO
}

// CheckData reads every strip and segment and verifies its checksums; strips that opening would drop are left out. read
// counts the bytes as it goes on, for who wants to show it. found is called for what is bad, one call at a time.
// Preconditions: st was adopted. Errors: KindInterrupted, and what read gives but KindIO.
func (s *State) CheckData(ctx context.Context, read ReadRun, st *Settlement, bytes *atomic.Uint64, found func(BadData)) error {
	dropped := map[wire.StripID]bool{}
	for _, id := range st.Drop {
		dropped[id] = true
	}
	counted := func(r format.Run, p []byte) error {
		bytes.Add(uint64(len(p)))
		return read(r, p)
	}
	var last wire.StripID
	batch := make([]index.Strip, 0, checkSlice)
	for {
		batch = batch[:0]
		s.Index.Ascend(last, func(st index.Strip) bool {
			batch = append(batch, st)
			last = st.ID
			return len(batch) < cap(batch)
		})
		if len(batch) == 0 {
			return nil
		}
		bad := make([]*BadData, len(batch))
		err := eachInParallel(len(batch), func(i int, w *Window) (err error) {
			if ctx.Err() != nil {
				return wire.E("drive.check", wire.KindInterrupted, "", ctx.Err())
			}
			if strip := &batch[i]; strip.Segment != nil {
				bad[i], err = s.checkSegment(w, counted, strip.Segment)
			} else if !dropped[strip.ID] {
				bad[i], err = s.checkStrip(w, counted, strip)
			}
			return err
		})
		for _, b := range bad {
			if b != nil {
				found(*b)
			}
		}
		if err != nil {
			return err
		}
	}
}

// checkStrip verifies a strip; nil when it is sound.
func (s *State) checkStrip(w *Window, read ReadRun, strip *index.Strip) (*BadData, error) {
	runs := s.Index.Runs(strip.ID)
	w.reset(read, runs, strip.LenBytes())
	sum, err := StripSum(w)
	if err == nil && sum != strip.Sum {
		err = wire.Errorf("drive.check", wire.KindCorrupt, strip.ID.String(), "the data of %d blocks in %s does not match its checksum", strip.Blocks, RunsText(runs))
	}
	return s.judge(strip.ID, runs, 0, err)
}

// checkSegment verifies the chain of records of a segment from its start to its end.
func (s *State) checkSegment(w *Window, read ReadRun, seg *index.Segment) (*BadData, error) {
	end := seg.Len
	w.reset(read, seg.Runs, end)
	at, err := ScanSegment(w, seg.ID, 0)
	if err == nil && at != end {
		err = wire.Errorf("drive.check", wire.KindCorrupt, seg.ID.String(), "the chain of records ends at %d of %d bytes", at, end)
	}
	return s.judge(seg.ID, seg.Runs, at, err)
}

// judge makes a finding of an error at an offset of what lies in runs.
func (s *State) judge(id wire.StripID, runs []format.Run, off uint64, err error) (*BadData, error) {
	switch wire.KindOf(err) {
	case wire.KindNone:
		return nil, nil
	case wire.KindCorrupt, wire.KindIO:
		place := index.Part(runs, off/format.BlockSize, 1, nil)[0]
		return &BadData{ID: id, Off: DataOffset(s.Superblock, place), Err: err}, nil
	}
	return nil, err
}

// RunsText gives runs for people: first block and number of blocks of each, the first few.
func RunsText(runs []format.Run) string {
	const shown = 4
	out := ""
	for i, r := range runs {
		if i == shown {
			return out + fmt.Sprintf(" and %d more runs", len(runs)-shown)
		}
		if i > 0 {
			out += ", "
		}
		out += fmt.Sprintf("blocks %d+%d", r.Start(), r.Blocks())
	}
	return out
}
