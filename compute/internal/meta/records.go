package meta

import (
	"strconv"

	"github.com/crakefs/crake/wire"
	"golang.org/x/sys/unix"
)

// Flags of an inode record.
const (
	flagInline   = 1 << 0 // the file's data is in the record
	flagCollided = 1 << 1 // of a directory: some name does not lie at its hash, so look-ups probe
	flagRegions  = 1 << 2 // there are region markers, or were
	flagXattrs   = 1 << 3 // there are extended attributes, or were
	knownFlags   = flagInline | flagCollided | flagRegions | flagXattrs
)

// inode is the record of an inode: what stat shows and what the bucket needs besides.
type inode struct {
	attr     wire.Attr
	flags    uint64
	fs       wire.FSID
	parent   wire.Ino // of a directory
	entries  uint64   // of a directory
	truncSeq uint64   // number of the last truncation that concerned other regions
	local    uint64   // blocks of 4 KiB that extents of region 0 map
	remote   uint64   // blocks of 4 KiB of the other regions, as last reported by their buckets
	target   string   // of a symlink
	inline   []byte   // with flagInline: all of the file
}

func (n *inode) isDir() bool     { return n.attr.Mode&unix.S_IFMT == unix.S_IFDIR }
func (n *inode) isRegular() bool { return n.attr.Mode&unix.S_IFMT == unix.S_IFREG }
func (n *inode) inlined() bool   { return n.flags&flagInline != 0 }

// setBlocks derives st_blocks. Inline data counts as what it takes, in units of 512 bytes.
func (n *inode) setBlocks() {
	n.attr.Blocks = (n.local+n.remote)*(wire.BlockSize/512) + uint64(len(n.inline)+511)/512
}

func (n *inode) append(b []byte) []byte {
	a := &n.attr
	b = append(b, recordVersion)
	for _, v := range [...]uint64{n.flags, uint64(a.Mode), uint64(a.Nlink), uint64(a.UID), uint64(a.GID), uint64(a.Rdev),
		a.Size, n.local, n.remote, a.Version, uint64(n.fs), uint64(n.parent), n.entries, n.truncSeq} {
		b = appendUvarint(b, v)
	}
	for _, t := range [...]int64{a.Atime, a.Mtime, a.Ctime, a.Btime} {
		b = appendU64(b, uint64(t))
	}
	b = appendBytes(b, n.target)
	return appendBytes(b, n.inline)
}

func decodeInode(ino wire.Ino, b []byte) (*inode, error) {
	r := newReader(b)
	n := &inode{}
	a := &n.attr
	a.Ino = ino
	n.flags = r.small(knownFlags, "flags")
	a.Mode = uint32(r.small(1<<32-1, "mode"))
	a.Nlink = uint32(r.small(1<<32-1, "nlink"))
	a.UID = uint32(r.small(1<<32-1, "uid"))
	a.GID = uint32(r.small(1<<32-1, "gid"))
	a.Rdev = uint32(r.small(1<<32-1, "rdev"))
	a.Size = r.uvarint("size")
	n.local = r.small(regionBlocks, "blocks")
	n.remote = r.small(wire.MaxFileBytes/wire.BlockSize, "blocks elsewhere")
	a.Version = r.uvarint("version")
	n.fs = wire.FSID(r.small(1<<32-1, "filesystem"))
	n.parent = wire.Ino(r.uvarint("parent"))
	n.entries = r.uvarint("entries")
	n.truncSeq = r.uvarint("truncation")
	a.Atime = int64(r.u64("atime"))
	a.Mtime = int64(r.u64("mtime"))
	a.Ctime = int64(r.u64("ctime"))
	a.Btime = int64(r.u64("btime"))
	n.target = r.str(wire.MaxSymlinkBytes, "target")
	n.inline = r.bytes(wire.MaxInlineBytes, "inline data")
	n.setBlocks()
	if err := r.done("inode " + strconv.FormatUint(uint64(ino), 16)); err != nil {
		return nil, err
	}
	return n, nil
}

