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
// # Waiting for memory
//
// Data lands in the arena. Request data is bounded by the window (an eighth of the arena a peer) and by the arena's share for requests;
// answers have a reserve (see wire.Arena). If there is no room all the same, the reader waits a second, which holds up what is behind on
// that connection, then throws the data away and answers, or ends the call, with KindUnavailable: so no circle of waits lasts.
//
// # Goroutines
//
// Conn: read, writer.run, watch, finish (waits for the others and calls OnClose), handlers. They start with the connection and end
// with it: Close, the end of Listener.Serve, Pool.Close. Pool: one for each dial under way. Listener: one for each connection.
//
// Where Options.Spin is set, all that arrives is told to it; see package spin.
//
// Lock order: see Conn. Reading order: rpc.go, handshake.go, conn.go, call.go, window.go, writer.go, read.go, serve.go, taken.go,
// reqctx.go, stream.go, dial.go, listen.go, pool.go, mem.go, limits.go.
//
// How it fails, and the test for each, stands in the documentation of package wire.
package rpc
