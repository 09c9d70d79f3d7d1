package logfs

import (
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/crakefs/crake/compute/internal/store/storetest"
	"github.com/crakefs/crake/wire"
)

// Claim: a table, or a log, whose write has failed at drives that may still read it goes on in other memory. storetest checks it.
func TestLentMemory(t *testing.T) {
	c := storetest.New(t, 6, 4, 2)
	fs := newWorld(t, c).open(1)
	rng := rand.New(rand.NewPCG(1, 9))
	var failing atomic.Int32 // what is still to fail
	c.Hooks(func(_ wire.DriveID, m wire.Method, _ wire.Message) error {
		if m == wire.MDrivePut && failing.Load() > 0 {
			return wire.E("test", wire.KindNoSpace, "", nil)
		}
		if m == wire.MDriveAppend && failing.Add(-1) >= 0 {
			return wire.E("test", wire.KindTimeout, "", nil)
		}
		return nil
	}, nil)
	table := randBytes(rng, 100_123)
	f, err := fs.Create("000007.sst", vfs.WriteCategoryUnspecified)
	check(t, err)
	_, err = f.Write(table)
	check(t, err)
	failing.Store(1000)
	if wire.KindOf(f.Sync()) != wire.KindNoSpace {
		t.Error("a full cluster took a table")
	}
	failing.Store(0)
	more := randBytes(rng, 5000)
	_, err = f.Write(more) // begins in the last block, which was padded
	check(t, err)
	err = f.Sync()
	for wire.KindOf(err) == wire.KindNoSpace { // until the store has asked the drives for their space again
		time.Sleep(10 * time.Millisecond)
		err = f.Sync()
	}
	check(t, err)
	check(t, f.Close())
	expectFile(t, fs, "000007.sst", append(table, more...))

	log := randBytes(rng, 70_000)
	l, err := fs.Create("000008.log", vfs.WriteCategoryUnspecified)
	check(t, err)
	for n := range 5 {
		failing.Store(int32(n))
		_, err = l.Write(log[n*14000 : (n+1)*14000])
		check(t, err)
		check(t, l.Sync())
	}
	check(t, l.Close())
	expectFile(t, fs, "000008.log", log)
}
