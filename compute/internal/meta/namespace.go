package meta

import (
	"context"
	"errors"

	"github.com/crakefs/crake/wire"
	"golang.org/x/sys/unix"
)

// view runs f with shared locks on the inodes, after others have published what they hold back of them, and returns once
// all that f saw is durable.
func (b *Bucket) view(ctx context.Context, session wire.SessionID, inos []wire.Ino, f func() error) error {
	release, err := b.cfg.Leases.Hold(ctx, session, inos, false)
	if err != nil {
		return err
	}
	defer release()
	return b.locked(ctx, inos, false, f)
}

// locked is view without regard to leases.
func (b *Bucket) locked(ctx context.Context, inos []wire.Ino, exclusive bool, f func() error) error {
	wants := make([]lockWant, len(inos))
	for i, ino := range inos {
		wants[i] = wantInode(ino, exclusive)
	}
	h, err := b.locks.acquire(ctx, b.cfg.LockWait, wants...)
	if err != nil {
		return err
	}
	err = f()
	h.release(nil)
	if derr := h.durable(); derr != nil {
		return derr
	}
	return err
}

// Lookup finds a name in a directory.
func (b *Bucket) Lookup(ctx context.Context, req *wire.LookupReq) (*wire.EntryResp, error) {
	if err := b.enter(); err != nil {
		return nil, err
	}
	defer b.leave()
	if err := b.checkHere("meta.lookup", req.Parent); err != nil {
		return nil, err
	}
	if err := checkName(req.Name); err != nil {
		return nil, err
	}
	return b.lookupEntry(ctx, req.Session, req.Parent, req.Name, req.Want, false)
}

// lookupEntry answers an existing name. With open, the inode is counted as open by the session.
func (b *Bucket) lookupEntry(ctx context.Context, session wire.SessionID, parent wire.Ino, name string, want wire.LeaseMode, open bool) (*wire.EntryResp, error) {
	for range staleRounds {
		// Guess without locks which inode it is; the locked look below has the last word.
		inos := []wire.Ino{parent}
		var guess wire.Ino
		if dir, err := b.readInode(parent); err != nil {
			return nil, err
		} else if dir != nil {
			d, found, err := b.lookup(dir, name)
			if err != nil {
				return nil, err
			}
			if found && d.ino.Bucket() == b.cfg.Bucket {
				guess = d.ino
				inos = append(inos, guess)
			}
		}
		var resp *wire.EntryResp
		err := b.view(ctx, session, inos, func() (err error) {
			resp, err = b.answerEntry(session, parent, name, guess, want, open)
			return err
		})
		if err != errChanged {
			return resp, err
		}
	}
	return nil, final(errChanged)
}

func (b *Bucket) answerEntry(session wire.SessionID, parent wire.Ino, name string, guess wire.Ino, want wire.LeaseMode, open bool) (*wire.EntryResp, error) {
	t := tx{b: b}
	dir, err := t.directory("meta.lookup", parent)
	if err != nil {
		return nil, err
	}
	_, d, found, err := t.find(dir, name)
	switch {
	case err != nil:
		return nil, err
	case !found:
		return nil, wire.E("meta.lookup", wire.KindNotFound, name, nil)
	}
	resp := &wire.EntryResp{Ino: d.ino, Type: d.typ, Parent: dir.attr}
	if d.ino.Bucket() != b.cfg.Bucket {
		return resp, nil
	}
	if d.ino != guess {
		return nil, errChanged
	}
	n, err := t.live("meta.lookup", d.ino)
	if err != nil {
		return nil, err
	}
	resp.HasAttr, resp.Attr = true, n.attr
	if open {
		b.cfg.Opens.Opened(session, d.ino)
	}
	resp.Lease = b.cfg.Leases.Grant(session, d.ino, want)
	return resp, nil
}

// Create makes a new inode and a name for it.
func (b *Bucket) Create(ctx context.Context, req *wire.CreateReq) (*wire.EntryResp, error) {
	c, err := b.begin(ctx, req.Op)
	if err != nil {
		return nil, err
	}
	defer c.end()
	if err := b.checkCreate(req); err != nil {
		return nil, err
	}
	if c.replay != nil {
		resp := &wire.EntryResp{}
		if err := c.replayed(resp); err != nil {
			return nil, err
		}
		return resp, b.reopen(ctx, req, resp)
	}
	if typeOf(req.Mode) == unix.S_IFDIR && b.cfg.Buckets > 1 {
		return b.mkdir(ctx, c, req)
	}
	for range staleRounds {
		resp, err := b.createHere(ctx, c, req)
		if !errors.Is(err, wire.KindExists) || req.Excl || typeOf(req.Mode) != unix.S_IFREG {
			return resp, err
		}
		resp, err = b.lookupEntry(ctx, req.Op.Session, req.Parent, req.Name, req.Want, req.Open)
		if !errors.Is(err, wire.KindNotFound) {
			return resp, err
		}
	}
	return nil, final(errChanged)
}

