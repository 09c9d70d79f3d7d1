package uring

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func newRing(t *testing.T) *Ring {
	t.Helper()
	r, err := New(8, 16, true, KernelSetup)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		t.Skipf("the kernel has no io_uring for us: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// do pushes entries, submits them and reaps as many, waiting in poll.
func do(t *testing.T, r *Ring, entries ...SQE) []CQE {
	t.Helper()
	for i := range entries {
		if ok, err := r.Push(&entries[i]); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	for {
		n, err := r.Pending()
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
		if err := r.Submit(n); err != nil {
			t.Fatal(err)
		}
	}
	out := make([]CQE, len(entries))
	for got := 0; got < len(out); {
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(r.FD()), Events: unix.POLLIN}}, 5000); err != nil && err != unix.EINTR {
			t.Fatal(err)
		}
		n, err := r.Reap(out[got:])
		if err != nil {
			t.Fatal(err)
		}
		got += n
	}
	return out
}

func mapped(t *testing.T, n int) []byte {
	t.Helper()
	m, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(m) })
	return m
}

func at(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }

// TestOperations: every operation does on the kernel what its name says, with registered files and buffers and without.
func TestOperations(t *testing.T) {
	r := newRing(t)
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := errors.Join(r.RegisterFiles(4), r.UpdateFile(2, int(f.Fd())), r.RegisterBuffers(8)); err != nil {
		t.Fatal(err)
	}
	mem := mapped(t, 8192)
	src, dst := mem[:4096], mem[4096:]
	if err := r.UpdateBuffer(5, mem); err != nil {
		t.Fatal(err)
	}
	copy(src, strings.Repeat("crake", 1000))
	iov := []unix.Iovec{{Base: &src[0], Len: 100}, {Base: &src[100], Len: 200}}
	for _, c := range []struct {
		name string
		e    SQE
		res  int32
	}{
		{"nop", SQE{Op: OpNop}, 0},
		{"write", SQE{Op: OpWrite, FD: int32(f.Fd()), Addr: at(src), Len: 4096}, 4096},
		{"read", SQE{Op: OpRead, Flags: FixedFile, FD: 2, Addr: at(dst), Len: 4096}, 4096},
		{"write fixed", SQE{Op: OpWriteFixed, Flags: FixedFile, FD: 2, Off: 4096, Addr: at(src), Len: 4096, BufIndex: 5}, 4096},
		{"fsync", SQE{Op: OpFsync, Flags: FixedFile, FD: 2, OpFlags: FsyncDatasync}, 0},
		{"read fixed, short", SQE{Op: OpReadFixed, Flags: FixedFile, FD: 2, Off: 4096 + 1000, Addr: at(dst), Len: 4096, BufIndex: 5}, 3096},
		{"writev", SQE{Op: OpWritev, Flags: FixedFile, FD: 2, Off: 8192, Addr: uint64(uintptr(unsafe.Pointer(&iov[0]))), Len: 2}, 300},
		{"read past the end", SQE{Op: OpRead, Flags: FixedFile, FD: 2, Off: 1 << 20, Addr: at(dst), Len: 1}, 0},
		{"an empty file", SQE{Op: OpRead, Flags: FixedFile, FD: 3, Addr: at(dst), Len: 1}, -int32(unix.EBADF)},
		{"an empty buffer", SQE{Op: OpReadFixed, Flags: FixedFile, FD: 2, Addr: at(dst), Len: 1, BufIndex: 4}, -int32(unix.EFAULT)},
		{"forced to a thread", SQE{Op: OpRead, Flags: FixedFile | Async, FD: 2, Addr: at(dst), Len: 4096}, 4096},
	} {
		c.e.UserData = 77
		if got := do(t, r, c.e)[0]; got.Res != c.res || got.UserData != 77 {
			t.Errorf("%s: %+v, want %d", c.name, got, c.res)
		}
	}
	if string(dst) != string(src) {
		t.Error("what was read is not what was written")
	}
	if err := errors.Join(r.UpdateBuffer(5, nil), r.UpdateFile(2, -1)); err != nil {
		t.Fatal(err)
	}
	if got := do(t, r, SQE{Op: OpReadFixed, FD: int32(f.Fd()), Addr: at(dst), Len: 1, BufIndex: 5})[0]; got.Res != -int32(unix.EFAULT) {
		t.Errorf("a buffer that is not registered any more: %+v", got)
	}
	if err := r.UpdateBuffer(8, mem); err == nil {
		t.Error("a place beyond the table")
	}
}

