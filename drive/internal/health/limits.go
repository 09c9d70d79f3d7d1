package health

import "time"

// The limits of health, each with its reason.
const (
	// readErrorLimit and writeErrorLimit are how many occurrences of errors within errorWindow make a fault. Ten in ten
	// minutes is what ZFS's diagnosis engine takes (its SERD parameters io_N and io_T), Linux md allows twenty an hour
	// for reads. One failed write takes a disk out of an md array; we allow for a glitch of a cable.
	readErrorLimit  = 10
	writeErrorLimit = 3
	errorWindow     = 10 * time.Minute
	// occurrence is the time within which errors count once: a reset of a controller fails all that is under way.
	occurrence = time.Second
	// maxOccurrences bounds what is remembered of them.
	maxOccurrences = 2 * readErrorLimit
	// sameErrors is how many errors are remembered to count a repeat only once: more than there are hot bad blocks.
	sameErrors = 64
	// hungAfter makes an IO that does not return a fault. The kernel's own limit is 30 s for NVMe and SCSI; then it resets
	// the device, which takes some seconds. Who is not back by then needs more than patience.
	hungAfter = 45 * time.Second
	// maxStep bounds what one Tick counts as time in which an IO could have returned: a process that was stopped, or a
	// machine that slept, did not see the answers of that time. Ticks come twice a second, or every 2.5 s while mgmt
	// does not answer.
	maxStep = 3 * time.Second
	// windowLength and meanWindows: means are of the last ten seconds, so that a pause of half a minute is what it takes to
	// be called slow, not one long IO.
	windowLength = time.Second
	meanWindows  = 10
	// minIOs of the last ten seconds make a mean worth judging by, or fewer that took minTime together: a slow device does few, and
	// slows its peers down, which wait for it.
	minIOs  = 8
	minTime = 2 * time.Second
	// sampleAll and sampleEvery: of each second's IOs the first so many are timed, then one in so many.
	sampleAll   = 256
	sampleEvery = 16
	// windows is the length of the ring: those of the mean, and those in which an IO may hang before it is a fault.
	windows = 64
)

// The ring must not come round before an IO that began in a window is called hung.
const _ = uint(windows - int(hungAfter/windowLength) - meanWindows)
