package store

import (
	"context"
	"errors"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
	"github.com/crakefs/crake/wire/strip"
)

// WriteStripe writes file data as a stripe with this number and returns when all its strips are durable. data (whole
// blocks, at most k*StripBytes) is borrowed; sums has the checksum of each block. The Location's ID has position 0; a
// position that stores nothing has drive 0.
//
// Errors: KindNoSpace (nothing is left behind), KindUnavailable (too few drives; may be tried again), KindStaleEpoch.
// What a failed write leaves behind is deleted later.
func (b *Bucket) WriteStripe(ctx context.Context, number uint64, data wire.Data, sums []uint64) (wire.Location, error) {
	return b.PutStripe(ctx, b.NewID(wire.ClassData, number, 0), data, sums, false)
}

// PutStripe is WriteStripe for any class; strict forbids that two strips share a failure domain (then KindUnavailable
// while there are too few). The id comes from NewID and is used for no other call: after a failure its
// strips are deleted wherever they may have got to, now and later.
func (b *Bucket) PutStripe(ctx context.Context, id wire.StripID, data wire.Data, sums []uint64, strict bool) (wire.Location, error) {
	const op = "stripe.write"
	if err := b.alive(op); err != nil {
		return wire.Location{}, err
	}
	v := b.s.currentView()
	if v == nil {
		return wire.Location{}, wire.Errorf(op, wire.KindUnavailable, "", "no cluster map yet")
	}
	strips, err := b.s.reader.Codecs().Encode(ctx, b.s.c.Arena, v.k, v.m, data, sums)
	if err != nil {
		return wire.Location{}, err
	}
	defer strip.Release(strips)
	drives, degraded, err := b.put(ctx, op, id, strips, strict)
	if err != nil {
		return wire.Location{}, err
	}
	return wire.Location{
		Kind: wire.LocStripe, K: uint8(v.k), M: uint8(v.m), Degraded: degraded, ID: id.WithPos(0),
		Blocks: uint32(data.Len() / wire.BlockSize), Drives: drives,
	}, nil
}

// PutMirrored writes the same strip to m+1 drives in distinct failure domains, and returns when all are durable. It can
// be read as a segment of so many blocks. data is borrowed. For the id the same holds as for PutStripe. Errors as of
// WriteStripe.
func (b *Bucket) PutMirrored(ctx context.Context, id wire.StripID, data wire.Data, sums []uint64) (wire.Location, error) {
	const op = "mirror.write"
	if err := b.alive(op); err != nil {
		return wire.Location{}, err
	}
	v := b.s.currentView()
	if v == nil {
		return wire.Location{}, wire.Errorf(op, wire.KindUnavailable, "", "no cluster map yet")
	}
	strips := make([]strip.Strip, v.m+1)
	for i := range strips {
		strips[i] = strip.Strip{Data: data, Sums: sums}
	}
	drives, _, err := b.put(ctx, op, id, strips, true)
	if err != nil {
		return wire.Location{}, err
	}
	return wire.Location{Kind: wire.LocSegment, M: uint8(v.m), ID: id.WithPos(0), Drives: drives}, nil
}

// Replicate puts further replicas of a mirrored strip at the positions given, on drives of domains that none of have is
// in. It gives the drives, in order of positions. After a failure it may be called again.
func (b *Bucket) Replicate(ctx context.Context, id wire.StripID, have []wire.DriveID, positions []int, data wire.Data, sums []uint64) ([]wire.DriveID, error) {
	const op = "mirror.replicate"
	if err := b.alive(op); err != nil {
		return nil, err
	}
	p, err := b.s.newPicker(op, true, false, data.Len())
	if err != nil {
		return nil, err
	}
	for _, d := range have {
		p.used[p.v.domain[d]]++
		p.avoid[d] = true
	}
	w := newPutter(b, op, id, p)
	w.keep = true
	for _, pos := range positions {
		w.strips = append(w.strips, posStrip{pos: pos, Strip: strip.Strip{Data: data, Sums: sums}})
	}
	return w.run(ctx)
}

