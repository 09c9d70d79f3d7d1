package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/bench/internal/devcluster"
)

// badInput is a command line that must be refused.
type badInput struct {
	name string
	args []string
	says string // part of the one line
}

// refused runs a command line and checks the promises for bad input: one line to standard error that says what is wrong,
// nothing to standard output, a status that is not 0, and a look at what it may have left.
func refused(t *testing.T, b badInput, left func() string) {
	t.Helper()
	before := left()
	out, err := devcluster.Run(crakeBin, b.args...)
	var failed *devcluster.CommandError
	if !errors.As(err, &failed) {
		t.Errorf("%s: crake %s succeeded", b.name, strings.Join(b.args, " "))
		return
	}
	text := strings.TrimSuffix(failed.Stderr, "\n")
	switch {
	case failed.Status <= 0:
		t.Errorf("%s: status %d: %v", b.name, failed.Status, failed)
	case strings.Contains(text, "\n") || !strings.HasPrefix(text, "crake: "):
		t.Errorf("%s: want one line that begins with crake:, got %q", b.name, text)
	case !strings.Contains(text, b.says):
		t.Errorf("%s: %q does not say %q", b.name, text, b.says)
	case len(out) != 0:
		t.Errorf("%s: printed %q", b.name, out)
	}
	if after := left(); after != before {
		t.Errorf("%s: left something behind: before %s after %s", b.name, before, after)
	}
}

// traces describes what a command can leave: files below a directory, mounts, processes of the binary.
func traces(c *devcluster.Cluster) func() string {
	return func() string {
		var b strings.Builder
		top := filepath.Dir(c.Dir)
		_ = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err == nil && path != top {
				fmt.Fprintf(&b, "%s ", strings.TrimPrefix(path, top))
			}
			return nil
		})
		fmt.Fprintf(&b, "mounts %v processes %v", c.Mounts(), c.PIDs())
		return b.String()
	}
}

// Claim 7: bad input by a person, before there is a cluster.
func TestS7BadInputToDevUp(t *testing.T) {
	c := prepare(t, devcluster.Options{})
	top := filepath.Dir(c.Dir)
	file := filepath.Join(top, "file")
	must(t, os.WriteFile(file, []byte("x"), 0o600))
	full := filepath.Join(top, "full")
	must(t, os.Mkdir(full, 0o755))
	must(t, os.WriteFile(filepath.Join(full, "precious"), []byte("x"), 0o600))
	busy := filepath.Join(top, "busy")
	must(t, os.Mkdir(busy, 0o755))
	must(t, unix.Mount("tmpfs", busy, "tmpfs", 0, "size=1m"))
	t.Cleanup(func() { _ = unix.Unmount(busy, unix.MNT_DETACH) })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()

	up := func(extra ...string) []string {
		return append([]string{"dev", "up", "--dir", c.Dir, "--mount", c.Mount, "--drive-size", "128MiB"}, extra...)
	}
	with := func(dir, mount string) []string {
		return []string{"dev", "up", "--dir", dir, "--mount", mount, "--drive-size", "128MiB"}
	}
	for _, b := range []badInput{
		{"too few drives", up("--drives", "5"), "at least 6 drives"},
		{"too few drives for another protection", up("--drives", "6", "--protection", "8+2"), "at least 10 drives"},
		{"protection without parity", up("--protection", "4"), "4+2"},
		{"protection of words", up("--protection", "four+two"), "4+2"},
		{"too wide a protection", up("--drives", "60", "--protection", "40+2"), "at most 32"},
		{"no drives", up("--drives", "0"), "--drives"},
		{"negative drives", up("--drives", "-1"), "--drives"},
		{"too many buckets", up("--buckets", "100000"), "--buckets"},
		{"too many computes", up("--compute", "1000"), "--compute"},
		{"drive too small", up("--drive-size", "1MiB"), "--drive-size"},
		{"drive too large", up("--drive-size", "900TiB"), "--drive-size"},
		{"size that is none", up("--drive-size", "big"), "512MiB"},
		{"wrong flag", up("--drivesize", "1GiB"), "unknown flag"},
		{"missing value", []string{"dev", "up", "--dir"}, "--dir"},
		{"no directory", []string{"dev", "up", "--mount", c.Mount}, "--dir"},
		{"no mount point", []string{"dev", "up", "--dir", c.Dir}, "--mount"},
		{"extra argument", up("again"), "again"},
		{"mount point missing", with(c.Dir, filepath.Join(top, "none")), "mkdir -p"},
		{"mount point is a file", with(c.Dir, file), "no directory"},
		{"mount point not empty", with(c.Dir, full), "not empty"},
		{"mount point busy", with(c.Dir, busy), "busy"},
		{"directory is a file", with(file, c.Mount), "no directory"},
		{"directory below a file", with(filepath.Join(file, "c"), c.Mount), "no directory"},
		{"directory not empty", with(full, c.Mount), "not empty"},
		{"directory in the mount point", with(filepath.Join(c.Mount, "c"), c.Mount), "hide"},
		{"mount point in the directory", with(top, c.Mount), "lies in"},
		{"path too long for sockets", with(filepath.Join(top, strings.Repeat("long", 40)), c.Mount), "shorter"},
		{"port in use", up("--api", l.Addr().String()), "in use"},
		{"port of words", up("--api", "everywhere"), "127.0.0.1:14000"},
		{"down without a cluster", []string{"dev", "down", "--dir", full}, "holds no cluster"},
		{"wipe without a cluster", []string{"dev", "down", "--wipe", "--dir", full}, "holds no cluster"},
		{"status without a cluster", []string{"status", "--dir", c.Dir}, "holds no cluster"},
		{"unknown command", []string{"dev", "upp"}, "unknown command"},
	} {
		refused(t, b, traces(c))
	}
	if _, err := os.Stat(filepath.Join(full, "precious")); err != nil {
		t.Errorf("a file that is not ours is gone: %v", err)
	}
	notRoot(t, c)
}

