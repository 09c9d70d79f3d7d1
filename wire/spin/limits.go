package spin

import "time"

const (
	// maxSpin bounds how long the spinner looks in vain after the last event: the longest wait, of those for which to spin may pay off.
	maxSpin = minGap << (numGaps - 1)
	// wakeWorth is how much spinning a wake-up is worth. It takes some 50 us of a caller's time; the time of a core that has nothing else to
	// do is cheaper. It equals maxSpin: beyond that even a wait that is sure to end by then is not worth it.
	wakeWorth = maxSpin
	// minGap is the grain in which waits are told apart.
	minGap = 8 * time.Microsecond
	// numGaps is the number of classes of waits: 8 us to 1 ms, each twice as long as the one before. Longer ones are one class more.
	numGaps = 8
	// memory is after how many waits the older ones count half, again and again. Some hundred requests later what they were like is forgotten.
	memory = 64
	// chooseEvery is after how many waits the bound is chosen anew: choosing takes about 20 ns.
	chooseEvery = 16
	// yieldEvery is after how many turns in vain the core is given away for a moment. A turn takes about 0.8 us, yielding 0.4; so a worker
	// of the kernel waits for at most 8 us.
	yieldEvery = 8
	// foreignAfter: a core that does not come back for so long was wanted by another process, whatever we were told. Workers of the kernel take
	// some 10 us; a process that computes has a slice of 700 us or more.
	foreignAfter = 500 * time.Microsecond
	// restFor is how long nothing spins then. Who spins where others compute gets the core after them each time; who sleeps gets it at once.
	restFor = 200 * time.Millisecond
)
