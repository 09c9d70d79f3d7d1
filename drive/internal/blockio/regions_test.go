package blockio

import (
	"bytes"
	"errors"
	"os"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/wire"
)

// heat does IO on p until its region is registered, and says whether it is.
func heat(t *testing.T, d *ringDevice, p []byte) bool {
	t.Helper()
	off, ok := d.g.regions.at(p)
	if !ok {
		t.Fatal("not of the arena")
	}
	for range 10 * regionHeat {
		if err := d.ReadAt(p[:Align], 0); err != nil {
			t.Fatal(err)
		}
		if d.g.regions.state[off/regionBytes].Load() == regionRegistered {
			return true
		}
	}
	return false
}

// alloc gives memory of an arena with room.
func alloc(t *testing.T, arena *wire.Arena, n int) *wire.Buf {
	t.Helper()
	b, err := arena.Alloc(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestTrimUnregisters: memory that was registered, given back to the system and used again is read and written where it is now. Without
// the guard the IO goes to the pages that it had before.
func TestTrimUnregisters(t *testing.T) {
	ds, arena := ringDevices(t, EngineConfig{}, 1, 8<<20)
	d := ds[0]
	want := AlignedBytes(Align)
	fillPattern(want, 1)
	if err := d.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	pin := alloc(t, arena, Align) // stays in the region while its neighbours go and come
	defer pin.Release()
	for round := range 5 {
		b := alloc(t, arena, 64<<10)
		if !heat(t, d, b.Bytes()) {
			t.Fatal("the region is not registered after many IOs")
		}
		at := &b.Bytes()[0]
		fillPattern(b.Bytes(), uint64(100+round)) // so that its pages are not zeros
		b.Release()
		for n := 0; ; n++ {
			if arena.Trim() > 0 {
				break
			}
			if n > 3 {
				t.Fatal("Trim gives nothing back")
			}
		}
		b = alloc(t, arena, 64<<10)
		if &b.Bytes()[0] != at {
			t.Fatal("the arena gave other memory: the test tests nothing")
		}
		// A fault: the memory has new pages now. Then registered again, and once more: both ways of IO.
		for range 2 {
			clear(b.Bytes())
			if err := d.ReadAt(b.Bytes()[:Align], 0); err != nil || !bytes.Equal(b.Bytes()[:Align], want) {
				t.Fatalf("round %d: a read went elsewhere (%v)", round, err)
			}
			fillPattern(b.Bytes(), uint64(200+round))
			got := AlignedBytes(64 << 10)
			if err := errors.Join(d.WriteAt(b.Bytes(), 1<<20), d.ReadAt(got, 1<<20)); err != nil || !bytes.Equal(got, b.Bytes()) {
				t.Fatalf("round %d: a write came from elsewhere (%v)", round, err)
			}
			if !heat(t, d, b.Bytes()[Align:]) {
				t.Fatal("the region is not registered again")
			}
		}
		b.Release()
	}
}

// TestRegisteringWaitsForTrim: between the moment when Trim has been let go and the punch nobody registers the region again.
func TestRegisteringWaitsForTrim(t *testing.T) {
	ds, arena := ringDevices(t, EngineConfig{}, 1, 8<<20)
	r := ds[0].g.regions
	mem := arena.Memory()[:64<<10]
	if !r.register(0) {
		t.Fatal("not registered")
	}
	registered := make(chan bool)
	r.guard(mem, func() {
		if r.state[0].Load() == regionRegistered {
			t.Error("registered while its pages go")
		}
		go func() { registered <- r.register(0) }()
		select {
		case <-registered:
			t.Error("registered before the punch was done")
		case <-time.After(20 * time.Millisecond): // it could not be; a slow machine makes the test weaker, never red
		}
	})
	if !<-registered {
		t.Error("not registered afterwards")
	}
}

// TestTrimWhileReading: data of a region is right while other parts of it go and come.
func TestTrimWhileReading(t *testing.T) {
	ds, arena := ringDevices(t, EngineConfig{}, 2, 4<<20)
	var wg sync.WaitGroup
	for i, d := range ds {
		want := AlignedBytes(1 << 20)
		fillPattern(want, uint64(i))
		if err := d.WriteAt(want, 0); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			wg.Go(func() {
				for n := range 300 {
					b := alloc(t, arena, (1+n%16)*Align)
					off := int64(n%200) * Align
					if err := d.ReadAt(b.Bytes(), off); err != nil || !bytes.Equal(b.Bytes(), want[off:off+int64(len(b.Bytes()))]) {
						t.Errorf("read at %d differs (%v)", off, err)
					}
					b.Release()
					if n%4 == 0 {
						arena.Trim()
					}
				}
			})
		}
	}
	wg.Wait()
}

// TestFind: only what lies wholly in one registered region is done as a fixed IO.
func TestFind(t *testing.T) {
	ds, arena := ringDevices(t, EngineConfig{}, 1, 4<<20)
	r, mem := ds[0].g.regions, arena.Memory()
	if !r.register(1) || !r.register(len(r.state)-1) {
		t.Fatal("not registered")
	}
	last := uint16(len(r.state) - 1)
	for _, c := range []struct {
		name  string
		p     []byte
		index uint16
		ok    bool
	}{
		{"another region", mem[:Align], 0, false},
		{"in it", mem[regionBytes : regionBytes+Align], 1, true},
		{"all of it", mem[regionBytes : 2*regionBytes], 1, true},
		{"out of it", mem[2*regionBytes-Align : 2*regionBytes+Align], 0, false},
		{"into it", mem[regionBytes-Align : regionBytes+Align], 0, false},
		{"the last one", mem[len(mem)-Align:], last, true},
		{"not of the arena", AlignedBytes(Align), 0, false},
	} {
		if index, ok := r.find(c.p); index != c.index || ok != c.ok {
			t.Errorf("%s: %d, %v", c.name, index, ok)
		}
	}
}

// TestUnregisteredMeanwhile: a fixed IO whose region was let go between Start and Kick is done all the same.
func TestUnregisteredMeanwhile(t *testing.T) {
	ds, arena := ringDevices(t, EngineConfig{}, 1, 1<<20)
	d := ds[0]
	want := AlignedBytes(Align)
	fillPattern(want, 3)
	b := alloc(t, arena, Align)
	defer b.Release()
	if err := d.WriteAt(want, 0); err != nil || !heat(t, d, b.Bytes()) {
		t.Fatal(err)
	}
	clear(b.Bytes())
	got := make(chan error, 1)
	io := &IO{P: b.Bytes(), Done: func(_ *IO, err error) { got <- err }}
	d.Start(io)
	if !io.fixed {
		t.Fatal("not a fixed IO: the test tests nothing")
	}
	d.g.regions.unregister(0)
	d.Kick()
	if err := <-got; err != nil || !bytes.Equal(b.Bytes(), want) {
		t.Errorf("%v", err)
	}
}

// TestRegisteredMemoryGoesBack: what registering has populated is given back to the system by Trim as well.
func TestRegisteredMemoryGoesBack(t *testing.T) {
	ds, arena := ringDevices(t, EngineConfig{}, 1, 1<<20)
	resident := func() int {
		vec := make([]byte, arena.Size()/os.Getpagesize())
		if err := mincore(arena.Memory(), vec); err != nil {
			t.Fatal(err)
		}
		return bytes.Count(vec, []byte{1})
	}
	b := alloc(t, arena, Align)
	pin := alloc(t, arena, Align) // a neighbour, or the free run that is punched would be all of the region anyway
	clear(pin.Bytes())
	if !heat(t, ds[0], b.Bytes()) {
		t.Fatal("not registered")
	}
	if n := resident(); n*os.Getpagesize() != regionBytes {
		t.Errorf("%d pages after registering", n)
	}
	b.Release()
	arena.Trim()
	arena.Trim()
	if n := resident(); n != 1 {
		t.Errorf("%d pages are left, want that of the neighbour", n)
	}
	pin.Release()
}

func mincore(mem, vec []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&mem[0])), uintptr(len(mem)), uintptr(unsafe.Pointer(&vec[0])))
	if errno != 0 {
		return errno
	}
	return nil
}