// put writes strips to drives of its choice; empty ones are not stored. The drives are in order of position.
func (b *Bucket) put(ctx context.Context, op string, id wire.StripID, strips []strip.Strip, strict bool) ([]wire.DriveID, bool, error) {
	p, err := b.s.newPicker(op, strict, id.Class() == wire.ClassData, strips[len(strips)-1].Data.Len())
	if err != nil {
		return nil, false, err
	}
	w := newPutter(b, op, id, p)
	for pos, s := range strips {
		if s.Data.Len() > 0 {
			w.strips = append(w.strips, posStrip{pos: pos, Strip: s})
		}
	}
	drives, err := w.run(ctx)
	if err != nil {
		return nil, false, err
	}
	out := make([]wire.DriveID, len(strips))
	for i, s := range w.strips {
		out[s.pos] = drives[i]
	}
	return out, p.degraded(), nil
}

type posStrip struct {
	pos int
	strip.Strip
}

// putter writes the strips of one stripe, or the replicas of one strip, all at once.
type putter struct {
	b      *Bucket
	op     string
	id     wire.StripID
	p      *picker
	strips []posStrip
	keep   bool // what a failed write leaves behind is harmless, and must stay: the id may be put there again
}

func newPutter(b *Bucket, op string, id wire.StripID, p *picker) *putter {
	return &putter{b: b, op: op, id: id, p: p}
}

type putResult struct {
	i     int // index in strips
	drive wire.DriveID
	err   error
}

// run puts every strip, each on other drives when one fails, and gives the drives. It returns when no request is under
// way any more, as the data is borrowed.
func (w *putter) run(ctx context.Context) ([]wire.DriveID, error) {
	n := len(w.strips)
	drives := w.p.pick(n)
	if drives == nil {
		return nil, w.p.err(w.op, n, nil)
	}
	results := make(chan putResult, n)
	for i := range w.strips {
		go w.putOne(ctx, i, drives[i], results)
	}
	tries := make([]int, n)
	done := make([]bool, n)
	var failure error
	for left := n; left > 0; {
		r := <-results
		if r.err == nil {
			done[r.i] = true
			left--
			continue
		}
		id := w.id.WithPos(w.strips[r.i].pos)
		w.b.s.failed(r.drive, r.err)
		if !w.keep {
			w.b.s.del.orphan(w.b, r.drive, id)
		}
		tries[r.i]++
		if failure == nil && ctx.Err() == nil && tries[r.i] < PutTries && !errors.Is(r.err, wire.KindStaleEpoch) {
			w.p.drop(r.drive)
			if d := w.p.next(); d != 0 {
				drives[r.i] = d
				go w.putOne(ctx, r.i, d, results)
				continue
			}
			r.err = w.p.err(w.op, 1, r.err)
		}
		if failure == nil || errors.Is(r.err, wire.KindStaleEpoch) {
			failure = r.err
		}
		left--
	}
	if failure == nil {
		return drives, nil
	}
	for i, ok := range done {
		if ok && !w.keep {
			w.b.s.del.orphan(w.b, drives[i], w.id.WithPos(w.strips[i].pos))
		}
	}
	kind := wire.KindOf(failure)
	switch kind {
	case wire.KindStaleEpoch, wire.KindNoSpace, wire.KindTimeout, wire.KindInterrupted:
	default:
		kind = wire.KindUnavailable
	}
	return nil, wire.E(w.op, kind, w.id.String(), failure)
}

func (w *putter) putOne(ctx context.Context, i int, d wire.DriveID, results chan<- putResult) {
	s := w.strips[i]
	req := &wire.PutReq{Drive: d, Epoch: w.b.epoch, ID: w.id.WithPos(s.pos), Sums: s.Sums}
	err := w.b.ask(ctx, d, w.b.s.c.WriteTimeout, &rpc.Call{Method: wire.MDrivePut, Req: req, Data: s.Data})
	if err == nil {
		w.b.s.wrote(d, s.Data.Len())
	}
	results <- putResult{i: i, drive: d, err: err}
}
