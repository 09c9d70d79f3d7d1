package sched

// Limits bound what is under way at a device, and say how classes share it.
type Limits struct {
	Load
	Classes [NumClasses]Share
}

// Load is an amount of IO.
type Load struct {
	IOs   int
	Bytes int
}

// Share is what a class gets. Weight is its share of the device's time while all classes have something waiting; Load is
// what it may have under way.
type Share struct {
	Weight int
	Load
}

// DefaultLimits are for any device that a drive serves.
//
// IOs: 64 is as deep as one queue of an NVMe device pays, and with pread and pwrite each takes an OS thread. Bytes: 8 MiB
// are a millisecond of the fastest devices and ten of a slow one, and more than any needs to be busy (7 GB/s times 100
// microseconds is 700 KiB). The last IO that begins may pass the bound, so that a long one is never kept out.
//
// Weights, when all want more than there is: somebody waits for client reads, and for client writes as a rule only a cache
// does, so reads get two thirds of what clients have. Rebuild gets an eleventh: protection is restored at 90 MB/s by a device of
// 1 GB/s at the worst, and at full speed when clients are quiet. Scrub, for which nobody waits, gets a 44th.
//
// What a class may have under way bounds how much of it a read finds before it inside the device, where nothing can be
// reordered: 3.5 MiB together, a millisecond or three. All but reads leave a quarter of the IOs, so a read never waits for
// one of them to end. Each class alone still fills a device: 8 IOs of 128 KiB at once are the whole rate of an NVMe device; only
// scrub is held to what a disk needs, since its rate is bounded anyhow.
func DefaultLimits() Limits {
	return Limits{
		Load: Load{IOs: 64, Bytes: 8 << 20},
		Classes: [NumClasses]Share{
			ClientRead:  {Weight: 80, Load: Load{IOs: 64, Bytes: 8 << 20}},
			ClientWrite: {Weight: 40, Load: Load{IOs: 32, Bytes: 2 << 20}},
			Rebuild:     {Weight: 12, Load: Load{IOs: 12, Bytes: 1 << 20}},
			Scrub:       {Weight: 3, Load: Load{IOs: 4, Bytes: 512 << 10}},
		},
	}
}

const (
	// costUnitBytes is the unit of cost. Every IO costs ioUnits besides: devices do about 1 million IOs of 4 KiB a second
	// where they move 7 GB/s in long ones, and slower ones have much the same ratio.
	costUnitBytes = 4 << 10
	ioUnits       = 1
	// weightScale keeps the rounding of cost/weight below a percent. Virtual times are then good for 2^63/2^10 units, which
	// is over a hundred years of 10 GB/s.
	weightScale = 1 << 10
	// maxIdleFlows bounds the flows that are remembered while nothing of them waits, beyond as many as wait; see core.forget.
	maxIdleFlows = 64
)
