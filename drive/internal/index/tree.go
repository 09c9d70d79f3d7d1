package index

import (
	"math/rand/v2"
	"slices"

	"github.com/crakefs/crake/wire"
)

// tree is the map of ids to entries: a B+tree whose leaves take memory for what they hold and not for what they may hold.
//
// Ids come in order within a bucket, class and position, which is the worst for a common B-tree: it leaves nodes half empty
// behind. Measured with RaduBerinde/btreemap at nodes of 255, bytes a strip: 65 in order, 63 in order in many buckets, 46 random, 54
// random after puts and deletes; 1.0 to 3.2 us a put. This tree: 37 to 43, and 0.15 to 0.7 us; what comes in order from a checkpoint
// is only appended, in 0.1 us.
//
// Not safe for concurrent use, but reads are among themselves.
type tree struct {
	root *node
	len  int
	last wire.StripID // the greatest id; meaningless when empty
	// memory is what all nodes take, in bytes.
	memory int
}

// node is a leaf (kids is nil), or an inner node.
type node struct {
	// ids are, in a leaf, what it holds, ascending. In an inner node nothing in kids[i] is below ids[i] (but for ids[0], which may be
	// anything), and everything in kids[i-1] is.
	ids     []wire.StripID
	entries []entry // of a leaf
	kids    []*node // of an inner node
}

const (
	// nodeMax is the most that a node holds: its ids are then 4 KiB. An insertion moves half of it, some 100 ns; larger ones would
	// save nothing, as the overhead of a leaf, some 100 bytes, is half a byte a strip.
	nodeMax = 256
	// nodeMin is when a node looks for a neighbour to join, and joinMax how full both may be together: below nodeMax, so that not
	// every other insertion and deletion splits and joins again.
	nodeMin = 64
	joinMax = 192
	// nodeBytes is a node without its slices, and a kid's place in the node above.
	nodeBytes = 72 + 8
	idBytes   = 16
	itemBytes = idBytes + 16
)

