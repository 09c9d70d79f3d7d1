// Command crake is all of Crake in one static binary: each role as a subcommand, and the tool that people use.
//
// # What a command line becomes
//
//  1. main makes a context that SIGINT and SIGTERM end, and runs internal/cli's command tree with it. An error is printed
//     as one line to standard error, "crake: what is wrong; what to do", and becomes exit status 1 (2 for a wrong
//     command line).
//  2. A role (drive, compute, frontend, mgmt): internal/cli turns the flags into that package's Config, calls Validate and
//     then Run, which returns when everything it started has ended. The supervisor in mgmt writes these command lines;
//     people need them only to look into one process.
//  3. Anything else asks mgmt's REST API over the unix socket in the cluster's directory (package mgmt/api) and prints the
//     answer as a table, JSON or CSV (internal/cli/output.go).
//  4. `dev up` and `dev down` (package internal/dev) form, start, stop and remove a one-server cluster. They check all they
//     can before they touch anything, and undo what they did when a step fails.
//
// # Who owns what
//
// No command starts a goroutine that outlives it. `dev up` holds a lock on the cluster's directory while it works, so
// that two of them cannot form the same cluster; mgmt is started detached, in a session of its own, and owns all other
// processes. `dev down` finds processes that mgmt left behind by their command lines, holds each by a pidfd while it checks
// and kills it, and so never hits a process that has got the same id since.
//
// # Locks
//
// There is one: the flock on the cluster's directory in internal/dev. Nothing else is locked here.
//
// # Reading order
//
// internal/cli/root.go, internal/cli/output.go, internal/dev/up.go, internal/dev/down.go, internal/cli/roles.go.
//
// # How it fails
//
// Bad input of every kind is in bench/e2e/s7_badinput_test.go: one line, status not 0, nothing left behind. What can be
// checked without a cluster is in the packages' own tests.
package main
