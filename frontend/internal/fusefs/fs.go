// Package fusefs puts a core.FS behind go-fuse's raw interface: node id = inode number (the root's is 1), no table of nodes, so
// FORGET costs nothing. It translates, and decides nothing.
package fusefs

import (
	"context"
	"sync/atomic"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/crakefs/crake/frontend/internal/core"
	"github.com/crakefs/crake/wire"
)

// FS serves FUSE requests from a core.FS. The kernel caches nothing of it but the pages of mmaps: entries and attributes
// have a timeout of 0, and files are opened for direct IO.
type FS struct {
	fuse.RawFileSystem // what is not here answers ENOSYS
	core               *core.FS
	dirs               dirTable
	server             atomic.Pointer[fuse.Server] // once mounted
}

// New makes an FS.
func New(c *core.FS) *FS {
	f := &FS{RawFileSystem: fuse.NewDefaultRawFileSystem(), core: c}
	f.dirs.m = map[uint64]*core.Dir{}
	return f
}

// String names the filesystem.
func (f *FS) String() string { return "crake" }

func (f *FS) ino(node uint64) wire.Ino {
	if node == fuse.FUSE_ROOT_ID {
		return f.core.Root()
	}
	return wire.Ino(node)
}

// Node gives the kernel's number of an inode.
func (f *FS) Node(ino wire.Ino) uint64 {
	if ino == f.core.Root() {
		return fuse.FUSE_ROOT_ID
	}
	return uint64(ino)
}

// begin gives the context of a request; finish it.
func (f *FS) begin(cancel <-chan struct{}, h *fuse.InHeader) *call {
	return newCall(cancel, f.core.Stopping(), h)
}

func (f *FS) setAttr(out *fuse.Attr, a *wire.Attr) {
	*out = fuse.Attr{
		Ino: f.Node(a.Ino), Size: a.Size, Blocks: a.Blocks, Mode: a.Mode, Nlink: a.Nlink, Owner: fuse.Owner{Uid: a.UID, Gid: a.GID},
		Rdev: a.Rdev, Blksize: 1 << 17,
	}
	out.Atime, out.Atimensec = split(a.Atime)
	out.Mtime, out.Mtimensec = split(a.Mtime)
	out.Ctime, out.Ctimensec = split(a.Ctime)
}

// split cuts nanoseconds since 1970, perhaps negative, into seconds and nanoseconds.
func split(ns int64) (sec uint64, nsec uint32) {
	s, n := ns/1e9, ns%1e9
	if n < 0 {
		s, n = s-1, n+1e9
	}
	return uint64(s), uint32(n)
}

func joinTime(sec uint64, nsec uint32) int64 { return int64(sec)*1e9 + int64(nsec) }

func (f *FS) setEntry(out *fuse.EntryOut, a *wire.Attr) {
	*out = fuse.EntryOut{NodeId: f.Node(a.Ino)}
	f.setAttr(&out.Attr, a)
}

// Lookup finds a name.
func (f *FS) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	ctx := f.begin(cancel, h)
	defer ctx.finish()
	if len(name) > wire.MaxNameBytes {
		return fuse.Status(syscall.ENAMETOOLONG)
	}
	a, err := f.core.Lookup(ctx, f.ino(h.NodeId), name)
	if err != nil {
		return nameStatus(err)
	}
	f.setEntry(out, &a)
	return fuse.OK
}

// Forget has nothing to forget.
func (f *FS) Forget(uint64, uint64) {}

// GetAttr gives attributes.
func (f *FS) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	ctx := f.begin(cancel, &in.InHeader)
	defer ctx.finish()
	a, err := f.core.GetAttr(ctx, f.ino(in.NodeId))
	if err != nil {
		return gone(err)
	}
	*out = fuse.AttrOut{}
	f.setAttr(&out.Attr, &a)
	return fuse.OK
}

// gone is status for a request on an inode that the kernel knows: if it is not there any more, the handle is stale.
func gone(err error) fuse.Status {
	if wire.KindOf(err) == wire.KindNotFound {
		return fuse.Status(syscall.ESTALE)
	}
	return status(err)
}

