// Package frontend is the client of the filesystem: one process with a session, a mount by FUSE, and caches under leases.
//
// # A write and an fsync
//
//  1. The kernel sends WRITE (1 MiB at most). go-fuse calls internal/fusefs, one goroutine a request, which makes a context that
//     ends only when the caller is being killed, and calls internal/core.
//  2. core.FS.Write takes the write lease if it has none (GetAttr with Want, see leases.go), memory within the dirty bound
//     (newMem), and copies the bytes, once, into blocks of the file (internal/dirty). write(2) returns.
//  3. When a whole stripe of k*128 KiB is dirty it leaves by itself (sendReady); the rest at fsync, recall, pressure, 50 ms after a close,
//     or after 5 s (writeback.go), small files of one bucket together in one MWrite.
//  4. A send (flush.go) freezes the blocks, has regions above 0 noted first (MPrepare), reads what is missing of blocks that were
//     written in part, makes the checksums and sends MWrite to the region's bucket. When it is answered the blocks are durable and
//     their memory is free. A write to a frozen block goes to a copy, which is sent after.
//  5. fsync sends what is dirty, waits for all that was written before, then tells size and mtime: in the same MWrite when that
//     was all in region 0, else by MPublish. So the size never covers data that is not committed.
//
// # A read
//
//  1. READ comes in; the size is known under a lease, else asked for. Bytes are served from readahead (readahead.go) if they are
//     there, else: what is dirty here is copied; the rest, all gaps at once, comes by extents, from the cache (maps.go) or one MExtents
//     for the region, straight from the drives (wire/strip), verified.
//  2. The answer points at the memory in which it arrived (Bytes, Slices); it is freed after the writev to the kernel.
//  3. Extents that lead to nothing are asked for again; drives that are away are waited for.
//
// # Leases
//
// Everything cached of an inode counts only while in.cached(): a lease is held (internal/lease) and the session is alive by our
// own clock (FS.Renew). Kernel timeouts are 0 and files are opened for direct IO, so the kernel caches nothing but the
// pages of mmaps. A recall (FS.Recall) lets the kernel give back pages, stops new dirty data, flushes, forgets, answers. A grant that is
// older than a recall already seen, or answers a request from before the lease was given up, is void. Attributes are
// replaced only by newer versions; our own unlink or rename makes those of the inode it touched count as old.
// At a change of a bucket's owner, reclaim.go tells the new one leases, open files and locks.
//
// # Goroutines
//
//   - Run: the mount's server (go-fuse: one goroutine a request), heartbeats, events, the map watcher, the listener, arena trimming.
//   - core.FS.Run: one loop, every 50 ms or under pressure: write-back, releases, idle readahead, eviction of inodes.
//   - Short ones, waited for by FS.Run (spawn): a send, a prefetch, a truncate or punch, a claim, a lock put back.
//   - Recalls: the rpc connection's, one for each.
//
// # Locks, in order
//
//	inode.mu -> writeback.mu, Handle.mu, workMu, space.mu        (Handle.mu -> inode.mu never)
//	table.mu -> inode.mu                                         (inode.mu -> table.mu never: get and put outside)
//	reclaimer.mu, session.mu, handles.mu, dirTable.mu: alone
//
// No IO, no wait for memory and no wait for another goroutine under any of them.
//
// # Why nothing waits in a circle
//
//   - A recall waits for sends and publishes of its inode, and for a truncate or punch that has begun. Those wait for computes,
//     which serve the recalled session, for their slot among the sends, and for 4 KiB of arena memory that is kept for them
//     (wire.UseMore). No request of the kernel is among them, except:
//   - a recall of an inode with pages waits for the kernel to write them back, which may wait for a page that a READ has locked,
//     which may wait for another session's lease. So that wait is bounded (pagesTimeout), comes before new writes are stopped (else those
//     very pages could not be taken), and is repeated after the answer for pages that came meanwhile.
//   - A writer that waits for memory or for a lease holds nothing.
//   - A reader takes its whole budget at once, before it asks anybody; readahead only takes what is free.
//   - lockQuiet (truncate) sets busy and waits for sends; sends never wait for busy.
//   - Notifications to the kernel are sent by goroutines of their own, never by a request's.
//
// # How it fails, and the test
//
//   - A compute dies: route.Router retries at the new owner, with the same OpID; claims go there first (core: TestNewOwner, TestLeaseLost).
//   - A send fails and others still read its memory: what is written, truncated or completed there goes elsewhere (core, dirty:
//     TestLentMemory, TestLentBlockIsFilled, TestModel).
//   - An answer is lost: the request goes again and is not done twice (core: TestExactlyOnce).
//   - A drive is away or wrong: wire/strip rebuilds; too many away: the read waits (core: TestReadWaits).
//   - The cluster is full: write says ENOSPC early; what was buffered and does not fit is told to each opener once, at
//     fsync or close; small files that went together are tried one by one (core: TestNoSpace, TestErrorOnce, TestGroupRefused).
//   - mgmt is away for longer than the lease: caches rest, calls wait, until it answers (core: TestSessionExpires).
//   - A grant is overtaken by its recall: it is void (core: TestLateGrant). Clients share a file: TestTwoClients, TestAppendRace.
//   - A newer run of the process, or an ended session: Run returns; unsynced data is lost.
//   - The cluster does not answer: calls wait; their callers can be killed (fusefs: TestKill), signals do not disturb (TestSignals).
//   - SIGTERM: flush in bounded time, unmount, lazily if it is busy.
//   - kill -9: the next run of the same mount finds a dead mount and replaces it (fusefs: TestDeadMount).
//
// Access times are not kept: atime is what utimens or the creation set.
//
// Reading order: frontend.go, member.go; internal/core: core.go, inode.go, leases.go, write.go, flush.go, writeback.go, read.go, readahead.go,
// names.go, handles.go, reclaim.go; internal/dirty; internal/fusefs.
package frontend
