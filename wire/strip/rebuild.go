package strip

import (
	"bytes"
	"slices"

	"github.com/cespare/xxhash/v2"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/copies"
)

// rebuild is the work of making rows [lo, hi) of strips that cannot be had from other strips of the stripe.
type rebuild struct {
	gr     *group
	lo, hi int
	// helper is, by position, the fetch that brings these rows; nil when it was not asked. Positions whose strip ends
	// before lo need none: their rows are zeros.
	helper []*fetch
	blamed []bool
}

// rebuildOf gives the rebuild that covers a piece, or a new one over all pieces of the group that have none of their
// rows yet.
func (o *op) rebuildOf(p *piece) *rebuild {
	gr := p.group
	for _, rb := range gr.rebuilds {
		if rb.lo <= p.row && p.row+len(p.sums) <= rb.hi {
			return rb
		}
	}
	rb := &rebuild{gr: gr, lo: p.row, hi: p.row + len(p.sums)}
	for _, q := range gr.pieces {
		if !gr.byRow && !q.done && (q.fetch == nil || q.fetch.state == fetchBad || q.fetch.late) {
			rb.lo, rb.hi = min(rb.lo, q.row), max(rb.hi, q.row+len(q.sums))
		}
	}
	n := gr.g.K + gr.g.M
	rb.helper, rb.blamed = make([]*fetch, n), make([]bool, n)
	for _, f := range gr.fetches {
		// A strip that failed for other rows is not asked again; an answer that is good but too short is no help.
		if f.covers(rb.lo, rb.hi) || f.state == fetchBad && rb.helper[f.pos] == nil && !gr.byRow {
			rb.helper[f.pos] = f
		}
	}
	gr.rebuilds = append(gr.rebuilds, rb)
	return rb
}

// zero says that the strip at pos has none of the rows.
func (rb *rebuild) zero(pos int) bool { return rb.gr.g.LenBlocks(pos) <= rb.lo }

// count tells how many strips can be counted on, without the one at pos: known, and asked and in time.
func (rb *rebuild) count(pos int) (known, coming int) {
	for q, f := range rb.helper {
		switch {
		case q == pos:
		case rb.zero(q) || f != nil && f.state == fetchGood:
			known++
		case f != nil && f.state == fetchPending && !f.late:
			coming++
		}
	}
	return known, coming
}

// more asks for up to n helpers for a piece at pos; those on drives that are up come first. It reports whether it asked
// for any.
func (rb *rebuild) more(o *op, pos, n int) bool {
	asked := false
	for _, wantUp := range []bool{true, false} {
		for q := range rb.helper {
			d := rb.gr.loc.Drives[q]
			if q == pos || rb.helper[q] != nil || rb.zero(q) || d == 0 || o.r.c.Up(d) != wantUp {
				continue
			}
			if n <= 0 {
				return asked
			}
			rows := min(rb.hi, rb.gr.g.LenBlocks(q)) - rb.lo
			rb.helper[q] = o.fetch(rb.gr, q, rb.lo, rows, nil)
			asked = true
			n--
		}
	}
	return asked
}

// try makes the piece from what there is. It gives the data, or neither data nor error while there is something to wait
// for, or the error when there is not.
func (rb *rebuild) try(o *op, p *piece) (wire.Data, error) {
	known, coming := rb.count(p.pos)
	k := rb.gr.g.K
	if known < k {
		if known+coming >= k || rb.more(o, p.pos, k-known-coming) || rb.pending() {
			return nil, nil
		}
		return nil, rb.verdict(p)
	}
	d, ok, err := rb.decode(o, p, false)
	if err != nil || ok {
		return d, err
	}
	// A helper lies. Get all the others, then look for the combination that comes out right.
	if rb.more(o, p.pos, len(rb.helper)) || coming > 0 {
		return nil, nil
	}
	d, ok, err = rb.decode(o, p, true)
	if err != nil || ok {
		return d, err
	}
	if rb.pending() {
		return nil, nil
	}
	return nil, rb.verdict(p)
}

func (rb *rebuild) pending() bool {
	for _, f := range rb.helper {
		if f != nil && f.state == fetchPending {
			return true
		}
	}
	return false
}

func (rb *rebuild) verdict(p *piece) error {
	var failed []*fetch
	for _, f := range rb.helper {
		if f != nil {
			failed = append(failed, f)
		}
	}
	if p.fetch != nil && rb.helper[p.pos] != p.fetch {
		failed = append(failed, p.fetch)
	}
	good, _ := rb.count(p.pos)
	err := verdict(rb.gr, failed, good)
	if good >= rb.gr.g.K {
		kind := wire.KindCorrupt
		for _, f := range failed {
			if f.state == fetchBad && f.kind == wire.KindUnavailable {
				kind = wire.KindUnavailable // an honest strip may be on that drive
			}
		}
		err = wire.Errorf("strip.read", kind, rb.gr.loc.ID.String(),
			"no %d of %d strips give block %d of strip %d with the right checksum", rb.gr.g.K, good, p.row, p.pos)
	}
	return err
}

