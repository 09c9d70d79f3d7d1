package core

import (
	"context"
	"sync"
	"time"

	"github.com/crakefs/crake/frontend/internal/dirty"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/copies"
)

// Write says how a write is to be done.
type Write struct {
	Off   uint64
	Data  []byte
	Flags uint32 // of the open file
	// KillPriv: the writer may not keep setuid and setgid on the file.
	KillPriv bool
	// Pages: the kernel writes back pages of an mmap: it goes where it says, whatever Flags, and is buffered.
	Pages bool
}

// Write writes, and gives how many bytes were taken; fewer than all only with an error. When it returns the data is buffered here
// under the write lease, or durable when the file was opened with O_DIRECT (without its size), O_SYNC or O_DSYNC.
func (fs *FS) Write(ctx context.Context, h *Handle, w Write) (int, error) {
	in := h.in
	if len(w.Data) == 0 {
		return 0, nil
	}
	if w.KillPriv {
		if err := fs.killPriv(ctx, in); err != nil {
			return 0, err
		}
	}
	if w.Pages {
		in.mu.Lock()
		in.pages = true
		in.mu.Unlock()
		w.Flags = 0
	}
	off, n, err := fs.buffer(ctx, in, &w)
	if w.Flags&openAppend != 0 {
		off = 0 // its parts need not be adjacent
	}
	if n > 0 && w.Flags&(openDirect|openDsync) != 0 {
		if ferr := fs.flush(ctx, in, off, w.reach(n), w.Flags&openDsync != 0); ferr != nil {
			return 0, ferr
		}
	}
	if err != nil && n > 0 && wire.KindOf(err) == wire.KindNoSpace {
		err = nil // a short write; the next one says why
	}
	return n, err
}

// reach gives the length of the range to flush after n bytes were taken.
func (w *Write) reach(n int) uint64 {
	if w.Flags&openAppend != 0 {
		return wholeFile
	}
	return uint64(n)
}

// buffer puts the data among the dirty blocks of the file, piece by piece. It gives where, and how much. O_APPEND decides the place
// of each piece under the lease: the kernel does not know what other clients appended.
func (fs *FS) buffer(ctx context.Context, in *inode, w *Write) (off uint64, done int, err error) {
	off = w.Off
	var mem *dirty.Mem
	defer func() { mem.Release() }()
	for done < len(w.Data) {
		if err := fs.lockWritable(ctx, in); err != nil {
			return off, done, err
		}
		at := off + uint64(done)
		if w.Flags&openAppend != 0 {
			at = in.attr.Size
		}
		if at+uint64(len(w.Data)-done) > wire.MaxFileBytes {
			in.mu.Unlock()
			return off, done, wire.E("frontend.write", wire.KindTooBig, "", nil)
		}
		n := dirty.InChunk(at, len(w.Data)-done)
		if block, frozen, gap := in.data.Gap(at, n); gap {
			err = fs.closeGap(ctx, in, block, frozen)
		} else if need := in.data.Need(at, n); need > mem.Left() {
			in.mu.Unlock()
			mem.Release()
			mem, err = fs.newMem(ctx, need)
		} else {
			in.put(at, w.Data[done:done+n], mem)
			done += n
			fs.sendReady(in, at, n)
			in.mu.Unlock()
		}
		if err != nil {
			return off, done, err
		}
	}
	return off, done, nil
}

// put takes data that lies in one chunk. mu is held, the lease allows it.
func (in *inode) put(at uint64, p []byte, mem *dirty.Mem) {
	if in.data.DirtyBytes() == 0 {
		in.since = time.Now()
	}
	in.data.Put(at, p, mem, in.srvEnd)
	in.attr.Size = max(in.attr.Size, at+uint64(len(p)))
	now := time.Now().UnixNano()
	in.attr.Mtime, in.attr.Ctime = now, now
	in.meta++
	in.content++
	in.fs.wb.list(in)
}

