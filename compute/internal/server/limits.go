package server

import "time"

// Limits of the server.
const (
	// MaxHandlers is rpc.Options.MaxHandlers for the compute's listener: all that a peer may have in flight. Requests that
	// wait for leases (lease.MaxWaitersPerSession) or locks (lock.MaxSessionWaiters) take at most half of it, so that the
	// flush or unlock that they wait for always finds a handler.
	MaxHandlers = 1024
	// defaultDeadline bounds a request whose sender names no deadline.
	defaultDeadline = 60 * time.Second
	// statFresh is how old the answer to a StatFSReq may be before it is made anew in the background; df shows it.
	statFresh = time.Second
	// statStale is how old it may be at all: an older one is waited for. A frontend near a full cluster decides by it.
	statStale = 2 * time.Second
	// statWait bounds making it.
	statWait = 2 * time.Second
	// filesFresh is how old the count of inodes of all buckets may be: it asks every bucket.
	filesFresh = 10 * time.Second
	// statParallel bounds the drives and buckets that are asked at once for it.
	statParallel = 16
	// bytesPerInode turns free space into free inodes, which are not limited by themselves: a record takes about 400
	// bytes, and every inode has a name.
	bytesPerInode = 512
)