// decode rebuilds the rows of the piece: from the first k strips that are there, or (search) row by row from any k that
// come out right. ok tells whether every row has its checksum.
func (rb *rebuild) decode(o *op, p *piece, search bool) (d wire.Data, ok bool, err error) {
	sure, maybe := rb.sources(p.pos)
	buf, err := o.r.c.Arena.AllocFor(o.ctx, len(p.sums)*wire.BlockSize, wire.UseMore)
	if err != nil {
		return nil, false, err
	}
	defer func() {
		if !ok {
			buf.Release()
			d = nil
		}
	}()
	use := append(append([]int(nil), sure...), maybe...)[:rb.gr.g.K]
	for i := 0; i < len(p.sums); {
		n := 1
		if !search {
			n = len(p.sums)
		}
		dst := buf.Bytes()[i*wire.BlockSize : (i+n)*wire.BlockSize]
		if err := rb.make(o, p.pos, p.row+i, dst, use); err != nil {
			return nil, false, err
		}
		if search && xxhash.Sum64(dst) != p.sums[i] {
			if use, err = rb.search(o, p, i, dst, sure, maybe); use == nil || err != nil {
				return nil, false, err
			}
		}
		if search {
			rb.blame(o, p.pos, p.row+i, use)
		}
		i += n
	}
	copies.Add(copies.Parity, len(p.sums)*wire.BlockSize)
	d = buf.Data(len(p.sums) * wire.BlockSize)
	return d, mismatch(d, p.sums) < 0, nil
}

// sources gives the positions that can help to rebuild pos: those whose rows are verified or zero, and the others.
func (rb *rebuild) sources(pos int) (sure, maybe []int) {
	for q, f := range rb.helper {
		switch {
		case q == pos:
		case rb.zero(q), f != nil && f.state == fetchGood && f.sums != nil:
			sure = append(sure, q)
		case f != nil && f.state == fetchGood:
			maybe = append(maybe, q)
		}
	}
	return sure, maybe
}

// search tries combinations of helpers for one row until its checksum is right; dst then holds it. It gives the
// combination, or nil. Verified strips are in every combination.
func (rb *rebuild) search(o *op, p *piece, i int, dst []byte, sure, maybe []int) ([]int, error) {
	k := rb.gr.g.K
	if len(sure) >= k {
		return nil, nil // all are verified, and yet it is wrong: the sum itself must be
	}
	pick := k - len(sure)
	idx := make([]int, pick)
	for j := range idx {
		idx[j] = j
	}
	for range MaxCombinations {
		use := append([]int(nil), sure...)
		for _, j := range idx {
			use = append(use, maybe[j])
		}
		if err := rb.make(o, p.pos, p.row+i, dst, use); err != nil {
			return nil, err
		}
		if xxhash.Sum64(dst) == p.sums[i] {
			return use, nil
		}
		j := pick - 1 // the next combination in order
		for j >= 0 && idx[j] == len(maybe)-pick+j {
			j--
		}
		if j < 0 {
			return nil, nil
		}
		idx[j]++
		for j++; j < pick; j++ {
			idx[j] = idx[j-1] + 1
		}
	}
	return nil, nil
}

// rowsOf gives rows [row, row+n) of the strip at pos, as far as it has them, without a reference of its own.
func (rb *rebuild) rowsOf(pos, row, n int) wire.Data {
	f := rb.helper[pos]
	if rb.zero(pos) || f == nil {
		return nil
	}
	n = min(row+n, f.row+f.rows) - row
	if n <= 0 {
		return nil
	}
	d := f.data.Sub((row-f.row)*wire.BlockSize, n*wire.BlockSize)
	d.Release() // the fetch keeps the memory
	return d
}

// make rebuilds rows of the strip at pos, from row on, into dst from the strips in use.
func (rb *rebuild) make(o *op, pos, row int, dst []byte, use []int) error {
	g := rb.gr.g
	rs, err := o.r.codecs.get(g.K, g.M)
	if err != nil {
		return err
	}
	rows := len(dst) / wire.BlockSize
	walk := make([]wire.Data, len(use))
	for i, q := range use {
		walk[i] = rb.rowsOf(q, row, rows)
	}
	shards := make([][]byte, g.K+g.M)
	need := make([]bool, g.K+g.M)
	need[pos] = true
	err = sideBySide(walk, rows, func(at int, parts [][]byte) error {
		clear(shards)
		for i, q := range use {
			shards[q] = parts[i]
		}
		n := len(parts[0])
		out := dst[at*wire.BlockSize:][:n]
		shards[pos] = out[:0:n]
		if err := rs.ReconstructSome(shards, need); err != nil {
			return err
		}
		if len(shards[pos]) != n || &shards[pos][0] != &out[0] {
			copy(out, shards[pos]) // never seen: the codec uses the memory that it is given
		}
		return nil
	})
	if err != nil {
		return wire.E("strip.rebuild", wire.KindOther, rb.gr.loc.ID.WithPos(pos).String(), err)
	}
	return nil
}

// blame finds the helpers whose row differs from what the good combination says, and notes them as bad.
func (rb *rebuild) blame(o *op, pos, row int, good []int) {
	_, maybe := rb.sources(pos)
	block := make([]byte, wire.BlockSize)
	for _, q := range maybe {
		have := rb.rowsOf(q, row, 1)
		if rb.blamed[q] || slices.Contains(good, q) || len(have) == 0 {
			continue
		}
		if err := rb.make(o, q, row, block, good); err != nil {
			return
		}
		if !bytes.Equal(block, have[0].B) {
			rb.blamed[q] = true
			f := rb.helper[q]
			o.bad = append(o.bad, Bad{Drive: f.drive, ID: f.id(), Kind: wire.KindCorrupt, Loc: *rb.gr.loc, Row: row})
		}
	}
}