// dentry is a name in a directory.
type dentry struct {
	name string
	ino  wire.Ino
	typ  uint32 // S_IFMT part of the mode
}

func (d *dentry) append(b []byte) []byte {
	b = append(b, recordVersion, byte(d.typ>>12))
	b = appendU64(b, uint64(d.ino))
	return appendBytes(b, d.name)
}

func decodeDentry(b []byte) (dentry, error) {
	r := newReader(b)
	var d dentry
	d.typ = uint32(r.u8("type")) << 12
	d.ino = wire.Ino(r.u64("inode"))
	d.name = r.str(wire.MaxNameBytes, "name")
	if d.typ&^unix.S_IFMT != 0 || d.name == "" {
		r.fail("entry")
	}
	return d, r.done("dentry")
}

// extent is a run of a file: Len bytes from block on, at blocks locBlock and following of the location number.
// Invariant: it lies in one region, and len(sums) is the number of its blocks.
type extent struct {
	block    uint64 // of the file
	length   uint64 // bytes; only the last block may be used in part
	number   uint64
	locBlock uint32
	sums     []uint64
}

func (e *extent) blocks() uint64 { return uint64(len(e.sums)) }
func (e *extent) end() uint64    { return e.block + uint64(len(e.sums)) }

func blocksOf(bytes uint64) uint64 { return (bytes + wire.BlockSize - 1) / wire.BlockSize }

func (e *extent) append(b []byte) []byte {
	b = append(b, recordVersion)
	b = appendUvarint(b, e.length)
	b = appendUvarint(b, e.number)
	b = appendUvarint(b, uint64(e.locBlock))
	for _, s := range e.sums {
		b = appendU64(b, s)
	}
	return b
}

func decodeExtent(block uint64, b []byte) (extent, error) {
	r := newReader(b)
	e := extent{block: block}
	e.length = r.small(maxExtentBlocks*wire.BlockSize, "length")
	e.number = r.small(wire.MaxStripNumber, "location")
	e.locBlock = uint32(r.small(1<<32-1, "block"))
	n := blocksOf(e.length)
	if e.length == 0 || uint64(len(r.b)) != 8*n || block%regionBlocks+n > regionBlocks {
		r.fail("length")
	} else {
		e.sums = make([]uint64, n)
		for i := range e.sums {
			e.sums[i] = r.u64("checksum")
		}
	}
	return e, r.done("extent at block " + strconv.FormatUint(block, 10))
}

// location is the record of a stripe or segment.
type location struct {
	loc  wire.Location
	live uint64 // blocks that extents use
}

func (l *location) append(b []byte) []byte {
	flags := byte(0)
	if l.loc.Degraded {
		flags = 1
	}
	b = append(b, recordVersion, flags, byte(l.loc.Kind), l.loc.K, l.loc.M)
	b = appendU64(b, l.loc.ID.Hi)
	b = appendU64(b, l.loc.ID.Lo)
	b = appendUvarint(b, uint64(l.loc.Blocks))
	b = appendUvarint(b, l.live)
	b = appendUvarint(b, uint64(len(l.loc.Drives)))
	for _, d := range l.loc.Drives {
		b = appendUvarint(b, uint64(d))
	}
	return b
}

func decodeLocation(b []byte) (*location, error) {
	r := newReader(b)
	l := &location{}
	if flags := r.u8("flags"); flags > 1 {
		r.fail("flags")
	} else {
		l.loc.Degraded = flags == 1
	}
	l.loc.Kind = wire.LocKind(r.u8("kind"))
	l.loc.K, l.loc.M = r.u8("k"), r.u8("m")
	l.loc.ID.Hi, l.loc.ID.Lo = r.u64("id"), r.u64("id")
	l.loc.Blocks = uint32(r.small(1<<32-1, "blocks"))
	l.live = r.uvarint("live blocks")
	n := r.small(wire.MaxStripes, "drives")
	for range n {
		l.loc.Drives = append(l.loc.Drives, wire.DriveID(r.small(1<<32-1, "drive")))
	}
	if r.bad == "" && checkLocation(&l.loc) != "" {
		r.fail(checkLocation(&l.loc))
	}
	return l, r.done("location")
}

