package fake

import (
	"context"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/wire"
)

// mutate serves the changes of names and attributes.
func (f *Cluster) mutate(ctx context.Context, s wire.SessionID, req wire.Message) (wire.Message, error) {
	switch q := req.(type) {
	case *wire.CreateReq:
		return f.exactly(q.Op, func() (wire.Message, error) { return f.create(ctx, s, q) })
	case *wire.UnlinkReq:
		return f.exactly(q.Op, func() (wire.Message, error) { return f.unlink(ctx, s, q) })
	case *wire.LinkReq:
		return f.exactly(q.Op, func() (wire.Message, error) { return f.link(ctx, s, q) })
	case *wire.RenameReq:
		return f.exactly(q.Op, func() (wire.Message, error) { return f.rename(ctx, s, q) })
	case *wire.SetAttrReq:
		return f.exactly(q.Op, func() (wire.Message, error) { return f.setAttr(ctx, s, q) })
	case *wire.PrepareReq:
		return f.exactly(q.Op, func() (wire.Message, error) { return f.prepare(ctx, s, q) })
	case *wire.PublishReq:
		return f.exactly(q.Op, func() (wire.Message, error) { return f.publish(ctx, s, q) })
	case *wire.PunchReq:
		return f.exactly(q.Op, func() (wire.Message, error) { return f.punch(ctx, s, q) })
	}
	return nil, wire.Errorf("fake", wire.KindVersion, "", "%T", req)
}

func (f *Cluster) create(ctx context.Context, s wire.SessionID, q *wire.CreateReq) (wire.Message, error) {
	dir, err := f.get(q.Parent)
	if err != nil {
		return nil, err
	}
	if err := f.claim(ctx, s, dir, wire.LeaseNone); err != nil {
		return nil, err
	}
	if _, ok := dir.names[q.Name]; ok {
		return nil, Err(wire.KindExists)
	}
	f.next++
	bucket := q.Parent.Bucket()
	if q.Mode&unix.S_IFMT == unix.S_IFDIR {
		bucket = wire.BucketID(f.next % Buckets)
	}
	in := f.NewInode(wire.MakeIno(bucket, f.next), q.Mode)
	in.target = q.Target
	dir.names[q.Name] = in.Attr.Ino
	dir.touch()
	if q.Open {
		in.opens[s] = true
	}
	return &wire.EntryResp{Ino: in.Attr.Ino, Type: q.Mode & unix.S_IFMT, HasAttr: true, Attr: in.Attr, Lease: f.grant(s, in, q.Want),
		Parent: dir.Attr}, nil
}

func (f *Cluster) unlink(ctx context.Context, s wire.SessionID, q *wire.UnlinkReq) (wire.Message, error) {
	dir, err := f.get(q.Parent)
	if err != nil {
		return nil, err
	}
	ino, ok := dir.names[q.Name]
	if !ok {
		return nil, Err(wire.KindNotFound)
	}
	in := f.Inodes[ino]
	switch isDir := in.Attr.Mode&unix.S_IFMT == unix.S_IFDIR; {
	case q.Dir && !isDir:
		return nil, Err(wire.KindNotDir)
	case !q.Dir && isDir:
		return nil, Err(wire.KindIsDir)
	case isDir && len(in.names) > 0:
		return nil, Err(wire.KindNotEmpty)
	}
	for _, x := range []*Inode{dir, in} {
		if err := f.claim(ctx, s, x, wire.LeaseNone); err != nil {
			return nil, err
		}
	}
	delete(dir.names, q.Name)
	dir.touch()
	in.Attr.Nlink--
	in.touch()
	f.reap(in)
	if q.Dir {
		delete(f.Inodes, ino)
	}
	return &wire.UnlinkResp{Ino: ino}, nil
}

func (f *Cluster) link(ctx context.Context, s wire.SessionID, q *wire.LinkReq) (wire.Message, error) {
	in, err := f.get(q.Ino)
	if err != nil {
		return nil, err
	}
	dir := f.Inodes[q.Parent]
	if err := f.claim(ctx, s, dir, wire.LeaseNone); err != nil {
		return nil, err
	}
	dir.names[q.Name] = q.Ino
	dir.touch()
	in.Attr.Nlink++
	in.touch()
	return &wire.EntryResp{Ino: q.Ino, HasAttr: true, Attr: in.Attr}, nil
}

