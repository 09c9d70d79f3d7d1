package driveload

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

var testCluster = wire.ClusterID{1, 2, 3}

// fakeDrive keeps strips in a map, and may be told to be bad.
type fakeDrive struct {
	arena *wire.Arena

	mu      sync.Mutex
	strips  map[wire.StripID][]byte
	peak    int // most bytes at once
	bytes   int
	corrupt func(r wire.ReadRange, b []byte) // changes what a read gives
	forget  bool                             // writes are acknowledged and not kept
	fail    wire.Kind                        // of every write
}

// serve starts the drive and connects to it.
func (f *fakeDrive) serve(t *testing.T) *Session {
	t.Helper()
	addr := "unix:" + filepath.Join(t.TempDir(), "d")
	var err error
	if f.arena, err = wire.NewArena(64 << 20); err != nil {
		t.Fatal(err)
	}
	f.strips = map[wire.StripID][]byte{}
	l, err := rpc.Listen(addr, rpc.Options{Self: rpc.Self{Cluster: testCluster, Role: wire.RoleDrive, Proc: 2}, Arena: f.arena, Handler: f.handle})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Serve(ctx) }()
	s, err := Dial(t.Context(), Config{Addr: addr, Cluster: testCluster, Drive: 1, ReadBytes: 4 << 20, WriteBytes: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := f.arena.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func (f *fakeDrive) handle(ctx context.Context, req *rpc.Request) (wire.Message, wire.Data, error) {
	defer req.Data.Release()
	f.mu.Lock()
	defer f.mu.Unlock()
	switch req.Header.Method {
	case wire.MDrivePut:
		var m wire.PutReq
		if err := m.Decode(req.Meta); err != nil {
			return nil, nil, err
		}
		return &wire.Empty{}, nil, f.write(m.ID, 0, req.Data)
	case wire.MDriveAppend:
		var m wire.AppendReq
		if err := m.Decode(req.Meta); err != nil {
			return nil, nil, err
		}
		err := f.write(m.ID, int(m.Offset), req.Data)
		return &wire.AppendResp{Len: m.Offset + uint64(req.Data.Len())}, nil, err
	case wire.MDriveDelete:
		var m wire.DeleteReq
		if err := m.Decode(req.Meta); err != nil {
			return nil, nil, err
		}
		for _, id := range m.IDs {
			f.bytes -= len(f.strips[id])
			delete(f.strips, id)
		}
		return &wire.Empty{}, nil, nil
	}
	return f.read(ctx, req)
}

// holds tells what is on the drive.
func (f *fakeDrive) holds() (strips, bytes, peak int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.strips), f.bytes, f.peak
}

// write writes. Preconditions: f.mu is held.
func (f *fakeDrive) write(id wire.StripID, off int, data wire.Data) error {
	if f.fail != wire.KindNone {
		return wire.E("fake", f.fail, id.String(), nil)
	}
	if f.forget {
		return nil
	}
	old := f.strips[id]
	if len(old) != off {
		return wire.Errorf("fake", wire.KindRange, id.String(), "write at %d, the length is %d", off, len(old))
	}
	for _, p := range data {
		old = append(old, p.B...)
	}
	f.strips[id] = old
	f.bytes += data.Len()
	f.peak = max(f.peak, f.bytes)
	return nil
}

// read reads. Preconditions: f.mu is held.
func (f *fakeDrive) read(ctx context.Context, req *rpc.Request) (wire.Message, wire.Data, error) {
	var m wire.ReadReq
	if err := m.Decode(req.Meta); err != nil {
		return nil, nil, err
	}
	resp := &wire.ReadResp{}
	total := 0
	for _, r := range m.Ranges {
		k := wire.KindNone
		if uint64(len(f.strips[r.ID])) < r.Offset+uint64(r.Len) {
			k = wire.KindNotFound
		} else {
			total += int(r.Len)
		}
		resp.Status = append(resp.Status, k)
	}
	buf, err := f.arena.Alloc(ctx, total)
	if err != nil {
		return nil, nil, err
	}
	at := buf.Bytes()
	for i, r := range m.Ranges {
		if resp.Status[i] == wire.KindNone {
			copy(at, f.strips[r.ID][r.Offset:][:r.Len])
			if f.corrupt != nil {
				f.corrupt(r, at[:r.Len])
			}
			at = at[r.Len:]
		}
	}
	return resp, buf.Data(total), nil
}

func testJob(k Kind, depth int) Job {
	return Job{Kind: k, Depth: depth, Warmup: 5 * time.Millisecond, Duration: 50 * time.Millisecond, PID: os.Getpid()}
}

// Claim: every job does work, measures it, keeps to the space that it was given, and leaves the drive as it was.
func TestJobs(t *testing.T) {
	f := &fakeDrive{}
	s := f.serve(t)
	if err := s.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	if strips, bytes, _ := f.holds(); strips != 32 || bytes != 4<<20 {
		t.Fatalf("%d strips with %d bytes were put, want 32 with 4 MiB", strips, bytes)
	}
	for _, k := range []Kind{Read4K, Append, Put, Read1M} {
		for _, depth := range []int{1, 8} {
			r, err := s.Run(t.Context(), testJob(k, depth))
			if err != nil {
				t.Fatal(err)
			}
			if r.Ops == 0 || r.Elapsed < 50*time.Millisecond || r.P50 <= 0 || r.P99 < r.P50 || r.CPU <= 0 || r.Load <= 0 {
				t.Errorf("%s at depth %d: %+v", k, depth, r)
			}
			if strips, bytes, _ := f.holds(); strips != 32 || bytes != 4<<20 {
				t.Fatalf("%s at depth %d left %d strips with %d bytes, want 32 with 4 MiB", k, depth, strips, bytes)
			}
		}
	}
	if _, _, peak := f.holds(); peak > 8<<20 {
		t.Errorf("%d MiB were on the drive at once, of 8", peak>>20)
	}
	if used := s.arena.Used(); used != 0 {
		t.Errorf("%d bytes of the arena are not given back", used)
	}
}

// Claim: a drive that gives other bytes than were written, or has lost them, fails the run.
func TestBadDriveIsFound(t *testing.T) {
	flip := func(at int) func(wire.ReadRange, []byte) {
		return func(_ wire.ReadRange, b []byte) { b[len(b)-1-at] ^= 1 }
	}
	for _, c := range []struct {
		name string
		kind Kind
		bad  func(*fakeDrive)
		want string
	}{
		{"read, last byte", Read4K, func(f *fakeDrive) { f.corrupt = flip(0) }, "WRONG DATA"},
		{"read, other strip", Read4K, func(f *fakeDrive) {
			f.corrupt = func(_ wire.ReadRange, b []byte) { b[0] ^= 1 }
		}, "WRONG DATA"},
		{"sequential read, one block of 256", Read1M, func(f *fakeDrive) {
			f.corrupt = func(r wire.ReadRange, b []byte) {
				if r.ID.Number()%8 == 3 {
					copy(b[5*4096:], b[6*4096:7*4096])
				}
			}
		}, "WRONG DATA"},
		{"read, gone", Read4K, func(f *fakeDrive) { clear(f.strips) }, "read of strip"},
		{"put, lost", Put, func(f *fakeDrive) { f.forget = true }, "LOST"},
		{"put, torn", Put, func(f *fakeDrive) { f.corrupt = flip(4096) }, "WRONG DATA"},
		{"append, lost", Append, func(f *fakeDrive) { f.forget = true }, "LOST"},
		{"append, torn", Append, func(f *fakeDrive) { f.corrupt = flip(100) }, "WRONG DATA"},
		{"append, of another place", Append, func(f *fakeDrive) {
			f.corrupt = func(_ wire.ReadRange, b []byte) { copy(b, b[len(b)-4096:]) }
		}, "WRONG DATA"},
		{"put, refused", Put, func(f *fakeDrive) { f.fail = wire.KindNoSpace }, "put of strip"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := &fakeDrive{}
			s := f.serve(t)
			if err := s.Prepare(t.Context()); err != nil {
				t.Fatal(err)
			}
			f.mu.Lock()
			c.bad(f)
			f.mu.Unlock()
			_, err := s.Run(t.Context(), testJob(c.kind, 2))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
			for end := time.Now().Add(10 * time.Second); s.arena.Used() != 0; time.Sleep(time.Millisecond) {
				if time.Now().After(end) { // the answer of an abandoned call is let in first
					t.Fatalf("%d bytes of the arena are not given back", s.arena.Used())
				}
			}
		})
	}
}

