package lease

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/crakefs/crake/wire"
)

const (
	inoA = wire.Ino(100)
	inoB = wire.Ino(200)
)

var t0 = time.Unix(1000, 0)

// give grants a lease the way a request does.
func give(t *testing.T, tab *Table, s wire.SessionID, ino wire.Ino, mode wire.LeaseMode) wire.Lease {
	t.Helper()
	use := UseRead
	if mode == wire.LeaseWrite {
		use = UseExclusive
	}
	p := tab.Pin(s, use, []wire.Ino{ino})
	if !p.Ready() {
		t.Fatalf("session %d cannot use inode %d", s, ino)
	}
	l := tab.Grant(s, ino, mode, t0)
	if l.Mode != mode {
		t.Fatalf("session %d wants mode %d of inode %d, gets %d", s, mode, ino, l.Mode)
	}
	tab.Unpin(p)
	return l
}

// TestEveryPair: session 1 holds each mode, session 2 uses the inode in each way and asks for each mode. What must be
// recalled is, no more; what is granted does not conflict; nothing is granted while the recall is on its way.
func TestEveryPair(t *testing.T) {
	for held := wire.LeaseNone; held <= wire.LeaseWrite; held++ {
		for use := UseRead; use <= UseExclusive; use++ {
			for want := wire.LeaseNone; want <= wire.LeaseWrite; want++ {
				t.Run(fmt.Sprintf("held%d use%d want%d", held, use, want), func(t *testing.T) { pair(t, held, use, want) })
			}
		}
	}
}

func pair(t *testing.T, held wire.LeaseMode, use Use, want wire.LeaseMode) {
	tab := NewTable(0, 0)
	if held != wire.LeaseNone {
		give(t, tab, 1, inoA, held)
	}
	p := tab.Pin(2, use, []wire.Ino{inoA})
	recalls, _ := tab.Take()
	left := held // what session 1 has afterwards
	switch {
	case use == UseRead && held == wire.LeaseWrite:
		left = wire.LeaseRead
	case use != UseRead:
		left = wire.LeaseNone
	}
	if left != held {
		if p.Ready() || len(recalls) != 1 || recalls[0].To != left || recalls[0].Session != 1 || recalls[0].Ino != inoA {
			t.Fatalf("recalls %+v, ready %v", recalls, p.Ready())
		}
		if !tab.Holds(1, inoA, held) {
			t.Fatal("the lease went before the recall was answered")
		}
		// The holder may go on with the inode meanwhile (it has to flush), but gets nothing new.
		q := tab.Pin(1, UseChange, []wire.Ino{inoA})
		if !q.Ready() {
			t.Fatal("the holder cannot flush")
		}
		if l := tab.Grant(1, inoA, wire.LeaseWrite, t0); l.Mode != wire.LeaseNone {
			t.Fatalf("granted %+v while it is recalled", l)
		}
		tab.Unpin(q)
		if l := tab.Grant(2, inoA, wire.LeaseWrite, t0); l.Mode == wire.LeaseWrite {
			t.Fatalf("granted %+v beside the holder's", l)
		}
		tab.Answered(1, inoA, recalls[0].Seq+1) // not this one
		if p.Ready() {
			t.Fatal("woken by a wrong answer")
		}
		tab.Answered(1, inoA, recalls[0].Seq)
		if _, done := tab.Take(); len(done) != 1 || done[0] != p {
			t.Fatal("not woken")
		}
	}
	if !p.Ready() {
		t.Fatal("not ready")
	}
	if tab.Holds(1, inoA, left+1) || !tab.Holds(1, inoA, left) && left != wire.LeaseNone {
		t.Fatalf("session 1 should have mode %d", left)
	}
	got := tab.Grant(2, inoA, want, t0)
	wish := want
	if left == wire.LeaseRead {
		wish = min(want, wire.LeaseRead)
	}
	if left == wire.LeaseWrite {
		t.Fatal("cannot be")
	}
	if got.Mode != wish {
		t.Fatalf("granted %d, want %d", got.Mode, wish)
	}
	if wish != wire.LeaseNone && len(recalls) > 0 && got.Seq <= recalls[0].Seq {
		t.Fatal("sequences do not rise")
	}
	tab.Unpin(p)
	tab.EndSession(1)
	tab.EndSession(2)
	empty(t, tab)
}

