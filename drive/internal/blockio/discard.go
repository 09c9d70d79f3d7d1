package blockio

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/wire"
)

// What Discard does, in Info.Discard.
const (
	discardBlock = "blkdiscard"
	discardPunch = "punch hole"
	discardNoise = "noise" // the crash device
)

// discardPolicy tells what Discard does, or why nothing.
//
// A file whose blocks are all there was preallocated so that no write of ours ever finds the filesystem full. A hole punched into it
// gives that promise away, and the space to whoever writes next: so there nothing is discarded. A sparse file never had the
// promise, and tmpfs files have none either; there the space, or memory, goes back. The same goes for a loop device, whose discards
// punch its file.
func discardPolicy(fd int, isBlock, isMemory bool) (does, reason string, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", "", fmt.Errorf("stat: %w", err)
	}
	switch {
	case isMemory:
		return discardPunch, "", nil
	case !isBlock && isSparse(st.Size, st.Blocks):
		return discardPunch, "", nil
	case !isBlock:
		return "", "the file's space is preallocated, and a discard would give it away", nil
	}
	dir := sysDir(st.Rdev)
	if b, err := readQueue(dir, "discard_max_bytes"); err != nil || b == "0" {
		return "", "the device has no discard", nil
	}
	if file, err := os.ReadFile(filepath.Join(dir, "loop", "backing_file")); err == nil {
		var back unix.Stat_t
		if unix.Stat(strings.TrimSuffix(string(file), "\n"), &back) != nil {
			return "", "a loop device over a file that cannot be looked at", nil
		}
		if back.Mode&unix.S_IFMT == unix.S_IFREG && !isSparse(back.Size, back.Blocks) {
			return "", "a loop device over a preallocated file, whose space a discard would give away", nil
		}
	}
	return discardBlock, "", nil
}

// isSparse says that a file has fewer blocks (of 512 bytes, as stat counts) than its size needs.
func isSparse(size, blocks int64) bool { return blocks*512 < size&^(Align-1) }

// sysDir is the directory of a block device in sysfs.
func sysDir(rdev uint64) string {
	return "/sys/dev/block/" + strconv.Itoa(int(unix.Major(rdev))) + ":" + strconv.Itoa(int(unix.Minor(rdev)))
}

// readQueue reads an attribute of a device's queue; a partition has its disk's.
func readQueue(dir, name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, "queue", name))
	if errors.Is(err, os.ErrNotExist) {
		b, err = os.ReadFile(filepath.Join(dir, "..", "queue", name))
	}
	return strings.TrimSpace(string(b)), err
}

// discard blocks its thread: discards are rare and background work.
func (f *file) discard(off, n int64) error {
	if err := checkDiscard(f.info.Path, off, n, f.size); err != nil {
		return err
	}
	if n == 0 || f.info.Discard == "" {
		return nil
	}
	for {
		var err error
		if f.info.Discard == discardPunch {
			err = unix.Fallocate(f.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		} else {
			err = blkDiscard(f.fd, off, n)
		}
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return wire.E("device.discard", wire.KindIO, fmt.Sprintf("%s: %d bytes at %d", f.info.Path, n, off), err)
		}
		return nil
	}
}

func blkDiscard(fd int, off, n int64) error {
	r := [2]uint64{uint64(off), uint64(n)}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKDISCARD, uintptr(unsafe.Pointer(&r))); errno != 0 {
		return errno
	}
	return nil
}
