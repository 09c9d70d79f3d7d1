// Package member is the life of a role's process as mgmt sees it: it registers, sends heartbeats until mgmt says that this run is
// over, tells events, and says goodbye. Roles give what differs: what a heartbeat carries and what its answer, or
// silence, means to them (Config).
//
// # The life, step by step
//
//  1. Register asks until mgmt answers: the two start at about the same time. The answer gives the incarnation of this run, a
//     frontend its session, and the map.
//  2. Heartbeats sends one every half second, and one at once after Kick. It tells, for people, the links of the process (links.go: what
//     passed between it and each peer, and by which transport) and how much of its arena is in use. It ends with its ctx, when mgmt says that a newer run exists
//     or that the session is over (KindStaleSession), when mgmt refuses the process (KindRefused), or when Config.Check fails.
//     Anything else is silence, which is logged once when it begins and once when it ends: Config.Silent says what it
//     means, since a compute fences itself by its lease, a drive serves on, and a frontend lets its caches rest. An error of version
//     or authentication, too, is silence to a process that has registered: it is about a connection, and another mgmt may come.
//  3. Event queues what people should know of, from any goroutine, without waiting; SendEvents sends each once. Past the bound
//     they are dropped and counted in the log: a process that can tell nothing must not stop for that, nor fill its memory.
//  4. Goodbye, if it had registered: this run holds nothing any more.
//
// # Goroutines, locks
//
// None of its own: Register, Heartbeats, SendEvents and Goodbye run in their callers' goroutines. No locks; Config's functions are called
// from the goroutine of Heartbeats, one at a time.
//
// # How it fails, and the test
//
//	mgmt is not there yet, or does not answer        TestRegisterRetries
//	mgmt refuses; another cluster or version         TestRegisterEnds
//	mgmt is silent, and comes back                   TestSilence
//	a newer run exists, the session is over          TestHeartbeatEnds
//	an answer is no good to the role                 TestAnsweredFails
//	the role finds that it must not go on            TestCheck
//	many changes at once                             TestKick
//	more events than mgmt takes                      TestEvents
//	a goodbye without a registration, or unheard     TestGoodbye
//	connections without number                       TestLinksBound
package member
