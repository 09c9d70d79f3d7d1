package sched

// core decides. It has no goroutine, clock, lock or IO.
//
// Twice the same rule, start-time fair queueing (Goyal, Vin, Cheng 1996): among those with something waiting, the one with the
// least virtual time is next, and its virtual time grows by the cost of the IO (of a class, divided by its weight). Who had nothing
// waiting comes back with the virtual time at which the last IO began, so nobody saves up a claim while idle, and a single IO goes
// before all that have had more than their share. Classes are chosen so, and within a class flows.
//
// Deficit round robin, the usual alternative, needs a quantum of at least the longest IO, and the turn of one flow is then that long
// for all others; here a flow that comes waits for at most one IO of each other flow.
type core struct {
	limits  Limits
	load    Load   // under way
	now     uint64 // virtual time of classes
	waiting int
	classes [NumClasses]class
}

type class struct {
	load    Load
	tag     uint64 // its virtual time
	now     uint64 // virtual time of its flows
	waiting int
	flows   map[uint64]*flow // those with waiting items, and those that must not be forgotten yet
	heap    []*flow          // those with waiting items; the next one first
}

// flow is the queue of one flow in one class.
type flow struct {
	key         uint64
	tag         uint64 // its virtual time
	at          int    // in class.heap; valid while something waits
	first, last *Item
}

func newCore(l Limits) *core {
	c := &core{limits: l}
	for i := range c.classes {
		c.classes[i].flows = map[uint64]*flow{}
	}
	return c
}

// before says that virtual time a is earlier than b.
func before(a, b uint64) bool { return int64(a-b) < 0 }

func later(a, b uint64) uint64 {
	if before(a, b) {
		return b
	}
	return a
}

func cost(bytes int) uint64 {
	return uint64(bytes+costUnitBytes-1)/costUnitBytes + ioUnits
}

// fits says that the bounds allow a class a further IO.
func (c *core) fits(k Class) bool {
	l, have := &c.limits.Classes[k], &c.classes[k].load
	return c.load.IOs < c.limits.IOs && c.load.Bytes < c.limits.Bytes && have.IOs < l.IOs && have.Bytes < l.Bytes
}

// enter begins an item, if its turn is now, or makes it wait.
//
// Invariant: after enter, and after leave and as many next as give items, whoever waits is kept out by a bound.
func (c *core) enter(it *Item) bool {
	k := &c.classes[it.Class]
	if k.waiting == 0 && c.fits(it.Class) {
		c.begin(it)
		return true
	}
	f := k.flows[it.Flow]
	if f == nil {
		k.forget()
		f = &flow{key: it.Flow}
		k.flows[it.Flow] = f
		f.tag = k.now
	}
	it.flow, it.prev, it.next = f, f.last, nil
	if f.last != nil {
		f.last.next = it
	} else {
		f.first = it
		f.tag = later(f.tag, k.now)
		k.push(f)
	}
	f.last = it
	if k.waiting == 0 {
		k.tag = later(k.tag, c.now)
	}
	k.waiting++
	c.waiting++
	return false
}

// begin puts an item on the books as under way.
func (c *core) begin(it *Item) {
	k := &c.classes[it.Class]
	c.load.IOs++
	c.load.Bytes += it.Bytes
	k.load.IOs++
	k.load.Bytes += it.Bytes
	k.tag = later(k.tag, c.now)
	c.now = k.tag
	k.tag += cost(it.Bytes) * weightScale / uint64(c.limits.Classes[it.Class].Weight)
}

// leave takes an item that has ended off the books. next may give others now.
func (c *core) leave(it *Item) {
	k := &c.classes[it.Class]
	c.load.IOs--
	c.load.Bytes -= it.Bytes
	k.load.IOs--
	k.load.Bytes -= it.Bytes
	if k.load.IOs < 0 {
		panic("drive: an IO has ended that did not begin")
	}
}

// next begins the item whose turn it is, or gives nil.
func (c *core) next() *Item {
	if c.waiting == 0 {
		return nil
	}
	best := -1
	for i := range c.classes {
		k := &c.classes[i]
		if k.waiting > 0 && c.fits(Class(i)) && (best < 0 || before(k.tag, c.classes[best].tag)) {
			best = i // equal: the class that comes first
		}
	}
	if best < 0 {
		return nil
	}
	k := &c.classes[best]
	c.pass(k.tag)
	f := k.heap[0]
	it := f.first
	k.now = later(k.now, f.tag)
	f.tag += cost(it.Bytes)
	c.remove(it)
	c.begin(it)
	return it
}

// pass lets the virtual time of classes that wait only for their own bound go on to tag: otherwise they would save up a claim on the
// device that lets nobody else in later.
func (c *core) pass(tag uint64) {
	for i := range c.classes {
		k := &c.classes[i]
		if k.waiting > 0 && !c.fits(Class(i)) {
			k.tag = later(k.tag, tag)
		}
	}
}

// cancel takes an item back that waits. false: it does not.
func (c *core) cancel(it *Item) bool {
	if it.flow == nil {
		return false
	}
	c.remove(it)
	return true
}

// remove takes an item out of its queue.
func (c *core) remove(it *Item) {
	k, f := &c.classes[it.Class], it.flow
	if it.prev != nil {
		it.prev.next = it.next
	} else {
		f.first = it.next
	}
	if it.next != nil {
		it.next.prev = it.prev
	} else {
		f.last = it.prev
	}
	it.flow, it.prev, it.next = nil, nil, nil
	k.waiting--
	c.waiting--
	if f.first == nil {
		k.drop(f.at)
		if k.waiting == 0 {
			clear(k.flows) // nobody to be fair to
		}
		return
	}
	k.fix(f.at)
}

// forget drops flows that have nothing waiting and whose virtual time has passed: they would come back with the class's anyhow. It
// runs before a flow is added. The others stay, so that who comes back at once does not have his turn before those that waited;
// they are few, because the time of each passes with one IO of each that waits.
func (k *class) forget() {
	if len(k.flows) < 2*len(k.heap)+maxIdleFlows {
		return
	}
	for key, f := range k.flows {
		if f.first == nil && !before(k.now, f.tag) {
			delete(k.flows, key)
		}
	}
}

// The heap of flows, by virtual time, and by key where that is equal, so that the order does not depend on chance.

func (k *class) less(i, j int) bool {
	a, b := k.heap[i], k.heap[j]
	return before(a.tag, b.tag) || a.tag == b.tag && a.key < b.key
}

func (k *class) swap(i, j int) {
	k.heap[i], k.heap[j] = k.heap[j], k.heap[i]
	k.heap[i].at, k.heap[j].at = i, j
}

func (k *class) push(f *flow) {
	f.at = len(k.heap)
	k.heap = append(k.heap, f)
	k.fix(f.at)
}

// drop removes the flow at i.
func (k *class) drop(i int) {
	last := len(k.heap) - 1
	k.swap(i, last)
	k.heap[last] = nil
	k.heap = k.heap[:last]
	if i < last {
		k.fix(i)
	}
}

// fix restores the order after the flow at i has changed.
func (k *class) fix(i int) {
	for i > 0 && k.less(i, (i-1)/2) {
		k.swap(i, (i-1)/2)
		i = (i - 1) / 2
	}
	for {
		child := 2*i + 1
		if child >= len(k.heap) {
			return
		}
		if child+1 < len(k.heap) && k.less(child+1, child) {
			child++
		}
		if !k.less(child, i) {
			return
		}
		k.swap(i, child)
		i = child
	}
}
