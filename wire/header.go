package wire

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"
)

// HeaderBytes is the length of a frame header.
const HeaderBytes = 64

// HeaderMagic starts every frame: "CRK1" in little-endian order.
const HeaderMagic = 0x314b5243

// FrameKind says what a frame is.
type FrameKind uint8

// The kinds of frame.
const (
	FrameRequest  FrameKind = 1
	FrameResponse FrameKind = 2
	FrameOneWay   FrameKind = 3 // a request that is not answered
	FrameCancel   FrameKind = 4 // the sender no longer waits for the request of this id
	FrameCredit   FrameKind = 5 // flow control: the receiver has room for Deadline more requests (see rpc)
	FrameRelease  FrameKind = 6 // data that was passed by reference is given back
)

// Flags of frames, where both sides pass data by reference.
const (
	FlagReferences   = 1 << 0 // the data section is by reference: Refs references end the meta section
	FlagDataReturned = 1 << 1 // of a response: the data of the request, which was by reference, is given back
)

// Header is the fixed start of every frame, little-endian:
//
//	 0 magic u32    4 kind u8   5 flags u8   6 method u16     8 request id u64
//	16 epoch u64   24 generation u64        32 meta bytes u32  36 data bytes u32
//	40 deadline ms u32  44 status u16  46 references u16      48 trace u64
//	56 xxhash64 of bytes 0 to 55 and of the meta section
type Header struct {
	Kind       FrameKind
	Flags      uint8
	Method     Method
	ID         uint64     // request id, unique per connection and direction
	Epoch      Epoch      // of the bucket that the request is about; 0 when it is about none
	Generation Generation // of the sender's cluster map; 0 when it has none
	MetaBytes  uint32
	DataBytes  uint32
	DeadlineMs uint32 // request: time left in milliseconds; 0 is none
	Status     Kind   // response: KindNone or why it failed (then meta is an ErrorBody)
	Refs       uint16 // with FlagReferences: references at the end of meta
	Trace      uint64 // travels along from the first request of an operation; 0 is none
}

// Encode writes the header for this meta section into dst, which has HeaderBytes bytes.
func (h *Header) Encode(dst, meta []byte) {
	le := binary.LittleEndian
	le.PutUint32(dst[0:], HeaderMagic)
	dst[4], dst[5] = byte(h.Kind), h.Flags
	le.PutUint16(dst[6:], uint16(h.Method))
	le.PutUint64(dst[8:], h.ID)
	le.PutUint64(dst[16:], uint64(h.Epoch))
	le.PutUint64(dst[24:], uint64(h.Generation))
	le.PutUint32(dst[32:], h.MetaBytes)
	le.PutUint32(dst[36:], h.DataBytes)
	le.PutUint32(dst[40:], h.DeadlineMs)
	le.PutUint16(dst[44:], uint16(h.Status))
	le.PutUint16(dst[46:], h.Refs)
	le.PutUint64(dst[48:], h.Trace)
	le.PutUint64(dst[56:], headerSum(dst, meta))
}

// DecodeHeader reads a header and checks magic, kind and lengths. The checksum covers meta too: see CheckHeader.
func DecodeHeader(src []byte) (Header, error) {
	le := binary.LittleEndian
	if len(src) < HeaderBytes {
		return Header{}, Errorf("frame.header", KindBadFrame, "", "%d bytes, want %d", len(src), HeaderBytes)
	}
	if m := le.Uint32(src); m != HeaderMagic {
		return Header{}, Errorf("frame.header", KindBadFrame, "", "magic %#x, want %#x", m, uint32(HeaderMagic))
	}
	h := Header{
		Kind: FrameKind(src[4]), Flags: src[5], Method: Method(le.Uint16(src[6:])), ID: le.Uint64(src[8:]),
		Epoch: Epoch(le.Uint64(src[16:])), Generation: Generation(le.Uint64(src[24:])),
		MetaBytes: le.Uint32(src[32:]), DataBytes: le.Uint32(src[36:]),
		DeadlineMs: le.Uint32(src[40:]), Status: Kind(le.Uint16(src[44:])), Refs: le.Uint16(src[46:]), Trace: le.Uint64(src[48:]),
	}
	if h.Kind < FrameRequest || h.Kind > FrameRelease {
		return Header{}, Errorf("frame.header", KindBadFrame, "", "frame kind %d", h.Kind)
	}
	if h.MetaBytes > MaxMetaBytes || h.DataBytes > MaxDataBytes {
		return Header{}, Errorf("frame.header", KindBadFrame, "", "lengths %d and %d, limits %d and %d",
			h.MetaBytes, h.DataBytes, MaxMetaBytes, MaxDataBytes)
	}
	return h, nil
}

// CheckHeader verifies the checksum of an encoded header and its meta section.
func CheckHeader(src, meta []byte) error {
	if got, want := binary.LittleEndian.Uint64(src[56:]), headerSum(src, meta); got != want {
		return Errorf("frame.header", KindBadFrame, "", "checksum %#x, want %#x", got, want)
	}
	return nil
}

func headerSum(hdr, meta []byte) uint64 {
	// Two hashes of the short parts are cheaper than a streaming digest, and need no allocation.
	return xxhash.Sum64(hdr[:56])*0x9e3779b97f4a7c15 ^ xxhash.Sum64(meta)
}