// closeGap makes a block whole that is about to have two separate parts. mu is held on entry, and not on return.
func (fs *FS) closeGap(ctx context.Context, in *inode, block uint64, frozen bool) error {
	if frozen {
		err := in.await(ctx)
		in.mu.Unlock()
		return err
	}
	gen, lent := in.mapsGen, in.data.Lent(block)
	in.mu.Unlock()
	var mem *dirty.Mem
	if lent {
		var err error
		if mem, err = fs.newMem(ctx, 1); err != nil {
			return err
		}
		defer mem.Release()
	}
	base := make([]byte, wire.BlockSize)
	if err := fs.readBase(ctx, in, block*wire.BlockSize, base, 0, 0); err != nil {
		return err
	}
	in.mu.Lock()
	if gen == in.mapsGen { // else the lease went meanwhile, or a truncate came: what was read may be old
		in.data.Fill(block, base, mem)
	}
	in.mu.Unlock()
	return nil
}

// readBase reads what the cluster has of a block, at off in the file, into dst but for [lo, hi); past the end that counts it has zeros.
func (fs *FS) readBase(ctx context.Context, in *inode, off uint64, dst []byte, lo, hi int) error {
	in.mu.Lock()
	end := in.srvEnd
	in.mu.Unlock()
	if off >= end {
		clear(dst[:lo])
		clear(dst[hi:])
		return nil
	}
	b := newBytes(nil)
	defer b.Done()
	if err := fs.readCluster(ctx, in, []span{{off, len(dst)}}, b); err != nil {
		return err
	}
	b.copyTo(dst[:lo], 0)
	b.copyTo(dst[hi:], hi)
	copies.Add(copies.WriteBase, lo+len(dst)-hi)
	return nil
}

// newMem gives memory for dirty blocks. It waits while there is too much dirty data.
func (fs *FS) newMem(ctx context.Context, blocks int) (*dirty.Mem, error) {
	n := int64(blocks) * wire.BlockSize
	if err := fs.reserve(ctx, n); err != nil {
		return nil, err
	}
	if !fs.dirtySem.TryAcquire(n) {
		fs.wb.press()
		if err := fs.awaitMem(ctx, n); err != nil {
			return nil, err
		}
	}
	buf, err := fs.c.Arena.Alloc(ctx, int(n))
	if err != nil {
		fs.dirtySem.Release(n)
		return nil, err
	}
	if fs.dirtyNow.Add(n) > fs.c.DirtyBytes/2 {
		fs.wb.press()
	}
	return dirty.NewMem(buf, func() {
		fs.dirtyNow.Add(-n)
		fs.dirtySem.Release(n)
	}), nil
}

// awaitMem waits for n bytes of the dirty bound, as long as the cluster takes data.
func (fs *FS) awaitMem(ctx context.Context, n int64) error {
	for {
		part, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		err := fs.dirtySem.Acquire(part, n)
		cancel()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return interrupted(ctx)
		case fs.bg.Err() != nil:
			return wire.E("frontend.write", wire.KindShutdown, "", nil)
		case fs.space.isFull():
			return wire.E("frontend.write", wire.KindNoSpace, "", nil)
		}
	}
}

// space is what is known of free space.
type space struct {
	mu   sync.Mutex
	resp wire.StatFSResp
	at   time.Time // of resp
	sent int64     // bytes that were committed since resp was asked for
	full time.Time // when the cluster last refused data
	busy bool      // a refresh is under way
}

// isFull says that the cluster refused data a moment ago.
func (s *space) isFull() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Since(s.full) < spaceAge
}

func (s *space) refused() {
	s.mu.Lock()
	s.full = time.Now()
	s.at = time.Time{}
	s.mu.Unlock()
}

// commit notes that the cluster has taken n bytes.
func (s *space) commit(n int) {
	s.mu.Lock()
	s.sent += int64(n)
	s.mu.Unlock()
}

func (fs *FS) askSpace(ctx context.Context) (wire.StatFSResp, error) {
	var resp wire.StatFSResp
	fs.space.mu.Lock()
	before := fs.space.sent
	fs.space.mu.Unlock()
	err := fs.ask(ctx, fs.Root().Bucket(), wire.MStatFS, &wire.StatFSReq{FS: fs.c.FS.ID}, &resp)
	if err == nil {
		fs.space.mu.Lock()
		fs.space.resp, fs.space.at = resp, time.Now()
		fs.space.sent -= before
		fs.space.mu.Unlock()
	}
	return resp, err
}

