package compute

import "time"

// Limits of the process.
const (
	// defaultArenaBytes is Config.Arena when it is 0: eight writes of 1 MiB with their parity, and what lands beside them.
	defaultArenaBytes = 64 << 20
	// defaultMemoryBytes is Config.Memory when it is 0.
	defaultMemoryBytes = 256 << 20
	// minMemoryBytes is the least that works.
	minMemoryBytes = 32 << 20
	// heartbeatEvery is the pause between heartbeats; a change of a bucket's state sends one at once.
	heartbeatEvery = 500 * time.Millisecond
	// heartbeatTimeout bounds one heartbeat; the next is sent then.
	heartbeatTimeout = time.Second
	// heartbeatRetry is the pause after one that failed.
	heartbeatRetry = 100 * time.Millisecond
	// heartbeatGap is the least pause between two, so that many buckets that open at once share one.
	heartbeatGap = 5 * time.Millisecond
	// registerRetryMin and registerRetryMax bound the pause between attempts to register.
	registerRetryMin = 50 * time.Millisecond
	registerRetryMax = time.Second
	// goodbyeTimeout bounds the last message of an orderly stop.
	goodbyeTimeout = time.Second
	// maxEvents bounds the events that wait to be sent to mgmt; more are dropped, and counted in the log.
	maxEvents = 64
	// eventTimeout bounds the sending of one.
	eventTimeout = 5 * time.Second
	// minMemTable and maxMemTable bound the memtable of one bucket.
	minMemTable = 256 << 10
	maxMemTable = 4 << 20
	// fileCacheFiles bounds the open files of all databases.
	fileCacheFiles = 4096
	// leakDelay is how long after a bucket began to serve its leaked strips are looked for: clients come first.
	leakDelay = 5 * time.Second
	// leakRetry is the pause before that is tried again after drives did not answer.
	leakRetry = 30 * time.Second
	// leakTries bounds the attempts in one ownership.
	leakTries = 20
)
