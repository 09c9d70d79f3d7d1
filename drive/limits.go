package drive

import (
	"time"

	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/wire"
)

// The drive process's limits. Those of a device are in internal/store/limits.go and internal/format/geometry.go.
const (
	// maxDevices bounds the devices of a process: one core serves a few NVMe devices.
	maxDevices = 16
	// defaultArenaBytes holds 500 strips of 128 KiB under way.
	defaultArenaBytes = 64 << 20
	// MinArenaBytes is the least of Config.Arena: half an arena is for data of requests, of which one may have wire.MaxDataBytes.
	MinArenaBytes = 4 * wire.MaxDataBytes
	// maxHandlers bounds the requests that one connection works on at once; the store bounds the IO.
	maxHandlers = 256
	// troubleTimeout bounds a report of what makes the process end.
	troubleTimeout = 2 * time.Second
	// placeEvery is how often a device is looked for at its path; placeMisses is how many looks in a row must fail.
	placeEvery  = time.Second
	placeMisses = 10
	// ioProcessors is the least GOMAXPROCS of a process whose devices block; see spread.
	ioProcessors = 4
	// trimEvery is how often arena memory that is not needed goes back to the system.
	trimEvery = 10 * time.Second

	minDeviceBytes = format.MinDeviceBytes
	maxDeviceBytes = format.MaxDeviceBytes
)
