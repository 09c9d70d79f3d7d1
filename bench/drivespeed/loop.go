package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// loopTries: another process may take the free loop device between two system calls.
const loopTries = 16

// loopClearTimeout bounds how long the kernel may take to let go of a device.
const loopClearTimeout = 5 * time.Second

// loopDevice is a loop device that passes O_DIRECT on to its file. It has the kernel's "autoclear": it is gone when the last
// descriptor is closed, ours too, so it does not outlive this process however that ends.
type loopDevice struct {
	path string
	name string // such as loop3
	f    *os.File
}

func openLoop(path string) (*loopDevice, error) {
	back, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return nil, fmt.Errorf("a loop device needs a file that can be opened with O_DIRECT: %w", err)
	}
	defer back.Close() // the loop device has its own reference
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("loop devices need root and /dev/loop-control; leave them out with --devices disk,ram: %w", err)
	}
	defer ctl.Close()
	for range loopTries {
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("no free loop device: %w", err)
		}
		l, err := configureLoop(n, back)
		if !errors.Is(err, unix.EBUSY) {
			return l, err
		}
	}
	return nil, fmt.Errorf("others took the free loop device %d times; try again", loopTries)
}

func configureLoop(n int, back *os.File) (*loopDevice, error) {
	l := &loopDevice{name: fmt.Sprintf("loop%d", n), path: fmt.Sprintf("/dev/loop%d", n)}
	var err error
	if l.f, err = os.OpenFile(l.path, os.O_RDWR, 0); err != nil {
		return nil, err
	}
	c := unix.LoopConfig{Fd: uint32(back.Fd())}
	c.Info.Flags = unix.LO_FLAGS_DIRECT_IO | unix.LO_FLAGS_AUTOCLEAR
	if err := unix.IoctlLoopConfigure(int(l.f.Fd()), &c); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", l.path, err), l.f.Close())
	}
	dio, err := os.ReadFile("/sys/block/" + l.name + "/loop/dio")
	if err != nil || strings.TrimSpace(string(dio)) != "1" {
		return nil, errors.Join(fmt.Errorf("%s does not pass O_DIRECT on (%q): its figures would be of the page cache", l.path, dio), err, l.close())
	}
	return l, nil
}

// close lets go of the device and waits until it has let go of the file.
func (l *loopDevice) close() error {
	if err := l.f.Close(); err != nil {
		return err
	}
	for end := time.Now().Add(loopClearTimeout); time.Now().Before(end); time.Sleep(pollPause) {
		if _, err := os.Stat("/sys/block/" + l.name + "/loop/backing_file"); err != nil {
			return nil
		}
	}
	return fmt.Errorf("%s is still in use %v after everybody was done; losetup -d %s", l.path, loopClearTimeout, l.path)
}
