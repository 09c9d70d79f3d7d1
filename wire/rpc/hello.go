package rpc

import "github.com/crakefs/crake/wire"

// HelloBytes is the length of a hello, the first that each side of a connection says.
const HelloBytes = helloBytes

// HelloMagic begins every hello.
const HelloMagic = helloMagic

// Hello is what a hello says, for tools that show it.
type Hello struct {
	Self
	Status          wire.Kind // why the sender refuses; KindNone: it does not
	Lowest, Highest uint16    // protocol versions that it speaks
	WindowRequests  uint32    // that it takes unanswered
	WindowBytes     uint64    // of request data that it takes unanswered
	Features        uint64    // bits
}

// ParseHello reads a hello; an error has KindBadFrame.
func ParseHello(b []byte) (Hello, error) {
	h, err := decodeHello(b)
	return Hello{h.self, h.status, h.lowest, h.highest, h.windowReqs, h.windowData, h.features}, err
}
