package leader

import (
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/cespare/xxhash/v2"

	"github.com/crakefs/crake/wire"
)

// Millis is a time in milliseconds on a clock that only rises; only differences matter.
type Millis int64

// Event is something that people should know of; the driver numbers, dates and keeps it.
type Event struct {
	Severity uint8 // wire.SeverityInfo and on
	Type     string
	Proc     string // name of the process it is about
	Text     string
}

// Kill asks the driver to kill a run that has lost its right to serve and may not know.
type Kill struct {
	Proc wire.ProcID
	Name string
	PID  uint32
	Why  string
}

// Output is what the driver has to do after a step: write the state when it has changed, and only then publish the map
// and answer; write the events; kill.
type Output struct {
	Changed bool // the durable state differs from what the last Output was about
	Events  []Event
	Kills   []Kill
}

// Live is what is known of the current run of a process and not durable.
type Live struct {
	Heard   Millis // last sign of life, or when this leader began
	Since   Millis // when it registered, or when this leader began
	Spoken  bool   // it has registered or sent a heartbeat to this leader
	Ready   bool
	Gen     wire.Generation // of the map it works by
	RSS     uint64
	Note    string
	Buckets map[wire.BucketID]wire.BucketReport // as it last said
	Drives  []wire.DriveStatResp
	Links   []wire.LinkStat
	Arena   wire.ArenaReport

	fence Millis // when the old runs are dead for certain
}

// Core decides. It has no goroutine, clock or IO: the driver serialises the calls and gives the time. Every method that
// takes the time may change the state; the driver then calls Take.
type Core struct {
	s       *State
	cluster wire.ClusterID
	leaseMs Millis
	live    map[wire.ProcID]*Live
	devices map[wire.DriveID]*deviceHealth // made when needed

	out       Output
	dirty     bool // durable state was touched since the map was last built
	pgDirty   bool // drives came, went or failed
	stopping  bool
	lastTick  Millis
	judged    Millis // when drives were judged last
	holdUntil Millis
	leaving   int // buckets that wait for their last owner to let go
	m         *wire.ClusterMap
}

// New begins to lead with a state that was loaded or formed. Nobody has been heard yet, so everybody who is not down gets
// a whole lease before anything of his is given away (see doc.go, "When mgmt is away").
func New(s *State, leaseMs int, now Millis) (*Core, error) {
	c := &Core{
		s: s, leaseMs: Millis(leaseMs), live: map[wire.ProcID]*Live{}, devices: map[wire.DriveID]*deviceHealth{},
		lastTick: now, dirty: true, pgDirty: true,
	}
	b, err := hex.DecodeString(s.Settings.Cluster)
	if err != nil || len(b) != len(c.cluster) {
		return nil, wire.Errorf("leader.new", wire.KindCorrupt, "settings", "cluster id %q", s.Settings.Cluster)
	}
	copy(c.cluster[:], b)
	for id := range s.Procs {
		c.live[id] = &Live{Heard: now, Since: now, fence: now + c.leaseMs}
	}
	c.settle(now)
	return c, nil
}

// State gives the state, to be read only, and not kept across calls.
func (c *Core) State() *State { return c.s }

// Live gives what is known of the current run, to be read only; never nil for a slot that exists.
func (c *Core) Live(id wire.ProcID) *Live { return c.live[id] }

// Map gives the current map; it is never changed after it was given out.
func (c *Core) Map() *wire.ClusterMap { return c.m }

// LeaseMs gives T in milliseconds.
func (c *Core) LeaseMs() int { return int(c.leaseMs) }

// Take gives and clears what the steps since the last Take ask for.
func (c *Core) Take() Output {
	o := c.out
	c.out = Output{}
	return o
}

// SetStopping freezes owners and sessions during an orderly stop of the whole cluster: everything goes away in order, and
// moving buckets about meanwhile would only delay it.
func (c *Core) SetStopping(now Millis, on bool) {
	c.stopping = on
	c.settle(now)
}

// Exited tells that a process of that pid has ended: a run of this slot or something that never registered.
func (c *Core) Exited(now Millis, id wire.ProcID, pid uint32) {
	p := c.s.Procs[id]
	if p == nil {
		return
	}
	if p.PID == pid && p.State != wire.ProcDown {
		c.down(p)
	}
	if n := len(p.Old); n > 0 {
		p.Old = slices.DeleteFunc(p.Old, func(r Run) bool { return r.PID == pid })
		c.dirty = c.dirty || len(p.Old) != n
	}
	c.settle(now)
}

// Goodbye tells that a run stops in an orderly way and holds nothing any more.
func (c *Core) Goodbye(now Millis, id wire.ProcID, inc wire.Incarnation) error {
	p := c.s.Procs[id]
	if p == nil || p.Incarnation != inc || p.State == wire.ProcDown {
		return wire.Errorf("mgmt.goodbye", wire.KindStaleSession, fmt.Sprint(id), "incarnation %d is not the current one", inc)
	}
	c.down(p)
	if !c.stopping && p.Wanted {
		c.event(wire.SeverityInfo, "process.goodbye", p.Name, "stopped in an orderly way")
	}
	c.settle(now)
	return nil
}

