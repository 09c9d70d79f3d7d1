// Package strip reads and encodes stripes: the one place that knows how blocks lie on strips. Frontends and computes
// both read straight from the drives with it, so both rebuild what is missing in the same way.
//
// A read, step by step:
//
//  1. Reader.Read cuts every Want into pieces: runs of blocks on one strip (of a segment: on one replica).
//  2. Pieces on drives that are up are fetched, one ReadReq a drive. For pieces on drives that are not up, the rows
//     needed to rebuild them are fetched in the same round, and rows that are wanted anyway are not fetched twice.
//  3. Every wanted block is checked against its sum. What is missing, wrong, or later than the hedge delay is rebuilt
//     from any k other strips (or read from another replica), and checked. If a rebuilt block is wrong, one of its
//     helpers is: other combinations are tried until the sum is right, and the liar is found by comparing.
//  4. The answer refers to the memory where the drives' answers landed; only rebuilt blocks are new memory.
//
// Goroutines: the caller of Read runs the whole decision (op.go) and nothing else touches its state; one short-lived
// goroutine for each request to a drive hands its result over or drops it once Read has returned. There are no others.
//
// Reading order: reader.go (the API), plan.go (pieces and fetches), op.go (the loop), rebuild.go, encode.go.
//
// How it fails, and the test: drive down or strip lost (TestEveryLoss), corrupt wanted strip, corrupt helper
// (TestCorruptHelper), slow drive (TestHedge), stripe deleted meanwhile (TestGone), too many lost (TestTooFew).
package strip
