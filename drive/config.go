package drive

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/capture"
	"github.com/crakefs/crake/wire/member"
	"github.com/crakefs/crake/wire/route"
	"github.com/crakefs/crake/wire/rpc"
)

// Config configures a drive process.
type Config struct {
	// Name is the process's unique name in the cluster, such as "drive0".
	Name string
	// Proc is its slot, given by mgmt.
	Proc wire.ProcID
	// Cluster is the cluster that it and its devices belong to.
	Cluster wire.ClusterID
	// Mgmt is the address of the local mgmt, such as "unix:/path".
	Mgmt string
	// Listen are the addresses to listen on, best first.
	Listen []string
	// Wire says how it speaks with processes of its server.
	Wire route.Wire
	// Identity is the file by which mgmt lets this run prove who it is.
	Identity string
	// Encrypt encrypts what it says by TCP, and takes no connection that is not.
	Encrypt bool
	// Devices are what it serves; at least one.
	Devices []Device
	// Arena bounds the memory for data on its way, in bytes; 0 is 64 MiB.
	Arena int64
	// VerifyRate bounds what verification reads of each device, in bytes a second; 0 is 200 MiB.
	VerifyRate int
	// ScrubRate is what the drive reads of each device on its own to find what has rotted, in bytes a second; 0: one pass a week, and at
	// least 1 MiB a second; negative: nothing.
	ScrubRate int
	// NoDiscard keeps it from telling devices what is free.
	NoDiscard bool
	// Engine says how device IO is done: "io_uring", "pread", or "auto" or "", which takes io_uring where it can be had and gains.
	Engine string
	// Version is of this software.
	Version string
	// Cores are those that the process is pinned to; empty when it is not.
	Cores []uint32
	// Capture is where people can look at the frames; nil: nowhere.
	Capture *capture.Tap
	// Log gets events; nil is slog.Default().
	Log *slog.Logger
	// Net is the network of "mem:" addresses, for tests; nil else.
	Net *rpc.Mem
}

// Device is a device to serve.
type Device struct {
	Path string       // of a formatted file or block device
	ID   wire.DriveID // what its superblock must say
}

// Validate lists all that is wrong.
func (c *Config) Validate() error {
	errs := member.Place{Name: c.Name, Proc: c.Proc, Cluster: c.Cluster, Mgmt: c.Mgmt, Listen: c.Listen, Wire: c.Wire, Identity: c.Identity}.Check()
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(c.Devices) == 0 || len(c.Devices) > maxDevices {
		add("--device: %d devices, want 1 to %d", len(c.Devices), maxDevices)
	}
	seen := map[wire.DriveID]bool{}
	for _, d := range c.Devices {
		switch {
		case d.Path == "":
			add("--device is missing")
		case d.ID == 0:
			add("--drive-id is missing for %s", d.Path)
		case seen[d.ID]:
			add("--drive-id %d is given twice", d.ID)
		}
		seen[d.ID] = true
	}
	if c.Arena != 0 && c.Arena < MinArenaBytes {
		add("--arena %d: at least %d bytes, two requests of the largest size and their answers", c.Arena, int64(MinArenaBytes))
	}
	if err := blockio.Choice(c.Engine).Validate(); err != nil {
		add("--io-engine: %w", err)
	}
	if c.VerifyRate < 0 {
		add("verify rate %d: must not be negative", c.VerifyRate)
	}
	return errors.Join(errs...)
}

// FormatConfig says how to make a drive of a device.
type FormatConfig struct {
	// Path is of a block device or a file; a file that is missing is created, and preallocated (but for tmpfs, where that
	// would take the memory at once).
	Path string
	// Cluster is the cluster that it shall belong to.
	Cluster wire.ClusterID
	// Drive is its id, given by mgmt.
	Drive wire.DriveID
	// SizeBytes is the size of a file that is missing or empty; of others, what to use of it. 0 is all of an existing one.
	SizeBytes int64
	// Force destroys what the device holds.
	Force bool
}

// Validate lists all that is wrong.
func (c *FormatConfig) Validate() error {
	var errs []error
	if c.Path == "" {
		errs = append(errs, errors.New("the path is missing"))
	}
	if c.Cluster == (wire.ClusterID{}) {
		errs = append(errs, errors.New("the cluster is missing"))
	}
	if c.Drive == 0 {
		errs = append(errs, errors.New("the drive id is missing"))
	}
	if c.SizeBytes != 0 && (c.SizeBytes < minDeviceBytes || c.SizeBytes > maxDeviceBytes) {
		errs = append(errs, fmt.Errorf("size %d: want %d MiB to %d TiB", c.SizeBytes, int64(minDeviceBytes)>>20, int64(maxDeviceBytes)>>40))
	}
	return errors.Join(errs...)
}
