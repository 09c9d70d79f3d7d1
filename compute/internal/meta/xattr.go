package meta

import (
	"context"

	"github.com/crakefs/crake/wire"
)

// Flags of XattrReq.
const (
	xattrCreate  = 1
	xattrReplace = 2
)

func checkXattrName(name string) error {
	switch {
	case len(name) > wire.MaxNameBytes:
		return wire.E("meta.xattr", wire.KindRange, "", nil)
	case name == "":
		return wire.E("meta.xattr", wire.KindInvalid, "", nil)
	}
	for i := range len(name) {
		if name[i] == 0 {
			return wire.E("meta.xattr", wire.KindInvalid, "", nil)
		}
	}
	return nil
}

// The value of an xattr record: version, then the bytes.
func decodeXattr(v []byte) ([]byte, error) {
	r := newReader(v)
	if r.bad != "" || len(r.b) > wire.MaxXattrBytes {
		r.fail("value")
		return nil, r.done("xattr")
	}
	return append([]byte(nil), r.b...), nil
}

// GetXattr answers the value of one extended attribute; KindNoData if there is none of that name.
func (b *Bucket) GetXattr(ctx context.Context, req *wire.XattrReq) (*wire.XattrResp, error) {
	if err := checkXattrName(req.Name); err != nil {
		return nil, err
	}
	resp := &wire.XattrResp{}
	err := b.inspect(ctx, "meta.getxattr", req.Op.Session, req.Ino, wire.LeaseNone, func(n *inode) error {
		v, closer, ok, err := b.getXattr(n, req.Name)
		if err != nil {
			return err
		}
		if !ok {
			return wire.E("meta.getxattr", wire.KindNoData, req.Name, nil)
		}
		resp.Value, err = decodeXattr(v)
		_ = closer.Close()
		return err
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

func (b *Bucket) getXattr(n *inode, name string) (v []byte, closer interface{ Close() error }, ok bool, err error) {
	if n.flags&flagXattrs == 0 {
		return nil, nil, false, nil
	}
	return b.get(xattrKey(n.attr.Ino, name))
}

// ListXattr answers the names.
func (b *Bucket) ListXattr(ctx context.Context, req *wire.XattrReq) (*wire.XattrResp, error) {
	resp := &wire.XattrResp{}
	err := b.inspect(ctx, "meta.listxattr", req.Op.Session, req.Ino, wire.LeaseNone, func(n *inode) error {
		return b.eachXattr(n, func(name string) error {
			resp.Names = append(resp.Names, name)
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

func (b *Bucket) eachXattr(n *inode, f func(name string) error) error {
	if n.flags&flagXattrs == 0 {
		return nil
	}
	prefix := inoPrefix(tagXattr, n.attr.Ino)
	return b.scan(prefix, nil, func(k, _ []byte) (bool, error) {
		if len(k) <= len(prefix)+snapBytes {
			return false, corruptKey(k)
		}
		return true, f(string(k[len(prefix) : len(k)-snapBytes]))
	})
}

// SetXattr sets one extended attribute. KindExists and KindNoData by Flags; KindNoSpace when there are too many.
func (b *Bucket) SetXattr(ctx context.Context, req *wire.XattrReq) error {
	if err := checkXattrName(req.Name); err != nil {
		return err
	}
	if len(req.Value) > wire.MaxXattrBytes {
		return wire.E("meta.setxattr", wire.KindOverLimit, req.Name, nil)
	}
	return b.changeXattr(ctx, req, func(t *tx, n *inode) error {
		_, closer, found, err := b.getXattr(n, req.Name)
		switch {
		case err != nil:
			return err
		case found:
			_ = closer.Close()
			if req.Flags&xattrCreate != 0 {
				return wire.E("meta.setxattr", wire.KindExists, req.Name, nil)
			}
		case req.Flags&xattrReplace != 0:
			return wire.E("meta.setxattr", wire.KindNoData, req.Name, nil)
		default:
			if err := b.roomForXattr(n, req.Name); err != nil {
				return err
			}
		}
		n.flags |= flagXattrs
		t.touch(n)
		return t.set(xattrKey(req.Ino, req.Name), append([]byte{recordVersion}, req.Value...))
	})
}

// roomForXattr refuses a new attribute past the limits of number and of the list of names.
func (b *Bucket) roomForXattr(n *inode, name string) error {
	count, bytes := 1, len(name)+1
	err := b.eachXattr(n, func(s string) error {
		count++
		bytes += len(s) + 1
		return nil
	})
	if err == nil && (count > MaxXattrs || bytes > wire.MaxXattrListBytes) {
		err = wire.E("meta.setxattr", wire.KindNoSpace, name, nil)
	}
	return err
}

// RemoveXattr removes one extended attribute; KindNoData if there is none of that name.
func (b *Bucket) RemoveXattr(ctx context.Context, req *wire.XattrReq) error {
	if err := checkXattrName(req.Name); err != nil {
		return err
	}
	return b.changeXattr(ctx, req, func(t *tx, n *inode) error {
		_, closer, found, err := b.getXattr(n, req.Name)
		if err != nil {
			return err
		}
		if !found {
			return wire.E("meta.removexattr", wire.KindNoData, req.Name, nil)
		}
		_ = closer.Close()
		t.touch(n)
		return t.del(xattrKey(req.Ino, req.Name))
	})
}

func (b *Bucket) changeXattr(ctx context.Context, req *wire.XattrReq, f func(t *tx, n *inode) error) error {
	c, err := b.begin(ctx, req.Op)
	if err != nil {
		return err
	}
	defer c.end()
	if c.replay != nil {
		return nil
	}
	if err := b.checkHere("meta.xattr", req.Ino); err != nil {
		return err
	}
	release, err := b.cfg.Leases.Hold(ctx, req.Op.Session, []wire.Ino{req.Ino}, true)
	if err != nil {
		return err
	}
	defer release()
	_, err = b.change(ctx, c, req.Ino, "meta.xattr", f)
	return err
}
