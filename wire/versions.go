package wire

// How the protocol grows
//
// A message gets a new field at its end, and that is all: who does not know it skips it, who does not send it has sent zero, and
// whoever adds it says what zero means. No version is needed for that, and most growth is this.
//
// What a peer must know before it is used (a method, another meaning, a frame) takes a new version. It gets a number below, with a line
// of what it changed; HighestVersion rises to it; the handshake picks the highest that both sides have, rpc.Conn.Version tells which, and
// the sender uses what is new only from that version on. LowestVersion rises only when nothing that speaks it can be
// in a cluster any more; who is below it is refused, and both sides say so with both ranges. What depends on no version but on
// the two processes (memory that both can map) is a feature bit: see rpc.Features.
//
// That this works is tried with the next release before there is one. `go build -tags crake_next` makes it: it speaks VersionNext
// too, adds a field to messages between all roles (Next) and a method (MNextEcho), and each side verifies what it got from the other
// (rpc/next_on.go); with CRAKE_FAR in its environment it plays a release that has dropped all versions of today.
// bench/e2e/s4w_versions_test.go runs clusters mixed of both. Without the tag there is nothing of it but the embedded Next, which is
// empty. Next stays the last field of its message.

// Versions of the protocol. Numbers are never reused.
const (
	// Version1 is the first: frames as in Header, windows fixed by the handshake.
	Version1 = 1
	// VersionNext is one above the highest that is released: what is being tried, see Next.
	VersionNext = Version1 + 1
)
