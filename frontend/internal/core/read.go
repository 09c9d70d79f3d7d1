package core

import (
	"context"
	"errors"
	"time"

	"github.com/crakefs/crake/frontend/internal/extmap"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/strip"
)

// Read gives up to n bytes at off, fewer only at the end of the file. flags are those of the open file. pages says that the kernel
// keeps what it gets (mmap).
func (fs *FS) Read(ctx context.Context, h *Handle, off uint64, n int, flags uint32, pages bool) (*Bytes, error) {
	in := h.in
	if pages {
		in.mu.Lock()
		in.pages = true
		in.mu.Unlock()
	}
	if n <= 0 || n > maxRead {
		return nil, wire.Errorf("frontend.read", wire.KindInvalid, "", "%d bytes", n)
	}
	size, err := fs.size(ctx, in)
	if err != nil {
		return nil, err
	}
	if off >= size {
		return newBytes(nil), nil
	}
	n = int(min(uint64(n), size-off))
	if flags&openDirect == 0 && !pages {
		if b := h.fromReadahead(ctx, off, n, size); b != nil {
			return b, nil
		}
	}
	return fs.readNow(ctx, in, off, n)
}

// size gives the size of the file, as this side knows it under a lease, else as the cluster says.
func (fs *FS) size(ctx context.Context, in *inode) (uint64, error) {
	in.mu.Lock()
	if in.known && in.cached() {
		defer in.mu.Unlock()
		return in.attr.Size, nil
	}
	in.mu.Unlock()
	a, err := fs.getAttr(ctx, in, wire.LeaseRead)
	return a.Size, err
}

// readNow reads n bytes that lie in the file, within the budget for reads.
func (fs *FS) readNow(ctx context.Context, in *inode, off uint64, n int) (*Bytes, error) {
	if err := fs.readSem.Acquire(ctx, int64(n)); err != nil {
		return nil, interrupted(ctx)
	}
	b := newBytes(func() { fs.readSem.Release(int64(n)) })
	if err := fs.readInto(ctx, in, off, n, b); err != nil {
		b.Done()
		return nil, err
	}
	return b, nil
}

// readInto adds n bytes at off to b: what was written here and is not committed yet, the rest from the cluster. On an error nothing has
// been added.
//
// The order matters: first what is dirty here is taken, then the extents are looked up. A block that is committed in between is in
// extents of a newer version, which are what the lookup then gives.
func (fs *FS) readInto(ctx context.Context, in *inode, off uint64, n int, b *Bytes) error {
	in.mu.Lock()
	some := in.data.Some(off, uint64(n))
	in.mu.Unlock()
	if !some {
		return fs.readCluster(ctx, in, []span{{off, n}}, b)
	}
	have, err := fs.copyDirty(ctx, in, off, n)
	if err != nil {
		return err
	}
	var gaps []span
	at, end := off, off+uint64(n)
	for _, h := range have {
		if h.off > at {
			gaps = append(gaps, span{at, int(h.off - at)})
		}
		at = h.end()
	}
	if at < end {
		gaps = append(gaps, span{at, int(end - at)})
	}
	// All gaps at once: a reader that held some of them while it waits for memory for others could be one of many.
	rest := newBytes(nil)
	defer rest.Done()
	if len(gaps) > 0 {
		if err := fs.readCluster(ctx, in, gaps, rest); err != nil {
			for _, h := range have {
				h.part.Buf.Release()
			}
			return err
		}
	}
	at, used := off, 0
	for _, h := range have {
		b.addPart(rest, used, int(h.off-at))
		used += int(h.off - at)
		b.parts = append(b.parts, h.part)
		at = h.end()
	}
	b.addPart(rest, used, int(end-at))
	return nil
}

// span is n bytes of a file at off.
type span struct {
	off uint64
	n   int
}

// dirtyRun is a copy of what is dirty from off on, with a reference.
type dirtyRun struct {
	off  uint64
	part wire.Slice
}

func (r *dirtyRun) end() uint64 { return r.off + uint64(len(r.part.B)) }

