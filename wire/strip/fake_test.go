package strip

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

// drives is a set of drives in memory that answer MDriveRead.
type drives struct {
	t     *testing.T
	arena *wire.Arena
	mu    sync.Mutex
	strip map[wire.DriveID]map[wire.StripID][]byte
	down  map[wire.DriveID]bool
	slow  map[wire.DriveID]time.Duration
	odd   bool // answer in parts that split blocks
	asked map[wire.DriveID]int
}

func newDrives(t *testing.T) *drives {
	arena, err := wire.NewArena(64 << 20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 200 { // requests that lost their race may still be ending
			if arena.Used() == 0 {
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
		if u := arena.Used(); u != 0 {
			t.Errorf("%d bytes of the arena leaked", u)
		}
	})
	return &drives{
		t: t, arena: arena, strip: map[wire.DriveID]map[wire.StripID][]byte{},
		down: map[wire.DriveID]bool{}, slow: map[wire.DriveID]time.Duration{}, asked: map[wire.DriveID]int{},
	}
}

func (f *drives) put(d wire.DriveID, id wire.StripID, data wire.Data) {
	var b []byte
	for _, s := range data {
		b = append(b, s.B...)
	}
	if f.strip[d] == nil {
		f.strip[d] = map[wire.StripID][]byte{}
	}
	f.strip[d][id] = b
}

func (f *drives) call(ctx context.Context, d wire.DriveID, call *rpc.Call) error {
	req := call.Req.(*wire.ReadReq)
	f.mu.Lock()
	down, slow := f.down[d], f.slow[d]
	f.asked[d] += len(req.Ranges)
	f.mu.Unlock()
	if down {
		return wire.Errorf("fake", wire.KindUnavailable, "", "drive %d is down", d)
	}
	if slow > 0 {
		select {
		case <-time.After(slow):
		case <-ctx.Done():
			return wire.E("fake", wire.KindInterrupted, "", ctx.Err())
		}
	}
	if req.Drive != d || len(req.Ranges) > MaxRanges {
		return wire.Errorf("fake", wire.KindInvalid, "", "drive %d, %d ranges", req.Drive, len(req.Ranges))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	resp := call.Resp.(*wire.ReadResp)
	var out []byte
	for _, r := range req.Ranges {
		b, ok := f.strip[d][r.ID]
		switch {
		case !ok:
			resp.Status = append(resp.Status, wire.KindNotFound)
		case r.Offset+uint64(r.Len) > uint64(len(b)):
			resp.Status = append(resp.Status, wire.KindRange)
		default:
			resp.Status = append(resp.Status, wire.KindNone)
			out = append(out, b[r.Offset:r.Offset+uint64(r.Len)]...)
		}
	}
	if len(out) == 0 {
		return nil
	}
	buf, err := f.arena.Alloc(ctx, len(out))
	if err != nil {
		return err
	}
	copy(buf.Bytes(), out)
	call.RespData = buf.Data(len(out))
	if f.odd {
		call.RespData = wire.Data{{Buf: buf.Retain(), B: buf.Bytes()[:100]}, {Buf: buf, B: buf.Bytes()[100:len(out)]}}
	}
	return nil
}

func (f *drives) up(d wire.DriveID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.down[d]
}

// data makes n random blocks in parts of random length.
func (f *drives) data(rng *rand.Rand, n int) (wire.Data, []uint64) {
	var d wire.Data
	for n > 0 {
		part := 1 + rng.IntN(n)
		buf, err := f.arena.Alloc(context.Background(), part*wire.BlockSize)
		if err != nil {
			f.t.Fatal(err)
		}
		for i := range buf.Bytes() {
			buf.Bytes()[i] = byte(rng.Uint32())
		}
		d = append(d, buf.Data(part*wire.BlockSize)...)
		n -= part
	}
	return d, Sums(d)
}

// stripe stores a stripe of n random blocks on drives first, first+1, ...
func (f *drives) stripe(rng *rand.Rand, k, m, n int, first wire.DriveID) (*wire.Location, []byte, []uint64) {
	d, sums := f.data(rng, n)
	defer d.Release()
	strips, err := NewCodecs().Encode(context.Background(), f.arena, k, m, d, sums)
	if err != nil {
		f.t.Fatal(err)
	}
	defer Release(strips)
	loc := &wire.Location{
		Kind: wire.LocStripe, K: uint8(k), M: uint8(m), Blocks: uint32(n),
		ID: wire.MakeStripID(1, wire.ClassData, 0, 7, 0, rng.Uint64()),
	}
	for p, s := range strips {
		id := first + wire.DriveID(p)
		if s.Data.Len() != loc.Geometry().LenBlocks(p)*wire.BlockSize || len(s.Sums) != loc.Geometry().LenBlocks(p) {
			f.t.Fatalf("strip %d of %d+%d with %d blocks has %d bytes", p, k, m, n, s.Data.Len())
		}
		if s.Data.Len() == 0 {
			id = 0
		} else {
			f.put(id, loc.ID.WithPos(p), s.Data)
		}
		loc.Drives = append(loc.Drives, id)
	}
	return loc, flat(d), sums
}

// segment stores n random blocks on that many drives.
func (f *drives) segment(rng *rand.Rand, replicas, n int, first wire.DriveID) (*wire.Location, []byte, []uint64) {
	d, sums := f.data(rng, n)
	defer d.Release()
	loc := &wire.Location{Kind: wire.LocSegment, ID: wire.MakeStripID(1, wire.ClassSegment, 0, 9, 0, rng.Uint64())}
	for p := range replicas {
		loc.Drives = append(loc.Drives, first+wire.DriveID(p))
		f.put(first+wire.DriveID(p), loc.ID.WithPos(p), d)
	}
	return loc, flat(d), sums
}

func flat(d wire.Data) []byte {
	var b []byte
	for _, s := range d {
		b = append(b, s.B...)
	}
	return b
}

func (f *drives) reader(c Config) *Reader {
	c.Drive, c.Arena = f.call, f.arena
	return New(c)
}

// expect reads one want and compares.
func expect(t *testing.T, r *Reader, loc *wire.Location, at, n int, all []byte, sums []uint64) {
	t.Helper()
	ds, err := r.Read(context.Background(), []Want{{Loc: loc, Block: at, Blocks: n, Sums: sums[at : at+n]}})
	if err != nil {
		t.Fatalf("blocks %d+%d: %v", at, n, err)
	}
	defer ds[0].Release()
	if string(flat(ds[0])) != string(all[at*wire.BlockSize:(at+n)*wire.BlockSize]) {
		t.Fatalf("blocks %d+%d: wrong bytes", at, n)
	}
}

func expectKind(t *testing.T, r *Reader, w Want, kind wire.Kind) {
	t.Helper()
	ds, err := r.Read(context.Background(), []Want{w})
	if !errors.Is(err, kind) {
		t.Fatalf("got %v, want kind %v", err, kind)
	}
	if ds != nil {
		t.Fatal("data with an error")
	}
}