func empty(t *testing.T, tab *Table) {
	t.Helper()
	if len(tab.files)+len(tab.sessions)+tab.leases != 0 {
		t.Fatalf("left: %d files, %d sessions, %d leases", len(tab.files), len(tab.sessions), tab.leases)
	}
}

// TestNoGrantBesideAChange: what was read while another session changed the inode may be old, so no lease comes of it;
// and while a change waits, nobody new gets one.
func TestNoGrantBesideAChange(t *testing.T) {
	tab := NewTable(0, 0)
	read := tab.Pin(1, UseRead, []wire.Ino{inoA})
	change := tab.Pin(2, UseChange, []wire.Ino{inoA, inoB})
	if !read.Ready() || !change.Ready() {
		t.Fatal("they need not wait for each other")
	}
	if l := tab.Grant(1, inoA, wire.LeaseRead, t0); l.Mode != wire.LeaseNone {
		t.Fatal("granted beside a change")
	}
	tab.Unpin(change)
	if l := tab.Grant(1, inoA, wire.LeaseRead, t0); l.Mode != wire.LeaseNone {
		t.Fatal("granted after a change that ran meanwhile")
	}
	tab.Unpin(read)
	give(t, tab, 1, inoA, wire.LeaseRead)

	wait := tab.Pin(2, UseChange, []wire.Ino{inoA})
	other := tab.Pin(3, UseRead, []wire.Ino{inoA})
	if wait.Ready() || !other.Ready() {
		t.Fatal("the change waits, the read does not")
	}
	if l := tab.Grant(3, inoA, wire.LeaseRead, t0); l.Mode != wire.LeaseNone {
		t.Fatal("granted while a change waits")
	}
	tab.Unpin(wait) // gave up
	tab.Unpin(other)
	give(t, tab, 3, inoA, wire.LeaseRead)
}

// TestWriteLeaseInTurn: sessions that want the write lease get it in order of arrival, and a stream of changes by
// others does not keep them from it.
func TestWriteLeaseInTurn(t *testing.T) {
	tab := NewTable(0, 0)
	c1 := tab.Pin(9, UseChange, []wire.Ino{inoA})
	e1 := tab.Pin(1, UseExclusive, []wire.Ino{inoA})
	e2 := tab.Pin(2, UseExclusive, []wire.Ino{inoA})
	e1b := tab.Pin(1, UseExclusive, []wire.Ino{inoA})
	c2 := tab.Pin(8, UseChange, []wire.Ino{inoA})
	if !c1.Ready() || e1.Ready() || e2.Ready() || e1b.Ready() || c2.Ready() {
		t.Fatal("only the change that ran may be ready")
	}
	tab.Unpin(c1)
	if !e1.Ready() || e2.Ready() || e1b.Ready() || c2.Ready() {
		t.Fatal("the first has its turn")
	}
	nested := tab.Pin(1, UseChange, []wire.Ino{inoA})
	if !nested.Ready() {
		t.Fatal("a request within a request waits for itself")
	}
	tab.Unpin(nested)
	if l := tab.Grant(1, inoA, wire.LeaseWrite, t0); l.Mode != wire.LeaseWrite {
		t.Fatalf("granted %+v", l)
	}
	if r, _ := tab.Take(); len(r) != 0 {
		t.Fatal("recalled before the request was over")
	}
	tab.Unpin(e1)
	r, _ := tab.Take()
	if len(r) != 1 || r[0].Session != 1 || e2.Ready() {
		t.Fatalf("recalls %+v", r)
	}
	tab.Answered(1, inoA, r[0].Seq)
	for e2.Ready() == c2.Ready() {
		t.Fatal("one of the two has to have its turn")
	}
	tab.Unpin(c2)
	if !e2.Ready() || e1b.Ready() {
		t.Fatal("the second has its turn")
	}
	tab.Unpin(e2)
	if !e1b.Ready() {
		t.Fatal("the third has its turn")
	}
	tab.Unpin(e1b)
	empty(t, tab)
}

