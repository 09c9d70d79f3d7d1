package blockio

import (
	"os"
	"testing"

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
