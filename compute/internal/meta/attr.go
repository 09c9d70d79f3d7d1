package meta

import (
	"context"

	"github.com/crakefs/crake/wire"
	"golang.org/x/sys/unix"
)

// inspect gives f an inode that exists (a name or an open keeps it), under a shared lock; others have published what they
// held back, or, if the session wants the write lease, have no lease any more.
func (b *Bucket) inspect(ctx context.Context, op string, session wire.SessionID, ino wire.Ino, want wire.LeaseMode, f func(n *inode) error) error {
	if err := b.enter(); err != nil {
		return err
	}
	defer b.leave()
	if err := b.checkHere(op, ino); err != nil {
		return err
	}
	release, err := b.cfg.Leases.Hold(ctx, session, []wire.Ino{ino}, want == wire.LeaseWrite)
	if err != nil {
		return err
	}
	defer release()
	return b.locked(ctx, []wire.Ino{ino}, false, func() error {
		n, err := b.readInode(ino)
		if err != nil {
			return err
		}
		if n == nil {
			return wire.E(op, wire.KindStale, inoName(ino), nil)
		}
		return f(n)
	})
}

// GetAttr answers attributes and perhaps a lease.
func (b *Bucket) GetAttr(ctx context.Context, req *wire.GetAttrReq) (*wire.AttrResp, error) {
	resp := &wire.AttrResp{}
	err := b.inspect(ctx, "meta.getattr", req.Session, req.Ino, req.Want, func(n *inode) error {
		resp.Attr = n.attr
		resp.Lease = b.cfg.Leases.Grant(req.Session, req.Ino, req.Want)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// ReadLink answers the target of a symlink.
func (b *Bucket) ReadLink(ctx context.Context, req *wire.ReadLinkReq) (*wire.ReadLinkResp, error) {
	resp := &wire.ReadLinkResp{}
	err := b.inspect(ctx, "meta.readlink", req.Session, req.Ino, wire.LeaseNone, func(n *inode) error {
		if typeOf(n.attr.Mode) != unix.S_IFLNK {
			return wire.E("meta.readlink", wire.KindInvalid, inoName(req.Ino), nil)
		}
		resp.Target = n.target
		return nil
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// Open counts the inode as open by the session, and answers attributes, a lease and, if asked for, the extents of the
// first region.
func (b *Bucket) Open(ctx context.Context, req *wire.OpenReq) (*wire.OpenResp, error) {
	resp := &wire.OpenResp{}
	err := b.inspect(ctx, "meta.open", req.Session, req.Ino, req.Want, func(n *inode) error {
		resp.Attr = n.attr
		if req.Extents && n.isRegular() {
			x, err := b.answerExtents(n, req.Ino, 0, regionBlocks)
			if err != nil {
				return err
			}
			resp.Extents = *x
		}
		b.cfg.Opens.Opened(req.Session, req.Ino)
		resp.Lease = b.cfg.Leases.Grant(req.Session, req.Ino, req.Want)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

const setAll = wire.SetMode | wire.SetUID | wire.SetGID | wire.SetSize | wire.SetAtime | wire.SetMtime | wire.SetAtimeNow |
	wire.SetMtimeNow | wire.SetCtime | wire.SetKillPriv

// SetAttr changes attributes; with SetSize it truncates or extends.
func (b *Bucket) SetAttr(ctx context.Context, req *wire.SetAttrReq) (*wire.AttrResp, error) {
	c, err := b.begin(ctx, req.Op)
	if err != nil {
		return nil, err
	}
	defer c.end()
	if err := b.checkHere("meta.setattr", req.Ino); err != nil {
		return nil, err
	}
	resp := &wire.AttrResp{}
	if c.replay != nil {
		if err := c.replayed(resp); err != nil {
			return nil, err
		}
		// A truncation that is not through yet holds the lock.
		return resp, b.locked(ctx, []wire.Ino{req.Ino}, false, func() error { return nil })
	}
	if req.Valid&^setAll != 0 {
		return nil, wire.Errorf("meta.setattr", wire.KindInvalid, inoName(req.Ino), "valid %x", req.Valid)
	}
	if req.Valid&wire.SetSize != 0 && req.Size > wire.MaxFileBytes {
		return nil, wire.E("meta.setattr", wire.KindTooBig, inoName(req.Ino), nil)
	}
	release, err := b.cfg.Leases.Hold(ctx, req.Op.Session, []wire.Ino{req.Ino}, true)
	if err != nil {
		return nil, err
	}
	defer release()
	if req.Valid&wire.SetSize != 0 {
		return b.truncate(ctx, c, req)
	}
	return b.change(ctx, c, req.Ino, "meta.setattr", func(t *tx, n *inode) error {
		t.setAttr(n, req)
		return nil
	})
}

// change runs f on an inode under its exclusive lock and commits; the answer is its attributes.
func (b *Bucket) change(ctx context.Context, c *call, ino wire.Ino, op string, f func(t *tx, n *inode) error) (*wire.AttrResp, error) {
	h, err := b.locks.acquire(ctx, b.cfg.LockWait, wantInode(ino, true))
	if err != nil {
		return nil, err
	}
	defer h.release(nil)
	t := b.newTx(b.cfg.Now())
	defer t.close()
	n, err := t.existing(op, ino)
	if err == nil {
		err = f(t, n)
	}
	if err != nil {
		h.release(nil)
		if derr := h.durable(); derr != nil {
			return nil, derr
		}
		return nil, err
	}
	n.setBlocks()
	resp := &wire.AttrResp{Attr: n.attr}
	if err := t.commit(h, c, resp); err != nil {
		return nil, err
	}
	return resp, nil
}

// existing gives an inode that has a name or is kept open, or KindStale.
func (t *tx) existing(op string, ino wire.Ino) (*inode, error) {
	n, err := t.inode(ino)
	if err == nil && n == nil {
		err = wire.E(op, wire.KindStale, inoName(ino), nil)
	}
	return n, err
}

// setAttr makes all changes but that of the size.
func (t *tx) setAttr(n *inode, req *wire.SetAttrReq) {
	a := &n.attr
	t.touch(n)
	set := func(bit uint32) bool { return req.Valid&bit != 0 }
	if set(wire.SetMode) {
		a.Mode = typeOf(a.Mode) | req.Mode&07777
	}
	if set(wire.SetUID) {
		a.UID = req.UID
	}
	if set(wire.SetGID) {
		a.GID = req.GID
	}
	if set(wire.SetKillPriv) && !n.isDir() {
		a.Mode &^= unix.S_ISUID
		if a.Mode&unix.S_IXGRP != 0 {
			a.Mode &^= unix.S_ISGID
		}
	}
	switch {
	case set(wire.SetAtimeNow):
		a.Atime = t.now
	case set(wire.SetAtime):
		a.Atime = req.Atime
	}
	switch {
	case set(wire.SetMtimeNow):
		a.Mtime = t.now
	case set(wire.SetMtime):
		a.Mtime = req.Mtime
	case set(wire.SetSize):
		a.Mtime = t.now
	}
	if set(wire.SetCtime) {
		a.Ctime = req.Ctime
	}
}
