package wire

// Requests that computes answer to frontends. The header carries the epoch that the sender believes the bucket of the
// request to have; a compute that does not own that bucket answers KindMoved.

// OpID makes a mutation happen exactly once: the reply is recorded under (Session, Seq) in the same commit.
// All sequences below Acked have been answered, and their records may go.
//
// wire:message
type OpID struct {
	Session SessionID
	Seq     uint64
	Acked   uint64
}

// Attr is what stat shows. Mode holds type and permission bits as in st_mode. Times are nanoseconds since 1970.
//
// wire:message
type Attr struct {
	Ino     Ino
	Mode    uint32
	Nlink   uint32 // as st_nlink
	UID     uint32 // owner
	GID     uint32 // group
	Rdev    uint32 // of a device: its number, as st_rdev
	Size    uint64 // bytes; of a directory the number of its names
	Blocks  uint64 // of 512 bytes
	Atime   int64  // of the last access, as far as it is kept
	Mtime   int64  // of the last change of the data
	Ctime   int64  // of the last change of the inode
	Btime   int64  // of its making
	Version uint64 // rises with every change of the inode
}

// LeaseMode is what a lease allows. Each one includes the ones before.
type LeaseMode uint8

// The modes of a lease on an inode.
const (
	LeaseNone LeaseMode = 0
	// LeaseRead: attributes, extents, data (of a directory: its names and their absence) may be cached.
	LeaseRead LeaseMode = 1
	// LeaseWrite: data may be buffered; size and mtime belong to the holder until it publishes them. Only one session
	// has it, and then no other session has any lease on the inode.
	LeaseWrite LeaseMode = 2
)

// Lease grants a mode to the asking session. Seq orders grants and recalls of one inode by one owner: a grant whose Seq
// is not above that of a recall already seen is void.
//
// wire:message
type Lease struct {
	Mode LeaseMode
	Seq  uint64
}

// LookupReq finds a name in a directory.
//
// wire:message
type LookupReq struct {
	Session SessionID
	Parent  Ino
	Name    string    // of the entry
	Want    LeaseMode // on the inode found, if it lies in the directory's bucket; given only when nobody must be recalled
}

// EntryResp describes an entry. When the inode lies in another bucket HasAttr may be false: ask there with GetAttrReq.
//
// wire:message
type EntryResp struct {
	Ino     Ino
	Type    uint32 // S_IFMT part of the mode
	HasAttr bool
	Attr    Attr
	Lease   Lease // on Ino, as asked for
	Parent  Attr  // of the directory after a mutation; Ino 0 when it is not told
}

// GetAttrReq asks for attributes. If another session has the write lease, it is recalled to a read lease first.
//
// wire:message
type GetAttrReq struct {
	Session SessionID
	Ino     Ino
	Want    LeaseMode
}

// AttrResp holds attributes and perhaps a lease.
//
// wire:message
type AttrResp struct {
	Attr  Attr
	Lease Lease
}

// Bits of SetAttrReq.Valid.
const (
	SetMode     = 1 << 0
	SetUID      = 1 << 1
	SetGID      = 1 << 2
	SetSize     = 1 << 3
	SetAtime    = 1 << 4
	SetMtime    = 1 << 5
	SetAtimeNow = 1 << 6
	SetMtimeNow = 1 << 7
	SetCtime    = 1 << 8
	// SetKillPriv clears setuid and setgid as a write or truncate by a plain user does.
	SetKillPriv = 1 << 9
)

// SetAttrReq changes attributes; with SetSize it truncates or extends (drops extents past the end, in every region).
// Leases of other sessions are recalled first. For SetSize the sender holds the write lease and has published or
// dropped what it had buffered.
//
// wire:message
type SetAttrReq struct {
	Op    OpID
	Ino   Ino
	Valid uint32 // bits of the fields that count, Set...
	Mode  uint32 // permission bits
	UID   uint32 // owner
	GID   uint32 // group
	Size  uint64 // bytes
	Atime int64  // unless SetAtimeNow
	Mtime int64  // unless SetMtimeNow
	Ctime int64  // nanoseconds since 1970
}

