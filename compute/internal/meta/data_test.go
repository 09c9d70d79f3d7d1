package meta

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cespare/xxhash/v2"
	"github.com/crakefs/crake/wire"
)

// fileModel is a file as a byte array, and its writer, who does what a frontend does.
type fileModel struct {
	r    *rig
	ino  wire.Ino
	data []byte // all of the file
	prep map[uint64]bool
}

// span is a run of bytes to write.
type span struct{ off, n uint64 }

// write changes the model and sends whole blocks, as a frontend does: region by region, the one with the size last.
func (m *fileModel) write(rng *rand.Rand, spans ...span) error {
	end := uint64(len(m.data))
	for _, s := range spans {
		end = max(end, s.off+s.n)
	}
	m.data = append(m.data, make([]byte, end-uint64(len(m.data)))...)
	byRegion := map[uint64][]span{}
	for _, s := range spans {
		for i := s.off; i < s.off+s.n; i += 8 {
			v := rng.Uint64()
			for j := i; j < min(i+8, s.off+s.n); j++ {
				m.data[j] = byte(v >> (8 * (j - i)))
			}
		}
		for at := s.off; at < s.off+s.n; {
			region := at / wire.RegionBytes
			to := min(s.off+s.n, (region+1)*wire.RegionBytes)
			byRegion[region] = append(byRegion[region], span{at, to - at})
			at = to
		}
	}
	var regions []uint64
	for region := range byRegion {
		if region > 0 && !m.prep[region] {
			regions = append(regions, region)
			m.prep[region] = true
		}
	}
	if len(regions) > 0 {
		req := &wire.PrepareReq{Op: m.r.op(), Ino: m.ino, Regions: regions}
		if err := m.r.retry(m.ino.Bucket(), func(b *Bucket) error { return b.Prepare(ctxT(m.r.t), req) }); err != nil {
			return err
		}
	}
	for region, list := range byRegion {
		if region > 0 {
			if err := m.send(region, list, false); err != nil {
				return err
			}
		}
	}
	return m.send(0, byRegion[0], true)
}

// send writes the blocks that the spans touch in one region.
func (m *fileModel) send(region uint64, spans []span, publish bool) error {
	touched := make([]bool, regionBlocks)
	for _, s := range spans {
		for b := s.off / wire.BlockSize; b < blocksOf(s.off+s.n); b++ {
			touched[b-region*regionBlocks] = true
		}
	}
	fw := wire.FileWrite{Ino: m.ino, Region: region, Publish: publish, Size: uint64(len(m.data)), Mtime: m.r.clock.Add(1)}
	var payload []byte
	for i := 0; i < regionBlocks; i++ {
		if !touched[i] {
			continue
		}
		first := i
		for i < regionBlocks && touched[i] {
			i++
		}
		off := (region*regionBlocks + uint64(first)) * wire.BlockSize
		run := wire.WriteRun{Off: off, Len: min(uint64(i-first)*wire.BlockSize, uint64(len(m.data))-off)}
		for b := first; b < i; b++ {
			block := make([]byte, wire.BlockSize)
			copy(block, m.data[(region*regionBlocks+uint64(b))*wire.BlockSize:])
			run.Sums = append(run.Sums, xxhash.Sum64(block))
			payload = append(payload, block...)
		}
		fw.Runs = append(fw.Runs, run)
	}
	bucket := wire.RegionBucket(m.ino, region, m.r.n)
	req := &wire.WriteReq{Op: m.r.op(), Bucket: bucket, Files: []wire.FileWrite{fw}}
	data := m.r.payload(payload)
	defer data.Release()
	return m.r.retry(bucket, func(b *Bucket) error {
		resp, err := b.Write(ctxT(m.r.t), req, data)
		if err == nil && (len(resp.Extents) != 1 || publish && (len(resp.Attrs) != 1 || resp.Attrs[0].Size != uint64(len(m.data)))) {
			return fmt.Errorf("answer %+v", resp)
		}
		return err
	})
}