// Evict ends a session that does not answer: from now on its process gets no more heartbeats answered, is killed, and the
// session is gone from the map when the process is dead or its lease has run out. It reports false when there is no such session.
func (c *Core) Evict(now Millis, id wire.SessionID, why string) bool {
	s := c.s.Sessions[id]
	if s == nil {
		return false
	}
	if s.Evicted {
		return true
	}
	s.Evicted, c.dirty = true, true
	p := c.s.Procs[s.Proc]
	if p != nil && p.Incarnation == s.Incarnation && p.State != wire.ProcDown {
		p.State = wire.ProcFencing
		c.kill(p, p.PID, "session evicted: "+why)
	}
	c.event(wire.SeverityError, "session.evict", c.name(s.Proc), fmt.Sprintf("session %d: %s", id, why))
	c.settle(now)
	return true
}

// HasSession reports whether the session is in the state yet.
func (c *Core) HasSession(id wire.SessionID) bool { return c.s.Sessions[id] != nil }

// Tick lets time pass; call it every TickMs.
func (c *Core) Tick(now Millis) {
	if now-c.lastTick > StallMs {
		// We slept, or the machine did. Heartbeats of that time are lost or still in the socket, so silence proves
		// nothing: everybody gets a whole lease again. Waiting longer is always safe.
		for _, l := range c.live {
			l.Heard, l.fence = now, max(l.fence, now+c.leaseMs)
		}
	}
	c.lastTick = now
	for _, id := range c.s.ProcIDs() {
		p, l := c.s.Procs[id], c.live[id]
		if p.State != wire.ProcDown && now-l.Heard > c.leaseMs {
			c.event(wire.SeverityError, "process.hung", p.Name, fmt.Sprintf("pid %d: no heartbeat for %d ms", p.PID, now-l.Heard))
			c.kill(p, p.PID, "no heartbeat for its lease")
			c.hungDrive(now, p)
			c.down(p)
		}
		if len(p.Old) > 0 && now > l.fence {
			p.Old, c.dirty = nil, true
		}
	}
	c.judgeDrives(now)
	c.settle(now)
}

func (c *Core) down(p *Proc) {
	p.State, c.dirty = wire.ProcDown, true
	l := c.live[p.ID]
	l.Ready, l.Buckets, l.RSS, l.Note = false, nil, 0, ""
	l.Links, l.Arena = nil, wire.ArenaReport{}
}

func (c *Core) kill(p *Proc, pid uint32, why string) {
	if pid != 0 {
		c.out.Kills = append(c.out.Kills, Kill{Proc: p.ID, Name: p.Name, PID: pid, Why: why})
	}
}

func (c *Core) event(severity uint8, typ, proc, text string) {
	c.out.Events = append(c.out.Events, Event{Severity: severity, Type: typ, Proc: proc, Text: text})
}

func (c *Core) name(id wire.ProcID) string {
	if p := c.s.Procs[id]; p != nil {
		return p.Name
	}
	return fmt.Sprintf("process %d", id)
}

// settle draws the consequences of what was changed, and makes a new map when its content differs. It is cheap when
// there is nothing to do.
func (c *Core) settle(now Millis) {
	if c.dirty && !c.stopping {
		c.endSessions()
	}
	if c.dirty {
		c.dropUnwanted()
	}
	c.settleBuckets(now)
	if c.pgDirty {
		c.settlePGs()
	}
	if !c.dirty {
		return
	}
	c.dirty, c.out.Changed = false, true
	m := c.s.Map(c.cluster, int(c.leaseMs))
	m.Generation = 0
	sum := xxhash.Sum64(m.Append(nil))
	if sum != c.s.MapSum || c.s.Generation == 0 {
		c.s.Generation++
		c.s.MapSum = sum
	}
	m.Generation = c.s.Generation
	c.m = m
}

func (c *Core) endSessions() {
	for _, id := range sortedKeys(c.s.Sessions) {
		if s := c.s.Sessions[id]; c.s.runDead(s.Proc, s.Incarnation) {
			delete(c.s.Sessions, id)
			c.event(wire.SeverityInfo, "session.end", c.name(s.Proc), fmt.Sprintf("session %d", id))
		}
	}
}

// dropUnwanted forgets slots that should not run, do not run, and own nothing.
func (c *Core) dropUnwanted() {
	for _, id := range c.s.ProcIDs() {
		p := c.s.Procs[id]
		if p.Wanted || p.State != wire.ProcDown || len(p.Old) > 0 || p.Drive != 0 {
			continue
		}
		delete(c.s.Procs, id)
		delete(c.live, id)
	}
}