// Statx gives attributes with the time of birth.
func (f *FS) Statx(cancel <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	ctx := f.begin(cancel, &in.InHeader)
	defer ctx.finish()
	a, err := f.core.GetAttr(ctx, f.ino(in.NodeId))
	if err != nil {
		return gone(err)
	}
	const basicAndBtime = 0xfff
	*out = fuse.StatxOut{}
	out.Statx = fuse.Statx{
		Mask: basicAndBtime, Blksize: 1 << 17, Nlink: a.Nlink, Uid: a.UID, Gid: a.GID, Mode: uint16(a.Mode), Ino: f.Node(a.Ino),
		Size: a.Size, Blocks: a.Blocks, RdevMajor: a.Rdev >> 8 & 0xfff, RdevMinor: a.Rdev&0xff | a.Rdev>>12&0xfff00,
	}
	out.Atime.Sec, out.Atime.Nsec = split(a.Atime)
	out.Mtime.Sec, out.Mtime.Nsec = split(a.Mtime)
	out.Ctime.Sec, out.Ctime.Nsec = split(a.Ctime)
	out.Btime.Sec, out.Btime.Nsec = split(a.Btime)
	return fuse.OK
}

// SetAttr changes attributes.
func (f *FS) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	ctx := f.begin(cancel, &in.InHeader)
	defer ctx.finish()
	s := core.SetAttr{Mode: in.Mode & 0o7777, UID: in.Uid, GID: in.Gid, Size: in.Size, Atime: joinTime(in.Atime, in.Atimensec),
		Mtime: joinTime(in.Mtime, in.Mtimensec), Ctime: joinTime(in.Ctime, in.Ctimensec)}
	for _, b := range [...][2]uint32{
		{fuse.FATTR_MODE, wire.SetMode}, {fuse.FATTR_UID, wire.SetUID}, {fuse.FATTR_GID, wire.SetGID}, {fuse.FATTR_SIZE, wire.SetSize},
		{fuse.FATTR_ATIME, wire.SetAtime}, {fuse.FATTR_MTIME, wire.SetMtime}, {fuse.FATTR_ATIME_NOW, wire.SetAtimeNow},
		{fuse.FATTR_MTIME_NOW, wire.SetMtimeNow}, {fuse.FATTR_CTIME, wire.SetCtime}, {fuse.FATTR_KILL_SUIDGID, wire.SetKillPriv},
	} {
		if in.Valid&b[0] != 0 {
			s.Valid |= b[1]
		}
	}
	if s.Valid&wire.SetAtimeNow != 0 {
		s.Valid &^= wire.SetAtime
	}
	if s.Valid&wire.SetMtimeNow != 0 {
		s.Valid &^= wire.SetMtime
	}
	a, err := f.core.SetAttr(ctx, f.ino(in.NodeId), s)
	if err != nil {
		return gone(err)
	}
	*out = fuse.AttrOut{}
	f.setAttr(&out.Attr, &a)
	return fuse.OK
}

// Access is never asked: the kernel checks permissions (default_permissions).
func (f *FS) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status { return fuse.ENOSYS }

func (f *FS) make(ctx context.Context, h *fuse.InHeader, c core.Create, out *fuse.EntryOut) fuse.Status {
	c.Parent, c.UID, c.GID = f.ino(h.NodeId), h.Uid, h.Gid
	if len(c.Name) > wire.MaxNameBytes || len(c.Target) > wire.MaxSymlinkBytes {
		return fuse.Status(syscall.ENAMETOOLONG)
	}
	a, err := f.core.Make(ctx, c)
	if err != nil {
		return nameStatus(err)
	}
	f.setEntry(out, &a)
	return fuse.OK
}

// Mknod makes a file, fifo, socket or device.
func (f *FS) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	ctx := f.begin(cancel, &in.InHeader)
	defer ctx.finish()
	return f.make(ctx, &in.InHeader, core.Create{Name: name, Mode: in.Mode, Rdev: in.Rdev}, out)
}

// Mkdir makes a directory.
func (f *FS) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	ctx := f.begin(cancel, &in.InHeader)
	defer ctx.finish()
	return f.make(ctx, &in.InHeader, core.Create{Name: name, Mode: in.Mode&0o7777 | syscall.S_IFDIR}, out)
}

// Symlink makes a symbolic link.
func (f *FS) Symlink(cancel <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	ctx := f.begin(cancel, h)
	defer ctx.finish()
	return f.make(ctx, h, core.Create{Name: name, Mode: syscall.S_IFLNK | 0o777, Target: target}, out)
}

// Unlink removes a name.
func (f *FS) Unlink(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	ctx := f.begin(cancel, h)
	defer ctx.finish()
	return nameStatus(f.core.Unlink(ctx, f.ino(h.NodeId), name))
}

