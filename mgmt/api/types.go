package api

import "time"

// Prefix starts the path of every request.
const Prefix = "/api/v1"

// States of Health.
const (
	HealthStarting    = "starting"    // not everything that is wanted has come up for the first time
	HealthOK          = "ok"          // everything that is wanted is up, full protection
	HealthDegraded    = "degraded"    // data is available, but something is down; reasons say what
	HealthUnavailable = "unavailable" // some data cannot be read or written now
	HealthStopping    = "stopping"    // an orderly stop is under way
)

// Health sums the state of the cluster up.
type Health struct {
	State   string   `json:"state"`
	Reasons []string `json:"reasons"` // in numbers; empty when all is well
}

// Protection is the erasure code k+m.
type Protection struct {
	Data   int `json:"data"`
	Parity int `json:"parity"`
}

// Count tells how many of something are up.
type Count struct {
	Up    int `json:"up"`
	Total int `json:"total"`
}

// DriveCount tells how many drives are up. What is neither up nor failed is down: it is expected back.
type DriveCount struct {
	Up     int `json:"up"`
	Total  int `json:"total"`
	Failed int `json:"failed"` // for good, until they are activated
}

// BucketCount tells how many buckets are in which state. Unowned ones have no live compute.
type BucketCount struct {
	Total   int `json:"total"`
	Serving int `json:"serving"`
	Opening int `json:"opening"` // opening or waiting for sessions to reclaim
	Failed  int `json:"failed"`
	Unowned int `json:"unowned"`
}

// Capacity is in bytes. Usable is what files can hold: raw times k/(k+m).
type Capacity struct {
	RawBytes        uint64 `json:"raw_bytes"`
	RawFreeBytes    uint64 `json:"raw_free_bytes"`
	UsableBytes     uint64 `json:"usable_bytes"`
	UsableFreeBytes uint64 `json:"usable_free_bytes"`
}

// Status is the answer of GET /status.
type Status struct {
	ClusterID   string           `json:"cluster_id"`
	Name        string           `json:"name"`
	Version     string           `json:"version"` // of mgmt
	Generation  uint64           `json:"generation"`
	FormedAt    time.Time        `json:"formed_at"`
	Time        time.Time        `json:"time"` // when this was made
	Protection  Protection       `json:"protection"`
	LeaseMs     int              `json:"lease_ms"`
	Health      Health           `json:"health"`
	Processes   map[string]Count `json:"processes"` // by role
	Drives      DriveCount       `json:"drives"`
	Buckets     BucketCount      `json:"buckets"`
	Capacity    Capacity         `json:"capacity"`
	Filesystems []Filesystem     `json:"filesystems"`
	Mounts      []Mount          `json:"mounts"`
	Sessions    int              `json:"sessions"`
	Mgmt        MgmtInfo         `json:"mgmt"`
	// Advice says what somebody should do, a sentence each; empty when there is nothing.
	Advice []string `json:"advice"`
	// Wire is how processes of this server speak: shm, unix or tcp; WireEncryption tells whether what goes by tcp is encrypted.
	Wire           string `json:"wire"`
	WireEncryption bool   `json:"wire_encryption"`
}

// MgmtInfo describes the mgmt process that answers.
type MgmtInfo struct {
	PID       int       `json:"pid"`
	KeeperPID int       `json:"keeper_pid"` // restarts mgmt when it crashes; 0 when there is none
	StartedAt time.Time `json:"started_at"`
	RSSBytes  uint64    `json:"rss_bytes"`
	Leader    bool      `json:"leader"`
	Dir       string    `json:"dir"`
	APIListen string    `json:"api_listen"` // TCP address, with the real port; "" when there is none
}

