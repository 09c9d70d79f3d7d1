package format

import "github.com/crakefs/crake/wire"

// Geometry tells where everything lies on the device, in bytes; all are multiples of a block. In order of offset:
// superblock, journal, checkpoint A, checkpoint B, data, superblock copy.
type Geometry struct {
	SizeBytes       int64 // of the device that is used
	JournalOff      int64
	JournalBytes    int64
	CheckpointOff   [2]int64
	CheckpointBytes int64 // of each
	DataOff         int64
	DataBytes       int64
}

// Bounds of a geometry.
const (
	// MinDeviceBytes is the least device that is worth formatting.
	MinDeviceBytes = 16 << 20
	// MaxDeviceBytes is what a run's 40 bits of block number can address.
	MaxDeviceBytes = 1 << 52
	// journalShare: the journal is a 64th of the device within its bounds. At the worst, one block for each strip of
	// 128 KiB, it then lasts for half a device of writes between two checkpoints; 1 GiB replays within about a second.
	journalShare    = 64
	minJournalBytes = 1 << 20
	maxJournalBytes = 1 << 30
	// checkpointShare: a strip takes 48 bytes of a checkpoint; room for one strip for each 8 KiB of the device, twice the
	// worst that the write path makes (16 KiB strips), is 1/170; with page overhead 1/160.
	checkpointShare = 160
	// alignBytes is where areas start on a device of some size: the erase block of most flash.
	alignBytes = 1 << 20
)

// DefaultGeometry lays out a device of sizeBytes. Preconditions: MinDeviceBytes <= sizeBytes <= MaxDeviceBytes.
func DefaultGeometry(sizeBytes int64) Geometry {
	journal := min(max(sizeBytes/journalShare, minJournalBytes), maxJournalBytes)
	return MakeGeometry(sizeBytes, alignUp(journal, alignBytes), alignUp(sizeBytes/checkpointShare, alignBytes), alignBytes)
}

// MakeGeometry lays out a device with a given journal and checkpoints; areas start at multiples of align.
func MakeGeometry(sizeBytes, journalBytes, checkpointBytes, align int64) Geometry {
	g := Geometry{SizeBytes: sizeBytes &^ (BlockSize - 1), JournalBytes: journalBytes, CheckpointBytes: checkpointBytes}
	g.JournalOff = align
	g.CheckpointOff[0] = alignUp(g.JournalOff+journalBytes, align)
	g.CheckpointOff[1] = alignUp(g.CheckpointOff[0]+checkpointBytes, align)
	g.DataOff = alignUp(g.CheckpointOff[1]+checkpointBytes, align)
	g.DataBytes = g.SizeBytes - BlockSize - g.DataOff
	return g
}

func alignUp(n, align int64) int64 { return (n + align - 1) / align * align }

// SuperblockOffsets gives where the two superblocks lie.
func (g *Geometry) SuperblockOffsets() [2]int64 { return [2]int64{0, g.SizeBytes - BlockSize} }

// DataBlocks gives the blocks for data.
func (g *Geometry) DataBlocks() uint64 { return uint64(g.DataBytes / BlockSize) }

// JournalBlocks gives the blocks of the journal ring.
func (g *Geometry) JournalBlocks() int { return int(g.JournalBytes / BlockSize) }

// CheckpointPages gives how many pages a checkpoint may have: its first block is its header.
func (g *Geometry) CheckpointPages() int { return int((g.CheckpointBytes - BlockSize) / PageBytes) }

// Validate reports a geometry in which areas overlap or leave the device.
func (g *Geometry) Validate() error {
	if g.SizeBytes <= 0 || g.SizeBytes > MaxDeviceBytes {
		return corrupt("geometry", "device of %d bytes", g.SizeBytes)
	}
	at := int64(BlockSize)
	for _, a := range []struct {
		name     string
		off, len int64
		min      int64
	}{
		{"journal", g.JournalOff, g.JournalBytes, MaxBatchBlocks * 2 * BlockSize},
		{"checkpoint A", g.CheckpointOff[0], g.CheckpointBytes, BlockSize + PageBytes},
		{"checkpoint B", g.CheckpointOff[1], g.CheckpointBytes, BlockSize + PageBytes},
		{"data", g.DataOff, g.DataBytes, BlockSize},
		{"superblock copy", g.SizeBytes - BlockSize, BlockSize, BlockSize},
	} {
		if a.off%BlockSize != 0 || a.len%BlockSize != 0 || a.off < at || a.len < a.min || a.len > g.SizeBytes || a.off > g.SizeBytes-a.len {
			return corrupt("geometry", "%s of %d bytes at %d on a device of %d", a.name, a.len, a.off, g.SizeBytes)
		}
		at = a.off + a.len
	}
	return nil
}

// Run is a stretch of blocks of the data area: 40 bits of start and 24 bits of length, as it lies on the device.
type Run uint64

// MakeRun puts a run together. Preconditions: start < 1<<40, blocks < 1<<24.
func MakeRun(start uint64, blocks int) Run { return Run(start<<24 | uint64(blocks)) }

// Start gives the first block, counted from the start of the data area.
func (r Run) Start() uint64 { return uint64(r) >> 24 }

// Blocks gives the length.
func (r Run) Blocks() int { return int(r & (1<<24 - 1)) }

// RunsBlocks gives the blocks of all runs.
func RunsBlocks(runs []Run) int {
	n := 0
	for _, r := range runs {
		n += r.Blocks()
	}
	return n
}

// checkRuns reports runs that are empty or leave the data area.
func checkRuns(runs []Run, dataBlocks uint64) error {
	for _, r := range runs {
		if r.Blocks() == 0 || r.Start()+uint64(r.Blocks()) > dataBlocks {
			return corrupt("run", "%d blocks at %d of %d", r.Blocks(), r.Start(), dataBlocks)
		}
	}
	return nil
}

// MaxStripBlocks is the largest strip: what one request carries.
const MaxStripBlocks = wire.MaxDataBytes / BlockSize
