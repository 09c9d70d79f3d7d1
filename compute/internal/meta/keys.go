package meta

import (
	"encoding/binary"

	"github.com/crakefs/crake/wire"
)

// Keys: a tag, then fields in big-endian order, so that records that belong together lie together. The records of the
// filesystem (tags up to tagMarker) end in the snapshot sequence, inverted, so that the newest version of a record comes
// first; until there are snapshots the sequence is 0. FORMAT.md has the whole table.
const (
	tagInode   = 'i' // ino
	tagDentry  = 'd' // directory, slot
	tagExtent  = 'e' // ino, first block
	tagXattr   = 'x' // ino, name
	tagMarker  = 'm' // ino, region: the region may hold data (at the inode's bucket)
	tagRemote  = 'b' // ino, bucket: blocks that the other bucket maps (at the inode's bucket)
	tagForeign = 'f' // ino: what this bucket maps of the inode in regions above 0
	tagReport  = 'r' // ino: tagForeign has changed since it was reported
	tagLoc     = 'l' // number: a stripe or segment
	tagOwner   = 'o' // number, block: whose blocks were written there
	tagZero    = 'z' // number: a segment without live blocks that may still be open
	tagReply   = 'p' // session, sequence
	tagOrphan  = 'u' // ino
	tagDecided = 't' // epoch, sequence: a committed transaction not yet acknowledged by all
	tagPrepare = 'q' // coordinator, epoch, sequence
	tagCleanup = 'k' // ino, truncation number
	tagSystem  = 's' // name: superblock and counters
)

const snapBytes = 8

// key builds keys in place, mostly on the stack of the caller.
type key []byte

func newKey(tag byte) key { return append(make(key, 0, 40), tag) }

func (k key) u16(v uint16) key { return binary.BigEndian.AppendUint16(k, v) }
func (k key) u64(v uint64) key { return binary.BigEndian.AppendUint64(k, v) }

// snap ends the key of a record of the filesystem.
func (k key) snap() key { return binary.BigEndian.AppendUint64(k, ^uint64(0)) }

func inodeKey(ino wire.Ino) key { return newKey(tagInode).u64(uint64(ino)).snap() }
func dentryKey(dir wire.Ino, slot uint64) key {
	return newKey(tagDentry).u64(uint64(dir)).u64(slot).snap()
}
func extentKey(ino wire.Ino, block uint64) key {
	return newKey(tagExtent).u64(uint64(ino)).u64(block).snap()
}
func xattrKey(ino wire.Ino, name string) key {
	return append(newKey(tagXattr).u64(uint64(ino)), name...).snap()
}
func markerKey(ino wire.Ino, region uint64) key {
	return newKey(tagMarker).u64(uint64(ino)).u64(region).snap()
}
func remoteKey(ino wire.Ino, b wire.BucketID) key {
	return newKey(tagRemote).u64(uint64(ino)).u16(uint16(b)).snap()
}
func foreignKey(ino wire.Ino) key          { return newKey(tagForeign).u64(uint64(ino)).snap() }
func reportKey(ino wire.Ino) key           { return newKey(tagReport).u64(uint64(ino)) }
func locKey(number uint64) key             { return newKey(tagLoc).u64(number) }
func zeroKey(number uint64) key            { return newKey(tagZero).u64(number) }
func orphanKey(ino wire.Ino) key           { return newKey(tagOrphan).u64(uint64(ino)) }
func systemKey(name string) key            { return append(newKey(tagSystem), name...) }
func decidedKey(id wire.TxnID) key         { return newKey(tagDecided).u64(uint64(id.Epoch)).u64(id.Seq) }
func inoPrefix(tag byte, ino wire.Ino) key { return newKey(tag).u64(uint64(ino)) }
func ownerKey(number uint64, block uint32) key {
	return newKey(tagOwner).u64(number).u64(uint64(block))
}
func replyKey(s wire.SessionID, seq uint64) key {
	return newKey(tagReply).u64(uint64(s)).u64(seq)
}
func prepareKey(id wire.TxnID) key {
	return newKey(tagPrepare).u16(uint16(id.Coordinator)).u64(uint64(id.Epoch)).u64(id.Seq)
}
func cleanupKey(ino wire.Ino, seq uint64) key {
	return newKey(tagCleanup).u64(uint64(ino)).u64(seq)
}

// after gives the first key that does not begin with k.
func (k key) after() key {
	out := append(make(key, 0, len(k)), k...)
	for i := len(out) - 1; i >= 0; i-- {
		if out[i]++; out[i] != 0 {
			return out[:i+1]
		}
	}
	return nil
}

// splitKey gives the n 8-byte fields after the tag; ok is false for a key that is too short.
func splitKey(k []byte, n int) (fields [3]uint64, rest []byte, ok bool) {
	if len(k) < 1+8*n {
		return fields, nil, false
	}
	for i := range n {
		fields[i] = binary.BigEndian.Uint64(k[1+8*i:])
	}
	return fields, k[1+8*n:], true
}

func corruptKey(k []byte) error {
	return wire.Errorf("meta.decode", wire.KindCorrupt, "", "bad key %x", k)
}
