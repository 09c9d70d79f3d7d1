package wire

// Requests between computes: the generic two-phase commit (see compute/doc.go).

// TxnID names a transaction: the coordinator's bucket and a sequence in it.
//
// wire:message
type TxnID struct {
	Coordinator BucketID
	Epoch       Epoch  // of the coordinator when it began
	Seq         uint64 // counts the coordinator's transactions
}

// TxnOp is one step that a participant checks and locks at prepare and applies at commit. What the fields mean depends
// on Kind: see compute.
//
// wire:message
type TxnOp struct {
	Kind  uint8
	Ino   Ino // the inode that the step is about (it lies in the participant's bucket)
	Other Ino
	Mode  uint32 // of an inode, or the type of an entry
	UID   uint32 // owner of an inode to make
	GID   uint32 // its group
	Rdev  uint32 // of a device to make
	Flags uint32 // of the step
	FS    FSID
	Time  int64  // nanoseconds since 1970
	Name  string // of an entry
	Extra []byte // such as the target of a symlink
}

// TxnPrepareReq asks a bucket to check the steps, lock their keys and record that, durably. Idempotent by ID.
//
// wire:message
type TxnPrepareReq struct {
	ID      TxnID
	Session SessionID // on whose behalf, 0 for none
	Bucket  BucketID
	Ops     []TxnOp
}

// TxnPrepareResp tells what the steps found, one each, for the coordinator's answer.
//
// wire:message
type TxnPrepareResp struct {
	Attrs []Attr
}

// TxnDecideReq tells a participant the outcome. Idempotent: an unknown ID is done already.
//
// wire:message
type TxnDecideReq struct {
	ID     TxnID
	Bucket BucketID
	Commit bool // else it is aborted
}

// TxnQueryReq, from a participant in doubt to the coordinator, asks for the outcome.
//
// wire:message
type TxnQueryReq struct {
	ID     TxnID
	Bucket BucketID // that asks; one that has acknowledged the outcome is told TxnUnknown
}

// Outcomes of TxnQueryResp.
const (
	TxnUnknown   = 0 // no record: it was aborted (presumed abort)
	TxnPending   = 1 // not decided yet, ask again
	TxnCommitted = 2
)

// TxnQueryResp holds the outcome.
//
// wire:message
type TxnQueryResp struct {
	Outcome uint8 // TxnUnknown, TxnPending or TxnCommitted
}

// DropRegionsReq asks a bucket to drop all extents of an inode at and after FromOff in the regions named. Idempotent:
// sent again until answered, by the durable clean-up record of the inode's bucket.
//
// wire:message
type DropRegionsReq struct {
	Bucket  BucketID
	Ino     Ino
	FromOff uint64   // bytes
	Regions []uint64 // numbers of regions: offset divided by RegionBytes
	// Seq rises with every truncation of the inode: a request that is not above the last one done is late, and ignored.
	// (Within one truncation Last tells which request is the last for the bucket.)
	Seq  uint64
	Last bool // of the requests with this Seq
	Gone bool // the inode is deleted: the bucket forgets it altogether
}

// DropRegionsResp tells what the bucket still maps of the inode, as RegionBlocks does.
//
// wire:message
type DropRegionsResp struct {
	Blocks RegionBlocks
}

// RegionBlocks tells how many blocks of an inode another bucket maps, in all its regions there. Version rises with
// every change there.
//
// wire:message
type RegionBlocks struct {
	Ino     Ino
	Blocks  uint64 // of BlockSize bytes
	Version uint64
}

// RegionBlocksReq reports to the bucket of the inodes what bucket From maps of them, so that st_blocks is right. Sent
// again until answered; idempotent by Version.
//
// wire:message
type RegionBlocksReq struct {
	Bucket BucketID
	From   BucketID
	Blocks []RegionBlocks
}
