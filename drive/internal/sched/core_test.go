package sched

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// model is a device that does what the core lets begin, oldest first, and counts.
type model struct {
	t     testing.TB
	c     *core
	under []*Item
	done  map[*Item]bool
	bytes [NumClasses]int // ended
	flows map[uint64]int  // bytes ended of a flow
	order []*Item         // as they began
}

func newModel(t testing.TB, l Limits) *model {
	return &model{t: t, c: newCore(l), done: map[*Item]bool{}, flows: map[uint64]int{}}
}

func (m *model) enter(k Class, flow uint64, bytes int) *Item {
	it := &Item{Class: k, Flow: flow, Bytes: bytes}
	if m.c.enter(it) {
		m.begun(it)
	}
	return it
}

func (m *model) begun(it *Item) {
	m.under = append(m.under, it)
	m.order = append(m.order, it)
	m.check()
}

// check verifies the bounds: at most the last one that began goes beyond the bytes.
func (m *model) check() {
	m.t.Helper()
	var all Load
	var per [NumClasses]Load
	for _, it := range m.under {
		for _, l := range []*Load{&all, &per[it.Class]} {
			l.IOs++
			l.Bytes += it.Bytes
		}
	}
	last := m.under[len(m.under)-1]
	l := &m.c.limits
	if all.IOs > l.IOs || all.Bytes-last.Bytes >= l.Bytes {
		m.t.Fatalf("%+v under way, the bound is %+v", all, l.Load)
	}
	if c := l.Classes[last.Class]; per[last.Class].IOs > c.IOs || per[last.Class].Bytes-last.Bytes >= c.Bytes {
		m.t.Fatalf("class %d: %+v under way, the bound is %+v", last.Class, per[last.Class], c.Load)
	}
	if all != m.c.load || per != [NumClasses]Load{m.c.classes[0].load, m.c.classes[1].load, m.c.classes[2].load, m.c.classes[3].load} {
		m.t.Fatalf("the books say %+v, it is %+v", m.c.load, all)
	}
}

// end ends the i-th IO under way and lets others begin.
func (m *model) end(i int) {
	it := m.under[i]
	m.under = append(m.under[:i], m.under[i+1:]...)
	m.done[it] = true
	m.bytes[it.Class] += it.Bytes
	m.flows[it.Flow] += it.Bytes
	m.c.leave(it)
	for it := m.c.next(); it != nil; it = m.c.next() {
		m.begun(it)
	}
}

// oneAtATime bounds the device to one IO, so that the order is the core's alone.
func oneAtATime() Limits {
	l := DefaultLimits()
	l.IOs = 1
	return l
}

// TestWeights: when all classes want more than there is, each gets its share; and those that want something when others do not get
// all of it.
func TestWeights(t *testing.T) {
	for _, c := range []struct {
		name  string
		want  []Class
		bytes int
	}{
		{"all", []Class{ClientRead, ClientWrite, Rebuild, Scrub}, 4096},
		{"all, long", []Class{ClientRead, ClientWrite, Rebuild, Scrub}, 128 << 10},
		{"reads and writes", []Class{ClientRead, ClientWrite}, 4096},
		{"writes and scrub", []Class{ClientWrite, Scrub}, 16384},
		{"rebuild and scrub", []Class{Rebuild, Scrub}, 4096},
		{"scrub alone", []Class{Scrub}, 4096},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newModel(t, oneAtATime())
			sum := 0
			for _, k := range c.want {
				sum += m.c.limits.Classes[k].Weight
				for range 3 {
					m.enter(k, 1, c.bytes)
				}
			}
			const rounds = 20000
			for range rounds {
				k := m.under[0].Class
				m.end(0)
				m.enter(k, 1, c.bytes)
			}
			for _, k := range c.want {
				want := rounds * c.bytes * m.c.limits.Classes[k].Weight / sum
				if got := m.bytes[k]; got < want*98/100 || got > want*102/100 {
					t.Errorf("class %d got %d bytes, its share is %d", k, got, want)
				}
			}
		})
	}
}

// TestReadGoesFirst: a client read that comes when much of everything else waits is next.
func TestReadGoesFirst(t *testing.T) {
	m := newModel(t, oneAtATime())
	for i := range 300 {
		m.enter(ClientWrite, uint64(i%5), 128<<10)
		m.enter(Rebuild, 7, 128<<10)
		m.enter(Scrub, 0, 128<<10)
	}
	for range 100 {
		for range 7 {
			m.end(0)
		}
		it := m.enter(ClientRead, 9, 4096)
		m.end(0)
		if m.under[0] != it {
			t.Fatalf("class %d is next, not the read", m.under[0].Class)
		}
	}
}

