package strip

import (
	"context"
	"sync"
	"time"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

// Want asks for a run of blocks of one stripe or segment.
type Want struct {
	// Loc says where; it is not changed, and must not change until Read returns.
	Loc *wire.Location
	// Block is the first block: of the stripe's data, or of the segment (its record heads count).
	Block int
	// Blocks is how many, at least 1.
	Blocks int
	// Sums are the xxhash64 of the blocks: exactly Blocks of them.
	Sums []uint64
}

// Bad is a strip or replica that is not as it should be, found while reading.
type Bad struct {
	Drive wire.DriveID
	ID    wire.StripID // with its position
	// Kind is KindNotFound (the drive answers but has no such strip), KindRange (it has less of it than it should),
	// KindCorrupt (its bytes are not those that were written) or KindIO (the device fails to read it).
	Kind wire.Kind
	Loc  wire.Location
	// Row is the first block of the strip where it showed.
	Row int
}

// Config configures a Reader.
type Config struct {
	// Drive asks a drive once; route.Router.Drive is one.
	Drive func(ctx context.Context, d wire.DriveID, call *rpc.Call) error
	// Up says whether a drive is worth asking first; nil is always. Drives that are not up are asked as a last resort.
	Up func(d wire.DriveID) bool
	// Arena gives memory for rebuilt blocks.
	Arena *wire.Arena
	// Report is called for what is found bad, once for each strip in ReportInterval; nil ignores it. Must not block.
	Report func(Bad)
	// HedgeDelay is how long a drive may take before what it was asked for is sought elsewhere too; 0 is the default.
	HedgeDelay time.Duration
}

// Reader reads blocks of stripes and segments from the drives. Safe for concurrent use.
type Reader struct {
	c      Config
	codecs *Codecs

	mu       sync.Mutex
	reported map[reportKey]time.Time // guarded by mu; at most MaxReported
}

// New makes a Reader.
func New(c Config) *Reader {
	if c.HedgeDelay == 0 {
		c.HedgeDelay = DefaultHedgeDelay
	}
	if c.Up == nil {
		c.Up = func(wire.DriveID) bool { return true }
	}
	return &Reader{c: c, codecs: NewCodecs(), reported: map[reportKey]time.Time{}}
}

// Codecs gives the codecs of the reader, to share with writers.
func (r *Reader) Codecs() *Codecs { return r.codecs }

// Read gives one Data for each want: its blocks, verified. The caller owns them. Either all wants are answered or none:
//
//	KindNotFound     the strips are gone everywhere: the extents are stale, ask for them again
//	KindUnavailable  too few strips are left, but drives that are down may hold them
//	KindCorrupt      too few strips are left that agree with the checksums
//	KindInvalid      a want makes no sense
//	KindTimeout, KindInterrupted  ctx ended
func (r *Reader) Read(ctx context.Context, wants []Want) ([]wire.Data, error) {
	if len(wants) == 0 {
		return nil, nil
	}
	groups, err := plan(wants)
	if err != nil {
		return nil, err
	}
	opCtx, cancel := context.WithCancel(ctx)
	o := &op{r: r, ctx: opCtx, answers: make(chan []answer)}
	err = o.run(groups)
	cancel() // drops what is still under way
	out := make([]wire.Data, len(wants))
	for _, gr := range groups {
		for _, p := range gr.pieces {
			if err != nil {
				p.data.Release()
			} else {
				out[p.want] = append(out[p.want], p.data...)
			}
		}
		for _, f := range append(gr.fetches, gr.old...) {
			f.data.Release()
		}
	}
	for _, b := range o.bad {
		// Strips that are gone are only wrong if the stripe is not: else it was deleted, and we hold an old address.
		if err == nil || b.Kind == wire.KindCorrupt || b.Kind == wire.KindIO {
			r.report(b)
		}
	}
	if err != nil {
		return nil, err
	}
	return out, nil
}

type reportKey struct {
	drive wire.DriveID
	id    wire.StripID
}

// report passes a bad strip on, unless that was done a moment ago.
func (r *Reader) report(b Bad) {
	if r.c.Report == nil {
		return
	}
	now := time.Now()
	key := reportKey{b.Drive, b.ID}
	r.mu.Lock()
	last, seen := r.reported[key]
	fresh := !seen || now.Sub(last) >= ReportInterval
	if fresh {
		if len(r.reported) >= MaxReported {
			clear(r.reported)
		}
		r.reported[key] = now
	}
	r.mu.Unlock()
	if fresh {
		r.c.Report(b)
	}
}
