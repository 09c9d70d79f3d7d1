package logfs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/crakefs/crake/compute/internal/store/storetest"
	"github.com/crakefs/crake/wire"
)

// subsets calls f with every set of at most max of the drives 1 to n.
func subsets(n, max int, f func(s []wire.DriveID)) {
	for bits := range 1 << n {
		var s []wire.DriveID
		for i := range n {
			if bits>>i&1 == 1 {
				s = append(s, wire.DriveID(i+1))
			}
		}
		if len(s) <= max {
			f(s)
		}
	}
}

// TestOpenEveryLoss: any m drives may be missing while files are written, while they are opened, and others again when
// they are opened next; all of it is there, and complete when the next owner opens with yet others missing.
func TestOpenEveryLoss(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	sets := [][]wire.DriveID{}
	subsets(6, 2, func(s []wire.DriveID) { sets = append(sets, s) })
	for _, writing := range [][]wire.DriveID{nil, {2}, {3, 6}} {
		base := newWorld(t, storetest.New(t, 6, 4, 2))
		base.c.Kill(writing...)
		fs := base.open(1)
		want := map[string][]byte{}
		for i, n := range []int{0, 50, 70_000, 600_000} {
			for _, name := range []string{fmt.Sprintf("%d.sst", i), fmt.Sprintf("%d.log", i)} {
				want[name] = randBytes(rng, n)
				writeFile(t, fs, name, want[name])
			}
		}
		base.c.Revive(writing...)
		for _, first := range sets {
			w := newWorld(t, base.c.Snapshot(t))
			w.c.Kill(first...)
			fs := w.open(2)
			for name, b := range want {
				expectFile(t, fs, name, b)
			}
			w = newWorld(t, w.c.Snapshot(t))
			w.c.Revive(first...)
			w.c.Kill(sets[rng.IntN(len(sets))]...)
			fs = w.open(3)
			if names, _ := fs.List(""); len(names) != len(want) {
				t.Fatalf("%d files, want %d", len(names), len(want))
			}
			for name, b := range want {
				expectFile(t, fs, name, b)
			}
		}
		base.c.Kill(1, 2, 3)
		if _, err := base.tryOpen(9); !errors.Is(err, wire.KindUnavailable) {
			t.Fatalf("open with three of six drives gone: %v", err)
		}
	}
}

// TestTornTail: the replicas of a log end at different records, as after a crash in an append. Whatever any replica has
// may be there, what all have must; and it stays so for the next owner, though other drives answer then.
func TestTornTail(t *testing.T) {
	base := newWorld(t, storetest.New(t, 6, 4, 2))
	fs := base.open(1)
	f, err := fs.Create("1.log", "pebble-wal")
	check(t, err)
	var ends []int // length of the file after each record
	var bytesAt []uint64
	content := []byte{}
	for i := range 6 {
		b := bytes.Repeat([]byte{byte('a' + i)}, 1000*(i+1)) // inline, then in blocks
		content = append(content, b...)
		_, err := f.Write(b)
		check(t, err)
		check(t, f.Sync())
		ends = append(ends, len(content))
		n := fs.find("1.log")
		bytesAt = append(bytesAt, n.segs[0].bytes)
	}
	ref := fs.find("1.log").segs[0]
	rng := rand.New(rand.NewPCG(4, 4))
	for range 60 {
		w := newWorld(t, base.c.Snapshot(t))
		shortest := 5
		var lens []int
		for _, rep := range ref.replicas {
			i := rng.IntN(6)
			w.c.Cut(rep.drive, ref.id.WithPos(rep.pos), bytesAt[i])
			shortest = min(shortest, i)
			lens = append(lens, i)
		}
		lost := rng.Perm(3)[:rng.IntN(3)]
		longest := 0
		for i, rep := range ref.replicas {
			if slices.Contains(lost, i) {
				w.c.Kill(rep.drive)
			} else {
				longest = max(longest, lens[i])
			}
		}
		fs := w.open(2)
		got := readFile(t, fs, "1.log")
		if len(got) != ends[longest] || !bytes.Equal(got, content[:len(got)]) {
			t.Fatalf("replicas %v, lost %v: %d bytes, want %d", lens, lost, len(got), ends[longest])
		}
		if len(got) < ends[shortest] {
			t.Fatal("an acknowledged record is missing")
		}
		// The others come back, and two that helped are gone: the outcome must not change.
		w2 := newWorld(t, w.c.Snapshot(t))
		w2.c.Revive(1, 2, 3, 4, 5, 6)
		for _, i := range rng.Perm(6)[:2] {
			w2.c.Kill(wire.DriveID(i + 1))
		}
		if again := readFile(t, w2.open(3), "1.log"); !bytes.Equal(again, got) {
			t.Fatalf("replicas %v, lost %v: %d bytes became %d", lens, lost, len(got), len(again))
		}
	}
}

