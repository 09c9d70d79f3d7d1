// Package drive is the role that keeps strips (written once) and log segments (append-only) on devices, finds them by id,
// and loses nothing that it has acknowledged. It knows nothing of files, stripes or parity.
//
// # How a Put travels
//
//  1. wire/rpc lands the data section in Bufs of the arena and calls internal/server, which decodes the request, finds the
//     device's store and calls Put in the same goroutine.
//  2. internal/store begins the operation under the store's lock: epoch against the newest seen of the bucket, nobody else
//     at work on the id, not there already, room; it allocates blocks and submits a journal record.
//  3. When its turn comes (internal/sched) it writes the data, from the Buf. Meanwhile the journal's goroutine writes all
//     records that wait as one batch.
//  4. When both are done it joins a flush that is shared by all who wait, if the device has a volatile cache. An operation that is
//     alone makes its writes durable by themselves instead: a single one always, these two where the device can without a flush.
//  5. Only now the strip enters the index, where reads and lists see it, and the answer leaves.
//
// An Append is one write (and the shared flush): blocks are given to a segment in chunks by a journal record that is
// durable before data goes there, and the end of a segment is found from its records (wire.SegRecord). A Delete is a journal record;
// the blocks are free once it is durable and no earlier read is under way, and are told to the device half a minute later
// (discard.go), held in the allocator meanwhile. A Fence refuses older epochs at once, waits for operations under way, and is a
// journal record.
//
// # How a Read travels
//
// It needs no goroutine: wire/rpc offers it to server.Start in the connection's reading goroutine. All its ranges are looked up under
// a short read lock, each piece waits for its turn, and what one read of the socket has brought is begun by one system call (Kick). The
// device fills one Buf, and whoever ends the last piece answers with it, uncopied; answers that end together leave together. A read of
// a file in memory is done at once instead, and where IO blocks (pread on a disk) a goroutine does all this and waits. A
// connection is not over before every such request is answered, so a store may be closed after that.
//
// # How IO is done
//
// One io_uring a process (internal/blockio/ring.go): whoever has queued IO submits it, one goroutine ends all, and no thread waits.
// Where the kernel has none or forbids it, and for files in memory, it is pread and pwrite; Info().EngineReason says why.
//
// # What a crash leaves
//
// A strip whose record is in the journal may lack its data, because both were written at once. Journal batches carry a low
// water (all operations up to that batch are finished), so opening verifies the checksums of those few puts and drops those
// that do not match. Opening then follows the records of open segments. internal/image finds out what is there, and
// internal/store/recover.go writes what follows from it; FORMAT.md has the bytes. `crake drive inspect` and `crake drive check` show
// the same without writing.
//
// # Goroutines and who owns them
//
//   - Run: the listener, and goroutines of wire/rpc for requests that Start does not take; route.Router.Run, which keeps the map (who
//     asks is in it, and on which server); live (registration, heartbeats), SendEvents, watchDevices (are the devices where and what they were), trim.
//   - store.Run, one a device: checkpoints; it starts the journal's goroutine, the scrub, the discards, and one that drains at
//     the end.
//   - blockio.NewEngine: the reaper, and a thread for discards. Engine.Close ends them, after all devices and before the arena.
//
// Registration, heartbeats, events and the goodbye are package wire/member; member.go says what a drive's heartbeat carries, and
// health.go what ends the process or makes mgmt fail the drive.
//
// # Locks
//
// Store.checkMu (one checkpoint at a time) comes before Store.mu and is the only lock held over IO; then journal.mu, then flusher.mu. The
// arena's lock comes before blockio's regions.mu; nobody calls the arena under that. The locks of the ring and of the scheduler are
// leaves; no system call is made under them. An operation holds its ids (Store.busy) while it works; a Delete takes them in ascending
// order, so nobody waits in a circle.
//
// # Reading order
//
// FORMAT.md, internal/format, internal/index (index.go, replay.go, alloc.go), internal/image, internal/store (store.go, put.go, append.go,
// free.go, read.go, journal.go, recover.go, checkpoint.go, discard.go, scrub.go), internal/sched, internal/health, internal/blockio,
// internal/server, run.go. How fast it is beside fio on the same device, and what the wire takes of that, `make bench-drive`
// measures; BENCHMARKS.md has the table.
//
// # How it fails, and the test
//
//   - Killed or cut off at any write or flush, with every subset of what was not flushed, also in the opening and while a checkpoint is
//     taken: store.TestCrashExhaustive; longer histories by chance: store.TestCrashEverywhere, store.TestCrashHistories.
//   - Killed with IO under way: the kernel ends it before the successor gets the device: blockio.TestKilled.
//   - A checkpoint taken while the drive works: index.TestFuzzyCheckpoint. Very many strips: store.TestOpenMany,
//     store.TestCheckpointPauses.
//   - The device fails a write, the journal, a flush, a read; a thin device is full: store.TestDataWriteError and following; while the
//     drive opens: store.TestOpenReadErrors. After a failed flush the drive takes nothing more; mgmt is told (DriveTrouble) and the
//     process ends, to find out by a restart what is there; after five such ends in ten minutes mgmt fails the drive:
//     TestDeviceFailedIsTold.
//   - The device is gone, has become shorter, hangs, or fails too often: Fault in the heartbeats, and mgmt fails the drive:
//     health.TestFaults, health.TestHungIO, TestPlace, TestShorterFileIsAFault. It cannot be opened: told before the process ends:
//     TestOpenFailureIsTold.
//   - Full: KindNoSpace before anything is written, a 32nd is kept for metadata, deletes work: store.TestFull; at the bound of strips:
//     store.TestAsManyStripsAsFit. Splintered: index.TestFragmentation.
//   - Damaged metadata: an error that names it, never wrong bytes: store.TestMutatedImages, store.TestJournalDamage,
//     format.TestEveryBitCounts; structures that lie with right checksums: TestMutatedStructures; fuzz targets of the packages.
//   - Inspect and check write nothing and tell damage from what a crash leaves: TestCheckFindsDamage, TestCheckForetells. Layout 1
//     opens for ever: TestGoldenImage.
//   - Bit rot in data: readers verify block checksums; Verify and the scrub find it too and report an event: store.TestVerify,
//     store.TestScrub.
//   - Discards and crashes: store.TestDiscardCrashes, TestDiscardWaits, TestDiscardExcludes. Registered memory that Trim takes:
//     blockio.TestTrimUnregisters. A ring that makes no sense: blockio.TestBroken, FuzzCompletions, uring.FuzzRing.
//   - One connection, or the scrub, wants all of the device: the tests of internal/sched.
//   - A device that is not ours, or in use: TestFormatRefuses, TestOpenRefuses, blockio.TestExclusive.
//   - A newer run of the process exists: TestStaleRunEnds. Mgmt being away is no failure: the drive serves on.
package drive