// reserve tells KindNoSpace before data is taken that would not fit. The figure is refreshed in the background while it is in
// use; near the end it is asked for at once.
func (fs *FS) reserve(ctx context.Context, n int64) error {
	s := &fs.space
	s.mu.Lock()
	free, age := int64(s.resp.FreeBytes)-s.sent, time.Since(s.at)
	refresh := age > spaceAge/2 && !s.busy
	s.busy = s.busy || refresh
	s.mu.Unlock()
	if refresh {
		fs.spawn(func() {
			_, _ = fs.askSpace(fs.bg) // later again
			s.mu.Lock()
			s.busy = false
			s.mu.Unlock()
		})
	}
	if age < 10*spaceAge && fs.dirtyNow.Load()+n < free {
		return nil
	}
	resp, err := fs.askSpace(ctx)
	if err != nil {
		return err
	}
	if fs.dirtyNow.Load()+n > int64(resp.FreeBytes) {
		return wire.E("frontend.write", wire.KindNoSpace, "", nil)
	}
	return nil
}

// Modes of Fallocate, as fallocate(2) has them.
const (
	fallocKeepSize = 1
	fallocPunch    = 2
	fallocZero     = 16
)

// Fallocate does what fallocate(2) says, for modes that promise nothing that cannot be kept: space is not set aside.
func (fs *FS) Fallocate(ctx context.Context, h *Handle, mode uint32, off, n uint64) error {
	if n == 0 || off+n < off {
		return wire.E("frontend.fallocate", wire.KindInvalid, "", nil)
	}
	if off+n > wire.MaxFileBytes {
		return wire.E("frontend.fallocate", wire.KindTooBig, "", nil)
	}
	switch mode {
	case 0, fallocKeepSize, fallocPunch | fallocKeepSize, fallocZero, fallocZero | fallocKeepSize:
	default:
		return wire.Errorf("frontend.fallocate", wire.KindNotSupported, "", "mode %#x", mode)
	}
	if mode == 0 || mode == fallocKeepSize {
		if err := fs.reserve(ctx, int64(n)); err != nil {
			return err
		}
	}
	size, err := fs.size(ctx, h.in)
	if err != nil {
		return err
	}
	if mode&(fallocPunch|fallocZero) != 0 && off < size {
		if err := fs.zero(ctx, h, off, min(n, size-off)); err != nil {
			return err
		}
	}
	if mode&fallocKeepSize == 0 && off+n > size {
		_, err = fs.truncate(ctx, h.in, SetAttr{Valid: wire.SetSize, Size: off + n})
	}
	return err
}

// zero makes [off, off+n), which lies in the file, read as zeros: the whole blocks by a punch, the edges by a write.
func (fs *FS) zero(ctx context.Context, h *Handle, off, n uint64) error {
	end := off + n
	first := min((off+wire.BlockSize-1)&^(wire.BlockSize-1), end)
	last := max(end&^(wire.BlockSize-1), first)
	for _, e := range [2][2]uint64{{off, first}, {last, end}} {
		if e[1] > e[0] {
			if _, err := fs.Write(ctx, h, Write{Off: e[0], Data: zeroPage[:e[1]-e[0]]}); err != nil {
				return err
			}
		}
	}
	if last == first {
		return nil
	}
	in := h.in
	if err := fs.lockQuiet(ctx, in); err != nil {
		return err
	}
	stop := min(last, in.srvEnd)
	in.mu.Unlock()
	return fs.detached(ctx, in, func() error { return fs.punch(in, first, last, stop) })
}

// punch drops the whole blocks [first, last); the cluster has none from stop on. The inode is quiet.
func (fs *FS) punch(in *inode, first, last, stop uint64) error {
	var err error
	for at := first; at < stop && err == nil; {
		region := at / wire.RegionBytes
		next := min(last, (region+1)*wire.RegionBytes)
		err = fs.mutate(fs.bg, fs.bucketOf(in.ino, region), wire.MPunch, &wire.Empty{}, func(op wire.OpID) wire.Message {
			return &wire.PunchReq{Op: op, Ino: in.ino, Off: at, Len: next - at}
		})
		at = next
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.mapsGen++
	in.mapsVer = nil
	in.content++
	if err != nil {
		return err
	}
	in.data.Drop(first, last-first)
	in.ready = nil
	in.attr.Mtime = time.Now().UnixNano()
	in.attr.Ctime = in.attr.Mtime
	in.meta++
	if in.since.IsZero() || !in.wb {
		in.since = time.Now()
	}
	fs.wb.list(in)
	return nil
}
