package mgmt

import (
	"github.com/crakefs/crake/mgmt/api"
	"github.com/crakefs/crake/mgmt/internal/leader"
	"github.com/crakefs/crake/wire"
)

// viewDrives counts the drives and their capacity, and gathers what health needs of them. It gives those that are up.
func (w *worker) viewDrives(c *leader.Core, st *api.Status, h *healthInput) map[wire.DriveID]bool {
	up := map[wire.DriveID]bool{}
	all, upDomains := map[uint32]bool{}, map[uint32]bool{}
	for _, d := range c.Map().Drives {
		st.Drives.Total++
		all[d.Domain] = true
		note := driveNote{id: uint32(d.ID), reason: c.State().Drives[d.ID].Reason, problem: problem(c, d.ID)}
		switch d.State {
		case wire.DriveUp:
			st.Drives.Up++
			up[d.ID], upDomains[d.Domain] = true, true
		case wire.DriveFailed:
			st.Drives.Failed++
			h.drives.failed = append(h.drives.failed, note)
		}
		if note.problem != "" {
			h.drives.problems = append(h.drives.problems, note)
		}
		addCapacity(&st.Capacity, c, &d)
	}
	h.drives.count, h.drives.domains, h.drives.upDomains = st.Drives, len(all), len(upDomains)
	return up
}

// problem says what is wrong with a drive that has not failed, or "".
func problem(c *leader.Core, id wire.DriveID) string {
	switch h := c.DriveHealth(id); {
	case h.Alert != "":
		return "faulty, but the protection does not bear to do without it: " + h.Alert
	case h.Slow != "":
		return "slow: " + h.Slow
	}
	return ""
}

// addCapacity counts a drive: what its process says, else its size and no free space. A failed one has none that can be used.
func addCapacity(sum *api.Capacity, c *leader.Core, d *wire.DriveInfo) {
	if d.State == wire.DriveFailed {
		return
	}
	if s := c.DriveStat(c.State().Drives[d.ID]); s != nil && s.SizeBytes > 0 {
		sum.RawBytes += s.SizeBytes
		sum.RawFreeBytes += s.FreeBytes
		return
	}
	sum.RawBytes += d.SizeBytes
}

func (w *worker) drives() []api.Drive {
	out := []api.Drive{}
	w.d.Look(func(_ leader.Millis, c *leader.Core) {
		pgs := map[wire.DriveID]int{}
		for _, pg := range c.State().PGs {
			for _, d := range pg.Drives {
				pgs[d]++
			}
		}
		for _, d := range c.Map().Drives {
			have := c.State().Drives[d.ID]
			a := api.Drive{
				ID: uint32(d.ID), Path: d.Path, State: d.State.String(), Domain: d.Domain, SizeBytes: d.SizeBytes, PGs: pgs[d.ID],
				Reason: have.Reason, Problem: problem(c, d.ID), Troubles: c.DriveHealth(d.ID).Troubles,
			}
			if p := c.State().Procs[d.Proc]; p != nil {
				a.Process = p.Name
			}
			if s := c.DriveStat(have); s != nil {
				fillDrive(&a, s)
			}
			out = append(out, a)
		}
	})
	return out
}

// fillDrive adds what the drive's process said last.
func fillDrive(a *api.Drive, s *wire.DriveStatResp) {
	a.SizeBytes, a.FreeBytes, a.Strips = s.SizeBytes, s.FreeBytes, s.Strips
	a.Reads, a.ReadBytes, a.Writes, a.WriteBytes = s.Reads, s.ReadBytes, s.Writes, s.WriteBytes
	a.Flushes, a.Errors, a.Engine, a.Flush = s.Flushes, s.Errors, s.Engine, s.Flush
	a.ReadNs, a.WriteNs, a.FlushNs, a.Queued = s.ReadNs, s.WriteNs, s.FlushNs, s.Queued
	a.Corrupt, a.ScrubDoneBytes, a.ScrubTotalBytes, a.ScrubPasses = s.Corrupt, s.ScrubDone, s.ScrubTotal, s.ScrubPasses
	a.DiscardBytes, a.IndexBytes = s.DiscardBytes, s.IndexBytes
}
