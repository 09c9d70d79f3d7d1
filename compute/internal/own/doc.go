// Package own decides what this process serves, and when: the right to serve at all (Lease, by heartbeats), and the life of
// each bucket that the map gives us.
//
//	map names us --> opening: fence, files, database (Opener) --> settle with other buckets --> reclaim: wait for sessions
//	   --> serving --> map takes it away, or we stop --> requests end, database closes --> gone from the heartbeats
//	            \--> the database fails --> failed --> opening again, after a pause
//	                 a newer owner has fenced us: failed until the map says so
//
// What sessions hold (leases, locks, opens) belongs to the ownership, not to one opening of the database.
//
// One goroutine a bucket (Owner.life) does all of that; requests only Enter and Leave. Owner.SetMap never waits.
//
// Reading order: lease.go, bucket.go, owner.go, life.go.
package own
