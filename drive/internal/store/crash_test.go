package store

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/cespare/xxhash/v2"

	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/wire"
)

// This file is the exhaustive half of the crash tests (model_test.go has the random one): a short history with every kind of
// operation is run once on a device that remembers its writes and flushes; then the power is cut at each of them, each subset of
// what no flush had covered is kept, each write of it torn too, and what opens must be a state that the acknowledged operations
// allow. The opening itself is cut in the same way, and so is a second history on what opened.

// tape is a device in memory that remembers its writes and flushes.
type tape struct {
	blockio.Device
	volatile bool
	single   bool // can make single writes durable: start hides WriteDurable of others

	mu    sync.Mutex
	start []byte // content at the beginning
	cur   []byte
	ios   []tapeIO
	hook  func(off int64) // before a write; for the test to do something at that moment
	// before counts the IOs of an earlier life, which no flush had covered: see survivors.
	before int
}

// tapeIO is a write, or a flush if data is nil.
type tapeIO struct {
	off  int64
	data []byte
	// durable says that it is so when it has returned.
	durable bool
	// pair says that the write began before the one before it was known to have ended.
	pair bool
}

func newTape(image []byte, volatile bool) *tape {
	return &tape{start: image, cur: bytes.Clone(image), volatile: volatile}
}

func (d *tape) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.ios)
}

func (d *tape) ReadAt(p []byte, off int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(p, d.cur[off:])
	return nil
}

func (d *tape) WriteAt(p []byte, off int64) error { return d.write(p, off, false) }

func (d *tape) WriteDurable(p []byte, off int64) error { return d.write(p, off, true) }

func (d *tape) write(p []byte, off int64, durable bool) error {
	d.mu.Lock()
	hook := d.hook
	d.mu.Unlock()
	if hook != nil {
		hook(off)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ios = append(d.ios, tapeIO{off: off, data: bytes.Clone(p), durable: durable})
	copy(d.cur[off:], p)
	return nil
}

func (d *tape) WriteVecAt(parts [][]byte, off int64) error {
	return d.WriteAt(slices.Concat(parts...), off)
}

func (d *tape) Flush() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.volatile {
		d.ios = append(d.ios, tapeIO{})
	}
	return nil
}

func (d *tape) Discard(int64, int64) error { return nil }
func (d *tape) Size() int64                { return int64(len(d.cur)) }
func (d *tape) Close() error               { return nil }
func (d *tape) Info() blockio.Info {
	return blockio.Info{Path: "tape", Engine: "memory", Flush: "test", NeedsFlush: d.volatile, Direct: true}
}

// cut gives what is durable for sure when the k-th IO is under way, 1 <= k <= len(ios)+1, and the writes of which any part may
// be there. IOs after the k-th never began. k = len(ios)+1 is a cut after the last one.
func (d *tape) cut(k int) (durable []byte, pending []tapeIO) {
	durable = bytes.Clone(d.start)
	under := d.firstUnderWay(k)
	for i, io := range d.ios[:min(k, len(d.ios))] {
		if io.durable && i < under {
			copy(durable[io.off:], io.data) // nothing that was written there before is pending: acked blocks are not written again
		} else if io.data != nil {
			pending = append(pending, io)
		} else if i != k-1 {
			for _, w := range pending {
				copy(durable[w.off:], w.data)
			}
			pending = nil
		}
	}
	if d.volatile {
		return durable, pending
	}
	for keep := min(k, len(d.ios)) - under; len(pending) > keep; { // what returned is durable
		copy(durable[pending[0].off:], pending[0].data)
		pending = pending[1:]
	}
	return durable, pending
}

// firstUnderWay gives the index of the first IO that may be under way when the k-th is.
func (d *tape) firstUnderWay(k int) int {
	i := k - 1
	for i < len(d.ios) && i > 0 && d.ios[i].pair {
		i--
	}
	return i
}

