package leader

import (
	"fmt"
	"slices"

	"github.com/crakefs/crake/wire"
)

// How a drive becomes failed, by itself or by hand. A failed drive is asked for nothing any more: readers rebuild what lies on it
// from its peers, writers choose others. Its state is durable and ends by Activate only.
//
//	heartbeats --Fault------------------+
//	reports of trouble --again and again+--> a reason --as far as the protection bears it--> failed
//	mean times --much above the peers'--+                     \--else--> an alert, and tried again
//
// Failing a drive throws redundancy away, so none is failed by itself if then more failure domains were out than the
// protection bears, or too few drives left for the replicas of a log. One that is only slow still holds its data: it is failed only if
// a further loss can be borne afterwards.

// deviceHealth is what is known of a drive's device and not durable.
type deviceHealth struct {
	troubles []trouble           // reports of the last TroubleWindowMs, oldest first, at most MaxTroubles
	ignore   wire.Incarnation    // what this run says of a fault was answered by Activate
	alert    string              // why it should be failed; "" when it should not, or is
	spells   [len(slowOps)]spell // of slowness, by kind of IO
	warned   bool                // an event told of one
}

// trouble is the end of a run because of the device, as far as one can tell.
type trouble struct {
	at   Millis
	pid  uint32
	ran  bool // it had been open; else it could not be opened
	text string
}

// DriveHealth is what people should know of a drive's device.
type DriveHealth struct {
	Alert    string // why it should be failed and is not, because the protection does not bear it; "" is none
	Slow     string // how it is slower than its peers; "" is not
	Troubles int    // runs of its process that ended because of it, in the last ten minutes
}

// device gives the health of a drive, made when needed.
func (c *Core) device(id wire.DriveID) *deviceHealth {
	h := c.devices[id]
	if h == nil {
		h = &deviceHealth{}
		c.devices[id] = h
	}
	return h
}

// DriveHealth tells what is known of a drive's device.
func (c *Core) DriveHealth(id wire.DriveID) DriveHealth {
	h := c.device(id)
	out := DriveHealth{Alert: h.alert, Troubles: len(h.troubles)}
	if s := h.worst(); h.warned && s != nil {
		out.Slow = s.text()
	}
	return out
}

// DriveStat gives what a drive's process last said of it, or nil.
func (c *Core) DriveStat(d *Drive) *wire.DriveStatResp {
	l := c.live[d.Proc]
	if l == nil {
		return nil
	}
	for i := range l.Drives {
		if l.Drives[i].Drive == d.ID {
			return &l.Drives[i]
		}
	}
	return nil
}

// Trouble takes up that a run ends because of a device. Errors: KindRefused when the drive is not that process's.
func (c *Core) Trouble(now Millis, r *wire.DriveTroubleReq) error {
	d, p := c.s.Drives[r.Drive], c.s.Procs[r.Proc]
	if d == nil || p == nil || d.Proc != r.Proc || r.PID == 0 {
		return wire.Errorf("mgmt.trouble", wire.KindRefused, fmt.Sprint(r.Drive), "it is no drive of process %d", r.Proc)
	}
	h := c.device(d.ID)
	if slices.ContainsFunc(h.troubles, func(t trouble) bool { return t.pid == r.PID }) {
		return nil // it repeats itself
	}
	t := trouble{at: now, pid: r.PID, ran: p.PID == r.PID && p.State != wire.ProcDown, text: clip(r.Text)}
	h.troubles = append(h.troubles, t)
	h.troubles = h.troubles[max(0, len(h.troubles)-MaxTroubles):]
	if !d.Failed {
		c.event(wire.SeverityWarning, "drive.trouble", p.Name, fmt.Sprintf("drive %d, pid %d: %s", d.ID, r.PID, t.text))
	}
	return nil
}

// hungDrive notes that the process of a drive was silent for its lease: a device that hangs may take its process with it.
// Preconditions: it is not down yet.
func (c *Core) hungDrive(now Millis, p *Proc) {
	if p.Role != wire.RoleDrive || c.s.Drives[p.Drive] == nil || p.PID == 0 {
		return
	}
	req := wire.DriveTroubleReq{Proc: p.ID, PID: p.PID, Drive: p.Drive, Text: "its process sent no heartbeat for its lease and was killed"}
	_ = c.Trouble(now, &req) // it is that process's drive
}

// opened forgets the troubles of opening the drives of a process: it has registered, so they are open now.
func (c *Core) opened(p *Proc) {
	for _, id := range c.s.DriveIDs() {
		if c.s.Drives[id].Proc == p.ID {
			h := c.device(id)
			h.troubles = slices.DeleteFunc(h.troubles, func(t trouble) bool { return !t.ran })
		}
	}
}

// clip bounds a text that a process wrote.
func clip(s string) string { return fmt.Sprintf("%.500s", s) }

// judgeDrives fails the drives for which there is a reason, as far as the protection bears it.
func (c *Core) judgeDrives(now Millis) {
	if c.stopping || now-c.judged < JudgeMs {
		return
	}
	c.judged = now
	c.judgeSlow(now)
	for _, id := range c.s.DriveIDs() {
		d, h := c.s.Drives[id], c.device(id)
		h.troubles = slices.DeleteFunc(h.troubles, func(t trouble) bool { return now-t.at > TroubleWindowMs })
		why, spare := c.reason(now, d, h)
		if why == "" || d.Failed {
			h.alert = ""
			continue
		}
		if refusal := c.bearable(d, spare); refusal != "" {
			if h.alert == "" {
				c.event(wire.SeverityError, "drive.fault", c.name(d.Proc), fmt.Sprintf("drive %d is not failed, %s. What is wrong: %s", id, refusal, why))
			}
			h.alert = why
			continue
		}
		c.failDrive(d, why)
	}
}

