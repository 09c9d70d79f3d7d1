package meta

import (
	"context"
	"slices"

	"github.com/cockroachdb/pebble/v2"
	"github.com/crakefs/crake/wire"
)

// extentSet is the extents of one file that overlap a range of one region, while an operation changes them.
// Invariant: list is in order and does not overlap.
type extentSet struct {
	ino   wire.Ino
	list  []mapped
	found []uint64 // first blocks of the records that were read
}

type mapped struct {
	extent
	dirty bool // not as in the database
}

// loadExtents reads the extents of [from, to), blocks of one region.
func (b *Bucket) loadExtents(ino wire.Ino, from, to uint64) (*extentSet, error) {
	s := &extentSet{ino: ino}
	region := from - from%regionBlocks
	it, err := b.db.NewIter(&pebble.IterOptions{
		LowerBound: inoPrefix(tagExtent, ino).u64(region), UpperBound: inoPrefix(tagExtent, ino).u64(min(to, region+regionBlocks)),
	})
	if err != nil {
		return nil, b.dbError(err)
	}
	defer func() { _ = it.Close() }()
	// The last extent that begins before the range may reach into it.
	ok := it.SeekLT(inoPrefix(tagExtent, ino).u64(from))
	if !ok {
		ok = it.First()
	}
	for ; ok; ok = it.Next() {
		f, rest, good := splitKey(it.Key(), 2)
		if !good || len(rest) != snapBytes {
			return nil, corruptKey(it.Key())
		}
		v, err := it.ValueAndErr()
		if err != nil {
			return nil, b.dbError(err)
		}
		e, err := decodeExtent(f[1], v)
		if err != nil {
			return nil, err
		}
		if e.end() <= from {
			continue
		}
		if n := len(s.list); n > 0 && s.list[n-1].end() > e.block {
			return nil, wire.Errorf("meta.extent", wire.KindCorrupt, inoName(ino), "extents overlap at block %d", e.block)
		}
		s.list = append(s.list, mapped{extent: e})
		s.found = append(s.found, e.block)
	}
	if err := it.Error(); err != nil {
		return nil, b.dbError(err)
	}
	return s, nil
}

// cut takes the blocks [from, to) out and gives their number.
func (s *extentSet) cut(t *tx, from, to uint64) (removed uint64) {
	var out []mapped
	for _, m := range s.list {
		if m.end() <= from || m.block >= to {
			out = append(out, m)
			continue
		}
		lo, hi := max(m.block, from), min(m.end(), to)
		removed += hi - lo
		t.drop(m.number, hi-lo)
		if m.block < from {
			n := from - m.block
			left := m.extent
			left.length, left.sums = n*wire.BlockSize, m.sums[:n:n]
			out = append(out, mapped{left, true})
		}
		if m.end() > to {
			n := to - m.block
			right := m.extent
			right.block, right.locBlock = to, m.locBlock+uint32(n)
			right.length, right.sums = m.length-n*wire.BlockSize, m.sums[n:]
			out = append(out, mapped{right, true})
		}
	}
	s.list = out
	return removed
}

// trim takes everything from byte end on out: the block in which end lies is kept, in part.
func (s *extentSet) trim(t *tx, end uint64, last uint64) (removed uint64) {
	removed = s.cut(t, blocksOf(end), last)
	if n := len(s.list); n > 0 {
		if m := &s.list[n-1]; m.block*wire.BlockSize+m.length > end && m.block*wire.BlockSize < end {
			m.length, m.dirty = end-m.block*wire.BlockSize, true
		}
	}
	return removed
}

// put adds an extent where cut has made room, pointing to a location that this operation has written.
func (s *extentSet) put(t *tx, e extent, loc *wire.Location) {
	i, _ := slices.BinarySearchFunc(s.list, e.block, func(m mapped, b uint64) int {
		switch {
		case m.block < b:
			return -1
		case m.block > b:
			return 1
		}
		return 0
	})
	s.list = slices.Insert(s.list, i, mapped{e, true})
	t.use(loc, e.locBlock, owner{ino: s.ino, block: e.block, blocks: e.blocks()})
}

