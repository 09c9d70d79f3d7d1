package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// The devices that can be measured.
const (
	deviceDisk = "disk"
	deviceLoop = "loop"
	deviceRAM  = "ram"
)

// device is a file or block device that Crake and fio share: the first half is a drive, the second is for fio to write to. So both have
// the same device and, of a file, the same inode. It has been written in full before: a filesystem keeps blocks that were only reserved
// apart, and the first write to each would pay for that.
type device struct {
	name   string
	path   string // what the drive and fio open
	half   int64  // bytes
	data   int64  // where the drive's data begins
	direct bool   // O_DIRECT works
	dir    string // removed by close
	loop   *loopDevice

	flush       bool // the drive flushes; fio then does, too
	flushPolicy string
	engine      string
}

func parseDevices(text string) ([]string, error) {
	all := []string{deviceDisk, deviceLoop, deviceRAM}
	var out []string
	for name := range strings.SplitSeq(text, ",") {
		if !slices.Contains(all, name) {
			return nil, fmt.Errorf("--devices: there is no %q; there are %s", name, strings.Join(all, ","))
		}
		out = append(out, name)
	}
	return out, nil
}

// newDevice makes a device. When it fails it leaves nothing.
func newDevice(cfg *config, name string) (d *device, err error) {
	parent := cfg.dir
	if name == deviceRAM {
		parent = cfg.ramDir
	}
	if err := checkParent(parent, name == deviceRAM, 4*cfg.size); err != nil {
		return nil, err
	}
	d = &device{name: name, half: 2 * cfg.size}
	if d.dir, err = os.MkdirTemp(parent, "crake-drivespeed-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	d.path = filepath.Join(d.dir, "device")
	if d.direct, err = writeFile(d.path, 2*d.half); err != nil {
		return nil, err
	}
	if name == deviceLoop {
		if d.loop, err = openLoop(d.path); err != nil {
			return nil, err
		}
		d.path = d.loop.path
	}
	return d, nil
}

// close takes the device away.
func (d *device) close() error {
	var errs []error
	if d.loop != nil {
		errs = append(errs, d.loop.close())
	}
	return errors.Join(append(errs, os.RemoveAll(d.dir))...)
}

// checkParent says what is wrong with the directory of a device.
func checkParent(dir string, wantRAM bool, needBytes int64) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	isRAM := fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.RAMFS_MAGIC
	switch {
	case wantRAM && !isRAM:
		return fmt.Errorf("%s is not on a tmpfs; name one with --ram-dir", dir)
	case !wantRAM && isRAM:
		return fmt.Errorf("%s is on a tmpfs; name a directory on the disk to measure with --dir", dir)
	}
	if free := int64(fs.Bavail) * fs.Bsize; free < needBytes+spareBytes {
		return fmt.Errorf("%s has %d MiB free, a device needs %d MiB; use a smaller --size, or another directory", dir, free>>20, (needBytes+spareBytes)>>20)
	}
	return nil
}

// writeFile makes a file full of bytes that no device can make smaller, past the page cache where the filesystem allows that; direct
// says whether it does.
func writeFile(path string, sizeBytes int64) (direct bool, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return false, err
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETFL, flags|unix.O_DIRECT); err == nil {
		direct = true
	}
	const chunk = 4 << 20
	buf, err := unix.Mmap(-1, 0, chunk, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON) // aligned
	if err != nil {
		return direct, err
	}
	defer func() { _ = unix.Munmap(buf) }()
	_, _ = rand.NewChaCha8([32]byte{1}).Read(buf) // never fails
	for left := sizeBytes; left > 0; {
		n, err := f.Write(buf[:min(left, chunk)])
		if err != nil {
			return direct, err
		}
		left -= int64(n)
	}
	return direct, f.Sync()
}
