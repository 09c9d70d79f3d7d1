// Package spin lets a process that has a core to itself wait by looking, for a bounded time, before it sleeps. Waking a core that sleeps
// takes tens of microseconds (an interrupt, between virtual processors an exit to the hypervisor), more than the work of a small request.
//
// # How
//
// A process on one core has one scheduler processor. When no goroutine can run, the runtime looks at its poller once (epoll_wait
// with no timeout) and, if that brings nothing, puts the thread to sleep in it. The spinner is a goroutine that makes sure it always brings
// something: it writes to an eventfd that the runtime polls, and waits for that. So the runtime looks again and again, and whatever
// else has become ready comes along: sockets, the completions of an io_uring, accepts, timers. Nothing else has to know of it, deadlines and
// Close work as ever, and while there is work the spinner does not run at all.
//
// What a goroutine that loops and yields (runtime.Gosched) cannot do: it is always found in the run queue, so the runtime does not come to look at
// its poller, but every 10 ms. Nor may a thread sleep in epoll_wait meanwhile: then who sends to us would interrupt our core for it.
//
// Rejected: an epoll instance of our own for what is hot, beside the runtime's. A request and its answer of 100 bytes take 5.4 us that way and
// 6.7 us this way (46 us without spinning), but every stream would need waits, deadlines and an end of its own, the runtime's poller a turn
// now and then, and nobody else would gain: not the accepts, nor what is added later.
//
// # Who else needs the core
//
// The kernel's workers end writes on the core that began them, and wait for it while it spins. So every few turns (yieldEvery) the
// spinner gives the core away for a moment (sched_yield), which costs little when nobody wants it.
//
// # How long
//
// See policy: as long as recent waits make it likely to pay off, never longer than maxSpin.
//
// # Goroutines
//
// Run, one a process, until its ctx ends. Reading order: policy.go, spin.go, limits.go.
//
// # How it fails, and the test for each
//
//   - The process is idle: TestSleeps (no processor time after the bound). Events come, but too far apart to spin for: TestSleeps.
//   - Something becomes ready while it spins, of whatever kind (socket, timer): TestLooks. Nothing tells of it while it sleeps: nothing changes, the
//     runtime's own poller wakes the process.
//   - An event is told in the moment in which it falls asleep: TestWakes.
//   - Others compute on the core, whatever we were told: TestShared.
//   - More than one scheduler processor (a drive on pread makes more of them): it does not spin, as another thread sleeps in the poller and
//     each turn would wake it: TestManyProcessors.
//   - ctx ends while it spins and while it sleeps: TestEnds.
package spin
