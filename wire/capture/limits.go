package capture

import "time"

// Limits of captures. What happens when one is reached stands with each.
const (
	// MaxFrameBytes is what is kept of header and meta of a frame; a longer one (a cluster map of a thousand drives, a listing of a long
	// directory) is cut. Such frames are rare, and the bound keeps a burst of them from driving all others out.
	MaxFrameBytes = 64 << 10
	// MaxDataBytes is the most that can be had of each data section: a block. It is for looking, not for copying.
	MaxDataBytes = 4096
	// maxFileBytes is the length at which a capture to a file ends.
	maxFileBytes = 256 << 20
	// sinkBytes bounds what waits to be written for one who looks, some hundred thousand small frames; what finds no room is counted
	// as lost. Twice that much memory is used: one part is filled while the other is written.
	sinkBytes = 8 << 20
	// maxSinks bounds how many look at once: each costs a copy of every frame. A further one is turned away.
	maxSinks = 4
	// maxBodyBytes bounds the body of a record that is read: a cut frame is the longest.
	maxBodyBytes = 1 << 20
	// askTimeout is how long who connects may take to say what it wants.
	askTimeout = 2 * time.Second
	// endTimeout is how long the last words of a capture may take to be written.
	endTimeout = time.Second
)
