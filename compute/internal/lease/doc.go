// Package lease decides which session may cache or buffer what of the inodes of one bucket.
//
// table.go is the core: who holds what, who waits, which recalls have to be sent; it is stepped by its callers and by
// table tests. manager.go drives it: it sends the recalls and sends them again, wakes the requests that wait, and tells
// mgmt of a session that does not answer. Only when the map no longer has that session are its leases dropped
// (EndSession, called by the owner of the sessions).
//
// A request goes: Hold (wait until nobody keeps back or caches what it needs), read or commit in the bucket, Grant,
// release. A lease is granted only if no other session changed the inode between Hold and Grant, because what was read
// could be old then; so Grant never waits and may say no.
//
// A recall and a grant may cross on their way to the session; Seq tells the session which one came last.
package lease