// crashes calls f with each content that a power cut may leave at the k-th IO; see cut. partly says that some of the
// writes that no flush covered are there and some are not. f must not keep the bytes.
func (d *tape) crashes(k int, f func(what string, image []byte, partly bool)) {
	durable, pending := d.cut(k)
	if len(pending) > 12 {
		panic("too many writes without a flush for a test of all subsets")
	}
	img := make([]byte, len(durable))
	all := 1<<len(pending) - 1
	for subset := range all + 1 {
		copy(img, durable)
		for i, w := range pending {
			if subset>>i&1 == 1 {
				copy(img[w.off:], w.data)
			}
		}
		f(fmt.Sprintf("IO %d of %d, subset %b of %d", k, len(d.ios), subset, len(pending)), img, subset != 0 && subset != all)
	}
	for torn, w := range pending { // one torn, all others there or none
		for _, others := range []bool{true, false} {
			for pattern := range 3 {
				copy(img, durable)
				for i, o := range pending {
					if others && i != torn {
						copy(img[o.off:], o.data)
					}
				}
				tear(img[w.off:], w.data, pattern)
				f(fmt.Sprintf("IO %d of %d, write %d of %d torn (%d), others %t", k, len(d.ios), torn, len(pending), pattern, others), img, true)
			}
		}
	}
}

// survivor gives the device as it goes on when the process alone is killed at the k-th IO: all that was written is seen, what no
// flush had covered can still be lost.
func (d *tape) survivor(k int) *tape {
	n := &tape{volatile: d.volatile}
	n.start, n.ios = d.cut(k)
	n.before = len(n.ios)
	n.cur = bytes.Clone(n.start)
	for _, w := range n.ios {
		copy(n.cur[w.off:], w.data)
	}
	return n
}

// tear writes some sectors of data: the first half of them, the second, or every other one.
func tear(dst, data []byte, pattern int) {
	const sector = 512
	for at := 0; at < len(data); at += sector {
		first := at < len(data)/2
		if pattern == 0 && first || pattern == 1 && !first || pattern == 2 && at/sector%2 == 1 {
			copy(dst[at:], data[at:at+sector])
		}
	}
}

// content is what a store holds: what reads and lists show, and epochs.
type content struct {
	strips map[wire.StripID]string // bytes; a segment's begin with 's' when sealed and 'o' when open
	epoch  wire.Epoch              // of bucket 1
}

func (c content) clone() content { return content{strips: maps.Clone(c.strips), epoch: c.epoch} }

func (c content) equal(o content) bool { return c.epoch == o.epoch && maps.Equal(c.strips, o.strips) }

func (c content) String() string {
	out := fmt.Sprintf("epoch %d", c.epoch)
	ids := slices.SortedFunc(maps.Keys(c.strips), wire.StripID.Compare)
	for _, id := range ids {
		b := c.strips[id]
		out += fmt.Sprintf("; %s %d bytes %x %x", id, len(b), b[:1], xxhash.Sum64String(b))
	}
	return out
}