// TestFlowsTakeTurns: within a class, a connection with one IO waits for at most one of each other connection, however many these
// have brought; and those that always have something waiting get the same, by bytes, whatever the size of their IOs.
func TestFlowsTakeTurns(t *testing.T) {
	m := newModel(t, oneAtATime())
	for range 256 {
		m.enter(ClientRead, 1, 4096)
		m.enter(ClientRead, 2, 4096)
	}
	for range 50 {
		m.end(0)
	}
	it, from := m.enter(ClientRead, 3, 4096), len(m.order)
	for !m.done[it] {
		m.end(0)
	}
	if n := len(m.order) - from; n > 4 {
		t.Errorf("it waited for %d IOs of two others", n)
	}

	m = newModel(t, oneAtATime())
	sizes := map[uint64]int{1: 1 << 20, 2: 128 << 10, 3: 64 << 10}
	for flow, bytes := range sizes {
		for range 4 {
			m.enter(ClientWrite, flow, bytes)
		}
	}
	for range 20000 {
		it := m.under[0]
		m.end(0)
		m.enter(ClientWrite, it.Flow, it.Bytes)
	}
	for flow := range sizes {
		if a, b := m.flows[flow], m.flows[1]; a < b*9/10 || a > b*11/10 {
			t.Errorf("flow %d has got %d bytes, flow 1 %d", flow, a, b)
		}
	}
}

// TestBoundsOfClasses: with the device to themselves classes have what they may have under way and no more, and leave room for reads.
func TestBoundsOfClasses(t *testing.T) {
	m := newModel(t, DefaultLimits())
	for range 200 {
		for k := ClientWrite; k < NumClasses; k++ {
			m.enter(k, 1, 4096)
		}
	}
	if got := m.c.classes[ClientWrite].load.IOs; got != 32 {
		t.Errorf("%d writes under way", got)
	}
	m = newModel(t, DefaultLimits())
	for range 200 {
		m.enter(ClientWrite, 1, 128<<10)
		m.enter(Scrub, 1, 128<<10)
	}
	for range 200 {
		m.enter(ClientWrite, 1, 4096)
		m.enter(Rebuild, 1, 4096)
	}
	for range 16 {
		m.enter(ClientRead, 1, 4096)
	}
	if got := m.c.classes[ClientRead].load.IOs; got != 16 {
		t.Errorf("only %d of 16 reads began while all others had their fill", got)
	}
	if got := m.c.classes[Scrub].load.Bytes; got != 512<<10 {
		t.Errorf("%d bytes of scrub under way", got)
	}
}

// TestLongIO: one that is longer than the bound begins all the same.
func TestLongIO(t *testing.T) {
	m := newModel(t, DefaultLimits())
	for range 3 {
		m.enter(Scrub, 1, 64<<20)
	}
	for range 3 {
		m.end(0)
	}
	if m.bytes[Scrub] != 3*64<<20 {
		t.Error("a long IO never began")
	}
}

// TestCappedClassSavesNothing: a class that its own bound holds back does not take the device from the others later.
func TestCappedClassSavesNothing(t *testing.T) {
	m := newModel(t, DefaultLimits())
	for range 2000 {
		m.enter(Scrub, 1, 4096)
	}
	for range 20000 { // reads alone end: the scrub is stuck at its bound
		m.enter(ClientRead, 1, 4096)
		for i, it := range m.under {
			if it.Class == ClientRead {
				m.end(i)
				break
			}
		}
	}
	for range 100 {
		m.enter(ClientRead, 1, 4096)
	}
	from := len(m.order)
	for range 400 {
		m.end(0)
		m.enter(ClientRead, 1, 4096)
	}
	scrubs := 0
	for _, it := range m.order[from:] {
		if it.Class == Scrub {
			scrubs++
		}
	}
	if scrubs > 400/10 {
		t.Errorf("%d of 400 IOs were of the scrub", scrubs)
	}
}