// TestFull: a full ring refuses, and loses nothing.
func TestFull(t *testing.T) {
	r := newRing(t)
	for i := range 8 {
		if ok, err := r.Push(&SQE{Op: OpNop, UserData: uint64(i)}); !ok || err != nil {
			t.Fatal(i, ok, err)
		}
	}
	if ok, err := r.Push(&SQE{Op: OpNop}); ok || err != nil {
		t.Fatal("a ninth of eight", ok, err)
	}
	if n, err := r.Pending(); n != 8 || err != nil {
		t.Fatal(n, err)
	}
	if err := r.Submit(8); err != nil {
		t.Fatal(err)
	}
	out := make([]CQE, 20)
	n, err := r.Reap(out)
	if n != 8 || err != nil {
		t.Fatal(n, err)
	}
	for i := range n {
		if out[i].UserData != uint64(i) {
			t.Errorf("completion %d is of %d", i, out[i].UserData)
		}
	}
}

// TestOverflow: more completions than the ring takes wait in the kernel, and GetEvents brings them.
func TestOverflow(t *testing.T) {
	r := newRing(t)
	total := 0
	for range 4 {
		for range 8 {
			if ok, err := r.Push(&SQE{Op: OpNop}); !ok || err != nil {
				t.Fatal(ok, err)
			}
		}
		if err := r.Submit(8); err != nil && err != unix.EBUSY {
			t.Fatal(err)
		}
	}
	if !r.Overflowed() {
		t.Fatal("32 completions fit into 16")
	}
	out := make([]CQE, 32)
	for range 10 {
		n, err := r.Reap(out)
		if err != nil {
			t.Fatal(err)
		}
		if total += n; total == 32 {
			return
		}
		if err := r.GetEvents(); err != nil {
			t.Fatal(err)
		}
	}
	t.Errorf("%d completions of 32", total)
}

