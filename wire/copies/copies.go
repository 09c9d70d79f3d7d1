// Package copies counts the bytes of file data that this code moves from one piece of memory to another, by place. It does so only in a
// binary that was built with the tag crake_copies; in any other Add is an empty function that the compiler leaves out, and
// nothing is counted. `make bench-copies` builds such a binary and prints the table; bench/e2e asserts it (TestS4wCopies).
//
// The rule: a buffered write is copied once, out of the request of the kernel, and nowhere else before the drive's device has it; what is
// read is copied nowhere. Each other place below is met only in the case that its comment names.
package copies

// Place is where bytes are moved, or made.
type Place int

// The places. What the kernel moves for us (FUSE, sockets, devices) is no copy of ours; what a socket has moved is counted all the same,
// because memory that is shared saves it.
const (
	// WriteIn: from the kernel's request into memory for dirty blocks. Each byte of a write, once; it must, since the memory of the
	// request is needed for the next one, and the write is answered before the data has gone anywhere.
	WriteIn Place = iota
	// WriteAgain: what stays of a block that is written again, in part, while its memory may be read by others.
	WriteAgain
	// WriteBase: old content of a block of which only a part was written.
	WriteBase
	// ReadDirty: a read of what was written and is not sent yet. It must: the next write changes that memory in place.
	ReadDirty
	// Landing: from the read buffer of a connection into the arena: frames with little data, many of which one system call brings, and
	// the first bytes of long ones. Never of data that is passed by reference.
	Landing
	// Gather: pieces of data that do not lie in whole blocks, put together: a transport or a caller that splits them. Never met.
	Gather
	// Inline: a small file that goes into its inode, or out of it into a block.
	Inline
	// Meta: the databases' logs and tables, into memory for writing and out of what was read; and a drive's journal. No file data.
	Meta

	// Socket: not copied by us, but by the kernel: file data received from sockets.
	Socket
	// Parity: not copied but computed: parity of stripes, and what was rebuilt from it.
	Parity
	// Submitted: not copied: what a drive's device was given to write, strips, segments and journal.
	Submitted

	placeCount
)

var placeNames = [placeCount]string{
	WriteIn: "write_in", WriteAgain: "write_again", WriteBase: "write_base", ReadDirty: "read_dirty", Landing: "landing", Gather: "gather",
	Inline: "inline", Meta: "meta", Socket: "socket", Parity: "parity", Submitted: "submitted",
}

// String gives the name in the log.
func (p Place) String() string { return placeNames[p] }

// Places gives all of them, in order.
func Places() []Place {
	out := make([]Place, placeCount)
	for i := range out {
		out[i] = Place(i)
	}
	return out
}

// IsCopy says that the bytes of the place were copied by our code.
func (p Place) IsCopy() bool { return p < Socket }

// Message is the log line that Watch writes; the attributes are the places.
const Message = "bytes copied"
