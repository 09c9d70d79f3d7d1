package member

import "time"

// Limits of a process's talk with mgmt.
const (
	// registerRetryMin and registerRetryMax bound the pause between attempts to register; it doubles.
	registerRetryMin = 20 * time.Millisecond
	registerRetryMax = time.Second
	// registerTimeout bounds one attempt: mgmt makes a registration durable, on a machine that may be starting.
	registerTimeout = 2 * time.Second
	// heartbeatEvery is the pause between heartbeats; all roles agree on it, and mgmt's lease is several times that.
	heartbeatEvery = 500 * time.Millisecond
	// heartbeatTimeout bounds one where Config.HeartbeatTimeout is zero.
	heartbeatTimeout = 2 * time.Second
	// heartbeatRetry is the pause after one that failed.
	heartbeatRetry = 100 * time.Millisecond
	// heartbeatGap is the least pause between two that were answered, so that many changes at once share one.
	heartbeatGap = 5 * time.Millisecond
	// maxEvents bounds the events that wait to be sent; more are dropped, and counted in the log.
	maxEvents = 64
	// eventTimeout bounds the sending of one.
	eventTimeout = 5 * time.Second
	// maxTransports is how many transports there are: "shm", "unix", "tcp", "tcp+tls" and "mem".
	maxTransports = 5
	// maxListen bounds the addresses of a process: a socket of its server, and a few networks. Mgmt takes as many (leader.MaxAddrs).
	maxListen = 8
	// goodbyeTimeout: a goodbye is a courtesy.
	goodbyeTimeout = time.Second
)
