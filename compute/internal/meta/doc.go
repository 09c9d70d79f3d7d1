// Package meta is the bucket engine: a Pebble database with the records of a part of the filesystem, and every operation
// on them. It knows nothing of connections, the cluster map, drives or stripes: those are its Config's interfaces.
//
// # A request
//
//  1. begin (reply.go): the bucket serves, the session lives, the request was not answered before. A second copy of a
//     request under way waits for the first.
//  2. Names are resolved with short shared locks, nothing kept (a plan, coord.go), or guessed without any.
//  3. Leases.Hold ends the leases of other sessions that are in the way. It may wait long, so nothing is locked.
//  4. Locks on inodes (lock.go), all at once, in order. What 2 found is looked at again; if it has changed, back to 2.
//  5. The change is made in a tx (tx.go), as steps (steps.go) where it is one of the namespace.
//  6. commit: live counts of stripes and segments under their locks (location.go), reply record, one batch. It is
//     applied, the locks are given back, then it becomes durable, then it is answered. Readers that saw it meanwhile wait
//     for the same moment (ticket in lock.go).
//  7. What has become free is deleted from the data store, after the commit is durable.
//
// A write (write.go) stores its data between 2 and 4: runs of 64 KiB and more as stripes, the rest in the segment.
//
// # Several buckets
//
// A change of the namespace whose inodes lie in several buckets is a two-phase commit: coord.go is the side that decides,
// part.go the other, package txn the logic of both. The participants are asked in order of bucket; each waits for leases
// with no lock held, then for locks, at most prepareLockWait; then the coordinator locks its own inodes, as briefly. When
// that fails all is let go and tried again after a random pause: so transactions that cross never wait for each other.
// (Rejected: one order of locks over all buckets. The coordinator's locks would be held while a participant waits for
// leases, that is, for a frontend.) Directories that move between parents take the filesystem's rename lock first
// (rename.go), and look for loops under it.
//
// Extents above a file's first region lie in other buckets; truncate.go and cleanup.go drop them, foreign.go counts them.
//
// # Goroutines
//
// Run is the only long-lived one: it asks about transactions in doubt, tells decisions, carries on clean-ups, reports
// block counts, and deletes empty segments. Requests use the goroutine of their caller, and short ones of their own for
// parallel stripes and decisions.
//
// # Locks
//
// In the order in which they may be taken: rename (spaceRename), inodes, regions, locations; within each by number.
// Bucket.mu, replies.mu, segments.mu, sequence.mu and the lock table's shards are mutexes for steps in memory
// (sequence.mu also for one small write in 4096 numbers) and are leaves. cleanup.mu is taken before locks of regions in
// other buckets, and nothing is waited for that needs it.
//
// # Failures, and the test of each
//
//   - crash of coordinator, participant or both at any step: crash_test.go; at random: model_test.go, file_test.go
//   - late and doubled messages, transactions in doubt: txn_test.go
//   - the same request twice, before and after a crash: reply_test.go
//   - a database that cannot be written: TestFailedDatabase; the bucket refuses everything and says so by Config.OnFail
//   - corrupt records: KindCorrupt (TestOpenChecks, FuzzRoundTrip)
//   - a store that fails, a lease lost between data and commit: TestFailedWrite
//   - answers before durability: TestReadersWaitForDurability
//   - disagreement of records of whatever kind: rig.check, after every test of several steps
//
// # Reading order
//
// config.go (what is around it), records.go and keys.go (FORMAT.md in the compute folder), lock.go, tx.go, reply.go,
// steps.go, namespace.go, coord.go, part.go, rename.go; then extents.go, write.go, location.go, truncate.go, cleanup.go,
// foreign.go; bucket.go (open and close), run.go, db.go.
package meta
