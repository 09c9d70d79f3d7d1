package core

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/crakefs/crake/wire"
)

// wholeFile is a length that reaches past the end of every file.
const wholeFile = uint64(2 * wire.MaxFileBytes)

// modeSetID are the bits that a write by a plain user clears.
const (
	modeSUID = 0o4000
	modeSGID = 0o2000
	modeXGrp = 0o010
	modeType = 0o170000
	modeFile = 0o100000
	modeDir  = 0o040000
)

// lastByte is the end of a lock on a whole file, as the kernel has it.
const lastByte = ^uint64(0) >> 1

// GetAttr gives what stat shows of an inode that the caller has in hand: of a directory that was removed under an opener, or a process
// that works in it, that is what was last known, without links.
func (fs *FS) GetAttr(ctx context.Context, ino wire.Ino) (wire.Attr, error) {
	a, err := fs.attr(ctx, ino)
	if err == nil || !gone(err) {
		return a, err
	}
	in := fs.table.get(ino)
	defer fs.table.put(in)
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.attr.Mode&modeType != modeDir {
		return a, err
	}
	a = in.attr
	a.Nlink, a.Size = 0, 0
	return a, nil
}

// attr gives the attributes of an inode, if it is there.
func (fs *FS) attr(ctx context.Context, ino wire.Ino) (wire.Attr, error) {
	in := fs.table.get(ino)
	defer fs.table.put(in)
	in.mu.Lock()
	if in.fresh() {
		a := in.merge(in.attr)
		in.mu.Unlock()
		return a, nil
	}
	in.mu.Unlock()
	return fs.getAttr(ctx, in, wire.LeaseRead)
}

// SetAttr says which attributes to change: bits of wire.SetMode and following.
type SetAttr struct {
	Valid        uint32
	Mode         uint32
	UID, GID     uint32
	Size         uint64
	Atime, Mtime int64
	Ctime        int64
}

// SetAttr changes attributes and gives all.
func (fs *FS) SetAttr(ctx context.Context, ino wire.Ino, s SetAttr) (wire.Attr, error) {
	in := fs.table.get(ino)
	defer fs.table.put(in)
	if s.Valid&wire.SetSize != 0 {
		return fs.truncate(ctx, in, s)
	}
	t := fs.now()
	var resp wire.AttrResp
	err := fs.mutate(ctx, ino.Bucket(), wire.MSetAttr, &resp, s.request(ino))
	if err != nil {
		return wire.Attr{}, err
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if s.Valid&(wire.SetMtime|wire.SetMtimeNow) != 0 && in.dirtyMeta() {
		// What was written before has this time now, also once it is published.
		in.attr.Mtime = resp.Attr.Mtime
		in.meta++
	}
	return in.learnLocked(t, resp.Attr, resp.Lease), nil
}

func (s *SetAttr) request(ino wire.Ino) func(op wire.OpID) wire.Message {
	return func(op wire.OpID) wire.Message {
		return &wire.SetAttrReq{Op: op, Ino: ino, Valid: s.Valid, Mode: s.Mode, UID: s.UID, GID: s.GID, Size: s.Size,
			Atime: s.Atime, Mtime: s.Mtime, Ctime: s.Ctime}
	}
}

// truncate sets the size (and what else s says).
func (fs *FS) truncate(ctx context.Context, in *inode, s SetAttr) (wire.Attr, error) {
	if s.Size > wire.MaxFileBytes {
		return wire.Attr{}, wire.E("frontend.truncate", wire.KindTooBig, "", nil)
	}
	if err := fs.lockQuiet(ctx, in); err != nil {
		return wire.Attr{}, err
	}
	in.mu.Unlock()
	var a wire.Attr
	err := fs.detached(ctx, in, func() (err error) {
		a, err = fs.resize(in, s)
		return err
	})
	if err != nil {
		return wire.Attr{}, err
	}
	return a, nil
}

// detached runs f, which changes a quiet inode, to its end whatever becomes of the caller, and ends the quiet. The caller waits for
// it until ctx ends.
func (fs *FS) detached(ctx context.Context, in *inode, f func() error) error {
	done := make(chan error, 1)
	fs.table.get(in.ino) // stays known as long as f runs
	fs.spawn(func() {
		err := f()
		in.mu.Lock()
		in.unquiet()
		in.mu.Unlock()
		fs.table.put(in)
		done <- err
	})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return interrupted(ctx)
	}
}

