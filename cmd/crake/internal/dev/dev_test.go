package dev

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/crakefs/crake/mgmt/api"
	"github.com/crakefs/crake/wire"
)

func TestShape(t *testing.T) {
	good := Config{Drives: 6, DriveBytes: 1 << 30, Data: 4, Parity: 2, Computes: 2, Buckets: 16}
	if err := good.checkShape(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change func(*Config)
		says   string
	}{
		{"too few drives", func(c *Config) { c.Drives = 5 }, "at least 6 drives"},
		{"too many drives", func(c *Config) { c.Drives = 1000 }, "at most"},
		{"wide", func(c *Config) { c.Data, c.Drives = 31, 40 }, "at most 32"},
		{"small drives", func(c *Config) { c.DriveBytes = 1 << 20 }, "at least"},
		{"computes", func(c *Config) { c.Computes = 1000 }, "--compute"},
		{"buckets", func(c *Config) { c.Buckets = 1 << 20 }, "--buckets"},
	} {
		cfg := good
		c.change(&cfg)
		if err := cfg.checkShape(); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", c.name, err, c.says)
		}
	}
}

func TestContradiction(t *testing.T) {
	f := &api.ClusterFile{DataStrips: 4, ParityStrips: 2, Buckets: 16, Computes: 2}
	for i := range 6 {
		f.Drives = append(f.Drives, api.DriveSpec{ID: uint32(i + 1), SizeBytes: 1 << 30})
	}
	for _, c := range []struct {
		cfg  Config
		flag string // "" is none
	}{
		{Config{}, ""},
		{Config{Drives: 6, DriveBytes: 1 << 30, Data: 4, Parity: 2, Buckets: 16, Computes: 3}, ""},
		{Config{DriveBytes: 1<<30 + 5}, ""}, // rounded down, as when it was formed
		{Config{Drives: 7}, "--drives"},
		{Config{DriveBytes: 2 << 30}, "--drive-size"},
		{Config{Data: 5, Parity: 1}, "--protection"},
		{Config{Buckets: 8}, "--buckets"},
	} {
		err := c.cfg.contradiction(f)
		if (err != nil) != (c.flag != "") || err != nil && !strings.Contains(err.Error(), c.flag) {
			t.Errorf("%+v: %v, want %q", c.cfg, err, c.flag)
		}
	}
}

func TestSpace(t *testing.T) {
	c := Config{Dir: filepath.Join(t.TempDir(), "not", "there"), Drives: 256, DriveBytes: 1 << 60}
	if err := c.checkSpace(); err == nil || !strings.Contains(err.Error(), "--drive-size") {
		t.Errorf("got %v", err)
	}
	c.Drives, c.DriveBytes = 1, 4096
	if err := c.checkSpace(); err != nil {
		t.Error(err)
	}
}

func TestPlaces(t *testing.T) {
	for _, c := range []struct {
		dir, mount string
		ok         bool
	}{
		{"/a/b", "/a/c", true}, {"/a/b", "/a/bc", true}, {"/a", "/a", false}, {"/a/b", "/a", false}, {"/a", "/a/b", false}, {"/a", "/", false},
	} {
		if err := checkPlaces(c.dir, c.mount); (err == nil) != c.ok {
			t.Errorf("%s at %s: %v", c.dir, c.mount, err)
		}
	}
}

func TestMountPoint(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, says := range map[string]string{
		filepath.Join(dir, "none"): "mkdir -p", file: "no directory", dir: "not empty", "/proc": "busy", t.TempDir(): "",
	} {
		err := CheckMountPoint(path)
		if (err == nil) != (says == "") || err != nil && !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", path, err, says)
		}
	}
}

// Only what is a cluster's is ever removed.
func TestRemoveLeavesWhatIsNotOurs(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "a", "b")
	missing := topMissing(dir)
	if missing != filepath.Join(top, "a") {
		t.Fatalf("topMissing is %s", missing)
	}
	if err := os.MkdirAll(filepath.Join(dir, "drives"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"cluster.json", "drives/drive0", "precious"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	rest, err := removeCluster(dir)
	if err != nil || rest != "precious" {
		t.Fatalf("rest %q, %v", rest, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "precious")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "precious")); err != nil {
		t.Fatal(err)
	}
	if err := removeEmpty(dir, missing); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(missing); !os.IsNotExist(err) {
		t.Errorf("%s is still there", missing)
	}
}

func TestCommandLines(t *testing.T) {
	dir := "/var/lib/c"
	for _, c := range []struct {
		args []string
		dir  string
	}{
		{[]string{"--dir", dir}, dir},
		{[]string{"--dir=" + dir}, dir},
		{[]string{"--name", "drive0", "--mgmt", api.MgmtAddr(dir), "--listen", "unix:/x"}, dir},
		{[]string{"--mgmt=tcp:1.2.3.4:5"}, ""},
		{[]string{"--dir"}, ""},
	} {
		if got := (process{args: c.args}).dir(); got != c.dir {
			t.Errorf("%q is of %q, want %q", c.args, got, c.dir)
		}
	}
}

func TestUnescape(t *testing.T) {
	if got := unescape(`/a\040b\134c`); got != `/a b\c` {
		t.Errorf("got %q", got)
	}
}

// A drive that cannot be formatted ends the first dev up, and nothing of it is left.
func TestFailedFormLeavesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "x", "c")
	c := Config{
		Dir: dir, Mount: t.TempDir(), Drives: 2, DriveBytes: MinDriveBytes, Data: 1, Parity: 1, Binary: "/bin/false",
		Format: func(_ context.Context, _ string, _ wire.ClusterID, id wire.DriveID, _ int64) error {
			if id == 2 {
				return fmt.Errorf("no drive for you")
			}
			return nil
		},
	}
	if _, err := c.first(context.Background()); err == nil || !strings.Contains(err.Error(), "no drive for you") {
		t.Fatalf("got %v", err)
	}
	if _, err := os.Stat(filepath.Dir(dir)); !os.IsNotExist(err) {
		t.Errorf("left %s", filepath.Dir(dir))
	}
	// The same when mgmt does not start.
	c.Format = func(context.Context, string, wire.ClusterID, wire.DriveID, int64) error { return nil }
	if _, err := c.first(context.Background()); err == nil || !strings.Contains(err.Error(), "mgmt did not start") {
		t.Fatalf("got %v", err)
	}
	if _, err := os.Stat(filepath.Dir(dir)); !os.IsNotExist(err) {
		t.Errorf("left %s", filepath.Dir(dir))
	}
	// A directory that was there stays, empty.
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := c.first(context.Background()); err == nil {
		t.Fatal("no error")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("left %v, %v", entries, err)
	}
}
