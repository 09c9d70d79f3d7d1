package strip

import (
	"context"
	"errors"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/copies"
	"github.com/crakefs/crake/wire/rpc"
)

// op is one Read under way. Only the goroutine that called Read touches it; requests to drives run in goroutines of
// their own, which hand their fetches over through answers.
type op struct {
	r       *Reader
	ctx     context.Context // ends when Read returns
	answers chan []answer   // unbuffered: an answer is either received or released by its sender
	unsent  []*fetch
	all     []*fetch
	left    int // pieces that are not done
	bad     []Bad
}

// answer is what became of a fetch.
type answer struct {
	f    *fetch
	kind wire.Kind // KindNone: data is what was asked for, and verified if f has sums
	err  error
	data wire.Data
}

func (o *op) run(groups []*group) error {
	for _, gr := range groups {
		o.left += len(gr.pieces)
	}
	for _, gr := range groups {
		o.start(gr)
	}
	hedge := time.NewTimer(o.r.c.HedgeDelay)
	defer hedge.Stop()
	for {
		// This ends: every decision finishes a piece, fails, or waits for a fetch, and no strip is asked for the same
		// rows twice (but once more row by row, see split).
		for _, gr := range groups {
			if err := o.decide(gr); err != nil {
				return err
			}
		}
		if o.left == 0 {
			return nil
		}
		o.send()
		select {
		case as := <-o.answers:
			for _, a := range as {
				o.take(a)
			}
		case <-hedge.C:
			for _, f := range o.all {
				f.late = f.late || f.state == fetchPending
			}
			hedge.Reset(o.r.c.HedgeDelay)
		case <-o.ctx.Done():
			return ctxError(o.ctx)
		}
	}
}

// start asks for the pieces of a group whose drives are up; decide asks for the helpers of the others, and sees then
// which rows come anyway.
func (o *op) start(gr *group) {
	for _, p := range gr.pieces {
		if p.pos < 0 || p.fetch != nil || p.done {
			continue
		}
		if d := gr.loc.Drives[p.pos]; d != 0 && o.r.c.Up(d) {
			p.fetch = o.fetch(gr, p.pos, p.row, len(p.sums), p.sums)
		}
	}
}

// fetch notes that a range shall be asked for; send sends it.
func (o *op) fetch(gr *group, pos, row, rows int, sums []uint64) *fetch {
	f := &fetch{group: gr, drive: gr.loc.Drives[pos], pos: pos, row: row, rows: rows, sums: sums}
	gr.fetches = append(gr.fetches, f)
	o.unsent = append(o.unsent, f)
	o.all = append(o.all, f)
	return f
}

// take stores an answer.
func (o *op) take(a answer) {
	f := a.f
	f.kind, f.err = a.kind, a.err
	if a.kind == wire.KindNone {
		f.state, f.data = fetchGood, a.data
		return
	}
	f.state = fetchBad
	switch a.kind {
	case wire.KindNotFound, wire.KindRange, wire.KindCorrupt, wire.KindIO:
		o.bad = append(o.bad, Bad{Drive: f.drive, ID: f.id(), Kind: a.kind, Loc: *f.group.loc, Row: f.row})
	}
}

// decide takes every piece of the group as far as it goes. An error ends the read.
func (o *op) decide(gr *group) error {
	err := o.decideAll(gr)
	if err != nil && o.split(gr) {
		return o.decideAll(gr)
	}
	return err
}

// split starts again, block by block, with what is missing of a group that cannot be read in longer runs: several strips
// may each have a bad block, in different rows, and every row have k good ones.
func (o *op) split(gr *group) bool {
	if gr.byRow {
		return false
	}
	gr.byRow = true
	harmed := false
	for _, f := range gr.fetches {
		harmed = harmed || f.state == fetchBad && (f.kind == wire.KindCorrupt || f.kind == wire.KindIO)
	}
	if !harmed {
		return false
	}
	var pieces []*piece
	for _, p := range gr.pieces {
		if p.done {
			pieces = append(pieces, p)
			continue
		}
		for i := range p.sums {
			pieces = append(pieces, &piece{group: gr, want: p.want, pos: p.pos, row: p.row + i, sums: p.sums[i : i+1]})
		}
		o.left += len(p.sums) - 1
	}
	gr.old = append(gr.old, gr.fetches...)
	gr.pieces, gr.fetches, gr.rebuilds = pieces, nil, nil
	o.start(gr)
	return true
}

