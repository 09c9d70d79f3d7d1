package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/crakefs/crake/bench/internal/devcluster"
)

// Claim 2: data comes back as it was written, by every way an application can write it. fio puts a header with offset,
// sequence and checksum into every block and verifies each of them.
func TestS2Fio(t *testing.T) {
	c := start(t, devcluster.Options{DriveSize: "512MiB"})
	size := "64m"
	if testing.Short() {
		size = "16m"
	}
	common := []string{
		"--directory=" + c.Mount, "--size=" + size, "--verify=xxhash", "--verify_fatal=1", "--verify_dump=0",
		"--do_verify=1", "--verify_state_save=0", "--group_reporting", "--output-format=terse", "--randrepeat=0", "--overwrite=0",
	}
	for _, j := range []struct {
		name string
		args []string
	}{
		{"buffered-4k-random", []string{"--ioengine=psync", "--rw=randwrite", "--bs=4k", "--end_fsync=1"}},
		{"buffered-odd-sizes", []string{"--ioengine=psync", "--rw=randwrite", "--bsrange=512-70k", "--bs_unaligned=1", "--fsync=64"}},
		{"buffered-sequential", []string{"--ioengine=psync", "--rw=write", "--bs=1m", "--numjobs=3"}},
		{"synchronous", []string{"--ioengine=psync", "--rw=randwrite", "--bs=16k", "--sync=1", "--io_size=4m", "--size=8m"}},
		{"direct-1m-sequential", []string{"--ioengine=psync", "--direct=1", "--rw=write", "--bs=1m", "--numjobs=4"}},
		{"direct-4k-random", []string{"--ioengine=psync", "--direct=1", "--rw=randwrite", "--bs=4k", "--io_size=8m"}},
		{"mmap", []string{"--ioengine=mmap", "--rw=randwrite", "--bs=4k", "--fsync=256"}},
		{"mmap-sequential", []string{"--ioengine=mmap", "--rw=write", "--bs=64k"}},
		{"libaio-direct", []string{"--ioengine=libaio", "--direct=1", "--iodepth=16", "--rw=randwrite", "--bs=32k"}},
		{"libaio-mixed-sizes", []string{"--ioengine=libaio", "--direct=1", "--iodepth=8", "--rw=randrw", "--bssplit=4k/50:64k/30:1m/20", "--verify_backlog=128"}},
	} {
		t.Run(j.name, func(t *testing.T) {
			begin := time.Now()
			args := append(append([]string{"--name=" + j.name}, common...), j.args...)
			command(t, 3*time.Minute, c.Scratch(), nil, "fio", args...)
			files, err := filepath.Glob(filepath.Join(c.Mount, j.name+"*"))
			must(t, err)
			if len(files) == 0 {
				t.Fatal("fio left no file: did it write to the mount?")
			}
			// fio has just verified what a warm reader sees; a cold one must see the same.
			var warm []string
			for _, f := range files {
				warm = append(warm, mustSum(t, f))
			}
			dropCaches(t)
			for i, f := range files {
				if cold := mustSum(t, f); cold != warm[i] {
					t.Errorf("%s: %s from a cold cache, %s before", f, cold, warm[i])
				}
			}
			t.Logf("written, verified and read cold in %v", time.Since(begin).Round(time.Millisecond))
			for _, f := range files {
				must(t, os.Remove(f))
			}
		})
	}
}

// Claim 2, second half: a file of 1 GiB comes back with an equal SHA-256 from an empty cache, and after a restart of
// the whole cluster.
func TestS2BigFile(t *testing.T) {
	size, drive := int64(1<<30), "512MiB"
	if testing.Short() {
		size, drive = 192<<20, "256MiB"
	}
	c := start(t, devcluster.Options{DriveSize: drive})
	path := filepath.Join(c.Mount, "big")
	begin := time.Now()
	want := writeRandom(t, path, size, random(t))
	t.Logf("wrote %d MiB in %v", size>>20, time.Since(begin).Round(time.Millisecond))
	dropCaches(t)
	begin = time.Now()
	if got := mustSum(t, path); got != want {
		t.Fatalf("read back %s, want %s", got, want)
	}
	t.Logf("read it in %v", time.Since(begin).Round(time.Millisecond))
	must(t, c.Down())
	must(t, c.Up())
	if got := mustSum(t, path); got != want {
		t.Fatalf("after a restart: %s, want %s", got, want)
	}
	must(t, os.Remove(path))
}

// writeRandom writes a file of pseudo-random bytes, syncs it, and gives its SHA-256.
func writeRandom(t *testing.T, path string, size int64, r *rand.Rand) string {
	t.Helper()
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	var s [32]byte
	for i := range s {
		s[i] = byte(r.Uint32())
	}
	h := sha256.New()
	_, err = io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(f, h)}, io.LimitReader(rand.NewChaCha8(s), size), make([]byte, 1<<20))
	must(t, err)
	must(t, f.Sync())
	must(t, f.Close())
	return hex.EncodeToString(h.Sum(nil))
}
