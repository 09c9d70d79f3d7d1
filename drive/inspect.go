package drive

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/drive/internal/image"
	"github.com/crakefs/crake/drive/internal/index"
	"github.com/crakefs/crake/drive/internal/store"
	"github.com/crakefs/crake/wire"
)

// Inspection is what lies on a device. It is printed as JSON by drive inspect: keys never change their meaning.
type Inspection struct {
	Path        string           `json:"path"`
	DeviceBytes int64            `json:"device_bytes"`
	Block       bool             `json:"block_device"` // else a file
	Superblock  SuperblockInfo   `json:"superblock"`
	Checkpoints []CheckpointInfo `json:"checkpoints"` // of both areas
	// What follows is by the newest sound checkpoint and the journal after it. Empty when Error says why there is none.
	Journal      JournalInfo   `json:"journal"`
	Space        SpaceInfo     `json:"space"`
	Buckets      []BucketInfo  `json:"buckets"`       // ascending; those that hold something, or had an epoch
	OpenSegments []SegmentInfo `json:"open_segments"` // ascending
	Error        string        `json:"error,omitempty"`
}

// SuperblockInfo is the superblock. Offsets and sizes are in bytes.
type SuperblockInfo struct {
	Version         int       `json:"version"`
	Drive           uint32    `json:"drive"`
	Cluster         string    `json:"cluster"`
	FormatID        string    `json:"format_id"` // hexadecimal
	Formatted       time.Time `json:"formatted"`
	UsedBytes       int64     `json:"used_bytes"` // of the device
	JournalOffset   int64     `json:"journal_offset"`
	JournalBytes    int64     `json:"journal_bytes"`
	CheckpointOff   [2]int64  `json:"checkpoint_offsets"`
	CheckpointBytes int64     `json:"checkpoint_bytes"`
	DataOffset      int64     `json:"data_offset"`
	DataBytes       int64     `json:"data_bytes"`
	DamagedCopies   []int64   `json:"damaged_copies"` // offsets of superblocks that are not sound
}

// CheckpointInfo is one of the two checkpoint areas.
type CheckpointInfo struct {
	Offset     int64     `json:"offset"`
	State      string    `json:"state"` // "in use", "older", "never written", "damaged"
	Seq        uint64    `json:"seq"`
	Written    time.Time `json:"written"`
	Pages      uint64    `json:"pages"`
	Records    uint64    `json:"records"`
	Bytes      uint64    `json:"bytes"`       // of header and pages
	JournalSeq uint64    `json:"journal_seq"` // first batch to replay
	Error      string    `json:"error,omitempty"`
}

// JournalInfo is the journal after the checkpoint in use.
type JournalInfo struct {
	FirstSeq  uint64            `json:"first_seq"`
	NextSeq   uint64            `json:"next_seq"` // one after the last; equal to first_seq when there is nothing to replay
	Batches   int               `json:"batches"`
	UsedBytes int64             `json:"used_bytes"`
	LowWater  uint64            `json:"low_water"` // operations up to this batch were finished
	Records   map[string]uint64 `json:"records"`   // by type
	UnderWay  int               `json:"puts_perhaps_under_way"`
	Torn      bool              `json:"torn_tail"` // the write of a further batch was cut off
}

// SpaceInfo is the data area, in bytes.
type SpaceInfo struct {
	DataBytes       uint64 `json:"data_bytes"`
	UsedBytes       uint64 `json:"used_bytes"`
	FreeBytes       uint64 `json:"free_bytes"`
	ReserveBytes    uint64 `json:"reserve_bytes"` // of the free ones: kept from file data
	FreeRuns        uint64 `json:"free_runs"`
	LargestFreeRun  uint64 `json:"largest_free_run_bytes"`
	FreeInShortRuns uint64 `json:"free_in_short_runs_bytes"` // in runs below 128 KiB, the usual strip
	Strips          int    `json:"strips"`
	Segments        int    `json:"segments"`
	InSeveralRuns   int    `json:"in_several_runs"` // strips and segments that are not in one piece
}

// BucketInfo is what a bucket has on the drive.
type BucketInfo struct {
	Bucket  uint16      `json:"bucket"`
	Epoch   uint64      `json:"epoch"`   // the newest that the drive has seen
	Classes []ClassInfo `json:"classes"` // ascending
}

