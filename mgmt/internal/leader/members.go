package leader

import (
	"fmt"
	"slices"

	"github.com/crakefs/crake/wire"
)

// Registered is the answer to a process that registered.
type Registered struct {
	Incarnation wire.Incarnation
	Session     wire.SessionID // of a frontend
}

// Register takes up a new run of a slot, which has proved itself by the certificate named key. Refused: a slot that is not there, not
// wanted, or of another name or role.
func (c *Core) Register(now Millis, r *wire.RegisterReq, key wire.ProcKey) (Registered, error) {
	p, err := c.checkRegister(r)
	if err != nil {
		return Registered{}, err
	}
	l := c.live[p.ID]
	if p.State != wire.ProcDown && p.PID != r.PID {
		// The last run is not known to be dead. What it owns waits until it is; it cannot renew any more, so at the
		// latest a lease after it was last heard.
		p.Old = append(p.Old, Run{PID: p.PID, Incarnation: p.Incarnation})
		l.fence = max(l.fence, l.Heard+c.leaseMs)
		c.kill(p, p.PID, "a newer run of the same process registered")
		c.event(wire.SeverityWarning, "process.twice", p.Name, fmt.Sprintf("pid %d registered while pid %d may still run", r.PID, p.PID))
	}
	p.Incarnation++
	p.PID, p.Version, p.Addrs, p.Cores = r.PID, r.Version, slices.Clone(r.Addrs), slices.Clone(r.Cores)
	p.Key = key
	p.State = wire.ProcUp
	*l = Live{Heard: now, Since: now, Spoken: true, fence: l.fence}
	out := Registered{Incarnation: p.Incarnation}
	if p.Role == wire.RoleFrontend {
		p.State = wire.ProcJoining // up when it is mounted
		out.Session = c.s.Counters.Session
		c.s.Counters.Session++
		c.s.Sessions[out.Session] = &Session{ID: out.Session, Proc: p.ID, Incarnation: p.Incarnation}
	}
	for _, d := range r.Drives {
		c.takeDrive(p, d)
	}
	if p.Role == wire.RoleDrive {
		c.opened(p)
	}
	c.dirty = true
	c.event(wire.SeverityInfo, "process.register", p.Name, fmt.Sprintf("pid %d, version %s, incarnation %d", p.PID, p.Version, p.Incarnation))
	c.settle(now)
	return out, nil
}

func (c *Core) checkRegister(r *wire.RegisterReq) (*Proc, error) {
	refuse := func(format string, args ...any) (*Proc, error) {
		return nil, wire.Errorf("mgmt.register", wire.KindRefused, r.Name, format, args...)
	}
	p := c.s.Procs[r.Proc]
	switch {
	case p == nil:
		return refuse("there is no process %d in this cluster", r.Proc)
	case p.Name != r.Name || p.Role != r.Role:
		return refuse("process %d is %s %s, not %s %s", r.Proc, p.Role, p.Name, r.Role, r.Name)
	case !p.Wanted:
		return refuse("%s is to be stopped", p.Name)
	case r.PID == 0:
		return refuse("pid 0")
	case len(r.Addrs) > MaxAddrs || len(r.Version) > MaxTextBytes || len(r.Cores) > MaxTextBytes:
		return refuse("%d addresses, %d cores, version of %d bytes", len(r.Addrs), len(r.Cores), len(r.Version))
	case slices.ContainsFunc(r.Addrs, func(a string) bool { return len(a) > MaxTextBytes }):
		return refuse("address over %d bytes", MaxTextBytes)
	case len(p.Old) >= MaxOldRuns:
		return nil, wire.Errorf("mgmt.register", wire.KindUnavailable, r.Name, "%d earlier runs may still live", len(p.Old))
	}
	for _, d := range r.Drives {
		if have := c.s.Drives[d.ID]; have == nil || have.Proc != p.ID {
			return refuse("drive %d is not one of %s's", d.ID, p.Name)
		}
	}
	return p, nil
}