// contentOf reads all that a store has of bucket 1.
func contentOf(t testing.TB, s *Store) content {
	t.Helper()
	c := content{strips: map[wire.StripID]string{}}
	for _, class := range []wire.Class{wire.ClassTable, wire.ClassLog} {
		entries, _ := s.List(1, class, wire.StripID{}, 0)
		for _, e := range entries {
			b, kind := readAll(t, s, e.ID, e.Len)
			if kind != wire.KindNone {
				t.Fatalf("%s: %v", e.ID, kind)
			}
			switch {
			case e.Open:
				b = append([]byte("o"), b...)
			case class == wire.ClassLog:
				b = append([]byte("s"), b...)
			}
			c.strips[e.ID] = string(b)
		}
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	c.epoch = s.epoch(1)
	return c
}

// moment is an operation of a history: between IO begin and IO end anything of accept may be found; after end only after.
type moment struct {
	name       string
	begin, end int // IOs before it began, and when it was acknowledged
	accept     []content
	after      content
	also       []content // what may be found besides after
}

// scripted is a history that is written down.
type scripted struct {
	t       testing.TB
	arena   *wire.Arena
	rng     *rand.Rand
	dev     *tape
	s       *running
	now     content
	moments []moment
}

// do runs an operation that makes next of now; partly are further states that a crash in it may leave.
func (h *scripted) do(name string, next content, partly []content, f func() error) {
	h.t.Helper()
	m := moment{name: name, begin: h.dev.count(), accept: append([]content{h.now, next}, partly...), after: next}
	if err := f(); err != nil {
		h.t.Fatalf("%s: %v", name, err)
	}
	m.end = h.dev.count()
	h.now = next
	h.moments = append(h.moments, m)
}

// epoch is what operations carry.
func (h *scripted) epoch() wire.Epoch { return max(h.now.epoch, 1) }

func (h *scripted) put(n uint64, blocks int) {
	data, sums := makeData(h.t, h.arena, h.rng, blocks)
	defer data.Release()
	undone := h.now.clone() // what remains of a put that opening undoes: its epoch was seen
	undone.epoch = h.epoch()
	next := undone.clone()
	next.strips[tableID(n)] = string(flat(data))
	from := h.dev.count()
	h.do("put", next, []content{undone}, func() error { return h.s.Put(context.Background(), h.epoch(), tableID(n), sums, data) })
	h.dev.mu.Lock()
	defer h.dev.mu.Unlock()
	if from+1 < len(h.dev.ios) && h.dev.ios[from+1].data != nil {
		h.dev.ios[from+1].pair = true // record and data are written at once
	}
}

// burst starts an append and two puts, and begins them by one Kick: all that they write is under way at once, by one journal record
// batch and one flush.
func (h *scripted) burst(log, first, second uint64) {
	w := make([]*Writing, 3)
	var wg sync.WaitGroup
	add := make([]func(c content), len(w))
	for i := range w {
		w[i] = &Writing{Epoch: h.epoch(), Ended: func(w *Writing) {
			if w.Err != nil {
				h.t.Error(w.Err)
			}
			wg.Done()
		}}
	}
	old := h.now.strips[logID(log)]
	w[0].ID, w[0].Offset = logID(log), uint64(len(old)-1)
	w[0].Data = makeRecords(h.t, h.arena, h.rng, w[0].ID, w[0].Offset, []int{0})
	add[0] = func(c content) { c.strips[w[0].ID] = old + string(flat(w[0].Data)) }
	for i, n := range []uint64{first, second} {
		p := w[i+1]
		p.ID = tableID(n)
		p.Data, p.Sums = makeData(h.t, h.arena, h.rng, 1+i)
		add[i+1] = func(c content) { c.strips[p.ID] = string(flat(p.Data)) }
	}
	var states []content
	for subset := range 1 << len(w) {
		c := h.now.clone()
		c.epoch = h.epoch()
		for i := range w {
			if subset>>i&1 == 1 {
				add[i](c)
			}
		}
		states = append(states, c)
	}
	from, batches := h.dev.count(), h.s.journal.count.Load()
	h.do("burst", states[len(states)-1], states, func() error {
		wg.Add(len(w))
		if !h.s.StartAppend(w[0]) || !h.s.StartPut(w[1]) || !h.s.StartPut(w[2]) {
			h.t.Fatal("not taken")
		}
		h.s.Kick()
		wg.Wait()
		return nil
	})
	for _, w := range w {
		w.Data.Release()
	}
	h.dev.mu.Lock()
	defer h.dev.mu.Unlock()
	for i := from + 1; i < len(h.dev.ios) && h.dev.ios[i].data != nil; i++ {
		h.dev.ios[i].pair = true
	}
	if n := len(h.dev.ios) - from; n < 4 || h.s.journal.count.Load() != batches+1 {
		h.t.Errorf("%d IOs, %d batches", n, h.s.journal.count.Load()-batches)
	}
}

// putDuring puts, and does more operations while its record is written and its data is not.
func (h *scripted) putDuring(n uint64, blocks int, during func()) {
	data, sums := makeData(h.t, h.arena, h.rng, blocks)
	defer data.Release()
	var once sync.Once
	batches := h.s.journal.count.Load()
	first := h.now
	added := func(c content) content {
		c = c.clone()
		c.strips[tableID(n)] = string(flat(data))
		return c
	}
	at := len(h.moments)
	begin := h.dev.count()
	h.setHook(func(off int64) {
		if off < h.s.sb.DataOff {
			return
		}
		once.Do(func() {
			for h.s.journal.count.Load() == batches {
				runtime.Gosched()
			}
			during()
		})
	})
	if err := h.s.Put(context.Background(), h.epoch(), tableID(n), sums, data); err != nil {
		h.t.Fatal(err)
	}
	h.setHook(nil)
	for i := at; i < len(h.moments); i++ { // the put may be there or not in all of them
		m := &h.moments[i]
		for _, c := range slices.Clone(m.accept) {
			m.accept = append(m.accept, added(c))
		}
		m.also = append(m.also, added(m.after))
	}
	h.now = added(h.now)
	h.moments = append(h.moments, moment{name: "put meanwhile", begin: begin, end: h.dev.count(), accept: []content{first, added(first)}, after: h.now})
}

func (h *scripted) setHook(f func(off int64)) {
	h.dev.mu.Lock()
	defer h.dev.mu.Unlock()
	h.dev.hook = f
}

func (h *scripted) append(n uint64, shape ...int) {
	id := logID(n)
	old, ok := h.now.strips[id]
	if !ok {
		old = "o"
	}
	data := makeRecords(h.t, h.arena, h.rng, id, uint64(len(old)-1), shape)
	defer data.Release()
	var states []content
	for at := 0; ; { // a crash leaves whole records, from the first on; of a new segment perhaps none
		c := h.now.clone()
		c.strips[id] = old + string(flat(data)[:at])
		c.epoch = h.epoch()
		states = append(states, c)
		if at == data.Len() {
			break
		}
		r, _, _, err := wire.DecodeSegHead(appendBytes(nil, data, at, format.BlockSize))
		if err != nil {
			h.t.Fatal(err)
		}
		at += r.Bytes()
	}
	h.do("append", states[len(states)-1], states, func() error {
		_, err := h.s.Append(context.Background(), h.epoch(), id, uint64(len(old)-1), data)
		return err
	})
}

func (h *scripted) seal(n uint64) {
	next := h.now.clone()
	next.strips[logID(n)] = "s" + next.strips[logID(n)][1:]
	h.do("seal", next, nil, func() error {
		_, err := h.s.Seal(context.Background(), h.epoch(), logID(n))
		return err
	})
}

func (h *scripted) delete(ids ...wire.StripID) {
	next := h.now.clone()
	for _, id := range ids {
		delete(next.strips, id)
	}
	h.do("delete", next, nil, func() error { return h.s.Delete(context.Background(), h.epoch(), ids) })
}

func (h *scripted) fence(e wire.Epoch) {
	next := h.now.clone()
	next.epoch = e
	h.do("fence", next, nil, func() error { return h.s.Fence(context.Background(), 1, e) })
}

// checkpoint takes a checkpoint; during does more operations when its first page is about to be written.
func (h *scripted) checkpoint(during func()) {
	var once sync.Once
	h.setHook(func(off int64) {
		if off >= h.s.sb.CheckpointOff[0] && off < h.s.sb.DataOff {
			once.Do(during)
		}
	})
	if err := h.s.checkpoint(); err != nil {
		h.t.Fatal(err)
	}
	h.setHook(nil)
}

// acceptable gives what may be found after a cut at the k-th IO.
func (h *scripted) acceptable(first content, k int) []content {
	out := []content{first}
	for _, m := range h.moments {
		if k > m.end {
			out = append([]content{m.after}, m.also...)
		}
	}
	for _, m := range h.moments {
		if k > m.begin && k <= m.end {
			out = append(out, m.accept...)
		}
	}
	return out
}

// smallImage is an empty drive that is as small as can be, so that many copies of it are cheap.
func smallImage(t testing.TB) []byte {
	t.Helper()
	const size = 3 << 19
	sb := testSuperblock(size)
	sb.Geometry = format.MakeGeometry(size, 2*format.MaxBatchBlocks*format.BlockSize, 2*format.PageBytes+format.BlockSize, format.BlockSize)
	dev := blockio.NewCrashDevice(make([]byte, size), false)
	if err := Format(dev, sb); err != nil {
		t.Fatal(err)
	}
	return dev.Image()
}

// begin starts a history on an image that holds first.
func beginScript(t testing.TB, arena *wire.Arena, dev *tape, first content) *scripted {
	t.Helper()
	h := &scripted{t: t, arena: arena, rng: rand.New(rand.NewPCG(8, 9)), dev: dev, now: first}
	h.s = mustStart(t, h.dev, arena)
	return h
}

// longScript has every operation, every way in which they meet a checkpoint, and two segments.
func longScript(h *scripted) {
	h.put(1, 1)
	h.append(1, 0)
	h.append(1, 1, 0)
	h.put(2, 3)
	h.delete(tableID(1))
	h.checkpoint(func() {
		h.put(3, 2)
		h.append(1, 0, 0)
		h.delete(tableID(2))
	})
	h.put(4, 1) // takes blocks of what was deleted
	h.putDuring(6, 2, func() { h.delete(tableID(3)) })
	h.putDuring(7, 1, func() { h.checkpoint(func() {}) })
	h.put(3, 1)
	h.seal(1)
	h.append(2, 2)
	h.fence(3)
	h.put(2, 2) // again, with other content
	h.checkpoint(func() {
		h.append(2, 0)
		h.delete(tableID(3), logID(1))
	})
	h.append(2, 1, 1)
	h.delete(tableID(4), tableID(2))
	h.put(5, 2)
	h.burst(2, 8, 9)
}

// shortScript is what is done on a drive that was opened after a crash.
func shortScript(h *scripted) {
	h.put(11, 2)
	h.append(12, 0, 1)
	for _, id := range slices.SortedFunc(maps.Keys(h.now.strips), wire.StripID.Compare) {
		if b := h.now.strips[id]; id.Class() == wire.ClassLog && b[0] == 'o' && id != logID(12) {
			h.append(id.Number(), 0) // over what the crash left beyond its end
			h.delete(id)
			break
		}
	}
	h.put(13, 1)
	h.fence(h.epoch() + 1)
}

// crashTest counts what was tried.
type crashTest struct {
	t      testing.TB
	arena  *wire.Arena
	single bool // tapes can make single writes durable
	every  int  // of so many images with a part of the writes one gets a second history
	seen   map[uint64]struct{}

	images, openings, rounds int
}

// TestCrashExhaustive: at every IO of a short history, of the opening after it, and of a second history after that, every
// subset of what was not flushed may be lost or torn, and what opens is what the acknowledged operations say.
// CRAKE_CRASH=all gives each image with a part of the writes a second history, not one in so many.
func TestCrashExhaustive(t *testing.T) {
	for _, kind := range []struct{ volatile, single bool }{{true, false}, {true, true}, {false, false}} {
		t.Run(fmt.Sprintf("volatile=%t,single=%t", kind.volatile, kind.single), func(t *testing.T) {
			t.Parallel()
			c := &crashTest{t: t, arena: newArena(t), single: kind.single, every: 3, seen: map[uint64]struct{}{}}
			if testing.Short() {
				c.every = 30
			}
			if os.Getenv("CRAKE_CRASH") == "all" {
				c.every = 1
			}
			empty := content{strips: map[wire.StripID]string{}}
			dev := newTape(smallImage(t), kind.volatile)
			dev.single = kind.single
			h := beginScript(t, c.arena, dev, empty)
			longScript(h)
			c.all(h, empty, true)
			_ = h.s.stop()
			t.Logf("%d IOs in %d operations: %d images, %d openings, %d second histories", len(h.dev.ios), len(h.moments), c.images, c.openings, c.rounds)
			if len(h.dev.ios) < 30 || c.images < 200 || c.rounds == 0 {
				t.Error("too few to mean anything")
			}
		})
	}
}

// all cuts a history at each of its IOs. again: what opens then is cut, too, and some of it gets a second history; surely
// where several operations were under way.
func (c *crashTest) all(h *scripted, first content, again bool) {
	partial := 0
	for k := 1; k <= len(h.dev.ios)+1; k++ {
		accept := h.acceptable(first, k)
		in, several := "", 0
		for _, m := range h.moments {
			if k > m.begin && k <= m.end {
				in += " in " + m.name
				several++
			}
		}
		h.dev.crashes(k, func(what string, image []byte, partly bool) {
			if c.isKnown(image, accept) {
				return
			}
			c.images++
			dev := newTape(bytes.Clone(image), h.dev.volatile)
			found := c.open(what+in, dev, accept)
			if !again {
				return
			}
			c.cutOpening(what+in, dev, accept, found)
			if partial++; partly && (several > 1 || partial%c.every == 0) {
				c.second(bytes.Clone(image), h.dev.volatile, found)
			}
		})
		if again && h.dev.volatile {
			dev := h.dev.survivor(k)
			name := fmt.Sprintf("process killed at IO %d%s", k, in)
			c.cutOpening(name, dev, accept, c.open(name, dev, accept))
		}
	}
}

// isKnown says that these bytes were opened before with the same states accepted.
func (c *crashTest) isKnown(image []byte, accept []content) bool {
	hash := xxhash.Sum64(image)
	for _, a := range accept {
		hash = hash*0x9e3779b97f4a7c15 ^ xxhash.Sum64String(a.String())
	}
	_, ok := c.seen[hash]
	c.seen[hash] = struct{}{}
	return ok
}

// open opens a device and checks what it holds.
func (c *crashTest) open(name string, dev *tape, accept []content) content {
	t := c.t
	c.openings++
	s, err := Open(dev, Config{Arena: c.arena, Log: quiet()})
	if err != nil {
		t.Fatalf("%s: open: %v", name, err)
	}
	found := contentOf(t, s)
	if !slices.ContainsFunc(accept, found.equal) {
		text := ""
		for _, a := range accept {
			text += "\n  " + a.String()
		}
		t.Fatalf("%s: found\n  %s\nwant one of%s", name, found, text)
	}
	checkSpace(t, s, name)
	return found
}

// cutOpening cuts an opening at each of its IOs, and after it, when what it found was shown and has to stay.
func (c *crashTest) cutOpening(name string, dev *tape, accept []content, found content) {
	for k := dev.before + 1; k <= len(dev.ios)+1; k++ {
		allowed := accept
		if k == len(dev.ios)+1 {
			allowed = []content{found}
		}
		dev.crashes(k, func(what string, image []byte, _ bool) {
			if !c.isKnown(image, allowed) {
				c.open(name+", then in its opening "+what, newTape(bytes.Clone(image), dev.volatile), allowed)
			}
		})
	}
}

// second goes on with another history on what opened, and cuts that everywhere.
func (c *crashTest) second(image []byte, volatile bool, found content) {
	c.rounds++
	dev := newTape(image, volatile)
	dev.single = c.single
	h := beginScript(c.t, c.arena, dev, found)
	shortScript(h)
	c.all(h, found, false)
	_ = h.s.stop()
}
