package leader

import (
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

// judgeSlow compares each drive with its peers: others of its kind that are up and have said something in the last moments.
func (c *Core) judgeSlow(now Millis) {
	kinds := map[driveKind][]*Drive{}
	for _, id := range c.s.DriveIDs() {
		d := c.s.Drives[id]
		st, l := c.DriveStat(d), c.live[d.Proc]
		if st == nil || c.s.driveState(d) != wire.DriveUp || now-l.Heard > FreshMs {
			c.noteSlow(now, d, "")
			continue
		}
		k := driveKind{st.Engine, st.Flush, st.SizeBytes}
		kinds[k] = append(kinds[k], d)
	}
	for _, drives := range kinds {
		how := map[wire.DriveID]string{}
		for i := range slowOps {
			c.compare(drives, i, how)
		}
		for _, d := range drives {
			c.noteSlow(now, d, how[d.ID])
		}
	}
}

// compare finds the drives of a kind that are slow in one kind of IO.
func (c *Core) compare(drives []*Drive, op int, how map[wire.DriveID]string) {
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
		switch {
		case a.ns < b.ns:
			return -1
		case a.ns > b.ns:
			return 1
		}
		return int(a.id) - int(b.id)
	})
	for i, t := range all {
		// The lower median of the others: of n-1 the one at (n-2)/2, and all above t move down by one.
		mid := (len(all) - 2) / 2
		if mid >= i {
			mid++
		}
		if peers := all[mid].ns; t.ns >= o.floorNs && t.ns/SlowFactor > peers && how[t.id] == "" {
			how[t.id] = fmt.Sprintf("%s take %.1f ms, those of its %d peers %.1f ms", o.name, float64(t.ns)/1e6, len(all)-1, float64(peers)/1e6)
		}
	}
}

// noteSlow keeps since when a drive is slow, and tells people.
func (c *Core) noteSlow(now Millis, d *Drive, how string) {
	h := c.device(d.ID)
	switch {
	case how == "":
		if h.warned {
			c.event(wire.SeverityInfo, "drive.slow", c.name(d.Proc), fmt.Sprintf("drive %d is not slower than its peers any more", d.ID))
		}
		h.slow, h.warned = "", false
		return
	case h.slow == "":
		h.slowFrom = now
	}
	h.slow = how
	if !h.warned && now-h.slowFrom >= SlowWarnMs {
		h.warned = true
		c.event(wire.SeverityWarning, "drive.slow", c.name(d.Proc), fmt.Sprintf("drive %d: for %d s %s", d.ID, (now-h.slowFrom)/1000, how))
	}
}
