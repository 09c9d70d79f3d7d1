package logfs

import (
	"context"
	"sort"
	"time"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/copies"
	"github.com/crakefs/crake/wire/strip"
)

// chunkBytes is the most of a table in one stripe.
func (fs *FS) chunkBytes() int {
	return fs.b.DataStrips() * wire.StripBytes
}

// tableWrite adds bytes to a table. n.write is held.
func (n *node) tableWrite(p []byte) error {
	if gone, err := n.fs.gone(); gone {
		return err
	}
	n.dirty = true
	limit := n.fs.chunkBytes()
	if inline := n.inline; len(inline) > 0 {
		if err := n.grow(0, limit, n.flushChunk); err != nil {
			return err
		}
		n.mu.Lock()
		n.inline, n.bufLen = nil, copy(n.buf.Bytes(), inline)
		n.mu.Unlock()
	}
	for len(p) > 0 {
		if n.bufLen == limit {
			if err := n.flushChunk(); err != nil {
				return err
			}
		}
		if err := n.grow(0, limit, n.flushChunk); err != nil {
			return err
		}
		n.mu.Lock()
		c := copy(n.buf.Bytes()[n.bufLen:], p)
		copies.Add(copies.Meta, c)
		n.bufLen += c
		n.modTime = time.Now()
		n.mu.Unlock()
		p = p[c:]
	}
	return nil
}

// flushChunk writes buf as a chunk. n.write is held.
func (n *node) flushChunk() error {
	if n.bufLen == 0 {
		return nil
	}
	if err := n.own(0); err != nil { // of an attempt that failed
		return err
	}
	blocks := (n.bufLen + wire.BlockSize - 1) / wire.BlockSize
	if len(n.buf.Bytes()) < blocks*wire.BlockSize { // grow gives whole blocks, but firstPendBytes may change
		return wire.Errorf("table.write", wire.KindOther, n.name, "buffer of %d bytes", len(n.buf.Bytes()))
	}
	b := n.buf.Bytes()[:blocks*wire.BlockSize]
	clear(b[n.bufLen:])
	c, err := n.putChunk(wire.Data{{Buf: n.buf, B: b}}, n.bufLen)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ends = append(n.ends, n.saved()+int64(n.bufLen))
	n.chunks = append(n.chunks, c)
	n.buf.Release()
	n.buf, n.bufLen = nil, 0
	return nil
}

// putChunk writes one chunk; data is borrowed.
func (n *node) putChunk(data wire.Data, bytes int) (chunk, error) {
	if len(n.chunks) > wire.MaxStripIndex {
		return chunk{}, wire.Errorf("table.write", wire.KindTooBig, n.name, "%d chunks", len(n.chunks))
	}
	c := chunk{bytes: bytes, sums: strip.Sums(data)}
	var full error
	err := n.fs.retry(n.name, func() (err error) {
		id := func() wire.StripID { return n.fs.b.NewID(wire.ClassTable, n.data.Number(), uint16(len(n.chunks))) }
		err = wire.KindUnavailable
		if data.Len() >= MirrorBelowBytes {
			c.loc, err = n.fs.b.PutStripe(n.fs.ctx, id(), data, c.sums, true)
		}
		// With fewer than k+m domains a stripe would survive less than m losses. Mirrored it survives them: the database
		// is worth the space.
		if wire.KindOf(err) == wire.KindUnavailable {
			c.loc, err = n.fs.b.PutMirrored(n.fs.ctx, id(), data, c.sums)
		}
		if wire.KindOf(err) == wire.KindNoSpace { // Pebble can live without this table for now
			full, err = err, nil
		}
		return err
	})
	if err == nil {
		err = full
	}
	return c, err
}

// tableSync makes the table exist with all that was written. n.write is held.
func (n *node) tableSync() error {
	if gone, err := n.fs.gone(); gone {
		return err
	}
	if !n.dirty {
		return nil
	}
	if n.inMem {
		return n.rewrite()
	}
	if len(n.chunks) == 0 && n.bufLen <= InlineBytes {
		n.mu.Lock()
		if n.buf != nil {
			n.inline = append([]byte(nil), n.buf.Bytes()[:n.bufLen]...)
			n.buf.Release()
			n.buf, n.bufLen = nil, 0
		}
		n.mu.Unlock()
	} else if err := n.flushChunk(); err != nil {
		return err
	}
	if err := n.publish(n.name); err != nil {
		return err
	}
	n.dirty = false
	return nil
}

