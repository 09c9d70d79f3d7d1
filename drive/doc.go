// Package drive is the role that keeps strips (written once) and log segments (append-only) on devices, finds them by id,
// and loses nothing that it has acknowledged. It knows nothing of files, stripes or parity.
//
// # How a Put travels
//
//  1. wire/rpc lands the data section in Bufs of the arena and calls internal/server, which decodes the request, finds the
//     device's store and calls Put in the same goroutine.
//  2. internal/store begins the operation under the store's lock: epoch against the newest seen of the bucket, nobody else
//     at work on the id, not there already, room; it allocates blocks and submits a journal record.
//  3. It writes the data with one pwrite (O_DIRECT, from the Buf). Meanwhile the journal's goroutine writes all records that
//     wait as one batch.
//  4. When both are done it joins a flush that is shared by all who wait, if the device has a volatile cache.
//  5. Only now the strip enters the index, where reads and lists see it, and the answer leaves.
//
// An Append is one pwrite (and the shared flush): blocks are given to a segment in chunks by a journal record that is
// durable before data goes there, and the end of a segment is found from its records (wire.SegRecord). A Read looks up all
// its ranges under a short read lock, preads into one Buf, and answers with it uncopied. A Delete is a journal record; the
// blocks are free once it is durable and no earlier read is under way. A Fence refuses older epochs at once, waits for
// operations under way, and is a journal record.
//
// # What a crash leaves
//
// A strip whose record is in the journal may lack its data, because both were written at once. Journal batches carry a low
// water (all operations up to that batch are finished), so opening verifies the checksums of those few puts and drops those
// that do not match. Opening then follows the records of open segments. internal/store/recover.go has the steps in order,
// FORMAT.md the bytes.
//
// # Goroutines and who owns them
//
//   - Run: the listener (and a goroutine a request, by wire/rpc), member (registration, heartbeats), sendEvents, trim.
//   - store.Run, one a device: checkpoints; it starts the journal's goroutine, and one that drains at the end.
//   - Read starts up to 16 for the parts of one request, on devices that gain from it, and waits for them.
//
// Blocking preads and pwrites take OS threads, at most 64 a device at once.
//
// # Locks
//
// Store.mu, then journal.mu, then flusher.mu; Store.checkMu (one checkpoint at a time) and pacer.mu (one Verify at a time)
// come before Store.mu. No IO happens under any but those two. An operation holds its ids (Store.busy) while it works; a
// Delete takes them in ascending order, so nobody waits in a circle.
//
// # Reading order
//
// FORMAT.md, internal/format, internal/index (index.go, replay.go, alloc.go), internal/store (store.go, put.go, append.go,
// free.go, read.go, journal.go, recover.go, checkpoint.go), internal/blockio, internal/server, run.go.
//
// # How it fails, and the test
//
//   - Killed or cut off at any write, also in recovery and while a checkpoint is taken: store.TestCrashEverywhere,
//     store.TestCrashHistories (a device that loses and tears what was not flushed).
//   - A checkpoint taken while the drive works: index.TestFuzzyCheckpoint.
//   - The device fails a write, the journal, a flush, a read; a thin device is full: store.TestDataWriteError and following.
//     After a failed flush the drive takes nothing more and the process ends, to find out by a restart what is there.
//   - Full: KindNoSpace before anything is written, a 32nd is kept for metadata, deletes work: store.TestFull.
//   - Damaged metadata: an error that names it, never wrong bytes: store.TestMutatedImages, store.TestJournalDamage,
//     format.TestEveryBitCounts, fuzz targets of both packages.
//   - Bit rot in data: readers verify block checksums; Verify finds it too and reports an event: store.TestVerify.
//   - A device that is not ours, or in use: TestFormatRefuses, TestOpenRefuses, blockio.TestExclusive.
//   - A newer run of the process exists: TestStaleRunEnds. Mgmt being away is no failure: the drive serves on.
package drive
