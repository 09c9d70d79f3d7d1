// Package bench holds what checks and measures the whole of Crake from outside. It is the only place besides cmd that
// may import every role; nothing imports it.
//
// # What lies where
//
//  1. lint: the rules of the source tree as a Go test (directions of imports, lengths of files, a doc.go in every top
//     folder, words that must not be in tracked files). It runs first, in milliseconds.
//  2. internal/devcluster: starts a real cluster for a test or a measurement with the built binary, in a directory and at
//     a mount point of its own, and takes everything away again whatever happened.
//  3. e2e: what a person would try, as tests against the command lines: real source trees, fio, kill -9 of every role,
//     flipped bytes in a drive, hostile peers, bad input, a POSIX table with a local directory as oracle, a model fuzz.
//  4. speed: `make bench`, the figures of BENCHMARKS.md.
//  5. drivespeed: `make bench-drive`, one drive against fio on the same device; with internal/driveload (requests to a drive, and
//     the comparison of what it gives), internal/fio and internal/pinned (processes on one core each, that never outlive us).
//  6. wirespeed: `make bench-wire`, one request and its answer between two processes, against a bare exchange of as many bytes.
//  7. copies: `make bench-copies`, bytes copied for each byte of a file and processor time, with internal/copyload, which e2e uses too.
//  8. arenas: the smallest arenas under more load than they hold, all roles in one process.
//
// # Who owns what
//
// A devcluster.Cluster owns its directory, its mount points and every process whose command line names its directory. It
// kills by process id, after it has compared the start time, and never by name. Its Close is safe to call twice and is
// registered with testing.TB.Cleanup before the first process starts.
//
// # Reading order
//
// internal/devcluster/cluster.go, then e2e/doc.go, then any test.
//
// # How it fails
//
// A test that needs root, /dev/fuse, fio, git or sqlite3 fails and says so; it never skips. What a test leaves behind
// (a mount, a process, a directory) fails that test in its clean-up, and once more .ci/run at the end.
package bench