func (c *Core) takeDrive(p *Proc, d wire.DriveInfo) {
	have := c.s.Drives[d.ID]
	if d.SizeBytes != 0 && d.SizeBytes != have.SizeBytes {
		have.SizeBytes = d.SizeBytes
	}
}

// Heartbeat renews the lease of a run. Anything but the current, living run gets KindStaleSession and must stop.
func (c *Core) Heartbeat(now Millis, r *wire.HeartbeatReq) error {
	p := c.s.Procs[r.Proc]
	if p == nil || p.Incarnation != r.Incarnation || !p.serving() {
		return wire.Errorf("mgmt.heartbeat", wire.KindStaleSession, fmt.Sprint(r.Proc), "incarnation %d is not alive", r.Incarnation)
	}
	if r.Session != 0 {
		if s := c.s.Sessions[r.Session]; s == nil || s.Proc != p.ID || s.Evicted {
			return wire.Errorf("mgmt.heartbeat", wire.KindStaleSession, p.Name, "session %d is not alive", r.Session)
		}
	}
	if len(r.Note) > MaxTextBytes || len(r.Buckets) > c.s.Settings.Buckets || len(r.Drives) > len(c.s.Drives) || !boundedLinks(r.Links) {
		return wire.Errorf("mgmt.heartbeat", wire.KindOverLimit, p.Name, "%d buckets, %d drives, %d links, note of %d bytes",
			len(r.Buckets), len(r.Drives), len(r.Links), len(r.Note))
	}
	l := c.live[p.ID]
	l.Heard, l.Spoken, l.Gen, l.RSS, l.Note = now, true, r.Generation, r.RSSBytes, r.Note
	l.Ready = r.Ready
	l.Drives = r.Drives
	l.Links, l.Arena = r.Links, r.Arena
	c.noteBuckets(p, l, r.Buckets)
	if p.State == wire.ProcJoining && r.Ready {
		p.State, c.dirty = wire.ProcUp, true
	}
	if c.dirty || c.leaving > 0 { // the common heartbeat changes nothing and costs nothing
		c.settle(now)
	}
	return nil
}

// boundedLinks says that the links of a heartbeat are not more, and their texts not longer, than those of an honest process.
func boundedLinks(links []wire.LinkStat) bool {
	return len(links) <= wire.MaxPeerLinks &&
		!slices.ContainsFunc(links, func(s wire.LinkStat) bool { return len(s.Transport) > MaxTransportBytes })
}

// noteBuckets keeps what a compute says of its buckets, and makes events of those that cannot be opened, once for each
// failure.
func (c *Core) noteBuckets(p *Proc, l *Live, reports []wire.BucketReport) {
	now := make(map[wire.BucketID]wire.BucketReport, len(reports))
	for _, r := range reports {
		r.Error = r.Error[:min(len(r.Error), MaxTextBytes)]
		now[r.Bucket] = r
		had := l.Buckets[r.Bucket]
		if r.State == wire.BucketFailed && (had.State != r.State || had.Epoch != r.Epoch) {
			c.event(wire.SeverityError, "bucket.failed", p.Name, fmt.Sprintf("bucket %d, epoch %d: %.500s", r.Bucket, r.Epoch, r.Error))
		}
	}
	l.Buckets = now
}

// AddProc makes a slot for a process, wanted from now on. The caller fills the name, role and what it works on; the id
// is given here. A slot of that name is an error.
func (c *Core) AddProc(now Millis, p Proc) (wire.ProcID, error) {
	if c.s.ProcNamed(p.Name) != nil {
		return 0, wire.Errorf("mgmt.addproc", wire.KindExists, p.Name, "there is a process of that name")
	}
	if len(c.s.Procs) >= MaxProcs {
		return 0, wire.Errorf("mgmt.addproc", wire.KindOverLimit, p.Name, "at most %d processes", MaxProcs)
	}
	p.ID, p.Wanted, p.State = c.s.Counters.Proc, true, wire.ProcDown
	c.s.Counters.Proc++
	c.s.Procs[p.ID] = &p
	c.live[p.ID] = &Live{Heard: now, Since: now}
	c.dirty = true
	c.settle(now)
	return p.ID, nil
}

