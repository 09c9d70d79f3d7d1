package blockio

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/wire"
)

func makeFile(t testing.TB, dir string, size int64) string {
	t.Helper()
	path := filepath.Join(dir, "device")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return path
}

// conformance is what every Device must do.
func conformance(t *testing.T, d Device) {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	model := make([]byte, d.Size())
	fill := func(b []byte) []byte {
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	for i := range 200 {
		n := (1 + rng.IntN(8)) * Align
		off := rng.Int64N((d.Size()-int64(n))/Align) * Align
		b := AlignedBytes(n)
		if i%5 == 0 {
			b = make([]byte, n+1)[1:] // memory that is not aligned
		}
		switch rng.IntN(5) {
		case 0:
			if err := d.WriteAt(fill(b), off); err != nil {
				t.Fatal(err)
			}
			copy(model[off:], b)
		case 1:
			parts := [][]byte{fill(b), fill(AlignedBytes(Align))}
			if off+int64(n)+Align > d.Size() {
				continue
			}
			if err := d.WriteVecAt(parts, off); err != nil {
				t.Fatal(err)
			}
			copy(model[off:], bytes.Join(parts, nil))
		case 2:
			if err := d.ReadAt(b, off); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(b, model[off:off+int64(n)]) {
				t.Fatalf("read of %d bytes at %d differs", n, off)
			}
		case 3:
			if err := d.Flush(); err != nil {
				t.Fatal(err)
			}
		case 4: // the neighbours must stay, and the range must be good again once written
			if err := errors.Join(d.Discard(off, int64(n)), d.WriteAt(fill(b), off)); err != nil {
				t.Fatal(err)
			}
			copy(model[off:], b)
		}
	}
	whole := AlignedBytes(len(model))
	if err := d.ReadAt(whole, 0); err != nil || !bytes.Equal(whole, model) {
		t.Fatalf("the device differs from the model (%v)", err)
	}
	for name, err := range map[string]error{
		"read past the end":  d.ReadAt(AlignedBytes(2*Align), d.Size()-Align),
		"write past the end": d.WriteAt(AlignedBytes(2*Align), d.Size()-Align),
		"negative offset":    d.ReadAt(AlignedBytes(Align), -Align),
		"odd offset":         d.WriteAt(AlignedBytes(Align), 512),
		"odd length":         d.WriteAt(AlignedBytes(Align)[:512], 0),
		"discard past it":    d.Discard(d.Size()-Align, 2*Align),
		"discard negative":   d.Discard(0, -Align),
		"discard odd":        d.Discard(512, Align),
		"discard overflow":   d.Discard(Align, 1<<63-Align),
	} {
		if !errors.Is(err, wire.KindInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if i := d.Info(); i.Path == "" || i.Engine == "" || i.Flush == "" || i.NeedsFlush == strings.HasPrefix(i.Flush, "none") || (i.Discard == "") == (i.DiscardReason == "") {
		t.Errorf("info %+v", i)
	}
}

func TestCrashDeviceConforms(t *testing.T) {
	conformance(t, NewCrashDevice(make([]byte, 1<<20), true))
	conformance(t, NewFaultDevice(NewCrashDevice(make([]byte, 1<<20), false)))
}

// TestFile: a file on tmpfs needs no flush, one on a disk is flushed; both are opened with O_DIRECT, or say why not.
func TestFile(t *testing.T) {
	for _, parent := range []string{"/dev/shm", ""} {
		dir, err := os.MkdirTemp(parent, "crake-blockio-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		d, err := OpenFile(makeFile(t, dir, 1<<20+100))
		if err != nil {
			t.Fatal(err)
		}
		conformance(t, d)
		i := d.Info()
		if d.Size() != 1<<20 || i.Direct == (i.DirectReason != "") || i.Block || parent != "" && i.NeedsFlush {
			t.Errorf("size %d, %+v", d.Size(), i)
		}
		t.Logf("%+v", i)
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestExclusive: a device belongs to one opener, until it closes or dies.
func TestExclusive(t *testing.T) {
	path := makeFile(t, t.TempDir(), 1<<20)
	d, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenFile(path); !errors.Is(err, wire.KindRefused) {
		t.Errorf("a second opening: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if d, err = OpenFile(path); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenFile(path + "x"); !errors.Is(err, wire.KindNotFound) {
		t.Errorf("missing: %v", err)
	}
	if _, err := OpenFile("/dev/null"); !errors.Is(err, wire.KindRefused) {
		t.Errorf("a character device: %v", err)
	}
}

// loopDevice makes a block device of a file.
func loopDevice(t *testing.T, file string) string {
	t.Helper()
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no loop devices here: %v", err)
	}
	defer func() { _ = ctl.Close() }()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for range 10 { // another process may take the same number
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			t.Skipf("no loop devices here: %v", err)
		}
		path := "/dev/loop" + strconv.Itoa(n)
		l, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Skipf("no loop devices here: %v", err)
		}
		err = unix.IoctlSetInt(int(l.Fd()), unix.LOOP_SET_FD, int(f.Fd()))
		if err == nil {
			t.Cleanup(func() {
				_ = unix.IoctlSetInt(int(l.Fd()), unix.LOOP_CLR_FD, 0)
				_ = l.Close()
			})
			// Who had the number before may have left it read-only.
			if err := unix.IoctlSetPointerInt(int(l.Fd()), unix.BLKROSET, 0); err != nil {
				t.Fatal(err)
			}
			return path
		}
		_ = l.Close()
	}
	t.Skip("no free loop device")
	return ""
}

// TestBlockDevice: a real block device, opened exclusively.
func TestBlockDevice(t *testing.T) {
	path := loopDevice(t, makeFile(t, t.TempDir(), 4<<20))
	d, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenFile(path); !errors.Is(err, wire.KindRefused) {
		t.Errorf("a second opening: %v", err)
	}
	conformance(t, d)
	if i := d.Info(); !i.Block || !i.NeedsFlush || d.Size() != 4<<20 {
		t.Errorf("size %d, %+v", d.Size(), i)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

// TestDiscardGivesSpaceBack: a sparse file's space goes back; a preallocated one keeps what was promised to it.
func TestDiscardGivesSpaceBack(t *testing.T) {
	const size = 4 << 20
	used := func(path string) int64 {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks * 512
	}
	for _, c := range []struct {
		name     string
		reserved bool
	}{{"sparse", false}, {"preallocated", true}} {
		t.Run(c.name, func(t *testing.T) {
			path := makeFile(t, t.TempDir(), size)
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			if c.reserved {
				err = unix.Fallocate(int(f.Fd()), 0, 0, size)
			}
			if err := errors.Join(err, f.Close()); err != nil {
				t.Fatal(err)
			}
			d, err := OpenFile(path)
			if err != nil {
				t.Fatal(err)
			}
			err = errors.Join(d.WriteAt(AlignedBytes(size), 0), d.Flush(), d.Discard(0, size), d.Flush(), d.Close())
			if err != nil {
				t.Fatal(err)
			}
			if got := used(path); (got < size) == c.reserved {
				t.Errorf("%d bytes allocated after a discard (%+v)", got, d.Info())
			}
		})
	}
}

// TestCrashLoses: what was flushed is there after any crash; what was not may be there, lost or torn, and each occurs.
func TestCrashLoses(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	d := NewCrashDevice(make([]byte, 1<<20), true)
	one, two := AlignedBytes(Align), AlignedBytes(Align)
	for i := range one {
		one[i], two[i] = 1, 2
	}
	if err := errors.Join(d.WriteAt(one, 0), d.Flush(), d.WriteAt(two, Align)); err != nil {
		t.Fatal(err)
	}
	var whole, lost, torn int
	for range 300 {
		img := d.Crash(rng)
		if !bytes.Equal(img[:Align], one) {
			t.Fatal("a flushed write is gone")
		}
		switch n := bytes.Count(img[Align:2*Align], []byte{2}); n {
		case Align:
			whole++
		case 0:
			lost++
		default:
			if torn++; n%sectorBytes != 0 {
				t.Fatalf("torn inside a sector: %d bytes", n)
			}
		}
	}
	if whole == 0 || lost == 0 || torn == 0 {
		t.Errorf("whole %d, lost %d, torn %d", whole, lost, torn)
	}
	d.CrashAfter(1)
	if err := d.WriteAt(one, 0); err == nil || !d.Crashed() || d.ReadAt(one, 0) == nil {
		t.Error("a crashed device works on")
	}
}

// TestCrashDiscards: what was discarded reads as noise; after a crash the old bytes may be back, and nothing else is touched.
func TestCrashDiscards(t *testing.T) {
	rng := rand.New(rand.NewPCG(8, 9))
	one := bytes.Repeat([]byte{1}, Align)
	for _, volatile := range []bool{true, false} {
		d := NewCrashDevice(bytes.Repeat([]byte{1}, 8*Align), volatile)
		if err := d.Discard(2*Align, 2*Align); err != nil {
			t.Fatal(err)
		}
		b := AlignedBytes(Align)
		for i := range int64(8) {
			if err := d.ReadAt(b, i*Align); err != nil || bytes.Equal(b, one) == (i == 2 || i == 3) {
				t.Errorf("block %d: %v", i, err)
			}
		}
		old := 0
		for range 100 {
			img := d.Crash(rng)
			if !bytes.Equal(img[:2*Align], bytes.Repeat(one, 2)) || !bytes.Equal(img[4*Align:], bytes.Repeat(one, 4)) {
				t.Fatal("a discard touches its neighbours")
			}
			if bytes.Equal(img[2*Align:3*Align], one) {
				old++
			}
		}
		if volatile == (old == 0 || old == 100) {
			t.Errorf("volatile %v: the old bytes were back %d times of 100", volatile, old)
		}
	}
}

// TestDiscardOfBlockDevice: a discard reaches the device: what was there is gone, and so is the space below a loop device.
func TestDiscardOfBlockDevice(t *testing.T) {
	const size = 8 << 20
	for _, choice := range []Choice{ChoosePread, ChooseIOUring} {
		t.Run(string(choice), func(t *testing.T) {
			e, _ := newEngine(t, EngineConfig{Choice: choice})
			path := makeFile(t, t.TempDir(), size)
			d := open(t, e, loopDevice(t, path))
			if i := d.Info(); i.Discard != discardBlock {
				t.Fatalf("%+v", i)
			}
			b := AlignedBytes(1 << 20)
			fillPattern(b, 1)
			for off := int64(0); off < size; off += int64(len(b)) {
				if err := d.WriteAt(b, off); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(d.Flush(), d.Discard(1<<20, 6<<20), d.Flush()); err != nil {
				t.Fatal(err)
			}
			got := AlignedBytes(1 << 20)
			for off := int64(0); off < size; off += int64(len(b)) {
				err := d.ReadAt(got, off)
				if discarded := off >= 1<<20 && off < 7<<20; err != nil || bytes.Equal(got, b) == discarded {
					t.Errorf("at %d: %v", off, err)
				}
			}
			var st unix.Stat_t
			if err := unix.Stat(path, &st); err != nil || st.Blocks*512 > 3<<20 {
				t.Errorf("%d bytes are left below (%v)", st.Blocks*512, err)
			}
		})
	}
	t.Run("preallocated below", func(t *testing.T) {
		path := makeFile(t, t.TempDir(), size)
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, size), f.Close()); err != nil {
			t.Fatal(err)
		}
		e, _ := newEngine(t, EngineConfig{})
		d := open(t, e, loopDevice(t, path))
		if i := d.Info(); i.Discard != "" || !strings.Contains(i.DiscardReason, "preallocated") {
			t.Errorf("%+v", i)
		}
	})
}

// TestFlushReachesDevice: Flush makes the device flush its cache, each time.
func TestFlushReachesDevice(t *testing.T) {
	for _, choice := range []Choice{ChoosePread, ChooseIOUring} {
		t.Run(string(choice), func(t *testing.T) {
			e, _ := newEngine(t, EngineConfig{Choice: choice})
			path := loopDevice(t, makeFile(t, t.TempDir(), 4<<20))
			d := open(t, e, path)
			flushes := func() int { // field 16 of the device's statistics
				b, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(path), "stat"))
				if err != nil {
					t.Fatal(err)
				}
				n, err := strconv.Atoi(strings.Fields(string(b))[15])
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
			before := flushes()
			for i := range int64(10) {
				if err := errors.Join(d.WriteAt(AlignedBytes(Align), i*Align), d.Flush()); err != nil {
					t.Fatal(err)
				}
			}
			if n := flushes() - before; n < 10 {
				t.Errorf("%d flushes of 10 reached the device", n)
			}
		})
	}
}