// TestCancel: an item that waits can be taken back from anywhere in its queue; one that has begun cannot.
func TestCancel(t *testing.T) {
	for taken := range 6 {
		t.Run(fmt.Sprint(taken), func(t *testing.T) {
			m := newModel(t, oneAtATime())
			running := m.enter(ClientRead, 1, 4096)
			if m.c.cancel(running) {
				t.Error("taken back while under way")
			}
			var items []*Item
			for i := range 6 {
				items = append(items, m.enter(ClientRead, uint64(i/3), 4096))
			}
			if !m.c.cancel(items[taken]) || m.c.cancel(items[taken]) {
				t.Error("want it to be taken back once")
			}
			for len(m.under) > 0 {
				m.end(0)
			}
			for i, it := range items {
				if m.done[it] == (i == taken) {
					t.Errorf("item %d: done is %t", i, m.done[it])
				}
			}
		})
	}
}

// TestRandom: whatever comes in whatever order, the bounds hold (model.check), nobody that waits is kept out while there is room, every IO
// is done once, within a flow and class in order, and flows are forgotten.
func TestRandom(t *testing.T) {
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 1))
		l := DefaultLimits()
		l.IOs, l.Bytes = 1+rng.IntN(70), 1+rng.IntN(4<<20)
		m := newModel(t, l)
		var all []*Item
		cancelled := map[*Item]bool{}
		for range 600 {
			switch n := rng.IntN(10); {
			case n < 5:
				for range 1 + rng.IntN(4) {
					all = append(all, m.enter(Class(rng.IntN(int(NumClasses))), rng.Uint64N(200), 4096*(1+rng.IntN(64))))
				}
			case n < 9 && len(m.under) > 0:
				m.end(rng.IntN(len(m.under)))
			case len(all) > 0:
				it := all[rng.IntN(len(all))]
				if waits := it.flow != nil; m.c.cancel(it) != waits {
					t.Fatal("cancel and the queue do not agree")
				} else if waits {
					cancelled[it] = true
				}
			}
			for k := range m.c.classes {
				if m.c.classes[k].waiting > 0 && m.c.fits(Class(k)) {
					t.Fatalf("seed %d: class %d waits though there is room", seed, k)
				}
				if n, bound := len(m.c.classes[k].flows), 3*len(m.c.classes[k].heap)+2*maxIdleFlows; n > bound {
					t.Fatalf("seed %d: %d flows are remembered, %d have something waiting", seed, n, len(m.c.classes[k].heap))
				}
			}
		}
		for len(m.under) > 0 {
			m.end(rng.IntN(len(m.under)))
		}
		for i, it := range all {
			if m.done[it] == cancelled[it] {
				t.Fatalf("seed %d: item %d: done %t, cancelled %t", seed, i, m.done[it], cancelled[it])
			}
		}
		checkOrder(t, m, all)
		if m.c.waiting != 0 || m.c.load != (Load{}) {
			t.Fatalf("seed %d: at the end %d wait, %+v under way", seed, m.c.waiting, m.c.load)
		}
	}
}

// checkOrder verifies that IOs of a flow and class began in the order of their arrival.
func checkOrder(t *testing.T, m *model, all []*Item) {
	t.Helper()
	type queue struct {
		k    Class
		flow uint64
	}
	number := map[*Item]int{}
	for i, it := range all {
		number[it] = i
	}
	last := map[queue]int{}
	for _, it := range m.order {
		q := queue{it.Class, it.Flow}
		if n := number[it]; n < last[q] {
			t.Fatalf("IO %d of flow %d began after %d", n, it.Flow, last[q])
		}
		last[q] = number[it]
	}
}

// TestVirtualTimeWraps: a wrap of the virtual times changes nothing.
func TestVirtualTimeWraps(t *testing.T) {
	m := newModel(t, oneAtATime())
	near := ^uint64(0) - 100*weightScale
	m.c.now = near
	for i := range m.c.classes {
		m.c.classes[i].tag, m.c.classes[i].now = near, ^uint64(0)-500
	}
	for k := range NumClasses {
		m.enter(k, 1, 4096)
		m.enter(k, 2, 4096)
	}
	const rounds = 50000
	for range rounds {
		it := m.under[0]
		m.end(0)
		m.enter(it.Class, it.Flow, 4096)
	}
	if before(near, m.c.now) && m.c.now > near {
		t.Fatal("the test did not reach the wrap")
	}
	if got := m.bytes[Scrub]; got < rounds*4096*2/100 || got > rounds*4096*3/100 {
		t.Errorf("the scrub has got %d of %d bytes", got, rounds*4096)
	}
}