func (f *Cluster) rename(ctx context.Context, s wire.SessionID, q *wire.RenameReq) (wire.Message, error) {
	from, to := f.Inodes[q.OldParent], f.Inodes[q.NewParent]
	ino, ok := from.names[q.OldName]
	if !ok {
		return nil, Err(wire.KindNotFound)
	}
	other := to.names[q.NewName]
	told := other
	for _, dir := range []*Inode{from, to} {
		if err := f.claim(ctx, s, dir, wire.LeaseNone); err != nil {
			return nil, err
		}
	}
	if _, ok := from.names[q.OldName]; !ok {
		return nil, Err(wire.KindNotFound) // changed while we waited
	}
	other = to.names[q.NewName]
	delete(from.names, q.OldName)
	to.names[q.NewName] = ino
	if q.Flags&wire.RenameExchange != 0 {
		from.names[q.OldName] = other
		other = 0
	}
	from.touch()
	to.touch()
	f.Inodes[ino].touch()
	if in := f.Inodes[other]; in != nil {
		in.Attr.Nlink--
		in.touch()
		f.reap(in)
	}
	return &wire.RenameResp{Moved: ino, Other: told}, nil
}

func (f *Cluster) prepare(ctx context.Context, s wire.SessionID, q *wire.PrepareReq) (wire.Message, error) {
	in, err := f.get(q.Ino)
	if err != nil {
		return nil, err
	}
	for _, r := range q.Regions {
		in.marked[r] = true
	}
	return &wire.Empty{}, nil
}

func (f *Cluster) publish(ctx context.Context, s wire.SessionID, q *wire.PublishReq) (wire.Message, error) {
	in, err := f.get(q.Ino)
	if err != nil {
		return nil, err
	}
	if in.Leases[s] != wire.LeaseWrite {
		return nil, Err(wire.KindLeaseLost)
	}
	in.Attr.Size = max(in.Attr.Size, q.Size)
	in.Attr.Mtime = q.Mtime
	in.touch()
	return &wire.AttrResp{Attr: in.Attr}, nil
}

func (f *Cluster) punch(ctx context.Context, s wire.SessionID, q *wire.PunchReq) (wire.Message, error) {
	in := f.Inodes[q.Ino]
	if q.Off%wire.BlockSize != 0 || q.Len%wire.BlockSize != 0 || q.Off/wire.RegionBytes != (q.Off+q.Len-1)/wire.RegionBytes {
		return nil, Err(wire.KindInvalid)
	}
	for blk := q.Off / wire.BlockSize; blk < (q.Off+q.Len)/wire.BlockSize; blk++ {
		delete(in.Blocks, blk)
	}
	in.touch()
	return &wire.Empty{}, nil
}

func (f *Cluster) setAttr(ctx context.Context, s wire.SessionID, q *wire.SetAttrReq) (wire.Message, error) {
	in, err := f.get(q.Ino)
	if err != nil {
		return nil, err
	}
	if err := f.claim(ctx, s, in, wire.LeaseNone); err != nil {
		return nil, err
	}
	if q.Valid&wire.SetMode != 0 {
		in.Attr.Mode = in.Attr.Mode&unix.S_IFMT | q.Mode
	}
	if q.Valid&wire.SetKillPriv != 0 {
		in.Attr.Mode &^= unix.S_ISUID | unix.S_ISGID
	}
	if q.Valid&wire.SetMtime != 0 {
		in.Attr.Mtime = q.Mtime
	}
	if q.Valid&wire.SetSize != 0 {
		if in.Leases[s] != wire.LeaseWrite {
			return nil, Err(wire.KindLeaseLost)
		}
		for b, blk := range in.Blocks {
			switch start := b * wire.BlockSize; {
			case start >= q.Size:
				delete(in.Blocks, b)
			case start+blk.bytes > q.Size:
				blk.bytes = q.Size - start
				in.Blocks[b] = blk
			}
		}
		in.Attr.Size = q.Size
		in.Attr.Mtime = time.Now().UnixNano()
	}
	in.touch()
	return &wire.AttrResp{Attr: in.Attr}, nil
}