// ClassInfo is what a bucket has of a class.
type ClassInfo struct {
	Class    string `json:"class"`
	Strips   uint64 `json:"strips"`
	Segments uint64 `json:"segments"`
	Bytes    uint64 `json:"bytes"` // of data
}

// SegmentInfo is a segment that takes appends.
type SegmentInfo struct {
	ID             string `json:"id"`
	Bucket         uint16 `json:"bucket"`
	Class          string `json:"class"`
	Bytes          uint64 `json:"bytes"` // of sound records
	AllocatedBytes uint64 `json:"allocated_bytes"`
	Error          string `json:"error,omitempty"` // what lies beyond could not be read
}

// shortRunBlocks: a free run below it holds no strip of the usual 128 KiB.
const shortRunBlocks = 32

// Inspect tells what lies on a device, and changes nothing there. A device whose index is damaged gives both an Inspection with what
// can be told and an error. Errors: KindNotFound, KindRefused (no drive, or a running one), KindVersion, KindCorrupt, KindIO.
func Inspect(ctx context.Context, path string) (in *Inspection, err error) {
	if path == "" {
		return nil, wire.Errorf("drive.inspect", wire.KindInvalid, "", "the path is missing")
	}
	dev, err := image.OpenFile(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, dev.Close()) }()
	in, err = inspect(ctx, dev, path)
	if in != nil {
		in.Block = dev.IsBlock()
	}
	return in, err
}

// inspect is Inspect of an open device.
func inspect(ctx context.Context, dev image.Reader, path string) (*Inspection, error) {
	sbs, err := image.ReadSuperblocks(dev, path)
	if err != nil {
		return nil, err
	}
	areas := image.ReadAreas(dev, sbs.Sound)
	in := &Inspection{
		Path: path, DeviceBytes: dev.Size(), Superblock: superblockInfo(sbs), Checkpoints: checkpointInfos(sbs.Sound, areas),
		Buckets: []BucketInfo{}, OpenSegments: []SegmentInfo{},
	}
	state, err := image.Load(dev, sbs.Sound, path)
	if err == nil && ctx.Err() != nil {
		err = wire.E("drive.inspect", wire.KindInterrupted, path, ctx.Err())
	}
	var settled *image.Settlement
	if err == nil {
		settled, err = state.Settle(image.DataReader(dev, sbs.Sound))
	}
	if err != nil {
		in.Error = err.Error()
		return in, err
	}
	settled.Adopt()
	in.Checkpoints[state.Area].State = "in use"
	in.Journal, in.Space = journalInfo(state), spaceInfo(state)
	in.Buckets = bucketInfos(state.Index)
	for _, e := range settled.Segments {
		in.OpenSegments = append(in.OpenSegments, segmentInfo(e))
	}
	slices.SortFunc(in.OpenSegments, func(a, b SegmentInfo) int {
		if a.Bucket != b.Bucket {
			return int(a.Bucket) - int(b.Bucket)
		}
		return strings.Compare(a.ID, b.ID)
	})
	return in, nil
}

func superblockInfo(sbs *image.Superblocks) SuperblockInfo {
	sb := sbs.Sound
	info := SuperblockInfo{
		Version: int(sb.Version), Drive: uint32(sb.Drive), Cluster: sb.Cluster.String(), FormatID: fmt.Sprintf("%016x", sb.FormatID),
		Formatted: time.Unix(0, sb.Created).UTC(), UsedBytes: sb.SizeBytes, JournalOffset: sb.JournalOff, JournalBytes: sb.JournalBytes,
		CheckpointOff: sb.CheckpointOff, CheckpointBytes: sb.CheckpointBytes, DataOffset: sb.DataOff, DataBytes: sb.DataBytes,
		DamagedCopies: []int64{},
	}
	for _, d := range sbs.Damaged {
		info.DamagedCopies = append(info.DamagedCopies, d.Off)
	}
	return info
}

