package image

import (
	"slices"

	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/drive/internal/index"
	"github.com/crakefs/crake/wire"
)

// State is what a device holds, by its newest sound checkpoint and the journal after it.
type State struct {
	Superblock *format.Superblock
	Area       int // of the checkpoint
	Checkpoint *format.Checkpoint
	Journal    *Journal
	Index      *index.Index
	Alloc      *index.Allocator
	// Suspects are puts whose operation may have been under way, in the order of their ids: see Settle.
	Suspects []Suspect
	// PassedOver says why newer checkpoints, or what should be one, did not serve.
	PassedOver []error
}

// Suspect is a put of a batch above the low water.
type Suspect struct {
	ID  wire.StripID
	Seq uint64 // of its batch
}

// Area is what one of the two checkpoint areas begins with.
type Area struct {
	Header *format.Checkpoint // nil: there is none
	Blank  bool               // nothing was ever written there
	Err    error              // why there is none; nil when it is blank
}

// ReadAreas reads the headers of both checkpoints.
func ReadAreas(dev Reader, sb *format.Superblock) (areas [2]Area) {
	b := blockio.AlignedBytes(format.BlockSize)
	for i := range areas {
		a := &areas[i]
		if a.Err = dev.ReadAt(b, sb.CheckpointOff[i]); a.Err != nil {
			continue
		}
		if a.Header, a.Err = format.DecodeCheckpoint(b, sb); a.Err != nil {
			a.Header = nil
			if a.Blank = !slices.ContainsFunc(b, func(c byte) bool { return c != 0 }); a.Blank {
				a.Err = nil
			}
		}
	}
	return areas
}

// Load reads checkpoint and journal. path is for errors.
//
// When the newest checkpoint is damaged or cannot be read, the older one serves: the journal after it is there as long as no checkpoint
// after the damaged one freed it, and whether it is whole is seen like any damage of the journal (checkEnd), and by the
// damaged one's header, which says how far the journal had come. Errors (with all reasons): KindIO if anything could not be read,
// as another try may read it; else KindCorrupt.
func Load(dev Reader, sb *format.Superblock, path string) (*State, error) {
	areas := ReadAreas(dev, sb)
	var passed []error
	var order []int
	for i, a := range areas {
		if a.Header != nil {
			order = append(order, i)
		} else if a.Err != nil {
			passed = append(passed, a.Err)
		}
	}
	slices.SortFunc(order, func(a, b int) int {
		if areas[a].Header.Seq > areas[b].Header.Seq {
			return -1
		}
		return 1
	})
	atLeast := uint64(0)
	for _, area := range order {
		s, err := loadFrom(dev, sb, area, areas[area].Header)
		if err == nil && s.Journal.Next < atLeast {
			err = wire.Errorf(opOpen, wire.KindCorrupt, "", "journal batch %d is missing: a newer checkpoint knew it", s.Journal.Next)
		}
		if err == nil {
			s.PassedOver = passed
			return s, nil
		}
		passed = append(passed, err)
		atLeast = max(atLeast, areas[area].Header.JournalSeq)
	}
	if slices.ContainsFunc(passed, func(err error) bool { return wire.KindOf(err) == wire.KindIO }) {
		return nil, wire.Errorf(opOpen, wire.KindIO, path, "the index cannot be read: %v", passed)
	}
	return nil, wire.Errorf(opOpen, wire.KindCorrupt, path,
		"the index is damaged; format the drive again and let its data be rebuilt: %v", passed)
}

// loadFrom reads one checkpoint and the journal after it.
func loadFrom(dev Reader, sb *format.Superblock, area int, c *format.Checkpoint) (*State, error) {
	replay := index.NewReplay()
	if err := loadPages(dev, sb, area, c, replay); err != nil {
		return nil, err
	}
	s := &State{Superblock: sb, Area: area, Checkpoint: c, Index: replay.Index}
	var recent []Suspect // puts of batches above the low water so far, in order
	var err error
	s.Journal, err = readJournal(dev, sb, c, func(h *format.Batch, r *format.Record) {
		replay.Apply(r)
		if r.Type != format.RecordPut {
			return
		}
		for len(recent) > 0 && recent[0].Seq <= h.LowWater {
			recent = recent[1:]
		}
		recent = append(recent, Suspect{ID: r.ID, Seq: h.Seq})
	})
	if err != nil {
		return nil, err
	}
	s.Suspects = suspects(recent, s.Journal.Low)
	if err := replay.Done(); err != nil {
		return nil, err
	}
	if s.Alloc, err = s.Index.BuildAllocator(sb.DataBlocks()); err != nil {
		return nil, err
	}
	return s, nil
}

// loadPages replays the pages of a checkpoint. They are in the order of ids, which is what the index takes in fastest.
func loadPages(dev Reader, sb *format.Superblock, area int, c *format.Checkpoint, replay *index.Replay) error {
	records := uint64(0)
	err := forPages(dev, sb, area, c, func(page []byte, h *format.Batch) error {
		records += uint64(h.Records)
		return h.ForEach(page, sb.DataBlocks(), func(r *format.Record) error {
			replay.Apply(r)
			return nil
		})
	})
	if err == nil && records != c.Records {
		err = wire.Errorf(opOpen, wire.KindCorrupt, "", "checkpoint %d has %d records, not %d", c.Seq, records, c.Records)
	}
	return err
}

// suspects gives the puts of batches above low, each id once, in the order of ids.
func suspects(puts []Suspect, low uint64) []Suspect {
	puts = slices.DeleteFunc(puts, func(s Suspect) bool { return s.Seq <= low })
	slices.SortFunc(puts, func(a, b Suspect) int {
		if c := a.ID.Compare(b.ID); c != 0 {
			return c
		}
		return int(int64(b.Seq - a.Seq)) // the newest first: it is kept
	})
	return slices.CompactFunc(puts, func(a, b Suspect) bool { return a.ID == b.ID })
}
