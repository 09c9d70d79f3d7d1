package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/bench/internal/copyload"
	"github.com/crakefs/crake/bench/internal/devcluster"
	"github.com/crakefs/crake/wire/copies"
)

// Claim: a buffered write is copied by our code exactly once, out of the kernel's request, before the drive's device has it, and what is
// read not at all: by writes of 1 MiB, buffered and direct, of 4 KiB with fsync, reads of 1 MiB, and mappings. The binary counts.
func TestS4wCopies(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "crake")
	command(t, 5*time.Minute, "../..", []string{"CGO_ENABLED=0"}, "go", "build", "-tags", copyload.Tag, "-o", bin, "./cmd/crake")
	for _, wire := range []string{"shm", "unix"} {
		t.Run(wire, func(t *testing.T) { copiesOver(t, bin, wire) })
	}
}

func copiesOver(t *testing.T, bin, wire string) {
	const mib, small, smallBytes = 64, 64, 4096
	c := prepareBin(t, bin, devcluster.Options{Flags: []string{"--wire", wire}})
	if err := c.Up(); err != nil {
		t.Fatalf("%v\n%s", err, c.Logs(20))
	}
	must(t, copyload.Warm(c.Mount))
	file, direct := filepath.Join(c.Mount, "f"), filepath.Join(c.Mount, "direct")
	for _, p := range []struct {
		what  string
		bytes int64
		write bool
		run   func() error
	}{
		{"buffered writes of 1 MiB, fsync", mib << 20, true, func() error { return copyload.Write(file, mib, os.O_TRUNC) }},
		{"direct writes of 1 MiB", mib << 20, true, func() error { return copyload.Write(direct, mib, unix.O_DIRECT) }},
		{"writes of 4 KiB, fsync each", small * smallBytes, true, func() error {
			return copyload.WriteSmall(filepath.Join(c.Mount, "small"), small, smallBytes)
		}},
		{"reads of 1 MiB", mib << 20, false, func() error { return copyload.Read(file, mib, 0) }},
		{"direct reads of 1 MiB", mib << 20, false, func() error { return copyload.Read(direct, mib, unix.O_DIRECT) }},
		{"reads through a mapping", mib << 20, false, func() error { return copyload.ReadMapped(file, mib) }},
	} {
		dropCaches(t)
		cost, err := copyload.Phase(c, p.run)
		must(t, err)
		var table strings.Builder
		cost.Print(&table, wire+": "+p.what, p.bytes)
		t.Log(table.String())
		in := int64(0)
		if p.write {
			in = p.bytes
		}
		if got := cost.Total(copies.WriteIn); got != in {
			t.Errorf("%s, %s: %d bytes were copied out of the kernel's requests, want %d", wire, p.what, got, in)
		}
		for _, place := range []copies.Place{copies.WriteAgain, copies.WriteBase, copies.ReadDirty, copies.Gather} {
			if got := cost.Total(place); got != 0 {
				t.Errorf("%s, %s: %d bytes were copied at %s, want none", wire, p.what, got, place)
			}
		}
		checkLanding(t, wire, p.what, cost, p.bytes)
	}
}

// checkLanding checks what was copied out of the read buffers of connections. By shared memory that is nothing of the file: what is left is
// of the databases' logs while a connection is new. Through sockets it is the first 512 bytes of a strip, or all of a short section.
func checkLanding(t *testing.T, wire, what string, cost *copyload.Cost, bytes int64) {
	t.Helper()
	got := cost.Total(copies.Landing)
	limit := bytes / 1000
	if wire == "unix" {
		limit = bytes / 2 // behind short requests as much of a strip as the read buffer holds
	}
	if bytes < 1<<20 { // some blocks of the file and the log, each at three drives
		limit = 0
		if wire == "unix" {
			limit = 16 * bytes
		}
	}
	if got > limit {
		t.Errorf("%s, %s: %d bytes of %d were copied out of read buffers, want at most %d", wire, what, got, bytes, limit)
	}
	if moved := cost.Total(copies.Socket); wire == "shm" && moved > bytes/1000 {
		t.Errorf("%s, %s: sockets moved %d bytes of data for %d", wire, what, moved, bytes)
	}
}
