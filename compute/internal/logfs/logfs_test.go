package logfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/crakefs/crake/compute/internal/store"
	"github.com/crakefs/crake/compute/internal/store/storetest"
	"github.com/crakefs/crake/wire"
)

// world is a cluster with a Store over it.
type world struct {
	t testing.TB
	c *storetest.Cluster
	s *store.Store
}

func newWorld(t testing.TB, c *storetest.Cluster) *world {
	s := store.New(store.Config{Ask: c.Ask, Up: c.Up, Map: c.Map, Arena: c.Arena()})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return &world{t: t, c: c, s: s}
}

// open opens bucket 1 under an epoch.
func (w *world) open(epoch wire.Epoch) *FS {
	w.t.Helper()
	fs, err := w.tryOpen(epoch)
	if err != nil {
		w.t.Fatalf("epoch %d: %v", epoch, err)
	}
	return fs
}

// awaitRemovals waits, not for ever, until who opens the bucket next finds these names only: removals become durable in the background.
func (w *world) awaitRemovals(dir string, left ...string) {
	w.t.Helper()
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		names, err := newWorld(w.t, w.c.Snapshot(w.t)).open(2).List(dir)
		check(w.t, err)
		if slices.Sort(names); slices.Equal(names, left) || time.Since(start) > 10*time.Second {
			return
		}
	}
}