// checkLocation tells what is wrong with a location, or "".
func checkLocation(l *wire.Location) string {
	want := 0
	switch l.Kind {
	case wire.LocStripe:
		want = int(l.K) + int(l.M)
		if l.K == 0 || l.Blocks == 0 {
			return "geometry"
		}
	case wire.LocSegment:
		want = int(l.M) + 1
	default:
		return "kind"
	}
	if want > wire.MaxStripes || len(l.Drives) != want {
		return "number of drives"
	}
	if l.ID.Number() == 0 {
		return "number"
	}
	return ""
}

// owner tells whose blocks were written at a place of a location, for compaction: it finds the extents that are left of
// them under the inode. It is not kept up to date, and goes with its location.
type owner struct {
	ino    wire.Ino
	block  uint64 // of the file
	blocks uint64
}

func (o *owner) append(b []byte) []byte {
	b = append(b, recordVersion)
	b = appendU64(b, uint64(o.ino))
	b = appendUvarint(b, o.block)
	return appendUvarint(b, o.blocks)
}

func decodeOwner(b []byte) (owner, error) {
	r := newReader(b)
	o := owner{ino: wire.Ino(r.u64("inode")), block: r.uvarint("block"), blocks: r.small(maxExtentBlocks, "blocks")}
	return o, r.done("owner")
}

// foreign is what a bucket maps of an inode in regions above 0.
type foreign struct {
	blocks  uint64 // 4 KiB
	version uint64 // rises with every change
	dropSeq uint64 // of the last truncation heard of
	dropped bool   // that truncation is done here
}

func (f *foreign) append(b []byte) []byte {
	b = append(b, recordVersion)
	b = appendUvarint(b, f.blocks)
	b = appendUvarint(b, f.version)
	b = appendUvarint(b, f.dropSeq)
	if f.dropped {
		return append(b, 1)
	}
	return append(b, 0)
}

func decodeForeign(b []byte) (foreign, error) {
	r := newReader(b)
	f := foreign{blocks: r.uvarint("blocks"), version: r.uvarint("version"), dropSeq: r.uvarint("truncation")}
	switch r.u8("state") {
	case 0:
	case 1:
		f.dropped = true
	default:
		r.fail("state")
	}
	return f, r.done("foreign inode")
}

// remote is what another bucket has reported.
type remote struct{ blocks, version uint64 }

func (m *remote) append(b []byte) []byte {
	return appendUvarint(appendUvarint(append(b, recordVersion), m.blocks), m.version)
}

func decodeRemote(b []byte) (remote, error) {
	r := newReader(b)
	m := remote{blocks: r.uvarint("blocks"), version: r.uvarint("version")}
	return m, r.done("remote blocks")
}

// cleanupRec is a clean-up of an inode's regions above 0 in other buckets: drop all from byte from on. Key: ino, seq.
type cleanupRec struct {
	from uint64
	gone bool // the inode is deleted
}

func (c *cleanupRec) append(b []byte) []byte {
	b = appendUvarint(append(b, recordVersion), c.from)
	if c.gone {
		return append(b, 1)
	}
	return append(b, 0)
}

func decodeCleanup(b []byte) (cleanupRec, error) {
	r := newReader(b)
	c := cleanupRec{from: r.uvarint("offset")}
	switch r.u8("state") {
	case 0:
	case 1:
		c.gone = true
	default:
		r.fail("state")
	}
	return c, r.done("clean-up")
}

// appendFlagRecord is the value of records whose key says all.
func appendFlagRecord(b []byte) []byte { return append(b, recordVersion) }
