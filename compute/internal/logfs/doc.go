// Package logfs is Pebble's vfs.FS over the drives: the files of one bucket's database are mirrored logs and
// erasure-coded chunks, and nothing lies on a local disk. ../../FORMAT.md has the bytes.
//
// Two kinds of file, by name. Logs (*.log, MANIFEST-*) grow by Sync: every Sync is one append to a mirrored segment on
// m+1 drives. All others (tables) are buffered, cut into chunks of up to k*128 KiB that are written as stripes (mirrored
// when small), and come into being at Sync, or, if they are small, at Close.
//
// A file exists because of its description: a strip of class file, mirrored on m+1 drives. There is no other directory;
// what no live description points to is debris and deleted at Open. Which descriptions are live is told by the newest
// open record (see recover.go).
//
// A Sync of the WAL, step by step: Write has copied the bytes behind room for a head; Sync writes the head (and moves the
// payload into its block if it fits there), and sends the one buffer to m+1 drives at once. If a drive fails, the segment
// ends at its acknowledged length and the same record goes to a new one, whose first record tells the place in the file
// where it goes on: what older segments have beyond that place was never acknowledged and does not count. A drive that has not answered may
// still read the buffer: then the record moves to new memory before its head is written again. A buffer that cannot grow at once is sent as it is.
//
// Errors: a write is repeated until it succeeds, the bucket is deposed or the FS is closed, because Pebble cannot go on
// after a failed WAL write. Only tables give KindNoSpace at once. Reads are repeated for ReadPatience.
//
// Goroutines: none of its own; Open uses short-lived ones, and waits for them. Locks, in order: node.write (held during
// IO, one writer), FS.mu, node.mu (neither held during IO), handle.mu (held while its window is filled).
//
// Reading order: format.go (descriptions), fs.go (the interface), node.go, log.go, table.go, handle.go, recover.go.
//
// How it fails, and the test: drives missing at open in any combination (TestOpenEveryLoss), torn and unequal tails
// (TestTornTail), crash at any request of writes and of recovery itself (TestPebbleCrash, TestRecoveryCrash), a renamed
// or created file half done (TestRenameCrash), descriptions of an owner long gone (TestGhost), a drive
// that has not answered and still reads what it was sent (TestLentMemory; storetest looks in every test).
package logfs
