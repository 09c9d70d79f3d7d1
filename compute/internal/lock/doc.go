// Package lock keeps the fcntl byte-range locks and the flocks of the inodes of one bucket.
//
// ranges.go splits and merges the ranges of one inode, as POSIX says. table.go is the core: held locks, waiters in order
// of arrival, circles; no goroutine, clock or socket. wait.go lets requests wait for their turn.
//
// A lock belongs to (session, owner); owner is what the kernel of the session's machine calls the lock owner. Setting a
// lock that one has, and dropping one that one has not, succeed: so a request may be sent twice.
package lock
