package route

import "time"

const (
	// minBackoff and maxBackoff bound the wait before a request is sent again; it doubles between them.
	minBackoff = 2 * time.Millisecond
	maxBackoff = 250 * time.Millisecond
	// watchTimeout is how long mgmt may sit on a watch for a newer map; then it is asked anew.
	watchTimeout = 20 * time.Second
	// kickEvery is how long a watch is left alone before a kick puts it anew.
	kickEvery = 300 * time.Millisecond
	// admitWait bounds the wait for a map that knows a peer, before it is refused: mgmt publishes a registration before it answers it, and
	// a kick puts the question for the map anew within kickEvery.
	admitWait = time.Second
	// awayFor is how long a process that did not accept a connection, or lost one, counts as unreachable.
	awayFor = 200 * time.Millisecond
	// driveDialTimeout bounds the wait for a connection to a drive: local ones accept at once or refuse.
	driveDialTimeout = 500 * time.Millisecond
	// bucketDialTimeout bounds one try of a connection to the owner of a bucket.
	bucketDialTimeout = 2 * time.Second
)