// TestCorruptLog: a record that is unreadable on one replica is read from another; on all, it is an error and no end.
func TestCorruptLog(t *testing.T) {
	base := newWorld(t, storetest.New(t, 6, 4, 2))
	fs := base.open(1)
	f, err := fs.Create("1.log", "pebble-wal")
	check(t, err)
	var want []byte
	for i := range 5 {
		b := bytes.Repeat([]byte{byte('a' + i)}, 5000)
		want = append(want, b...)
		_, err := f.Write(b)
		check(t, err)
		check(t, f.Sync())
	}
	ref := fs.find("1.log").segs[0]
	w := newWorld(t, base.c.Snapshot(t))
	for i, rep := range ref.replicas { // each replica in another record, one of them in the very first
		w.c.Corrupt(rep.drive, ref.id.WithPos(rep.pos), []int{0, 5, 9}[i])
	}
	expectFile(t, w.open(2), "1.log", want)
	w = newWorld(t, base.c.Snapshot(t))
	for _, rep := range ref.replicas {
		w.c.Corrupt(rep.drive, ref.id.WithPos(rep.pos), 8) // payload of the third record
	}
	h, err := w.open(2).Open("1.log")
	check(t, err)
	p := make([]byte, len(want))
	if n, err := h.ReadAt(p, 0); !errors.Is(err, wire.KindCorrupt) || n != 10_000 {
		t.Fatalf("%d bytes, %v; want 10000 and corrupt", n, err)
	}
}

// TestGhost: an owner dies before its new file is acknowledged, with one replica of the description on a drive that
// nobody sees for a while. When the drive is back the file must not appear: others have decided since without it.
func TestGhost(t *testing.T) {
	c := storetest.New(t, 6, 4, 2)
	w := newWorld(t, c)
	fs := w.open(1)
	writeFile(t, fs, "a", []byte("a"))
	var died atomic.Bool // the moment that drive 4 has its replica
	lost := wire.E("test", wire.KindUnavailable, "", nil)
	c.Hooks(func(d wire.DriveID, m wire.Method, req wire.Message) error {
		if died.Load() || m == wire.MDrivePut && d != 4 {
			return lost
		}
		return nil
	}, func(d wire.DriveID, m wire.Method, req wire.Message) error {
		if m == wire.MDrivePut && d == 4 {
			died.Store(true)
		}
		return nil
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		f, err := fs.Create("marker.x.000002.ghost", vfs.WriteCategoryUnspecified)
		if err == nil {
			_ = f.Close()
		}
	}()
	for !died.Load() {
		time.Sleep(time.Millisecond)
	}
	crash := c.Snapshot(t)
	fs.Close()
	<-done
	for _, seen := range []bool{false, true} {
		w := newWorld(t, crash.Snapshot(t))
		if !seen {
			w.c.Kill(4)
		}
		fs := w.open(2)
		want := []string{"a"}
		if seen {
			want = append(want, "marker.x.000002.ghost") // adopted: then it stays
		} else {
			writeFile(t, fs, "marker.x.000002.real", nil)
			want = append(want, "marker.x.000002.real")
		}
		expectList(t, fs, "", want...)
		w = newWorld(t, w.c.Snapshot(t))
		w.c.Revive(4)
		if seen {
			w.c.Kill(4, 1)
		}
		expectList(t, w.open(3), "", want...)
	}
}

// TestDebris: what failed writes and removed files leave is gone after an open.
func TestDebris(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 5))
	c := storetest.New(t, 6, 4, 2)
	w := newWorld(t, c)
	fs := w.open(1)
	writeFile(t, fs, "keep.sst", randBytes(rng, 300_000))
	writeFile(t, fs, "keep.log", randBytes(rng, 300_000))
	f, err := fs.Create("never.sst", vfs.WriteCategoryUnspecified)
	check(t, err)
	_, err = f.Write(randBytes(rng, 2_000_000))
	check(t, err)
	crash := newWorld(t, c.Snapshot(t))
	fs.Close()
	_ = f.Close()
	crash.open(2)
	for range 300 {
		if n, _ := crash.s.PendingDeletes(); n == 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	time.Sleep(50 * time.Millisecond)
	count := map[wire.Class]int{}
	for d := wire.DriveID(1); d <= 6; d++ {
		for _, class := range []wire.Class{wire.ClassFile, wire.ClassLog, wire.ClassTable} {
			count[class] += len(crash.c.Strips(d, class))
		}
	}
	if count[wire.ClassFile] != 3*3 || count[wire.ClassLog] != 3 || count[wire.ClassTable] != 6 {
		t.Fatalf("strips left: %v; want 9 of class file (2 files, 1 open record), 3 log, 6 table", count)
	}
}