func (b *Bucket) checkCreate(req *wire.CreateReq) error {
	if err := b.checkHere("meta.create", req.Parent); err != nil {
		return err
	}
	if err := checkName(req.Name); err != nil {
		return err
	}
	symlink := typeOf(req.Mode) == unix.S_IFLNK
	switch {
	case !validType(req.Mode):
		return wire.Errorf("meta.create", wire.KindInvalid, req.Name, "mode %o", req.Mode)
	case symlink && req.Target == "" || !symlink && req.Target != "":
		return wire.Errorf("meta.create", wire.KindInvalid, req.Name, "symlink target")
	case len(req.Target) > wire.MaxSymlinkBytes:
		return wire.E("meta.create", wire.KindNameTooLong, req.Name, nil)
	}
	return nil
}

// reopen counts the inode of a replayed create as open: this owner may not know of it yet.
func (b *Bucket) reopen(ctx context.Context, req *wire.CreateReq, resp *wire.EntryResp) error {
	if !req.Open || resp.Ino.Bucket() != b.cfg.Bucket {
		return nil
	}
	return b.locked(ctx, []wire.Ino{resp.Ino}, false, func() error {
		n, err := b.readInode(resp.Ino)
		if err == nil && n != nil {
			b.cfg.Opens.Opened(req.Op.Session, resp.Ino)
		}
		return err
	})
}

// inherit gives mode and group of what is made in a directory.
func inherit(dir *inode, mode, gid uint32) (uint32, uint32) {
	if dir.attr.Mode&unix.S_ISGID == 0 {
		return mode, gid
	}
	if typeOf(mode) == unix.S_IFDIR {
		mode |= unix.S_ISGID
	}
	return mode, dir.attr.GID
}

// createHere makes an inode in the bucket of its directory: one batch. KindExists if the name is there.
func (b *Bucket) createHere(ctx context.Context, c *call, req *wire.CreateReq) (*wire.EntryResp, error) {
	release, err := b.cfg.Leases.Hold(ctx, req.Op.Session, []wire.Ino{req.Parent}, true)
	if err != nil {
		return nil, err
	}
	defer release()
	ino, err := b.newIno()
	if err != nil {
		return nil, err
	}
	h, err := b.locks.acquire(ctx, b.cfg.LockWait, wantInode(req.Parent, true))
	if err != nil {
		return nil, err
	}
	defer h.release(nil)
	t := b.newTx(b.cfg.Now())
	defer t.close()
	resp, err := t.createEntry(req, ino)
	if err != nil {
		h.release(nil)
		if derr := h.durable(); derr != nil {
			return nil, derr
		}
		return nil, err
	}
	// Nobody can know the inode yet, so it may be opened and leased before its locks are given back.
	var lease wire.Lease
	t.onApplied = append(t.onApplied, func() {
		if req.Open {
			b.cfg.Opens.Opened(req.Op.Session, ino)
		}
		lease = b.cfg.Leases.Grant(req.Op.Session, ino, req.Want)
	})
	if err := t.commit(h, c, resp); err != nil {
		return nil, err
	}
	resp.Lease = lease
	return resp, nil
}

func (t *tx) createEntry(req *wire.CreateReq, ino wire.Ino) (*wire.EntryResp, error) {
	dir, err := t.directory("meta.create", req.Parent)
	if err != nil {
		return nil, err
	}
	mode, gid := inherit(dir, req.Mode, req.GID)
	parent, err := t.addEntry(&wire.TxnOp{Kind: opAddEntry, Ino: req.Parent, Name: req.Name, Other: ino, Mode: typeOf(mode), FS: dir.fs})
	if err != nil {
		return nil, err
	}
	attr, err := t.makeInode(&wire.TxnOp{Kind: opMakeInode, Ino: ino, Mode: mode, UID: req.UID, GID: gid, Rdev: req.Rdev,
		FS: dir.fs, Other: req.Parent, Extra: []byte(req.Target)})
	if err != nil {
		return nil, err
	}
	return &wire.EntryResp{Ino: ino, Type: typeOf(mode), HasAttr: true, Attr: attr, Parent: parent}, nil
}

// dirBucket chooses where the next new directory goes: the other buckets in turn.
func (b *Bucket) dirBucket() wire.BucketID {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.nextDir++
	return wire.BucketID((uint64(b.cfg.Bucket) + 1 + b.nextDir%uint64(b.cfg.Buckets-1)) % uint64(b.cfg.Buckets))
}

