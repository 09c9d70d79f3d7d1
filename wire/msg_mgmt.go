package wire

// Requests that mgmt answers to the processes of its server.

// RegisterReq announces a process that has just started and listens. Drives tells the devices it has open.
//
// wire:message
type RegisterReq struct {
	Proc    ProcID
	Role    Role
	PID     uint32   // on its server; not 0
	Name    string   // of the slot; it must be that of Proc
	Version string   // of the software
	Addrs   []string // where it listens, as in ProcInfo
	Drives  []DriveInfo
	Cores   []uint32 // as in ProcInfo
}

// RegisterResp gives the run its incarnation, a frontend its session, and the map.
//
// wire:message
type RegisterResp struct {
	Incarnation Incarnation
	Session     SessionID
	Map         ClusterMap
}

// BucketState is how far an owner is with a bucket.
type BucketState uint8

// The states of a bucket.
const (
	BucketClosed  BucketState = 0
	BucketOpening BucketState = 1 // fencing, listing, replaying
	BucketReclaim BucketState = 2 // waits for sessions to reclaim
	BucketServing BucketState = 3
	BucketFailed  BucketState = 4 // cannot be opened: see the error
)

// String gives the state as people read it.
func (s BucketState) String() string {
	return [...]string{"closed", "opening", "reclaim", "serving", "failed"}[min(int(s), 4)]
}

// BucketReport tells mgmt how an owned bucket is.
//
// wire:message
type BucketReport struct {
	Bucket BucketID
	Epoch  Epoch
	State  BucketState
	Error  string // why it is BucketFailed; else empty
}

// HeartbeatReq renews the lease of a process, and of the session of a frontend. The lease holds from when the request was sent.
// When mgmt is not running, a lease that is not over may be lengthened too: see package wire/away.
// Buckets names every bucket that the process may still serve until it is closed; a bucket that was taken from it by a map is given
// to another when a heartbeat with at least that Generation no longer names it.
//
// wire:message
type HeartbeatReq struct {
	Proc        ProcID
	Incarnation Incarnation
	Session     SessionID
	Generation  Generation
	RSSBytes    uint64 // memory of the process
	Ready       bool   // frontend: it is mounted; drive and compute: it serves
	Note        string // for people, such as why it is not ready
	Buckets     []BucketReport
	Drives      []DriveStatResp

	Arena ArenaReport
	Links []LinkStat // at most MaxPeerLinks; see there
}

// ArenaReport tells what the memory of a process for file data is doing, in bytes; see ArenaStats.
//
// wire:message
type ArenaReport struct {
	Bytes       uint64 // its size
	Used        uint64 // handed out, what is lent included
	Lent        uint64 // to other processes
	Quarantined uint64 // lent to connections that have ended, until nobody can touch it any more
}

// MaxPeerLinks bounds the links of a heartbeat: 100 bytes each, twice a second. Of a process that has more the rest is summed up, by
// transport, as links to process 0.
const MaxPeerLinks = 256

// LinkStat sums up the connections between a process and one of its peers that are up and go by the same transport. Bytes are of data
// sections, since these connections began.
//
// wire:message
type LinkStat struct {
	Peer      ProcID
	Role      Role // of the peer
	Conns     uint32
	Transport string // "shm", "unix", "tcp", "tcp+tls" or "mem"

	SentInline     uint64 // through the socket
	SentByRef      uint64 // lent to the peer
	ReceivedInline uint64
	ReceivedByRef  uint64 // lent by the peer

	Loans     uint32 // frames whose data the peer has and has not given back
	LoanBytes uint64 // memory that they hold
}

// HeartbeatResp renews for LeaseMs from the time the request was sent. A process of another incarnation than the
// current one, or a session that was ended, gets an error instead and must stop serving.
//
// wire:message
type HeartbeatResp struct {
	Generation Generation
	LeaseMs    uint32
}

// WatchMapReq waits until the map is newer than After, or the deadline.
//
// wire:message
type WatchMapReq struct {
	After Generation
}

// WatchMapResp holds the map; its Generation is not above After when the deadline came first.
//
// wire:message
type WatchMapResp struct {
	Map ClusterMap
}

// Severities of events.
const (
	SeverityInfo    = 1
	SeverityWarning = 2
	SeverityError   = 3
)

// EventReq reports something that people should know of.
//
// wire:message
type EventReq struct {
	Proc     ProcID
	Severity uint8  // see Severities
	Type     string // such as "strip.corrupt"
	Text     string // for people
	Time     int64  // nanoseconds since 1970
}

// EvictReq asks to end a session that does not answer recalls.
//
// wire:message
type EvictReq struct {
	Session SessionID
	Reason  string // for people
}

// GoodbyeReq says that the process stops in an orderly way and holds nothing any more.
//
// wire:message
type GoodbyeReq struct {
	Proc        ProcID
	Incarnation Incarnation
}

// DriveTroubleReq tells that a drive process is about to end because of a device: it could not open it, or the device does not
// take writes any more. It is started again, since only an opening tells what a device holds; but a drive of which this is
// heard again and again is failed. The process need not have registered. Repeats are harmless: one pid counts once.
//
// wire:message
type DriveTroubleReq struct {
	Proc  ProcID
	PID   uint32 // of the run that ends
	Drive DriveID
	Text  string // why
}
