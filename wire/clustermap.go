package wire

// ClusterMap is the one versioned description of the cluster, published whole by mgmt under a rising Generation.
//
// wire:message
type ClusterMap struct {
	Generation Generation
	Cluster    ClusterID
	K          uint8  // data strips a stripe
	M          uint8  // parity strips a stripe; replicas of a log are M+1
	Buckets    uint32 // fixed when the cluster is formed
	LeaseMs    uint32 // lease of computes and sessions, T; a compute stops serving at T/2 without renewal
	Name       string // of the cluster, for people
	Processes  []ProcInfo
	Drives     []DriveInfo
	PGs        []PGInfo
	Owners     []BucketOwner // one a bucket, in order of bucket
	FSs        []FSInfo
	Sessions   []SessionInfo // the live ones only
}

// ProcState is the state of a process in the map.
type ProcState uint8

// The states of a process.
const (
	ProcDown    ProcState = 0
	ProcSyncing ProcState = 1
	ProcJoining ProcState = 2
	ProcUp      ProcState = 3
	ProcFencing ProcState = 4
)

// String gives the state as people read it.
func (s ProcState) String() string {
	return [...]string{"down", "syncing", "joining", "up", "fencing"}[min(int(s), 4)]
}

// ProcInfo describes a process.
//
// wire:message
type ProcInfo struct {
	ID          ProcID
	Incarnation Incarnation
	Server      ServerID
	Role        Role
	State       ProcState
	PID         uint32   // on its server
	Name        string   // unique in the cluster, such as "drive0", "compute1"
	Version     string   // of the software
	Addrs       []string // where it listens, best first: "unix:/path" for its own server, "tcp:host:port"
	Cores       []uint32 // it is pinned to; empty when it is not pinned
	Key         ProcKey  // of the run that registered last; it stays when that is down, until the next registers
}

// DriveState is the state of a drive in the map.
type DriveState uint8

// The states of a drive.
const (
	DriveDown   DriveState = 0 // its process does not answer; expected back
	DriveUp     DriveState = 1
	DriveFailed DriveState = 2 // the device is broken; what lay on it must be rebuilt
)

// String gives the state as people read it.
func (s DriveState) String() string { return [...]string{"down", "up", "failed"}[min(int(s), 2)] }

// DriveInfo describes a drive. It is reached through the process that has it open.
//
// wire:message
type DriveInfo struct {
	ID        DriveID
	Proc      ProcID
	Server    ServerID
	Domain    uint32 // failure domain
	State     DriveState
	SizeBytes uint64 // of the device, for data
	Path      string // of the device on its server
}

// PGInfo is a placement group: k+m drives in distinct failure domains.
//
// wire:message
type PGInfo struct {
	ID     PGID
	Drives []DriveID
}

// BucketOwner names the compute process that may serve a bucket. Proc 0 is none.
//
// wire:message
type BucketOwner struct {
	Proc  ProcID
	Epoch Epoch
}

// FSInfo describes a filesystem.
//
// wire:message
type FSInfo struct {
	ID       FSID
	Root     Ino
	Deleting bool   // it is being removed: nobody may begin to use it
	Name     string // by which it is mounted
}

// SessionInfo names a live session and the frontend process that has it.
//
// wire:message
type SessionInfo struct {
	ID   SessionID
	Proc ProcID
}

// Proc finds a process by id, or nil.
func (m *ClusterMap) Proc(id ProcID) *ProcInfo {
	for i := range m.Processes {
		if m.Processes[i].ID == id {
			return &m.Processes[i]
		}
	}
	return nil
}

// Drive finds a drive by id, or nil.
func (m *ClusterMap) Drive(id DriveID) *DriveInfo {
	for i := range m.Drives {
		if m.Drives[i].ID == id {
			return &m.Drives[i]
		}
	}
	return nil
}

// FS finds a filesystem by name, or nil.
func (m *ClusterMap) FS(name string) *FSInfo {
	for i := range m.FSs {
		if m.FSs[i].Name == name {
			return &m.FSs[i]
		}
	}
	return nil
}

// HasSession reports whether the session is alive in this map.
func (m *ClusterMap) HasSession(id SessionID) bool {
	for i := range m.Sessions {
		if m.Sessions[i].ID == id {
			return true
		}
	}
	return false
}
