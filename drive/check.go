package drive

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/drive/internal/image"
	"github.com/crakefs/crake/drive/internal/index"
	"github.com/crakefs/crake/wire"
)

// CheckConfig says what to check.
type CheckConfig struct {
	Path string // of a device
	// Quick leaves the data of finished strips and segments out, which is nearly all of the time.
	Quick bool
	// Progress is told now and then how far the reading of data is, from a goroutine of its own; nil: nobody.
	Progress func(doneBytes, totalBytes uint64, elapsed time.Duration)
}

// Severities of findings.
const (
	// FindingDamage: something is not as the drive wrote it.
	FindingDamage = "damage"
	// FindingNote: as a crash may leave it; opening puts it right, and nobody was told that it is durable.
	FindingNote = "note"
)

// Finding is one thing that a check found.
type Finding struct {
	Severity string `json:"severity"` // "damage" or "note"
	Part     string `json:"part"`     // "superblock", "checkpoint", "journal", "index", "strip", "segment"
	ID       string `json:"id,omitempty"`
	Offset   int64  `json:"offset"` // on the device, in bytes; -1: no single place
	Text     string `json:"text"`
}

// CheckReport is what a check found. It is printed as JSON by drive check: keys never change their meaning.
type CheckReport struct {
	Path     string    `json:"path"`
	Drive    uint32    `json:"drive"`
	Cluster  string    `json:"cluster"`
	Sound    bool      `json:"sound"`  // no damage
	Quick    bool      `json:"quick"`  // data was not read
	Damage   int       `json:"damage"` // number of findings of that kind, also of those that are not listed
	Notes    int       `json:"notes"`
	Findings []Finding `json:"findings"` // the first maxFindings
	// What opening would do.
	RepairsSuperblocks int `json:"opening_repairs_superblocks"`
	DropsPuts          int `json:"opening_drops_puts"`
	ErasesBlocks       int `json:"opening_erases_blocks"`
	ReplaysBatches     int `json:"opening_replays_batches"`
	// What was looked at.
	Strips      int     `json:"strips"`
	Segments    int     `json:"segments"`
	Records     uint64  `json:"checkpoint_records"`
	DataBytes   uint64  `json:"data_bytes"` // of all strips and segments
	ReadBytes   uint64  `json:"read_bytes"` // of them, by this check
	Seconds     float64 `json:"seconds"`
	BytesPerSec float64 `json:"bytes_per_second"`
}

// reason gives what an error says without what the finding says besides: operation, id and kind.
func reason(err error) string {
	var e *wire.Error
	if errors.As(err, &e) && e.Err != nil && e.Kind == wire.KindCorrupt {
		return e.Err.Error()
	}
	return err.Error()
}

// maxFindings bounds what a report lists: a device that is damaged all over has millions.
const maxFindings = 1000

// progressEvery is how often Progress is called.
const progressEvery = time.Second

func (r *CheckReport) add(severity, part, id string, off int64, text string) {
	if severity == FindingDamage {
		r.Damage++
	} else {
		r.Notes++
	}
	if len(r.Findings) < maxFindings {
		r.Findings = append(r.Findings, Finding{Severity: severity, Part: part, ID: id, Offset: off, Text: text})
	}
}

// Check verifies that what lies on a device is consistent, and changes nothing there: superblocks, checkpoints, the chain of the
// journal, that all runs lie in the data area and no two strips share a block, and the checksums of all data. Damage is in the
// report and no error. Errors: KindNotFound, KindRefused (no drive, or a running one), KindVersion, KindIO (metadata cannot be
// read), KindInterrupted (with what was found so far).
func Check(ctx context.Context, cfg CheckConfig) (r *CheckReport, err error) {
	if cfg.Path == "" {
		return nil, wire.Errorf("drive.check", wire.KindInvalid, "", "the path is missing")
	}
	dev, err := image.OpenFile(cfg.Path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, dev.Close()) }()
	return check(ctx, dev, cfg)
}

// check is Check of an open device.
func check(ctx context.Context, dev image.Reader, cfg CheckConfig) (*CheckReport, error) {
	began := time.Now()
	sbs, err := image.ReadSuperblocks(dev, cfg.Path)
	if err != nil {
		return nil, err
	}
	r := &CheckReport{Path: cfg.Path, Drive: uint32(sbs.Sound.Drive), Cluster: sbs.Sound.Cluster.String(), Quick: cfg.Quick, Findings: []Finding{}}
	for _, d := range sbs.Damaged {
		r.add(FindingDamage, "superblock", "", d.Off, "not sound: "+reason(d.Err)+"; opening writes it again from the other one")
		r.RepairsSuperblocks++
	}
	state, err := r.checkIndex(dev, sbs.Sound)
	if err == nil && state != nil {
		err = r.checkContent(ctx, cfg, state, image.DataReader(dev, sbs.Sound))
	}
	r.Sound = r.Damage == 0 && err == nil
	r.Seconds = time.Since(began).Seconds()
	return r, err
}

