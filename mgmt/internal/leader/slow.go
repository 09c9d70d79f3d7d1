package leader

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/crakefs/crake/wire"
)

// slowOps are the kinds of IO whose mean times are compared, and from which time on one may count as slow: below, no user
// would notice, and on an idle device a factor means little. The floors are what a healthy disk of the slowest kind in use
// (a QLC flash disk that tidies up, a consumer disk that flushes) stays under most of the time.
var slowOps = [...]struct {
	name    string
	ns      func(*wire.DriveStatResp) uint64
	floorNs uint64
}{
	{"reads", func(s *wire.DriveStatResp) uint64 { return s.ReadNs }, 5e6},
	{"writes", func(s *wire.DriveStatResp) uint64 { return s.WriteNs }, 10e6},
	{"flushes", func(s *wire.DriveStatResp) uint64 { return s.FlushNs }, 50e6},
}

// driveKind groups drives that may be compared. The same size to the byte stands for the same model: a cluster may have
// disks beside flash, and those are slower by nature.
type driveKind struct {
	engine, flush string
	sizeBytes     uint64
}

// spell is a time in which a drive is slow in one kind of IO.
type spell struct {
	how    string // in numbers, as last seen; "": there is none
	lasted Millis // for how long it was seen to be slow; time in which nobody could tell does not count
	seen   Millis // when last
}

func (s *spell) text() string { return fmt.Sprintf("for %d s %s", s.lasted/1000, s.how) }

// worst gives the longest spell, or nil.
func (h *deviceHealth) worst() *spell {
	var worst *spell
	for i := range h.spells {
		if s := &h.spells[i]; s.how != "" && (worst == nil || s.lasted > worst.lasted) {
			worst = s
		}
	}
	return worst
}

// judgeSlow compares each drive with its peers: others of its kind that are up and have said something in the last moments. It is
// called every JudgeMs or so.
func (c *Core) judgeSlow(now Millis) {
	kinds := map[driveKind][]*Drive{}
	for _, id := range c.s.DriveIDs() {
		d := c.s.Drives[id]
		st, l := c.DriveStat(d), c.live[d.Proc]
		if st != nil && c.s.driveState(d) == wire.DriveUp && now-l.Heard <= FreshMs {
			k := driveKind{st.Engine, st.Flush, st.SizeBytes}
			kinds[k] = append(kinds[k], d)
		}
	}
	for _, drives := range kinds {
		for op := range slowOps {
			c.compare(now, drives, op)
		}
	}
	for _, id := range c.s.DriveIDs() {
		c.noteSlow(now, c.s.Drives[id])
	}
}

// compare finds the drives of a kind that are slow in one kind of IO, and those that are not. Of the others, which do too little or
// have too few peers that do something, nobody can tell.
func (c *Core) compare(now Millis, drives []*Drive, op int) {
	o := &slowOps[op]
	type timing struct {
		id wire.DriveID
		ns uint64
	}
	var all []timing
	for _, d := range drives {
		if ns := o.ns(c.DriveStat(d)); ns > 0 {
			all = append(all, timing{d.ID, ns})
		}
	}
	if len(all) < SlowPeers+1 {
		return
	}
	slices.SortFunc(all, func(a, b timing) int {
		if n := cmp.Compare(a.ns, b.ns); n != 0 {
			return n
		}
		return cmp.Compare(a.id, b.id)
	})
	// Whoever is slow is in the upper half, so the lower median of the others is this, and nobody in the lower half exceeds it.
	peers := all[(len(all)-2)/2].ns
	for _, t := range all {
		s := &c.device(t.id).spells[op]
		if t.ns < o.floorNs || t.ns/SlowFactor <= peers {
			*s = spell{}
			continue
		}
		s.lasted += JudgeMs
		s.seen = now
		s.how = fmt.Sprintf("%s take %.1f ms, those of its %d peers %.1f ms", o.name, float64(t.ns)/1e6, len(all)-1, float64(peers)/1e6)
	}
}

// noteSlow forgets spells of long ago and tells people of those that begin and end.
func (c *Core) noteSlow(now Millis, d *Drive) {
	h := c.device(d.ID)
	for i := range h.spells {
		if s := &h.spells[i]; s.how != "" && now-s.seen > SlowForgetMs {
			*s = spell{}
		}
	}
	s := h.worst()
	switch {
	case s == nil && h.warned:
		h.warned = false
		c.event(wire.SeverityInfo, "drive.slow", c.name(d.Proc), fmt.Sprintf("drive %d is not slower than its peers any more", d.ID))
	case s != nil && s.lasted >= SlowWarnMs && !h.warned:
		h.warned = true
		c.event(wire.SeverityWarning, "drive.slow", c.name(d.Proc), fmt.Sprintf("drive %d: %s", d.ID, s.text()))
	}
}