// store writes the difference to what was loaded into the batch.
func (s *extentSet) store(t *tx) error {
	keep := make(map[uint64]struct{}, len(s.list))
	for i := range s.list {
		m := &s.list[i]
		keep[m.block] = struct{}{}
		if m.dirty {
			if err := t.set(extentKey(s.ino, m.block), m.append(nil)); err != nil {
				return err
			}
		}
	}
	for _, block := range s.found {
		if _, ok := keep[block]; !ok {
			if err := t.del(extentKey(s.ino, block)); err != nil {
				return err
			}
		}
	}
	return nil
}

// answerExtents describes the extents of [from, to) for a client. n is the inode where the range lies in region 0.
func (b *Bucket) answerExtents(n *inode, ino wire.Ino, from, to uint64) (*wire.ExtentsResp, error) {
	if n != nil && n.inlined() {
		return &wire.ExtentsResp{HasInline: true, Inline: n.inline}, nil
	}
	s, err := b.loadExtents(ino, from, to)
	if err != nil {
		return nil, err
	}
	resp := &wire.ExtentsResp{}
	index := map[uint64]uint32{}
	for i := range s.list {
		m := &s.list[i]
		at, ok := index[m.number]
		if !ok {
			l, err := b.readLocation(m.number)
			if err != nil {
				return nil, err
			}
			if l == nil {
				return nil, wire.Errorf("meta.extents", wire.KindCorrupt, inoName(ino), "no record of location %d", m.number)
			}
			at = uint32(len(resp.Locations))
			index[m.number] = at
			resp.Locations = append(resp.Locations, l.loc)
		}
		resp.Extents = append(resp.Extents, wire.Extent{
			FileOff: m.block * wire.BlockSize, Len: m.length, Loc: at, Block: m.locBlock, Sums: m.sums,
		})
	}
	return resp, nil
}

// Extents answers the extents of a range of one region.
func (b *Bucket) Extents(ctx context.Context, req *wire.ExtentsReq) (*wire.ExtentsResp, error) {
	region, from, to, err := b.regionRange("meta.extents", req.Ino, req.Off, req.Len)
	if err != nil {
		return nil, err
	}
	var resp *wire.ExtentsResp
	if region == 0 {
		err := b.inspect(ctx, "meta.extents", req.Session, req.Ino, wire.LeaseNone, func(n *inode) (err error) {
			if !n.isRegular() {
				return wire.E("meta.extents", wire.KindInvalid, inoName(req.Ino), nil)
			}
			resp, err = b.answerExtents(n, req.Ino, from, to)
			return err
		})
		return resp, err
	}
	if err := b.enter(); err != nil {
		return nil, err
	}
	defer b.leave()
	h, err := b.locks.acquire(ctx, b.cfg.LockWait, wantRegions(req.Ino, false))
	if err != nil {
		return nil, err
	}
	resp, err = b.answerExtents(nil, req.Ino, from, to)
	h.release(nil)
	if derr := h.durable(); derr != nil {
		return nil, derr
	}
	return resp, err
}

// regionRange checks that a range of bytes lies in one region that this bucket maps, and gives its blocks.
func (b *Bucket) regionRange(op string, ino wire.Ino, off, length uint64) (region, from, to uint64, err error) {
	if length == 0 || off >= wire.MaxFileBytes || length > wire.RegionBytes || off%wire.RegionBytes+length > wire.RegionBytes {
		return 0, 0, 0, wire.Errorf(op, wire.KindInvalid, inoName(ino), "range %d+%d", off, length)
	}
	region = off / wire.RegionBytes
	if wire.RegionBucket(ino, region, b.cfg.Buckets) != b.cfg.Bucket {
		return 0, 0, 0, wire.Errorf(op, wire.KindMoved, inoName(ino), "region %d", region)
	}
	return region, off / wire.BlockSize, blocksOf(off + length), nil
}