// checkIndex checks checkpoints and journal. A nil state is damage that leaves nothing to go on with. Errors: KindIO.
func (r *CheckReport) checkIndex(dev image.Reader, sb *format.Superblock) (*image.State, error) {
	areas := image.ReadAreas(dev, sb)
	state, err := image.Load(dev, sb, r.Path)
	if wire.KindOf(err) == wire.KindCorrupt {
		r.add(FindingDamage, "index", "", -1, err.Error())
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r.Records, r.ReplaysBatches = state.Checkpoint.Records, len(state.Journal.Batches)
	for i, a := range areas {
		switch {
		case i == state.Area || a.Blank:
		case wire.KindOf(a.Err) == wire.KindIO:
			r.add(FindingDamage, "checkpoint", "", sb.CheckpointOff[i], "a checkpoint cannot be read: "+reason(a.Err))
		case a.Header == nil:
			r.add(FindingNote, "checkpoint", "", sb.CheckpointOff[i], "the other checkpoint is not sound, as when its writing was cut off: "+reason(a.Err))
		case a.Header.Seq > state.Checkpoint.Seq:
			r.add(FindingDamage, "checkpoint", "", sb.CheckpointOff[i], fmt.Sprintf("the newest checkpoint, %d, is damaged; opening uses the older one: %v",
				a.Header.Seq, errors.Join(state.PassedOver...)))
		default:
			if err := image.CheckPages(dev, sb, i, a.Header); wire.KindOf(err) == wire.KindCorrupt {
				r.add(FindingNote, "checkpoint", "", sb.CheckpointOff[i], "the older checkpoint is no longer whole, as when the writing of the next one was cut off: "+reason(err))
			} else if err != nil {
				r.add(FindingDamage, "checkpoint", "", sb.CheckpointOff[i], "the older checkpoint cannot be read: "+reason(err))
			}
		}
	}
	if j := state.Journal; j.Torn {
		r.add(FindingNote, "journal", "", sb.JournalOff+int64(j.Head%sb.JournalBlocks())*format.BlockSize,
			fmt.Sprintf("batch %d is torn: its write was cut off, nobody was told that it is durable", j.Next))
	}
	return state, nil
}

// checkContent checks what the index lists.
func (r *CheckReport) checkContent(ctx context.Context, cfg CheckConfig, state *image.State, read image.ReadRun) error {
	settled, err := state.Settle(read)
	if err != nil {
		return err
	}
	r.noteSettled(state, settled)
	settled.Adopt()
	state.Index.Ascend(wire.StripID{}, func(st index.Strip) bool {
		if st.Segment != nil {
			r.Segments++
		} else {
			r.Strips++
		}
		r.DataBytes += st.LenBytes()
		return true
	})
	if cfg.Quick {
		return nil
	}
	var done atomic.Uint64
	began := time.Now()
	stop := r.reportProgress(cfg, &done, began)
	err = state.CheckData(ctx, read, settled, &done, func(b image.BadData) {
		part := "strip"
		if state.Index.Segment(b.ID) != nil {
			part = "segment"
		}
		r.add(FindingDamage, part, b.ID.String(), b.Off, reason(b.Err))
	})
	stop()
	r.ReadBytes = done.Load()
	r.BytesPerSec = float64(r.ReadBytes) / max(time.Since(began).Seconds(), 1e-6)
	return err
}

// noteSettled lists what opening would do about the operations that were under way.
func (r *CheckReport) noteSettled(state *image.State, settled *image.Settlement) {
	for _, id := range settled.Drop {
		off := image.DataOffset(state.Superblock, state.Index.Runs(id)[0])
		r.add(FindingNote, "strip", id.String(), off, "a put that was under way, its data is not there; opening drops it")
		r.DropsPuts++
	}
	for _, e := range settled.Segments {
		id := e.Segment.ID.String()
		for _, run := range e.Erase {
			r.add(FindingNote, "segment", id, image.DataOffset(state.Superblock, run), "what an append that was under way left beyond the end; opening erases it")
			r.ErasesBlocks++
		}
		if e.Err != nil {
			r.add(FindingDamage, "segment", id, image.DataOffset(state.Superblock, e.Segment.Runs[0]), fmt.Sprintf("cannot be read beyond %d bytes: %v", e.Len, e.Err))
		}
	}
}

// reportProgress calls Progress until the function that it gives is called, and has returned.
func (r *CheckReport) reportProgress(cfg CheckConfig, done *atomic.Uint64, began time.Time) (stop func()) {
	if cfg.Progress == nil {
		return func() {}
	}
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		t := time.NewTicker(progressEvery)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				cfg.Progress(done.Load(), r.DataBytes, time.Since(began))
			case <-end:
				return
			}
		}
	}()
	return func() { close(end); <-ended }
}
