package driveload

import "time"

// Sizes of the jobs and bounds of a session.
const (
	// StripBytes is a strip as protection makes them by default.
	StripBytes = 128 << 10
	// prepareDepth is how many strips are put at once before the first job: as deep as a drive gains from.
	prepareDepth = 16
	// arenaBytes holds the answers of the deepest job several times over.
	arenaBytes = 128 << 20
	// jobDeadline ends a job whose drive hangs; a ctx with a deadline also spares a timer for each call.
	jobDeadline = 5 * time.Minute
	// maxDeleteIDs is the protocol's.
	maxDeleteIDs = 4096
	// compareEvery: every so many-th block read is compared whole; of all others the stamp is. Comparing 4 KiB costs 0.2 us.
	compareEvery = 8
	// sampleStrips of what a write job wrote are read back and compared after it.
	sampleStrips = 32
)
