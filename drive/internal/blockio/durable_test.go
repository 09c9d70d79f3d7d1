package blockio

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/crakefs/crake/wire"
)

// TestWriteDurable: on files, by both engines, it writes what WriteAt does and refuses what that refuses.
func TestWriteDurable(t *testing.T) {
	for _, choice := range []Choice{ChooseIOUring, ChoosePread} {
		path := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		e, err := NewEngine(EngineConfig{Choice: choice})
		if err != nil {
			t.Fatal(err)
		}
		dev, err := e.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		d := dev.(Durable)
		buf := AlignedBytes(64 << 10)
		for i := range buf {
			buf[i] = byte(i * 7 / 4096)
		}
		if err := d.WriteDurable(buf, 8192); err != nil {
			t.Fatal(err)
		}
		unaligned := bytes.Clone(append([]byte{0}, buf[:4096]...))[1:]
		if err := d.WriteDurable(unaligned, 0); err != nil {
			t.Fatal(err)
		}
		got := AlignedBytes(64 << 10)
		if err := d.ReadAt(got, 8192); err != nil || !bytes.Equal(got, buf) {
			t.Errorf("%s: %v, or other bytes", choice, err)
		}
		if err := d.ReadAt(got[:4096], 0); err != nil || !bytes.Equal(got[:4096], buf[:4096]) {
			t.Errorf("%s: %v, or other bytes", choice, err)
		}
		for _, off := range []int64{-4096, 1 << 20, 1<<20 - 4096, 5} {
			if err := d.WriteDurable(buf, off); wire.KindOf(err) != wire.KindInvalid {
				t.Errorf("%s: a write at %d: %v", choice, off, err)
			}
		}
		if err := os.Truncate(path, 4096); err != nil {
			t.Fatal(err)
		}
		if err := dev.Close(); err != nil {
			t.Error(err)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestCrashDeviceWriteDurable: it survives every power cut, also over older writes that nobody flushed; what is beside it may be lost.
func TestCrashDeviceWriteDurable(t *testing.T) {
	lost := 0
	for seed := range uint64(200) {
		d := NewCrashDevice(make([]byte, 64<<10), true)
		fill := func(c byte, blocks int) []byte { return bytes.Repeat([]byte{c}, blocks*Align) }
		for _, err := range []error{d.WriteAt(fill(1, 4), 0), d.WriteDurable(fill(2, 2), Align), d.WriteAt(fill(3, 1), 5*Align)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		d.Kill()
		img := d.Crash(rand.New(rand.NewPCG(seed, 1)))
		if !bytes.Equal(img[Align:3*Align], fill(2, 2)) {
			t.Fatal("a durable write was lost")
		}
		if img[0] == 0 || img[5*Align] == 0 {
			lost++
		}
	}
	if lost == 0 {
		t.Error("it makes others durable too")
	}
	d := NewCrashDevice(make([]byte, 64<<10), true)
	d.CrashAfter(1)
	if d.WriteDurable(make([]byte, Align), 0) == nil {
		t.Error("a write that a crash cut was acknowledged")
	}
}