// Process is a process of the cluster, mgmt and its keeper included (ids 0).
type Process struct {
	ID             uint32    `json:"id"`
	Name           string    `json:"name"`
	Role           string    `json:"role"`
	State          string    `json:"state"` // down, syncing, joining, up, fencing
	PID            int       `json:"pid"`   // 0 when it does not run
	Cores          []int     `json:"cores"` // it is pinned to; empty when it is not pinned
	Version        string    `json:"version"`
	Incarnation    uint64    `json:"incarnation"`
	Ready          bool      `json:"ready"` // it says that it serves, a frontend that it is mounted
	StartedAt      time.Time `json:"started_at"`
	Restarts       int       `json:"restarts"` // since mgmt started
	RSSBytes       uint64    `json:"rss_bytes"`
	HeartbeatAgeMs int64     `json:"heartbeat_age_ms"` // -1: none since mgmt started
	Addrs          []string  `json:"addrs"`
	Log            string    `json:"log"`       // path of its log file
	LastExit       string    `json:"last_exit"` // how its last run ended, with its last words; "" when it did not
	Note           string    `json:"note"`      // what it says about itself

	ArenaBytes            uint64 `json:"arena_bytes"`             // memory for data that it may use; 0 when it does not run, or has not said yet
	ArenaUsedBytes        uint64 `json:"arena_used_bytes"`        // of that, handed out now
	ArenaLentBytes        uint64 `json:"arena_lent_bytes"`        // of that, lent to other processes
	ArenaQuarantinedBytes uint64 `json:"arena_quarantined_bytes"` // lent to connections that have ended, until nobody can touch it any more
	Links                 []Link `json:"links"`                   // its connections with other processes that are up, mgmt's aside; at most wire.MaxPeerLinks
}

// Link sums up the connections of a process with one peer by one transport. Bytes are of file data, since these connections began.
type Link struct {
	Peer        string `json:"peer"`        // name; "" stands for all peers beyond the bound
	Transport   string `json:"transport"`   // shm, unix, tcp, tcp+tls
	Connections int    `json:"connections"` // made by either side

	SentInlineBytes     uint64 `json:"sent_inline_bytes"` // copied through the socket
	SentByRefBytes      uint64 `json:"sent_by_ref_bytes"` // in shared memory
	ReceivedInlineBytes uint64 `json:"received_inline_bytes"`
	ReceivedByRefBytes  uint64 `json:"received_by_ref_bytes"`

	Loans     int    `json:"loans"`      // requests and answers whose data the peer has by reference and has not given back
	LoanBytes uint64 `json:"loan_bytes"` // memory that they hold
}

// Drive is a device of the cluster. Counters are since its process started.
type Drive struct {
	ID         uint32 `json:"id"`
	Process    string `json:"process"`
	Path       string `json:"path"`
	State      string `json:"state"` // down (expected back), up, failed (until it is activated)
	Domain     uint32 `json:"domain"`
	SizeBytes  uint64 `json:"size_bytes"`
	FreeBytes  uint64 `json:"free_bytes"`
	Strips     uint64 `json:"strips"`
	Reads      uint64 `json:"reads"`
	ReadBytes  uint64 `json:"read_bytes"`
	Writes     uint64 `json:"writes"`
	WriteBytes uint64 `json:"write_bytes"`
	Flushes    uint64 `json:"flushes"`
	Errors     uint64 `json:"errors"`
	Engine     string `json:"engine"`
	Flush      string `json:"flush"`

	EngineReason string `json:"engine_reason"` // why it is not io_uring; "" when it is, or another was asked for

	PGs int `json:"pgs"` // placement groups it is in

	Reason   string `json:"reason"`   // why it failed; "" when it has not
	Problem  string `json:"problem"`  // what is wrong with it though it has not failed: slow, or faulty beyond what the protection bears
	Troubles int    `json:"troubles"` // runs of its process in the last ten minutes that ended because of the device

	ReadNs  uint64 `json:"read_ns"` // mean time of a device IO of about the last ten seconds; 0: too few for a judgement
	WriteNs uint64 `json:"write_ns"`
	FlushNs uint64 `json:"flush_ns"`
	Queued  uint32 `json:"queued"` // requests that wait for their turn at the device

	Corrupt         uint64 `json:"corrupt"` // strips found not to match their checksums
	ScrubDoneBytes  uint64 `json:"scrub_done_bytes"`
	ScrubTotalBytes uint64 `json:"scrub_total_bytes"` // of the pass under way
	ScrubPasses     uint64 `json:"scrub_passes"`      // complete ones
	DiscardBytes    uint64 `json:"discard_bytes"`     // told to the device as unused
	IndexBytes      uint64 `json:"index_bytes"`       // memory of the index
}

