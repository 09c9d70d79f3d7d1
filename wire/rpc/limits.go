package rpc

import (
	"time"

	"github.com/crakefs/crake/wire"
)

// Limits of a connection. What happens when one is reached stands with each.
const (
	// defaultMaxHandlers bounds the handlers of one connection; further requests wait in its queue, which maxQueued
	// bounds, so that the reader never waits for a handler.
	defaultMaxHandlers = 256
	// maxIdleWorkers bounds the goroutines of one connection that wait for requests (8 KiB of stack or so each).
	maxIdleWorkers = 8
	// maxQueued bounds the requests of one peer that are not answered yet. It is told in the handshake, so a peer that
	// passes it breaks the protocol and is disconnected.
	maxQueued = wire.MaxInFlight
	// maxSpareCalls bounds the books of ended calls that a connection keeps for later ones.
	maxSpareCalls = 64
	// burstRequests bounds the requests that Start takes before what they have queued begins and what was answered meanwhile leaves. Large
	// bursts save system calls, but all of them then travel as one convoy: the device has nothing to do while they are taken off the
	// connection, and the processor nothing while it reads. Measured with 32 reads of 4 KiB at once on a disk: 65,000 a second with 64,
	// 75,000 with 8, 85,000 with 4.
	burstRequests = 4
	// maxSpareServed bounds the books of answered requests that a connection keeps for later ones: more than a peer usually asks
	// at once. minSpareServed of them are left alone; see taken.go.
	maxSpareServed = 128
	minSpareServed = 16
	// maxConns bounds the connections of one listener. One more is answered with KindOverLimit and closed.
	maxConns = 1024
	// maxHandshakes bounds the connections of one listener that have not shaken hands. One more closes the oldest of
	// them: an honest peer is done within a millisecond, a hostile one cannot keep it out.
	maxHandshakes = 128
	// handshakeTimeout ends a connection whose peer does not say who it is.
	handshakeTimeout = 5 * time.Second
	// maxProofBytes bounds a proof: a certificate has some 500 bytes (at most identity.MaxCertBytes), a signature 64.
	maxProofBytes = 4 << 10
	// maxProofText bounds what a refusal says.
	maxProofText = 1 << 10
	// admitTimeout bounds what Options.Admit may wait, typically for a newer map; within handshakeTimeout and defaultDialTimeout of the peer.
	admitTimeout = 2 * time.Second
	// tlsWriteBytes bounds what is encrypted before it is written: enough that a system call costs little beside the encryption of it.
	tlsWriteBytes = 128 << 10
	// tlsHeldBytes bounds what waits encrypted: that, the heads and tags of its records (22 bytes each), and the few that package tls
	// writes of its own; past it the connection ends.
	tlsHeldBytes = tlsWriteBytes + 16<<10
	// tlsRecordBytes is the most that a record of TLS carries.
	tlsRecordBytes = 16 << 10
	// tlsReadBytes is what is read at once: four records.
	tlsReadBytes = 4 * (tlsRecordBytes + 22)
	// defaultDialTimeout bounds a dial where Options.DialTimeout is zero.
	defaultDialTimeout = 3 * time.Second
	// defaultDeadline is the deadline of a call whose ctx has none.
	defaultDeadline = 60 * time.Second
	// stallTimeout ends a connection whose peer stops in the middle of a frame, or takes nothing of what is sent.
	stallTimeout = 30 * time.Second
	// watchEvery is how often stalls are looked for.
	watchEvery = 5 * time.Second
	// readBufferBytes is the read buffer of a connection: a few hundred small frames, or fifteen with a block of data each, in one
	// system call. 32 KiB costs an asker of 4 KiB reads half as many reads again; 128 and 256 KiB gain nothing more.
	readBufferBytes = 64 << 10
	// copyBytes is the longest data section that may be read into the buffer together with many others and copied to where it belongs:
	// a copy of 4 KiB that is in the cache costs about 0.1 us, the system call that it saves 0.5 us or more (measured with
	// BenchmarkPair: 32 requests of 4 KiB at once cost half as much this way, of 16 KiB two thirds). Past it few fit into the buffer.
	copyBytes = 16 << 10
	// smallReadBytes is how far reading goes beyond a header on a connection whose frames carry more data than copyBytes: what is read
	// too far of a data section must be copied to where it belongs.
	smallReadBytes = 512
	// heapMetaBytes is the largest meta section that lies on the heap; a larger one takes memory of the arena, so that
	// many connections cannot take more than was set.
	heapMetaBytes = 64 << 10
	// batchBytes bounds what is written by one system call (the first frame goes whatever its length), so that a small
	// frame waits behind at most this much data.
	batchBytes = 1 << 20
	// rawCallBytes is the most that a system call may move of which the runtime is not told: it copies for some 50 us, and for so long
	// nothing else runs on its scheduler processor and no collection of garbage can begin.
	rawCallBytes = 256 << 10
	// batchParts bounds the parts of one system call; Linux takes 1024 (IOV_MAX).
	batchParts = 512
	// maxBacklogBytes is the data waiting to be sent at which no further handler is started on the connection: a peer
	// that asks for much and reads slowly holds at most this and the answers of its running handlers.
	maxBacklogBytes = 8 << 20
	// minWindowBytes and maxWindowBytes bound the request data that a peer may have unanswered here; between them it is
	// an eighth of the arena. A single request may always be sent, however long.
	minWindowBytes = 1 << 20
	maxWindowBytes = 64 << 20
	// landingWait bounds how long the data of a request waits for room in the arena before it is thrown away and
	// answered with KindUnavailable; meanwhile the connection reads nothing, so the wait must end by itself.
	landingWait = time.Second
	// directRounds bounds the batches that a calling goroutine writes for others before the writer takes over.
	directRounds = 4
	// maxArenas bounds the arenas of one peer, its own and those that it passes on, that are mapped on one connection: two descriptors
	// each. Of more, data comes through the socket.
	maxArenas = 64
	// maxMappedBytes bounds the memory that is mapped of one peer: with maxConns of them half of the address space is left.
	maxMappedBytes = 64 << 30
	// maxReferences bounds the references of one frame: 8 MiB in runs of 16 KiB. Data in more parts goes through the socket.
	maxReferences = 512
	// lendShare is the part of an arena that may be lent to one peer: one in so many. What goes beyond goes through the socket.
	lendShare = 4
	// releaseCount, releaseBytes and releaseDelay bound what the releases that wait for a frame to ride with keep from the lender.
	releaseCount = 64
	releaseBytes = 256 << 10
	releaseDelay = 2 * time.Millisecond
	// maxReleases bounds the releases of one frame, which must fit into the read buffer of the peer.
	maxReleases = 4096
	// memPipeBytes bounds what is under way in one direction of a "mem" connection.
	memPipeBytes = 1 << 20
)