// load reads the chunk table of a table that was found at Open, if it is not in memory.
func (n *node) load() error {
	n.mu.Lock()
	unread, desc := n.unread, n.desc
	n.mu.Unlock()
	if !unread {
		return nil
	}
	d, _, _, err := n.fs.readMeta(n.fs.ctx, desc.id, desc.at)
	if err != nil {
		return err
	}
	if d == nil {
		return wire.Errorf("table.open", wire.KindCorrupt, desc.id.String(), "no description of a file")
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.unread {
		n.setChunks(d)
	}
	return nil
}

// setChunks takes the content from a description. n.mu is held.
func (n *node) setChunks(d *description) {
	n.unread, n.inline, n.chunks, n.ends = false, d.inline, d.chunks, nil
	at := int64(0)
	for i := range d.chunks {
		at += int64(d.chunks[i].bytes)
		n.ends = append(n.ends, at)
	}
}

// readTable reads into p from off what is on drives or in memory; p must lie within the file. Only the blocks needed are
// read, each verified.
func (n *node) readTable(ctx context.Context, p []byte, off int64) error {
	n.mu.Lock()
	if n.inMem {
		copy(p, n.mem[off:])
		n.mu.Unlock()
		return nil
	}
	if len(n.inline) > 0 {
		copy(p, n.inline[off:])
		n.mu.Unlock()
		return nil
	}
	saved := n.saved()
	if end := off + int64(len(p)); end > saved { // the end of it is still in the buffer
		from := max(off, saved)
		copy(p[from-off:], n.buf.Bytes()[from-saved:n.bufLen])
		p = p[:from-off]
	}
	chunks, ends := n.chunks, n.ends // only ever appended to
	n.mu.Unlock()
	type part struct {
		skip, bytes int // within the blocks that were read
	}
	var wants []strip.Want
	var parts []part
	i := sort.Search(len(ends), func(i int) bool { return ends[i] > off })
	for left := len(p); left > 0; i++ {
		c := &chunks[i]
		at := int(off - (ends[i] - int64(c.bytes)))
		take := min(left, c.bytes-at)
		b0, b1 := at/wire.BlockSize, (at+take+wire.BlockSize-1)/wire.BlockSize
		wants = append(wants, strip.Want{Loc: &c.loc, Block: b0, Blocks: b1 - b0, Sums: c.sums[b0:b1]})
		parts = append(parts, part{skip: at - b0*wire.BlockSize, bytes: take})
		off += int64(take)
		left -= take
	}
	if len(wants) == 0 {
		return nil
	}
	ds, err := n.fs.read(ctx, wants)
	if err != nil {
		return err
	}
	for i, d := range ds {
		copyOut(p[:parts[i].bytes], d, parts[i].skip)
		copies.Add(copies.Meta, parts[i].bytes)
		p = p[parts[i].bytes:]
		d.Release()
	}
	return nil
}

func copyOut(p []byte, d wire.Data, skip int) {
	for _, s := range d {
		if skip >= len(s.B) {
			skip -= len(s.B)
			continue
		}
		p = p[copy(p, s.B[skip:]):]
		skip = 0
	}
}

// read reads blocks, again for a while when drives are away.
func (fs *FS) read(ctx context.Context, wants []strip.Want) ([]wire.Data, error) {
	until := time.Now().Add(ReadPatience)
	for {
		ds, err := fs.b.Store().Reader().Read(ctx, wants)
		if err == nil || wire.KindOf(err) != wire.KindUnavailable || time.Now().After(until) {
			return ds, err
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// makeRewritable takes a table into memory, to be written at random places.
func (n *node) makeRewritable() error {
	n.write.Lock()
	defer n.write.Unlock()
	n.mu.Lock()
	size, done := n.size(), n.inMem
	n.mu.Unlock()
	if done {
		return nil
	}
	if size > MaxRewriteBytes {
		return wire.Errorf("table.open", wire.KindTooBig, n.name, "%d bytes to be written at random places", size)
	}
	b := make([]byte, size)
	if err := n.readTable(n.fs.ctx, b, 0); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mem, n.inMem = b, true
	return nil
}

// writeAt changes a table that is in memory. n.write is held.
func (n *node) writeAt(p []byte, off int64) error {
	if off < 0 || off+int64(len(p)) > MaxRewriteBytes {
		return wire.Errorf("table.write", wire.KindTooBig, n.name, "%d bytes at %d", len(p), off)
	}
	n.dirty = true
	n.mu.Lock()
	defer n.mu.Unlock()
	if end := int(off) + len(p); end > len(n.mem) {
		n.mem = append(n.mem, make([]byte, end-len(n.mem))...)
	}
	copy(n.mem[off:], p)
	n.modTime = time.Now()
	return nil
}

// rewrite writes a table that is in memory to new chunks and publishes those. n.write is held.
func (n *node) rewrite() error {
	n.drop()
	n.mu.Lock()
	content, old := n.mem, n.chunks // content changes only under n.write
	n.chunks, n.ends, n.inline = nil, nil, nil
	n.data = n.fs.b.NewID(wire.ClassTable, 0, 0)
	n.mu.Unlock()
	n.data = wire.MakeStripID(n.data.Bucket(), wire.ClassTable, 0, n.fs.nextNumber(), 0, n.data.Random())
	if len(content) <= InlineBytes {
		n.mu.Lock()
		n.inline = append([]byte(nil), content...)
		n.mu.Unlock()
		content = nil
	}
	for len(content) > 0 {
		if err := n.grow(0, n.fs.chunkBytes(), n.flushChunk); err != nil {
			return err
		}
		n.mu.Lock()
		n.bufLen = copy(n.buf.Bytes(), content)
		copies.Add(copies.Meta, n.bufLen)
		n.mu.Unlock()
		content = content[n.bufLen:]
		if err := n.flushChunk(); err != nil {
			return err
		}
	}
	if err := n.publish(n.name); err != nil {
		return err
	}
	n.dirty = false
	for i := range old {
		n.fs.b.Delete(old[i].loc)
	}
	return nil
}
