package meta

import (
	"bytes"
	"context"

	"github.com/crakefs/crake/wire"
)

// grown is the inline data of a file that outgrows its inode without a write, and the block made of it.
type grown struct {
	b    *Bucket
	old  []byte
	conv *piece
}

// outgrow stores the inline data of an inode as a block, if size is too large for the inode. No lock is held.
func (g *grown) outgrow(ctx context.Context, ino wire.Ino, size uint64) error {
	n, err := g.b.readInode(ino)
	if err != nil || n == nil || !n.inlined() || size <= wire.MaxInlineBytes || bytes.Equal(n.inline, g.old) && g.conv != nil {
		return err
	}
	g.release()
	g.old = n.inline
	if g.conv, err = g.b.blockOf(ctx, n.inline); err != nil {
		return err
	}
	return g.b.storePieces(ctx, []*piece{g.conv})
}

func (g *grown) release() {
	if g.conv != nil {
		g.conv.data.Release()
		g.conv = nil
	}
}

// apply brings the inode's inline data in line with its new size, which grew. errChanged: outgrow again.
func (g *grown) apply(t *tx, n *inode) error {
	if !n.inlined() {
		return nil
	}
	if n.attr.Size <= wire.MaxInlineBytes {
		n.padInline()
		return nil
	}
	if g.conv == nil || !bytes.Equal(g.old, n.inline) {
		return errChanged
	}
	return t.moveOut(n, g.conv)
}

// growing runs f as long as it finds that the inline data has changed since it was stored.
func (b *Bucket) growing(ctx context.Context, ino wire.Ino, size uint64, f func(g *grown) error) error {
	token := b.segments.begin()
	defer func() {
		if b.segments.end(token) {
			b.wake()
		}
	}()
	g := &grown{b: b}
	defer func() { g.release() }()
	for range staleRounds {
		if err := g.outgrow(ctx, ino, size); err != nil {
			return err
		}
		if err := f(g); err != errChanged {
			return err
		}
	}
	return final(errChanged)
}

