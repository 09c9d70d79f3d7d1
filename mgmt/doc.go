// Package mgmt is the cluster's administration: it knows what the cluster is made of, decides who owns what, keeps the
// processes of this server running, and answers people. It is never on the data path.
//
// # A walk: kill -9 of a compute
//
//  1. The supervisor (internal/supervise) holds a pidfd of every role process; the kernel makes it readable when the process ends.
//     It collects the exit status and the last line of the log, and calls worker.onExit.
//  2. onExit steps the core (internal/leader) through the driver (internal/driver): Exited marks the run down. In the same
//     step settleBuckets frees what it owned and names the survivors, with epochs raised, and the map's generation rises.
//  3. The driver writes the changed documents to etcd (internal/store) in one transaction, guarded by the leader's key. Only
//     then the map is published: watchers (MWatchMap) are answered, requests that wait for the step too.
//  4. The survivors see themselves named, fence the drives, replay, serve, and say so in their next heartbeat
//     (MHeartbeat). Status and health are made from those reports.
//  5. After a backoff the supervisor starts the process again. It registers (MRegister): a new incarnation, written before
//     it is answered. When it has been up for RebalanceDelayMs, the core moves its share back, MaxMoves at a time: first
//     a map that names nobody, then, when the old owner has reported the bucket closed by that map, one that names it.
//
// # Processes
//
// `crake mgmt --dir DIR` is the keeper: it runs the worker (`--worker`) and starts it again when it crashes or hangs. The
// worker is mgmt itself. Role processes are children of the worker in sessions of their own and outlive it; the next
// worker finds them by their command lines and by run/NAME.json, and adopts them. One keeper and one worker a folder, by
// locks on run/keeper.lock and run/mgmt.lock.
//
// SIGTERM to the keeper ends mgmt and leaves the cluster running. POST /stop ends the cluster: frontends, computes, drives, then mgmt.
//
// # Identities
//
// Mgmt has the CA of the cluster (DIR/mgmt/ca.pem, mode 0600; made at the first start). Before each start of a process it issues an identity for that
// run (identity.go): a certificate and a key in run/NAME.identity, mode 0600, which the process reads once and which is removed when it has
// ended. What registers is put into the map with the key of its certificate. Mgmt takes only the newest run of each slot; the others go by
// the map. A mgmt that starts again learns from the files who the processes are that it finds, and starts those anew of which it cannot. Its
// own identity is in memory only.
//
// On its unix socket mgmt takes tools (role client) without proof; they may only read the map.
//
// # When mgmt is away
//
// A compute stops serving half a lease (T/2) after it sent its last good heartbeat; mgmt calls it dead a whole lease (T)
// after it heard the last. So a hung or cut-off compute has stopped before another is named. But should everything stop
// because mgmt does? On one server there is one mgmt, and while it is not running nobody can name another owner. What has
// to be excluded is that a mgmt which starts again gives away what a compute still serves. Hence these rules:
//
//   - A starting mgmt hears nothing of the time before. It begins to count at the moment when it listens (worker.run: Listen,
//     then driver.New) and gives every run that is not known to be dead a whole T from then.
//   - Known to be dead is a run whose process is gone: the supervisor looks in /proc at the start (buryDead) and watches
//     later. That needs no lease.
//   - An ending mgmt stops deciding before it stops listening (worker.run: two groups).
//   - So, when a connection to mgmt's unix socket is refused at time t, no mgmt was listening at t, and whichever comes next
//     waits until t+T at least. To be refused at t is thus worth as much as a heartbeat sent at t: a compute whose lease is
//     not over may go on until t+T/2 (package wire/away). One whose lease is over stays silent until a heartbeat is
//     answered: an earlier mgmt may have given its buckets away.
//   - A mgmt that hangs accepts connections and answers nothing. Then computes do stop after T/2, because it might wake up
//     and decide. The keeper kills it after pingPatience, and the rules above take over.
//   - A mgmt that was itself kept from running (its ticks are StallMs apart or more) gives everybody a whole T again.
//
// Drives serve without mgmt; what protects data from an owner that was replaced are the epochs that they keep.
//
// Alternatives considered: drives alone could fence writes, but not the reads that a replaced owner answers from memory; a
// lease of minutes would make every hang an outage of minutes.
//
// # Drives that fail
//
// The leader fails a drive when its heartbeat says Fault (wire.DriveStatResp), when runs of its process end because of the device
// again and again (MDriveTrouble), or when its mean times are much above those of its peers for half a minute; an operator
// does it by POST /drives/{id}/deactivate. internal/leader/drives.go has the rules: never more failure domains than the
// protection bears, and enough drives left for the replicas of logs. A failed drive is asked for nothing by anybody
// (route.Router), its places in groups are filled by others, and its process is not started again when it ends. The state
// ends by POST /drives/{id}/activate only. What the drive holds counts again then, as after an absence: ids are never used
// twice, and what was written meanwhile lies elsewhere.
//
// # Goroutines
//
//	worker.run       two groups, ended one after the other, waited for:
//	  decide         driver.Run (ticks, writes, publishes), supervisor.Run (one goroutine a process), reconcileLoop (starts
//	                 and stops processes), rootsLoop (root directories), watchStore, stopLoop
//	  listen         rpc (one goroutine a request), REST over unix and TCP, events (writes them)
//	runKeeper        the keeper's loop, and one that reaps children
//
// # Lock order
//
//	worker.opMu -> driver.mu -> {worker.mu, events.mu, issuer.mu}; supervisor.mu and driver.pubMu alone
//
// Callbacks of the driver (OnEvent, OnKill, OnMap) run without its locks; those of the supervisor without its lock.
//
// # Reading order
//
// api/clusterfile.go, api/types.go; internal/leader: state.go, core.go, members.go, buckets.go, pgs.go, drives.go, slow.go; internal/driver;
// internal/store; internal/supervise: supervisor.go, spawn.go, procfs.go; worker.go, identity.go, reconcile.go, rpcserve.go, ops.go,
// driveops.go, view.go, driveview.go, health.go, drivehealth.go, rest.go, keeper.go.
//
// # How it fails
//
//	a compute ends                          buckets move at once          TestExitFailsOverAtOnce, TestComputeKilled
//	a compute hangs                         moves after T, is killed      TestSilenceFailsOverAfterLease, TestComputeHangs
//	an owner does not let go                the bucket waits              TestMoveWaitsForRelease
//	two runs of one slot                    the first is fenced, killed   TestSecondRunWaitsForFirst
//	mgmt is killed                          keeper restarts, it adopts    TestMgmtKilled, TestAdoptAfterKill
//	mgmt hangs                              keeper kills it               TestMgmtHangs
//	mgmt slept, the machine was suspended   a whole T for everybody       TestStallGivesGrace
//	a process dies while mgmt is away       found dead at the start       TestDeathWhileMgmtIsAway
//	the keeper is killed                    mgmt goes on, a new one keeps TestKeeperKilled
//	etcd cannot be written                  nothing is published, retried TestFailedWriteIsNotPublished (internal/driver)
//	another leads                           nothing is written            TestOnlyLeaderSaves (internal/store)
//	stored state is damaged                 a clear error, no start       TestDecodeDamage (internal/leader)
//	a stale pid file                        never signalled               TestStaleRecord (internal/supervise)
//	a drive says that its device is broken  failed, kept, not restarted   TestFaultFails (internal/leader), TestDriveSaysFault
//	a drive cannot be opened, again, again  failed after half a minute    TestTroubles (internal/leader), TestDriveCannotBeOpened
//	a drive is much slower than its peers   told, then failed             TestSlow, TestSlowSpellsKindsAndMargin (internal/leader)
//	a drive opens for ever, its device hangs  told after ten seconds      TestDriveOpensLong
//	more drives fail than m                 told, not failed              TestNoMoreThanParity, TestLogsNeedDrives (internal/leader)
//	somebody else says he is a process      refused, told why             TestOnlyNewestRun, TestStrangers
//	a run that is over speaks               refused; connections end      TestOnlyNewestRun, TestIssueEndsOldConnections
//	a found process cannot prove itself     started anew                  TestUnprovenAreStartedAnew
//	the CA's file is damaged                a clear error, no start       TestOpenCARefuses (wire/identity)
//	identity files are left                 removed with the process      TestIdentityFilesGo
//	a mount point is in use                 refused, with who uses it     TestBusyMount
package mgmt
