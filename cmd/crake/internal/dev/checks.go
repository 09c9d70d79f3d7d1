package dev

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/mgmt/api"
	"github.com/crakefs/crake/wire"
)

// checkMachine says what keeps this process from mounting.
func checkMachine() error {
	if os.Geteuid() != 0 {
		return errors.New("mounting needs root; run this as root")
	}
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("/dev/fuse cannot be opened (%w); load the module with modprobe fuse, or give the container the device", err)
	}
	return f.Close()
}

// CheckMountPoint says why a filesystem cannot be mounted at path: it must be there, a directory, empty, and no mount
// point already.
func CheckMountPoint(path string) error {
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("mount point %s does not exist; make it with mkdir -p %s", path, path)
	case errors.Is(err, unix.ENOTCONN):
		return fmt.Errorf("mount point %s holds the dead mount of a process that is gone; take it away with umount -l %s", path, path)
	case err != nil:
		return fmt.Errorf("mount point %s: %w", path, err)
	case !st.IsDir():
		return fmt.Errorf("mount point %s is no directory; name an empty directory", path)
	}
	if m, ok := mountAt(path); ok {
		return fmt.Errorf("mount point %s is busy: %s (%s) is mounted there; unmount it or name another directory", path, m.source, m.fstype)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return fmt.Errorf("mount point %s: %w", path, err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("mount point %s is not empty (%s ...); name an empty directory", path, entries[0].Name())
	}
	return nil
}

// MountAnswers waits until a statfs of the mount point comes back from Crake, at most until ctx ends. The question
// runs aside, because a mount that hangs would hold this process for ever.
func MountAnswers(ctx context.Context, path string) error {
	done := make(chan error, 1)
	go func() { // ends with the answer, or with the process
		var st unix.Statfs_t
		done <- unix.Statfs(path, &st)
	}()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("the mount at %s does not work: %w", path, err)
		}
	case <-ctx.Done():
		return fmt.Errorf("the mount at %s does not answer", path)
	}
	if _, ok := mountAt(path); !ok {
		return fmt.Errorf("nothing is mounted at %s", path)
	}
	return nil
}

// checkPlaces refuses a mount that would hide the cluster's own files, or lie in them.
func checkPlaces(dir, mount string) error {
	inside := func(p, q string) bool { return p == q || strings.HasPrefix(p+"/", strings.TrimSuffix(q, "/")+"/") }
	if inside(dir, mount) {
		return fmt.Errorf("directory %s lies in the mount point %s, which would hide it; name another one", dir, mount)
	}
	if inside(mount, dir) {
		return fmt.Errorf("mount point %s lies in the cluster's directory %s; name another one", mount, dir)
	}
	return nil
}

// checkShape says what is wrong with the numbers of a new cluster.
func (c *Config) checkShape() error {
	if c.Data < 1 || c.Parity < 1 || c.Data+c.Parity > wire.MaxStripes {
		return fmt.Errorf("protection %d+%d: want data+parity such as 4+2, each at least 1 and together at most %d", c.Data, c.Parity, wire.MaxStripes)
	}
	if n := c.Data + c.Parity; c.Drives < n {
		return fmt.Errorf("protection %d+%d needs at least %d drives, --drives is %d; add drives or lower the protection", c.Data, c.Parity, n, c.Drives)
	}
	if c.Drives > api.MaxDrives {
		return fmt.Errorf("--drives is %d, at most %d are possible", c.Drives, api.MaxDrives)
	}
	if c.DriveBytes < MinDriveBytes {
		return fmt.Errorf("--drive-size is %d MiB, a drive needs at least %d MiB", c.DriveBytes>>20, MinDriveBytes>>20)
	}
	if err := checkComputes(c.Computes); err != nil {
		return err
	}
	if c.Buckets < 1 || c.Buckets > wire.MaxBuckets {
		return fmt.Errorf("--buckets is %d, want 1 to %d", c.Buckets, wire.MaxBuckets)
	}
	return nil
}

func checkComputes(n int) error {
	if n < 1 || n > api.MaxComputes {
		return fmt.Errorf("--compute is %d, want 1 to %d", n, api.MaxComputes)
	}
	return nil
}

// checkSpace refuses what the filesystem of dir cannot hold.
func (c *Config) checkSpace() error {
	at := c.Dir
	for {
		if _, err := os.Stat(at); err == nil || at == "/" {
			break
		}
		at = filepath.Dir(at)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(at, &st); err != nil {
		return fmt.Errorf("%s: %w", at, err)
	}
	// In floats: a drive size that somebody mistyped must not overflow.
	need, free := float64(c.Drives)*float64(c.DriveBytes)+spareBytes, float64(st.Bavail)*float64(st.Bsize)
	if need > free {
		return fmt.Errorf("%d drives of %d MiB need %.0f MiB, the filesystem of %s has %.0f MiB free; lower --drive-size or name another --dir",
			c.Drives, c.DriveBytes>>20, need/(1<<20), c.Dir, free/(1<<20))
	}
	return nil
}

// checkAPI tries whether the address of the API is free.
func checkAPI(addr string) error {
	if addr == "" {
		return nil
	}
	l, err := net.Listen("tcp", addr)
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("--api %s is in use by another process; name another port, or port 0 for any", addr)
	}
	if err != nil {
		return fmt.Errorf("--api %s: %w; want an address such as 127.0.0.1:14000", addr, err)
	}
	return l.Close()
}

// checkDir says whether dir can become the directory of a new cluster. made says that it does not exist yet.
func checkDir(dir string) (made bool, err error) {
	if err := api.CheckDir(dir); err != nil {
		return false, err
	}
	st, err := os.Stat(dir)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return true, checkParent(dir)
	}
	if err != nil {
		return false, err
	}
	if !st.IsDir() {
		return false, fmt.Errorf("%s is no directory; name a directory", dir)
	}
	if _, err := os.Stat(filepath.Join(dir, formingName)); err == nil {
		return false, nil // left by a dev up that was killed: Up sweeps it
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false, err
	}
	if len(entries) > 0 {
		return false, fmt.Errorf("%s is not empty and holds no cluster; name an empty or a new directory", dir)
	}
	return false, nil
}

func checkParent(dir string) error {
	for at := filepath.Dir(dir); ; at = filepath.Dir(at) {
		st, err := os.Stat(at)
		if (errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR)) && at != "/" {
			continue
		}
		if err != nil {
			return err
		}
		if !st.IsDir() {
			return fmt.Errorf("%s is no directory, so %s cannot be made; name another one", at, dir)
		}
		return unix.Access(at, unix.W_OK)
	}
}

// pollPause is how often something is looked at again.
const pollPause = 20 * time.Millisecond