// payload makes a data section of several parts.
func (r *rig) payload(b []byte) wire.Data {
	var out wire.Data
	for len(b) > 0 {
		n := min(len(b), 5*wire.BlockSize)
		buf, err := r.arena.Alloc(context.Background(), n)
		if err != nil {
			r.t.Fatal(err)
		}
		copy(buf.Bytes(), b[:n])
		out = append(out, buf.Data(n)...)
		b = b[n:]
	}
	return out
}

func (m *fileModel) truncate(size uint64) error {
	if size <= uint64(len(m.data)) {
		m.data = m.data[:size:size]
	} else {
		m.data = append(m.data, make([]byte, size-uint64(len(m.data)))...)
	}
	for region := range m.prep {
		if region*wire.RegionBytes >= size {
			delete(m.prep, region)
		}
	}
	req := &wire.SetAttrReq{Op: m.r.op(), Ino: m.ino, Valid: wire.SetSize, Size: size}
	return m.r.retry(m.ino.Bucket(), func(b *Bucket) error {
		resp, err := b.SetAttr(ctxT(m.r.t), req)
		if err == nil && resp.Attr.Size != size {
			return fmt.Errorf("size %d, want %d", resp.Attr.Size, size)
		}
		return err
	})
}

func (m *fileModel) punch(off, n uint64) error {
	for at := off; at < off+n; {
		to := min(off+n, (at/wire.RegionBytes+1)*wire.RegionBytes)
		req := &wire.PunchReq{Op: m.r.op(), Ino: m.ino, Off: at, Len: to - at}
		bucket := wire.RegionBucket(m.ino, at/wire.RegionBytes, m.r.n)
		if err := m.r.retry(bucket, func(b *Bucket) error { return b.Punch(ctxT(m.r.t), req) }); err != nil {
			return err
		}
		at = to
	}
	if off < uint64(len(m.data)) {
		clear(m.data[off:min(off+n, uint64(len(m.data)))])
	}
	return nil
}

func (m *fileModel) publish(size uint64) error {
	if size > uint64(len(m.data)) {
		m.data = append(m.data, make([]byte, size-uint64(len(m.data)))...)
	}
	req := &wire.PublishReq{Op: m.r.op(), Ino: m.ino, Size: size, Mtime: 5}
	return m.r.retry(m.ino.Bucket(), func(b *Bucket) error {
		_, err := b.Publish(ctxT(m.r.t), req)
		return err
	})
}

// verify reads the whole file and compares.
func (m *fileModel) verify(what string) {
	m.r.t.Helper()
	if a := m.r.getattr(m.ino); a.Size != uint64(len(m.data)) {
		m.r.t.Fatalf("%s: size %d, want %d", what, a.Size, len(m.data))
	}
	if len(m.data) == 0 {
		return
	}
	got := m.r.readFile(m.ino, 0, uint64(len(m.data)))
	if !bytes.Equal(got, m.data) {
		at := 0
		for got[at] == m.data[at] {
			at++
		}
		m.r.t.Fatalf("%s: byte %d (block %d) is %x, want %x", what, at, at/wire.BlockSize, got[at], m.data[at])
	}
}

// step does something at random. small keeps the file where inline data and partial blocks meet.
func (m *fileModel) step(rng *rand.Rand, small bool) (string, error) {
	limit := uint64(3*wire.RegionBytes + 12345)
	if small {
		limit = 9000
	}
	pick := func() uint64 {
		v := rng.Uint64N(limit)
		if rng.IntN(3) == 0 {
			v -= v % wire.BlockSize
		}
		if rng.IntN(4) == 0 { // near the end of the file
			v = min(limit-1, uint64(len(m.data))+rng.Uint64N(5000))
		}
		return v
	}
	switch rng.IntN(10) {
	case 0, 1:
		size := pick()
		return fmt.Sprintf("truncate %d", size), m.truncate(size)
	case 2:
		off := pick() &^ (wire.BlockSize - 1)
		n := wire.BlockSize * (1 + rng.Uint64N(40))
		return fmt.Sprintf("punch %d+%d", off, n), m.punch(off, n)
	case 3:
		size := pick()
		return fmt.Sprintf("publish %d", size), m.publish(size)
	}
	var spans []span
	for range 1 + rng.IntN(4) {
		n := 1 + rng.Uint64N(8000)
		if !small && rng.IntN(3) == 0 {
			n = 1 + rng.Uint64N(900_000)
		}
		if small && rng.IntN(2) == 0 {
			n = 1 + rng.Uint64N(500)
		}
		off := pick()
		if rng.IntN(4) == 0 {
			off = 0
		}
		spans = append(spans, span{off, min(n, limit)})
	}
	return fmt.Sprintf("write %v", spans), m.write(rng, spans...)
}

