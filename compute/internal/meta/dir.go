package meta

import (
	"context"

	"github.com/crakefs/crake/wire"
)

// ReadDir lists a directory from after a cookie.
func (b *Bucket) ReadDir(ctx context.Context, req *wire.ReadDirReq) (*wire.ReadDirResp, error) {
	limit := int(req.Limit)
	if limit == 0 || limit > MaxReaddirEntries {
		limit = MaxReaddirEntries
	}
	resp := &wire.ReadDirResp{}
	err := b.inspect(ctx, "meta.readdir", req.Session, req.Ino, wire.LeaseNone, func(n *inode) error {
		if !n.isDir() {
			return wire.E("meta.readdir", wire.KindNotDir, inoName(req.Ino), nil)
		}
		resp.Parent = n.parent
		return b.listNames(req, limit, resp)
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

func (b *Bucket) listNames(req *wire.ReadDirReq, limit int, resp *wire.ReadDirResp) error {
	resp.EOF = true
	prefix := inoPrefix(tagDentry, req.Ino)
	if req.Cookie >= 1<<63 {
		return nil
	}
	from := inoPrefix(tagDentry, req.Ino).u64(req.Cookie + 1)
	err := b.scan(prefix, from, func(k, v []byte) (bool, error) {
		f, rest, ok := splitKey(k, 2)
		if !ok || len(rest) != snapBytes {
			return false, corruptKey(k)
		}
		if len(resp.Entries) == limit {
			resp.EOF = false
			return false, nil
		}
		d, err := decodeDentry(v)
		if err != nil {
			return false, err
		}
		resp.Entries = append(resp.Entries, wire.DirEntry{Cookie: f[1], Ino: d.ino, Type: d.typ, Name: d.name})
		return true, nil
	})
	if err != nil || !req.Plus {
		return err
	}
	for i := range resp.Entries {
		if err := b.listAttr(req.Session, &resp.Entries[i]); err != nil {
			return err
		}
	}
	return nil
}

// listAttr adds the attributes of an entry's inode if they are to be had here and now: it lies in this bucket, nobody
// changes it, and no other session has changes of it that it has not published (asked before the record is read: a lease
// granted after that comes with the attributes as they are then).
func (b *Bucket) listAttr(session wire.SessionID, e *wire.DirEntry) error {
	if e.Ino.Bucket() != b.cfg.Bucket || b.cfg.Leases.WriteHeld(session, e.Ino) || !b.locks.tryShared(wantInode(e.Ino, false).lockID) {
		return nil
	}
	n, err := b.readInode(e.Ino)
	if err != nil || n == nil {
		return err
	}
	// Again: a change that began after the first look may be what we have read, and not be durable.
	if b.locks.tryShared(wantInode(e.Ino, false).lockID) {
		e.HasAttr, e.Attr = true, n.attr
	}
	return nil
}
