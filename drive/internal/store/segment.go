package store

import (
	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/copies"
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
		copies.Add(copies.Meta, n)
		return out
	}
	return nil
}
