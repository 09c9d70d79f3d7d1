package leader

import (
	"container/heap"
	"encoding/binary"
	"slices"

	"github.com/cespare/xxhash/v2"

	"github.com/crakefs/crake/wire"
)

func (c *Core) settlePGs() {
	c.pgDirty = false
	var drives []Drive
	for _, id := range c.s.DriveIDs() {
		if d := c.s.Drives[id]; !d.Failed {
			drives = append(drives, *d)
		}
	}
	pgs, next := BuildPGs(c.s.PGs, drives, c.s.Settings.K+c.s.Settings.M, c.s.Counters.PG)
	if next != c.s.Counters.PG || !equalPGs(pgs, c.s.PGs) {
		c.s.PGs, c.s.Counters.PG, c.dirty = pgs, next, true
	}
}

func equalPGs(a, b []wire.PGInfo) bool {
	return slices.EqualFunc(a, b, func(x, y wire.PGInfo) bool { return x.ID == y.ID && slices.Equal(x.Drives, y.Drives) })
}

// BuildPGs makes placement groups of width drives in distinct failure domains out of the drives that are fit for use
// (in order of id). The groups of before stay as they are, but for places of drives that are not fit any more: those are
// filled anew; and a drive that is in no group, because it is used again after its places were filled, takes its share over.
// New groups get ids from next on; it gives the groups and the next free id.
//
// A drive is in about as many groups as its size is of the whole, and about as often at every position, since logs lie on
// the first positions and parity on the last. Which domains meet in a group is drawn by hash in every round, so that
// the peers of a drive, and with them the work of a rebuild, are spread over the cluster.
//
// Fewer domains than width give no groups at all: then placement has to double up, and say so in every stripe.
func BuildPGs(prev []wire.PGInfo, drives []Drive, width int, next wire.PGID) ([]wire.PGInfo, wire.PGID) {
	b := newPGBuilder(drives, width)
	if len(b.domains) < width {
		return slices.Clone(prev), next
	}
	out := make([]wire.PGInfo, 0, b.want())
	for _, pg := range prev {
		pg.Drives = slices.Clone(pg.Drives)
		b.count(pg.Drives)
		out = append(out, pg)
	}
	heap.Init(&b.queue)
	for i := range out {
		b.repair(out[i].Drives)
	}
	for len(out) < b.want() {
		out = append(out, wire.PGInfo{ID: next, Drives: b.group()})
		next++
	}
	for _, d := range drives {
		if x := b.drives[d.ID]; x.places == 0 {
			b.adopt(x, out)
		}
	}
	return out, next
}

type pgDrive struct {
	id     wire.DriveID
	domain *pgDomain
	weight uint64 // size in MiB, at least 1
	places uint64 // groups it is in
	at     []int  // groups it is in at each position
}

// load orders drives: places for each MiB, scaled so that a division of integers is exact enough.
func (d *pgDrive) load() uint64 { return d.places << 32 / d.weight }

type pgDomain struct {
	id     uint32
	drives []*pgDrive
	load   uint64 // of its least loaded drive
	tie    uint64
	index  int // in the queue
}

// least gives the drive of the domain that should be used next.
func (d *pgDomain) least() *pgDrive {
	best := d.drives[0]
	for _, x := range d.drives[1:] {
		if x.load() < best.load() {
			best = x
		}
	}
	return best
}

// refresh computes the key by which the queue orders the domain.
func (d *pgDomain) refresh() {
	x := d.least()
	d.load = x.load()
	var k [16]byte
	binary.LittleEndian.PutUint64(k[:], uint64(d.id))
	binary.LittleEndian.PutUint64(k[8:], x.places)
	d.tie = xxhash.Sum64(k[:])
}

// pgQueue is a heap of domains, least loaded first.
type pgQueue []*pgDomain

func (q pgQueue) Len() int { return len(q) }
func (q pgQueue) Less(i, j int) bool {
	if q[i].load != q[j].load {
		return q[i].load < q[j].load
	}
	return q[i].tie < q[j].tie
}
func (q pgQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}
func (q *pgQueue) Push(x any) {
	d := x.(*pgDomain)
	d.index = len(*q)
	*q = append(*q, d)
}
func (q *pgQueue) Pop() any {
	old := *q
	d := old[len(old)-1]
	*q = old[:len(old)-1]
	return d
}