// CreateReq makes a new inode and a name for it: a regular file, directory, symlink (Target), fifo, socket or device
// (Rdev), by the type bits of Mode. If the name exists: KindExists when Excl (always for anything but a regular file),
// else the existing entry is answered as for LookupReq. Open counts the new inode as open by the session. A directory
// with the setgid bit gives its group (and the bit, to directories) to what is made in it.
//
// wire:message
type CreateReq struct {
	Op     OpID
	Parent Ino
	Mode   uint32
	UID    uint32 // owner of the new inode
	GID    uint32 // its group, unless the directory gives one
	Rdev   uint32
	Excl   bool
	Open   bool
	Want   LeaseMode
	Name   string // of the entry: 1 to MaxNameBytes bytes without slash and zero byte
	Target string
}

// UnlinkReq removes a name; Dir says that it must be (rmdir) or must not be (unlink) a directory.
//
// wire:message
type UnlinkReq struct {
	Op     OpID
	Parent Ino
	Dir    bool
	Name   string // of the entry
}

// UnlinkResp names the inode that lost a name, so that the asker can forget its attributes. Ino 0 (an older peer, or a
// replayed answer that does not know) makes it forget all.
//
// wire:message
type UnlinkResp struct {
	Ino Ino
}

// Flags of RenameReq, as renameat2 has them.
const (
	RenameNoReplace = 1
	RenameExchange  = 2
)

// RenameReq moves a name. It goes to the owner of the old parent's bucket.
//
// wire:message
type RenameReq struct {
	Op        OpID
	OldParent Ino
	NewParent Ino
	Flags     uint32 // RenameNoReplace or RenameExchange, or 0
	OldName   string // entry of OldParent
	NewName   string // entry of NewParent
}

// RenameResp names the inode that was moved and the one that was replaced or exchanged (0: none). Moved 0 means that it
// is not told, as in UnlinkResp.
//
// wire:message
type RenameResp struct {
	Moved Ino
	Other Ino
}

// LinkReq makes a further name for an inode. It goes to the owner of the new parent's bucket.
//
// wire:message
type LinkReq struct {
	Op     OpID
	Ino    Ino
	Parent Ino
	Name   string // of the new entry
}

// ReadDirReq lists a directory from after Cookie (0 is the start). "." and ".." are not told: cookies 1 and 2 are
// theirs. Cookies stay valid for ever.
//
// wire:message
type ReadDirReq struct {
	Session SessionID
	Ino     Ino
	Cookie  uint64
	Limit   uint32 // entries, at most 4096; 0 is that
	Plus    bool   // with attributes, where the inode lies in this bucket
}

// DirEntry is a name in a directory.
//
// wire:message
type DirEntry struct {
	Cookie  uint64 // names the place behind the entry: ReadDirReq.Cookie to go on from there
	Ino     Ino
	Type    uint32 // S_IFMT part of the mode
	HasAttr bool   // Attr is told
	Name    string // bytes of any kind but slash and zero
	Attr    Attr   // only when HasAttr
}

// ReadDirResp holds entries in order of cookie; EOF says that there are none after them.
//
// wire:message
type ReadDirResp struct {
	EOF     bool
	Parent  Ino // of the directory itself, for ".."
	Entries []DirEntry
}

// ReadLinkReq asks for the target of a symlink.
//
// wire:message
type ReadLinkReq struct {
	Session SessionID
	Ino     Ino
}

// ReadLinkResp holds it.
//
// wire:message
type ReadLinkResp struct {
	Target string // of the link
}

// OpenReq counts the inode as open by the session (once, however often) and asks for a lease.
//
// wire:message
type OpenReq struct {
	Session SessionID
	Ino     Ino
	Want    LeaseMode
	Extents bool // answer the extents of region 0 as well
}

// OpenResp answers it.
//
// wire:message
type OpenResp struct {
	Attr    Attr
	Lease   Lease
	Extents ExtentsResp // of region 0, when asked for
}

// ReleaseReq ends that the session has these inodes open; those without a name are deleted.
//
// wire:message
type ReleaseReq struct {
	Session SessionID
	Bucket  BucketID
	Inos    []Ino
}

// LocKind says what a Location is.
type LocKind uint8

// The kinds of Location.
const (
	LocStripe  LocKind = 1
	LocSegment LocKind = 2
)

