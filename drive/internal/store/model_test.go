package store

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/wire"
)

// object is a strip or segment as the model knows it.
type object struct {
	id      wire.StripID
	data    []byte
	segment bool
	sealed  bool
}

// model is what one client did to one bucket and was told. At most one operation is in doubt: the one that a crash cut.
type model struct {
	t      testing.TB
	arena  *wire.Arena
	rng    *rand.Rand
	bucket wire.BucketID
	epoch  wire.Epoch
	number uint64
	live   map[wire.StripID]*object
	gone   []wire.StripID

	// What may have become true besides, by the operation in doubt.
	maybePut     *object
	maybeDeleted map[wire.StripID]bool
	maybeAppend  []byte // bytes after the acked ones of maybeSegment; whole records of it may be there
	maybeSegment wire.StripID
	maybeBounds  []int // ends of its records
	maybeSealed  wire.StripID
	maybeEpoch   wire.Epoch
}

func newModel(t testing.TB, arena *wire.Arena, seed uint64, bucket wire.BucketID) *model {
	return &model{
		t: t, arena: arena, rng: rand.New(rand.NewPCG(seed, uint64(bucket))), bucket: bucket, epoch: 1,
		live: map[wire.StripID]*object{}, maybeDeleted: map[wire.StripID]bool{},
	}
}

func (m *model) newID(c wire.Class) wire.StripID {
	m.number++
	return wire.MakeStripID(m.bucket, c, m.rng.IntN(6), m.number, 0, m.rng.Uint64())
}

func (m *model) pick(f func(o *object) bool) *object {
	var all []*object
	for _, o := range m.live {
		if f(o) {
			all = append(all, o)
		}
	}
	if len(all) == 0 {
		return nil
	}
	// Map order is random: choose the lowest of a random bound, so that the seed decides.
	var best *object
	bound := m.rng.Uint64N(m.number + 1)
	for _, o := range all {
		if best == nil || closer(o.id.Number(), best.id.Number(), bound) {
			best = o
		}
	}
	return best
}

func closer(a, b, bound uint64) bool {
	d := func(x uint64) uint64 { return max(x, bound) - min(x, bound) }
	return d(a) < d(b) || d(a) == d(b) && a < b
}

// step does a random operation. It gives an error when the device has crashed.
func (m *model) step(s *Store) error {
	switch n := m.rng.IntN(100); {
	case n < 40:
		return m.put(s)
	case n < 75:
		return m.append(s)
	case n < 80:
		return m.seal(s)
	case n < 92:
		return m.delete(s)
	case n < 95:
		return m.fence(s)
	case n < 97:
		return m.repeatPut(s)
	default:
		return m.checkOne(s)
	}
}

func (m *model) put(s *Store) error {
	id := m.newID(wire.ClassTable)
	data, sums := makeData(m.t, m.arena, m.rng, 1+m.rng.IntN(12))
	defer data.Release()
	o := &object{id: id, data: flat(data)}
	err := s.Put(context.Background(), m.epoch, id, sums, data)
	switch wire.KindOf(err) {
	case wire.KindNone:
		m.live[id] = o
	case wire.KindNoSpace:
		m.gone = append(m.gone, id)
	default:
		m.maybePut = o
		return err
	}
	return nil
}

func (m *model) repeatPut(s *Store) error {
	o := m.pick(func(o *object) bool { return !o.segment })
	if o == nil {
		return nil
	}
	data, sums := makeData(m.t, m.arena, m.rng, len(o.data)/format.BlockSize)
	defer data.Release()
	if err := s.Put(context.Background(), m.epoch, o.id, sums, data); wire.KindOf(err) != wire.KindExists && !crashed(err) {
		m.t.Errorf("a put of other content over a strip: %v", err)
	}
	return nil
}

