package frontend

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/crakefs/crake/frontend/internal/core"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/capture"
	"github.com/crakefs/crake/wire/member"
	"github.com/crakefs/crake/wire/route"
	"github.com/crakefs/crake/wire/rpc"
)

// Config configures a frontend process.
type Config struct {
	// Name is the process's unique name in the cluster, such as "frontend0".
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
	// FS is the name of the filesystem.
	FS string
	// Mount is the directory where it is mounted. A Client has none.
	Mount string
	// DirtyBytes bounds written data that is not durable yet; 0 is 128 MiB.
	DirtyBytes int64
	// ArenaBytes bounds the memory for reads and readahead, beside DirtyBytes; 0 is 64 MiB.
	ArenaBytes int64
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
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.FS == "" {
		add("--fs is missing")
	}
	for _, b := range []struct {
		flag  string
		bytes int64
	}{{"--dirty", c.DirtyBytes}, {"--arena", c.ArenaBytes}} {
		if b.bytes != 0 && (b.bytes < MinArenaBytes || b.bytes > maxMemoryBytes) {
			add("%s: %d bytes; use %d MiB to %d GiB", b.flag, b.bytes, MinArenaBytes>>20, int64(maxMemoryBytes)>>30)
		}
	}
	if c.Mount == "" {
		add("--mount is missing")
	} else if !filepath.IsAbs(c.Mount) {
		add("--mount: %s is not an absolute path", c.Mount)
	}
	return errors.Join(errs...)
}

func (c *Config) setDefaults() {
	if c.DirtyBytes == 0 {
		c.DirtyBytes = core.DefaultDirtyBytes
	}
	if c.ArenaBytes == 0 {
		c.ArenaBytes = core.DefaultReadBytes
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
}