type pgBuilder struct {
	width   int
	drives  map[wire.DriveID]*pgDrive
	domains map[uint32]*pgDomain
	queue   pgQueue
}

func newPGBuilder(drives []Drive, width int) *pgBuilder {
	b := &pgBuilder{width: width, drives: map[wire.DriveID]*pgDrive{}, domains: map[uint32]*pgDomain{}}
	for _, d := range drives {
		dom := b.domains[d.Domain]
		if dom == nil {
			dom = &pgDomain{id: d.Domain}
			b.domains[d.Domain] = dom
			b.queue = append(b.queue, dom)
		}
		x := &pgDrive{id: d.ID, domain: dom, weight: max(1, d.SizeBytes>>20), at: make([]int, width)}
		dom.drives = append(dom.drives, x)
		b.drives[d.ID] = x
	}
	for i, d := range b.queue {
		d.index = i
		d.refresh()
	}
	return b
}

// want gives how many groups there should be.
func (b *pgBuilder) want() int {
	return max(len(b.drives), min(len(b.drives)*PGsPerDrive, MaxPGs))
}

// count notes the places of a group that is there already.
func (b *pgBuilder) count(ids []wire.DriveID) {
	for pos, id := range ids {
		if d := b.drives[id]; d != nil && pos < b.width {
			d.places++
			d.at[pos]++
			d.domain.refresh()
		}
	}
}

// repair fills the places of drives that are not fit any more.
func (b *pgBuilder) repair(ids []wire.DriveID) {
	used := map[*pgDomain]bool{}
	for _, id := range ids {
		if d := b.drives[id]; d != nil {
			used[d.domain] = true
		}
	}
	for pos, id := range ids {
		if b.drives[id] != nil {
			continue
		}
		var best *pgDomain
		for _, d := range b.queue {
			if !used[d] && (best == nil || d.load < best.load || d.load == best.load && d.tie < best.tie) {
				best = d
			}
		}
		if best == nil {
			continue // every domain is in the group already: the place stays with the lost drive
		}
		d := best.least()
		used[best] = true
		ids[pos] = d.id
		b.place(d, pos)
		heap.Fix(&b.queue, best.index)
	}
}

// adopt gives a drive that is in no group its share of the places, by its size, from the most loaded drives of groups that
// its domain is not in.
func (b *pgBuilder) adopt(d *pgDrive, groups []wire.PGInfo) {
	var places, weight uint64
	for _, x := range b.drives {
		places, weight = places+x.places, weight+x.weight
	}
	share := places * d.weight / weight
	for _, pg := range groups {
		if d.places >= share {
			return
		}
		at := -1
		for pos, id := range pg.Drives {
			x := b.drives[id]
			if x == nil || x.domain == d.domain {
				at = -1
				break
			}
			if at < 0 || x.load() > b.drives[pg.Drives[at]].load() {
				at = pos
			}
		}
		if at < 0 {
			continue
		}
		old := b.drives[pg.Drives[at]]
		old.places--
		old.at[at]--
		pg.Drives[at] = d.id
		b.place(d, at)
	}
}

// group makes one new group.
func (b *pgBuilder) group() []wire.DriveID {
	var picked []*pgDrive
	var domains []*pgDomain
	for range b.width {
		dom := heap.Pop(&b.queue).(*pgDomain)
		domains = append(domains, dom)
		picked = append(picked, dom.least())
	}
	order := arrange(picked)
	ids := make([]wire.DriveID, 0, b.width)
	for pos, d := range order {
		ids = append(ids, d.id)
		b.place(d, pos)
	}
	for _, dom := range domains {
		heap.Push(&b.queue, dom)
	}
	return ids
}

// arrange orders the drives of a new group so that each is about equally often at every position: exchange two as long as
// that lowers the sum of squares of the counts, in a bounded number of rounds.
func arrange(d []*pgDrive) []*pgDrive {
	for range 4 {
		changed := false
		for i := range d {
			for j := i + 1; j < len(d); j++ {
				if d[i].at[j]+d[j].at[i] < d[i].at[i]+d[j].at[j] {
					d[i], d[j] = d[j], d[i]
					changed = true
				}
			}
		}
		if !changed {
			break
		}
	}
	return d
}

func (b *pgBuilder) place(d *pgDrive, pos int) {
	d.places++
	d.at[pos]++
	d.domain.refresh()
}
