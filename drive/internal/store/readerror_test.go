package store

import (
	"bytes"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/wire"
)

// openCounting opens a store on a device of which failing says, by number, which reads fail. It gives the number of reads.
func openCounting(t *testing.T, image []byte, arena *wire.Arena, failing func(n int, off int64) bool) (s *Store, reads int, err error) {
	t.Helper()
	dev := blockio.NewFaultDevice(blockio.NewCrashDevice(bytes.Clone(image), false))
	var n atomic.Int64
	dev.FailReads(func(off int64, _ int) error {
		if failing(int(n.Add(1)), off) {
			return errors.New("injected")
		}
		return nil
	})
	s, err = Open(dev, Config{Arena: arena, Log: quiet()})
	dev.FailReads(nil)
	return s, int(n.Load()), err
}

// TestOpenReadErrors: when any one of the reads of an opening fails, once or again and again, what opens has all that was
// acknowledged, but for strips and segments that cannot be read; or the opening fails by KindIO, to be tried again, and never says that the
// drive is damaged and should be formatted.
func TestOpenReadErrors(t *testing.T) {
	image, want := populated(t)
	arena := newArena(t)
	_, reads, err := openCounting(t, image, arena, func(int, int64) bool { return false })
	if err != nil || reads < 5 {
		t.Fatal(reads, err)
	}
	for k := 1; k <= reads; k++ {
		for _, once := range []bool{true, false} {
			var badOff atomic.Int64
			badOff.Store(-1)
			s, _, err := openCounting(t, image, arena, func(n int, off int64) bool {
				if n == k {
					badOff.Store(off)
				}
				return n == k || !once && off == badOff.Load()
			})
			bad := badOff.Load()
			if err != nil {
				if wire.KindOf(err) != wire.KindIO {
					t.Errorf("read %d of %d at %d fails, once %t: %v, want KindIO or none", k, reads, bad, once, err)
				}
				continue
			}
			missing := 0
			for id, data := range want {
				got, kind := readAll(t, s, id, uint64(len(data)))
				if kind != wire.KindNone {
					missing++
				} else if !bytes.Equal(got, data) {
					t.Errorf("read %d at %d fails: %s reads wrong bytes", k, bad, id)
				}
			}
			inData := bad >= s.sb.DataOff && bad < s.sb.DataOff+s.sb.DataBytes
			if most := map[bool]int{true: 1}[inData && !once]; missing > most {
				t.Errorf("read %d of %d at %d fails, once %t: %d strips are missing, at most %d may", k, reads, bad, once, missing, most)
			}
		}
	}
}

// TestOpenUnreadableMetadata: a superblock or a checkpoint that cannot be read is as good as a damaged one: the other serves.
func TestOpenUnreadableMetadata(t *testing.T) {
	image, want := populated(t)
	arena := newArena(t)
	sb := testSuperblock(int64(len(image)))
	for _, off := range []int64{0, sb.SuperblockOffsets()[1], sb.CheckpointOff[0], sb.CheckpointOff[1]} {
		s, _, err := openCounting(t, image, arena, func(_ int, at int64) bool { return at == off })
		if err != nil {
			if off == 0 || off == sb.SuperblockOffsets()[1] || wire.KindOf(err) != wire.KindIO {
				t.Errorf("unreadable at %d: %v", off, err)
			}
			continue
		}
		for id, data := range want {
			if got, kind := readAll(t, s, id, uint64(len(data))); kind != wire.KindNone || !bytes.Equal(got, data) {
				t.Errorf("unreadable at %d: %s reads %v", off, id, kind)
			}
		}
	}
}
