package compute

import (
	"time"

	"github.com/crakefs/crake/wire"
)

// Limits of the process.
const (
	// defaultArenaBytes is Config.Arena when it is 0: eight writes of 1 MiB with their parity, and what lands beside them.
	defaultArenaBytes = 64 << 20
	// defaultMemoryBytes is Config.Memory when it is 0.
	defaultMemoryBytes = 256 << 20
	// MinArenaBytes is the least of Config.Arena: two requests of the largest size.
	MinArenaBytes = 2 * wire.MaxDataBytes
	// minMemoryBytes is the least that works.
	minMemoryBytes = 32 << 20
	// heartbeatTimeout bounds one heartbeat: the next must have its chance before half of the lease time is over.
	heartbeatTimeout = time.Second
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