// mkdir makes a directory whose inode lies in another bucket than its name.
func (b *Bucket) mkdir(ctx context.Context, c *call, req *wire.CreateReq) (*wire.EntryResp, error) {
	bucket := b.dirBucket()
	m, err := b.execute(ctx, c, func(l *looker) (*plan, error) {
		dir, err := l.dir("meta.mkdir", req.Parent)
		if err != nil {
			return nil, err
		}
		if _, found, err := l.entry(req.Parent, req.Name); err != nil {
			return nil, err
		} else if found {
			return nil, wire.E("meta.mkdir", wire.KindExists, req.Name, nil)
		}
		mode, gid := inherit(dir, req.Mode, req.GID)
		now := b.cfg.Now()
		return &plan{
			ops: []wire.TxnOp{
				{Kind: opMakeInode, Ino: wire.MakeIno(bucket, 0), Mode: mode, UID: req.UID, GID: gid, FS: dir.fs, Other: req.Parent, Time: now},
				{Kind: opAddEntry, Ino: req.Parent, Name: req.Name, Mode: unix.S_IFDIR, FS: dir.fs, Time: now},
			},
			bind: func(ops []wire.TxnOp, attrs []wire.Attr) { ops[1].Other = attrs[0].Ino },
			check: func(t *tx) error {
				n, err := t.directory("meta.mkdir", req.Parent)
				if err == nil && (n.attr.GID != dir.attr.GID || (n.attr.Mode^dir.attr.Mode)&unix.S_ISGID != 0) {
					err = errChanged
				}
				return err
			},
			reply: func(attrs []wire.Attr) wire.Message {
				return &wire.EntryResp{Ino: attrs[0].Ino, Type: unix.S_IFDIR, HasAttr: true, Attr: attrs[0], Parent: attrs[1]}
			},
		}, nil
	})
	if err != nil {
		return nil, err
	}
	return m.(*wire.EntryResp), nil
}

// removeStep gives the step that takes a name from an inode.
func removeStep(d dentry, now int64) wire.TxnOp {
	if d.typ == unix.S_IFDIR {
		return wire.TxnOp{Kind: opRemoveDir, Ino: d.ino, Time: now}
	}
	return wire.TxnOp{Kind: opUnlinkInode, Ino: d.ino, Time: now}
}

// Unlink removes a name (unlink and rmdir).
func (b *Bucket) Unlink(ctx context.Context, req *wire.UnlinkReq) (*wire.UnlinkResp, error) {
	c, err := b.begin(ctx, req.Op)
	if err != nil {
		return nil, err
	}
	defer c.end()
	if c.replay != nil {
		resp := &wire.UnlinkResp{}
		return resp, c.replayed(resp)
	}
	if err := checkName(req.Name); err != nil {
		return nil, err
	}
	m, err := b.execute(ctx, c, func(l *looker) (*plan, error) {
		if _, err := l.dir("meta.unlink", req.Parent); err != nil {
			return nil, err
		}
		d, found, err := l.entry(req.Parent, req.Name)
		switch {
		case err != nil:
			return nil, err
		case !found:
			return nil, wire.E("meta.unlink", wire.KindNotFound, req.Name, nil)
		case req.Dir && d.typ != unix.S_IFDIR:
			return nil, wire.E("meta.unlink", wire.KindNotDir, req.Name, nil)
		case !req.Dir && d.typ == unix.S_IFDIR:
			return nil, wire.E("meta.unlink", wire.KindIsDir, req.Name, nil)
		}
		now := b.cfg.Now()
		return &plan{
			ops: []wire.TxnOp{
				{Kind: opRemoveEntry, Ino: req.Parent, Name: req.Name, Other: d.ino, Mode: d.typ, Time: now},
				removeStep(d, now),
			},
			reply: func([]wire.Attr) wire.Message { return &wire.UnlinkResp{Ino: d.ino} },
		}, nil
	})
	if err != nil {
		return nil, err
	}
	return m.(*wire.UnlinkResp), nil
}

// Link makes a further name for an inode.
func (b *Bucket) Link(ctx context.Context, req *wire.LinkReq) (*wire.EntryResp, error) {
	c, err := b.begin(ctx, req.Op)
	if err != nil {
		return nil, err
	}
	defer c.end()
	if c.replay != nil {
		resp := &wire.EntryResp{}
		return resp, c.replayed(resp)
	}
	if err := checkName(req.Name); err != nil {
		return nil, err
	}
	m, err := b.execute(ctx, c, func(l *looker) (*plan, error) {
		dir, err := l.dir("meta.link", req.Parent)
		if err != nil {
			return nil, err
		}
		if _, found, err := l.entry(req.Parent, req.Name); err != nil {
			return nil, err
		} else if found {
			return nil, wire.E("meta.link", wire.KindExists, req.Name, nil)
		}
		a, err := l.peek(wire.TxnOp{Kind: opPeekInode, Ino: req.Ino})
		if err != nil {
			return nil, err
		}
		now := b.cfg.Now()
		return &plan{
			ops: []wire.TxnOp{
				{Kind: opLinkInode, Ino: req.Ino, FS: dir.fs, Time: now},
				{Kind: opAddEntry, Ino: req.Parent, Name: req.Name, Other: req.Ino, Mode: typeOf(a.Mode), FS: dir.fs, Time: now},
			},
			reply: func(attrs []wire.Attr) wire.Message {
				return &wire.EntryResp{Ino: req.Ino, Type: typeOf(a.Mode), HasAttr: true, Attr: attrs[0], Parent: attrs[1]}
			},
		}, nil
	})
	if err != nil {
		return nil, err
	}
	return m.(*wire.EntryResp), nil
}
