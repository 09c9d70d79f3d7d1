package leader

import (
	"slices"

	"github.com/crakefs/crake/wire"
)

// Settings are the formed facts of a cluster: they never change.
type Settings struct {
	Cluster  string `json:"cluster"` // 32 hexadecimal digits
	Name     string `json:"name"`
	K        int    `json:"k"`
	M        int    `json:"m"`
	Buckets  int    `json:"buckets"`
	FormedAt int64  `json:"formed_at"` // nanoseconds since 1970
}

// Counters give out ids, each only once.
type Counters struct {
	Proc    wire.ProcID    `json:"proc"`
	Session wire.SessionID `json:"session"`
	FS      wire.FSID      `json:"fs"`
	PG      wire.PGID      `json:"pg"`
}

// Run is one run of a process slot.
type Run struct {
	PID         uint32           `json:"pid"`
	Incarnation wire.Incarnation `json:"incarnation"`
}

// Proc is a process slot.
type Proc struct {
	ID     wire.ProcID   `json:"id"`
	Name   string        `json:"name"`
	Role   wire.Role     `json:"role"`
	Server wire.ServerID `json:"server"`
	Wanted bool          `json:"wanted"` // should run; a slot that should not is dropped when it is down
	// Drive is the device of a drive process.
	Drive wire.DriveID `json:"drive,omitempty"`
	// FS and Mount say what a frontend mounts where.
	FS    wire.FSID `json:"fs,omitempty"`
	Mount string    `json:"mount,omitempty"`

	// The current run, as it registered.

	Incarnation wire.Incarnation `json:"incarnation"` // only rises
	State       wire.ProcState   `json:"state"`
	PID         uint32           `json:"pid"`
	Version     string           `json:"version"`
	Addrs       []string         `json:"addrs"`
	Cores       []uint32         `json:"cores"`
	Key         wire.ProcKey     `json:"key"` // names the certificate that it registered with

	// Old are earlier runs that are not known to be dead: what they owned is given to nobody until they are.
	Old []Run `json:"old,omitempty"`
}

// Drive is a device.
type Drive struct {
	ID        wire.DriveID  `json:"id"`
	Proc      wire.ProcID   `json:"proc"`
	Server    wire.ServerID `json:"server"`
	Domain    uint32        `json:"domain"`
	Failed    bool          `json:"failed"`
	Reason    string        `json:"reason,omitempty"` // why it failed
	SizeBytes uint64        `json:"size_bytes"`
	Path      string        `json:"path"`
}

// Bucket tells who owns a bucket.
//
// Invariant: at most one of Owner and From is set. Owner: that run may serve it with Epoch. From: that run may still
// serve it with Epoch, though the map names nobody any more. Neither: free, nobody serves it.
type Bucket struct {
	Owner wire.ProcID      `json:"o,omitempty"`
	Inc   wire.Incarnation `json:"i,omitempty"` // of the owner's run
	Epoch wire.Epoch       `json:"e"`           // of the last owner that was named; only rises

	From    wire.ProcID      `json:"f,omitempty"`
	FromInc wire.Incarnation `json:"fi,omitempty"`
	FromGen wire.Generation  `json:"fg,omitempty"` // the map that took it away from From

	Prefer wire.ProcID `json:"p,omitempty"` // who should get it when it is free and that process is up
}

// FS is a filesystem.
type FS struct {
	ID       wire.FSID `json:"id"`
	Name     string    `json:"name"`
	Root     wire.Ino  `json:"root"`
	Made     bool      `json:"made"` // its root directory exists; only then it is in the map
	Deleting bool      `json:"deleting"`
}

// Session is a living session of a run of a frontend.
type Session struct {
	ID          wire.SessionID   `json:"id"`
	Proc        wire.ProcID      `json:"proc"`
	Incarnation wire.Incarnation `json:"incarnation"`
	Evicted     bool             `json:"evicted"` // ends when its process is dead or its lease has run out
}

// State is everything that is durable. The cluster map is a function of it.
type State struct {
	Settings   Settings
	Generation wire.Generation // of the last map
	MapSum     uint64          // of the content of the last map
	Counters   Counters
	Procs      map[wire.ProcID]*Proc
	Drives     map[wire.DriveID]*Drive
	PGs        []wire.PGInfo
	Buckets    []Bucket
	FSs        map[wire.FSID]*FS
	Sessions   map[wire.SessionID]*Session
}

