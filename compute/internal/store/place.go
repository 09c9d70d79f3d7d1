package store

import (
	"time"

	"github.com/crakefs/crake/wire"
)

// view is what placement needs of one cluster map, in a handy form. Immutable.
type view struct {
	m      int
	k      int
	source *wire.ClusterMap
	all    []wire.DriveID // every drive of the map
	domain map[wire.DriveID]uint32
	up     map[wire.DriveID]bool // by the map
	pgs    [][]wire.DriveID
}

// currentView gives the view of the newest map, or nil when there is no map.
func (s *Store) currentView() *view {
	m := s.c.Map()
	if m == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.view != nil && s.view.source == m {
		return s.view
	}
	v := &view{
		k: int(m.K), m: int(m.M), source: m, domain: map[wire.DriveID]uint32{}, up: map[wire.DriveID]bool{},
	}
	for _, d := range m.Drives {
		v.all = append(v.all, d.ID)
		v.domain[d.ID] = d.Domain
		v.up[d.ID] = d.State == wire.DriveUp
	}
	for _, pg := range m.PGs {
		v.pgs = append(v.pgs, pg.Drives)
	}
	s.view = v
	return v
}

// picker chooses the drives of one stripe or set of replicas, and replacements for those that fail. Not safe for
// concurrent use.
type picker struct {
	s      *Store
	v      *view
	strict bool   // no two in one domain
	data   bool   // leave the reserve
	need   uint64 // bytes on each drive
	avoid  map[wire.DriveID]bool
	used   map[uint32]int // strips in each domain
	full   bool           // a drive was passed over only because it is full
}

// health is how fit a drive is to be written to.
type health int

const (
	healthNone    health = iota // down, full, or to be avoided
	healthSuspect               // failed a moment ago
	healthGood
)

func (p *picker) health(d wire.DriveID, now time.Time) health {
	if p.avoid[d] || !p.v.up[d] || !p.s.c.Up(d) {
		return healthNone
	}
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	st := p.s.drives[d]
	if st == nil {
		return healthGood
	}
	if st.full || st.known && st.free < p.need+p.reserve(st) {
		p.full = true
		return healthNone
	}
	if now.Before(st.suspectUntil) {
		return healthSuspect
	}
	return healthGood
}

func (p *picker) reserve(st *driveState) uint64 {
	if !p.data {
		return 0
	}
	return reserveBytes(st.size)
}

// freeShare gives the part of the drive that is free, in 1/1024; unknown counts as empty.
func (s *Store) freeShare(d wire.DriveID) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.drives[d]
	if st == nil || !st.known || st.size == 0 {
		return 1024
	}
	return st.free / (st.size/1024 + 1)
}

// newPicker starts a choice; need is what each drive must have room for.
func (s *Store) newPicker(op string, strict, data bool, need int) (*picker, error) {
	v := s.currentView()
	if v == nil {
		return nil, wire.Errorf(op, wire.KindUnavailable, "", "no cluster map yet")
	}
	return &picker{
		s: s, v: v, strict: strict, data: data, need: uint64(need),
		avoid: map[wire.DriveID]bool{}, used: map[uint32]int{},
	}, nil
}

// pick chooses n drives: members of a PG, the best of some tried at random (most healthy members, then most free space
// on its fullest), in a random order so that data and parity, and the replicas of short sets, spread over its drives.
// Members that are not fit are replaced. It gives nil when there are too few drives; see err.
func (p *picker) pick(n int) []wire.DriveID {
	now := time.Now()
	var best []wire.DriveID
	bestFit, bestFree := -1, uint64(0)
	for i := 0; i < PlaceTries && len(p.v.pgs) > 0; i++ {
		pg := p.v.pgs[p.s.random()%uint64(len(p.v.pgs))]
		fit, free := 0, uint64(1024)
		for _, d := range pg {
			if p.health(d, now) == healthGood {
				fit++
				free = min(free, p.s.freeShare(d))
			}
		}
		if fit > bestFit || fit == bestFit && free > bestFree {
			best, bestFit, bestFree = pg, fit, free
		}
		if i >= 1 && bestFit == len(best) {
			break // two choices are enough to balance
		}
	}
	var out []wire.DriveID
	if len(best) > 0 {
		first := int(p.s.random() % uint64(len(best)))
		for i := range best {
			d := best[(first+i)%len(best)]
			if len(out) < n && p.used[p.v.domain[d]] == 0 && p.health(d, now) == healthGood {
				out = append(out, d)
				p.used[p.v.domain[d]]++
			}
		}
	}
	for len(out) < n {
		d := p.next()
		if d == 0 {
			return nil
		}
		out = append(out, d)
	}
	return out
}

// next chooses one further drive: in a domain without a strip if there is any, else (unless strict) in one with a single
// strip; healthy before suspect. 0 is none.
func (p *picker) next() wire.DriveID {
	now := time.Now()
	n := len(p.v.all)
	if n == 0 {
		return 0
	}
	first := int(p.s.random() % uint64(n))
	maxUsed := 1
	if !p.strict {
		maxUsed = MaxPerDomain
	}
	for used := range maxUsed {
		for _, want := range []health{healthGood, healthSuspect} {
			var best wire.DriveID
			var bestFree uint64
			for i := range n {
				d := p.v.all[(first+i)%n]
				if p.used[p.v.domain[d]] != used || p.health(d, now) != want {
					continue
				}
				if free := p.s.freeShare(d); best == 0 || free > bestFree {
					best, bestFree = d, free
				}
			}
			if best != 0 {
				p.used[p.v.domain[best]]++
				return best
			}
		}
	}
	return 0
}

// drop gives back the place of a drive that failed, and passes it over from now on.
func (p *picker) drop(d wire.DriveID) {
	p.used[p.v.domain[d]]--
	p.avoid[d] = true
}

// degraded says whether a domain holds more than one strip.
func (p *picker) degraded() bool {
	for _, n := range p.used {
		if n > 1 {
			return true
		}
	}
	return false
}

// err says why pick or next found nothing.
func (p *picker) err(op string, n int, cause error) error {
	kind := wire.KindUnavailable
	if p.full {
		kind = wire.KindNoSpace
	}
	if cause == nil {
		cause = kind
	}
	return wire.Errorf(op, kind, "", "no %d fit drives: %w", n, cause)
}
