package meta

import (
	"context"

	"github.com/crakefs/crake/wire"
)

// Bucket is an open bucket: all methods are safe for concurrent use, and return *wire.Error.
//
// Kinds that any method may give besides those of its message: KindUnavailable (the bucket failed or is closed, or a lock
// was not to be had in time: nothing was done), KindMoved (an inode of another bucket), KindStaleSession, KindCorrupt.
type Bucket struct{ shape }

type shape struct{}

// Open opens the bucket's database (a new one if there is none), loads what it needs in memory, and takes the locks of
// transactions in doubt and of clean-ups under way. Run must be started next, to settle those.
func Open(ctx context.Context, cfg Config) (*Bucket, error) { panic("todo") }

// Run settles transactions in doubt, clean-ups and reports until ctx ends. It always returns nil.
func (b *Bucket) Run(ctx context.Context) error { panic("todo") }

// Close closes the database; requests under way fail with KindUnavailable. Run must have ended.
func (b *Bucket) Close() error { panic("todo") }

// Err tells why the bucket has failed, or nil.
func (b *Bucket) Err() error { panic("todo") }

// Requests of frontends. A mutation whose OpID has been answered before gives the recorded answer, with lease LeaseNone.

func (b *Bucket) Lookup(ctx context.Context, req *wire.LookupReq) (*wire.EntryResp, error) {
	panic("todo")
}
func (b *Bucket) GetAttr(ctx context.Context, req *wire.GetAttrReq) (*wire.AttrResp, error) {
	panic("todo")
}
func (b *Bucket) SetAttr(ctx context.Context, req *wire.SetAttrReq) (*wire.AttrResp, error) {
	panic("todo")
}
func (b *Bucket) Create(ctx context.Context, req *wire.CreateReq) (*wire.EntryResp, error) {
	panic("todo")
}
func (b *Bucket) Unlink(ctx context.Context, req *wire.UnlinkReq) error { panic("todo") }
func (b *Bucket) Rename(ctx context.Context, req *wire.RenameReq) error { panic("todo") }
func (b *Bucket) Link(ctx context.Context, req *wire.LinkReq) (*wire.EntryResp, error) {
	panic("todo")
}
func (b *Bucket) ReadDir(ctx context.Context, req *wire.ReadDirReq) (*wire.ReadDirResp, error) {
	panic("todo")
}
func (b *Bucket) ReadLink(ctx context.Context, req *wire.ReadLinkReq) (*wire.ReadLinkResp, error) {
	panic("todo")
}

// Open answers attributes, lease and extents, and calls Opens.Opened.
func (b *Bucket) Open(ctx context.Context, req *wire.OpenReq) (*wire.OpenResp, error) {
	panic("todo")
}
func (b *Bucket) Extents(ctx context.Context, req *wire.ExtentsReq) (*wire.ExtentsResp, error) {
	panic("todo")
}

// Write borrows data.
func (b *Bucket) Write(ctx context.Context, req *wire.WriteReq, data wire.Data) (*wire.WriteResp, error) {
	panic("todo")
}
func (b *Bucket) Prepare(ctx context.Context, req *wire.PrepareReq) error { panic("todo") }
func (b *Bucket) Publish(ctx context.Context, req *wire.PublishReq) (*wire.AttrResp, error) {
	panic("todo")
}
func (b *Bucket) Punch(ctx context.Context, req *wire.PunchReq) error { panic("todo") }
func (b *Bucket) GetXattr(ctx context.Context, req *wire.XattrReq) (*wire.XattrResp, error) {
	panic("todo")
}
func (b *Bucket) SetXattr(ctx context.Context, req *wire.XattrReq) error { panic("todo") }
func (b *Bucket) ListXattr(ctx context.Context, req *wire.XattrReq) (*wire.XattrResp, error) {
	panic("todo")
}
func (b *Bucket) RemoveXattr(ctx context.Context, req *wire.XattrReq) error { panic("todo") }

// Requests of mgmt.

func (b *Bucket) MakeRoot(ctx context.Context, req *wire.MakeRootReq) error { panic("todo") }
func (b *Bucket) DropRoot(ctx context.Context, req *wire.MakeRootReq) error { panic("todo") }

// Stat fills all but State and Leases.
func (b *Bucket) Stat() wire.BucketStatResp { panic("todo") }

// Requests of other computes.

func (b *Bucket) TxnPrepare(ctx context.Context, req *wire.TxnPrepareReq) (*wire.TxnPrepareResp, error) {
	panic("todo")
}
func (b *Bucket) TxnDecide(ctx context.Context, req *wire.TxnDecideReq) error { panic("todo") }
func (b *Bucket) TxnQuery(ctx context.Context, req *wire.TxnQueryReq) (*wire.TxnQueryResp, error) {
	panic("todo")
}
func (b *Bucket) DropRegions(ctx context.Context, req *wire.DropRegionsReq) (*wire.DropRegionsResp, error) {
	panic("todo")
}
func (b *Bucket) RegionBlocks(ctx context.Context, req *wire.RegionBlocksReq) error { panic("todo") }

// What the server calls by itself.

// ReleaseOrphan deletes the inode if it has no name and Opens no longer has it open. To be called whenever the last
// open of an inode has ended; quick when there is nothing to do.
func (b *Bucket) ReleaseOrphan(ctx context.Context, ino wire.Ino) error { panic("todo") }

// Orphans lists the inodes without a name, for the server to check after all sessions have reclaimed.
func (b *Bucket) Orphans() []wire.Ino { panic("todo") }

// DropSession forgets the reply records of a dead session.
func (b *Bucket) DropSession(ctx context.Context, session wire.SessionID) error { panic("todo") }

// PendingWork counts transactions in doubt or not told to all, clean-ups and reports that Run still has to do.
func (b *Bucket) PendingWork() int { panic("todo") }

// Settle does what Run does, once, and returns when nothing is left or ctx ends (with an error then).
func (b *Bucket) Settle(ctx context.Context) error { panic("todo") }

// What the data store calls.

// NextNumber gives a number for a stripe or segment of this bucket that was never given before, even across crashes.
// From 1 to wire.MaxStripNumber.
func (b *Bucket) NextNumber() (uint64, error) { panic("todo") }

// HasLocation reports whether a strip or segment (any position) of class ClassData or ClassSegment is in use: extents
// point to it, or it has a number that was given out since Open. What it denies is a leak, and may be deleted.
func (b *Bucket) HasLocation(id wire.StripID) (bool, error) { panic("todo") }

// Locations calls f for every stripe and segment that extents point to, in order of number, until f returns false.
// liveBlocks counts the blocks that extents use.
func (b *Bucket) Locations(ctx context.Context, f func(loc wire.Location, liveBlocks uint64) bool) error {
	panic("todo")
}
