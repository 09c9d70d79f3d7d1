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
//     On a connection that shares memory (rpc.Options.Shm) no data travels: meta ends with references to the sender's arena, and the Bufs are
//     borrowed (loan.go). The last Release gives them back.
//  5. A handler's goroutine decodes meta, does the work, and gives back a message and Data (or rpc.Options.Start begins the work without
//     a goroutine, and Request.Answer ends it); the answer goes the same way back, and is decoded into the caller's struct by its
//     reading goroutine.
//
// # Who owns what
//
// Goroutines: package wire itself has none. Each rpc.Conn has three (reading, writing what callers could not, looking for stalls) and
// its handlers; they end with the connection. rpc.Listener.Serve and route.Router.Run run in their callers' goroutines.
//
// Bufs are counted: who receives one releases it. One that is borrowed is read only, and held for the time of an operation only; Buf.Shared
// says whether one's own is lent. A handler owns the data of its request and gives its answer's away; a caller
// lends the data of its request and owns that of the answer.
//
// Lock order: Router.setMu, then Router.mu or Pool.mu; nothing under Router.mu; under Pool.mu those of a Conn that is being closed. In
// rpc.Conn no lock is held while another is taken, but for those of releasing Bufs (see rpc.Conn; Arena.mu is the innermost of all), and the
// mutex of a request's ctx under serveMu. In Mem: memPipe.mu, then memNet.mu.
//
// # How it fails, and the test for each
//
//   - A peer dies, hangs, or breaks off inside a frame or shuts down half of the connection: calls fail with KindConnLost, and may have
//     had an effect (rpc: TestPeerEnds, TestPeerDiesAtEveryByte, TestHalfClose, TestStalls, TestHostileServer).
//   - A caller gives up, in the moment of sending or later: nothing is worked on for ever, nothing is sent that need not be
//     (rpc: TestOrder, TestCancelUnsent, TestCancelAnswered, TestHandlerContext, TestMany).
//   - A peer sends nonsense: disconnected, logged once, bounded memory (rpc: TestHostileFrames, TestHostileHandshake,
//     TestHandshakeFlood, FuzzFrames, FuzzHello; wire: FuzzMessages, FuzzHeader, FuzzSegRecord, TestMessagesFalseCounts).
//   - A peer of another cluster: refused, and told why (rpc: TestHandshakeVerdict, TestHandshakeRefused).
//   - A peer of another version: the highest that both speak is spoken, what one of them does not know is not used or skipped; with none
//     in common it is refused, and both say which they speak (rpc: TestVersionPicked, TestFeaturesAgreed, TestNewerPeer; TestGoldens, and
//     TestNextField in the test build; bench/e2e: TestS4wVersions).
//   - A peer cannot prove who it is, is another than it says, repeats, reflects or forwards a proof, or sends none or half of one: refused, and
//     told why; bounded memory and time (rpc: TestProofRefused, TestHostileProof, TestSlowProof, TestToolNeedsNoProof, FuzzProof).
//   - A run of a process is over, or not in the map: refused by all, after a wait for a newer map, and its connections end (route: TestAdmit,
//     TestNewMapEndsConnections; rpc: TestExpel; on a cluster: TestS4wIdentities).
//   - Somebody forwards between two sides over TCP: found where they encrypt, and only there (rpc: TestManInTheMiddle).
//   - One side encrypts and the other does not, or with another CA: both are told (rpc: TestOneSideEncrypts, TestTLSOfAnotherCA).
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
//   - A unix path of another server exists here by chance: never dialled (route: TestReach, TestPathOfAnotherServer).
//   - Somebody who is not on this server wants our memory: gets none (route: TestSameServer).
//   - Mgmt is away: the last map stays in use (route: TestWatch); a watch that it lost is put anew (route: TestKick).
//   - A process dies, or a connection breaks, with data lent, borrowed or passed on: what is lent is not used again while anybody can touch it,
//     also a device of a third process, and comes back then (rpc: TestShmForwarderDies, TestShmBorrowerDies, TestShmConnectionEnds,
//     TestShmLenderDies; TestLoan).
//   - A borrower keeps what it gets, or a chain of processes is full: data goes through the socket, nobody waits (rpc: TestShmSlowBorrower,
//     TestShmChain; TestLendHalf).
//   - A call is given up whose data is lent: Buf.Shared says so until it is back (rpc: TestShmCancelled).
//   - A peer offers what is no sealed memory, refers to what is not there, gives back what is not lent, or twice, changes its memory, or gives
//     nothing back: refused or disconnected, bounded (rpc: TestShmOffers, TestShmHostileChannel, TestShmHostileFrames, TestShmMemoryChanges,
//     TestShmNeverReleases, FuzzChannel; TestDescriptorIsReadOnly). A peer that changes memory of its own that it has lent is not found out.
//   - Memory is given to the system, or the arena closed, while it is lent: not before it is back (TestTrimLeavesLent, TestCloseWhileLent).
//   - People look at the frames and do not keep up: nobody waits for them (rpc: TestCaptureNeverBlocks; see packages capture and dump).
//   - MESSAGES.md or the table of methods does not say what the declarations say: internal/gen: TestGeneratedIsUpToDate, TestNextIsApart,
//     TestEverythingIsExplained.
//   - A process that spins for messages gets company on its core, or has nothing to do: see package spin.
//   - A leaked or doubly released Buf: found by tests with ArenaDebug (TestArenaFindsMistakes, TestBufsAreUsedAgain).
//
// # Reading order
//
// ids.go (the vocabulary), errors.go, limits.go, clustermap.go, buf.go (the zero-copy rule), arena.go and arena_buddy.go (where Bufs
// come from), lend.go, loan.go and foreign.go (Bufs between processes), message.go and codec.go (how messages are encoded), versions.go (how
// they grow), msg_*.go (the messages, by who answers them), segrecord.go (what lies in a segment); then identity (who a process is), rpc
// (connections), route (who owns what, and the one place for retries) and member (a process's life with mgmt); spin, where a process has a
// core to itself.
//
// PROTOCOL.md is the specification of the bytes and of their use, MESSAGES.md lists all methods and messages; testdata/client is a client in
// Python that was written from both alone. Packages capture and dump show what processes say.
package wire
