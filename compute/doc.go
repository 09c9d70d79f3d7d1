// Package compute is the role that serves the filesystem: it owns buckets (shards of metadata with the data that they
// map), answers the frontends' requests in them, and writes what must last to the drives. It keeps nothing: kill -9 all
// compute processes, start others, and nothing acknowledged is missing.
//
// # A request, step by step
//
//  1. A frame arrives on a connection (package wire/rpc); process.handle refuses it when the process stops, and
//     internal/server looks up its method and whether this kind of peer may ask for it.
//  2. The right to serve: own.Lease is good until half of the lease time after the last good heartbeat was sent (or since
//     it was certain that no mgmt runs which could give away what we own: package wire/away).
//  3. The barrier: session.Tracker waits until every map that the sender has seen is acted upon here. So a session that
//     another one knows to be dead has no request running any more.
//  4. Session and bucket: the session lives and belongs to the sender; this process owns the bucket under the epoch that the
//     sender believes in (else KindMoved), and it serves (else KindUnavailable: it opens).
//  5. The operation runs in internal/meta, under a ctx that ends with the deadline or with the ownership, never because the
//     asker went away. It asks internal/lease to keep other sessions' caches out of its way (Hold), reads or commits, and
//     asks for a lease (Grant). Data goes to internal/store without being copied; the commit goes through Pebble and
//     internal/logfs to m+1 drives.
//  6. Before the answer leaves, the right to serve and the ownership are checked again: an answer that took long may be
//     about a state that the next owner has gone on from.
//
// Byte-range locks (internal/lock) are the exception to 5: their waits end when the asker cancels.
//
// # A bucket comes and goes
//
// A new map (route.Router, then process.onMap) first cuts off the sessions that it lacks, then own.Owner starts a life for
// each bucket that it gives to us, and ends those that it takes away. A life: fence all drives, open files and database
// (openBucket), settle what is in doubt with other buckets, wait until every session of the map has reclaimed, serve;
// delete inodes without a name that nobody reclaimed, and leaked strips; on failure close and open again; at the end
// let requests finish for a moment, cut off the rest, close. Requests between computes that settle transactions are
// answered as soon as the database is open, so that two buckets that open may wait for each other. Heartbeats tell mgmt of
// every step, and name a bucket until it is closed: only then does the next owner begin (or when our lease is over).
//
// # Goroutines, and who waits for them
//
//	Run            listener, router, store, tracker of sessions, events, heartbeats; waited for at its end
//	own.Owner      one life a bucket, with its database's Run, orphans, leak search; waited for in Owner.Close
//	lease.Manager  one a recall under way; waited for in Manager.Close (end of the life)
//	server         at most one refresh of statfs; waited for in Server.Wait
//	spin           one, where the process has its core to itself; waited for at the end of Run
//	rpc            one a request, at most server.MaxHandlers a connection
//
// # Lock order
//
// Owner.mu -> Bucket.mu -> {lease.Manager.mu, lock.Manager.mu, opens.Table.mu}; session.Tracker.mu alone. None is held
// while anything waits, nor during IO. Locks on inodes and keys are meta's; it holds none of them in Hold.
//
// # Reading order
//
// config.go, compute.go (Run), mgmt.go (the lease by heartbeats; the rest of that life is package wire/member), engine.go (opening a
// bucket); internal/own: lease.go, bucket.go, owner.go, life.go; internal/session; internal/server: server.go, methods.go;
// internal/lease: table.go, manager.go; internal/lock; internal/opens; then internal/meta, internal/store and internal/logfs by
// their own docs.
//
// # How it fails, and the test
//
//	mgmt does not answer, or the process stood still  own.Lease                TestSelfFencing
//	a newer incarnation runs                          Run returns              TestNewerIncarnation
//	a bucket moves while requests run                 own, requests repeated   TestMoveUnderLoad
//	processes are killed, one or both at once         the next owner replays   TestFailover, TestCrashes
//	a machine vanishes with requests under way        asked anew by the map    TestOwnerVanishes (wire/route), TestCrashes
//	too few drives for 2 s, a database that fails     BucketFailed, again      TestTooFewDrives, TestReopen
//	a newer owner has fenced the drives               closed at once           TestDeposed
//	a session does not answer a recall                reported to mgmt         TestSilentSession (internal/lease)
//	a session dies with requests running              the barrier              TestBarrier (internal/session)
//	two buckets open and wait for each other          UseOpen                  TestMoveUnderLoad, TestCrashes
//	a frontend keeps leases for ever                  oldest recalled          TestSessionLimit (internal/lease)
package compute
