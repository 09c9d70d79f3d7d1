package store

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"

	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/wire"
)

// checkChain verifies that data is whole records of the segment that chain from offset: ids, offsets, lengths and the
// checksums of heads and inline payloads. The checksums of payload blocks are the reader's.
func checkChain(data wire.Data, id wire.StripID, offset uint64) error {
	const name = "drive.append"
	want := id.WithPos(0)
	if offset%format.BlockSize != 0 {
		return wire.Errorf(name, wire.KindInvalid, id.String(), "offset %d is not of whole blocks", offset)
	}
	for at, total := 0, data.Len(); at < total; {
		r, _, need, err := wire.DecodeSegHead(bytesAt(data, at, format.BlockSize))
		if err == nil && need > format.BlockSize {
			if need > total-at {
				return wire.Errorf(name, wire.KindCorrupt, id.String(), "a record's head is cut at %d", at)
			}
			r, _, _, err = wire.DecodeSegHead(bytesAt(data, at, need))
		}
		if err != nil {
			return wire.Errorf(name, wire.KindCorrupt, id.String(), "record at %d: %w", offset+uint64(at), err)
		}
		if r.ID != want || r.Offset != offset+uint64(at) || r.Bytes() > total-at {
			return wire.Errorf(name, wire.KindCorrupt, id.String(),
				"record at %d says it is of %s at %d, %d bytes; %d bytes are left", offset+uint64(at), r.ID, r.Offset, r.Bytes(), total-at)
		}
		at += r.Bytes()
	}
	return nil
}

// bytesAt gives n bytes at off; copied only when they lie in several parts.
func bytesAt(data wire.Data, off, n int) []byte {
	for i, p := range data {
		if off >= len(p.B) {
			off -= len(p.B)
			continue
		}
		if n <= len(p.B)-off {
			return p.B[off : off+n]
		}
		out := append(make([]byte, 0, n), p.B[off:]...)
		for _, q := range data[i+1:] {
			out = append(out, q.B[:min(len(q.B), n-len(out))]...)
		}
		return out
	}
	return nil
}

// window reads the blocks of a strip or segment through, in order.
type window struct {
	s     *Store
	runs  []format.Run
	end   uint64 // bytes that may be read
	buf   []byte
	start uint64 // what of it is in buf
	n     int
}

func (s *Store) newWindow(runs []format.Run, end uint64) *window {
	return &window{s: s, runs: runs, end: end, buf: blockio.AlignedBytes(scanWindowBytes)}
}

// get gives n bytes at off, valid until the next call. Preconditions: whole blocks, n <= scanWindowBytes, off+n <= w.end.
func (w *window) get(off uint64, n int) ([]byte, error) {
	if off < w.start || off+uint64(n) > w.start+uint64(w.n) {
		w.start, w.n = off, 0
		want := int(min(uint64(len(w.buf)), w.end-off))
		if err := w.s.readInto(w.runs, off, w.buf[:want]); err != nil {
			return nil, err
		}
		w.n = want
	}
	at := int(off - w.start)
	return w.buf[at : at+n], nil
}

// readInto reads the bytes at off of what lies in runs.
func (s *Store) readInto(runs []format.Run, off uint64, p []byte) error {
	for _, r := range runs {
		have := uint64(r.Blocks()) * format.BlockSize
		if off >= have {
			off -= have
			continue
		}
		skip := off / format.BlockSize
		n := min(len(p), int(have-off))
		part := format.MakeRun(r.Start()+skip, n/format.BlockSize)
		if err := s.readRun(part, p[:n]); err != nil {
			return err
		}
		if p = p[n:]; len(p) == 0 {
			return nil
		}
		off = 0
	}
	return nil
}

// scanSegment follows the chain of valid records of a segment from a known record boundary on, as far as w allows, and
// gives where it ends. Every checksum is verified. Errors are of the device.
func scanSegment(w *window, id wire.StripID, from uint64) (uint64, error) {
	want := id.WithPos(0)
	for from < w.end {
		head, err := w.get(from, format.BlockSize)
		if err != nil {
			return from, err
		}
		r, _, need, err := wire.DecodeSegHead(head)
		if err == nil && need > format.BlockSize {
			if uint64(need) > w.end-from {
				return from, nil
			}
			if head, err = w.get(from, need); err != nil {
				return from, err
			}
			r, _, _, err = wire.DecodeSegHead(head)
		}
		if err != nil || r.ID != want || r.Offset != from || uint64(r.Bytes()) > w.end-from {
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

func sumsMatch(w *window, off uint64, sums []uint64) (bool, error) {
	for i, sum := range sums {
		b, err := w.get(off+uint64(i)*format.BlockSize, format.BlockSize)
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

// stripSum computes a strip's checksum from its blocks.
func stripSum(w *window) (uint64, error) {
	sums := make([]uint64, 0, w.end/format.BlockSize)
	for off := uint64(0); off < w.end; off += format.BlockSize {
		b, err := w.get(off, format.BlockSize)
		if err != nil {
			return 0, err
		}
		sums = append(sums, xxhash.Sum64(b))
	}
	return wire.StripSum(sums), nil
}