func checkpointInfos(sb *format.Superblock, areas [2]image.Area) []CheckpointInfo {
	out := make([]CheckpointInfo, 0, len(areas))
	for i, a := range areas {
		info := CheckpointInfo{Offset: sb.CheckpointOff[i], State: "older"}
		switch {
		case a.Blank:
			info.State = "never written"
		case a.Err != nil:
			info.State, info.Error = "damaged", a.Err.Error()
		default:
			c := a.Header
			info.Seq, info.Pages, info.Records, info.JournalSeq = c.Seq, c.Pages, c.Records, c.JournalSeq
			info.Written, info.Bytes = time.Unix(0, c.Written).UTC(), format.BlockSize+c.Pages*format.PageBytes
		}
		out = append(out, info)
	}
	return out
}

func journalInfo(s *image.State) JournalInfo {
	j := s.Journal
	info := JournalInfo{
		FirstSeq: j.FirstSeq(), NextSeq: j.Next, Batches: len(j.Batches), LowWater: j.Low, Torn: j.Torn, UnderWay: len(s.Suspects),
		Records: map[string]uint64{},
	}
	for _, b := range j.Batches {
		info.UsedBytes += int64(b.Blocks) * format.BlockSize
	}
	for t := format.RecordPut; t <= format.RecordFence; t++ {
		info.Records[t.String()] = j.Records[t]
	}
	return info
}

func spaceInfo(s *image.State) SpaceInfo {
	free, all := s.Alloc.FreeBlocks(), s.Superblock.DataBlocks()
	info := SpaceInfo{
		DataBytes: all * format.BlockSize, FreeBytes: free * format.BlockSize, UsedBytes: (all - free) * format.BlockSize,
		ReserveBytes: store.ReserveBlocks(s.Superblock) * format.BlockSize,
	}
	s.Alloc.FreeRuns(func(_, blocks uint64) {
		info.FreeRuns++
		info.LargestFreeRun = max(info.LargestFreeRun, blocks*format.BlockSize)
		if blocks < shortRunBlocks {
			info.FreeInShortRuns += blocks * format.BlockSize
		}
	})
	s.Index.Ascend(wire.StripID{}, func(st index.Strip) bool {
		if st.Segment != nil {
			info.Segments++
		} else {
			info.Strips++
		}
		if len(s.Index.Runs(st.ID)) > 1 {
			info.InSeveralRuns++
		}
		return true
	})
	return info
}

func bucketInfos(x *index.Index) []BucketInfo {
	epochs := map[wire.BucketID]wire.Epoch{}
	x.Epochs(func(b wire.BucketID, e wire.Epoch) { epochs[b] = e })
	type key struct {
		bucket wire.BucketID
		class  wire.Class
	}
	classes := map[key]*ClassInfo{}
	x.Ascend(wire.StripID{}, func(st index.Strip) bool {
		k := key{st.ID.Bucket(), st.ID.Class()}
		c := classes[k]
		if c == nil {
			c = &ClassInfo{Class: className(k.class)}
			classes[k] = c
			epochs[k.bucket] += 0 // a bucket without an epoch is listed too
		}
		if st.Segment != nil {
			c.Segments++
		} else {
			c.Strips++
		}
		c.Bytes += st.LenBytes()
		return true
	})
	out := []BucketInfo{}
	for b, e := range epochs {
		info := BucketInfo{Bucket: uint16(b), Epoch: uint64(e), Classes: []ClassInfo{}}
		for class := wire.Class(0); class < 16; class++ {
			if c := classes[key{b, class}]; c != nil {
				info.Classes = append(info.Classes, *c)
			}
		}
		out = append(out, info)
	}
	slices.SortFunc(out, func(a, b BucketInfo) int { return int(a.Bucket) - int(b.Bucket) })
	return out
}

func segmentInfo(e image.SegmentEnd) SegmentInfo {
	id := e.Segment.ID
	info := SegmentInfo{
		ID: id.String(), Bucket: uint16(id.Bucket()), Class: className(id.Class()), Bytes: e.Len, AllocatedBytes: e.Segment.AllocatedBytes(),
	}
	if e.Err != nil {
		info.Error = e.Err.Error()
	}
	return info
}

// className gives the name of a class for people.
func className(c wire.Class) string {
	switch c {
	case wire.ClassData:
		return "data"
	case wire.ClassSegment:
		return "segment"
	case wire.ClassLog:
		return "log"
	case wire.ClassTable:
		return "table"
	case wire.ClassFile:
		return "file"
	}
	return fmt.Sprintf("class %d", c)
}
