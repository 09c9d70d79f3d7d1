package fusefs

import (
	"errors"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/crakefs/crake/frontend/internal/core"
	"github.com/crakefs/crake/frontend/internal/locks"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/copies"
)

// openFlags: the kernel keeps no data but the pages of mmaps, and does not make writers to one file wait for each other.
const openFlags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES

// Create makes a file and opens it.
//
// The kernel asks only when its lookup found nothing, and keeps O_TRUNC to itself. If another client was faster, ESTALE
// makes it look again and go on as with any file that exists.
func (f *FS) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	ctx := f.begin(cancel, &in.InHeader)
	defer ctx.finish()
	if len(name) > wire.MaxNameBytes {
		return fuse.Status(syscall.ENAMETOOLONG)
	}
	h, a, err := f.core.CreateFile(ctx, core.Create{Parent: f.ino(in.NodeId), Name: name, Mode: in.Mode&0o7777 | syscall.S_IFREG,
		UID: in.Uid, GID: in.Gid}, in.Flags)
	if errors.Is(err, wire.KindExists) && in.Flags&syscall.O_EXCL == 0 {
		return fuse.Status(syscall.ESTALE)
	}
	if err != nil {
		return nameStatus(err)
	}
	f.setEntry(&out.EntryOut, &a)
	out.OpenOut = fuse.OpenOut{Fh: h.ID, OpenFlags: openFlags}
	return fuse.OK
}

// Open opens a file.
func (f *FS) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	ctx := f.begin(cancel, &in.InHeader)
	defer ctx.finish()
	h, err := f.core.Open(ctx, f.ino(in.NodeId), in.Flags)
	if err != nil {
		return gone(err)
	}
	*out = fuse.OpenOut{Fh: h.ID, OpenFlags: openFlags}
	return fuse.OK
}

// result answers a READ from our own memory, without a copy into go-fuse's buffer.
type result struct{ b *core.Bytes }

func (r result) Size() int { return r.b.Len() }

func (r result) Done() { r.b.Done() }

func (r result) Slices() ([][]byte, fuse.Status) { return r.b.Slices(), fuse.OK }

func (r result) Bytes(buf []byte) ([]byte, fuse.Status) {
	buf = buf[:0]
	for _, s := range r.b.Slices() {
		buf = append(buf, s...)
	}
	copies.Add(copies.Gather, len(buf))
	return buf, fuse.OK
}

// Read gives data. A read of the kernel's own, for pages of an mmap, has no lock owner.
func (f *FS) Read(cancel <-chan struct{}, in *fuse.ReadIn, _ []byte) (fuse.ReadResult, fuse.Status) {
	h := f.core.Handle(in.Fh)
	if h == nil {
		return nil, fuse.EBADF
	}
	ctx := f.begin(cancel, &in.InHeader)
	defer ctx.finish()
	b, err := f.core.Read(ctx, h, in.Offset, int(in.Size), in.Flags, in.ReadFlags&fuse.READ_LOCKOWNER == 0)
	if err != nil {
		return nil, gone(err)
	}
	return result{b}, fuse.OK
}

// Write takes data.
func (f *FS) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	h := f.core.Handle(in.Fh)
	if h == nil {
		return 0, fuse.EBADF
	}
	ctx := f.begin(cancel, &in.InHeader)
	defer ctx.finish()
	n, err := f.core.Write(ctx, h, core.Write{Off: in.Offset, Data: data, Flags: in.Flags,
		KillPriv: in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0, Pages: in.WriteFlags&fuse.WRITE_CACHE != 0})
	if err != nil {
		return 0, gone(err)
	}
	return uint32(n), fuse.OK
}

