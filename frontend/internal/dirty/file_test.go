package dirty

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"

	"github.com/crakefs/crake/wire"
)

const modelBytes = 3*ChunkBytes + 5*wire.BlockSize

// model drives a File beside an array of bytes: want is what a reader must see, cluster what has been committed.
type model struct {
	t       testing.TB
	arena   *wire.Arena
	f       File
	want    []byte
	cluster []byte
	srvEnd  uint64 // nothing in the cluster from here on
	flights []*Batch
	live    int // Mems
	lent    []lent
}

// lent is what somebody still reads after a sending has failed: it must stay as it was.
type lent struct {
	data wire.Data
	was  []byte
}

func flat(d wire.Data) (b []byte) {
	for _, s := range d {
		b = append(b, s.B...)
	}
	return b
}

// keep lends what b holds to somebody who goes on reading after the sending has failed.
func (m *model) keep(b *Batch) {
	b.Runs(func(_ uint64, data wire.Data) {
		m.lent = append(m.lent, lent{data.Retain(), flat(data)})
	})
}

// giveBack checks that what is lent is as it was, and ends the loans.
func (m *model) giveBack() {
	for _, l := range m.lent {
		if !bytes.Equal(flat(l.data), l.was) {
			m.t.Fatal("memory was written while others read it")
		}
		l.data.Release()
	}
	m.lent = nil
}

func newModel(t testing.TB) *model {
	a, err := wire.NewArena(64 << 20)
	if err != nil {
		t.Fatal(err)
	}
	return &model{t: t, arena: a, want: make([]byte, modelBytes), cluster: make([]byte, modelBytes)}
}

func (m *model) mem(blocks int) *Mem {
	if blocks == 0 {
		return nil
	}
	b, err := m.arena.Alloc(context.Background(), blocks*wire.BlockSize)
	if err != nil {
		m.t.Fatal(err)
	}
	for i := range b.Bytes() {
		b.Bytes()[i] = 0xee // arbitrary contents, as of used memory
	}
	m.live++
	return NewMem(b, func() { m.live-- })
}

func (m *model) write(off uint64, p []byte) {
	copy(m.want[off:], p)
	for len(p) > 0 {
		n := InChunk(off, len(p))
		if block, frozen, gap := m.f.Gap(off, n); gap {
			if frozen {
				m.land(true)
			} else {
				var mem *Mem
				if m.f.Lent(block) {
					mem = m.mem(1)
				}
				m.f.Fill(block, m.cluster[block*wire.BlockSize:][:wire.BlockSize], mem)
				mem.Release()
			}
			continue
		}
		mem := m.mem(m.f.Need(off, n))
		m.f.Put(off, p[:n], mem, m.srvEnd)
		mem.Release()
		off += uint64(n)
		p = p[n:]
	}
}

func (m *model) take(off, n uint64, maxBytes int) {
	b := m.f.Take(off, n, maxBytes)
	if b.Len() > 0 {
		m.flights = append(m.flights, b)
	}
}

// land ends all flights.
func (m *model) land(ok bool) {
	rand.Shuffle(len(m.flights), func(i, j int) { m.flights[i], m.flights[j] = m.flights[j], m.flights[i] })
	for _, b := range m.flights {
		alloc := func() (*wire.Buf, error) { return m.arena.Alloc(context.Background(), wire.BlockSize) }
		_ = b.Partial(alloc, func(off uint64, block []byte, lo, hi int) error {
			copy(block[:lo], m.cluster[off:])
			copy(block[hi:], m.cluster[off+uint64(hi):])
			return nil
		})
		if !ok {
			if rand.IntN(2) == 0 {
				m.keep(b)
			}
			m.f.Undo(b)
			continue
		}
		b.Runs(func(off uint64, data wire.Data) {
			for _, s := range data {
				copy(m.cluster[off:], s.B)
				off += uint64(len(s.B))
			}
		})
		m.srvEnd = max(m.srvEnd, b.End())
		m.f.Done(b)
	}
	m.flights = nil
}

func (m *model) truncate(size uint64) {
	m.land(true)
	m.f.Truncate(size)
	clear(m.want[size:])
	clear(m.cluster[size:])
	m.srvEnd = min(m.srvEnd, size)
}

func (m *model) drop(off, n uint64) {
	m.land(true)
	m.f.Drop(off, n)
	clear(m.want[off : off+n])
	clear(m.cluster[off : off+n])
}

func (m *model) check(off, n uint64) {
	got := bytes.Clone(m.cluster[off : off+n])
	var covered, last uint64 = 0, off
	m.f.CopyTo(got, off, func(from, to uint64) {
		if from < last || to > off+n || to <= from {
			m.t.Fatalf("CopyTo told %d-%d after %d", from, to, last)
		}
		last = to
		covered += to - from
	})
	if some := m.f.Some(off, n); some != (covered > 0) {
		m.t.Fatalf("Some says %v, copied %d of %d", some, covered, n)
	}
	if !bytes.Equal(got, m.want[off:off+n]) {
		for i := range got {
			if got[i] != m.want[off+uint64(i)] {
				m.t.Fatalf("byte %d (block %d + %d) is %#x, want %#x", off+uint64(i),
					(off+uint64(i))/wire.BlockSize, (off+uint64(i))%wire.BlockSize, got[i], m.want[off+uint64(i)])
			}
		}
	}
}