// chaos makes drives fail at random, at most m at a time, and the process die at a certain request.
type chaos struct {
	c       *storetest.Cluster
	mu      sync.Mutex
	rng     *rand.Rand
	down    []wire.DriveID
	left    int // mutations until the process dies; < 0: never
	crashed bool
	flaky   bool
}

func (x *chaos) install() {
	x.c.Hooks(func(d wire.DriveID, m wire.Method, _ wire.Message) error { return x.decide(d, m, false) },
		func(d wire.DriveID, m wire.Method, _ wire.Message) error { return x.decide(d, m, true) })
}

func (x *chaos) dead() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.crashed
}

func (x *chaos) decide(d wire.DriveID, m wire.Method, after bool) error {
	fail := wire.E("chaos", wire.KindConnLost, "", nil)
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.crashed {
		return fail
	}
	if mutates := m == wire.MDrivePut || m == wire.MDriveAppend || m == wire.MDriveSeal || m == wire.MDriveDelete; mutates {
		if x.left == 0 {
			x.crashed = true
			return fail // with (after) or without effect
		}
		if x.left > 0 && x.rng.IntN(2) == 0 {
			x.left--
		}
	}
	if slices.Contains(x.down, d) {
		if x.rng.IntN(20) == 0 {
			x.down = slices.DeleteFunc(x.down, func(e wire.DriveID) bool { return e == d })
		}
		return fail
	}
	if x.flaky && len(x.down) < 2 && x.rng.IntN(150) == 0 {
		x.down = append(x.down, d)
		return fail
	}
	return nil
}

// quietLogger: Pebble must never give up.
type quietLogger struct{}

func (quietLogger) Infof(string, ...any)      {}
func (quietLogger) Errorf(string, ...any)     {}
func (quietLogger) Fatalf(f string, a ...any) { panic(fmt.Sprintf(f, a...)) }

func openPebble(fs *FS, cache *pebble.Cache) (*pebble.DB, error) {
	return pebble.Open("db", &pebble.Options{
		FS: fs, Cache: cache, MemTableSize: 64 << 10, Logger: quietLogger{}, L0CompactionThreshold: 2,
		MaxManifestFileSize: 4 << 10,
	})
}

// model is what a database holds after n batches: batch i sets "last" and a few keys, and deletes some.
type model map[string]string

func batchOf(i int) (set map[string]string, del []string) {
	rng := rand.New(rand.NewPCG(uint64(i), 99))
	set = map[string]string{"last": fmt.Sprint(i)}
	for range rng.IntN(6) {
		n := rng.IntN(300)
		if rng.IntN(10) == 0 {
			n = rng.IntN(20_000)
		}
		set[fmt.Sprintf("k%03d", rng.IntN(200))] = fmt.Sprintf("%d:%s", i, strings.Repeat("v", n))
	}
	for range rng.IntN(3) {
		del = append(del, fmt.Sprintf("k%03d", rng.IntN(200)))
	}
	for _, k := range del {
		delete(set, k)
	}
	return set, del
}

