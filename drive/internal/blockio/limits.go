package blockio

import "time"

const (
	// ringEntries is how many IOs one system call can begin. More than a store lets be under way at once, so that a burst is one call.
	ringEntries = 1024
	// maxInFlight is how many IOs are with the kernel at once, over all devices of the process; more wait in a list of the IOs
	// themselves, which those bound who start them. It is the size of the completion ring, so that can never overflow.
	maxInFlight = 2048
	// maxDevices of a process: places in the table of registered files. A container has one to 19 processes and a server some dozens of
	// devices.
	maxDevices = 64
	// reapBatch is how many completions are handled before others get the processor, and what they began is submitted. Few, so that
	// their answers are on the way while the next are handled; see burstRequests of wire/rpc, with which it was measured.
	reapBatch = 4
	// maxTries bounds how often an IO that the kernel sends back (EAGAIN, EINTR, ECANCELED) is given to it again. A second try goes
	// to a thread of the kernel, where it may block, so more than a few are a kernel in trouble.
	maxTries = 100
	// retryAfter is the pause when the kernel has no memory for a request and none is under way whose end would be the occasion.
	retryAfter = time.Millisecond

	// regionBytes is the grain in which the arena is registered with the kernel. Smaller ones populate less that is not needed, but an
	// IO must lie in one: the arena's buddy allocator aligns runs to their size, so what is up to 1 MiB never lies in two of 2 MiB.
	regionBytes = 2 << 20
	// regionHeat is how many IOs land in a region before it is registered: that costs about as much as it gains in some hundred IOs,
	// and a region that Trim took from is likely to be idle.
	regionHeat = 32

	// busyWait is how long opening waits for a device that is in use: when a process is killed, the kernel lets its IO end in the
	// background, and only then drops its lock. See Engine.Open.
	busyWait  = 2 * time.Second
	busyRetry = 5 * time.Millisecond
)