// Publish sets size (if larger) and mtime once all data below is committed.
func (b *Bucket) Publish(ctx context.Context, req *wire.PublishReq) (*wire.AttrResp, error) {
	c, err := b.begin(ctx, req.Op)
	if err != nil {
		return nil, err
	}
	defer c.end()
	if err := b.checkHere("meta.publish", req.Ino); err != nil {
		return nil, err
	}
	resp := &wire.AttrResp{}
	if c.replay != nil {
		return resp, c.replayed(resp)
	}
	if req.Size > wire.MaxFileBytes {
		return nil, wire.E("meta.publish", wire.KindTooBig, inoName(req.Ino), nil)
	}
	err = b.growing(ctx, req.Ino, req.Size, func(g *grown) error {
		resp, err = b.change(ctx, c, req.Ino, "meta.publish", func(t *tx, n *inode) error {
			if err := b.mayWrite(req.Op.Session, req.Ino, 0); err != nil {
				return err
			}
			if !n.isRegular() {
				return wire.E("meta.publish", wire.KindInvalid, inoName(req.Ino), nil)
			}
			t.publish(n, req.Size, req.Mtime)
			return g.apply(t, n)
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// truncate is SetAttr with SetSize; leases of others have ended. It answers when no region has anything past the new
// size any more; until then the inode stays locked, also across a crash.
func (b *Bucket) truncate(ctx context.Context, c *call, req *wire.SetAttrReq) (*wire.AttrResp, error) {
	var resp *wire.AttrResp
	err := b.growing(ctx, req.Ino, req.Size, func(g *grown) (err error) {
		resp, err = b.tryTruncate(ctx, c, req, g)
		return err
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

func (b *Bucket) tryTruncate(ctx context.Context, c *call, req *wire.SetAttrReq, g *grown) (*wire.AttrResp, error) {
	h, err := b.locks.acquire(ctx, b.cfg.LockWait, wantInode(req.Ino, true))
	if err != nil {
		return nil, err
	}
	defer func() { h.release(nil) }()
	t := b.newTx(b.cfg.Now())
	defer t.close()
	n, err := t.existing("meta.truncate", req.Ino)
	if err != nil {
		return nil, err
	}
	if err := b.mayWrite(req.Op.Session, req.Ino, 0); err != nil {
		return nil, err
	}
	switch {
	case n.isDir():
		return nil, wire.E("meta.truncate", wire.KindIsDir, inoName(req.Ino), nil)
	case !n.isRegular():
		return nil, wire.E("meta.truncate", wire.KindInvalid, inoName(req.Ino), nil)
	}
	// Whoever wrote past the end and never published it has lost that: else it would show up now.
	from := min(req.Size, n.attr.Size)
	t.setAttr(n, req)
	if err := t.resize(n, from, req.Size, g); err != nil {
		return nil, err
	}
	cl, err := t.dropRegionsFrom(n, from, false)
	if err != nil {
		return nil, err
	}
	resp := &wire.AttrResp{Attr: n.attr}
	if cl == nil {
		return resp, t.commit(h, c, resp)
	}
	// The clean-up owns the lock from here on.
	cl.locks, h = h, nil
	if err := t.commit(nil, c, resp); err != nil {
		if b.state() == nil { // it had no effect
			cl.locks.release(nil)
		}
		return nil, err
	}
	if err := b.cleanUp(ctx, cl); err != nil {
		b.wake()
		return nil, wire.E("meta.truncate", wire.KindUnavailable, inoName(req.Ino), err)
	}
	resp.Attr.Blocks, resp.Attr.Version = cl.blocks, cl.version
	return resp, nil
}

// resize changes the size and what region 0 and the inode hold.
func (t *tx) resize(n *inode, from, size uint64, g *grown) error {
	n.attr.Size = size
	if n.inlined() {
		if uint64(len(n.inline)) > from {
			n.inline = n.inline[:from]
		}
		if size == 0 {
			n.dropInline()
		} else if err := g.apply(t, n); err != nil {
			return err
		}
	} else if from < wire.RegionBytes {
		first := from / wire.BlockSize
		s, err := t.b.loadExtents(n.attr.Ino, first, regionBlocks)
		if err != nil {
			return err
		}
		n.local -= s.trim(t, from, regionBlocks)
		if err := s.store(t); err != nil {
			return err
		}
	}
	n.setBlocks()
	return nil
}

// Prepare notes that regions may hold data, before any is written there.
func (b *Bucket) Prepare(ctx context.Context, req *wire.PrepareReq) error {
	c, err := b.begin(ctx, req.Op)
	if err != nil {
		return err
	}
	defer c.end()
	if err := b.checkHere("meta.prepare", req.Ino); err != nil {
		return err
	}
	if c.replay != nil {
		return nil
	}
	if len(req.Regions) > MaxPrepareRegions {
		return wire.Errorf("meta.prepare", wire.KindOverLimit, inoName(req.Ino), "%d regions", len(req.Regions))
	}
	_, err = b.change(ctx, c, req.Ino, "meta.prepare", func(t *tx, n *inode) error {
		if err := b.mayWrite(req.Op.Session, req.Ino, 0); err != nil {
			return err
		}
		for _, r := range req.Regions {
			if r >= wire.MaxFileBytes/wire.RegionBytes {
				return wire.E("meta.prepare", wire.KindTooBig, inoName(req.Ino), nil)
			}
			if r == 0 {
				continue
			}
			if err := t.set(markerKey(req.Ino, r), appendFlagRecord(nil)); err != nil {
				return err
			}
			n.flags |= flagRegions
			t.bump(n)
		}
		return nil
	})
	return err
}

// Punch drops the extents of whole blocks of one region.
func (b *Bucket) Punch(ctx context.Context, req *wire.PunchReq) error {
	c, err := b.begin(ctx, req.Op)
	if err != nil {
		return err
	}
	defer c.end()
	region, from, to, err := b.regionRange("meta.punch", req.Ino, req.Off, req.Len)
	if err != nil {
		return err
	}
	if req.Off%wire.BlockSize != 0 || req.Len%wire.BlockSize != 0 {
		return wire.Errorf("meta.punch", wire.KindInvalid, inoName(req.Ino), "range %d+%d", req.Off, req.Len)
	}
	if c.replay != nil {
		return nil
	}
	if region == 0 {
		_, err = b.change(ctx, c, req.Ino, "meta.punch", func(t *tx, n *inode) error {
			if err := b.mayWrite(req.Op.Session, req.Ino, 0); err != nil {
				return err
			}
			return t.punchHome(n, from, to)
		})
		return err
	}
	h, err := b.locks.acquire(ctx, b.cfg.LockWait, wantRegions(req.Ino, true))
	if err != nil {
		return err
	}
	defer h.release(nil)
	if err := b.mayWrite(req.Op.Session, req.Ino, region); err != nil {
		return err
	}
	t := b.newTx(b.cfg.Now())
	defer t.close()
	s, err := b.loadExtents(req.Ino, from, to)
	if err != nil {
		return err
	}
	removed := s.cut(t, from, to)
	if err := s.store(t); err != nil {
		return err
	}
	if removed > 0 {
		if err := t.changeForeign(req.Ino, -int64(removed)); err != nil {
			return err
		}
	}
	return t.commit(h, c, nil)
}

func (t *tx) punchHome(n *inode, from, to uint64) error {
	if !n.isRegular() {
		return wire.E("meta.punch", wire.KindInvalid, inoName(n.attr.Ino), nil)
	}
	n.attr.Mtime = t.now
	t.touch(n)
	if n.inlined() {
		if from == 0 {
			n.dropInline() // a hole now
		}
		return nil
	}
	s, err := t.b.loadExtents(n.attr.Ino, from, to)
	if err != nil {
		return err
	}
	n.local -= s.cut(t, from, to)
	return s.store(t)
}
