package blockio

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/drive/internal/uring"
	"github.com/crakefs/crake/wire"
)

// newEngine makes an engine of the kind, with an arena.
func newEngine(t testing.TB, cfg EngineConfig) (*Engine, *wire.Arena) {
	t.Helper()
	arena, err := wire.NewArena(64 << 20)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Arena = arena
	e, err := NewEngine(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		if err := arena.Close(); err != nil {
			t.Error(err)
		}
	})
	return e, arena
}

// open opens a device of the engine, until the test ends.
func open(t testing.TB, e *Engine, path string) Device {
	t.Helper()
	d, err := e.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// TestConformance: every engine on every kind of device does what Device promises.
func TestConformance(t *testing.T) {
	for _, choice := range []Choice{ChoosePread, ChooseIOUring} {
		t.Run(string(choice), func(t *testing.T) {
			e, _ := newEngine(t, EngineConfig{Choice: choice})
			t.Run("file", func(t *testing.T) {
				conformance(t, open(t, e, makeFile(t, t.TempDir(), 1<<20+100)))
			})
			t.Run("tmpfs", func(t *testing.T) {
				dir, err := os.MkdirTemp("/dev/shm", "crake-blockio-")
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = os.RemoveAll(dir) })
				conformance(t, open(t, e, makeFile(t, dir, 1<<20)))
			})
			t.Run("loop device", func(t *testing.T) {
				conformance(t, open(t, e, loopDevice(t, makeFile(t, t.TempDir(), 4<<20))))
			})
		})
	}
}

// TestChoice: what is asked for is had, or refused with the reason; auto takes what gains, and says why.
func TestChoice(t *testing.T) {
	refuse := func(errno unix.Errno) uring.Setup {
		return func(uint32, *uring.Params) (int, error) { return -1, errno }
	}
	shm, err := os.MkdirTemp("/dev/shm", "crake-blockio-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(shm) })
	disk, memory := makeFile(t, t.TempDir(), 1<<20), makeFile(t, shm, 1<<20)
	for _, c := range []struct {
		name, path string
		cfg        EngineConfig
		engine     string
		reason     string // part of it; "": none
	}{
		{"auto", disk, EngineConfig{}, engineRing, ""},
		{"auto, by name", disk, EngineConfig{Choice: ChooseAuto}, engineRing, ""},
		{"auto in memory", memory, EngineConfig{}, enginePread, "in memory"},
		{"io_uring in memory", memory, EngineConfig{Choice: ChooseIOUring}, engineRing, ""},
		{"pread", disk, EngineConfig{Choice: ChoosePread}, enginePread, ""},
		{"no io_uring", disk, EngineConfig{setup: refuse(unix.ENOSYS)}, enginePread, "too old"},
		{"forbidden", disk, EngineConfig{setup: refuse(unix.EPERM)}, enginePread, "forbids"},
		{"forbidden, in memory", memory, EngineConfig{setup: refuse(unix.EPERM)}, enginePread, "forbids"},
		{"something else", disk, EngineConfig{setup: refuse(unix.EMFILE)}, enginePread, "too many open files"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e, _ := newEngine(t, c.cfg)
			d := open(t, e, c.path)
			i := d.Info()
			if i.Engine != c.engine || (i.EngineReason == "") != (c.reason == "") || !strings.Contains(i.EngineReason, c.reason) {
				t.Errorf("engine %q because %q", i.Engine, i.EngineReason)
			}
			if _, async := d.(Async); async != (c.engine == engineRing) {
				t.Errorf("async is %v", async)
			}
			if i.Fast != (c.path == memory && c.engine == enginePread) {
				t.Errorf("fast is %v", i.Fast)
			}
		})
	}
	if _, err := NewEngine(EngineConfig{Choice: ChooseIOUring, setup: refuse(unix.EPERM)}); !errors.Is(err, wire.KindNotSupported) {
		t.Errorf("io_uring where it is forbidden: %v", err)
	}
	if _, err := NewEngine(EngineConfig{Choice: "uring"}); !errors.Is(err, wire.KindInvalid) {
		t.Errorf("no such choice: %v", err)
	}
}

// TestForbiddenBySystem: the same where the system itself says no. It changes a setting of the machine for an instant, so it asks for it.
func TestForbiddenBySystem(t *testing.T) {
	const knob = "/proc/sys/kernel/io_uring_disabled"
	if os.Getenv("CRAKE_TEST_SYSCTL") == "" {
		t.Skip("changes " + knob + "; CRAKE_TEST_SYSCTL=1 allows it")
	}
	before, err := os.ReadFile(knob)
	if err != nil {
		t.Fatal(err)
	}
	back := sync.OnceFunc(func() {
		if err := os.WriteFile(knob, before, 0); err != nil {
			t.Error(err)
		}
	})
	defer back() // whatever happens
	if err := os.WriteFile(knob, []byte("2"), 0); err != nil {
		t.Fatal(err)
	}
	_, err = NewEngine(EngineConfig{Choice: ChooseIOUring})
	back()
	if !errors.Is(err, wire.KindNotSupported) || !strings.Contains(err.Error(), "forbids") {
		t.Errorf("%v", err)
	}
}