func (m *model) append(s *Store) error {
	o := m.pick(func(o *object) bool { return o.segment && !o.sealed })
	if o == nil || m.rng.IntN(8) == 0 {
		o = &object{id: m.newID(wire.ClassLog), segment: true}
	}
	shape := make([]int, 1+m.rng.IntN(3))
	for i := range shape {
		shape[i] = max(0, m.rng.IntN(12)-6)
		if m.rng.IntN(50) == 0 {
			shape[i] = 60
		}
	}
	data := makeRecords(m.t, m.arena, m.rng, o.id, uint64(len(o.data)), shape)
	defer data.Release()
	n, err := s.Append(context.Background(), m.epoch, o.id, uint64(len(o.data)), data)
	switch wire.KindOf(err) {
	case wire.KindNone:
		o.data = append(o.data, flat(data)...)
		m.live[o.id] = o
		if n != uint64(len(o.data)) {
			m.t.Errorf("append to %s: length %d, want %d", o.id, n, len(o.data))
		}
		return nil
	case wire.KindNoSpace:
		return nil
	}
	m.maybeAppend, m.maybeSegment = flat(data), o.id
	m.maybeBounds = []int{0}
	for at := 0; at < data.Len(); {
		head := appendBytes(nil, data, at, format.BlockSize)
		r, _, _, derr := wire.DecodeSegHead(head)
		if derr != nil {
			m.t.Fatal(derr)
		}
		at += r.Bytes()
		m.maybeBounds = append(m.maybeBounds, at)
	}
	return err
}

func (m *model) seal(s *Store) error {
	o := m.pick(func(o *object) bool { return o.segment })
	if o == nil {
		return nil
	}
	n, err := s.Seal(context.Background(), m.epoch, o.id)
	if err != nil {
		m.maybeSealed = o.id
		return err
	}
	if n != uint64(len(o.data)) {
		m.t.Errorf("seal of %s: length %d, want %d", o.id, n, len(o.data))
	}
	o.sealed = true
	return nil
}

func (m *model) delete(s *Store) error {
	var ids []wire.StripID
	for range 1 + m.rng.IntN(3) {
		if o := m.pick(func(*object) bool { return true }); o != nil {
			ids = append(ids, o.id)
		}
	}
	if len(m.gone) > 0 {
		ids = append(ids, m.gone[m.rng.IntN(len(m.gone))])
	}
	err := s.Delete(context.Background(), m.epoch, ids)
	for _, id := range ids {
		if err != nil {
			m.maybeDeleted[id] = true
			continue
		}
		delete(m.live, id)
		m.gone = append(m.gone, id)
	}
	return err
}

func (m *model) fence(s *Store) error {
	next := m.epoch + 1
	if err := s.Fence(context.Background(), m.bucket, next); err != nil {
		m.maybeEpoch = next
		return err
	}
	id := m.newID(wire.ClassTable)
	data, sums := makeData(m.t, m.arena, m.rng, 1)
	defer data.Release()
	if err := s.Put(context.Background(), m.epoch, id, sums, data); wire.KindOf(err) != wire.KindStaleEpoch && !crashed(err) {
		m.t.Errorf("a put at epoch %d after fence %d: %v", m.epoch, next, err)
	}
	m.epoch = next
	return nil
}

func (m *model) checkOne(s *Store) error {
	o := m.pick(func(*object) bool { return true })
	if o == nil {
		return nil
	}
	got, kind := readAll(m.t, s, o.id, uint64(len(o.data)))
	if kind == wire.KindIO {
		return nil // crashed
	}
	if kind != wire.KindNone || !bytes.Equal(got, o.data) {
		m.t.Errorf("read of %s: %v, %d bytes, equal %t", o.id, kind, len(got), bytes.Equal(got, o.data))
	}
	return nil
}

func crashed(err error) bool { return wire.KindOf(err) == wire.KindIO }