// SetWanted says whether the slot should run. One that should not gives back what it owns and is forgotten when it is
// down, but for slots of drives, which are kept because their data may come back.
func (c *Core) SetWanted(now Millis, id wire.ProcID, wanted bool) {
	if p := c.s.Procs[id]; p != nil && p.Wanted != wanted {
		p.Wanted, c.dirty = wanted, true
		c.settle(now)
	}
}

// AddDrive adds a device, or updates where it is. Its process slot must be there.
func (c *Core) AddDrive(now Millis, d Drive) error {
	if p := c.s.Procs[d.Proc]; p == nil || p.Role != wire.RoleDrive {
		return wire.Errorf("mgmt.adddrive", wire.KindInvalid, fmt.Sprint(d.ID), "process %d is no drive process", d.Proc)
	}
	if have := c.s.Drives[d.ID]; have != nil {
		if have.Path != d.Path || have.Proc != d.Proc {
			have.Path, have.Proc, c.dirty = d.Path, d.Proc, true
			c.settle(now)
		}
		return nil
	}
	c.s.Drives[d.ID] = &d
	c.dirty, c.pgDirty = true, true
	c.settle(now)
	return nil
}

// AddFS makes the record of a filesystem whose root directory is still to be made; see FSMade.
func (c *Core) AddFS(now Millis, name string) (*FS, error) {
	if err := CheckFSName(name); err != nil {
		return nil, err
	}
	if c.s.FSNamed(name) != nil {
		return nil, wire.Errorf("mgmt.fs", wire.KindExists, name, "there is a filesystem of that name")
	}
	if len(c.s.FSs) >= MaxFSs || c.s.Counters.FS > 1<<16-1 {
		return nil, wire.Errorf("mgmt.fs", wire.KindOverLimit, name, "at most %d filesystems", MaxFSs)
	}
	id := c.s.Counters.FS
	c.s.Counters.FS++
	f := &FS{ID: id, Name: name, Root: wire.RootIno(id, c.s.Settings.Buckets)}
	c.s.FSs[id] = f
	c.dirty = true
	c.settle(now)
	return f, nil
}

// CheckFSName says what is wrong with the name of a filesystem, or nil.
func CheckFSName(name string) error {
	ok := name != "" && len(name) <= MaxFSNameBytes && name[0] != '.' && name[0] != '-'
	for _, r := range name {
		ok = ok && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '-' || r == '_')
	}
	if !ok {
		return wire.Errorf("mgmt.fs", wire.KindInvalid, name, "a name has 1 to %d letters, digits, '.', '-' or '_', and does not start with '.' or '-'",
			MaxFSNameBytes)
	}
	return nil
}

// FSMade tells that the root directory exists.
func (c *Core) FSMade(now Millis, id wire.FSID) {
	if f := c.s.FSs[id]; f != nil && !f.Made {
		f.Made, c.dirty = true, true
		c.event(wire.SeverityInfo, "fs.create", "", f.Name)
		c.settle(now)
	}
}

// FSDeleting says that the root directory is about to be removed, or that this came to nothing.
func (c *Core) FSDeleting(now Millis, id wire.FSID, on bool) {
	if f := c.s.FSs[id]; f != nil && f.Deleting != on {
		f.Deleting, c.dirty = on, true
		c.settle(now)
	}
}

// FSGone tells that the root directory is removed.
func (c *Core) FSGone(now Millis, id wire.FSID) {
	if f := c.s.FSs[id]; f != nil {
		delete(c.s.FSs, id)
		c.dirty = true
		c.event(wire.SeverityInfo, "fs.remove", "", f.Name)
		c.settle(now)
	}
}

// SetMount changes what a frontend mounts where, at its next start.
func (c *Core) SetMount(now Millis, id wire.ProcID, fs wire.FSID, path string) {
	if p := c.s.Procs[id]; p != nil && (p.FS != fs || p.Mount != path) {
		p.FS, p.Mount, c.dirty = fs, path, true
		c.settle(now)
	}
}
