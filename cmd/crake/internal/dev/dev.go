// Package dev forms, starts, stops and removes a one-server cluster in a directory: the work behind crake dev.
//
// The directory holds
//
//	cluster.json     what the cluster is made of (mgmt/api.ClusterFile); written last, so that what has it is whole
//	drives/driveN    the preallocated drives
//	run/ log/        sockets, records of running processes, logs (mgmt's)
//	forming          there while the first dev up works; without cluster.json it marks what may be swept away
//
// and what mgmt keeps there beside. Reading order: up.go, checks.go, down.go, proc.go.
package dev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/route"
)

// FormatFunc makes a preallocated file and an empty drive of it; it refuses one that holds anything.
type FormatFunc func(ctx context.Context, path string, cluster wire.ClusterID, id wire.DriveID, sizeBytes int64) error

// Config says what dev up shall bring up. The zero value of a field that forms a cluster means "not said": the default for a new
// cluster, whatever stands for an existing one.
type Config struct {
	Dir   string // absolute
	Mount string // absolute

	Drives       int
	DriveBytes   int64
	Data, Parity int // protection
	Computes     int
	Buckets      int
	APIListen    string
	Wire         route.Wire // how processes speak
	Encrypt      *bool      // what they say by TCP
	Arenas       Arenas

	Binary  string // absolute path of crake
	Format  FormatFunc
	Timeout time.Duration // until the mount answers; 0 means DefaultTimeout
	// Progress gets a line for each step.
	Progress io.Writer
}

// Arenas are the sizes of the memory for file data of a process of each role, in bytes; 0 means "not said".
type Arenas struct{ Drive, Compute, Frontend int64 }

// Defaults of a new cluster, and limits.
const (
	DefaultDrives     = 6
	DefaultDriveBytes = 4 << 30
	DefaultData       = 4
	DefaultParity     = 2
	DefaultComputes   = 2
	DefaultBuckets    = 16
	// MinDriveBytes leaves room for the drive's own structures and some segments of every bucket's logs.
	MinDriveBytes = 64 << 20
	// DefaultTimeout bounds dev up: etcd, drives, computes and 16 buckets take a few seconds, a slow machine ten times that.
	DefaultTimeout = 90 * time.Second
	// spareBytes is what mgmt's database, logs and sockets may need beside the drives.
	spareBytes = 64 << 20
)

const (
	formingName = "forming"
	drivesName  = "drives"
)

func drivePath(dir string, i int) string {
	return filepath.Join(dir, drivesName, fmt.Sprintf("drive%d", i))
}

// lockDir takes the lock on a directory that dev up and dev down hold while they work. It ends with the process at the
// latest. ErrBusy when another holds it.
func lockDir(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("another crake dev up or down works on %s; wait until it has ended", dir)
		}
		return nil, err
	}
	return func() { f.Close() }, nil
}

func (c *Config) say(format string, args ...any) {
	if c.Progress != nil {
		fmt.Fprintf(c.Progress, format+"\n", args...)
	}
}