// TestRefused: the errors of a kernel that has no io_uring, forbids it, or has too old a one, reach the caller; nothing leaks.
func TestRefused(t *testing.T) {
	for _, errno := range []unix.Errno{unix.ENOSYS, unix.EPERM, unix.EINVAL, unix.ENOMEM} {
		if _, err := New(8, 16, true, func(uint32, *Params) (int, error) { return -1, errno }); !errors.Is(err, errno) {
			t.Errorf("%v: %v", errno, err)
		}
	}
	old := func(n uint32, p *Params) (int, error) { // knows no flags but the oldest
		if p.Flags&^setupCQSize != 0 {
			return -1, unix.EINVAL
		}
		return KernelSetup(n, p)
	}
	r, err := New(8, 16, true, old)
	if err != nil {
		t.Fatal(err)
	}
	fd := r.FD()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	lacking := func(n uint32, p *Params) (int, error) {
		fd, err := KernelSetup(n, p)
		p.Features = featSingleMmap
		return fd, err
	}
	if _, err := New(8, 16, true, lacking); !errors.Is(err, unix.ENOSYS) {
		t.Errorf("a kernel that lacks features: %v", err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
		t.Error("the descriptor of a ring that was refused is still open")
	}
}

// fakeRing is a ring on memory of ours, with the kernel's layout.
func fakeRing(t testing.TB) (*Ring, *Params, []byte) {
	p := &Params{
		SQEntries: 8, CQEntries: 16,
		SQ: SQOffsets{Head: 0, Tail: 4, RingMask: 8, RingEntries: 12, Flags: 16, Array: 64},
		CQ: CQOffsets{Head: 128, Tail: 132, RingMask: 136, RingEntries: 140, Flags: 148, CQEs: 192},
	}
	mem := make([]uint64, (192+16*cqeBytes)/8)
	rings := unsafe.Slice((*byte)(unsafe.Pointer(&mem[0])), len(mem)*8)
	put(rings, p.SQ.RingMask, 7)
	put(rings, p.CQ.RingMask, 15)
	r, err := OnMemory(p, rings, make([]byte, 8*sqeBytes))
	if err != nil {
		t.Fatal(err)
	}
	return r, p, rings
}

func put(rings []byte, off, v uint32) { *(*uint32)(unsafe.Pointer(&rings[off])) = v }

// TestGeometry: a layout that does not fit its map is an error.
func TestGeometry(t *testing.T) {
	_, good, rings := fakeRing(t)
	for name, spoil := range map[string]func(p *Params){
		"head beyond":      func(p *Params) { p.SQ.Head = uint32(len(rings)) },
		"tail at the edge": func(p *Params) { p.CQ.Tail = uint32(len(rings)) - 2 },
		"odd offset":       func(p *Params) { p.SQ.Flags = 17 },
		"far offset":       func(p *Params) { p.CQ.Head = 1<<32 - 4 },
		"array beyond":     func(p *Params) { p.SQ.Array = uint32(len(rings)) - 8 },
		"cqes beyond":      func(p *Params) { p.CQ.CQEs += 16 },
		"cqes odd":         func(p *Params) { p.CQ.CQEs -= 4 },
		"no entries":       func(p *Params) { p.SQEntries = 0 },
		"9 entries":        func(p *Params) { p.SQEntries = 9 },
		"many entries":     func(p *Params) { p.CQEntries = 1 << 31 },
		"another mask":     func(p *Params) { p.SQEntries = 4 },
	} {
		p := *good
		spoil(&p)
		if _, err := OnMemory(&p, rings, make([]byte, 8*sqeBytes)); !errors.Is(err, ErrBroken) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := OnMemory(good, rings, make([]byte, 8*sqeBytes-1)); !errors.Is(err, ErrBroken) {
		t.Errorf("a short map of entries: %v", err)
	}
}

// TestWrap: indexes run over 2^32.
func TestWrap(t *testing.T) {
	r, p, rings := fakeRing(t)
	const start = 1<<32 - 3
	for _, off := range []uint32{p.SQ.Head, p.SQ.Tail, p.CQ.Head, p.CQ.Tail} {
		put(rings, off, start)
	}
	r.tail, r.head = start, start
	cqTail := uint32(start)
	for i := range uint64(100) {
		if ok, err := r.Push(&SQE{UserData: i}); !ok || err != nil {
			t.Fatal(i, ok, err)
		}
		// The kernel's part: consume the entry and complete it.
		sq := r.sqes[*r.sqHead&7]
		*r.sqHead++
		r.cqes[cqTail&15] = CQE{UserData: sq.UserData}
		cqTail++
		put(rings, p.CQ.Tail, cqTail)
		var out [2]CQE
		if n, err := r.Reap(out[:]); n != 1 || err != nil || out[0].UserData != i {
			t.Fatal(i, n, err, out)
		}
	}
}

// FuzzRing: whatever the kernel's side of the rings holds, there is an error or a bounded number of entries; never an access
// outside, never more than a ring full.
func FuzzRing(f *testing.F) {
	f.Add(uint32(0), uint32(0), uint32(0), uint32(0), []byte{1})
	f.Add(uint32(1<<32-1), uint32(1), uint32(16), uint32(17), []byte{9, 9})
	f.Fuzz(func(t *testing.T, sqHead, sqTail, cqHead, cqTail uint32, cqes []byte) {
		r, p, rings := fakeRing(t)
		copy(rings[p.CQ.CQEs:], cqes)
		put(rings, p.SQ.Head, sqHead)
		put(rings, p.CQ.Tail, cqTail)
		r.tail, r.head = sqTail, cqHead
		pushed := 0
		for {
			ok, err := r.Push(&SQE{Op: OpNop})
			if err != nil && sqTail-sqHead <= 8 {
				t.Fatalf("%d pending: %v", sqTail-sqHead, err)
			}
			if !ok {
				break
			}
			if pushed++; pushed > 8 {
				t.Fatal("more pushed than the ring takes")
			}
		}
		reaped := 0
		for {
			var out [5]CQE
			n, err := r.Reap(out[:])
			if (err != nil) != (cqTail-cqHead > 16) {
				t.Fatalf("%d completions: %v", cqTail-cqHead, err)
			}
			if n == 0 {
				break
			}
			if reaped += n; reaped > 16 {
				t.Fatal("more reaped than the ring holds")
			}
		}
	})
}

// TestRandomRings is FuzzRing for every run.
func TestRandomRings(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		r, p, rings := fakeRing(t)
		put(rings, p.SQ.Head, rng.Uint32()>>rng.IntN(32))
		put(rings, p.CQ.Tail, rng.Uint32()>>rng.IntN(32))
		_, err := r.Push(&SQE{})
		if pending := -*r.sqHead; (pending > 8) != (err != nil) {
			t.Fatal(pending, err)
		}
		var out [16]CQE
		if _, err := r.Reap(out[:]); (*r.cqTail-r.head > 16) != (err != nil) {
			t.Fatal(err)
		}
	}
}

// BenchmarkSubmit submits one entry that does nothing.
func BenchmarkSubmit(b *testing.B) {
	r, err := New(8, 16, true, KernelSetup)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	var out [8]CQE
	for b.Loop() {
		if _, err := r.Push(&SQE{Op: OpNop, FD: -1}); err != nil {
			b.Fatal(err)
		}
		if err := r.Submit(1); err != nil {
			b.Fatal(err)
		}
		if n, err := r.Reap(out[:]); n != 1 || err != nil {
			b.Fatal(n, err)
		}
	}
}