// DeactivateRequest is the body of POST /drives/{id}/deactivate.
type DeactivateRequest struct {
	Reason string `json:"reason"`
	Force  bool   `json:"force"` // even if data becomes unavailable or writes wait
}

// Bucket is a shard of metadata. The counters are there only when detail was asked for and its owner answered.
type Bucket struct {
	ID         uint32 `json:"id"`
	Owner      string `json:"owner"` // name of the compute; "" is none
	Epoch      uint64 `json:"epoch"`
	State      string `json:"state"` // closed, opening, reclaim, serving, failed
	Error      string `json:"error"`
	Inodes     uint64 `json:"inodes"`
	DataBytes  uint64 `json:"data_bytes"`
	Stripes    uint64 `json:"stripes"`
	Segments   uint64 `json:"segments"`
	OpenTxns   uint64 `json:"open_txns"`
	Leases     uint64 `json:"leases"`
	Orphans    uint64 `json:"orphans"`
	TableBytes uint64 `json:"table_bytes"`
}

// PG is a placement group.
type PG struct {
	ID     uint32   `json:"id"`
	Drives []uint32 `json:"drives"`
	Up     int      `json:"up"` // drives of it that are up
}

// Filesystem is a filesystem of the cluster.
type Filesystem struct {
	ID       uint32   `json:"id"`
	Name     string   `json:"name"`
	Root     uint64   `json:"root"` // inode number
	Deleting bool     `json:"deleting"`
	Mounts   []string `json:"mounts"` // paths where it is (to be) mounted on this server
}

// Mount is a frontend that is wanted and its mount point.
type Mount struct {
	Name  string `json:"name"` // of the frontend process
	FS    string `json:"fs"`
	Path  string `json:"path"`
	Ready bool   `json:"ready"`
	PID   int    `json:"pid"`
	Error string `json:"error"` // why it is not ready: last words of its last run; "" when it only starts
}

// Severities of events, as they are written.
const (
	SeverityInfo    = "info"
	SeverityWarning = "warning"
	SeverityError   = "error"
)

// Event is something that people should know of.
type Event struct {
	ID       uint64    `json:"id"` // rises
	Time     time.Time `json:"time"`
	Severity string    `json:"severity"`
	Type     string    `json:"type"`    // such as "process.exit", "bucket.move", "strip.corrupt"
	Process  string    `json:"process"` // that it is about, or that reported it; "" is mgmt
	Text     string    `json:"text"`
}

// EventFilter says which events to list; zero is the newest DefaultEvents.
type EventFilter struct {
	Limit    int    // newest so many; 0 is DefaultEvents, at most MaxEvents
	After    uint64 // only ids above
	Severity string // at least; "" is all
	Type     string // this type, or types that start with it when it ends with "."; "" is all
}

// DefaultEvents and MaxEvents bound the events of one answer; mgmt keeps the newest MaxEvents.
const (
	DefaultEvents = 100
	MaxEvents     = 10_000
)

// FSRequest is the body of POST /filesystems.
type FSRequest struct {
	Name string `json:"name"`
}

// MountRequest is the body of POST and DELETE /mounts.
type MountRequest struct {
	FS   string `json:"fs,omitempty"` // not needed to remove
	Path string `json:"path"`
}

// StopRequest is the body of POST /stop.
type StopRequest struct {
	Force bool `json:"force"` // detach mount points that are in use
}

// StopResponse is the answer of POST /stop: the stop goes on after it, and ends with the end of mgmt.
type StopResponse struct {
	PID       int `json:"pid"`
	KeeperPID int `json:"keeper_pid"`
}

// Error is the body of every answer that is no success, and what the client returns.
type Error struct {
	Status  int    `json:"-"`     // HTTP status
	Message string `json:"error"` // what is wrong
	Hint    string `json:"hint"`  // what to do next; may be empty
}

// Error gives "message; hint".
func (e *Error) Error() string {
	if e.Hint == "" {
		return e.Message
	}
	return e.Message + "; " + e.Hint
}
