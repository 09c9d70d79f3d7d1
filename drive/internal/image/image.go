// Package image reads what lies on a device: superblock, checkpoints, journal, and what became of the operations that were
// under way. It never writes; its Reader cannot. store.Open does with the device what this package says, and the commands
// drive inspect and drive check show the same to people, so there is one reading of the layout and no second one to
// disagree. Read superblock.go, load.go, pages.go, journal.go, settle.go, scan.go; ../../FORMAT.md has the layout.
package image

import (
	"github.com/crakefs/crake/drive/internal/format"
)

// Reader is a device that is only read: a blockio.Device, or a File. ReadAt is safe for concurrent use.
type Reader interface {
	// ReadAt fills p, aligned memory of whole blocks, from off. Errors: KindIO.
	ReadAt(p []byte, off int64) error
	// Size gives the bytes of the device.
	Size() int64
}

// ReadRun reads a run of the data area into p, which has the run's length. Safe for concurrent use.
type ReadRun func(r format.Run, p []byte) error

// DataReader reads the data area of the device that sb describes.
func DataReader(dev Reader, sb *format.Superblock) ReadRun {
	return func(r format.Run, p []byte) error { return dev.ReadAt(p, DataOffset(sb, r)) }
}

// DataOffset gives where on the device a run of the data area starts.
func DataOffset(sb *format.Superblock, r format.Run) int64 {
	return sb.DataOff + int64(r.Start())*format.BlockSize
}