func (w *world) tryOpen(epoch wire.Epoch) (*FS, error) {
	b := w.s.Bucket(1, epoch)
	w.t.Cleanup(b.Close)
	fs, err := Open(context.Background(), b)
	if err == nil {
		w.t.Cleanup(fs.Close)
	}
	return fs, err
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// writeFile writes a file in pieces and syncs at the end.
func writeFile(t testing.TB, fs *FS, name string, b []byte) {
	t.Helper()
	f, err := fs.Create(name, vfs.WriteCategoryUnspecified)
	check(t, err)
	for rest := b; len(rest) > 0; {
		n := min(len(rest), 5000)
		_, err := f.Write(slices.Clone(rest[:n]))
		check(t, err)
		rest = rest[n:]
	}
	check(t, f.Sync())
	check(t, f.Close())
}

func readFile(t testing.TB, fs *FS, name string, opts ...vfs.OpenOption) []byte {
	t.Helper()
	f, err := fs.Open(name, opts...)
	check(t, err)
	b, err := io.ReadAll(f)
	check(t, err)
	info, err := f.Stat()
	check(t, err)
	if info.Size() != int64(len(b)) {
		t.Fatalf("%s: %d bytes, Stat says %d", name, len(b), info.Size())
	}
	check(t, f.Close())
	return b
}

func randBytes(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

func expectFile(t testing.TB, fs *FS, name string, want []byte, opts ...vfs.OpenOption) {
	t.Helper()
	if got := readFile(t, fs, name, opts...); !bytes.Equal(got, want) {
		t.Fatalf("%s: %d bytes, want %d, or other bytes", name, len(got), len(want))
	}
}

func expectList(t testing.TB, fs *FS, dir string, want ...string) {
	t.Helper()
	got, err := fs.List(dir)
	check(t, err)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Fatalf("list of %q: %q, want %q", dir, got, want)
	}
}

var sizes = []int{0, 1, 100, InlineBytes, InlineBytes + 1, 4000, 4001, 4096, 60000, 64 << 10, 70_001, 512 << 10, 512<<10 + 1, 1_700_000}

// TestFiles: files of many sizes, of both kinds, read by their writer and by the next two owners.
func TestFiles(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	w := newWorld(t, storetest.New(t, 6, 4, 2))
	fs := w.open(1)
	want := map[string][]byte{}
	for i, n := range sizes {
		for _, name := range []string{fmt.Sprintf("db/%06d.sst", i), fmt.Sprintf("db/%06d.log", i)} {
			want[name] = randBytes(rng, n)
			writeFile(t, fs, name, want[name])
		}
	}
	for epoch := wire.Epoch(2); epoch < 5; epoch++ {
		names, err := fs.List("db")
		check(t, err)
		if len(names) != len(want) {
			t.Fatalf("epoch %d: %d files, want %d", epoch, len(names), len(want))
		}
		for name, b := range want {
			expectFile(t, fs, name, b)
			expectFile(t, fs, name, b, vfs.SequentialReadsOption)
			f, err := fs.Open(name, vfs.RandomReadsOption)
			check(t, err)
			for range 20 {
				if len(b) == 0 {
					break
				}
				off := rng.IntN(len(b))
				p := make([]byte, 1+rng.IntN(len(b)-off))
				if rng.IntN(3) == 0 {
					check(t, f.Prefetch(int64(off), 20000))
				}
				n, err := f.ReadAt(p, int64(off))
				if err != nil || n != len(p) || !bytes.Equal(p, b[off:off+len(p)]) {
					t.Fatalf("%s at %d+%d: %d, %v", name, off, len(p), n, err)
				}
			}
			if n, err := f.ReadAt(make([]byte, 10), int64(len(b))); n != 0 || err != io.EOF {
				t.Fatalf("%s past its end: %d, %v", name, n, err)
			}
			check(t, f.Close())
		}
		fs = w.open(epoch)
	}
}

// TestSemantics: what Pebble's interface promises.
func TestSemantics(t *testing.T) {
	w := newWorld(t, storetest.New(t, 6, 4, 2))
	fs := w.open(1)
	check(t, fs.MkdirAll("db/sub", 0o755))
	expectList(t, fs, "", "db")
	expectList(t, fs, "db", "sub")
	if _, err := fs.List("none"); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("list of nothing: %v", err)
	}
	if _, err := fs.Open("db/x"); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("open of nothing: %v", err)
	}
	if err := fs.Remove("db/x"); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("remove of nothing: %v", err)
	}
	writeFile(t, fs, "db/a", []byte("one"))
	writeFile(t, fs, "/db/a", []byte("second")) // replaces
	expectFile(t, fs, "db/a", []byte("second"))
	writeFile(t, fs, "db/b", []byte("bbb"))
	check(t, fs.Rename("db/a", "db/b"))
	expectList(t, fs, "db", "b", "sub")
	expectFile(t, fs, "db/b", []byte("second"))
	if err := fs.Remove("db"); err == nil {
		t.Fatal("removed a directory with files")
	}
	// A removed file stays readable while it is open.
	f, err := fs.Open("db/b")
	check(t, err)
	check(t, fs.Remove("db/b"))
	p := make([]byte, 6)
	if _, err := f.ReadAt(p, 0); err != nil || string(p) != "second" {
		t.Fatalf("removed file: %q, %v", p, err)
	}
	check(t, f.Close())
	// Locks.
	l, err := fs.Lock("db/LOCK")
	check(t, err)
	if _, err := fs.Lock("db/LOCK"); err == nil {
		t.Fatal("locked twice")
	}
	check(t, l.Close())
	l, err = fs.Lock("db/LOCK")
	check(t, err)
	check(t, l.Close())
	// A marker: created and closed, never synced.
	m, err := fs.Create("db/marker.format.000001.013", vfs.WriteCategoryUnspecified)
	check(t, err)
	check(t, m.Close())
	// Reuse, and a log that is read while it is written.
	lg, err := fs.Create("db/1.log", "pebble-wal")
	check(t, err)
	_, err = lg.Write([]byte("durable"))
	check(t, err)
	check(t, lg.Sync())
	_, err = lg.Write([]byte("+pending"))
	check(t, err)
	expectFile(t, fs, "db/1.log", []byte("durable+pending"))
	lg2, err := fs.ReuseForWrite("db/1.log", "db/2.log", "pebble-wal")
	check(t, err)
	check(t, lg2.Close())
	check(t, lg.Close())
	// Random writes.
	rw, err := fs.OpenReadWrite("db/rw", vfs.WriteCategoryUnspecified)
	check(t, err)
	_, err = rw.WriteAt([]byte("world"), 6)
	check(t, err)
	_, err = rw.WriteAt([]byte("hello "), 0)
	check(t, err)
	check(t, rw.Sync())
	_, err = rw.WriteAt(bytes.Repeat([]byte("!"), 100_000), 11)
	check(t, err)
	check(t, rw.Sync())
	_, err = rw.WriteAt([]byte("J"), 0)
	check(t, err)
	check(t, rw.Close())
	rw, err = fs.OpenReadWrite("db/rw", vfs.WriteCategoryUnspecified)
	check(t, err)
	_, err = rw.WriteAt([]byte("W"), 6)
	check(t, err)
	check(t, rw.Close())
	if err := fs.Link("db/rw", "db/rw2"); !errors.Is(err, vfs.ErrUnsupported) {
		t.Fatalf("link: %v", err)
	}
	du, err := fs.GetDiskUsage("db")
	if err != nil || du.TotalBytes == 0 || du.AvailBytes > du.TotalBytes {
		t.Fatalf("disk usage %+v, %v", du, err)
	}
	left := []string{"2.log", "marker.format.000001.013", "rw"}
	w.awaitRemovals("db", left...)
	fs = w.open(2)
	expectList(t, fs, "db", left...)
	expectFile(t, fs, "db/rw", append([]byte("Jello World"), bytes.Repeat([]byte("!"), 100_000)...))
	check(t, fs.RemoveAll("db"))
	expectList(t, fs, "")
}

