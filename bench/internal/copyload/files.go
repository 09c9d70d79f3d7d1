package copyload

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// IOBytes is the length of one write or read.
const IOBytes = 1 << 20

// block gives the i-th MiB of a file: page-aligned memory, which is used again.
type block struct{ b []byte }

func newBlock() (*block, error) {
	b, err := unix.Mmap(-1, 0, IOBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	return &block{b}, err
}

func (k *block) free() { _ = unix.Munmap(k.b) }

// fill makes the content of the i-th MiB: no two alike.
func (k *block) fill(i int) []byte {
	x := uint64(i)*0x9e3779b97f4a7c15 + 1
	for j := 0; j < len(k.b); j += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		for n := range 8 {
			k.b[j+n] = byte(x >> (8 * n))
		}
	}
	return k.b
}

// Write writes a file of so many MiB by writes of one, with flags beside O_CREAT, and fsync.
func Write(path string, mib, flags int) (err error) {
	k, err := newBlock()
	if err != nil {
		return err
	}
	defer k.free()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|flags, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for i := range mib {
		if _, err := f.Write(k.fill(i)); err != nil {
			return err
		}
	}
	return f.Sync()
}

// WriteSmall writes n times size bytes, one after the other, each followed by fsync.
func WriteSmall(path string, n, size int) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for i := range n {
		if _, err := f.Write(bytes.Repeat([]byte{byte(i + 1)}, size)); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
	}
	return nil
}

// Read reads what Write wrote, by reads of one MiB, and compares.
func Read(path string, mib, flags int) (err error) {
	k, err := newBlock()
	if err != nil {
		return err
	}
	defer k.free()
	want, err := newBlock()
	if err != nil {
		return err
	}
	defer want.free()
	f, err := os.OpenFile(path, os.O_RDONLY|flags, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for i := range mib {
		if _, err := io.ReadFull(f, k.b); err != nil {
			return err
		}
		if !bytes.Equal(k.b, want.fill(i)) {
			return fmt.Errorf("%s: MiB %d is not what was written", path, i)
		}
	}
	return nil
}

// ReadMapped reads what Write wrote through a mapping, and compares.
func ReadMapped(path string, mib int) error {
	want, err := newBlock()
	if err != nil {
		return err
	}
	defer want.free()
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, mib*IOBytes, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(m) }()
	for i := range mib {
		if !bytes.Equal(m[i*IOBytes:(i+1)*IOBytes], want.fill(i)) {
			return fmt.Errorf("%s: mapped MiB %d is not what was written", path, i)
		}
	}
	return nil
}

// warmMiB is long enough for every connection between the roles of a small cluster to carry data, both ways.
const warmMiB = 32

// Warm writes and reads a file: what a connection carries before its peer has mapped the memory of the other side goes through the socket.
func Warm(dir string) error {
	path := filepath.Join(dir, "warm")
	if err := Write(path, warmMiB, os.O_TRUNC); err != nil {
		return err
	}
	if err := DropCaches(); err != nil {
		return err
	}
	if err := Read(path, warmMiB, 0); err != nil {
		return err
	}
	return os.Remove(path)
}

// DropCaches makes the kernel forget what it has cached.
func DropCaches() error { return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0) }
