package frontend

import "time"

// Limits of the process; those of the filesystem are in internal/core/limits.go.
const (
	// MinArenaBytes and maxMemoryBytes bound the memory settings, Config.ArenaBytes and DirtyBytes: a few requests of 1 MiB, and what is
	// surely a mistake.
	MinArenaBytes  = 8 << 20
	maxMemoryBytes = 1 << 40
	// processorsPerCore is how many Ps of the Go scheduler the process has for each core. Threads that wait in read(2) for
	// the kernel's next request keep theirs until sysmon takes it away, 20 us or more later; with a spare one an answer from
	// a compute or drive does not wait for that.
	processorsPerCore = 2
	// fsWait is how long the filesystem may be missing in the map when the process starts.
	fsWait = 5 * time.Second
	// syncTimeout bounds the flush at the end; mgmt kills after 60 s.
	syncTimeout = 40 * time.Second
	// unmountPatience is how long the end waits for users of the mount before it detaches it under them.
	unmountPatience = 2 * time.Second
	// serveTimeout bounds the wait for the last requests after the unmount.
	serveTimeout = 3 * time.Second
	// trimEvery is how often arena memory that is not needed goes back to the system.
	trimEvery = 10 * time.Second
)
