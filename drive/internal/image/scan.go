package image

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"

	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/wire"
)

// Window reads the blocks of a strip or segment through, in order. Not safe for concurrent use.
type Window struct {
	// End is how many bytes may be read.
	End uint64

	read  ReadRun
	runs  []format.Run
	buf   []byte
	start uint64 // what of it is in buf
	n     int
}

// NewWindow makes a window over the first end bytes of what lies in runs. Preconditions: runs has that many; whole blocks.
func NewWindow(read ReadRun, runs []format.Run, end uint64) *Window {
	w := &Window{buf: blockio.AlignedBytes(int(min(windowBytes, max(end, format.BlockSize))))}
	w.reset(read, runs, end)
	return w
}

// Reset begins with another strip or segment, in the same memory if it is enough. Preconditions: as of NewWindow.
func (w *Window) Reset(read ReadRun, runs []format.Run, end uint64) {
	if n := int(min(windowBytes, end)); n > len(w.buf) {
		w.buf = blockio.AlignedBytes(n)
	}
	w.reset(read, runs, end)
}

// reset begins with another strip or segment, in the same memory.
func (w *Window) reset(read ReadRun, runs []format.Run, end uint64) {
	w.read, w.runs, w.End, w.start, w.n = read, runs, end, 0, 0
}

// Get gives n bytes at off, valid until the next call. Preconditions: whole blocks, n <= windowBytes, off+n <= w.End.
func (w *Window) Get(off uint64, n int) ([]byte, error) {
	if off < w.start || off+uint64(n) > w.start+uint64(w.n) {
		w.start, w.n = off, 0
		want := int(min(uint64(len(w.buf)), w.End-off))
		if err := w.readInto(off, w.buf[:want]); err != nil {
			return nil, err
		}
		w.n = want
	}
	at := int(off - w.start)
	return w.buf[at : at+n], nil
}

// readInto reads the bytes at off of what lies in the runs.
func (w *Window) readInto(off uint64, p []byte) error {
	for _, r := range w.runs {
		have := uint64(r.Blocks()) * format.BlockSize
		if off >= have {
			off -= have
			continue
		}
		skip := off / format.BlockSize
		n := int(min(uint64(len(p)), have-off))
		part := format.MakeRun(r.Start()+skip, n/format.BlockSize)
		if err := w.read(part, p[:n]); err != nil {
			return err
		}
		if p = p[n:]; len(p) == 0 {
			return nil
		}
		off = 0
	}
	panic("drive: a window beyond the runs")
}

// ScanSegment follows the chain of valid records of a segment from a known record boundary on, as far as w allows, and
// gives where it ends. Every checksum is verified. Errors are of the device.
func ScanSegment(w *Window, id wire.StripID, from uint64) (uint64, error) {
	want := id.WithPos(0)
	for from < w.End {
		head, err := w.Get(from, format.BlockSize)
		if err != nil {
			return from, err
		}
		r, _, need, err := wire.DecodeSegHead(head)
		if err == nil && need > format.BlockSize {
			if uint64(need) > w.End-from || need > len(w.buf) {
				return from, nil
			}
			if head, err = w.Get(from, need); err != nil {
				return from, err
			}
			r, _, _, err = wire.DecodeSegHead(head)
		}
		if err != nil || r.ID != want || r.Offset != from || uint64(r.Bytes()) > w.End-from {
			return from, nil
		}
		ok, err := sumsMatch(w, from+uint64(r.HeadBytes()), r.Sums)
		if err != nil || !ok {
			return from, err
		}
		from += uint64(r.Bytes())
	}
	return from, nil
}

func sumsMatch(w *Window, off uint64, sums []uint64) (bool, error) {
	for i, sum := range sums {
		b, err := w.Get(off+uint64(i)*format.BlockSize, format.BlockSize)
		if err != nil {
			return false, err
		}
		if xxhash.Sum64(b) != sum {
			return false, nil
		}
	}
	return true, nil
}

// claimsPlace says that a block looks like the start of a record of the segment for this offset, sound or not.
func claimsPlace(b []byte, id wire.StripID, off uint64) bool {
	want, le := id.WithPos(0), binary.LittleEndian
	return le.Uint64(b[8:]) == want.Hi && le.Uint64(b[16:]) == want.Lo && le.Uint64(b[24:]) == off
}

// StripSum computes a strip's checksum from its blocks.
func StripSum(w *Window) (uint64, error) {
	sums := make([]uint64, 0, w.End/format.BlockSize)
	for off := uint64(0); off < w.End; off += format.BlockSize {
		b, err := w.Get(off, format.BlockSize)
		if err != nil {
			return 0, err
		}
		sums = append(sums, xxhash.Sum64(b))
	}
	return wire.StripSum(sums), nil
}