// TestForeignMemory: memory that is not of the arena, as that which another process lends (a mapping that can only be read), is written
// from by plain IO, also when the arena is registered; in whole, in parts, durably, and from where it does not start on a block.
func TestForeignMemory(t *testing.T) {
	ds, arena := ringDevices(t, EngineConfig{}, 1, 8<<20)
	d := ds[0]
	const n = 16 * Align
	fd, err := unix.MemfdCreate("lender", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	content := make([]byte, n)
	fillPattern(content, 7)
	if _, err := unix.Write(fd, content); err != nil {
		t.Fatal(err)
	}
	lent, err := unix.Mmap(fd, 0, n, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(lent) }()
	own := alloc(t, arena, n)
	defer own.Release()
	for i := range d.g.regions.state {
		if !d.g.regions.register(i) {
			t.Fatal("the arena is not registered")
		}
	}
	if _, ok := d.g.regions.find(lent); ok {
		t.Fatal("foreign memory is taken for the arena's")
	}
	for i, w := range []IO{
		{P: lent}, {P: lent, Durable: true}, {Vec: [][]byte{lent[:Align], lent[Align:]}}, {Vec: [][]byte{lent[:Align], lent[Align : Align+100], lent[Align+100:]}},
	} {
		clear(own.Bytes())
		if err := d.WriteAt(own.Bytes(), n); err != nil { // by the registered way
			t.Fatal(err)
		}
		done := make(chan error, 1)
		w.Write, w.Off, w.Done = true, n, func(_ *IO, err error) { done <- err }
		d.Start(&w)
		if w.fixed {
			t.Errorf("write %d is one of registered memory", i)
		}
		d.Kick()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if err := d.ReadAt(own.Bytes(), n); err != nil || !bytes.Equal(own.Bytes(), content) {
			t.Errorf("write %d: %v, or other bytes", i, err)
		}
	}
	done := make(chan error, 1)
	d.Start(&IO{Write: true, P: lent[100 : 100+Align], Done: func(_ *IO, err error) { done <- err }})
	d.Kick()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := d.ReadAt(own.Bytes()[:Align], 0); err != nil || !bytes.Equal(own.Bytes()[:Align], content[100:100+Align]) {
		t.Errorf("a write from the middle of a block: %v, or other bytes", err)
	}
}
