package leader

import (
	"fmt"
	"slices"

	"github.com/crakefs/crake/wire"
)

// settleBuckets brings the owners of buckets in line with the computes that live:
//
//	owned --owner dead--------------------------> free --named, epoch+1--> owned
//	  |                                            ^
//	  +--owner to give it up but alive--> leaving -+ when it says so, or is dead
//
// so that no two runs may serve a bucket at one time.
func (c *Core) settleBuckets(now Millis) {
	if c.stopping {
		return
	}
	moves := map[[2]wire.ProcID]int{}
	c.leaving = 0
	for i := range c.s.Buckets {
		c.settleOwner(wire.BucketID(i))
	}
	live := c.liveComputes()
	if len(live) == 0 {
		c.holdUntil = now + SpreadHoldMs
		return
	}
	if now < c.holdUntil && (len(live) < c.wantedComputes() || !c.drivesUp()) {
		// The cluster starts. More computes are about to come: spread over all of them at once. And a bucket cannot be
		// opened without the drives.
		return
	}
	c.holdUntil = 0
	load := c.loads(live)
	c.nameOwners(live, load, moves)
	c.rebalance(now, live, load)
	for _, k := range sortedMoves(moves) {
		text := fmt.Sprintf("buckets to %s: %d", c.name(k[1]), moves[k])
		if k[0] != 0 && k[0] != k[1] {
			text = fmt.Sprintf("buckets from %s to %s: %d", c.name(k[0]), c.name(k[1]), moves[k])
		}
		c.event(wire.SeverityInfo, "bucket.move", c.name(k[1]), text)
	}
}

func sortedMoves(m map[[2]wire.ProcID]int) [][2]wire.ProcID {
	var keys [][2]wire.ProcID
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b [2]wire.ProcID) int {
		if a[0] != b[0] {
			return int(a[0]) - int(b[0])
		}
		return int(a[1]) - int(b[1])
	})
	return keys
}

// settleOwner takes the bucket from a run that is gone or to give it up, and frees it when nobody serves it any more.
func (c *Core) settleOwner(id wire.BucketID) {
	b := &c.s.Buckets[id]
	if b.Owner != 0 {
		p := c.s.Procs[b.Owner]
		if c.s.runLive(b.Owner, b.Inc) && p.Wanted {
			return
		}
		c.takeAway(b, b.Owner)
	}
	if b.From != 0 && c.released(id, b) {
		b.From, b.FromInc, b.FromGen, c.dirty = 0, 0, 0, true
	}
	if b.From != 0 {
		c.leaving++
	}
}

// takeAway names nobody for the bucket from the next map on; prefer should get it next.
func (c *Core) takeAway(b *Bucket, prefer wire.ProcID) {
	b.From, b.FromInc, b.FromGen = b.Owner, b.Inc, c.s.Generation+1
	b.Owner, b.Inc, b.Prefer, c.dirty = 0, 0, prefer, true
}

// released reports that the run that had the bucket does not serve it any more.
func (c *Core) released(id wire.BucketID, b *Bucket) bool {
	if c.s.runDead(b.From, b.FromInc) {
		return true
	}
	p, l := c.s.Procs[b.From], c.live[b.From]
	if p.Incarnation != b.FromInc || l.Gen < b.FromGen {
		return false
	}
	return l.Buckets[id].State == wire.BucketClosed // also when it does not mention it any more
}

func (c *Core) liveComputes() []wire.ProcID {
	var live []wire.ProcID
	for _, id := range c.s.ProcIDs() {
		if p := c.s.Procs[id]; p.Role == wire.RoleCompute && p.Wanted && p.serving() {
			live = append(live, id)
		}
	}
	return live
}

func (c *Core) drivesUp() bool {
	for _, p := range c.s.Procs {
		if p.Role != wire.RoleDrive || !p.Wanted || p.State == wire.ProcUp {
			continue
		}
		if d := c.s.Drives[p.Drive]; d == nil || !d.Failed { // nobody waits for one that failed
			return false
		}
	}
	return true
}

func (c *Core) wantedComputes() int {
	n := 0
	for _, p := range c.s.Procs {
		if p.Role == wire.RoleCompute && p.Wanted {
			n++
		}
	}
	return n
}