func (m model) apply(i int) {
	set, del := batchOf(i)
	for _, k := range del {
		delete(m, k)
	}
	for k, v := range set {
		m[k] = v
	}
}

func commit(db *pebble.DB, i int) error {
	b := db.NewBatch()
	set, del := batchOf(i)
	for _, k := range del {
		if err := b.Delete([]byte(k), nil); err != nil {
			return err
		}
	}
	for k, v := range set {
		if err := b.Set([]byte(k), []byte(v), nil); err != nil {
			return err
		}
	}
	return b.Commit(pebble.Sync)
}

func contents(db *pebble.DB) (model, error) {
	it, err := db.NewIter(nil)
	if err != nil {
		return nil, err
	}
	m := model{}
	for it.First(); it.Valid(); it.Next() {
		m[string(it.Key())] = string(it.Value())
	}
	return m, it.Close()
}

func compare(got, want model) error {
	for k, v := range want {
		if got[k] != v {
			return fmt.Errorf("key %s: %d bytes, want %d", k, len(got[k]), len(v))
		}
	}
	if len(got) != len(want) {
		return fmt.Errorf("%d keys, want %d", len(got), len(want))
	}
	return nil
}

// TestPebbleCrash runs a database, kills the process at a random request with up to m drives down, opens it again with
// others missing, and so on. Every batch that was acknowledged is there, and of the others a prefix.
func TestPebbleCrash(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	rounds := 12
	if testing.Short() {
		rounds = 4
	}
	for round := range rounds {
		runPebble(t, seed+uint64(round))
	}
}

func runPebble(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 5))
	c := storetest.New(t, 6, 4, 2)
	acked, issued := 0, 0
	want := model{}
	fatal := func(format string, args ...any) {
		t.Helper()
		t.Fatalf("seed %d: %s", seed, fmt.Sprintf(format, args...))
	}
	for epoch := wire.Epoch(1); epoch < 7; epoch++ {
		w := newWorld(t, c)
		for _, i := range rng.Perm(6)[:rng.IntN(3)] { // some are away when it opens
			c.Kill(wire.DriveID(i + 1))
		}
		fs, err := w.tryOpen(epoch)
		if err != nil {
			fatal("epoch %d: %v", epoch, err)
		}
		fs.PretendAfterLoss()
		cache := pebble.NewCache(1 << 20)
		db, err := openPebble(fs, cache)
		if err != nil {
			fatal("epoch %d: pebble: %v", epoch, err)
		}
		got, err := contents(db)
		if err != nil {
			fatal("epoch %d: %v", epoch, err)
		}
		last := 0
		if s := got["last"]; s != "" {
			_, _ = fmt.Sscan(s, &last)
		}
		if last < acked || last > issued {
			fatal("epoch %d: %d batches, acked %d, issued %d", epoch, last, acked, issued)
		}
		for i := acked + 1; i <= last; i++ {
			want.apply(i)
		}
		if err := compare(got, want); err != nil {
			fatal("epoch %d, after %d batches: %v", epoch, last, err)
		}
		acked, issued = last, last
		for d := wire.DriveID(1); d <= 6; d++ {
			c.Revive(d)
		}
		x := &chaos{c: c, rng: rand.New(rand.NewPCG(seed, uint64(epoch))), left: rng.IntN(2500), flaky: true}
		x.install()
		stop := make(chan struct{})
		go func() { // the end of the process: nothing that it waits for comes any more
			for !x.dead() {
				time.Sleep(time.Millisecond)
			}
			fs.Close()
			close(stop)
		}()
		for !x.dead() {
			issued++
			if err := commit(db, issued); err != nil {
				fatal("epoch %d: commit: %v", epoch, err)
			}
			if fs.Err() == nil { // what every user has to ask
				want.apply(issued)
				acked = issued
			}
		}
		<-stop
		if err := db.Close(); err != nil && !strings.Contains(err.Error(), "leaked") {
			t.Logf("close of the dead database: %v", err)
		}
		cache.Unref()
		next := c.Snapshot(t)
		c = next
	}
}