// Form gives the state of a new cluster: no processes, drives or filesystems yet.
func Form(s Settings) *State {
	return &State{
		Settings: s,
		Counters: Counters{Proc: 1, Session: 1, FS: 1, PG: 1},
		Procs:    map[wire.ProcID]*Proc{},
		Drives:   map[wire.DriveID]*Drive{},
		Buckets:  make([]Bucket, s.Buckets),
		FSs:      map[wire.FSID]*FS{},
		Sessions: map[wire.SessionID]*Session{},
	}
}

// ProcNamed finds a process slot by name, or nil.
func (s *State) ProcNamed(name string) *Proc {
	for _, p := range s.Procs {
		if p.Name == name {
			return p
		}
	}
	return nil
}

// FSNamed finds a filesystem by name, or nil.
func (s *State) FSNamed(name string) *FS {
	for _, f := range s.FSs {
		if f.Name == name {
			return f
		}
	}
	return nil
}

// sortedKeys gives the keys of m in order: decisions must not depend on the order of a map.
func sortedKeys[K wire.ProcID | wire.DriveID | wire.FSID | wire.SessionID, V any](m map[K]V) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// ProcIDs gives the ids of all process slots in order.
func (s *State) ProcIDs() []wire.ProcID { return sortedKeys(s.Procs) }

// DriveIDs gives the ids of all drives in order.
func (s *State) DriveIDs() []wire.DriveID { return sortedKeys(s.Drives) }

// FSIDs gives the ids of all filesystems in order.
func (s *State) FSIDs() []wire.FSID { return sortedKeys(s.FSs) }

// runDead reports that nothing of that run serves any more: it was seen to end, it said goodbye, or its lease ran out.
func (s *State) runDead(id wire.ProcID, inc wire.Incarnation) bool {
	p := s.Procs[id]
	if p == nil {
		return true
	}
	if p.Incarnation == inc {
		return p.State == wire.ProcDown
	}
	return !slices.ContainsFunc(p.Old, func(r Run) bool { return r.Incarnation == inc })
}

// runLive reports that it is the current run of its slot and may serve.
func (s *State) runLive(id wire.ProcID, inc wire.Incarnation) bool {
	p := s.Procs[id]
	return p != nil && p.Incarnation == inc && p.serving()
}

// serving reports that the current run is registered and neither down nor being fenced.
func (p *Proc) serving() bool {
	return p.State == wire.ProcUp || p.State == wire.ProcJoining
}

// Map builds the cluster map from the state. Invariant: equal states give equal maps.
func (s *State) Map(cluster wire.ClusterID, leaseMs int) *wire.ClusterMap {
	m := &wire.ClusterMap{
		Generation: s.Generation,
		Cluster:    cluster,
		K:          uint8(s.Settings.K),
		M:          uint8(s.Settings.M),
		Buckets:    uint32(s.Settings.Buckets),
		LeaseMs:    uint32(leaseMs),
		Name:       s.Settings.Name,
		PGs:        slices.Clone(s.PGs),
		Owners:     make([]wire.BucketOwner, len(s.Buckets)),
	}
	for _, id := range s.ProcIDs() {
		p := s.Procs[id]
		m.Processes = append(m.Processes, wire.ProcInfo{
			ID: p.ID, Incarnation: p.Incarnation, Server: p.Server, Role: p.Role, State: p.State, PID: p.PID,
			Name: p.Name, Version: p.Version, Addrs: slices.Clone(p.Addrs), Cores: slices.Clone(p.Cores), Key: p.Key,
		})
	}
	for _, id := range s.DriveIDs() {
		d := s.Drives[id]
		m.Drives = append(m.Drives, wire.DriveInfo{
			ID: d.ID, Proc: d.Proc, Server: d.Server, Domain: d.Domain, State: s.driveState(d), SizeBytes: d.SizeBytes, Path: d.Path,
		})
	}
	for i, b := range s.Buckets {
		m.Owners[i] = wire.BucketOwner{Proc: b.Owner, Epoch: b.Epoch}
	}
	for _, id := range s.FSIDs() {
		if f := s.FSs[id]; f.Made {
			m.FSs = append(m.FSs, wire.FSInfo{ID: f.ID, Root: f.Root, Deleting: f.Deleting, Name: f.Name})
		}
	}
	for _, id := range sortedKeys(s.Sessions) {
		m.Sessions = append(m.Sessions, wire.SessionInfo{ID: id, Proc: s.Sessions[id].Proc})
	}
	return m
}

func (s *State) driveState(d *Drive) wire.DriveState {
	switch p := s.Procs[d.Proc]; {
	case d.Failed:
		return wire.DriveFailed
	case p != nil && p.State == wire.ProcUp:
		return wire.DriveUp
	}
	return wire.DriveDown
}