func (c *Core) loads(live []wire.ProcID) map[wire.ProcID]int {
	load := make(map[wire.ProcID]int, len(live))
	for _, id := range live {
		load[id] = 0
	}
	for i := range c.s.Buckets {
		b := &c.s.Buckets[i]
		if _, ok := load[b.Owner]; ok {
			load[b.Owner]++
		}
	}
	return load
}

// nameOwners gives every free bucket an owner: the one it prefers, as far as that keeps the spread even, else the least loaded.
func (c *Core) nameOwners(live []wire.ProcID, load map[wire.ProcID]int, moves map[[2]wire.ProcID]int) {
	share := (len(c.s.Buckets) + len(live) - 1) / len(live)
	name := func(b *Bucket, to wire.ProcID) {
		moves[[2]wire.ProcID{b.Prefer, to}]++
		b.Owner, b.Inc, b.Prefer = to, c.s.Procs[to].Incarnation, 0
		b.Epoch++
		load[to]++
		c.dirty = true
	}
	for i := range c.s.Buckets {
		b := &c.s.Buckets[i]
		if n, up := load[b.Prefer]; b.Owner == 0 && b.From == 0 && up && n < share {
			name(b, b.Prefer)
		}
	}
	for i := range c.s.Buckets {
		if b := &c.s.Buckets[i]; b.Owner == 0 && b.From == 0 {
			name(b, leastLoaded(live, load))
		}
	}
}

// leastLoaded gives the one with the fewest buckets, the lowest id of several. Preconditions: live is not empty.
func leastLoaded(live []wire.ProcID, load map[wire.ProcID]int) wire.ProcID {
	best := live[0]
	for _, id := range live[1:] {
		if load[id] < load[best] {
			best = id
		}
	}
	return best
}

// rebalance takes buckets from the most loaded compute for the least loaded one, few at a time, until the loads differ by
// at most one. Buckets on their way count for where they go.
func (c *Core) rebalance(now Millis, live []wire.ProcID, load map[wire.ProcID]int) {
	underWay := 0
	for i := range c.s.Buckets {
		b := &c.s.Buckets[i]
		if b.From != 0 {
			if _, up := load[b.Prefer]; up {
				load[b.Prefer]++
			}
		}
		if b.From != 0 || !c.settled(wire.BucketID(i)) {
			underWay++
		}
	}
	var ready []wire.ProcID
	for _, id := range live {
		if now-c.live[id].Since >= RebalanceDelayMs {
			ready = append(ready, id)
		}
	}
	for ; underWay < MaxMoves && len(ready) > 0; underWay++ {
		to := leastLoaded(ready, load)
		from, n := wire.ProcID(0), load[to]+1
		for _, id := range live {
			if load[id] > n {
				from, n = id, load[id]
			}
		}
		i := c.movable(from)
		if from == 0 || i < 0 {
			return
		}
		c.takeAway(&c.s.Buckets[i], to)
		c.leaving++
		load[from]--
		load[to]++
	}
}

// movable finds a bucket that the compute serves, the highest; -1 is none.
func (c *Core) movable(from wire.ProcID) int {
	for i := len(c.s.Buckets) - 1; i >= 0; i-- {
		if c.s.Buckets[i].Owner == from && c.settled(wire.BucketID(i)) {
			return i
		}
	}
	return -1
}

// settled reports that the owner has said that it serves the bucket, or that it cannot.
func (c *Core) settled(id wire.BucketID) bool {
	s := c.BucketState(id)
	return s.State == wire.BucketServing || s.State == wire.BucketFailed
}

// BucketState gives what the owner of a bucket last said about it; BucketClosed when it has said nothing.
func (c *Core) BucketState(id wire.BucketID) wire.BucketReport {
	b := &c.s.Buckets[id]
	if c.s.runLive(b.Owner, b.Inc) {
		if r := c.live[b.Owner].Buckets[id]; r.Epoch == b.Epoch {
			r.Bucket = id
			return r
		}
	}
	return wire.BucketReport{Bucket: id, Epoch: b.Epoch}
}
