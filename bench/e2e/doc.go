// Package e2e tries the built binary as a person would, on real clusters: separate processes, drives as files in memory
// (/dev/shm), a FUSE mount. It has no code outside of its tests.
//
// Each file is one claim of what must stand, in order of its number: s1 real input, s2 fio and a big file, s3 kill -9, s4 a
// flipped strip, s4w two versions at once, a client in another language and the capture of frames, s5 renames across buckets under kill -9,
// s6 hostile peers, s7 bad input by a person; then two mounts of one cluster, the POSIX table with a local directory as oracle, and the
// model fuzz.
//
// The tests need root, /dev/fuse, fio, git, sqlite3, python3, openssl and the Go toolchain, and fail without. They run one after the
// other, because each measures or loads the machine; those that mostly wait run side by side at the end. -short makes the long ones smaller. CRAKE_BIN names the binary to
// test; without it the test builds one. CRAKE_SEED replays the random choices of a run, which each test prints.
package e2e