// notRoot tries dev up as a user who may not mount.
func notRoot(t *testing.T, c *devcluster.Cluster) {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "crake-e2e-")
	must(t, err)
	defer os.RemoveAll(dir)
	must(t, os.Chmod(dir, 0o755))
	bin := filepath.Join(dir, "crake")
	command(t, time.Minute, "", nil, "cp", crakeBin, bin)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, "dev", "up", "--dir", filepath.Join(dir, "c"), "--mount", c.Mount)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err == nil || !strings.Contains(stderr.String(), "root") || strings.Count(stderr.String(), "\n") != 1 {
		t.Errorf("as nobody: %v, %q; want one line that asks for root", err, stderr.String())
	}
}

// Claim 7: bad input to a cluster that runs, and to one that is stopped.
func TestS7BadInputToACluster(t *testing.T) {
	c := start(t, devcluster.Options{DriveSize: "128MiB"})
	_, err := c.Crake("fs", "create", "--dir", c.Dir, "full")
	must(t, err)
	mnt := addMount(t, c, "full")
	must(t, os.WriteFile(filepath.Join(mnt, "f"), nil, 0o600))
	_, err = c.Crake("umount", mnt)
	must(t, err)
	other, err := c.AddMount()
	must(t, err)
	in := func(args ...string) []string { return append(args, "--dir", c.Dir) }
	up := func(extra ...string) []string {
		return append([]string{"dev", "up", "--dir", c.Dir, "--mount", c.Mount}, extra...)
	}
	both := []badInput{
		{"other number of drives", up("--drives", "8"), "contradicts"},
		{"other drive size", up("--drive-size", "1GiB"), "contradicts"},
		{"other protection", up("--protection", "3+2"), "contradicts"},
		{"other number of buckets", up("--buckets", "8"), "contradicts"},
	}
	running := func() string { return fmt.Sprint(c.PIDs(), c.Mounts()) }
	for _, b := range append(both, []badInput{
		{"up at another mount point", []string{"dev", "up", "--dir", c.Dir, "--mount", other}, "crake mount"},
		{"second cluster at the same mount point", []string{"dev", "up", "--dir", c.Dir + "2", "--mount", c.Mount, "--drive-size", "128MiB"}, "busy"},
		{"filesystem that is there", in("fs", "create", "default"), "default"},
		{"filesystem with a bad name", in("fs", "create", "a/b"), "a/b"},
		{"filesystem without a name", in("fs", "create", ""), ""},
		{"remove a mounted filesystem", in("fs", "rm", "default"), "mounted"},
		{"remove a full filesystem", in("fs", "rm", "full"), "empty"},
		{"remove no filesystem", in("fs", "rm", "none"), "none"},
		{"mount no filesystem", in("mount", "none", other), "none"},
		{"mount at a missing directory", in("mount", "default", c.Dir+"-none"), "mkdir"},
		{"mount at a busy directory", in("mount", "default", c.Mount), "busy"},
		{"unmount what is not mounted", in("umount", other), other},
		{"bad severity", in("events", "--severity", "loud"), "severity"},
		{"bad format", in("status", "-f", "xml"), "table"},
	}...) {
		refused(t, b, running)
	}
	must(t, writeSynced(filepath.Join(c.Mount, "still"), []byte("works")))

	// A mount point in use: refused, and everything goes on.
	f, err := os.Open(filepath.Join(c.Mount, "still"))
	must(t, err)
	refused(t, badInput{"stop while a file is open", in("dev", "down"), "in use"}, running)
	must(t, f.Close())
	healthy(t, c)

	must(t, c.Down())
	for _, b := range append(both, []badInput{
		{"status of a stopped cluster", in("status"), "dev up"},
		{"mount of a stopped cluster", in("mount", "default", other), "dev up"},
		{"ps of a stopped cluster", in("dev", "ps"), "dev up"},
	}...) {
		refused(t, b, traces(c))
	}
	// More drives away than the protection bears: refused before anything starts.
	drives, err := filepath.Glob(filepath.Join(c.Dir, "drives", "*"))
	must(t, err)
	for _, d := range drives[:3] {
		must(t, os.Rename(d, d+".away"))
	}
	refused(t, badInput{"three drives away", up(), "3 of 6 drives are missing"}, traces(c))
	for _, d := range drives[:3] {
		must(t, os.Rename(d+".away", d))
	}
	must(t, c.Up())
	if got, err := os.ReadFile(filepath.Join(c.Mount, "still")); err != nil || string(got) != "works" {
		t.Errorf("after all that: %q, %v", got, err)
	}
}

