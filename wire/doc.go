// Package wire is what the roles share: typed ids, errors, the cluster map, messages, buffers and (in its folders rpc
// and route) connections. It knows nothing about what the messages do.
//
// # A request's walk
//
//  1. A role fills a message (msg_*.go) and perhaps Data, parts of Bufs that it has from the process's Arena, and calls
//     route.Router.Bucket, Drive or Mgmt.
//  2. The router finds the process by the newest ClusterMap and takes a connection to it from rpc.Pool, which dials and shakes
//     hands where there is none.
//  3. rpc.Conn.Do takes a share of the peer's window, encodes header and meta into one small buffer and writes it together with
//     the Bufs by one writev, usually from the caller's own goroutine.
//  4. The peer's reading goroutine checks the header, then meta; the data lands in a Buf of the peer's arena, page-aligned. What was
//     read along with the header is copied there: sections of up to 16 KiB, of which one system call brings many, and of a longer one
//     512 bytes, or, if it follows short ones, what the read buffer holds of it. Nothing else is copied, on either side.
//  5. A handler's goroutine decodes meta, does the work, and gives back a message and Data (or rpc.Options.Start begins the work without
//     a goroutine, and Request.Answer ends it); the answer goes the same way back, and is decoded into the caller's struct by its
//     reading goroutine.
//
// # Who owns what
//
// Goroutines: package wire itself has none. Each rpc.Conn has three (reading, writing what callers could not, looking for stalls) and
// its handlers; they end with the connection. rpc.Listener.Serve and route.Router.Run run in their callers' goroutines.
//
// Bufs are counted: who receives one releases it. A handler owns the data of its request and gives its answer's away; a caller
// lends the data of its request and owns that of the answer.
//
// Lock order: Router.setMu, then Router.mu or Pool.mu; nothing under Router.mu; under Pool.mu those of a Conn that is being closed. In
// rpc.Conn no lock is held while another is taken, but for Arena.mu, the innermost of all, under writer.mu and serveMu, and the
// mutex of a request's ctx under serveMu. In Mem: memPipe.mu, then memNet.mu.
//
// # How it fails, and the test for each
//
//   - A peer dies, hangs or breaks off inside a frame: calls fail with KindConnLost, and may have had an effect
//     (rpc: TestPeerEnds, TestStalls, TestHostileServer).
//   - A peer sends nonsense: disconnected, logged once, bounded memory (rpc: TestHostileFrames, TestHostileHandshake,
//     TestHandshakeFlood, FuzzFrames, FuzzHello; wire: FuzzMessages, FuzzHeader, FuzzSegRecord, TestMessagesFalseCounts).
//   - A peer of another cluster or version: refused, and told why (rpc: TestHandshakeVerdict, TestHandshakeRefused).
//   - A peer reads slowly or asks too much: bounded by windows and backlog (rpc: TestSlowReader, TestWindow,
//     TestTakenBacklog, TestTakenWindow).
//   - A connection ends, or an asker gives up, while requests are worked on without a goroutine: it waits for their answers, which have
//     no effect (rpc: TestTakenConnectionEnds, TestTakenPeerDies, TestTakenContext); two answers to one are a panic (TestAnswerTwice).
//   - What is held back to leave together is held by a peer that is slow: it is not (rpc: TestTakenBeforeHalfAFrame,
//     TestTakenHoldTheArena).
//   - The arena is exhausted: waits in order, by shares, never for ever (TestArenaShares, TestArenaWaitersInOrder;
//     rpc: TestArenaExhausted); with the smallest arenas of real drives and computes (bench/arenas).
//   - The owner of a bucket moves or is away: asked again, with the newest map (route: TestBucketMoves, TestBucketGivesUp).
//   - The owner of a bucket vanishes with its machine: left as soon as the map gives it up (route: TestOwnerVanishes; rpc: TestDrop).
//   - A drive is away: found within moments, and not asked again for 200 ms (route: TestDrive, TestDriveHangs).
//   - Mgmt is away: the last map stays in use (route: TestWatch); a watch that it lost is put anew (route: TestKick).
//   - A leaked or doubly released Buf: found by tests with ArenaDebug (TestArenaFindsMistakes).
//
// # Reading order
//
// ids.go (the vocabulary), errors.go, limits.go, clustermap.go, buf.go (the zero-copy rule), arena.go and arena_buddy.go (where Bufs
// come from), message.go and codec.go (how messages are encoded), msg_*.go (the messages, by who answers them), segrecord.go (what lies
// in a segment); then rpc (connections), route (who owns what, and the one place for retries) and member (a process's life with mgmt).
//
// PROTOCOL.md is the specification of the bytes.
package wire
