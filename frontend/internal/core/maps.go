package core

import (
	"context"
	"encoding/binary"

	"github.com/cespare/xxhash/v2"

	"github.com/crakefs/crake/frontend/internal/extmap"
	"github.com/crakefs/crake/wire"
)

// cachedMap is where a region lies, as it was asked for under a lease. It counts only while its inode's generation and
// the region's version are still the same: so a cache that forgets, or is late, is never wrong.
type cachedMap struct {
	ino    wire.Ino
	region uint64
	gen    uint64
	ver    uint64
	m      *extmap.Map
}

func mapKey(ino wire.Ino, region uint64) uint64 {
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:], uint64(ino))
	binary.LittleEndian.PutUint64(b[8:], region)
	return xxhash.Sum64(b[:])
}

// mapOf gives the extents of a region: from the cache when there is a lease and not fresh, else from the cluster.
func (fs *FS) mapOf(ctx context.Context, in *inode, region uint64, fresh bool) (*extmap.Map, error) {
	in.mu.Lock()
	gen, ver, cached := in.mapsGen, in.mapsVer[region], in.cached()
	var have *cachedMap
	if cached && !fresh {
		have = in.lookMap(region)
	}
	in.mu.Unlock()
	if have != nil {
		return have.m, nil
	}
	var resp wire.ExtentsResp
	req := &wire.ExtentsReq{Session: fs.sess.id, Ino: in.ino, Off: region * wire.RegionBytes, Len: wire.RegionBytes}
	if err := fs.ask(ctx, fs.bucketOf(in.ino, region), wire.MExtents, req, &resp); err != nil {
		return nil, err
	}
	m, err := extmap.New(&resp)
	if err != nil {
		return nil, err
	}
	if cached {
		in.mu.Lock()
		in.keepMap(&cachedMap{in.ino, region, gen, ver, m})
		in.mu.Unlock()
	}
	return m, nil
}

// lookMap finds the map of a region, if it still counts. mu is held, the lease is there.
func (in *inode) lookMap(region uint64) *cachedMap {
	counts := func(c *cachedMap) bool {
		return c != nil && c.ino == in.ino && c.region == region && c.gen == in.mapsGen && c.ver == in.mapsVer[region]
	}
	if counts(in.hot) {
		return in.hot
	}
	c, _ := in.fs.extents.Get(mapKey(in.ino, region))
	if !counts(c) {
		return nil
	}
	if in.handles > 0 {
		in.hot = c
	}
	return c
}

// keepMap keeps a map. mu is held.
func (in *inode) keepMap(c *cachedMap) {
	in.fs.extents.Set(mapKey(c.ino, c.region), c, c.m.Cost())
	if in.handles > 0 && c.gen == in.mapsGen && c.ver == in.mapsVer[c.region] {
		in.hot = c
	}
}

// keepOpened keeps the extents that came with an open. mu is held, the lease is there.
func (in *inode) keepOpened(resp *wire.ExtentsResp) {
	if m, err := extmap.New(resp); err == nil && in.data.Clean() {
		in.keepMap(&cachedMap{in.ino, 0, in.mapsGen, in.mapsVer[0], m})
	}
}

// remap notes that the extents of a region have changed; change makes the new map of the old one, or is nil, or gives nil when it
// cannot. mu is held.
func (in *inode) remap(region uint64, change func(old *extmap.Map) *extmap.Map) {
	var old *cachedMap
	if change != nil && in.cached() {
		old = in.lookMap(region)
	}
	if in.mapsVer == nil {
		in.mapsVer = map[uint64]uint64{}
	}
	if len(in.mapsVer) >= maxVersions {
		in.mapsGen++
		clear(in.mapsVer)
	}
	in.mapsVer[region]++
	if old == nil || old.gen != in.mapsGen || old.m.Extents() > mergeExtents {
		return
	}
	if m := change(old.m); m != nil {
		in.keepMap(&cachedMap{in.ino, region, in.mapsGen, in.mapsVer[region], m})
	}
}