// settle looks at an opened store, checks it against what was acknowledged, and learns what became of the operation in doubt.
func (m *model) settle(s *Store, name string) {
	m.t.Helper()
	have := map[wire.StripID]wire.ListEntry{}
	for _, c := range []wire.Class{wire.ClassTable, wire.ClassLog} {
		var after wire.StripID
		for {
			entries, more := s.List(m.bucket, c, after, 7)
			for _, e := range entries {
				if !after.IsZero() && !after.Less(e.ID) {
					m.t.Fatalf("%s: list is not in order", name)
				}
				have[e.ID], after = e, e.ID
			}
			if !more {
				break
			}
		}
	}
	if o := m.maybePut; o != nil {
		if _, ok := have[o.id]; ok {
			m.live[o.id] = o
		} else {
			m.gone = append(m.gone, o.id)
		}
	}
	for id := range m.maybeDeleted {
		if _, ok := have[id]; !ok {
			delete(m.live, id)
			m.gone = append(m.gone, id)
		}
	}
	if e, ok := have[m.maybeSegment]; ok && m.maybeAppend != nil {
		o := m.live[m.maybeSegment]
		if o == nil {
			o = &object{id: m.maybeSegment, segment: true}
			m.live[o.id] = o
		}
		for _, end := range m.maybeBounds {
			if e.Len == uint64(len(o.data)+end) {
				o.data = append(o.data, m.maybeAppend[:end]...)
				break
			}
		}
	}
	for id, o := range m.live {
		e, ok := have[id]
		if !ok {
			m.t.Fatalf("%s: %s is lost (segment %t)", name, id, o.segment)
		}
		delete(have, id)
		if id == m.maybeSealed {
			o.sealed = !e.Open
		}
		if e.Len != uint64(len(o.data)) || e.Open != (o.segment && !o.sealed) {
			m.t.Fatalf("%s: %s has length %d, open %t; want %d, segment %t, sealed %t", name, id, e.Len, e.Open, len(o.data), o.segment, o.sealed)
		}
		got, kind := readAll(m.t, s, id, uint64(len(o.data)))
		if kind != wire.KindNone || !bytes.Equal(got, o.data) {
			m.t.Fatalf("%s: %s (segment %t, sealed %t, %d bytes, runs %x) reads %v, %s", name, id, o.segment, o.sealed, len(o.data), s.idx.Runs(id), kind, difference(got, o.data))
		}
	}
	for id := range have {
		m.t.Fatalf("%s: %s is there, nobody put it or it was deleted", name, id)
	}
	if err := s.Put(context.Background(), m.epoch-1, m.newID(wire.ClassTable), nil, nil); wire.KindOf(err) == wire.KindNone {
		m.t.Fatalf("%s: empty put", name)
	}
	s.mu.RLock()
	epoch := s.epoch(m.bucket)
	s.mu.RUnlock()
	if m.maybeEpoch != 0 && epoch == m.maybeEpoch {
		m.epoch = epoch
	}
	if epoch > m.epoch || m.epoch > 1 && epoch < m.epoch {
		m.t.Fatalf("%s: the drive knows epoch %d, want %d", name, epoch, m.epoch)
	}
	m.maybePut, m.maybeAppend, m.maybeSegment, m.maybeSealed, m.maybeEpoch = nil, nil, wire.StripID{}, wire.StripID{}, 0
	clear(m.maybeDeleted)
}

// difference tells where bytes differ, and what is there.
func difference(got, want []byte) string {
	out := fmt.Sprintf("%d bytes, want %d:", len(got), len(want))
	for at := 0; at+format.BlockSize <= min(len(got), len(want)); at += format.BlockSize {
		if g, w := got[at:at+format.BlockSize], want[at:at+format.BlockSize]; !bytes.Equal(g, w) {
			r, _, _, err := wire.DecodeSegHead(g)
			out += fmt.Sprintf(" block %d (%x, want %x; record %s at %d %v)", at/format.BlockSize, g[:8], w[:8], r.ID, r.Offset, err)
		}
	}
	return out
}

// checkSpace verifies that free and used blocks are what the index says: nothing leaks.
func checkSpace(t testing.TB, s *Store, name string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	used := uint64(0)
	s.idx.Ascend(wire.StripID{}, func(st stripInfo) bool {
		used += uint64(format.RunsBlocks(s.idx.Runs(st.ID)))
		return true
	})
	if got := s.alloc.FreeBlocks(); got != s.sb.DataBlocks()-used {
		t.Fatalf("%s: %d blocks free, want %d", name, got, s.sb.DataBlocks()-used)
	}
	if s.growing != 0 || len(s.busy) != 0 || len(s.ops) != 0 {
		t.Fatalf("%s: growing %d, busy %d, ops %d", name, s.growing, len(s.busy), len(s.ops))
	}
}

// history runs clients against one device, crashes it at chosen IOs, and compares after each opening.
type history struct {
	t        testing.TB
	rng      *rand.Rand
	arena    *wire.Arena
	clients  []*model
	image    []byte
	alive    *blockio.CrashDevice // instead of image: the device survived the last process
	volatile bool
	tune     []func(s *Store) // of each store
}

// device gives the device as the last run left it.
func (h *history) device() *blockio.CrashDevice {
	if d := h.alive; d != nil {
		h.alive = nil
		return d
	}
	return blockio.NewCrashDevice(bytes.Clone(h.image), h.volatile)
}