// Claim: a job ends when its context does, and says so.
func TestCancel(t *testing.T) {
	f := &fakeDrive{}
	s := f.serve(t)
	if err := s.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	j := testJob(Put, 4)
	j.Duration = time.Hour
	if _, err := s.Run(ctx, j); err == nil || !strings.Contains(err.Error(), "put128k at depth 4") {
		t.Errorf("error %v", err)
	}
}

// Claim: the echo takes every job.
func TestEcho(t *testing.T) {
	addr := "unix:" + filepath.Join(t.TempDir(), "e")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- ServeEcho(ctx, addr, testCluster, nil) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	var s *Session
	for {
		var err error
		if s, err = Dial(ctx, Config{Addr: addr, Cluster: testCluster, Drive: 1, ReadBytes: 4 << 20, WriteBytes: 4 << 20, Echo: true}); err == nil {
			break
		}
		select {
		case err := <-done:
			t.Fatal(err)
		case <-time.After(time.Millisecond):
		}
	}
	defer func() { _ = s.Close() }()
	for _, k := range []Kind{Read4K, Append, Put, Read1M} {
		if r, err := s.Run(ctx, testJob(k, 4)); err != nil || r.Ops == 0 {
			t.Errorf("%s: %d operations, %v", k, r.Ops, err)
		}
		if n, err := RunBare(ctx, BarePath(addr), k, 10*time.Millisecond); err != nil || n <= 0 {
			t.Errorf("%s, bare: %g a second, %v", k, n, err)
		}
	}
}

