package leader

// Limits and delays of the leader's decisions, each with its reason.
const (
	// SpreadHoldMs is how long the first assignment of buckets waits for all wanted computes and drives when no compute
	// is up: processes of a cluster that starts come up within a second of each other, and moving a bucket, or trying
	// to open it without its drives, costs more than this wait.
	SpreadHoldMs = 2000
	// RebalanceDelayMs is how long a compute must have been up before buckets are moved to it, so that one that
	// crashes again and again does not make its peers close buckets for nothing.
	RebalanceDelayMs = 3000
	// MaxMoves bounds the buckets that are on their way between two living computes: each is away for some
	// milliseconds, and a few at a time keep most of the namespace served.
	MaxMoves = 4
	// StallMs is the gap between two ticks (TickMs apart) from which on the leader takes itself to have been asleep: then
	// it has not heard heartbeats that were sent, and gives everybody a whole lease again.
	StallMs = 1000
	// TickMs is how often the driver calls Tick: well under the second in which an expiry should show.
	TickMs = 100
	// MaxFSs bounds filesystems; ids have 16 bits and are never used again.
	MaxFSs = 1024
	// MaxProcs bounds process slots: 1,000 servers of 20 drives with their computes and frontends.
	MaxProcs = 32 << 10
	// MaxOldRuns bounds the remembered earlier runs of one slot that may still be alive. Each needs a process that
	// registers anew while the last is not known to be dead, so more than two is a fault already; then new ones wait.
	MaxOldRuns = 8
	// MaxAddrs and MaxTextBytes bound what a registering process says about itself.
	MaxAddrs     = 8
	MaxTextBytes = 4096
	// MaxTransportBytes bounds the name of a transport.
	MaxTransportBytes = 32
	// MaxFSNameBytes bounds the name of a filesystem.
	MaxFSNameBytes = 64
	// JudgeMs is how often drives are judged; their means are of ten seconds.
	JudgeMs = 1000
	// TroubleLimit reports of trouble within TroubleWindowMs, the first and the last TroubleMinMs apart, make a drive a failed
	// one: one report may be a glitch that a restart mends. (Ceph's OSDs stop after five in ten minutes, too.) A device may also appear late: udev and multipath settle
	// within some tens of seconds of a boot, and the process is started again at least every five seconds.
	TroubleLimit    = 5
	TroubleWindowMs = 600_000
	TroubleMinMs    = 30_000
	// MaxTroubles bounds what is remembered of them: one in five seconds for a minute.
	MaxTroubles = 12
	// SlowFactor times the median of at least SlowPeers others is slow: two of a kind differ by a factor of two or three when one
	// tidies up inside, hardly ever by eight, and of fewer peers nobody knows who is the odd one.
	SlowFactor = 8
	SlowPeers  = 3
	// SlowWarnMs and SlowFailMs are for how long a drive must be slow. The means are of ten seconds, so one long IO makes no spell
	// of more; flash that collects garbage and disks that recalibrate pause for seconds.
	SlowWarnMs = 15_000
	SlowFailMs = 30_000
	// SlowForgetMs is how long a spell of slowness lasts without anybody being able to tell: a slow drive that is given nothing to do
	// does not get well by that.
	SlowForgetMs = 60_000
	// FreshMs is the age up to which a heartbeat's means are compared: four heartbeats.
	FreshMs = 2000
	// MaxPGs and PGsPerDrive set how many placement groups there are: enough that a drive's strips are spread over many
	// sets of peers (fast rebuild), few enough that the map stays some MiB at 20,000 drives.
	PGsPerDrive = 4
	MaxPGs      = 20_000
)
