package image

import (
	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/wire"
)

const opOpen = "drive.open"

// Superblocks is what the two places of the superblock hold.
type Superblocks struct {
	Sound   *format.Superblock // the one that counts
	Damaged []DamagedBlock     // places that do not hold the same
}

// DamagedBlock is a block that should hold a structure and does not.
type DamagedBlock struct {
	Off int64 // on the device
	Err error
}

// ReadSuperblocks reads both superblocks of a device. path is for errors.
// Errors: KindRefused (no drive, or a device that was cut off), KindVersion, KindIO (no sound one could be read).
func ReadSuperblocks(dev Reader, path string) (*Superblocks, error) {
	b := blockio.AlignedBytes(format.BlockSize)
	out := &Superblocks{}
	last := dev.Size()&^(format.BlockSize-1) - format.BlockSize
	if last < format.BlockSize {
		return nil, wire.Errorf(opOpen, wire.KindRefused, path, "has %d bytes; not a drive of a Crake cluster", dev.Size())
	}
	// The copy lies at the end that the superblock tells; without a sound first one, at the end of the device.
	var unreadable error
	for _, off := range []int64{0, last} {
		if out.Sound != nil {
			off = out.Sound.SuperblockOffsets()[1]
		}
		err := dev.ReadAt(b, off)
		if err != nil {
			unreadable = err
			out.Damaged = append(out.Damaged, DamagedBlock{Off: off, Err: err})
			continue
		}
		sb, err := format.DecodeSuperblock(b)
		switch {
		case wire.KindOf(err) == wire.KindVersion:
			return nil, wire.E(opOpen, wire.KindVersion, path, err)
		case err == nil && sb.SizeBytes > dev.Size():
			return nil, wire.Errorf(opOpen, wire.KindRefused, path, "has %d bytes, but was formatted with %d; is it cut off?", dev.Size(), sb.SizeBytes)
		case err == nil && out.Sound == nil && sb.SuperblockOffsets()[1] != off && off != 0:
			err = wire.Errorf(opOpen, wire.KindCorrupt, path, "the copy of a superblock that belongs elsewhere, at %d", sb.SuperblockOffsets()[1])
		case err == nil && out.Sound != nil && *sb != *out.Sound:
			err = wire.Errorf(opOpen, wire.KindCorrupt, path, "the copy contradicts the first superblock")
		}
		if err != nil {
			out.Damaged = append(out.Damaged, DamagedBlock{Off: off, Err: err})
			continue
		}
		out.Sound = sb
	}
	switch {
	case out.Sound == nil && unreadable != nil:
		return nil, unreadable // it may well be a drive
	case out.Sound == nil:
		return nil, wire.Errorf(opOpen, wire.KindRefused, path, "not a drive of a Crake cluster; format it first")
	}
	return out, nil
}