// TestRecoveryCrash: the open itself dies at every one of its requests in turn, and is done again by others with other
// drives missing; nothing acknowledged is lost.
func TestRecoveryCrash(t *testing.T) {
	base := newWorld(t, storetest.New(t, 6, 4, 2))
	fs := base.open(1)
	want := map[string][]byte{"1.sst": bytes.Repeat([]byte("s"), 200_000), "2.sst": []byte("small"), "3.log": nil}
	writeFile(t, fs, "1.sst", want["1.sst"])
	writeFile(t, fs, "2.sst", want["2.sst"])
	f, err := fs.Create("3.log", "pebble-wal")
	check(t, err)
	for i := range 20 {
		b := binary.LittleEndian.AppendUint64(bytes.Repeat([]byte("r"), 700*i), uint64(i))
		want["3.log"] = append(want["3.log"], b...)
		_, err := f.Write(b)
		check(t, err)
		check(t, f.Sync())
	}
	ref := fs.find("3.log").segs[0]
	base.c.Cut(ref.replicas[1].drive, ref.id.WithPos(ref.replicas[1].pos), ref.bytes) // equal, but one is lost below
	base.c.Lose(ref.replicas[1].drive, ref.id.WithPos(ref.replicas[1].pos))
	base.c.Lose(fs.find("1.sst").desc.at[2].drive, fs.find("1.sst").desc.id.WithPos(2))
	rng := rand.New(rand.NewPCG(6, 6))
	for at := range 60 {
		w := newWorld(t, base.c.Snapshot(t))
		x := &chaos{c: w.c, rng: rand.New(rand.NewPCG(uint64(at), 1)), left: at / 2}
		x.install()
		if at%2 == 0 {
			w.c.Kill(wire.DriveID(rng.IntN(6) + 1))
		}
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			for !x.dead() && ctx.Err() == nil {
				time.Sleep(time.Millisecond)
			}
			cancel()
		}()
		b := w.s.Bucket(1, 2)
		fs, err := Open(ctx, b)
		cancel()
		if err == nil {
			fs.Close()
		}
		b.Close()
		w2 := newWorld(t, w.c.Snapshot(t))
		for d := wire.DriveID(1); d <= 6; d++ {
			w2.c.Revive(d)
		}
		w2.c.Kill(wire.DriveID(rng.IntN(6) + 1))
		fs = w2.open(3)
		for name, b := range want {
			expectFile(t, fs, name, b)
		}
	}
}

// TestRenameCrash: a crash at every request of a rename leaves one of the names, never both or none.
func TestRenameCrash(t *testing.T) {
	seenOld, seenNew := false, false
	for at := range 12 {
		c := storetest.New(t, 6, 4, 2)
		w := newWorld(t, c)
		fs := w.open(1)
		content := bytes.Repeat([]byte("x"), 80_000)
		writeFile(t, fs, "tmp", content)
		writeFile(t, fs, "OPTIONS", []byte("replaced"))
		x := &chaos{c: c, rng: rand.New(rand.NewPCG(uint64(at), 2)), left: at / 2}
		x.install()
		done := make(chan error, 1)
		go func() { done <- fs.Rename("tmp", "OPTIONS") }()
		var err error
		select {
		case err = <-done:
		case <-time.After(100 * time.Millisecond):
			fs.Close()
			err = <-done
		}
		w2 := newWorld(t, c.Snapshot(t))
		for epoch := wire.Epoch(2); epoch < 4; epoch++ {
			fs := w2.open(epoch)
			names, lerr := fs.List("")
			check(t, lerr)
			switch fmt.Sprint(names) {
			case "[OPTIONS tmp]":
				expectFile(t, fs, "OPTIONS", []byte("replaced"))
				expectFile(t, fs, "tmp", content)
				seenOld = true
				if err == nil {
					t.Fatal("an acknowledged rename is undone")
				}
			case "[OPTIONS]":
				expectFile(t, fs, "OPTIONS", content)
				seenNew = true
			default:
				t.Fatalf("crash %d: files %v", at, names)
			}
		}
	}
	if !seenOld || !seenNew {
		t.Fatalf("not all outcomes were met: old %v, new %v", seenOld, seenNew)
	}
}