// TestSessionLimit: past the limit the oldest read leases are recalled, never a write lease, each once.
func TestSessionLimit(t *testing.T) {
	tab := NewTable(0, 3)
	give(t, tab, 1, 1, wire.LeaseWrite)
	for ino := wire.Ino(2); ino <= 3; ino++ {
		give(t, tab, 1, ino, wire.LeaseRead)
	}
	give(t, tab, 1, 2, wire.LeaseRead) // used again: 3 is the oldest
	give(t, tab, 2, 9, wire.LeaseRead)
	if r, _ := tab.Take(); len(r) != 0 {
		t.Fatalf("recalls %+v", r)
	}
	give(t, tab, 1, 4, wire.LeaseRead)
	r, _ := tab.Take()
	if len(r) != 1 || r[0].Ino != 3 || r[0].Session != 1 || r[0].To != wire.LeaseNone {
		t.Fatalf("recalls %+v", r)
	}
	give(t, tab, 1, 5, wire.LeaseRead)
	r2, _ := tab.Take()
	if len(r2) != 1 || r2[0].Ino != 2 {
		t.Fatalf("recalls %+v", r2)
	}
	tab.Answered(1, 3, r[0].Seq)
	tab.Answered(1, 2, r2[0].Seq)
	if tab.Leases() != 4 || !tab.Holds(1, 1, wire.LeaseWrite) {
		t.Fatalf("%d leases", tab.Leases())
	}
}

// TestDrop: a lease given back by its holder is gone, unless it was granted anew by an answer that crosses.
func TestDrop(t *testing.T) {
	tab := NewTable(0, 0)
	old := give(t, tab, 1, inoA, wire.LeaseRead)
	fresh := give(t, tab, 1, inoA, wire.LeaseRead)
	tab.Drop(1, inoA, old.Seq)
	if !tab.Holds(1, inoA, wire.LeaseRead) {
		t.Fatal("dropped although granted anew")
	}
	p := tab.Pin(2, UseChange, []wire.Ino{inoA})
	r, _ := tab.Take()
	tab.Drop(1, inoA, fresh.Seq)
	if !p.Ready() {
		t.Fatal("a dropped lease is still in the way")
	}
	tab.Answered(1, inoA, r[0].Seq) // late
	tab.Drop(1, inoB, 0)
	tab.Unpin(p)
	empty(t, tab)
}

// TestReclaim: what sessions held at the former owner is theirs again; what conflicts is lost by who comes later.
func TestReclaim(t *testing.T) {
	tab := NewTable(7<<40, 0)
	lost, seq := tab.Reclaim(1, []wire.HeldLease{{Ino: 1, Mode: wire.LeaseWrite}, {Ino: 2, Mode: wire.LeaseRead}, {Ino: 3}}, t0)
	if len(lost) != 0 || seq <= 7<<40 {
		t.Fatal(lost, seq)
	}
	lost, seq2 := tab.Reclaim(2, []wire.HeldLease{
		{Ino: 1, Mode: wire.LeaseRead}, {Ino: 2, Mode: wire.LeaseRead}, {Ino: 4, Mode: wire.LeaseWrite},
	}, t0)
	if len(lost) != 1 || lost[0] != 1 || seq2 <= seq {
		t.Fatal(lost, seq2)
	}
	if !tab.Holds(1, 1, wire.LeaseWrite) || !tab.Holds(2, 2, wire.LeaseRead) || !tab.Holds(2, 4, wire.LeaseWrite) || tab.Holds(1, 3, wire.LeaseRead) {
		t.Fatal("not reclaimed")
	}
	tab.EndSession(1)
	tab.EndSession(2)
	empty(t, tab)
}

// TestSessionEnds: a dead session's waiting requests fail, and what it held passes on only by EndSession.
func TestSessionEnds(t *testing.T) {
	tab := NewTable(0, 0)
	give(t, tab, 1, inoA, wire.LeaseWrite)
	give(t, tab, 2, inoB, wire.LeaseWrite)
	p1 := tab.Pin(1, UseRead, []wire.Ino{inoB})
	p2 := tab.Pin(2, UseRead, []wire.Ino{inoA})
	tab.CancelSession(1)
	if _, done := tab.Take(); len(done) != 1 || done[0] != p1 || wire.KindOf(p1.Err()) != wire.KindStaleSession {
		t.Fatalf("woken %v", done)
	}
	tab.Unpin(p1)
	if p2.Ready() {
		t.Fatal("the lease passed on before the session was over")
	}
	tab.EndSession(1)
	if !p2.Ready() {
		t.Fatal("the lease did not pass on")
	}
}

