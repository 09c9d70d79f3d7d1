package wire

import (
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Foreign is memory of another process that it has lent to this one: its memfd, mapped read only. It goes (is unmapped, and its
// descriptors closed) with the last of: the connection that it came from, and the Bufs that were borrowed there.
type Foreign struct {
	// immutable
	mem    []byte
	fd     int      // the memfd, to be passed on
	life   int      // closing it tells the owner that nothing here can touch the memory any more
	parent *Foreign // the memory of the peer itself, where this is memory that it has passed on: stays as long as this does

	refs atomic.Int64

	mu   sync.Mutex
	gone map[int]func() // to be called when it goes
	next int
}

// MapForeign maps the first size bytes of a memfd that another process has sent. It owns both descriptors from now on, also when it
// fails. Neither is trusted: fd must be a memfd of plain memory of just this size that can neither shrink nor grow (so that looking at
// it cannot fault), and life a pipe. parent is what Foreign says, or nil. Errors: KindInvalid.
func MapForeign(fd, life, size int, parent *Foreign) (*Foreign, error) {
	err := checkForeign(fd, life, size)
	if err != nil {
		// Not here: closing a file of a filesystem that its owner plays itself may never end.
		go closeAll(fd, life)
		return nil, err
	}
	mem, err := unix.Mmap(fd, 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		closeAll(fd, life)
		return nil, E("arena.foreign", KindInvalid, "memfd", err)
	}
	f := &Foreign{mem: mem, fd: fd, life: life, parent: parent, gone: map[int]func(){}}
	f.refs.Store(1)
	if parent != nil {
		parent.Retain()
	}
	return f, nil
}

// checkForeign asks nothing of a descriptor that a filesystem played by its owner would be asked, until it is known to be none.
func checkForeign(fd, life, size int) error {
	const op = "arena.foreign"
	if size <= 0 || size%BlockSize != 0 {
		return Errorf(op, KindInvalid, "", "%d bytes", size)
	}
	if _, err := unix.FcntlInt(uintptr(life), unix.F_GETPIPE_SZ, 0); err != nil {
		return E(op, KindInvalid, "life descriptor", err)
	}
	const need = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil || seals&need != need {
		return Errorf(op, KindInvalid, "", "no sealed memory: seals %#x: %w", seals, err)
	}
	var fs unix.Statfs_t
	var st unix.Stat_t
	if err := unix.Fstatfs(fd, &fs); err != nil || fs.Type != unix.TMPFS_MAGIC { // huge pages may be lacking when they are looked at
		return Errorf(op, KindInvalid, "", "no plain memory: filesystem %#x: %w", fs.Type, err)
	}
	if err := unix.Fstat(fd, &st); err != nil || st.Size != int64(size) {
		return Errorf(op, KindInvalid, "", "%d bytes are there, %d were told: %w", st.Size, size, err)
	}
	return nil
}

func closeAll(fds ...int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// Retain takes a further reference. Preconditions: the caller has one.
func (f *Foreign) Retain() {
	if f.refs.Add(1) <= 1 {
		panic("wire: Retain of memory that has gone")
	}
}

// Release gives a reference back; with the last one the memory goes.
func (f *Foreign) Release() {
	n := f.refs.Add(-1)
	if n > 0 {
		return
	}
	if n < 0 {
		panic("wire: more Releases than references of another process's memory")
	}
	f.mu.Lock()
	gone := f.gone
	f.gone = nil
	f.mu.Unlock()
	for _, tell := range gone {
		tell()
	}
	if err := unix.Munmap(f.mem); err != nil {
		panic("wire: another process's memory cannot be unmapped: " + err.Error()) // to close life would be a lie
	}
	closeAll(f.fd, f.life)
	if f.parent != nil {
		f.parent.Release()
	}
}

// OnGone has tell called when the memory goes, by whoever releases it last: so it must not block, and take leaf locks only. The
// function returned takes this back; tell may still be under way then. Preconditions: the caller has a reference.
func (f *Foreign) OnGone(tell func()) (stop func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := f.next
	f.next++
	f.gone[id] = tell
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.gone, id)
	}
}

// Descriptors gives the memfd and the life descriptor, to be passed on; they are f's. ok is false for memory that the peer has passed on
// itself: its life descriptor does not say that the peer waits for us, so it goes no further.
func (f *Foreign) Descriptors() (fd, life int, ok bool) { return f.fd, f.life, f.parent == nil }

// Size gives the bytes that are mapped.
func (f *Foreign) Size() int { return len(f.mem) }

// Offset gives where p lies in the memory. Preconditions: it does.
func (f *Foreign) Offset(p []byte) int { return offsetIn(f.mem, p) }

func offsetIn(mem, p []byte) int {
	off := uintptr(unsafe.Pointer(unsafe.SliceData(p))) - uintptr(unsafe.Pointer(unsafe.SliceData(mem)))
	if off > uintptr(len(mem)) {
		panic("wire: the slice does not lie in this memory")
	}
	return int(off)
}