func (o *op) decideAll(gr *group) error {
	for _, p := range gr.pieces {
		if p.done {
			continue
		}
		var err error
		if p.pos < 0 {
			err = o.decideReplicas(p)
		} else {
			err = o.decideStrip(p)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (o *op) finish(p *piece, d wire.Data) {
	p.data, p.done = d, true
	o.left--
}

func (o *op) decideStrip(p *piece) error {
	if f := p.fetch; f != nil {
		if f.state == fetchGood {
			o.finish(p, f.data.Retain())
			return nil
		}
		if f.state == fetchPending && !f.late {
			return nil
		}
	}
	rb := o.rebuildOf(p)
	d, err := rb.try(o, p)
	if d != nil {
		o.finish(p, d)
		return nil
	}
	if err == nil {
		return nil
	}
	if p.fetch == nil && p.group.loc.Drives[p.pos] != 0 { // our map may be wrong: ask the drive that is said to be down
		p.fetch = o.fetch(p.group, p.pos, p.row, len(p.sums), p.sums)
	}
	if p.fetch != nil && p.fetch.state == fetchPending {
		return nil // the slow drive is the last hope
	}
	return err
}

// decideReplicas looks for a piece of a segment in one replica after another.
func (o *op) decideReplicas(p *piece) error {
	waiting, hope := false, false
	for _, f := range p.tried {
		switch {
		case f.state == fetchGood:
			o.finish(p, f.data.Retain())
			return nil
		case f.state == fetchPending:
			waiting = waiting || !f.late
			hope = true
		}
	}
	if waiting || o.nextReplica(p) || hope {
		return nil
	}
	return verdict(p.group, p.tried, 0)
}

// nextReplica asks a replica that was not asked yet, those on drives that are up first. It starts at a place that
// depends on the segment, so that reads spread over replicas and yet hit the same one again.
func (o *op) nextReplica(p *piece) bool {
	loc := p.group.loc
	n := len(loc.Drives)
	first := int((loc.ID.Random() + uint64(p.row/(MaxBatchBytes/wire.BlockSize))) % uint64(n))
	for _, wantUp := range []bool{true, false} {
	next:
		for i := range n {
			pos := (first + i) % n
			if d := loc.Drives[pos]; d == 0 || o.r.c.Up(d) != wantUp {
				continue
			}
			for _, f := range p.tried {
				if f.pos == pos {
					continue next
				}
			}
			p.tried = append(p.tried, o.fetch(p.group, pos, p.row, len(p.sums), p.sums))
			return true
		}
	}
	return false
}

// verdict says why a group cannot be read, from the fetches that failed; good others did not.
func verdict(gr *group, failed []*fetch, good int) error {
	var gone, corrupt, away int
	var cause error
	for _, f := range failed {
		if f.state != fetchBad {
			continue
		}
		switch f.kind {
		case wire.KindNotFound:
			gone++
		case wire.KindCorrupt, wire.KindIO, wire.KindRange:
			corrupt++
		default:
			away++
		}
		if cause == nil || f.kind != wire.KindNotFound {
			cause = f.err
		}
	}
	kind, k := wire.KindCorrupt, 1
	spare := len(gr.loc.Drives) - 1
	if gr.loc.Kind == wire.LocStripe {
		k, spare = gr.g.K, gr.g.M
	}
	switch {
	case gone > spare, gone > 0 && good == 0 && corrupt == 0:
		kind = wire.KindNotFound // what is alive never lacks so many: it was deleted
	case away > 0 && good+away >= k:
		kind = wire.KindUnavailable
	}
	return wire.Errorf("strip.read", kind, gr.loc.ID.String(), "%d of %d usable, %d gone, %d corrupt, %d unreachable: %w",
		good, len(gr.loc.Drives), gone, corrupt, away, cause)
}

// send groups what is to be asked by drive and asks.
func (o *op) send() {
	byDrive := map[wire.DriveID][]*fetch{}
	var order []wire.DriveID
	for _, f := range o.unsent {
		if byDrive[f.drive] == nil {
			order = append(order, f.drive)
		}
		byDrive[f.drive] = append(byDrive[f.drive], f)
	}
	o.unsent = o.unsent[:0]
	for _, d := range order {
		fs := byDrive[d]
		for len(fs) > 0 {
			n, size := 0, 0
			for n < len(fs) && n < MaxRanges && (n == 0 || size+fs[n].rows*wire.BlockSize <= MaxBatchBytes) {
				size += fs[n].rows * wire.BlockSize
				n++
			}
			batch := fs[:n:n]
			fs = fs[n:]
			go o.ask(d, batch)
		}
	}
}

// ask runs in a goroutine of its own. It reads only what of the fetches does not change.
func (o *op) ask(d wire.DriveID, batch []*fetch) {
	as := o.r.ask(o.ctx, d, batch)
	select {
	case o.answers <- as:
	case <-o.ctx.Done():
		for _, a := range as {
			a.data.Release()
		}
	}
}

// ask asks a drive for a batch and verifies what came.
func (r *Reader) ask(ctx context.Context, d wire.DriveID, batch []*fetch) []answer {
	as := make([]answer, len(batch))
	req := &wire.ReadReq{Drive: d, Ranges: make([]wire.ReadRange, len(batch))}
	for i, f := range batch {
		as[i] = answer{f: f, kind: wire.KindUnavailable}
		req.Ranges[i] = wire.ReadRange{
			ID: f.id(), Offset: uint64(f.row) * wire.BlockSize, Len: uint32(f.rows) * wire.BlockSize,
		}
	}
	resp := &wire.ReadResp{}
	call := &rpc.Call{Method: wire.MDriveRead, Req: req, Resp: resp}
	err := r.c.Drive(ctx, d, call)
	defer call.RespData.Release()
	want := 0
	if err == nil && len(resp.Status) == len(batch) {
		for i, s := range resp.Status {
			if s == wire.KindNone {
				want += batch[i].rows * wire.BlockSize
			}
		}
	}
	if err == nil && (len(resp.Status) != len(batch) || call.RespData.Len() != want) {
		err = wire.Errorf("strip.read", wire.KindBadFrame, "", "drive %d answered %d ranges, %d bytes; want %d, %d",
			d, len(resp.Status), call.RespData.Len(), len(batch), want)
	}
	if err != nil {
		for i := range as {
			as[i].err = err
		}
		return as
	}
	off := 0
	for i, f := range batch {
		as[i].kind = resp.Status[i]
		if as[i].kind == wire.KindNone {
			n := f.rows * wire.BlockSize
			as[i].data, as[i].kind, as[i].err = r.accept(ctx, call.RespData.Sub(off, n), f.sums)
			off += n
		}
		if as[i].kind != wire.KindNone && as[i].err == nil {
			as[i].err = wire.E("strip.read", as[i].kind, f.id().String(), nil)
		}
	}
	return as
}

// accept checks the data of a fetch; it takes over the reference.
func (r *Reader) accept(ctx context.Context, d wire.Data, sums []uint64) (wire.Data, wire.Kind, error) {
	if !wholeBlocks(d) { // a transport that splits blocks: legal, but nobody does
		whole, err := r.compact(ctx, d)
		d.Release()
		if err != nil {
			return nil, wire.KindUnavailable, err
		}
		d = whole
	}
	if sums != nil {
		if i := mismatch(d, sums); i >= 0 {
			d.Release()
			return nil, wire.KindCorrupt, wire.Errorf("strip.read", wire.KindCorrupt, "", "checksum of block %d", i)
		}
	}
	return d, wire.KindNone, nil
}

// compact copies d into one Buf.
func (r *Reader) compact(ctx context.Context, d wire.Data) (wire.Data, error) {
	buf, err := r.c.Arena.AllocFor(ctx, d.Len(), wire.UseMore)
	if err != nil {
		return nil, err
	}
	n := 0
	for _, s := range d {
		n += copy(buf.Bytes()[n:], s.B)
	}
	copies.Add(copies.Gather, n)
	return buf.Data(n), nil
}

// mismatch gives the index of the first block whose checksum is wrong, or -1.
func mismatch(d wire.Data, sums []uint64) int {
	bad := -1
	d.Blocks(func(i int, block []byte) {
		if bad < 0 && xxhash.Sum64(block) != sums[i] {
			bad = i
		}
	})
	return bad
}

func ctxError(ctx context.Context) error {
	kind := wire.KindInterrupted
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		kind = wire.KindTimeout
	}
	return wire.E("strip.read", kind, "", context.Cause(ctx))
}
