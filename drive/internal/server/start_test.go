package server

import (
	"bytes"
	"context"
	"encoding/binary"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cespare/xxhash/v2"

	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/drive/internal/store"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

const (
	testStrips = 40
	testBlocks = 32
	testDrive  = wire.DriveID(3)
)

// served is a drive behind a socket, with strips, and what became of the requests that Start was offered.
type served struct {
	t            testing.TB
	store        *store.Store
	addr         string
	arena        *wire.Arena
	stop         func() // once
	taken, given atomic.Int64
}

func newArena(t testing.TB, bytes int) *wire.Arena {
	t.Helper()
	opts := []wire.ArenaOption{wire.ArenaDebug()}
	if _, measures := t.(*testing.B); measures {
		opts = nil
	}
	a, err := wire.NewArena(bytes, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

func testID(n int) wire.StripID { return wire.MakeStripID(1, wire.ClassData, 0, uint64(n), 0, 5) }

// testBlock gives block b of strip n.
func testBlock(n, b int) []byte {
	out := make([]byte, format.BlockSize)
	for i := 0; i < len(out); i += 8 {
		binary.LittleEndian.PutUint64(out[i:], uint64(n)<<40|uint64(b)<<20|uint64(i))
	}
	return out
}

// serve puts strips on a fresh drive in a file and listens. In dir decides which engine it is.
func serve(t *testing.T, dir string, arenaBytes int) *served {
	t.Helper()
	s := serveEmpty(t, dir, arenaBytes, 32<<20)
	s.fill()
	return s
}

// serveEmpty does the same without strips.
func serveEmpty(t testing.TB, dir string, arenaBytes, size int) *served {
	t.Helper()
	s := &served{t: t, arena: newArena(t, arenaBytes), addr: "unix:" + filepath.Join(t.TempDir(), "s")}
	path := filepath.Join(dir, "drive")
	if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	engine, err := blockio.NewEngine(blockio.EngineConfig{Arena: s.arena})
	if err != nil {
		t.Fatal(err)
	}
	dev, err := engine.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	sb := &format.Superblock{
		Version: format.CurrentVersion, Drive: testDrive, Cluster: wire.ClusterID{1}, FormatID: 7, Created: 1, Geometry: format.DefaultGeometry(int64(size)),
	}
	if err := store.Format(dev, sb); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	if s.store, err = store.Open(dev, store.Config{Arena: s.arena, Log: log}); err != nil {
		t.Fatal(err)
	}
	h := New([]*store.Store{s.store})
	start := func(ctx context.Context, req *rpc.Request) bool {
		if h.Start(ctx, req) {
			s.taken.Add(1)
			return true
		}
		s.given.Add(1)
		return false
	}
	l, err := rpc.Listen(s.addr, rpc.Options{
		Self: rpc.Self{Cluster: wire.ClusterID{1}, Role: wire.RoleDrive, Proc: 1}, Arena: s.arena, Handler: h.Handle, Start: start, Kick: h.Kick, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	storeCtx, stopStore := context.WithCancel(context.Background())
	var serving, storing sync.WaitGroup
	serving.Go(func() { _ = l.Serve(ctx) })
	storing.Go(func() {
		if err := s.store.Run(storeCtx); err != nil {
			t.Error(err)
		}
	})
	s.stop = sync.OnceFunc(func() {
		cancel()
		serving.Wait()
		stopStore()
		storing.Wait()
		if err := dev.Close(); err != nil {
			t.Error(err)
		}
		if err := engine.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(s.stop)
	return s
}

func (s *served) fill() {
	s.t.Helper()
	buf, err := s.arena.Alloc(s.t.Context(), testBlocks*format.BlockSize)
	if err != nil {
		s.t.Fatal(err)
	}
	defer buf.Release()
	for n := range testStrips {
		sums := make([]uint64, testBlocks)
		for b := range testBlocks {
			block := testBlock(n, b)
			copy(buf.Bytes()[b*format.BlockSize:], block)
			sums[b] = xxhash.Sum64(block)
		}
		if err := s.store.Put(s.t.Context(), 1, testID(n), sums, wire.Data{{Buf: buf, B: buf.Bytes()}}); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *served) dial(arena *wire.Arena) *rpc.Conn {
	s.t.Helper()
	c, err := rpc.Dial(s.t.Context(), s.addr, rpc.Options{Self: rpc.Self{Cluster: wire.ClusterID{1}, Role: wire.RoleCompute, Proc: 9}, Arena: arena})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	return c
}

// readRandom reads blocks of up to most strips by one request and compares. False: the connection has ended.
func (s *served) readRandom(c *rpc.Conn, rng *rand.Rand, most int) bool {
	req := &wire.ReadReq{Drive: testDrive, Priority: wire.Priority(rng.IntN(3))}
	var want []byte
	for range 1 + rng.IntN(most) {
		n, b := rng.IntN(testStrips+1), rng.IntN(testBlocks)
		blocks := 1 + rng.IntN(testBlocks-b)
		req.Ranges = append(req.Ranges, wire.ReadRange{ID: testID(n), Offset: uint64(b * format.BlockSize), Len: uint32(blocks * format.BlockSize)})
		for i := b; i < b+blocks && n < testStrips; i++ {
			want = append(want, testBlock(n, i)...)
		}
	}
	var resp wire.ReadResp
	call := &rpc.Call{Method: wire.MDriveRead, Req: req, Resp: &resp}
	if err := c.Do(context.Background(), call); err != nil {
		if kind := wire.KindOf(err); kind != wire.KindConnLost {
			s.t.Errorf("read: %v", err)
		}
		return false
	}
	defer call.RespData.Release()
	var got []byte
	for _, p := range call.RespData {
		got = append(got, p.B...)
	}
	for i, r := range req.Ranges {
		if missing := r.ID == testID(testStrips); (resp.Status[i] == wire.KindNotFound) != missing {
			s.t.Errorf("status %v of %s", resp.Status[i], r.ID)
		}
	}
	if !bytes.Equal(got, want) {
		s.t.Errorf("%d bytes read differ from the %d written", len(got), len(want))
	}
	return true
}

// TestReads: requests of several connections at once, short and long, of all priorities, are answered with the right bytes, though the
// arena holds only a few of them: Start takes those it can and leaves the others. On a disk and on tmpfs.
func TestReads(t *testing.T) {
	for _, dir := range []string{t.TempDir(), ramDir(t)} {
		s := serve(t, dir, 5<<20)
		arena := newArena(t, 64<<20)
		var wg sync.WaitGroup
		for conn := range 3 {
			c := s.dial(arena)
			for worker := range 8 {
				wg.Go(func() {
					rng := rand.New(rand.NewPCG(uint64(conn), uint64(worker)))
					for range 12 {
						if !s.readRandom(c, rng, 1+20*(worker%2)) {
							t.Error("the connection ended")
							return
						}
					}
				})
			}
		}
		wg.Wait()
		info := s.store.Device().Info()
		t.Logf("%s: Start took %d requests and left %d", info.Engine, s.taken.Load(), s.given.Load())
		s.readOneByOne(arena)
	}
}

// readOneByOne sees that a drive which has nothing else to do takes short reads without a handler, and leaves one to it while there is
// no memory, which then waits.
func (s *served) readOneByOne(arena *wire.Arena) {
	c := s.dial(arena)
	defer c.Close()
	rng := rand.New(rand.NewPCG(1, 1))
	before := s.taken.Load()
	for range 20 {
		if !s.readRandom(c, rng, 1) {
			s.t.Error("the drive does not answer any more")
		}
	}
	if s.taken.Load() == before {
		s.t.Error("Start took none of 20 reads")
	}
	var held []*wire.Buf
	hold := func() {
		for b := s.arena.TryAlloc(format.BlockSize); b != nil; b = s.arena.TryAlloc(format.BlockSize) {
			held = append(held, b)
		}
	}
	hold()
	before = s.given.Load()
	done := make(chan bool, 1)
	read := func() { done <- s.readRandom(c, rng, 1) }
	go read()
	for s.given.Load() == before {
		hold() // what others have given back meanwhile
		select {
		case <-done: // by which it was taken
			go read()
		default:
			runtime.Gosched()
		}
	}
	for _, b := range held {
		b.Release()
	}
	if !<-done {
		s.t.Error("a read that waited for memory was not answered")
	}
}

// ramDir gives a directory on tmpfs.
func ramDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "crake-server-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// TestCloseWhileReading: connections that end with reads under way leave nothing behind (the arenas' Close tells), and the drive goes on;
// at the end it is stopped itself with reads under way.
func TestCloseWhileReading(t *testing.T) {
	s := serve(t, t.TempDir(), 32<<20)
	arena := newArena(t, 64<<20)
	var wg sync.WaitGroup
	for round := range 20 {
		c := s.dial(arena)
		begun := make(chan struct{}, 32)
		for worker := range 32 {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(round), uint64(worker)))
				for s.readRandom(c, rng, 4) {
					select {
					case begun <- struct{}{}:
					default:
					}
				}
			})
		}
		<-begun
		if round < 19 {
			_ = c.Close()
		}
	}
	s.readOneByOne(arena)
	s.stop()
	wg.Wait()
}
