//go:build !crake_next

package wire

// Next, embedded at the end of a message, is what the next version adds to it: see versions.go. In this build that is nothing, and takes
// no byte on the wire.
type Next struct{}

// Append encodes nothing.
func (Next) Append(b []byte) []byte { return b }

func (Next) decode(*decoder) {}