// lose ends the life of a device: the process alone is killed, or the power is cut.
func (h *history) lose(dev *blockio.CrashDevice) {
	dev.Kill()
	if h.rng.IntN(3) == 0 {
		h.alive = dev.Survive(h.rng)
	} else {
		h.image = dev.Crash(h.rng)
	}
}

func newHistory(t testing.TB, arena *wire.Arena, seed uint64, clients int, volatile bool, sizeBytes int64) *history {
	h := &history{t: t, rng: rand.New(rand.NewPCG(seed, 99)), arena: arena, image: formatted(t, sizeBytes), volatile: volatile}
	for i := range clients {
		h.clients = append(h.clients, newModel(t, h.arena, seed, wire.BucketID(i)))
	}
	return h
}

// open opens the image, perhaps crashing in the middle of the recovery first.
func (h *history) open(name string) (*running, *blockio.CrashDevice) {
	for range h.rng.IntN(3) {
		dev := h.device()
		dev.CrashAfter(1 + h.rng.IntN(4))
		r, err := start(h.t, dev, h.arena, h.tune...)
		if err != nil && !dev.Crashed() {
			h.t.Fatalf("%s: open: %v", name, err)
		}
		h.lose(dev)
		if err == nil {
			_ = r.stop()
		}
	}
	dev := h.device()
	r, err := start(h.t, dev, h.arena, h.tune...)
	if err != nil {
		h.t.Fatalf("%s: open: %v", name, err)
	}
	return r, dev
}

// run opens, checks, and lets the clients work until the device crashes at its crashAt-th IO (0: after steps).
func (h *history) run(name string, steps, crashAt int) (ios int) {
	r, dev := h.open(name)
	checkSpace(h.t, r.Store, name)
	for _, m := range h.clients {
		m.settle(r.Store, name)
	}
	before := dev.IOs()
	dev.CrashAfter(crashAt)
	var wg sync.WaitGroup
	for _, m := range h.clients {
		wg.Go(func() {
			for range steps {
				if err := m.step(r.Store); err != nil {
					if !dev.Crashed() {
						h.t.Errorf("%s: %v", name, err)
					}
					return
				}
			}
		})
	}
	wg.Wait()
	ios = dev.IOs() - before
	if crashAt == 0 && h.rng.IntN(3) == 0 {
		if err := r.stop(); err != nil {
			h.t.Fatalf("%s: stop: %v", name, err)
		}
		h.image = dev.Crash(h.rng)
		return ios
	}
	h.lose(dev)
	_ = r.stop()
	return ios
}

// TestCrashEverywhere: killed at any write, every acknowledged operation is there, every other one wholly or not at all.
// A short history is cut at each of its IOs.
func TestCrashEverywhere(t *testing.T) {
	for _, volatile := range []bool{false, true} {
		t.Run(fmt.Sprintf("volatile=%t", volatile), func(t *testing.T) {
			t.Parallel()
			arena, seeds := newArena(t), 2
			if testing.Short() {
				seeds = 1
			}
			for seed := range seeds {
				ios := newHistory(t, arena, uint64(seed), 1, volatile, 2<<20).run("probe", 40, 0)
				for at := 1; at <= ios; at++ {
					h := newHistory(t, arena, uint64(seed), 1, volatile, 2<<20)
					name := fmt.Sprintf("seed %d, crash at %d of %d", seed, at, ios)
					h.run(name, 40, at)
					h.run(name+", after", 10, 0)
					h.run(name+", at last", 0, 0)
				}
			}
		})
	}
}

// TestCrashHistories: long random histories of several clients at once, crashed again and again, also in recovery.
func TestCrashHistories(t *testing.T) {
	seed := rand.Uint64()
	for i := range 6 {
		volatile := i%2 == 0
		t.Run(fmt.Sprintf("seed=%d,volatile=%t", seed+uint64(i), volatile), func(t *testing.T) {
			t.Parallel()
			h := newHistory(t, newArena(t), seed+uint64(i), 1+i%4, volatile, 5<<20)
			for round := range 25 {
				h.run(fmt.Sprintf("round %d", round), 150, 1+h.rng.IntN(600))
				if t.Failed() {
					return
				}
			}
			h.run("the end", 50, 0)
			h.run("after the end", 0, 0)
		})
	}
}
