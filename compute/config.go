package compute

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/capture"
	"github.com/crakefs/crake/wire/member"
	"github.com/crakefs/crake/wire/route"
	"github.com/crakefs/crake/wire/rpc"
)

// Config configures a compute process.
type Config struct {
	// Name is the process's unique name in the cluster, such as "compute0".
	Name string
	// Proc is its slot, given by mgmt.
	Proc wire.ProcID
	// Cluster is the cluster that it belongs to.
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
	// Arena bounds the memory for file data, in bytes; 0 is 64 MiB.
	Arena int64
	// Memory bounds the memory for databases, in bytes: a third for the shared block cache, a third for memtables, the
	// rest for what Go needs beside. 0 is 256 MiB.
	Memory int64
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

// Validate lists all that is wrong.
func (c *Config) Validate() error {
	errs := member.Place{Name: c.Name, Proc: c.Proc, Cluster: c.Cluster, Mgmt: c.Mgmt, Listen: c.Listen, Wire: c.Wire, Identity: c.Identity}.Check()
	if c.Arena != 0 && c.Arena < MinArenaBytes {
		errs = append(errs, fmt.Errorf("--arena %d: at least %d bytes, two requests of the largest size", c.Arena, int64(MinArenaBytes)))
	}
	if c.Memory != 0 && c.Memory < minMemoryBytes {
		errs = append(errs, fmt.Errorf("--memory %d: at least %d bytes", c.Memory, minMemoryBytes))
	}
	return errors.Join(errs...)
}

// memory tells how Memory is split: the block cache of all databases, and the largest memtable when this process has so
// many buckets (each has up to two).
func (c *Config) memory(buckets int) (cacheBytes int64, memTableBytes int) {
	third := c.Memory / 3
	memTableBytes = int(min(maxMemTable, max(minMemTable, third/int64(2*max(buckets, 1)))))
	return third, memTableBytes
}
