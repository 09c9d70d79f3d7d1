package drive_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/crakefs/crake/drive"
	"github.com/crakefs/crake/wire"
)

func tryFormat(t *testing.T, path string, change func(c *drive.FormatConfig)) error {
	t.Helper()
	c := drive.FormatConfig{Path: path, Cluster: testCluster, Drive: 1}
	if change != nil {
		change(&c)
	}
	err := drive.Format(t.Context(), c)
	if err != nil && strings.Contains(err.Error(), "\n") {
		t.Errorf("more than one line: %q", err)
	}
	return err
}

// TestFormatCreates: a missing file is created and preallocated with its size; an empty one gets it.
func TestFormatCreates(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"missing", "empty"} {
		path := filepath.Join(dir, name)
		if name == "empty" {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := tryFormat(t, path, nil); !errors.Is(err, wire.KindInvalid) {
			t.Errorf("%s without a size: %v", name, err)
		}
		if err := tryFormat(t, path, func(c *drive.FormatConfig) { c.SizeBytes = 32<<20 + 100 }); err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(path)
		if err != nil || st.Size() != 32<<20 {
			t.Errorf("%s: %v, %v", name, st.Size(), err)
		}
	}
}

// TestFormatRefuses: what holds something is refused, with what it is; force destroys it. What failed leaves nothing.
func TestFormatRefuses(t *testing.T) {
	dir := t.TempDir()
	other := wire.ClusterID{9, 9}
	for _, c := range []struct {
		name   string
		before func(path string) // makes what is there
		change func(c *drive.FormatConfig)
		kind   wire.Kind
		want   string
		forced bool // force helps
	}{
		{"this drive", func(p string) { format(t, p, 1) }, nil, wire.KindExists, "is drive 1 of this cluster already", true},
		{"another drive", func(p string) { format(t, p, 2) }, nil, wire.KindRefused, "is drive 2 of this cluster", true},
		{"another cluster", func(p string) { format(t, p, 1) }, func(c *drive.FormatConfig) { c.Cluster = other }, wire.KindRefused, "of another cluster (c10203", true},
		{"a filesystem", func(p string) { writeAt(t, p, 0x438, "\x53\xef") }, nil, wire.KindRefused, "an ext2/3/4 filesystem", true},
		{"unknown data", func(p string) { writeAt(t, p, 5000, "x") }, nil, wire.KindRefused, "unknown data (byte 5000", true},
		{"too small", func(p string) { _ = os.WriteFile(p, make([]byte, 1<<20), 0o600) }, nil, wire.KindRefused, "too few", false},
		{"smaller than asked", func(p string) { writeAt(t, p, 0, "") }, func(c *drive.FormatConfig) { c.SizeBytes = 1 << 30 }, wire.KindRefused, "give a smaller size", false},
		{"a directory", func(p string) { _ = os.Mkdir(p, 0o700) }, nil, wire.KindRefused, "neither a regular file nor a block device", false},
		{"no directory for it", func(string) {}, func(c *drive.FormatConfig) { c.Path += "/x/y"; c.SizeBytes = 32 << 20 }, wire.KindIO, "no such file", false},
		{"too big for the disk", func(string) {}, func(c *drive.FormatConfig) { c.SizeBytes = 1 << 50 }, wire.KindNoSpace, "cannot allocate", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(dir, strings.ReplaceAll(c.name, " ", "-"))
			c.before(path)
			existed := exists(path)
			err := tryFormat(t, path, c.change)
			if c.name == "too big for the disk" && wire.KindOf(err) == wire.KindIO {
				c.kind = wire.KindIO // the file is larger than the filesystem allows
			}
			if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v; want %v with %q", err, c.kind, c.want)
			}
			if exists(path) != existed {
				t.Error("something is left behind, or gone")
			}
			err = tryFormat(t, path, func(f *drive.FormatConfig) {
				if c.change != nil {
					c.change(f)
				}
				f.Force = true
			})
			if (err == nil) != c.forced {
				t.Errorf("forced: %v", err)
			}
		})
	}
}

// TestFormatRefusesOpen: not even force takes a device from a process that has it open.
func TestFormatRefusesOpen(t *testing.T) {
	dir := t.TempDir()
	m := startMgmt(t, dir)
	path := filepath.Join(dir, "a")
	format(t, path, 1)
	startDrive(t, dir, m, drive.Device{Path: path, ID: 1})
	err := tryFormat(t, path, func(c *drive.FormatConfig) { c.Force = true })
	if !errors.Is(err, wire.KindRefused) || !strings.Contains(err.Error(), "another process has it open") {
		t.Error(err)
	}
}

func TestValidateListsAll(t *testing.T) {
	err := (&drive.Config{Arena: 1, Listen: []string{"nowhere"}, VerifyRate: -1}).Validate()
	for _, want := range []string{"--name", "--proc", "--cluster", "--mgmt", "--listen", "--identity", "--device", "--arena", "verify"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: want %q in it", err, want)
		}
	}
	err = (&drive.FormatConfig{SizeBytes: 5}).Validate()
	for _, want := range []string{"path", "cluster", "drive id", "size"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: want %q in it", err, want)
		}
	}
}

// writeAt makes a file of 32 MiB with s in it.
func writeAt(t *testing.T, path string, off int64, s string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := f.Truncate(32 << 20); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte(s), off); err != nil {
		t.Fatal(err)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
