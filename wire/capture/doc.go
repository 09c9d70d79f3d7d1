// Package capture copies the frames of a process's connections to whoever looks: a file, or the other end of a socket. It is for
// people who want to see what processes say to each other; "crake wire capture" and "crake wire dump" are the tools.
//
// # A frame's walk
//
//  1. Each connection of package rpc has a Conn of the process's Tap. The reader calls Frame when a frame's checksum has been verified,
//     the writer when it takes a frame to be written next: so the order in a capture is the order on the stream. While nobody looks
//     that is a load of a pointer that is nil.
//  2. Somebody looks: the frame is copied, with the time, to the memory of each sink. It has a bound; past it frames are counted as
//     lost. Nothing waits.
//  3. The sink's goroutine writes what is there to its file or socket.
//
// # The file
//
// All integers are little-endian. A header of 64 bytes:
//
//	 0 magic 8 bytes "CRAKECAP"   8 version u16, 1    10 role u8   11 zero u8    12 process u32
//	16 cluster 16 bytes          32 time of the start, ns since 1970 u64         40 name of the process, 24 bytes, zero padded
//
// and records, each 24 bytes and a body:
//
//	 0 bytes of body u32    4 kind u8     5 flags u8    6 zero u16    8 connection u32    12 whole u32    16 time, ns since 1970 u64
//
//	kind 1 connection   what a later record's connection is: hello of this process (128), hello of the peer (128), protocol
//	                    version u16, then the name of the other end
//	     2 frame        header and meta section as they are on the stream; longer than 64 KiB it is cut
//	     3 data         the beginning of the data section of the last frame of this connection and direction, where data was asked for;
//	                    not of data that the process sends by reference: its frame is written when the data may be gone already
//	     4 lost         u64: records that had no room since the last one
//	     5 end          the capture ends on purpose; why, as text
//
//	flags bit 0         the process has sent this; else it has received it
//	whole               bytes that the body would have if it were not cut
//
// A record that comes after another may be up to a moment older, where the one is sent and the other received.
//
// # Who may look
//
// The user of the process and root, by a socket (Tap.Serve) beside the one that the process listens at: NAME.tap for NAME.sock. Who connects
// says 16 bytes: "CRAKETAP", version u32 (1), bytes of each data section u32 (at most 4096); then the capture comes until one of both
// ends closes. So nothing has to be started anew, nothing is left behind, and it works when mgmt does not.
//
// # Goroutines, locks
//
// Tap.Serve and Tap.File run in their callers' goroutines; Serve has one more for each who looks, and waits for them. Lock order: Tap.mu,
// then sink.mu, the innermost of all: Frame may be called with any lock held.
//
// # How it fails, and the test for each
//
//   - Who looks is slow, or does not read at all: frames are lost and counted; nobody waits (TestSlowSink; rpc: TestCaptureNeverBlocks).
//   - A file gets too long: it ends, and says so (TestFileLimit).
//   - Too many look; another user does; somebody else speaks on the socket: turned away (TestServeRefuses).
//   - The process was killed and its socket has stayed: replaced (TestServeReplacesStale).
//   - A capture is cut off or damaged: what is before is read, then an error with the offset (TestReaderErrors, FuzzReader).
package capture
