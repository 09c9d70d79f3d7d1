package dump

import (
	"encoding/binary"
	"fmt"

	"github.com/crakefs/crake/wire"
)

// referenceBytes is the length of a reference at the end of a meta section.
const referenceBytes = 16

// Reference is a part of a data section that lies in shared memory.
type Reference struct {
	Arena  uint32 `json:"arena"`
	Len    uint32 `json:"len"`
	Offset uint64 `json:"offset"`
}

func byReference(e *Event) bool { return e.Header.Flags&wire.FlagReferences != 0 }

// references takes those of a frame, as far as they are there.
func references(e *Event) (out []Reference) {
	if !byReference(e) || e.Cut() {
		return nil
	}
	le := binary.LittleEndian
	n := min(int(e.Header.Refs), len(e.Meta)/referenceBytes)
	for b := e.Meta[len(e.Meta)-n*referenceBytes:]; len(b) > 0; b = b[referenceBytes:] {
		out = append(out, Reference{le.Uint32(b), le.Uint32(b[4:]), le.Uint64(b[8:])})
	}
	return out
}

// kindName names a kind of frame.
func kindName(k wire.FrameKind) string {
	switch k {
	case wire.FrameRequest:
		return "request"
	case wire.FrameResponse:
		return "response"
	case wire.FrameOneWay:
		return "one-way"
	case wire.FrameCancel:
		return "cancel"
	case wire.FrameCredit:
		return "credit"
	case wire.FrameRelease:
		return "release"
	}
	return fmt.Sprintf("kind %d", k)
}

// flagNames names what is set.
func flagNames(flags uint8) (out []string) {
	if flags&wire.FlagReferences != 0 {
		out = append(out, "by-reference")
	}
	if flags&wire.FlagDataReturned != 0 {
		out = append(out, "returned")
	}
	if rest := flags &^ (wire.FlagReferences | wire.FlagDataReturned); rest != 0 {
		out = append(out, fmt.Sprintf("flags %#x", rest))
	}
	return out
}

// released gives the ids that a release frame names: request id times two, plus one for the data of the response.
func released(e *Event) (out []uint64) {
	for b := e.Meta; len(b) >= 8; b = b[8:] {
		out = append(out, binary.LittleEndian.Uint64(b))
	}
	return out
}

// message decodes the meta section of a frame; nil where it has none or its type is not known.
func message(e *Event, method wire.Method) (wire.Message, error) {
	h := &e.Header
	info, ok := method.Info()
	var m wire.Message
	switch {
	case h.Kind == wire.FrameResponse && h.Status != wire.KindNone:
		m = &wire.ErrorBody{}
	case h.Kind == wire.FrameResponse && ok:
		m = info.NewResp()
	case h.Kind == wire.FrameRequest && ok:
		m = info.NewReq()
	default:
		return nil, nil
	}
	if e.Cut() {
		return nil, fmt.Errorf("only the first %d of %d bytes of the message were captured", len(e.Meta), h.MetaBytes)
	}
	return m, m.Decode(e.Meta[:len(e.Meta)-len(references(e))*referenceBytes])
}