// reason says why a drive should be failed, "" if it should not; spare is how many further losses the protection must bear
// afterwards.
func (c *Core) reason(now Millis, d *Drive, h *deviceHealth) (why string, spare int) {
	p := c.s.Procs[d.Proc]
	if st := c.DriveStat(d); st != nil && st.Fault != "" && p != nil && p.Incarnation != h.ignore {
		return clip(st.Fault), 0
	}
	if n := len(h.troubles); n >= TroubleLimit && h.troubles[n-1].at-h.troubles[0].at >= TroubleMinMs {
		return fmt.Sprintf("its process ended %d times in %d s because of it: %s", n, (now-h.troubles[0].at)/1000, h.troubles[n-1].text), 0
	}
	if s := h.worst(); s != nil && s.lasted >= SlowFailMs {
		return s.text(), 1
	}
	return "", 0
}

// bearable says, in numbers, why the protection does not bear that a drive is failed with spare further losses to come; "" if it does.
func (c *Core) bearable(d *Drive, spare int) string {
	m := c.s.Settings.M
	failed, out, up := map[uint32]bool{}, map[uint32]bool{}, map[uint32]bool{}
	var who []wire.DriveID
	for _, id := range c.s.DriveIDs() {
		x := c.s.Drives[id]
		state := c.s.driveState(x)
		switch {
		case x.ID == d.ID:
			continue
		case state == wire.DriveUp:
			up[x.Domain] = true
			continue
		case state == wire.DriveFailed:
			failed[x.Domain] = true
		}
		out[x.Domain] = true
		who = append(who, x.ID)
	}
	failed[d.Domain], out[d.Domain] = true, true
	protection := fmt.Sprintf("protection %d+%d", c.s.Settings.K, m)
	if c.s.driveState(d) != wire.DriveUp {
		// It serves nobody now, so nothing is lost by the state. But it is meant to come back, and what is failed is not.
		if len(failed) > m {
			return fmt.Sprintf("since with it %d failure domains would be failed, and %s bears %d", len(failed), protection, m)
		}
		return ""
	}
	if len(out)+spare > m {
		text := fmt.Sprintf("since with it %d failure domains would be out (drives down or failed already: %s), and %s bears %d",
			len(out), idText(who), protection, m)
		if spare > 0 {
			text += fmt.Sprintf(", of which %d is kept for a failure to come", spare)
		}
		return text
	}
	if len(up) < m+1 {
		return fmt.Sprintf("since drives would be up in only %d failure domains, and the logs of %s need %d: all writes would wait",
			len(up), protection, m+1)
	}
	return ""
}

func idText(ids []wire.DriveID) string {
	if len(ids) == 0 {
		return "none"
	}
	s := ""
	for i, id := range ids[:min(len(ids), 16)] {
		if i > 0 {
			s += ", "
		}
		s += fmt.Sprint(id)
	}
	if len(ids) > 16 {
		s += fmt.Sprintf(" and %d more", len(ids)-16)
	}
	return s
}

// failDrive makes a drive a failed one.
func (c *Core) failDrive(d *Drive, why string) {
	d.Failed, d.Reason = true, why
	h := c.device(d.ID)
	h.alert, h.spells, h.warned = "", [len(slowOps)]spell{}, false
	c.dirty, c.pgDirty = true, true
	c.event(wire.SeverityError, "drive.failed", c.name(d.Proc), fmt.Sprintf("drive %d (%s): %s", d.ID, d.Path, why))
}

// Deactivate makes a drive a failed one by hand. Errors: KindNotFound, KindExists when it is failed already, KindRefused with
// numbers when data would become unavailable or writes would wait, unless force is set.
func (c *Core) Deactivate(now Millis, id wire.DriveID, why string, force bool) error {
	const op = "mgmt.deactivate"
	d := c.s.Drives[id]
	switch {
	case d == nil:
		return wire.Errorf(op, wire.KindNotFound, fmt.Sprint(id), "there is no such drive")
	case d.Failed:
		return wire.Errorf(op, wire.KindExists, fmt.Sprint(id), "it is failed already: %s", d.Reason)
	}
	if refusal := c.bearable(d, 0); refusal != "" && !force {
		return wire.Errorf(op, wire.KindRefused, fmt.Sprint(id), "not done, %s", refusal)
	}
	c.failDrive(d, "deactivated by hand: "+clip(why))
	c.settle(now)
	return nil
}

// Activate takes a drive into use again after a repair, with what it holds. A run of its process that has said Fault is
// killed, so that a new one opens the device. Errors: KindNotFound, KindExists when it is not failed.
func (c *Core) Activate(now Millis, id wire.DriveID) error {
	const op = "mgmt.activate"
	d := c.s.Drives[id]
	switch {
	case d == nil:
		return wire.Errorf(op, wire.KindNotFound, fmt.Sprint(id), "there is no such drive")
	case !d.Failed:
		return wire.Errorf(op, wire.KindExists, fmt.Sprint(id), "it is not failed, it is %s", c.s.driveState(d))
	}
	d.Failed, d.Reason = false, ""
	c.dirty, c.pgDirty = true, true
	c.devices[id] = &deviceHealth{}
	if p, st := c.s.Procs[d.Proc], c.DriveStat(d); p != nil && st != nil && st.Fault != "" {
		c.devices[id].ignore = p.Incarnation
		if p.State != wire.ProcDown {
			c.kill(p, p.PID, "its drive was activated; only a new run can tell how the device is")
		}
	}
	c.event(wire.SeverityInfo, "drive.activate", c.name(d.Proc), fmt.Sprintf("drive %d (%s) is used again", id, d.Path))
	c.settle(now)
	return nil
}