// run plays a program: 4 bytes a step.
func (m *model) run(prog []byte) {
	const maxOff = modelBytes - 1
	seed := byte(1)
	for ; len(prog) >= 5; prog = prog[5:] {
		off := (uint64(prog[1])<<8 | uint64(prog[2])) * 997 % maxOff
		n := min(uint64(prog[3])<<8|uint64(prog[4]), modelBytes-off)
		block := off / wire.BlockSize * wire.BlockSize
		switch prog[0] % 10 {
		case 0, 1, 2:
			n = min(n, 9000)
			fallthrough
		case 3:
			p := make([]byte, n)
			for i := range p {
				p[i] = seed + byte(i*7)
			}
			seed += 31
			m.write(off, p)
		case 4:
			m.take(off, n, 16*wire.BlockSize)
		case 5:
			m.take(0, modelBytes, modelBytes)
		case 6:
			m.land(prog[1]&1 == 0)
		case 7:
			m.truncate(off)
		case 8:
			m.drop(block, min(n/wire.BlockSize*wire.BlockSize, modelBytes-block))
		case 9:
			m.check(off, n)
			if prog[4]&3 == 0 {
				m.giveBack()
			}
		}
	}
	m.check(0, modelBytes)
	m.land(false)
	m.check(0, modelBytes)
	for i := 0; !m.f.Clean(); i++ {
		if i > 1000 {
			m.t.Fatal("never clean")
		}
		m.take(0, modelBytes, 64*wire.BlockSize)
		m.land(true)
	}
	if !bytes.Equal(m.cluster, m.want) {
		m.t.Fatal("the cluster has other bytes than were written")
	}
	m.giveBack()
	if m.live != 0 || len(m.f.chunks) != 0 || m.arena.Used() != 0 {
		m.t.Fatalf("%d pieces of memory, %d chunks and %d bytes of the arena left", m.live, len(m.f.chunks), m.arena.Used())
	}
}

// Claim: what a reader sees is what was written last, whatever is in flight, fails, is truncated or punched; and in the
// end the cluster has exactly that, and all memory is free.
func TestModel(t *testing.T) {
	rounds := 200
	if testing.Short() {
		rounds = 30
	}
	for seed := range rounds {
		r := rand.New(rand.NewPCG(uint64(seed), 1))
		prog := make([]byte, 5*200)
		for i := range prog {
			prog[i] = byte(r.Uint32())
		}
		newModel(t).run(prog)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func FuzzModel(f *testing.F) {
	f.Add([]byte("\x00\x00\x01\x00\x40\x05\x00\x00\x00\x00\x00\x00\x01\x02\x40\x06\x01\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, prog []byte) {
		if len(prog) <= 5*100 {
			newModel(t).run(prog)
		}
	})
}

// Claim: a stripe is ready only when each of its blocks is whole, and not while one of them is under way.
func TestReady(t *testing.T) {
	m := newModel(t)
	const stripe = 4 * ChunkBytes
	m.want, m.cluster = make([]byte, stripe), make([]byte, stripe)
	m.srvEnd = stripe // so that blocks written in part are not whole
	m.write(0, make([]byte, stripe-1))
	if m.f.Ready(0, stripe) {
		t.Error("ready with a block that lacks a byte")
	}
	m.write(stripe-1, []byte{1})
	if !m.f.Ready(0, stripe) {
		t.Error("not ready though complete")
	}
	m.take(wire.BlockSize, wire.BlockSize, stripe)
	if m.f.Ready(0, stripe) {
		t.Error("ready with a block under way")
	}
	if off, ok := m.f.First(); !ok || off != 0 {
		t.Errorf("first to send is %d %v", off, ok)
	}
	m.land(false)
	if !m.f.Ready(0, stripe) {
		t.Error("not ready though it came back")
	}
	if b := m.f.Take(0, stripe, stripe); b.Bytes() != stripe || b.End() != stripe {
		t.Errorf("took %d bytes up to %d", b.Bytes(), b.End())
	} else {
		runs := 0
		b.Runs(func(off uint64, data wire.Data) {
			runs++
			if off != 0 || data.Len() != stripe {
				t.Errorf("run of %d at %d", data.Len(), off)
			}
		})
		if runs != 1 {
			t.Errorf("%d runs", runs)
		}
		m.f.Done(b)
	}
}

// Claim: a block that was written in part, came back from a failed sending and is still read by others is truncated and completed
// without their seeing it.
func TestLentBlockIsFilled(t *testing.T) {
	m := newModel(t)
	m.srvEnd = modelBytes
	for i := range m.cluster {
		m.cluster[i], m.want[i] = 7, 7
	}
	m.write(100, []byte("hello"))
	m.take(0, wire.BlockSize, wire.BlockSize)
	b := m.flights[0]
	alloc := func() (*wire.Buf, error) { return m.arena.Alloc(t.Context(), wire.BlockSize) }
	if err := b.Partial(alloc, func(_ uint64, block []byte, lo, hi int) error {
		copy(block[:lo], m.cluster)
		copy(block[hi:], m.cluster[hi:])
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	m.keep(b)
	m.f.Undo(b)
	m.flights = nil
	if !m.f.Lent(0) {
		t.Error("not lent though others hold it")
	}
	m.truncate(103)
	m.want, m.cluster = m.want[:modelBytes], m.cluster[:modelBytes]
	m.srvEnd = modelBytes // others may have written since
	m.write(2000, []byte("gap"))
	m.check(0, wire.BlockSize)
	m.giveBack()
}