// Claim 7: a device that holds something is never formatted, and a drive process does not open a foreign one.
func TestS7ForeignDevice(t *testing.T) {
	c := prepare(t, devcluster.Options{})
	dir := c.Scratch()
	const size = 128 << 20
	id := strings.Repeat("ab", 16)
	device := func(name string, put map[int64][]byte) string {
		path := filepath.Join(dir, name)
		f, err := os.Create(path)
		must(t, err)
		must(t, f.Truncate(size))
		for at, b := range put {
			_, err := f.WriteAt(b, at)
			must(t, err)
		}
		must(t, f.Close())
		return path
	}
	format := func(path, cluster string) []string {
		return []string{"drive", "format", path, "--cluster", cluster, "--drive-id", "1"}
	}
	ours := device("ours", nil)
	_, err := devcluster.Run(crakeBin, format(ours, id)...)
	must(t, err)
	for _, b := range []badInput{
		{"an ext4 filesystem", format(device("ext4", map[int64][]byte{1080: {0x53, 0xef}, 1024: bytes.Repeat([]byte{1}, 56)}), id), ""},
		{"a partition table", format(device("mbr", map[int64][]byte{510: {0x55, 0xaa}, 446: {0x80, 1, 1, 0, 0x83}}), id), ""},
		{"text", format(device("text", map[int64][]byte{0: []byte("my thesis")}), id), ""},
		{"a drive of another cluster", format(ours, strings.Repeat("cd", 16)), "another cluster (" + id},
		{"a drive of this cluster", format(ours, id), "already"},
		{"no such device", format(filepath.Join(dir, "none"), id), "size"},
		{"a directory", format(dir, id), ""},
		{"a device too small", format(small(t, dir), id), ""},
		{"a cluster id that is none", format(ours, "xyz"), "32 hexadecimal"},
		{"no cluster id", []string{"drive", "format", ours, "--drive-id", "1"}, "--cluster"},
		{"no drive id", []string{"drive", "format", ours, "--cluster", id}, "--drive-id"},
	} {
		refused(t, b, traces(c))
	}
	if got, err := os.ReadFile(filepath.Join(dir, "text")); err != nil || string(got[:9]) != "my thesis" {
		t.Errorf("the refused device was changed: %.9q, %v", got, err)
	}
}

func small(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "small")
	must(t, os.WriteFile(path, make([]byte, 8192), 0o600))
	return path
}
