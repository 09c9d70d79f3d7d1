package core

import (
	"context"
	"errors"

	"github.com/crakefs/crake/frontend/internal/lease"

	"github.com/crakefs/crake/wire"
)

// Lookup finds a name.
func (fs *FS) Lookup(ctx context.Context, parent wire.Ino, name string) (wire.Attr, error) {
	dir := fs.table.get(parent)
	defer fs.table.put(dir)
	if ino, known := dir.knows(name); known {
		if ino == 0 {
			return wire.Attr{}, wire.E("frontend.lookup", wire.KindNotFound, "", nil)
		}
		if a, err := fs.attr(ctx, ino); err == nil || !gone(err) {
			return a, err
		}
		// It has gone meanwhile, and the recall of the directory is on its way.
	}
	asked, t := dir.asks(), fs.now()
	var resp wire.EntryResp
	req := &wire.LookupReq{Session: fs.sess.id, Parent: parent, Name: name, Want: wire.LeaseRead}
	err := fs.ask(ctx, parent.Bucket(), wire.MLookup, req, &resp)
	if errors.Is(err, wire.KindNotFound) {
		dir.keepName(asked, name, 0)
	}
	if err != nil {
		return wire.Attr{}, err
	}
	dir.keepName(asked, name, resp.Ino)
	if !resp.HasAttr {
		return fs.attr(ctx, resp.Ino) // it lies in another bucket
	}
	in := fs.table.get(resp.Ino)
	defer fs.table.put(in)
	return in.learn(t, resp.Attr, resp.Lease), nil
}

// Create says what to make: see wire.CreateReq.
type Create struct {
	Parent   wire.Ino
	Name     string
	Mode     uint32 // type and permissions, umask applied
	UID, GID uint32
	Rdev     uint32
	Target   string // of a symbolic link
}

func (c *Create) request(open bool, want wire.LeaseMode) func(op wire.OpID) wire.Message {
	return func(op wire.OpID) wire.Message {
		return &wire.CreateReq{Op: op, Parent: c.Parent, Mode: c.Mode, UID: c.UID, GID: c.GID, Rdev: c.Rdev, Excl: true,
			Open: open, Want: want, Name: c.Name, Target: c.Target}
	}
}

// Make makes a file, directory, symbolic link, fifo, socket or device that is not opened.
func (fs *FS) Make(ctx context.Context, c Create) (wire.Attr, error) {
	in, a, err := fs.make(ctx, c, false, wire.LeaseRead)
	if err != nil {
		return wire.Attr{}, err
	}
	fs.table.put(in)
	return a, nil
}

// make gives the new inode with a reference.
func (fs *FS) make(ctx context.Context, c Create, open bool, want wire.LeaseMode) (*inode, wire.Attr, error) {
	done := fs.change(c.Parent, c.Name)
	t := fs.now()
	var resp wire.EntryResp
	err := fs.mutate(ctx, c.Parent.Bucket(), wire.MCreate, &resp, c.request(open, want))
	done(err, resp.Ino)
	fs.touched(t, c.Parent, resp.Parent)
	if err != nil {
		return nil, wire.Attr{}, err
	}
	in := fs.table.get(resp.Ino)
	if !resp.HasAttr {
		a, err := fs.getAttr(ctx, in, want)
		if err != nil {
			fs.table.put(in)
			return nil, wire.Attr{}, err
		}
		return in, a, nil
	}
	return in, in.learn(t, resp.Attr, resp.Lease), nil
}

// touched notes that a mutation that began at t changed a directory; a is what it is now, if that was told.
func (fs *FS) touched(t lease.Token, dir wire.Ino, a wire.Attr) {
	in := fs.table.get(dir)
	defer fs.table.put(in)
	in.mu.Lock()
	defer in.mu.Unlock()
	if a.Ino != dir {
		in.staleAt = fs.now()
		return
	}
	if in.known && a.Version > in.attr.Version {
		in.attr, in.askedAt = a, max(in.askedAt, t)
	}
}

// Unlink removes a name of anything but a directory; Rmdir that of an empty directory.
func (fs *FS) Unlink(ctx context.Context, parent wire.Ino, name string) error {
	return fs.unlink(ctx, parent, name, false)
}