// Location is a stripe or a segment that extents point to. The strip (or replica) at position p has the id
// ID.WithPos(p) and lies on Drives[p].
//
// wire:message
type Location struct {
	Kind     LocKind
	K        uint8 // data strips; of a segment without meaning
	M        uint8 // parity strips; a segment has M+1 replicas
	Degraded bool  // two strips share a failure domain
	ID       StripID
	Blocks   uint32    // data blocks of a stripe: see Geometry
	Drives   []DriveID // k+m of a stripe, m+1 of a segment
}

// Geometry gives the layout of a stripe.
func (l *Location) Geometry() Geometry {
	return Geometry{K: int(l.K), M: int(l.M), Blocks: int(l.Blocks)}
}

// Extent is a run of a file: Len bytes at FileOff lie at block Block of Locations[Loc] and following. Only the end may
// be inside a block: the rest of that block counts as zeros, whatever is stored there. What no extent covers is a hole.
//
// wire:message
type Extent struct {
	FileOff uint64 // a multiple of BlockSize
	Len     uint64 // bytes, at least 1
	Loc     uint32
	Block   uint32
	Sums    []uint64 // xxhash64 of every stored block
}

// ExtentsReq asks for the extents of [Off, Off+Len), which lies in one region; it goes to that region's bucket.
// (Whether they may be cached is a matter of the lease on the inode, which lies at the inode's owner.)
//
// wire:message
type ExtentsReq struct {
	Session SessionID
	Ino     Ino
	Off     uint64
	Len     uint64
}

// ExtentsResp holds extents in order of FileOff; they may start before and end after what was asked. Of a file that
// lies in its inode record, HasInline is set and Inline holds all of it.
//
// wire:message
type ExtentsResp struct {
	HasInline bool
	Inline    []byte
	Locations []Location
	Extents   []Extent
}

// WriteRun is a run of whole blocks in the data section of a WriteReq; Len is in bytes, and only the last block may be
// used in part (its rest is zeros).
//
// wire:message
type WriteRun struct {
	Off  uint64 // a multiple of BlockSize
	Len  uint64
	Sums []uint64 // xxhash64 of every block
}

// FileWrite is what a WriteReq writes to one file, all in one region.
//
// wire:message
type FileWrite struct {
	Ino    Ino
	Region uint64     // number of the region: offset divided by RegionBytes
	Runs   []WriteRun // in order, not overlapping
	// Publish (only with region 0): the inode takes Size (if larger than its size) and Mtime in the same commit.
	Publish bool
	Size    uint64 // of the file, bytes
	Mtime   int64  // nanoseconds since 1970
}

// WriteReq writes blocks to files of one bucket, all or nothing, durably. The data section holds the blocks of all runs
// in order. The session holds the write lease of each inode. Regions above 0 have been prepared (PrepareReq).
//
// wire:message
type WriteReq struct {
	Op     OpID
	Bucket BucketID
	Files  []FileWrite
}

// WriteResp holds, for each file with Publish, its attributes after the write, and for each file in order the extents
// of what was written (for the writer's cache).
//
// wire:message
type WriteResp struct {
	Attrs   []Attr
	Extents []ExtentsResp
}

// PrepareReq notes in the inode, durably, that these regions may hold data, before any is written there. So that a
// delete or truncate finds them all.
//
// wire:message
type PrepareReq struct {
	Op      OpID
	Ino     Ino
	Regions []uint64 // numbers of regions: offset divided by RegionBytes
}

// PublishReq sets size (if Size is larger than the inode's) and mtime once all data below is committed.
//
// wire:message
type PublishReq struct {
	Op    OpID
	Ino   Ino
	Size  uint64
	Mtime int64 // nanoseconds since 1970
}

// PunchReq drops the extents of [Off, Off+Len), whole blocks of one region. The session holds the write lease.
//
// wire:message
type PunchReq struct {
	Op  OpID
	Ino Ino
	Off uint64
	Len uint64
}

// XattrReq is about extended attributes. Flags as setxattr has them (1 create, 2 replace). For get and list only
// Op.Session counts.
//
// wire:message
type XattrReq struct {
	Op    OpID
	Ino   Ino
	Flags uint32
	Name  string // of the attribute: user.x
	Value []byte // to set
}

// XattrResp holds a value, or names.
//
// wire:message
type XattrResp struct {
	Value []byte   // of the attribute asked for
	Names []string // of all, when they are listed
}