// Flush comes at each close of a descriptor.
func (f *FS) Flush(cancel <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	h := f.core.Handle(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	ctx := f.begin(cancel, &in.InHeader)
	defer ctx.finish()
	return gone(f.core.Flush(ctx, h, in.LockOwner))
}

// Release comes when the last descriptor of a handle is closed. The caller does not wait for it.
func (f *FS) Release(cancel <-chan struct{}, in *fuse.ReleaseIn) {
	h := f.core.Handle(in.Fh)
	if h == nil {
		return
	}
	ctx := f.begin(cancel, &in.InHeader)
	defer ctx.finish()
	f.core.Release(ctx, h, in.ReleaseFlags&fuse.FUSE_RELEASE_FLOCK_UNLOCK != 0)
}

// Fsync makes durable.
func (f *FS) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	h := f.core.Handle(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	ctx := f.begin(cancel, &in.InHeader)
	defer ctx.finish()
	return gone(f.core.Fsync(ctx, h))
}

// Fallocate punches holes, zeroes, and extends.
func (f *FS) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	h := f.core.Handle(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	ctx := f.begin(cancel, &in.InHeader)
	defer ctx.finish()
	return gone(f.core.Fallocate(ctx, h, in.Mode, in.Offset, in.Length))
}

// Lseek finds data and holes.
func (f *FS) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	const seekData, seekHole = 3, 4
	h := f.core.Handle(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	if in.Whence != seekData && in.Whence != seekHole {
		return fuse.EINVAL
	}
	ctx := f.begin(cancel, &in.InHeader)
	defer ctx.finish()
	at, err := f.core.Seek(ctx, h, in.Offset, in.Whence == seekHole)
	if errors.Is(err, wire.KindNoData) {
		return fuse.Status(syscall.ENXIO)
	}
	out.Offset = at
	return gone(err)
}

// CopyFileRange leaves the copying to the kernel, which falls back to read and write.
func (f *FS) CopyFileRange(<-chan struct{}, *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	return 0, fuse.ENOSYS
}

// held translates a lock. A flock belongs to the open file, so to the handle: the owner that the kernel tells is the address of its
// struct file, which the next open may get while the release of the last one, and its unlock, are still under way.
func held(in *fuse.LkIn) locks.Held {
	if in.LkFlags&fuse.LK_FLOCK != 0 {
		in.Owner = in.Fh
	}
	return locks.Held{Owner: in.Owner, Start: in.Lk.Start, End: in.Lk.End, Type: uint8(in.Lk.Typ), PID: in.Lk.Pid,
		Flock: in.LkFlags&fuse.LK_FLOCK != 0}
}

// locks is held for a lock that is asked for: its handle knows of it. (Numbers of open directories are others'.)
func (f *FS) locks(in *fuse.LkIn) locks.Held {
	l := held(in)
	if h := f.core.Handle(in.Fh); h != nil && h.Ino() == f.ino(in.NodeId) && !l.Flock && l.Type != wire.LockUnlock {
		h.Locks(l.Owner)
	}
	return l
}

// GetLk tells which lock is in the way.
func (f *FS) GetLk(cancel <-chan struct{}, in *fuse.LkIn, out *fuse.LkOut) fuse.Status {
	ctx := f.begin(cancel, &in.InHeader)
	defer ctx.finish()
	l, err := f.core.TestLock(ctx, f.ino(in.NodeId), held(in))
	out.Lk = fuse.FileLock{Start: l.Start, End: l.End, Typ: uint32(l.Type), Pid: l.PID}
	return gone(err)
}

// SetLk sets or drops a lock, at once or not at all.
func (f *FS) SetLk(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	ctx := f.begin(cancel, &in.InHeader)
	defer ctx.finish()
	return gone(f.core.SetLock(ctx, f.ino(in.NodeId), f.locks(in), false))
}

// SetLkw waits for a lock, until a signal comes.
func (f *FS) SetLkw(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	ctx := f.begin(cancel, &in.InHeader)
	defer ctx.finish()
	return gone(f.core.SetLock(waiting{ctx, cancel}, f.ino(in.NodeId), f.locks(in), true))
}

// dirTable is the open directories.
type dirTable struct {
	mu   sync.Mutex
	m    map[uint64]*core.Dir
	last uint64
}

func (t *dirTable) get(id uint64) *core.Dir {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.m[id]
}

// OpenDir opens a directory.
func (f *FS) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	f.dirs.mu.Lock()
	defer f.dirs.mu.Unlock()
	f.dirs.last++
	f.dirs.m[f.dirs.last] = f.core.OpenDir(f.ino(in.NodeId))
	*out = fuse.OpenOut{Fh: f.dirs.last}
	return fuse.OK
}

// ReleaseDir closes a directory.
func (f *FS) ReleaseDir(in *fuse.ReleaseIn) {
	f.dirs.mu.Lock()
	defer f.dirs.mu.Unlock()
	delete(f.dirs.m, in.Fh)
}

// FsyncDir has nothing to do: a namespace change is durable when it is answered.
func (f *FS) FsyncDir(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.OK }

// ReadDir lists names.
func (f *FS) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	d := f.dirs.get(in.Fh)
	if d == nil {
		return fuse.EBADF
	}
	ctx := f.begin(cancel, &in.InHeader)
	defer ctx.finish()
	return gone(d.Read(ctx, in.Offset, false, func(e *wire.DirEntry) bool { return out.AddDirEntry(f.dirEntry(e)) }))
}

func (f *FS) dirEntry(e *wire.DirEntry) fuse.DirEntry {
	return fuse.DirEntry{Mode: e.Type, Name: e.Name, Ino: f.Node(e.Ino), Off: e.Cookie}
}

// ReadDirPlus lists names with attributes. For an entry without, and for "." and "..", node id 0 says so.
func (f *FS) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	d := f.dirs.get(in.Fh)
	if d == nil {
		return fuse.EBADF
	}
	ctx := f.begin(cancel, &in.InHeader)
	defer ctx.finish()
	return gone(d.Read(ctx, in.Offset, true, func(e *wire.DirEntry) bool {
		o := out.AddDirLookupEntry(f.dirEntry(e))
		if o != nil && e.HasAttr {
			f.setEntry(o, &e.Attr)
		}
		return o != nil
	}))
}
