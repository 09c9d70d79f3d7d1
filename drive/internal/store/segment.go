package store

import (
	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/copies"
)

// checkChain verifies that data is whole records of the segment that chain from offset: ids, offsets, lengths and the
// checksums of heads and inline payloads. The checksums of payload blocks are the reader's. memory is where heads are copied to; it is
// given back to be used again.
//
// Only copies are parsed, because data may lie in memory of the sender, who can change it at any time: what is checked is what is believed.
// What is written after that may be something else, but that is the sender's loss: a segment ends where its records do not chain, and
// readers verify.
func checkChain(data wire.Data, id wire.StripID, offset uint64, memory []byte) ([]byte, error) {
	const name = "drive.append"
	want := id.WithPos(0)
	if offset%format.BlockSize != 0 {
		return memory, wire.Errorf(name, wire.KindInvalid, id.String(), "offset %d is not of whole blocks", offset)
	}
	for at, total := 0, data.Len(); at < total; {
		memory = appendBytes(memory[:0], data, at, format.BlockSize)
		r, _, need, err := wire.DecodeSegHead(memory)
		if err == nil && need > format.BlockSize {
			if need > total-at {
				return memory, wire.Errorf(name, wire.KindCorrupt, id.String(), "a record's head is cut at %d", at)
			}
			memory = appendBytes(memory, data, at+format.BlockSize, need-format.BlockSize) // not again what was read
			r, _, _, err = wire.DecodeSegHead(memory)
		}
		if err != nil {
			return memory, wire.Errorf(name, wire.KindCorrupt, id.String(), "record at %d: %w", offset+uint64(at), err)
		}
		if r.ID != want || r.Offset != offset+uint64(at) || r.Bytes() > total-at {
			return memory, wire.Errorf(name, wire.KindCorrupt, id.String(),
				"record at %d says it is of %s at %d, %d bytes; %d bytes are left", offset+uint64(at), r.ID, r.Offset, r.Bytes(), total-at)
		}
		at += r.Bytes()
	}
	return memory, nil
}

// appendBytes appends the n bytes at off of data to dst. Preconditions: there are as many.
func appendBytes(dst []byte, data wire.Data, off, n int) []byte {
	for _, p := range data {
		if off >= len(p.B) {
			off -= len(p.B)
			continue
		}
		part := p.B[off:min(len(p.B), off+n)]
		dst = append(dst, part...)
		copies.Add(copies.Meta, len(part))
		if n -= len(part); n == 0 {
			break
		}
		off = 0
	}
	return dst
}
