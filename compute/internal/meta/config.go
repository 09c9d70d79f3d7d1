package meta

import (
	"context"
	"log/slog"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

// Config is what a Bucket is opened with. Required: FS, Data, Leases, Peers, Opens, Sessions, Arena, Buckets, Epoch.
type Config struct {
	Bucket  wire.BucketID
	Epoch   wire.Epoch // of this ownership; at least that of the one before
	Buckets int        // buckets of the cluster
	// StripeBlocks is the most data blocks of one stripe: k times the blocks of a strip. 0 is 4*32.
	StripeBlocks int

	// FS holds the database's files, in Dir. It belongs to this bucket and this epoch alone. ReuseForWrite may remove the
	// old file and make a new one: nothing here relies on recycled logs.
	FS  vfs.FS
	Dir string // of the database in FS; "" is "db"
	// Cache and FileCache are shared by all buckets of the process; nil: the bucket makes small ones of its own.
	Cache     *pebble.Cache
	FileCache *pebble.FileCache
	// MemTableBytes is the largest size of a memtable (it starts at 256 KiB and doubles as needed). 0 is 4 MiB.
	MemTableBytes int

	Data     Data
	Leases   Leases
	Opens    Opens
	Sessions Sessions
	// Peers sends a request to the owner of a bucket (a Txn*, DropRegions or RegionBlocks request) and waits for the
	// answer; it sends again on retryable errors as long as ctx lives. It may be asked for this very bucket, too.
	Peers func(ctx context.Context, bucket wire.BucketID, call *rpc.Call) error
	// Arena gives memory for the block of a small file that grows out of its inode.
	Arena *wire.Arena

	Now func() int64 // nanoseconds since 1970; nil: the clock
	Log *slog.Logger // nil: slog.Default
	// LockWait bounds the wait of a request for the locks of others within one bucket. 0 is DefaultLockWait.
	LockWait time.Duration
	// OnFail is called once, from any goroutine, when the database has failed (fenced, a device error past repair): the
	// bucket answers KindUnavailable from then on, and must be closed and opened again. May be nil; must not block.
	OnFail func(err error)
	// Crash is called at every point between two durable steps, with the point's name: a test stops the bucket there.
	// Nil in production.
	Crash func(point string)

	// nameHash replaces wire.NameHash in tests of collisions.
	nameHash func(name string) uint64
	// doubtAge and settlePause replace the constants of those names in tests.
	doubtAge    time.Duration
	settlePause time.Duration
}

// Data stores blocks of file data in stripes and segments. All methods are safe for concurrent use.
//
// Segments: Append writes to one open segment at a time, and never returns to an older one: an Append that begins after
// another one has returned segment number n gives n or a higher number. A segment's last extents may be dropped while it
// is still open; so the bucket does not Delete a segment before an Append has returned a higher number (or, as after an
// open, any segment below the numbers that were reserved by this Bucket).
type Data interface {
	// WriteStripe writes one stripe of at most Config.StripeBlocks blocks under this number (of Bucket.NextNumber), and
	// returns when all its strips are durable. data is borrowed; sums has the checksum of each block.
	// The Location's ID has position 0.
	WriteStripe(ctx context.Context, number uint64, data wire.Data, sums []uint64) (wire.Location, error)
	// Append adds blocks to the open segment (at most MaxAppendBlocks), and returns when all its replicas are durable: the
	// blocks lie at block and following of the Location, counted in blocks from the start of the segment, heads of records
	// included. data is borrowed.
	Append(ctx context.Context, data wire.Data, sums []uint64) (loc wire.Location, block uint32, err error)
	// Read reads n blocks of a location, verifies them against sums and reconstructs what is missing. The caller owns the
	// Data.
	Read(ctx context.Context, loc wire.Location, block uint32, n int, sums []uint64) (wire.Data, error)
	// Delete frees stripes and segments that nothing points to any more. It does not wait: what is lost by a crash is found
	// as a leak after the next open (HasLocation).
	Delete(locs ...wire.Location)
}

// Leases is the lease manager of the bucket. All methods are safe for concurrent use.
type Leases interface {
	// Hold waits until no session but this one has a lease on the inodes that conflicts (change false: write leases of
	// others are reduced to read; true: others have none), and until release is called grants none that does.
	// Never called with a lock held. Session 0 is nobody's: all leases are others'.
	Hold(ctx context.Context, session wire.SessionID, inos []wire.Ino, change bool) (release func(), err error)
	// Grant gives the session a lease of at most this mode, while holding; what conflicts gives LeaseNone. It does not wait.
	Grant(session wire.SessionID, ino wire.Ino, want wire.LeaseMode) wire.Lease
	// Holds reports whether the session has a lease of at least this mode now.
	Holds(session wire.SessionID, ino wire.Ino, mode wire.LeaseMode) bool
	// WriteHeld reports whether any other session has a write lease on the inode now (so that its attributes here may be
	// old). For listings, which cannot hold every inode they name.
	WriteHeld(session wire.SessionID, ino wire.Ino) bool
}

// Opens knows which inodes sessions have open. It must not call the Bucket back.
type Opens interface {
	// IsOpen reports whether any session has the inode open. Called with the inode's lock held.
	IsOpen(ino wire.Ino) bool
	// Opened counts the inode as open by the session (once, however often). Called with the inode's lock held, so that no
	// unlink can come between the check that the inode lives and the note that it is open.
	Opened(session wire.SessionID, ino wire.Ino)
}

// Sessions knows which sessions live.
type Sessions interface {
	// Alive reports whether the session may still change things here. Must not block.
	Alive(session wire.SessionID) bool
}
