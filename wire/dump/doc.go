// Package dump makes captured bytes readable: it takes frames out of a capture (package capture) or out of one direction of a connection,
// pairs answers with their requests, decodes messages, and prints all that as lines or JSON. "crake wire dump" is its command.
//
// # The walk of a frame
//
//  1. Source.Next (source.go) finds out by the first bytes what it reads, and gives Events: a connection, a frame, some of its data, that
//     something was lost. What makes no sense is an error with the offset of it.
//  2. pairs.see (pairs.go) remembers requests and finds the one that a response or a cancel belongs to: its method, and when it was.
//  3. Filter.match (filter.go) chooses.
//  4. The printer (print.go, text.go, json.go) prints; frame.go decodes the message by the method's number, fields.go names its fields by
//     reflection. It is a tool: it may be slow, and it must bear any bytes.
//
// There are no goroutines and no locks here.
//
// A packet capture (pcap) is not read: processes of one server speak by unix sockets, which it does not see, and those of several may
// encrypt. The process itself is asked instead (crake wire capture). Of a TCP connection that is not encrypted the bytes of one direction
// can be had from a packet capture by other tools (tcpflow; Wireshark's "Follow TCP stream", as raw) and are read here.
//
// # How it fails, and the test for each
//
//   - Something else than a capture or a stream: said at once (TestNotOurs).
//   - Damage or a cut in the middle: what is before is printed, then an error with the offset (TestCutStream, TestDamage).
//   - Messages of a newer software, unknown methods, kinds and flags: shown as numbers (TestUnknown).
//   - Hostile bytes: no panic, bounded memory (FuzzDump).
package dump