// find gives where an id is or would be among ids.
func find(ids []wire.StripID, id wire.StripID) (int, bool) {
	low, high := 0, len(ids)
	for low < high {
		mid := int(uint(low+high) / 2)
		if ids[mid].Less(id) {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return low, low < len(ids) && ids[low] == id
}

// kid gives which kid of an inner node an id belongs to.
func (n *node) kid(id wire.StripID) int {
	i, ok := find(n.ids[1:], id)
	if ok {
		return i + 1
	}
	return i
}

// get finds an entry; nil when there is none. The pointer is valid until the next put or delete.
func (t *tree) get(id wire.StripID) *entry {
	n := t.root
	if n == nil {
		return nil
	}
	for n.kids != nil {
		n = n.kids[n.kid(id)]
	}
	if i, ok := find(n.ids, id); ok {
		return &n.entries[i]
	}
	return nil
}

// put adds an entry, in place of what is there, and gives that.
func (t *tree) put(id wire.StripID, e entry) (old entry, replaced bool) {
	if t.root == nil {
		t.root = &node{}
		t.memory += nodeBytes
	}
	last := t.len == 0 || t.last.Less(id)
	old, replaced, right := t.putIn(t.root, id, e, last)
	if right != nil {
		t.root = &node{ids: []wire.StripID{{}, right.ids[0]}, kids: []*node{t.root, right}}
		t.memory += nodeBytes + 2*idBytes
	}
	if !replaced {
		t.len++
	}
	if last {
		t.last = id
	}
	return old, replaced
}

// putIn adds an entry below n; last says that its id is above all others. If n had to be split, right is its new neighbour, and
// right.ids[0] a bound between the two.
func (t *tree) putIn(n *node, id wire.StripID, e entry, last bool) (old entry, replaced bool, right *node) {
	if n.kids == nil {
		return t.putInLeaf(n, id, e, last)
	}
	i := len(n.kids) - 1
	if !last {
		i = n.kid(id)
	}
	old, replaced, below := t.putIn(n.kids[i], id, e, last)
	if below == nil {
		return old, replaced, nil
	}
	n.ids, n.kids = slices.Insert(n.ids, i+1, below.ids[0]), slices.Insert(n.kids, i+1, below)
	t.memory += idBytes
	if len(n.kids) <= nodeMax {
		return old, replaced, nil
	}
	half := len(n.kids) / 2
	if last {
		half = len(n.kids) - 1
	}
	right = &node{ids: slices.Clone(n.ids[half:]), kids: slices.Clone(n.kids[half:])}
	clear(n.kids[half:])
	n.ids, n.kids = n.ids[:half], n.kids[:half]
	t.memory += nodeBytes
	return old, replaced, right
}

func (t *tree) putInLeaf(n *node, id wire.StripID, e entry, last bool) (old entry, replaced bool, right *node) {
	i := len(n.ids)
	if !last {
		if i, replaced = find(n.ids, id); replaced {
			old, n.entries[i] = n.entries[i], e
			return old, true, nil
		}
	}
	if len(n.ids) < nodeMax {
		t.insert(n, i, id, e)
		return old, false, nil
	}
	right = &node{}
	t.memory += nodeBytes
	switch half := nodeMax / 2; {
	case i == nodeMax: // in order: what is full stays full
		if last {
			t.resize(right, nodeMax) // and the next will be
		}
		t.insert(right, 0, id, e)
	default:
		t.resize(right, capFor(nodeMax-half))
		right.ids, right.entries = append(right.ids, n.ids[half:]...), append(right.entries, n.entries[half:]...)
		n.ids, n.entries = n.ids[:half], n.entries[:half]
		t.resize(n, capFor(half))
		if i <= half {
			t.insert(n, i, id, e)
		} else {
			t.insert(right, i-half, id, e)
		}
	}
	return old, false, right
}

// insert adds an entry at place i of a leaf that is not full.
func (t *tree) insert(n *node, i int, id wire.StripID, e entry) {
	if len(n.ids) == cap(n.ids) {
		t.resize(n, capFor(len(n.ids)+1))
	}
	n.ids, n.entries = slices.Insert(n.ids, i, id), slices.Insert(n.entries, i, e)
}

// capFor tells what memory a leaf of n entries gets: room for an eighth more, so that an entry is moved some ten times in its life,
// and a leaf is full by 94 % on average.
func capFor(n int) int { return min(nodeMax, n+n/8+4) }

// resize gives a leaf other memory.
func (t *tree) resize(n *node, capacity int) {
	t.memory -= cap(n.ids) * itemBytes
	// Both element types have 16 bytes, so both slices are rounded up to the same class of memory.
	n.ids, n.entries = append(slices.Grow([]wire.StripID(nil), capacity), n.ids...), append(slices.Grow([]entry(nil), capacity), n.entries...)
	t.memory += cap(n.ids) * itemBytes
}

// delete removes an entry and gives it.
func (t *tree) delete(id wire.StripID) (old entry, ok bool) {
	if t.root == nil {
		return old, false
	}
	old, ok = t.deleteIn(t.root, id)
	if !ok {
		return old, false
	}
	t.len--
	for t.root != nil && t.root.kids != nil && len(t.root.kids) == 1 {
		t.root = t.root.kids[0]
		t.memory -= nodeBytes + idBytes
	}
	switch {
	case t.len == 0:
		*t = tree{}
	case id == t.last:
		n := t.root
		for n.kids != nil {
			n = n.kids[len(n.kids)-1]
		}
		t.last = n.ids[len(n.ids)-1]
	}
	return old, true
}

// deleteIn removes an entry below n, which may be empty then; nothing below it is.
func (t *tree) deleteIn(n *node, id wire.StripID) (old entry, ok bool) {
	if n.kids == nil {
		i, ok := find(n.ids, id)
		if !ok {
			return old, false
		}
		old = n.entries[i]
		n.ids, n.entries = slices.Delete(n.ids, i, i+1), slices.Delete(n.entries, i, i+1)
		if keep := capFor(capFor(len(n.ids))); cap(n.ids) > keep+8 {
			t.resize(n, capFor(len(n.ids)))
		}
		return old, true
	}
	i := n.kid(id)
	if old, ok = t.deleteIn(n.kids[i], id); ok && n.kids[i].size() < nodeMin {
		t.join(n, i)
	}
	return old, ok
}

// size gives what counts against nodeMax.
func (n *node) size() int { return len(n.ids) }

// join puts kid i together with a neighbour, if both fit into one node, or removes it if it is empty.
func (t *tree) join(n *node, i int) {
	switch {
	case n.kids[i].size() == 0:
		t.memory -= nodeBytes + idBytes
		if n.kids[i].kids == nil {
			t.memory -= cap(n.kids[i].ids) * itemBytes
		}
		n.remove(i)
		return
	case i > 0 && n.kids[i-1].size()+n.kids[i].size() <= joinMax:
		i--
	case i+1 < len(n.kids) && n.kids[i].size()+n.kids[i+1].size() <= joinMax:
	default:
		return
	}
	a, b := n.kids[i], n.kids[i+1]
	if a.kids != nil {
		b.ids[0] = n.ids[i+1]
		a.ids, a.kids = append(a.ids, b.ids...), append(a.kids, b.kids...)
		t.memory -= nodeBytes + idBytes
	} else {
		t.resize(a, capFor(len(a.ids)+len(b.ids)))
		a.ids, a.entries = append(a.ids, b.ids...), append(a.entries, b.entries...)
		t.memory -= nodeBytes + idBytes + cap(b.ids)*itemBytes
	}
	n.remove(i + 1)
}

// remove takes kid i out of an inner node.
func (n *node) remove(i int) {
	n.ids, n.kids = slices.Delete(n.ids, i, i+1), slices.Delete(n.kids, i, i+1)
}

// ascend calls f for the entries above after (all, if it is zero), in order, until f gives false.
func (t *tree) ascend(after wire.StripID, f func(id wire.StripID, e entry) bool) {
	if t.root != nil {
		t.root.ascend(after, f)
	}
}

func (n *node) ascend(after wire.StripID, f func(id wire.StripID, e entry) bool) bool {
	i := 0
	if n.kids == nil {
		if !after.IsZero() {
			var ok bool
			if i, ok = find(n.ids, after); ok {
				i++
			}
		}
		for ; i < len(n.ids); i++ {
			if !f(n.ids[i], n.entries[i]) {
				return false
			}
		}
		return true
	}
	if !after.IsZero() {
		i = n.kid(after)
	}
	for ; i < len(n.kids); i++ {
		if !n.kids[i].ascend(after, f) {
			return false
		}
		after = wire.StripID{}
	}
	return true
}

// sample gives an id by chance, each with about the same one; false: there is none.
func (t *tree) sample(rng *rand.Rand) (wire.StripID, bool) {
	n := t.root
	if n == nil {
		return wire.StripID{}, false
	}
	for n.kids != nil {
		n = n.kids[rng.IntN(len(n.kids))]
	}
	return n.ids[rng.IntN(len(n.ids))], true
}
