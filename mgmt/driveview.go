package mgmt

import (
	"fmt"
	"time"

	"github.com/crakefs/crake/mgmt/api"
	"github.com/crakefs/crake/mgmt/internal/leader"
	"github.com/crakefs/crake/mgmt/internal/supervise"
	"github.com/crakefs/crake/wire"
)

// viewDrives counts the drives and their capacity, and gathers what health needs of them. It gives those that are up.
func viewDrives(c *leader.Core, runs map[string]supervise.Status, st *api.Status, h *healthInput) map[wire.DriveID]bool {
	up := map[wire.DriveID]bool{}
	all, upDomains := map[uint32]bool{}, map[uint32]bool{}
	for _, d := range c.Map().Drives {
		st.Drives.Total++
		all[d.Domain] = true
		have := c.State().Drives[d.ID]
		note := driveNote{id: uint32(d.ID), reason: have.Reason, problem: problem(c, have, runs[procName(c, d.Proc)])}
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

// problem says what is wrong with a drive that has not failed, or "". run is how its process runs.
func problem(c *leader.Core, d *leader.Drive, run supervise.Status) string {
	switch h := c.DriveHealth(d.ID); {
	case h.Alert != "":
		return "faulty, but the protection does not bear to do without it: " + h.Alert
	case h.Slow != "":
		return "slow: " + h.Slow
	}
	if took := opening(c.State(), d, run); took >= openingPatience {
		return fmt.Sprintf("opening for %d s", int(took.Seconds()))
	}
	return ""
}

// opening tells for how long the process of a drive has been opening its device: it registers when it has. 0: it is not. A device
// that hangs holds the process in a system call, so nothing but its silence tells.
func opening(s *leader.State, d *leader.Drive, run supervise.Status) time.Duration {
	p := s.Procs[d.Proc]
	if p == nil || d.Failed || run.PID == 0 || p.PID == uint32(run.PID) {
		return 0
	}
	return time.Since(run.StartedAt)
}

// noteOpenings makes an event of each opening that takes long, once.
func (w *worker) noteOpenings() {
	runs := w.sup.Status()
	var slow []supervise.Status
	w.d.Look(func(_ leader.Millis, c *leader.Core) {
		for _, id := range c.State().DriveIDs() {
			d := c.State().Drives[id]
			if p := c.State().Procs[d.Proc]; p != nil && opening(c.State(), d, runs[p.Name]) >= openingPatience {
				slow = append(slow, runs[p.Name])
			}
		}
	})
	for _, run := range slow {
		if w.openings[run.Name] == run.PID {
			continue
		}
		w.openings[run.Name] = run.PID
		w.event(wire.SeverityWarning, "drive.opening", run.Name,
			fmt.Sprintf("pid %d has been opening its device for %d s and has not said anything", run.PID, int(time.Since(run.StartedAt).Seconds())))
	}
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
	runs := w.sup.Status()
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
				Process: procName(c, d.Proc), Reason: have.Reason, Troubles: c.DriveHealth(d.ID).Troubles,
			}
			a.Problem = problem(c, have, runs[a.Process])
			if s := c.DriveStat(have); s != nil {
				fillDrive(&a, s)
			}
			out = append(out, a)
		}
	})
	return out
}

func procName(c *leader.Core, id wire.ProcID) string {
	if p := c.State().Procs[id]; p != nil {
		return p.Name
	}
	return ""
}

// fillDrive adds what the drive's process said last.
func fillDrive(a *api.Drive, s *wire.DriveStatResp) {
	a.SizeBytes, a.FreeBytes, a.Strips = s.SizeBytes, s.FreeBytes, s.Strips
	a.Reads, a.ReadBytes, a.Writes, a.WriteBytes = s.Reads, s.ReadBytes, s.Writes, s.WriteBytes
	a.Flushes, a.Errors, a.Engine, a.Flush = s.Flushes, s.Errors, s.Engine, s.Flush
	a.ReadNs, a.WriteNs, a.FlushNs, a.Queued = s.ReadNs, s.WriteNs, s.FlushNs, s.Queued
	a.Corrupt, a.ScrubDoneBytes, a.ScrubTotalBytes, a.ScrubPasses = s.Corrupt, s.ScrubDone, s.ScrubTotal, s.ScrubPasses
	a.DiscardBytes, a.IndexBytes, a.EngineReason = s.DiscardBytes, s.IndexBytes, s.EngineReason
}
