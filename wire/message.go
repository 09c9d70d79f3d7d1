package wire

// Method names a request. Values travel and are never reused; the ranges tell who answers.
type Method uint16

// MethodInfo is what the tables of methods say of one.
type MethodInfo struct {
	Name    string         // the constant's without its M: "DriveRead"
	NewReq  func() Message // makes an empty request of the method's type
	NewResp func() Message // makes an empty answer; an answer whose status is not KindNone is an ErrorBody
}

// Methods that drives answer.
const (
	MDrivePut    Method = 0x0101 // PutReq + data -> Empty
	MDriveAppend Method = 0x0102 // AppendReq + data (whole SegRecords) -> AppendResp
	MDriveSeal   Method = 0x0103 // SealReq -> SealResp
	MDriveRead   Method = 0x0104 // ReadReq -> ReadResp + data
	MDriveDelete Method = 0x0105 // DeleteReq -> Empty
	MDriveList   Method = 0x0106 // ListReq -> ListResp
	MDriveFence  Method = 0x0107 // FenceReq -> Empty
	MDriveVerify Method = 0x0108 // VerifyReq -> VerifyResp
	MDriveStat   Method = 0x0109 // DriveStatReq -> DriveStatResp
)

// Methods that computes answer to frontends.
const (
	MLookup      Method = 0x0201 // LookupReq -> EntryResp
	MGetAttr     Method = 0x0202 // GetAttrReq -> AttrResp
	MSetAttr     Method = 0x0203 // SetAttrReq -> AttrResp
	MCreate      Method = 0x0204 // CreateReq -> EntryResp (file, fifo, device, socket, symlink, directory)
	MUnlink      Method = 0x0205 // UnlinkReq -> UnlinkResp (unlink and rmdir)
	MRename      Method = 0x0206 // RenameReq -> RenameResp
	MLink        Method = 0x0207 // LinkReq -> EntryResp
	MReadDir     Method = 0x0208 // ReadDirReq -> ReadDirResp
	MReadLink    Method = 0x0209 // ReadLinkReq -> ReadLinkResp
	MOpen        Method = 0x020a // OpenReq -> OpenResp
	MRelease     Method = 0x020b // ReleaseReq -> Empty
	MExtents     Method = 0x020c // ExtentsReq -> ExtentsResp
	MWrite       Method = 0x020d // WriteReq + data -> WriteResp
	MPrepare     Method = 0x020e // PrepareReq -> Empty: note regions in the inode before data goes there
	MPublish     Method = 0x020f // PublishReq -> AttrResp: size and times after writes
	MPunch       Method = 0x0210 // PunchReq -> Empty: drop the extents of whole blocks of one region
	MGetXattr    Method = 0x0211 // XattrReq -> XattrResp
	MSetXattr    Method = 0x0212 // XattrReq -> Empty
	MListXattr   Method = 0x0213 // XattrReq -> XattrResp
	MRemoveXattr Method = 0x0214 // XattrReq -> Empty
	MLock        Method = 0x0215 // LockReq -> LockResp
	MStatFS      Method = 0x0216 // StatFSReq -> StatFSResp
	MLeaseDrop   Method = 0x0217 // LeaseDropReq -> Empty: the holder gives a lease back by itself
	MReclaim     Method = 0x0218 // ReclaimReq -> ReclaimResp
	MMakeRoot    Method = 0x0219 // MakeRootReq -> Empty: create the root directory of a new filesystem (from mgmt)
	MDropRoot    Method = 0x021a // MakeRootReq -> Empty: remove the empty root of a filesystem (from mgmt)
	MBucketStat  Method = 0x021b // BucketStatReq -> BucketStatResp (from mgmt and tools)
)

// Methods between computes.
const (
	MTxnPrepare   Method = 0x0301 // TxnPrepareReq -> TxnPrepareResp
	MTxnDecide    Method = 0x0302 // TxnDecideReq -> Empty
	MTxnQuery     Method = 0x0303 // TxnQueryReq -> TxnQueryResp
	MDropRegions  Method = 0x0304 // DropRegionsReq -> DropRegionsResp
	MRegionBlocks Method = 0x0305 // RegionBlocksReq -> Empty
)

// Methods that frontends answer (to computes, on the connection that the frontend made).
const (
	MRecall Method = 0x0401 // RecallReq -> RecallResp
)

// Methods that mgmt answers.
const (
	MRegister     Method = 0x0501 // RegisterReq -> RegisterResp
	MHeartbeat    Method = 0x0502 // HeartbeatReq -> HeartbeatResp
	MWatchMap     Method = 0x0503 // WatchMapReq -> WatchMapResp: waits until the map is newer than the one named
	MEvent        Method = 0x0504 // EventReq -> Empty
	MEvict        Method = 0x0505 // EvictReq -> Empty: this session does not answer, end it
	MGoodbye      Method = 0x0506 // GoodbyeReq -> Empty: the process stops in an orderly way
	MDriveTrouble Method = 0x0507 // DriveTroubleReq -> Empty: a device makes its process start again
)

// Empty is the answer that says only "done".
//
// wire:message
type Empty struct{}

// ErrorBody is the meta section of a response whose status is not KindNone.
//
// wire:message
type ErrorBody struct {
	Op   string // what was tried, such as "drive.put"
	ID   string // what it was tried on, for people
	Text string // of the cause
}