// Types of lock.
const (
	LockRead   = 0 // F_RDLCK
	LockWrite  = 1 // F_WRLCK
	LockUnlock = 2 // F_UNLCK
)

// LockReq sets, drops or tests a lock: fcntl byte range [Start, End] (inclusive), or the flock of the whole file, which
// is a space of its own. With Wait it is answered when it is granted, or cancelled (KindInterrupted), or would close a
// circle (KindDeadlock); without, KindWouldBlock. Op.Seq is 0: locks are idempotent by owner.
//
// wire:message
type LockReq struct {
	Op    OpID
	Ino   Ino
	Owner uint64 // who holds it within the session, as the kernel names lock owners
	Start uint64
	End   uint64
	Type  uint8 // LockRead, LockWrite or LockUnlock
	Flock bool  // the lock is of flock, not of fcntl
	Wait  bool
	Test  bool   // tell only who is in the way
	PID   uint32 // of the holder, for those who test
}

// LockResp, of a test, describes the first lock in the way; Type LockUnlock when there is none.
//
// wire:message
type LockResp struct {
	Type  uint8
	Start uint64 // first byte of the lock in the way
	End   uint64 // last byte
	PID   uint32 // of its holder
}

// StatFSReq asks for the space of a filesystem.
//
// wire:message
type StatFSReq struct {
	FS FSID
}

// StatFSResp tells bytes that data can take (after protection) and inodes.
//
// wire:message
type StatFSResp struct {
	TotalBytes uint64 // that data can take
	FreeBytes  uint64 // of them
	Files      uint64 // inodes there can be
	FreeFiles  uint64 // of them
}

// LeaseDropReq gives leases back that the holder no longer needs (nothing of them is dirty or cached).
//
// wire:message
type LeaseDropReq struct {
	Session SessionID
	Bucket  BucketID
	Inos    []Ino
	// Seqs, one for each inode, are those of the newest grants that the holder knows: a lease that was granted since, by
	// an answer that is still on its way, stays. Empty: the leases go in any case.
	Seqs []uint64
}

// RecallReq, from compute to frontend, asks to reduce the lease on Ino to Mode To. The answer comes once dirty data is
// committed and caches above To are gone. Seq as in Lease.
//
// wire:message
type RecallReq struct {
	Session SessionID
	Ino     Ino
	To      LeaseMode
	Seq     uint64
}

// RecallResp says that the session now has at most the mode asked for.
//
// wire:message
type RecallResp struct{}

// HeldLease is a lease that a session says it has.
//
// wire:message
type HeldLease struct {
	Ino  Ino
	Mode LeaseMode
}

// ReclaimReq tells the new owner of a bucket what the session holds there: leases, open inodes, locks. Every live
// session sends one (perhaps empty) to every new owner, before which the owner answers nothing else.
//
// wire:message
type ReclaimReq struct {
	Session SessionID
	Bucket  BucketID
	Leases  []HeldLease
	Opens   []Ino
	Locks   []LockReq
}

// ReclaimResp tells which leases could not be taken over (there should be none).
//
// wire:message
type ReclaimResp struct {
	Lost  []Ino
	Lease uint64 // Seq that all reclaimed leases now have
}

// MakeRootReq makes the root directory of a filesystem, or drops it when it is empty. Idempotent.
//
// wire:message
type MakeRootReq struct {
	FS   FSID
	Root Ino
	Mode uint32 // permission bits
	UID  uint32 // owner
	GID  uint32 // group
}

// BucketStatReq asks the owner about a bucket.
//
// wire:message
type BucketStatReq struct {
	Bucket BucketID
}

// BucketStatResp is the state of a bucket.
//
// wire:message
type BucketStatResp struct {
	Bucket     BucketID
	Epoch      Epoch
	State      BucketState
	Inodes     uint64 // that lie in the bucket
	DataBytes  uint64 // live, before protection
	Stripes    uint64 // that the bucket maps
	Segments   uint64 // of file data that it maps
	OpenTxns   uint64 // prepared, and not decided as far as this bucket knows
	Leases     uint64 // that sessions hold
	Orphans    uint64 // inodes without a name that somebody has open
	TableBytes uint64 // of the database
	Error      string // why it does not open, if it does not
}