// resize truncates a quiet inode.
func (fs *FS) resize(in *inode, s SetAttr) (wire.Attr, error) {
	undo, err := fs.publishBelow(in, s.Size)
	if err != nil {
		return wire.Attr{}, err
	}
	t := fs.now()
	var resp wire.AttrResp
	err = fs.mutate(fs.bg, in.ino.Bucket(), wire.MSetAttr, &resp, s.request(in.ino))
	if err != nil {
		undo()
		return wire.Attr{}, err
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.data.Truncate(s.Size)
	in.srvEnd = min(max(in.srvEnd, s.Size), (s.Size+wire.BlockSize-1)&^(wire.BlockSize-1))
	in.content++
	in.mapsGen++
	in.mapsVer = nil
	in.prepared = nil
	in.ready = nil
	in.meta++
	in.pubMeta = in.meta // size and mtime are the cluster's now
	in.known = false
	return in.learnLocked(t, resp.Attr, resp.Lease), nil
}

// publishBelow tells the cluster of data below end that it has stored but whose size it does not know: a truncate drops
// what lies past the size that the cluster knows, as what nobody has ever published. undo makes size and mtime unknown to
// the cluster again, for when the truncate fails. in is quiet.
func (fs *FS) publishBelow(in *inode, end uint64) (undo func(), err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.dirtyMeta() || in.srvEnd == 0 {
		return func() {}, nil
	}
	size, failed := in.attr.Size, in.errSeq
	fs.publish(in, in.meta, min(size, end), in.attr.Mtime)
	if in.errSeq != failed {
		return nil, in.err
	}
	return func() {
		in.mu.Lock()
		defer in.mu.Unlock()
		in.attr.Size = max(in.attr.Size, size)
		in.meta++
	}, nil
}

// lockQuiet takes the write lease, and waits until nothing is being sent. On success mu is held and busy set: no new data and
// no new sends until unquiet.
func (fs *FS) lockQuiet(ctx context.Context, in *inode) error {
	if err := fs.lockWritable(ctx, in); err != nil {
		return err
	}
	in.busy = true
	for len(in.flights) > 0 || in.pubbing {
		if err := in.await(ctx); err != nil {
			in.unquiet()
			in.mu.Unlock()
			return err
		}
	}
	return nil
}

// unquiet ends what lockQuiet began. mu is held.
func (in *inode) unquiet() {
	in.busy = false
	in.wake()
}

// killPriv clears setuid and setgid before a plain user's write.
func (fs *FS) killPriv(ctx context.Context, in *inode) error {
	in.mu.Lock()
	mode, known := in.attr.Mode, in.fresh()
	in.mu.Unlock()
	if !known {
		a, err := fs.GetAttr(ctx, in.ino)
		if err != nil {
			return err
		}
		mode = a.Mode
	}
	if mode&modeSUID == 0 && mode&(modeSGID|modeXGrp) != modeSGID|modeXGrp {
		return nil
	}
	_, err := fs.SetAttr(ctx, in.ino, SetAttr{Valid: wire.SetKillPriv})
	return err
}

// checkXattrName refuses names that need a meaning that this filesystem does not give them, such as
// "system.posix_acl_access": to keep one as mere bytes would tell cp that the mode has been set by it.
func checkXattrName(name string) error {
	for _, prefix := range []string{"user.", "trusted.", "security."} {
		if len(name) > len(prefix) && strings.HasPrefix(name, prefix) {
			return nil
		}
	}
	return wire.E("frontend.xattr", wire.KindNotSupported, name, nil)
}

// GetXattr gives the value of an extended attribute.
func (fs *FS) GetXattr(ctx context.Context, ino wire.Ino, name string) ([]byte, error) {
	if err := checkXattrName(name); err != nil {
		return nil, err
	}
	var resp wire.XattrResp
	req := &wire.XattrReq{Op: wire.OpID{Session: fs.sess.id}, Ino: ino, Name: name}
	err := fs.ask(ctx, ino.Bucket(), wire.MGetXattr, req, &resp)
	return resp.Value, err
}

// ListXattr gives the names of all extended attributes.
func (fs *FS) ListXattr(ctx context.Context, ino wire.Ino) ([]string, error) {
	var resp wire.XattrResp
	req := &wire.XattrReq{Op: wire.OpID{Session: fs.sess.id}, Ino: ino}
	err := fs.ask(ctx, ino.Bucket(), wire.MListXattr, req, &resp)
	return resp.Names, err
}

// SetXattr sets an extended attribute; flags as setxattr(2) has them.
func (fs *FS) SetXattr(ctx context.Context, ino wire.Ino, name string, value []byte, flags uint32) error {
	return fs.changeXattr(ctx, wire.MSetXattr, &wire.XattrReq{Ino: ino, Name: name, Value: value, Flags: flags})
}

// RemoveXattr removes an extended attribute.
func (fs *FS) RemoveXattr(ctx context.Context, ino wire.Ino, name string) error {
	return fs.changeXattr(ctx, wire.MRemoveXattr, &wire.XattrReq{Ino: ino, Name: name})
}

func (fs *FS) changeXattr(ctx context.Context, m wire.Method, req *wire.XattrReq) error {
	if err := checkXattrName(req.Name); err != nil {
		return err
	}
	in := fs.table.get(req.Ino)
	defer fs.table.put(in)
	defer in.stale() // its ctime
	return fs.mutate(ctx, req.Ino.Bucket(), m, &wire.Empty{}, func(op wire.OpID) wire.Message {
		req.Op = op
		return req
	})
}

// StatFS gives the space of the filesystem; it may be a second old.
func (fs *FS) StatFS(ctx context.Context) (wire.StatFSResp, error) {
	fs.space.mu.Lock()
	resp, at := fs.space.resp, fs.space.at
	fs.space.mu.Unlock()
	if !at.IsZero() && time.Since(at) < spaceAge {
		return resp, nil
	}
	return fs.askSpace(ctx)
}

// Readlink gives the target of a symbolic link.
func (fs *FS) Readlink(ctx context.Context, ino wire.Ino) (string, error) {
	var resp wire.ReadLinkResp
	err := fs.ask(ctx, ino.Bucket(), wire.MReadLink, &wire.ReadLinkReq{Session: fs.sess.id, Ino: ino}, &resp)
	return resp.Target, err
}

// gone reports whether an error says that the inode is not there any more.
func gone(err error) bool {
	return errors.Is(err, wire.KindStale) || errors.Is(err, wire.KindNotFound)
}