// TestCutOff: a file that is shorter than when it was opened gives errors, never bytes that nobody wrote.
func TestCutOff(t *testing.T) {
	for _, choice := range []Choice{ChoosePread, ChooseIOUring} {
		for _, left := range []int64{0, 64 << 10, 64<<10 + 1000} {
			t.Run(fmt.Sprintf("%s/%d", choice, left), func(t *testing.T) {
				e, _ := newEngine(t, EngineConfig{Choice: choice})
				path := makeFile(t, t.TempDir(), 1<<20)
				d := open(t, e, path)
				if err := errors.Join(d.WriteAt(AlignedBytes(1<<20), 0), os.Truncate(path, left)); err != nil {
					t.Fatal(err)
				}
				for _, off := range []int64{left &^ (Align - 1), 128 << 10, 32 << 10} {
					err := d.ReadAt(AlignedBytes(64<<10), off)
					if !errors.Is(err, wire.KindIO) || !errors.Is(err, io.ErrUnexpectedEOF) {
						t.Errorf("read at %d: %v", off, err)
					}
				}
				if left > 0 {
					if err := d.ReadAt(AlignedBytes(64<<10), 0); err != nil {
						t.Errorf("what is there: %v", err)
					}
				}
			})
		}
	}
}

// TestFull: a filesystem that gets full in the middle of a write gives KindNoSpace, and what was written before stays.
func TestFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("crake-test", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("cannot mount a small filesystem: %v", err)
	}
	t.Cleanup(func() {
		// The kernel may hold the file a moment longer than we do.
		err := unix.Unmount(dir, 0)
		for end := time.Now().Add(busyWait); err == unix.EBUSY && time.Now().Before(end); err = unix.Unmount(dir, 0) {
			time.Sleep(busyRetry)
		}
		if err != nil {
			t.Error(err)
		}
	})
	for _, choice := range []Choice{ChoosePread, ChooseIOUring} {
		t.Run(string(choice), func(t *testing.T) {
			e, _ := newEngine(t, EngineConfig{Choice: choice})
			path := makeFile(t, dir, 4<<20)
			d := open(t, e, path)
			one := AlignedBytes(512 << 10)
			fillPattern(one, 1)
			if err := d.WriteAt(one, 0); err != nil {
				t.Fatal(err)
			}
			big := AlignedBytes(1 << 20)
			for name, err := range map[string]error{
				"write":    d.WriteAt(big, 512<<10),
				"writevec": d.WriteVecAt([][]byte{big[:512<<10], big[512<<10:]}, 2<<20),
			} {
				if !errors.Is(err, wire.KindNoSpace) {
					t.Errorf("%s: %v", name, err)
				}
			}
			got := AlignedBytes(512 << 10)
			if err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, one) {
				t.Errorf("what was written before: %v", err)
			}
			if err := d.Discard(0, 4<<20); err != nil { // give the space to the next one
				t.Error(err)
			}
		})
	}
}

// fillPattern fills b with what no other seed gives.
func fillPattern(b []byte, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 7))
	for i := 0; i+8 <= len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], rng.Uint64())
	}
}

// TestManyDevices: a process has as many devices as there are places, and a place is free again after a Close.
func TestManyDevices(t *testing.T) {
	e, _ := newEngine(t, EngineConfig{Choice: ChooseIOUring})
	dir := t.TempDir()
	paths := make([]string, maxDevices+1)
	for i := range paths {
		paths[i] = makeFile(t, mkdir(t, dir, fmt.Sprint(i)), 16<<10)
	}
	var devices []Device
	for i := range maxDevices {
		d, err := e.Open(paths[i])
		if err != nil {
			t.Fatal(i, err)
		}
		devices = append(devices, d)
	}
	if _, err := e.Open(paths[maxDevices]); !errors.Is(err, wire.KindOverLimit) {
		t.Errorf("one too many: %v", err)
	}
	if err := devices[7].Close(); err != nil {
		t.Fatal(err)
	}
	last := open(t, e, paths[maxDevices])
	devices[7] = last
	b := AlignedBytes(Align)
	for i, d := range devices {
		fillPattern(b, uint64(i))
		if err := d.WriteAt(b, 0); err != nil {
			t.Fatal(err)
		}
	}
	got := AlignedBytes(Align)
	for i, d := range devices {
		fillPattern(b, uint64(i))
		if err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, b) {
			t.Errorf("device %d has what another one was given (%v)", i, err)
		}
		if d != last {
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	if err := e.Close(); !errors.Is(err, wire.KindInvalid) {
		t.Errorf("an engine with an open device closed: %v", err)
	}
}

func mkdir(t testing.TB, parts ...string) string {
	t.Helper()
	dir := filepath.Join(parts...)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestCloseOfEngine: an engine ends, however late the last wake-ups of its IO are.
func TestCloseOfEngine(t *testing.T) {
	path := makeFile(t, t.TempDir(), 1<<20)
	n := 400
	if testing.Short() {
		n = 50
	}
	for i := range n {
		e, err := NewEngine(EngineConfig{Choice: ChooseIOUring})
		if err != nil {
			t.Fatal(err)
		}
		d, err := e.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		for range i % 5 {
			if err := d.ReadAt(AlignedBytes(Align), 0); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(d.Close(), e.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// Claim: a file whose IO may happen inside of the call that submits it is known as such, so that a hung device does not hold up the process:
// all but those of filesystems that are known. (On a real FUSE filesystem that hangs: bench/e2e TestS9SlowAndHungDevices.)
func TestWorksInCall(t *testing.T) {
	for _, x := range []struct {
		path string
		want bool
	}{{"/dev/shm", false}, {"/proc/self/status", true}} {
		f, err := os.Open(x.path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := worksInCall(int(f.Fd()), false)
		if err != nil || got != x.want {
			t.Errorf("%s: %v, %v", x.path, got, err)
		}
		_ = f.Close()
	}
	if got, err := worksInCall(-1, true); err != nil || got {
		t.Errorf("a block device: %v, %v", got, err)
	}
}
