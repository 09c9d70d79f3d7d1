package fake

import (
	"context"
	"slices"

	"github.com/cespare/xxhash/v2"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/strip"
)

// write stores runs, after checking what compute would: lease, region, checksums, marks, space.
func (f *Cluster) write(s wire.SessionID, b wire.BucketID, q *wire.WriteReq, data wire.Data) (wire.Message, error) {
	flat := flat(data)
	if uint64(len(flat)) > f.Free {
		return nil, Err(wire.KindNoSpace)
	}
	resp := &wire.WriteResp{}
	for _, w := range q.Files {
		in := f.Inodes[w.Ino]
		if in == nil {
			return nil, Err(wire.KindStale)
		}
		if in.Leases[s] != wire.LeaseWrite {
			return nil, Err(wire.KindLeaseLost)
		}
		if f.bucket(w.Ino, w.Region) != b || w.Region > 0 && !in.marked[w.Region] {
			return nil, wire.Errorf("fake", wire.KindInvalid, "", "region %d in bucket %d, marked %v", w.Region, b, in.marked[w.Region])
		}
	}
	for _, w := range q.Files {
		in := f.Inodes[w.Ino]
		for _, r := range w.Runs {
			f.next++
			n := len(r.Sums) * wire.BlockSize
			f.strips[f.next] = slices.Clone(flat[:n])
			for i, sum := range r.Sums {
				if got := xxhash.Sum64(flat[i*wire.BlockSize : (i+1)*wire.BlockSize]); got != sum {
					return nil, Err(wire.KindCorrupt)
				}
				blk := r.Off/wire.BlockSize + uint64(i)
				if blk*wire.BlockSize/wire.RegionBytes != w.Region {
					return nil, Err(wire.KindInvalid)
				}
				in.Blocks[blk] = block{f.next, i, sum, min(wire.BlockSize, r.Len-uint64(i)*wire.BlockSize)}
			}
			if want := (r.Len + wire.BlockSize - 1) / wire.BlockSize; want != uint64(len(r.Sums)) {
				return nil, Err(wire.KindInvalid)
			}
			flat = flat[n:]
		}
		if w.Publish {
			in.Attr.Size = max(in.Attr.Size, w.Size)
			in.Attr.Mtime = w.Mtime
		}
		in.touch()
		if w.Publish {
			resp.Attrs = append(resp.Attrs, in.Attr)
		}
		resp.Extents = append(resp.Extents, *f.extentsOf(in, w.Runs))
	}
	f.Free -= uint64(data.Len())
	f.Writes = append(f.Writes, *q)
	return resp, nil
}

func (f *Cluster) extentsOf(in *Inode, runs []wire.WriteRun) *wire.ExtentsResp {
	var r wire.ExtentsResp
	for _, run := range runs {
		for i := range run.Sums {
			f.addExtent(&r, in, run.Off/wire.BlockSize+uint64(i))
		}
	}
	return &r
}

func (f *Cluster) extents(in *Inode, region uint64) *wire.ExtentsResp {
	var r wire.ExtentsResp
	for b := region * wire.RegionBytes / wire.BlockSize; b < (region+1)*wire.RegionBytes/wire.BlockSize; b++ {
		if _, ok := in.Blocks[b]; ok {
			f.addExtent(&r, in, b)
		}
	}
	return &r
}

func (f *Cluster) addExtent(r *wire.ExtentsResp, in *Inode, b uint64) {
	blk := in.Blocks[b]
	if k := len(r.Extents); k > 0 {
		e := &r.Extents[k-1]
		if l := &r.Locations[e.Loc]; l.ID.Number() == blk.strip && e.FileOff+e.Len == b*wire.BlockSize &&
			int(e.Block)+len(e.Sums) == blk.index {
			e.Len += blk.bytes
			e.Sums = append(e.Sums, blk.sum)
			return
		}
	}
	r.Locations = append(r.Locations, wire.Location{Kind: wire.LocStripe, K: K, M: M, Drives: make([]wire.DriveID, K+M),
		ID:     wire.MakeStripID(in.Attr.Ino.Bucket(), wire.ClassData, 0, blk.strip, 0, 7),
		Blocks: uint32(len(f.strips[blk.strip]) / wire.BlockSize)})
	r.Extents = append(r.Extents, wire.Extent{FileOff: b * wire.BlockSize, Len: blk.bytes, Loc: uint32(len(r.Locations) - 1),
		Block: uint32(blk.index), Sums: []uint64{blk.sum}})
}

// Read is the drives.
func (f *Cluster) Read(ctx context.Context, wants []strip.Want) ([]wire.Data, error) {
	f.Mu.Lock()
	hook := f.ReadHook
	f.Mu.Unlock()
	if hook != nil {
		if err := hook(wants); err != nil {
			return nil, err
		}
	}
	var out []wire.Data
	fail := func(k wire.Kind) ([]wire.Data, error) {
		for _, d := range out {
			d.Release()
		}
		return nil, Err(k)
	}
	for _, w := range wants {
		f.Mu.Lock()
		s, ok := f.strips[w.Loc.ID.Number()]
		f.Mu.Unlock()
		if !ok {
			return fail(wire.KindNotFound)
		}
		n := w.Blocks * wire.BlockSize
		buf, err := f.Arena.Alloc(ctx, n)
		if err != nil {
			return nil, err
		}
		copy(buf.Bytes(), s[w.Block*wire.BlockSize:])
		out = append(out, buf.Data(n))
		for i, sum := range w.Sums {
			if xxhash.Sum64(buf.Bytes()[i*wire.BlockSize:(i+1)*wire.BlockSize]) != sum {
				return fail(wire.KindCorrupt)
			}
		}
	}
	return out, nil
}

// Rewrite moves everything to other strips and deletes the old ones, as compaction does, without telling anybody.
func (f *Cluster) Rewrite() {
	f.Mu.Lock()
	defer f.Mu.Unlock()
	old := f.strips
	f.strips = map[uint64][]byte{}
	for _, in := range f.Inodes {
		for b, blk := range in.Blocks {
			f.next++
			f.strips[f.next] = slices.Clone(old[blk.strip][blk.index*wire.BlockSize:][:wire.BlockSize])
			blk.strip, blk.index = f.next, 0
			in.Blocks[b] = blk
		}
	}
}
