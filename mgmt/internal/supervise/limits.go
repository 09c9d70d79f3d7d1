package supervise

import "time"

// Limits of the process runtime, each with its reason.
const (
	// firstBackoff, maxBackoff: a crashed process is back at once, one that crashes again and again does not eat a core.
	firstBackoff = 100 * time.Millisecond
	maxBackoff   = 5 * time.Second
	// calmAfter is how long a run must last for the next restart to be prompt again.
	calmAfter = 10 * time.Second
	// killWait is how long a process may take to vanish after SIGKILL; one in an uninterruptible wait of the kernel takes longer
	// and is reported.
	killWait = 10 * time.Second
	// maxLogBytes bounds a log file; one older file is kept, so each process has at most twice that.
	maxLogBytes = 16 << 20
	// logCheckEvery is how often the sizes of logs are looked at: at 100 MB/s of logs a file would be ten seconds too
	// long, and that is no load that a log should ever see.
	logCheckEvery = 10 * time.Second
	// maxLastWords bounds the last line of a log that is quoted as the reason of an exit.
	maxLastWords = 400
	// maxCmdline bounds what is read of a foreign process's command line.
	maxCmdline = 64 << 10
	// maxRecord bounds a record of a running process.
	maxRecord = 64 << 10
)
