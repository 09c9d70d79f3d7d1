package server

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cespare/xxhash/v2"

	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

// mutator puts strips and appends to a log of its own, over a connection.
type mutator struct {
	s     *served
	c     *rpc.Conn
	arena *wire.Arena
	rng   *rand.Rand
	lane  int // tells ids of mutators apart
	n     int
	want  map[wire.StripID][]byte // of what was acknowledged
	log   []byte
}

func (m *mutator) id(c wire.Class, n int) wire.StripID {
	return wire.MakeStripID(2, c, 0, uint64(m.lane<<16+n), 0, 5)
}

func (m *mutator) do(method wire.Method, req, resp wire.Message, b []byte) error {
	call := rpc.Call{Method: method, Req: req, Resp: resp}
	if len(b) > 0 {
		buf, err := m.arena.Alloc(context.Background(), len(b))
		if err != nil {
			return err
		}
		defer buf.Release()
		copy(buf.Bytes(), b)
		call.Data = wire.Data{{Buf: buf, B: buf.Bytes()}}
	}
	return m.c.Do(context.Background(), &call)
}

func (m *mutator) put(id wire.StripID, epoch wire.Epoch, b []byte) error {
	sums := make([]uint64, len(b)/format.BlockSize)
	for i := range sums {
		sums[i] = xxhash.Sum64(b[i*format.BlockSize:][:format.BlockSize])
	}
	return m.do(wire.MDrivePut, &wire.PutReq{Drive: testDrive, Epoch: epoch, ID: id, Sums: sums, Priority: wire.Priority(m.rng.IntN(3))}, nil, b)
}

// step does one mutation and, at times, one that must fail or be repeated. False: the connection has ended.
func (m *mutator) step() bool {
	m.n++
	id, b := m.id(wire.ClassTable, m.n), make([]byte, (1+m.rng.IntN(24))*format.BlockSize)
	if m.rng.IntN(20) == 0 {
		b = make([]byte, 300*format.BlockSize) // several IOs
	}
	for i := 0; i < len(b); i += 512 {
		b[i] = byte(m.rng.Uint32())
	}
	if err := m.put(id, 1, b); !m.ok("put", err, wire.KindNone) {
		return false
	}
	m.want[id] = b
	inline := make([]byte, 1+m.rng.IntN(wire.SegInlineBytes))
	rec := wire.SegRecord{ID: m.id(wire.ClassLog, 0), Offset: uint64(len(m.log)), Payload: len(inline), Epoch: 1}
	head := make([]byte, format.BlockSize)
	rec.EncodeHead(head, inline)
	req := &wire.AppendReq{Drive: testDrive, Epoch: 1, ID: rec.ID, Offset: rec.Offset}
	for range 1 + m.rng.IntN(2) { // the second time it is there already
		var resp wire.AppendResp
		if !m.ok("append", m.do(wire.MDriveAppend, req, &resp, head), wire.KindNone) {
			return false
		}
		if resp.Len != rec.Offset+format.BlockSize {
			m.s.t.Errorf("length %d after an append at %d", resp.Len, rec.Offset)
		}
	}
	m.log = append(m.log, head...)
	switch m.rng.IntN(4) {
	case 0:
		return m.ok("the same put again", m.put(id, 1, b), wire.KindNone)
	case 1:
		return m.ok("a put of other content", m.put(id, 1, bytes.Repeat([]byte{1}, len(b)+format.BlockSize)), wire.KindExists)
	case 2:
		req.Offset += 64 << 10
		return m.ok("an append of what does not chain", m.do(wire.MDriveAppend, req, nil, head), wire.KindCorrupt)
	}
	return m.ok("a put to another drive", m.do(wire.MDrivePut, &wire.PutReq{Drive: 99, Epoch: 1, ID: id}, nil, b), wire.KindMoved)
}

func (m *mutator) ok(what string, err error, kind wire.Kind) bool {
	if wire.KindOf(err) == wire.KindConnLost {
		return false
	}
	if wire.KindOf(err) != kind {
		m.s.t.Errorf("%s: %v, want %v", what, err, kind)
	}
	return true
}

// check reads all that was acknowledged.
func (m *mutator) check() {
	m.s.t.Helper()
	m.want[m.id(wire.ClassLog, 0)] = m.log
	for id, want := range m.want {
		status, data, err := m.s.store.Read(context.Background(), []wire.ReadRange{{ID: id, Len: uint32(len(want))}})
		if err != nil || status[0] != wire.KindNone {
			m.s.t.Errorf("%s: %v, %v", id, status, err)
			continue
		}
		var got []byte
		for _, p := range data {
			got = append(got, p.B...)
		}
		data.Release()
		if !bytes.Equal(got, want) {
			m.s.t.Errorf("%s: other bytes than were acknowledged", id)
		}
	}
}

// TestMutations: puts and appends of several connections at once are taken without goroutines and are all there; what is wrong with one is
// said as ever; a connection that ends with some under way leaves nothing behind. On a disk and in memory.
func TestMutations(t *testing.T) {
	for _, dir := range []string{t.TempDir(), ramDir(t)} {
		s := serveEmpty(t, dir, 32<<20, 128<<20)
		arena := newArena(t, 64<<20)
		var all []*mutator
		var wg sync.WaitGroup
		for conn := range 3 {
			c := s.dial(arena)
			for worker := range 6 {
				m := &mutator{s: s, c: c, arena: arena, rng: rand.New(rand.NewPCG(uint64(conn), uint64(worker))), lane: len(all), want: map[wire.StripID][]byte{}}
				all = append(all, m)
				wg.Go(func() {
					for range 25 {
						if !m.step() {
							return
						}
						if conn == 0 && worker == 0 && m.n == 10 {
							_ = c.Close()
						}
					}
				})
			}
		}
		wg.Wait()
		for _, m := range all {
			m.check()
		}
		t.Logf("%s: Start took %d requests and left %d", s.store.Device().Info().Engine, s.taken.Load(), s.given.Load())
		if s.taken.Load() < s.given.Load() {
			t.Error("most requests went to handlers")
		}
		front, err := rpc.Dial(t.Context(), s.addr, rpc.Options{Self: rpc.Self{Cluster: wire.ClusterID{1}, Role: wire.RoleFrontend, Proc: 8}, Arena: arena})
		if err != nil {
			t.Fatal(err)
		}
		m := &mutator{s: s, c: front, arena: arena, rng: rand.New(rand.NewPCG(1, 1)), lane: 100}
		m.ok("a put of a frontend", m.put(m.id(wire.ClassTable, 1), 1, make([]byte, format.BlockSize)), wire.KindPermission)
		_ = front.Close()
		s.stop()
	}
}