// TestGrow: a table that is synced several times, beyond what its description could hold.
func TestGrow(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	w := newWorld(t, storetest.New(t, 6, 4, 2))
	fs := w.open(1)
	f, err := fs.Create("x", vfs.WriteCategoryUnspecified)
	check(t, err)
	var want []byte
	for i, n := range []int{10, 2000, 3000, 0, 200_000, 5, 700_000} {
		b := randBytes(rng, n)
		want = append(want, b...)
		_, err := f.Write(b)
		check(t, err)
		check(t, f.Sync())
		expectFile(t, fs, "x", want)
		fs2 := newWorld(t, w.c.Snapshot(t)).open(wire.Epoch(10 + i))
		expectFile(t, fs2, "x", want)
	}
	check(t, f.Close())
}

// TestLost: after the bucket has a newer owner, or the FS was closed, no Sync reports what is not true, unless the user
// has promised to ask for Err.
func TestLost(t *testing.T) {
	for _, pretend := range []bool{false, true} {
		for _, how := range []string{"deposed", "closed"} {
			c := storetest.New(t, 6, 4, 2)
			w := newWorld(t, c)
			fs := w.open(1)
			if pretend {
				fs.PretendAfterLoss()
			}
			wal, err := fs.Create("1.log", "pebble-wal")
			check(t, err)
			sst, err := fs.Create("1.sst", vfs.WriteCategoryUnspecified)
			check(t, err)
			_, err = wal.Write([]byte("never durable"))
			check(t, err)
			_, err = sst.Write(make([]byte, 10_000))
			check(t, err)
			if how == "closed" {
				fs.Close()
			} else {
				w.open(2)
			}
			for i, f := range []vfs.File{wal, sst, wal, sst} {
				err := f.Sync()
				if (err == nil) != pretend {
					t.Errorf("%s, pretend %v: Sync %d: %v", how, pretend, i, err)
				}
				if fs.Err() == nil {
					t.Errorf("%s, pretend %v: no Err after Sync %d", how, pretend, i)
				}
			}
			if _, err := fs.Create("2.log", "pebble-wal"); (err == nil) != pretend {
				t.Errorf("%s, pretend %v: Create: %v", how, pretend, err)
			}
			if err := wal.Close(); (err == nil) != pretend {
				t.Errorf("%s, pretend %v: Close: %v", how, pretend, err)
			}
			_ = sst.Close()
			fs.Close()
			expectList(t, w.open(3), "", "1.log")
		}
	}
}