// world plays sessions with caches against the table: answers and recalls are delivered in any order, as if each came
// by its own path. A content is a number that only rises.
type world struct {
	t        *testing.T
	rnd      *rand.Rand
	tab      *Table
	content  map[wire.Ino]int                    // with what sessions have not flushed yet
	stored   map[wire.Ino]int                    // in the bucket
	byOthers map[wire.SessionID]map[wire.Ino]int // newest stored content that another session made
	cache    map[wire.SessionID]map[wire.Ino]*cached
	reqs     []*request
	net      []func()
	lastSeq  uint64
}

type cached struct {
	mode      wire.LeaseMode
	seq       uint64
	recallSeq uint64
	content   int
}

type request struct {
	s       wire.SessionID
	inos    []wire.Ino
	want    wire.LeaseMode
	pin     *Pin
	atLeast []int // content that a read must see
	busy    bool  // it has begun to read
	seen    []int
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{
		t: t, rnd: rand.New(rand.NewPCG(seed, 2)), tab: NewTable(0, 4),
		content: map[wire.Ino]int{}, stored: map[wire.Ino]int{},
		byOthers: map[wire.SessionID]map[wire.Ino]int{}, cache: map[wire.SessionID]map[wire.Ino]*cached{},
	}
	for s := wire.SessionID(1); s <= 3; s++ {
		w.byOthers[s], w.cache[s] = map[wire.Ino]int{}, map[wire.Ino]*cached{}
		for ino := wire.Ino(1); ino <= 6; ino++ {
			w.cache[s][ino] = &cached{}
		}
	}
	return w
}

func (w *world) start() {
	r := &request{s: wire.SessionID(1 + w.rnd.IntN(3)), want: wire.LeaseMode(w.rnd.IntN(3))}
	use := Use(1 + w.rnd.IntN(3))
	r.inos = []wire.Ino{wire.Ino(1 + w.rnd.IntN(6))}
	if use != UseExclusive && w.rnd.IntN(3) == 0 {
		r.inos = append(r.inos, wire.Ino(1+w.rnd.IntN(6)))
	}
	for _, ino := range r.inos {
		least := w.content[ino]
		if w.cache[r.s][ino].mode == wire.LeaseWrite {
			least = w.stored[ino] // it knows itself what it has not flushed
		}
		r.atLeast = append(r.atLeast, least)
	}
	r.pin = w.tab.Pin(r.s, use, r.inos)
	w.reqs = append(w.reqs, r)
}

// store commits new content of an inode.
func (w *world) store(s wire.SessionID, ino wire.Ino) int {
	w.content[ino]++
	w.stored[ino] = w.content[ino]
	for o, m := range w.byOthers {
		if o != s {
			m[ino] = w.stored[ino]
		}
	}
	return w.stored[ino]
}

// advance lets a request that is ready take its next step: read, or commit; then grant and answer.
func (w *world) advance(i int) {
	r := w.reqs[i]
	if !r.pin.Ready() {
		return
	}
	if !r.busy {
		r.busy = true
		for j, ino := range r.inos {
			if w.stored[ino] < r.atLeast[j] {
				w.t.Fatalf("session %d reads %d of inode %d, %d was written before it asked", r.s, w.stored[ino], ino, r.atLeast[j])
			}
			if r.pin.Use == UseChange {
				w.store(r.s, ino)
			}
			r.seen = append(r.seen, w.stored[ino])
		}
		return
	}
	ino, seen := r.inos[0], r.seen[0]
	l := w.tab.Grant(r.s, ino, r.want, t0)
	w.tab.Unpin(r.pin)
	w.reqs = append(w.reqs[:i], w.reqs[i+1:]...)
	if l.Mode == wire.LeaseNone {
		return
	}
	if l.Seq <= w.lastSeq {
		w.t.Fatalf("sequence %d after %d", l.Seq, w.lastSeq)
	}
	w.lastSeq = l.Seq
	w.net = append(w.net, func() {
		c := w.cache[r.s][ino]
		if l.Seq <= c.recallSeq || l.Seq <= c.seq {
			return // void, or older than what we have
		}
		c.mode, c.seq, c.content = l.Mode, l.Seq, max(c.content, seen)
	})
}

