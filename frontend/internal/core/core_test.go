package core

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crakefs/crake/frontend/internal/fake"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/strip"
)

const rdwr = 2

// client makes an FS of the cluster and runs it.
func client(t testing.TB, f *fake.Cluster, session wire.SessionID, c Config) *FS {
	t.Helper()
	c.Session, c.FS = session, wire.FSInfo{ID: 1, Root: f.Root(), Name: "test"}
	c.Cluster, c.Blocks, c.Arena = f.Conn(session), f, f.Arena
	fs, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	f.Attach(session, fs)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = fs.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return fs
}

func create(t testing.TB, fs *FS, name string) *Handle {
	t.Helper()
	h, _, err := fs.CreateFile(context.Background(), Create{Parent: fs.Root(), Name: name, Mode: modeFile | 0o644}, rdwr)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func open(t testing.TB, fs *FS, name string, flags uint32) *Handle {
	t.Helper()
	a, err := fs.Lookup(context.Background(), fs.Root(), name)
	if err != nil {
		t.Fatal(err)
	}
	h, err := fs.Open(context.Background(), a.Ino, flags)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func write(t testing.TB, fs *FS, h *Handle, off uint64, p []byte, flags uint32) {
	t.Helper()
	if n, err := fs.Write(context.Background(), h, Write{Off: off, Data: p, Flags: flags}); err != nil || n != len(p) {
		t.Fatalf("write of %d at %d: %d, %v", len(p), off, n, err)
	}
}

func read(t testing.TB, fs *FS, h *Handle, off uint64, n int, flags uint32) []byte {
	t.Helper()
	b, err := fs.Read(context.Background(), h, off, n, flags, false)
	if err != nil {
		t.Fatalf("read of %d at %d: %v", n, off, err)
	}
	defer b.Done()
	return bytes.Join(b.Slices(), nil)
}

func stat(t testing.TB, fs *FS, ino wire.Ino) wire.Attr {
	t.Helper()
	a, err := fs.GetAttr(context.Background(), ino)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func fsync(t testing.TB, fs *FS, h *Handle) {
	t.Helper()
	if err := fs.Fsync(context.Background(), h); err != nil {
		t.Fatal(err)
	}
}

func random(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(rand.Uint32())
	}
	return p
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// Claim: any mix of writes, reads, truncates, punches and syncs by one client gives what an array of bytes gives, and after fsync the
// cluster has exactly that; all memory is free at the end.
func TestModel(t *testing.T) {
	for seed := range uint64(6) {
		f := fake.New(t)
		fs := client(t, f, 1, Config{DirtyBytes: 3 << 20, ReadBytes: 8 << 20})
		h := create(t, fs, "f")
		r := rand.New(rand.NewPCG(seed, 2))
		const maxSize = 2*wire.RegionBytes + 123456
		var want []byte
		grow := func(n uint64) {
			if n > uint64(len(want)) {
				want = append(want, make([]byte, n-uint64(len(want)))...)
			}
		}
		place := func() (uint64, int) {
			off := r.Uint64N(maxSize - 1)
			n := 1 + r.Uint64N(min(maxSize-off, []uint64{100, 10000, 1 << 20}[r.IntN(3)]))
			if r.IntN(3) == 0 {
				off &^= wire.BlockSize - 1
			}
			return off, int(min(n, maxSize-off))
		}
		for step := range 150 {
			off, n := place()
			switch r.IntN(12) {
			case 0, 1, 2, 3:
				p := random(n)
				write(t, fs, h, off, p, []uint32{0, 0, 0, openDirect, openSync}[r.IntN(5)])
				grow(off + uint64(n))
				copy(want[off:], p)
			case 4:
				p := random(n % 5000)
				if len(want)+len(p) > maxSize {
					continue
				}
				write(t, fs, h, 0, p, openAppend)
				want = append(want, p...)
			case 5:
				if _, err := fs.SetAttr(context.Background(), h.Ino(), SetAttr{Valid: wire.SetSize, Size: off}); err != nil {
					t.Fatal(err)
				}
				grow(off)
				want = want[:off:off]
			case 6:
				mode := []uint32{fallocPunch | fallocKeepSize, fallocZero, fallocZero | fallocKeepSize, 0}[r.IntN(4)]
				if err := fs.Fallocate(context.Background(), h, mode, off, uint64(n)); err != nil {
					t.Fatal(err)
				}
				if mode&fallocKeepSize == 0 {
					grow(off + uint64(n))
				}
				if end := min(off+uint64(n), uint64(len(want))); mode != 0 && off < end {
					clear(want[off:end])
				}
			case 7:
				fsync(t, fs, h)
				if !bytes.Equal(f.Content(h.Ino()), want) {
					t.Fatalf("seed %d step %d: the cluster has something else", seed, step)
				}
			case 8:
				f.Rewrite()
			default:
				got := read(t, fs, h, off, n, []uint32{0, openDirect}[r.IntN(2)])
				var exp []byte
				if off < uint64(len(want)) {
					exp = want[off:min(off+uint64(n), uint64(len(want)))]
				}
				if !bytes.Equal(got, exp) {
					t.Fatalf("seed %d step %d: read of %d at %d of %d is wrong (%d bytes)", seed, step, n, off, len(want), len(got))
				}
			}
			if a := stat(t, fs, h.Ino()); a.Size != uint64(len(want)) {
				t.Fatalf("seed %d step %d: size %d, want %d", seed, step, a.Size, len(want))
			}
		}
		fsync(t, fs, h)
		if !bytes.Equal(f.Content(h.Ino()), want) {
			t.Fatalf("seed %d: the cluster has something else at the end", seed)
		}
		fs.Release(context.Background(), h, false)
		eventually(t, "memory is free", func() bool { return fs.Dirty() == 0 && f.Arena.Used() == 0 })
	}
}

// Claim: clients that write and read one file by turns, each through its own caches, see each other's changes at once.
func TestTwoClients(t *testing.T) {
	f := fake.New(t)
	a, b := client(t, f, 1, Config{}), client(t, f, 2, Config{})
	ha := create(t, a, "f")
	hb := open(t, b, "f", rdwr)
	var want []byte
	for i := range 60 {
		w, hw, r, hr := a, ha, b, hb
		if i%2 == 1 {
			w, hw, r, hr = b, hb, a, ha
		}
		p := random(1 + rand.IntN(9000))
		write(t, w, hw, 0, p, openAppend)
		want = append(want, p...)
		if got := stat(t, r, hr.Ino()).Size; got != uint64(len(want)) {
			t.Fatalf("step %d: size %d, want %d", i, got, len(want))
		}
		if got := read(t, r, hr, 0, len(want), 0); !bytes.Equal(got, want) {
			t.Fatalf("step %d: other bytes", i)
		}
	}
}

// Claim: appends of several clients at the same time are neither lost nor mixed.
func TestAppendRace(t *testing.T) {
	f := fake.New(t)
	const clients, rounds, size = 3, 30, 100
	first := client(t, f, 1, Config{})
	h := create(t, first, "f")
	var wg sync.WaitGroup
	for c := range clients {
		fs := first
		if c > 0 {
			fs = client(t, f, wire.SessionID(c+1), Config{})
		}
		hc := open(t, fs, "f", rdwr)
		wg.Go(func() {
			for range rounds {
				write(t, fs, hc, 0, bytes.Repeat([]byte{byte('a' + c)}, size), openAppend)
			}
		})
	}
	wg.Wait()
	got := read(t, first, h, 0, 1<<20, 0)
	if len(got) != clients*rounds*size {
		t.Fatalf("%d bytes, want %d", len(got), clients*rounds*size)
	}
	for i := 0; i < len(got); i += size {
		if !bytes.Equal(got[i:i+size], bytes.Repeat(got[i:i+1], size)) {
			t.Fatalf("record at %d is mixed", i)
		}
	}
}

// Claim: whole stripes leave by themselves, in whole stripes, before anybody asks.
func TestStripesLeave(t *testing.T) {
	f := fake.New(t)
	fs := client(t, f, 1, Config{})
	h := create(t, fs, "f")
	const stripe = fake.K * wire.StripBytes
	for off := range uint64(40) { // 40 * 64 KiB = 10 stripes
		write(t, fs, h, off*65536, random(65536), 0)
	}
	eventually(t, "all stripes are there", func() bool { return fs.Dirty() == 0 })
	f.Mu.Lock()
	defer f.Mu.Unlock()
	for _, w := range f.Writes {
		for _, file := range w.Files {
			for _, r := range file.Runs {
				if r.Off%stripe != 0 || r.Len%stripe != 0 || file.Publish {
					t.Errorf("run of %d at %d (publish %v)", r.Len, r.Off, file.Publish)
				}
			}
		}
	}
}

// Claim: the size is never published before the data below it is committed.
func TestSizeAfterData(t *testing.T) {
	f := fake.New(t)
	fs := client(t, f, 1, Config{})
	h := create(t, fs, "f")
	var bad atomic.Int32
	f.Mu.Lock()
	f.After = func(_ wire.SessionID, _ wire.BucketID, m wire.Method, req wire.Message) error {
		if m != wire.MPublish && m != wire.MWrite {
			return nil
		}
		f.Mu.Lock()
		defer f.Mu.Unlock()
		in := f.Inodes[h.in.ino]
		for b := uint64(0); b*wire.BlockSize < in.Attr.Size; b++ {
			if _, ok := in.Blocks[b]; !ok {
				bad.Add(1)
				break
			}
		}
		return nil
	}
	f.Mu.Unlock()
	for off := uint64(0); off < 3*wire.RegionBytes; off += 300000 {
		write(t, fs, h, off, random(300000), 0)
		if rand.IntN(3) == 0 {
			go func() { _ = fs.flush(fs.bg, h.in, 0, wholeFile, true) }()
		}
	}
	fsync(t, fs, h)
	if bad.Load() > 0 {
		t.Errorf("%d times the size covered what was not there", bad.Load())
	}
}

// Claim: the same, where region 0 is committed long before the rest.
func TestSizeWaitsForOtherRegions(t *testing.T) {
	f := fake.New(t)
	fs := client(t, f, 1, Config{})
	h := create(t, fs, "f")
	write(t, fs, h, 0, random(100000), 0)
	write(t, fs, h, wire.RegionBytes, random(100000), 0)
	var hold atomic.Bool
	hold.Store(true)
	f.SetHook(func(_ wire.SessionID, _ wire.BucketID, _ wire.Method, req wire.Message) error {
		if q, ok := req.(*wire.WriteReq); ok && q.Files[0].Region > 0 && hold.Load() {
			return fake.Err(wire.KindUnavailable)
		}
		return nil
	})
	size := func() (committed int, size uint64) {
		f.Mu.Lock()
		defer f.Mu.Unlock()
		return len(f.Writes), f.Inodes[h.Ino()].Attr.Size
	}
	done := make(chan error)
	go func() { done <- fs.Fsync(context.Background(), h) }()
	eventually(t, "region 0 is committed", func() bool { n, _ := size(); return n == 1 })
	if _, got := size(); got != 0 {
		t.Errorf("size %d was published before region 1 is committed", got)
	}
	hold.Store(false)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, got := size(); got != wire.RegionBytes+100000 {
		t.Errorf("size %d after fsync", got)
	}
}

// Claim: dirty memory never passes its bound, and writers wait instead.
func TestDirtyBound(t *testing.T) {
	f := fake.New(t)
	const bound = 8 << 20
	fs := client(t, f, 1, Config{DirtyBytes: bound})
	var most atomic.Int64
	f.SetHook(func(_ wire.SessionID, _ wire.BucketID, m wire.Method, _ wire.Message) error {
		if m == wire.MWrite {
			most.Store(max(most.Load(), fs.Dirty()))
			time.Sleep(time.Millisecond)
		}
		return nil
	})
	var wg sync.WaitGroup
	for i := range 4 {
		h := create(t, fs, string(rune('a'+i)))
		wg.Go(func() {
			for off := range uint64(100) {
				write(t, fs, h, off*99999, random(99999), 0)
			}
		})
	}
	wg.Wait()
	if most.Load() > bound || most.Load() < bound/8 {
		t.Errorf("at most %d bytes dirty, bound %d", most.Load(), bound)
	}
}

// Claim: small files of one bucket go together; a batch that is refused is taken apart, and only the file at fault has an error.
func TestGroupRefused(t *testing.T) {
	f := fake.New(t)
	fs := client(t, f, 1, Config{})
	var poison atomic.Uint64
	var grouped atomic.Int32
	f.SetHook(func(_ wire.SessionID, _ wire.BucketID, m wire.Method, req wire.Message) error {
		if q, ok := req.(*wire.WriteReq); ok {
			grouped.Store(max(grouped.Load(), int32(len(q.Files))))
			for _, w := range q.Files {
				if uint64(w.Ino) == poison.Load() {
					return fake.Err(wire.KindIO)
				}
			}
		}
		return nil
	})
	var hs []*Handle
	for i := range 20 {
		h := create(t, fs, string(rune('a'+i)))
		if i == 7 {
			poison.Store(uint64(h.Ino()))
		}
		write(t, fs, h, 0, random(3000), 0)
		hs = append(hs, h)
	}
	for _, h := range hs {
		_ = fs.Flush(context.Background(), h, 0)
	}
	eventually(t, "all but one are durable", func() bool { return fs.Dirty() == 4096 })
	if grouped.Load() < 2 {
		t.Error("no two files went together")
	}
	eventually(t, "the error is noted", func() bool {
		hs[7].in.mu.Lock()
		defer hs[7].in.mu.Unlock()
		return hs[7].in.errSeq > 0
	})
	for i, h := range hs {
		err := fs.Flush(context.Background(), h, 0)
		if (err != nil) != (i == 7) {
			t.Errorf("file %d: %v", i, err)
		}
	}
	poison.Store(0)
	fsync(t, fs, hs[7])
	if err := fs.Flush(context.Background(), hs[7], 0); err != nil {
		t.Errorf("told twice: %v", err)
	}
}

// Claim: write tells that the cluster is full before data is lost, and what was taken before is not.
func TestNoSpace(t *testing.T) {
	f := fake.New(t)
	fs := client(t, f, 1, Config{})
	f.Mu.Lock()
	f.Free = 4 << 20
	f.Mu.Unlock()
	h := create(t, fs, "f")
	ctx := context.Background()
	var taken []byte
	var err error
	for len(taken) < 16<<20 {
		p := random(1 << 20)
		var n int
		n, err = fs.Write(ctx, h, Write{Off: uint64(len(taken)), Data: p})
		taken = append(taken, p[:n]...)
		if err != nil {
			break
		}
		fsync(t, fs, h)
	}
	if !errors.Is(err, wire.KindNoSpace) || len(taken) < 3<<20 || len(taken) > 4<<20 {
		t.Errorf("%d bytes taken, then %v", len(taken), err)
	}
	fsync(t, fs, h)
	if !bytes.Equal(f.Content(h.Ino()), taken) {
		t.Error("what was taken is not there")
	}
}

// Claim: a buffered write that fails later is told to each opener once, at fsync or close.
func TestErrorOnce(t *testing.T) {
	f := fake.New(t)
	fs := client(t, f, 1, Config{})
	ctx := context.Background()
	h := create(t, fs, "f")
	other := open(t, fs, "f", rdwr)
	f.SetHook(func(_ wire.SessionID, _ wire.BucketID, m wire.Method, _ wire.Message) error {
		if m == wire.MWrite {
			return fake.Err(wire.KindIO)
		}
		return nil
	})
	write(t, fs, h, 0, []byte("x"), 0)
	if err := fs.Fsync(ctx, h); !errors.Is(err, wire.KindIO) {
		t.Errorf("fsync: %v", err)
	}
	f.SetHook(nil)
	fsync(t, fs, h)
	if err := fs.Flush(ctx, other, 0); !errors.Is(err, wire.KindIO) {
		t.Errorf("the other opener: %v", err)
	}
	if err := fs.Flush(ctx, other, 0); err != nil {
		t.Errorf("the other opener again: %v", err)
	}
}

// Claim: a read waits while drives are away, and believes that data is broken only when the cluster says the same place again.
func TestReadWaits(t *testing.T) {
	f := fake.New(t)
	fs := client(t, f, 1, Config{})
	h := create(t, fs, "f")
	p := random(20000)
	write(t, fs, h, 0, p, 0)
	fsync(t, fs, h)
	var away atomic.Int32
	away.Store(5)
	f.Mu.Lock()
	f.ReadHook = func([]strip.Want) error {
		if away.Add(-1) >= 0 {
			return fake.Err(wire.KindUnavailable)
		}
		return nil
	}
	f.Mu.Unlock()
	if got := read(t, fs, h, 0, 20000, openDirect); !bytes.Equal(got, p) {
		t.Error("other bytes")
	}
	f.Mu.Lock()
	f.ReadHook = func([]strip.Want) error { return fake.Err(wire.KindCorrupt) }
	f.Mu.Unlock()
	if _, err := fs.Read(context.Background(), h, 0, 4096, openDirect, false); !errors.Is(err, wire.KindIO) {
		t.Errorf("read of broken data: %v", err)
	}
}

// Claim: readahead makes a sequential reader of small pieces cost few requests, and never shows old data.
func TestReadahead(t *testing.T) {
	f := fake.New(t)
	fs := client(t, f, 1, Config{})
	h := create(t, fs, "f")
	p := random(3 << 20)
	write(t, fs, h, 0, p, 0)
	fsync(t, fs, h)
	var reads atomic.Int32
	f.Mu.Lock()
	f.ReadHook = func([]strip.Want) error { reads.Add(1); return nil }
	f.Mu.Unlock()
	for off := 0; off < len(p); off += 10000 {
		got := read(t, fs, h, uint64(off), 10000, 0)
		if !bytes.Equal(got, p[off:min(off+10000, len(p))]) {
			t.Fatalf("other bytes at %d", off)
		}
		if off == 1000000 {
			write(t, fs, h, 1500000, []byte("changed"), 0)
			copy(p[1500000:], "changed")
			fsync(t, fs, h)
		}
	}
	if n := reads.Load(); n > 40 {
		t.Errorf("%d reads of drives for 315 reads", n)
	}
	fs.Release(context.Background(), h, false)
	eventually(t, "memory is free", func() bool { return f.Arena.Used() == 0 })
}
