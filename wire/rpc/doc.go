// Package rpc carries requests between processes: one connection for each pair, multiplexed, both sides may ask.
// The bytes are in ../PROTOCOL.md.
//
// # A call's walk
//
//  1. Conn.Do (call.go) takes a share of the peer's window (window.go): a request slot, and bytes for its data. Who does not fit waits in
//     order; a request without data never waits for one with.
//  2. It registers the call under a new id and hands the frame to the writer (writer.go). If nobody is writing and this is the only
//     call under way, the frame is written at once from this goroutine, without waiting for the socket; if others are under way,
//     the writer goroutine writes after all that can run now has run, so that their frames share a system call. What does not fit
//     into the socket is left to the writer goroutine too: Do can be cancelled at any time.
//  3. The peer's reader (read.go) takes header and meta, verifies the checksum, lands the data in the arena (of the peer's process) and
//     gives the request to a handler (serve.go): an idle goroutine, a new one, or, at MaxHandlers or with 8 MiB of answers unsent, the
//     queue. The queue is bounded by the window that the peer was told, so the reader never waits for a handler, and answers
//     behind a request always get through. Where Options.Start is set, a request is offered to that first, in the reading goroutine:
//     if it takes it, there is no handler, and Request.Answer ends it (taken.go). What comes by one read is kicked together, and what is
//     answered meanwhile leaves by one write.
//  4. The answer goes through the writer of that side. The asker's reader finds the call by its id, lands the data, decodes meta
//     into Call.Resp and wakes the caller.
//
// A call that is given up stays registered, with its share of the window, until the peer answers: so the bound of the peer holds
// whatever the caller does. A request that has not begun to be written is taken back instead.
//
// # Data by reference
//
// Where both sides want it (Options.Shm, ShmWith) and the connection is a unix socket, data stays in the sender's arena, which the receiver has
// mapped read only (docs/decisions/0007-shared-memory.md):
//
//  1. After the handshake the dialler hands over a descriptor channel (shm_channel.go). Each side offers its arena there, with the write end
//     of a life pipe; the other maps it and says so (shm.go, shm_borrow.go).
//  2. Conn.encode asks the lender (shm_lend.go). It adds references to the end of meta and holds the Bufs, or says no: not mapped yet, not
//     in blocks, over the bounds. Then the data goes through the socket. Memory of a third process, which was borrowed itself, is offered first.
//  3. The reader makes a wire.Loan of the references. Its Bufs go the way of all Bufs; the last Release ends the loan.
//  4. The answer to a request tells that its data is back (served.dataReturned); what else is back rides with the next frames
//     (shm_release.go), and the lender lets its Bufs go.
//  5. When the connection has ended, what is lent stays in quarantine until the life pipe reads end-of-file: until all who could touch it have
//     released it, or have died.
//
// # Waiting for memory
//
// Data lands in the arena. Request data is bounded by the window (an eighth of the arena a peer) and by the arena's share for requests;
// answers have a reserve (see wire.Arena). If there is no room all the same, the reader waits a second, which holds up what is behind on
// that connection, then throws the data away and answers, or ends the call, with KindUnavailable: so no circle of waits lasts.
//
// # Who may connect
//
// A side that has Options.Identity proves who it is right after the hellos, and takes nobody who does not (auth.go); Options.Admit then decides
// whether that run of the process may connect, and Expel ends connections when it may not any more. With Options.TLS all that happens
// inside TLS (tls.go), over TCP only.
//
// # Goroutines
//
// Conn: read, writer.run, watch, finish (waits for the others and calls OnClose), handlers, and shm.run (the descriptor channel) where there is
// one. They start with the connection and end with it: Close, the end of Listener.Serve, Pool.Close. lender.quarantine outlives
// it, as long as others hold what it lent. Closing a descriptor that a peer sent and that is not what it should be has a goroutine of its own. Pool: one for each dial under way. Listener: one for each connection.
//
// Lock order: see Conn. Reading order: rpc.go, handshake.go, conn.go, call.go, window.go, writer.go, read.go, serve.go, taken.go,
// reqctx.go, stream.go, auth.go, auth_conn.go, tls.go, dial.go, listen.go, pool.go, mem.go, limits.go; shm.go, shm_channel.go, shm_lend.go,
// shm_borrow.go, shm_release.go, stats.go.
//
// How it fails, and the test for each, stands in the documentation of package wire.
package rpc