func (w *world) recalled(r Recall) {
	if r.Seq <= w.lastSeq {
		w.t.Fatalf("recall sequence %d after %d", r.Seq, w.lastSeq)
	}
	w.lastSeq = r.Seq
	w.net = append(w.net, func() {
		c := w.cache[r.Session][r.Ino]
		c.recallSeq = max(c.recallSeq, r.Seq)
		if c.seq < r.Seq && c.mode > r.To {
			if c.mode == wire.LeaseWrite && w.content[r.Ino] > w.stored[r.Ino] {
				p := w.tab.Pin(r.Session, UseChange, []wire.Ino{r.Ino})
				if !p.Ready() || !w.tab.Holds(r.Session, r.Ino, wire.LeaseWrite) {
					w.t.Fatalf("session %d cannot flush inode %d", r.Session, r.Ino)
				}
				c.content = w.store(r.Session, r.Ino)
				w.tab.Unpin(p)
			}
			c.mode = r.To
		}
		w.net = append(w.net, func() { w.tab.Answered(r.Session, r.Ino, r.Seq) })
	})
}

func (w *world) step() {
	switch n := w.rnd.IntN(10); {
	case n < 2 && len(w.reqs) < 12:
		w.start()
	case n < 5 && len(w.reqs) > 0:
		w.advance(w.rnd.IntN(len(w.reqs)))
	case n < 9 && len(w.net) > 0:
		i := w.rnd.IntN(len(w.net))
		f := w.net[i]
		w.net = append(w.net[:i], w.net[i+1:]...)
		f()
	case n == 9:
		s, ino := wire.SessionID(1+w.rnd.IntN(3)), wire.Ino(1+w.rnd.IntN(6))
		if c := w.cache[s][ino]; c.mode == wire.LeaseWrite { // a write into the buffer
			w.content[ino]++
			c.content = w.content[ino]
		}
	}
	recalls, _ := w.tab.Take()
	for _, r := range recalls {
		w.recalled(r)
	}
	w.check()
}

func (w *world) check() {
	for ino := wire.Ino(1); ino <= 6; ino++ {
		writers, holders := 0, 0
		for s, m := range w.cache {
			c := m[ino]
			if c.mode == wire.LeaseNone {
				continue
			}
			holders++
			if c.mode == wire.LeaseWrite {
				writers++
			}
			if !w.tab.Holds(s, ino, c.mode) {
				w.t.Fatalf("session %d believes in mode %d of inode %d, the table does not", s, c.mode, ino)
			}
			if c.content < w.byOthers[s][ino] {
				w.t.Fatalf("session %d has cached %d of inode %d, another made it %d", s, c.content, ino, w.byOthers[s][ino])
			}
		}
		if writers > 0 && holders > 1 {
			w.t.Fatalf("inode %d: a write lease beside another lease", ino)
		}
	}
}

// TestCoherence: with any order of requests, answers, recalls and flushes, no session reads older than what was written
// before it asked, caches what another has changed since, or fails to flush; and everybody gets an answer in the end.
func TestCoherence(t *testing.T) {
	for seed := range uint64(300) {
		w := newWorld(t, seed)
		for range 1500 {
			w.step()
		}
		for range 20000 {
			if len(w.reqs) == 0 && len(w.net) == 0 {
				break
			}
			if len(w.reqs) > 0 {
				w.advance(w.rnd.IntN(len(w.reqs)))
			}
			if len(w.net) > 0 {
				f := w.net[0]
				w.net = w.net[1:]
				f()
			}
			recalls, _ := w.tab.Take()
			for _, r := range recalls {
				w.recalled(r)
			}
			w.check()
		}
		if len(w.reqs) > 0 {
			t.Fatalf("seed %d: %d requests are stuck", seed, len(w.reqs))
		}
	}
}
