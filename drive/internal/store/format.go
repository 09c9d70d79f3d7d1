package store

import (
	"time"

	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/drive/internal/format"
)

// Format makes an empty drive of a device, whatever it holds. The superblocks come last, so that a device whose
// formatting was cut off is no drive.
func Format(dev blockio.Device, sb *format.Superblock) error {
	if err := sb.Geometry.Validate(); err != nil {
		return err
	}
	b := blockio.AlignedBytes(format.BlockSize)
	offs := sb.SuperblockOffsets()
	// An earlier life ends here. Its superblock may have a copy at the end of the device, beyond what is used now: were the first
	// one damaged later, that would be found and believed.
	last := dev.Size()&^(format.BlockSize-1) - format.BlockSize
	for _, off := range []int64{offs[0], offs[1], last, sb.CheckpointOff[1]} {
		if err := dev.WriteAt(b, off); err != nil {
			return err
		}
	}
	c := format.Checkpoint{
		Drive: sb.Drive, FormatID: sb.FormatID, Seq: 1, JournalSeq: 1, JournalPrev: sb.FormatID, Written: time.Now().UnixNano(),
	}
	c.Encode(b)
	if err := dev.WriteAt(b, sb.CheckpointOff[0]); err != nil {
		return err
	}
	if err := dev.Flush(); err != nil {
		return err
	}
	sb.Encode(b)
	for _, off := range []int64{offs[1], offs[0]} {
		if err := dev.WriteAt(b, off); err != nil {
			return err
		}
	}
	return dev.Flush()
}