// copyDirty copies what is dirty here of n bytes at off, and gives the runs in order. They lie in one piece of memory.
func (fs *FS) copyDirty(ctx context.Context, in *inode, off uint64, n int) (have []dirtyRun, err error) {
	buf, err := fs.c.Arena.Alloc(ctx, n)
	if err != nil {
		return nil, err
	}
	defer buf.Release() // each run has its own reference
	dst := buf.Bytes()
	in.mu.Lock()
	defer in.mu.Unlock()
	in.data.CopyTo(dst, off, func(from, to uint64) {
		if k := len(have) - 1; k >= 0 && have[k].end() == from {
			have[k].part.B = dst[have[k].off-off : to-off]
			return
		}
		have = append(have, dirtyRun{off: from, part: wire.Slice{Buf: buf.Retain(), B: dst[from-off : to-off]}})
	})
	return have, nil
}

// readCluster adds the committed bytes of spans to b, all of them or none. Extents that turn out to be old are asked for again; when
// drives are away it waits for them until ctx ends.
func (fs *FS) readCluster(ctx context.Context, in *inode, spans []span, b *Bytes) error {
	pause := 5 * time.Millisecond
	for try := 0; ; {
		atOnce := false
		err := fs.tryRead(ctx, in, spans, b, try > 0)
		switch kind := wire.KindOf(err); {
		case err == nil:
			return nil
		case ctx.Err() != nil || fs.bg.Err() != nil:
			return err
		case kind == wire.KindUnavailable || kind == wire.KindTimeout || kind == wire.KindConnLost:
			// No answer is no reason to believe that the data is lost.
		case kind == wire.KindNotFound || kind == wire.KindCorrupt || kind == wire.KindRange:
			if try++; try >= readTries {
				return wire.E("frontend.read", wire.KindIO, "", err)
			}
			atOnce = try == 1 // with a fresh map
		default:
			return err
		}
		if !atOnce {
			if err := fs.wait(ctx, pause); err != nil {
				return err
			}
			pause = min(2*pause, 500*time.Millisecond)
		}
		try = max(try, 1)
	}
}

// tryRead reads once. On an error nothing has been added to b.
func (fs *FS) tryRead(ctx context.Context, in *inode, spans []span, b *Bytes, fresh bool) error {
	var pieces []extmap.Piece
	for _, s := range spans {
		end := s.off + uint64(s.n)
		for at := s.off; at < end; {
			region := at / wire.RegionBytes
			stop := min(end, (region+1)*wire.RegionBytes)
			m, err := fs.mapOf(ctx, in, region, fresh)
			if err != nil {
				if errors.Is(err, wire.KindNotFound) {
					return wire.E("frontend.extents", wire.KindStale, "", err) // the inode, not a strip
				}
				return err
			}
			pieces = append(pieces, m.Plan(at, stop-at)...)
			at = stop
		}
	}
	var wants []strip.Want
	for i := range pieces {
		if pieces[i].Want != nil {
			wants = append(wants, *pieces[i].Want)
		}
	}
	var datas []wire.Data
	if len(wants) > 0 {
		var err error
		if datas, err = fs.c.Blocks.Read(ctx, wants); err != nil {
			return err
		}
	}
	for i := range pieces {
		p := &pieces[i]
		switch {
		case p.Want != nil:
			b.addData(datas[0], p.Skip, int(p.Len))
			datas = datas[1:]
		case p.Inline != nil:
			b.parts = append(b.parts, wire.Slice{B: p.Inline})
		default:
			b.addZeros(int(p.Len))
		}
	}
	return nil
}

// Seek finds the next place at or after off with data, or with hole without (the end of the file is a hole). KindNoData:
// there is none (ENXIO).
func (fs *FS) Seek(ctx context.Context, h *Handle, off uint64, hole bool) (uint64, error) {
	in := h.in
	none := wire.E("frontend.seek", wire.KindNoData, "", nil)
	if err := fs.flush(ctx, in, 0, wholeFile, true); err != nil {
		return 0, err
	}
	size, err := fs.size(ctx, in)
	if err != nil {
		return 0, err
	}
	for at := off; at < size; {
		region := at / wire.RegionBytes
		stop := min(size, (region+1)*wire.RegionBytes)
		m, err := fs.mapOf(ctx, in, region, false)
		if err != nil {
			return 0, err
		}
		if found, ok := m.Seek(at, stop, hole); ok {
			return found, nil
		}
		at = stop
	}
	if hole && off < size {
		return size, nil
	}
	return 0, none
}