// Claim: a bare exchange ends with its context, and the server drops a peer that asks for too much, and serves on.
func TestBare(t *testing.T) {
	path := filepath.Join(t.TempDir(), "b")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- ServeBare(ctx, path) }()
	var c net.Conn
	for {
		var err error
		if c, err = net.Dial("unix", path); err == nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	defer c.Close()
	if _, err := c.Write([]byte{8, 0, 0, 0, 255, 255, 255, 255}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("a request for 4 GiB: %v", err)
	}
	short, stop := context.WithTimeout(ctx, 30*time.Millisecond)
	defer stop()
	if _, err := RunBare(short, path, Read4K, time.Hour); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("interrupted: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Claim: no two blocks of a drive are alike, and every bit of one counts.
func TestContent(t *testing.T) {
	c := newContent()
	b := make([]byte, 3*wire.BlockSize)
	c.fill(b, 77, 5, nil)
	seen := map[string]bool{}
	for i := range 3 {
		blk := b[i*wire.BlockSize:][:wire.BlockSize]
		seen[string(blk)] = true
		if err := c.check(blk, 77, 5+i); err != nil {
			t.Error(err)
		}
		if c.check(blk, 77, 6+i) == nil || c.check(blk, 78, 5+i) == nil {
			t.Error("a block passes for another")
		}
	}
	if len(seen) != 3 {
		t.Error("blocks are alike")
	}
	blk := b[:wire.BlockSize]
	for bit := range 8 * wire.BlockSize {
		blk[bit/8] ^= 1 << (bit % 8)
		if c.check(blk, 77, 5) == nil {
			t.Fatalf("bit %d does not count", bit)
		}
		blk[bit/8] ^= 1 << (bit % 8)
	}
	if binary.LittleEndian.Uint64(blk) != 77 {
		t.Error("the stamp is not the strip's number")
	}
}

// Claim: a quantile is right to a 32nd.
func TestHistogram(t *testing.T) {
	var a, b histogram
	for i := range 100_000 {
		h := &a
		if i%2 == 0 {
			h = &b
		}
		h.add(time.Duration(i) * time.Microsecond)
	}
	a.merge(&b)
	for _, q := range []float64{0.01, 0.5, 0.99, 0.999} {
		want := q * 100_000
		if got := float64(a.quantile(q)) / 1000; got < want*(1-1.0/32) || got > want*(1+1.0/32) {
			t.Errorf("quantile %g is %g us, want %g", q, got, want)
		}
	}
	if a.n != 100_000 || (&histogram{}).quantile(0.5) != 0 {
		t.Error("counts")
	}
	for _, d := range []time.Duration{0, 1, 31, 32, 33, 63, 64, 1 << 40, 1<<63 - 1} {
		m := middle(bucketOf(uint64(d)))
		if diff := float64(m) - float64(d); diff > float64(d)/32 || diff < -float64(d)/32 {
			t.Errorf("%d falls into the bucket of %d", d, m)
		}
	}
}