// Rmdir removes a directory.
func (f *FS) Rmdir(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	ctx := f.begin(cancel, h)
	defer ctx.finish()
	return nameStatus(f.core.Rmdir(ctx, f.ino(h.NodeId), name))
}

// Rename moves a name.
func (f *FS) Rename(cancel <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	ctx := f.begin(cancel, &in.InHeader)
	defer ctx.finish()
	if len(newName) > wire.MaxNameBytes {
		return fuse.Status(syscall.ENAMETOOLONG)
	}
	if in.Flags&^(wire.RenameNoReplace|wire.RenameExchange) != 0 {
		return fuse.EINVAL
	}
	return nameStatus(f.core.Rename(ctx, f.ino(in.NodeId), oldName, f.ino(in.Newdir), newName, in.Flags))
}

// Link makes a further name.
func (f *FS) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	ctx := f.begin(cancel, &in.InHeader)
	defer ctx.finish()
	if len(name) > wire.MaxNameBytes {
		return fuse.Status(syscall.ENAMETOOLONG)
	}
	a, err := f.core.Link(ctx, f.ino(in.Oldnodeid), f.ino(in.NodeId), name)
	if err != nil {
		return nameStatus(err)
	}
	f.setEntry(out, &a)
	return fuse.OK
}

// Readlink gives the target of a symbolic link.
func (f *FS) Readlink(cancel <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	ctx := f.begin(cancel, h)
	defer ctx.finish()
	t, err := f.core.Readlink(ctx, f.ino(h.NodeId))
	return []byte(t), gone(err)
}

// GetXAttr gives the value of an extended attribute.
func (f *FS) GetXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	ctx := f.begin(cancel, h)
	defer ctx.finish()
	v, err := f.core.GetXattr(ctx, f.ino(h.NodeId), name)
	if err != nil {
		return 0, xattrStatus(err)
	}
	if len(dest) < len(v) {
		return uint32(len(v)), fuse.ERANGE
	}
	return uint32(copy(dest, v)), fuse.OK
}

// ListXAttr gives the names of the extended attributes.
func (f *FS) ListXAttr(cancel <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	ctx := f.begin(cancel, h)
	defer ctx.finish()
	names, err := f.core.ListXattr(ctx, f.ino(h.NodeId))
	if err != nil {
		return 0, xattrStatus(err)
	}
	n := 0
	for _, s := range names {
		n += len(s) + 1
	}
	if len(dest) < n {
		return uint32(n), fuse.ERANGE
	}
	for _, s := range names {
		dest = dest[copy(dest, s):]
		dest[0] = 0
		dest = dest[1:]
	}
	return uint32(n), fuse.OK
}

// SetXAttr sets an extended attribute.
func (f *FS) SetXAttr(cancel <-chan struct{}, in *fuse.SetXAttrIn, name string, data []byte) fuse.Status {
	ctx := f.begin(cancel, &in.InHeader)
	defer ctx.finish()
	if len(data) > wire.MaxXattrBytes {
		return fuse.Status(syscall.E2BIG)
	}
	if len(name) > wire.MaxNameBytes {
		return fuse.ERANGE
	}
	return xattrStatus(f.core.SetXattr(ctx, f.ino(in.NodeId), name, append([]byte(nil), data...), in.Flags))
}

// RemoveXAttr removes an extended attribute.
func (f *FS) RemoveXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	ctx := f.begin(cancel, h)
	defer ctx.finish()
	return xattrStatus(f.core.RemoveXattr(ctx, f.ino(h.NodeId), name))
}

// StatFs gives the space.
func (f *FS) StatFs(cancel <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	ctx := f.begin(cancel, h)
	defer ctx.finish()
	s, err := f.core.StatFS(ctx)
	if err != nil {
		return status(err)
	}
	*out = fuse.StatfsOut{
		Bsize: wire.BlockSize, Frsize: wire.BlockSize, NameLen: wire.MaxNameBytes, Blocks: s.TotalBytes / wire.BlockSize,
		Bfree: s.FreeBytes / wire.BlockSize, Bavail: s.FreeBytes / wire.BlockSize, Files: s.Files + s.FreeFiles, Ffree: s.FreeFiles,
	}
	return fuse.OK
}

// Ioctl knows none.
func (f *FS) Ioctl(<-chan struct{}, *fuse.IoctlIn, []byte, *fuse.IoctlOut, []byte) fuse.Status {
	return fuse.Status(syscall.ENOTTY)
}