// Extents against a byte model: random writes, truncations, punches; inline data, regions in other buckets, segments and
// stripes; every record agrees at the end (block counts, live counts, nothing lost and nothing leaked).
func TestFileModel(t *testing.T) {
	for _, small := range []bool{true, false} {
		for seed := range uint64(4) {
			t.Run(fmt.Sprintf("small=%v/%d", small, seed), func(t *testing.T) {
				t.Parallel()
				r := newRig(t, 3, rigOptions{})
				m := &fileModel{r: r, ino: r.file(r.makeRoot(), "f"), prep: map[uint64]bool{}}
				rng := rand.New(rand.NewPCG(seed, 1))
				steps := 60
				if small {
					steps = 300
				}
				for i := range steps {
					what, err := m.step(rng, small)
					if err != nil {
						t.Fatalf("step %d, %s: %v", i, what, err)
					}
					m.verify(fmt.Sprintf("step %d, %s", i, what))
				}
				r.settle()
				r.check()
				r.checkBlocks(m)
				ok(t, r.unlink(r.root(), "f", false))
				r.settle()
				r.check()
				r.checkGone()
			})
		}
	}
}

// checkBlocks compares st_blocks with what the extents of all buckets say.
func (r *rig) checkBlocks(m *fileModel) {
	r.t.Helper()
	want := uint64(0)
	for i := range r.n {
		b := r.bucket(wire.BucketID(i))
		err := b.scan(inoPrefix(tagExtent, m.ino), nil, func(k, v []byte) (bool, error) {
			f, _, _ := splitKey(k, 2)
			e, err := decodeExtent(f[1], v)
			want += 8 * e.blocks()
			return true, err
		})
		if err != nil {
			r.t.Fatal(err)
		}
	}
	a := r.getattr(m.ino)
	n, err := r.bucket(m.ino.Bucket()).readInode(m.ino)
	if err != nil {
		r.t.Fatal(err)
	}
	if n.inlined() {
		want += blocksOf512(len(n.inline))
	}
	if a.Blocks != want {
		r.t.Fatalf("st_blocks %d, want %d", a.Blocks, want)
	}
}

func blocksOf512(n int) uint64 { return uint64(n+511) / 512 }

// checkGone makes sure that no bucket maps or remembers any data, and that the stores hold at most the segments that
// are still open.
func (r *rig) checkGone() {
	r.t.Helper()
	for i := range r.n {
		b := r.bucket(wire.BucketID(i))
		for _, tag := range []byte{tagExtent, tagMarker, tagRemote, tagForeign, tagXattr, tagOrphan} {
			err := b.scan(newKey(tag), nil, func(k, _ []byte) (bool, error) {
				r.t.Errorf("bucket %d: record %q is left: %x", i, tag, k)
				return true, nil
			})
			if err != nil {
				r.t.Fatal(err)
			}
		}
		s := r.stores[i]
		if err := b.freeSegments(ctxT(r.t)); err != nil {
			r.t.Fatal(err)
		}
		s.mu.Lock()
		if len(s.stripes) > 0 || len(s.segs) > 1 {
			r.t.Errorf("bucket %d: %d stripes and %d segments are left", i, len(s.stripes), len(s.segs))
		}
		s.mu.Unlock()
	}
}
