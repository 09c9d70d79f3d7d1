package wire

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"
)

// Claim: at most half of an arena is lent, each Buf counted once however often it is lent; a refusal changes nothing.
func TestLendHalf(t *testing.T) {
	a := newTestArena(t, 1<<20)
	var bufs []*Buf
	for range 3 {
		bufs = append(bufs, a.TryAlloc(200<<10))
	}
	for range 5 {
		if !a.Lend(bufs[:2]) {
			t.Fatal("less than half is refused")
		}
	}
	if a.Lend(bufs[1:]) {
		t.Error("more than half is lent")
	}
	if got := a.Stats(); got.Lent != 400<<10 || got.Used != 600<<10 {
		t.Errorf("%+v", got)
	}
	for range 5 {
		a.TakeBack(bufs[:2])
	}
	if !a.Lend(bufs[2:]) {
		t.Error("nothing is lent, and yet refused")
	}
	a.TakeBack(bufs[2:])
	for _, b := range bufs {
		b.Release()
	}
	if got := a.Stats(); got.Lent != 0 || got.Used != 0 {
		t.Errorf("%+v", got)
	}
}

// Claim: Trim leaves memory alone that is lent although its owner has released it, and takes it when it has come back.
func TestTrimLeavesLent(t *testing.T) {
	a := newTestArena(t, 4<<20)
	b := a.TryAlloc(1 << 20)
	copy(b.Bytes(), bytes.Repeat([]byte{7}, 1<<20))
	seen := b.Bytes()
	lent := []*Buf{b}
	if !a.Lend(lent) {
		t.Fatal("not lent")
	}
	if !b.Shared() {
		t.Error("lent, and not shared")
	}
	b.Release()
	for range 3 {
		a.Trim()
	}
	if !bytes.Equal(seen, bytes.Repeat([]byte{7}, 1<<20)) {
		t.Error("memory that is lent was given to the system")
	}
	a.TakeBack(lent)
	a.Trim()
	if given := a.Trim(); given == 0 && a.buddy.touchedBlocks() > 0 {
		t.Error("memory that has come back is not given to the system")
	}
}

// Claim: closing an arena of which something is lent is no error; the memory goes when that has come back.
func TestCloseWhileLent(t *testing.T) {
	a, err := NewArena(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	b := a.TryAlloc(4096)
	lent := []*Buf{b}
	if !a.Lend(lent) {
		t.Fatal("not lent")
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	b.Bytes()[0] = 1 // still there
	fd := a.fd
	a.TakeBack(lent)
	b.Release()
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0); err == nil {
		t.Error("the memory is still there")
	}
}

// foreign maps the arena as another process would; life is the end of its pipe that tells of the end.
func foreign(t *testing.T, a *Arena, parent *Foreign) (f *Foreign, life int) {
	fd, err := a.Descriptor()
	if err != nil {
		t.Fatal(err)
	}
	if fd, err = unix.Dup(fd); err != nil {
		t.Fatal(err)
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(pipe[0]) })
	if f, err = MapForeign(fd, pipe[1], a.Size(), parent); err != nil {
		t.Fatal(err)
	}
	return f, pipe[0]
}

// over says that the other end of a life pipe is closed.
func over(life int) bool {
	n, err := unix.Read(life, make([]byte, 1))
	return n == 0 && err == nil
}

// Claim: a loan is over when all of its parts are released and, of a request, it is answered, whichever comes last; its memory is held
// until then, and after the connection has let it go, and so is that of the peer through whom it came.
func TestLoan(t *testing.T) {
	a := newTestArena(t, 1<<20)
	own := a.TryAlloc(8192)
	copy(own.Bytes(), "hello")
	peer, peerLife := foreign(t, a, nil)
	f, life := foreign(t, a, peer)
	if _, _, ok := f.Descriptors(); ok {
		t.Error("memory that was passed on may be passed on again")
	}
	var back []uint64
	loans := NewLoans(a, func(id uint64, bytes int) { back = append(back, id) })
	l := loans.Begin(6, 2, true)
	off := a.Offset(own.Bytes())
	l.Add(f, off, 4096)
	l.Add(f, off+4096, 100)
	d := l.Data()
	if string(d[0].B[:5]) != "hello" || d.Len() != 4196 || !d[0].Buf.Shared() || d[0].Buf.Foreign() != f {
		t.Error("other data:", d.Len())
	}
	f.Release() // the connection has ended
	peer.Release()
	if l.Answered() || over(life) {
		t.Error("over while its data is out")
	}
	part := d.Sub(4000, 10)
	d.Release()
	if len(back) > 0 || over(life) {
		t.Error("over while a part of it is out")
	}
	gone := false
	f.OnGone(func() { gone = true })
	part.Release()
	if len(back) != 1 || back[0] != 6 || !gone || !over(life) || !over(peerLife) {
		t.Error("not over:", back, gone)
	}
	own.Release()

	f, life = foreign(t, a, nil)
	l = loans.Begin(8, 1, true)
	l.Add(f, 0, 4096)
	l.Data().Release()
	if len(back) != 1 {
		t.Error("a release of a request's data before its answer is not told by itself:", back)
	}
	if !l.Answered() {
		t.Error("the answer does not give the data back")
	}
	f.Release()
	if !over(life) {
		t.Error("memory that nobody uses is held")
	}
}

// Claim: the descriptor that goes to others cannot be written through, and the memory's size cannot change under those who have mapped it.
func TestDescriptorIsReadOnly(t *testing.T) {
	a := newTestArena(t, 1<<20)
	fd, err := a.Descriptor()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Pwrite(fd, []byte{1}, 0); err != unix.EBADF {
		t.Error("write:", err)
	}
	if _, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != unix.EACCES {
		t.Error("map to write:", err)
	}
	for _, size := range []int64{0, 2 << 20} {
		if err := unix.Ftruncate(a.fd, size); err != unix.EPERM {
			t.Error("another size:", err)
		}
	}
}

// Claim: an arena without ArenaDebug uses Buf structs again, the youngest not at once, and a second Release of one that waits is a panic.
func TestBufsAreUsedAgain(t *testing.T) {
	a, err := NewArena(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Close() }()
	first := a.TryAlloc(4096)
	first.Release()
	func() {
		defer func() {
			if recover() == nil {
				t.Error("no panic at a second Release")
			}
		}()
		first.Release()
	}()
	first.refs.Store(0)
	again := 0
	for i := 1; again == 0 && i < 10*minSpare; i++ {
		b := a.TryAlloc(4096)
		if b == first {
			again = i
		}
		b.Release()
	}
	if again <= minSpare {
		t.Error("used again after", again)
	}
}