// Rmdir removes an empty directory.
func (fs *FS) Rmdir(ctx context.Context, parent wire.Ino, name string) error {
	return fs.unlink(ctx, parent, name, true)
}

func (fs *FS) unlink(ctx context.Context, parent wire.Ino, name string, dir bool) error {
	done := fs.change(parent, name)
	t := fs.now()
	var resp wire.UnlinkResp
	err := fs.mutate(ctx, parent.Bucket(), wire.MUnlink, &resp, func(op wire.OpID) wire.Message {
		return &wire.UnlinkReq{Op: op, Parent: parent, Dir: dir, Name: name}
	})
	done(err, 0)
	fs.touched(t, parent, wire.Attr{})
	if err == nil || !refused(err) {
		fs.forgetAttrs(resp.Ino)
	}
	return err
}

// refused reports whether an error says that a namespace operation changed nothing.
func refused(err error) bool {
	switch wire.KindOf(err) {
	case wire.KindNotFound, wire.KindExists, wire.KindNotDir, wire.KindIsDir, wire.KindNotEmpty, wire.KindNameTooLong,
		wire.KindInvalid, wire.KindPermission, wire.KindAccess, wire.KindCrossDevice, wire.KindTooManyLinks:
		return true
	}
	return false
}

// forgetAttrs makes the next stat of these inodes ask again, because a mutation changed their link counts or times. An
// answer that does not tell which they are makes it so for all.
func (fs *FS) forgetAttrs(inos ...wire.Ino) {
	if inos[0] == 0 {
		fs.voidAll.Store(uint64(fs.now()))
		return
	}
	for _, ino := range inos {
		if ino != 0 {
			in := fs.table.get(ino)
			in.stale()
			fs.table.put(in)
		}
	}
}

// Rename moves a name; flags are wire.RenameNoReplace or wire.RenameExchange.
func (fs *FS) Rename(ctx context.Context, from wire.Ino, oldName string, to wire.Ino, newName string, flags uint32) error {
	var done func(err error, moved, old wire.Ino)
	if from == to {
		end := fs.change(from, oldName, newName)
		done = func(err error, moved, old wire.Ino) { end(err, old, moved) }
	} else {
		endFrom, endTo := fs.change(from, oldName), fs.change(to, newName)
		done = func(err error, moved, old wire.Ino) {
			endFrom(err, old)
			endTo(err, moved)
		}
	}
	t := fs.now()
	var resp wire.RenameResp
	err := fs.mutate(ctx, from.Bucket(), wire.MRename, &resp, func(op wire.OpID) wire.Message {
		return &wire.RenameReq{Op: op, OldParent: from, NewParent: to, Flags: flags, OldName: oldName, NewName: newName}
	})
	switch {
	case err == nil && (resp.Moved == 0 || from == to && oldName == newName):
		done(wire.KindOther, 0, 0) // not told
	case flags&wire.RenameExchange != 0:
		done(err, resp.Moved, resp.Other)
	default:
		done(err, resp.Moved, 0)
	}
	fs.touched(t, from, wire.Attr{})
	fs.touched(t, to, wire.Attr{})
	if err == nil || !refused(err) {
		fs.forgetAttrs(resp.Moved, resp.Other)
	}
	return err
}

// Link makes a further name for an inode.
func (fs *FS) Link(ctx context.Context, ino, parent wire.Ino, name string) (wire.Attr, error) {
	t := fs.now()
	in := fs.table.get(ino)
	defer fs.table.put(in)
	done := fs.change(parent, name)
	var resp wire.EntryResp
	err := fs.mutate(ctx, parent.Bucket(), wire.MLink, &resp, func(op wire.OpID) wire.Message {
		return &wire.LinkReq{Op: op, Ino: ino, Parent: parent, Name: name}
	})
	done(err, ino)
	fs.touched(t, parent, resp.Parent)
	in.stale()
	if err != nil {
		return wire.Attr{}, err
	}
	return fs.getAttr(ctx, in, wire.LeaseRead)
}
