package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
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

// Claim 4, of the wire: PROTOCOL.md and MESSAGES.md are enough to write a client in another language. One in Python, which has only them
// to go by, shakes hands, proves who it is where that is wanted, registers, finds owners by the map, walks the tree, reads all files from the
// drives and verifies all checksums: and finds what the mount shows. Also when two drives are out, and it must compute what lay there.
func TestS4WClientInAnotherLanguage(t *testing.T) {
	c := start(t, devcluster.Options{})
	r := random(t)
	plantTree(t, c.Mount, r)
	slot := takeSlot(t, c)
	args := []string{pythonClient(t), "--mgmt", "unix:" + filepath.Join(c.Dir, "run/mgmt.sock"), "--slot", slot.Name, "--pid", fmt.Sprint(slot.PID)}
	if id := flagOf(t, slot.PID, "--identity"); id != "" {
		args = append(args, "--identity", id)
	}
	compareClient(t, c, append(args, "tree"))
	for _, drive := range []string{"2", "5"} {
		_, err := c.Crake("cluster", "drive", "deactivate", drive, "--dir", c.Dir)
		must(t, err)
	}
	compareClient(t, c, append(args, "tree"))
}

// compareClient runs the client and compares all that it says with the mount.
func compareClient(t *testing.T, c *devcluster.Cluster, args []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "python3", append([]string{"-B"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("the client: %v\n%s", err, stderr.Bytes())
	}
	got := map[string]clientFile{}
	for line := range strings.Lines(string(out)) {
		var f clientFile
		must(t, json.Unmarshal([]byte(line), &f))
		got[f.Path] = f
	}
	files := 0
	must(t, filepath.WalkDir(c.Mount, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel := strings.TrimPrefix(strings.TrimPrefix(path, c.Mount), "/")
		f, ok := got[rel]
		delete(got, rel)
		if !ok {
			t.Errorf("%s: the client did not find it", rel)
			return nil
		}
		if why := f.differs(path); why != "" {
			t.Errorf("%s: %s", rel, why)
		}
		files++
		return nil
	}))
	for path := range got {
		t.Errorf("%s: only the client has it", path)
	}
	t.Logf("the client described %d files and directories", files)
}

// clientFile is a line of what the client prints.
type clientFile struct {
	Path   string `json:"path"`
	Ino    uint64 `json:"ino"`
	Mode   uint32 `json:"mode"`
	UID    uint32 `json:"uid"`
	GID    uint32 `json:"gid"`
	Size   int64  `json:"size"`
	Mtime  int64  `json:"mtime"`
	SHA256 string `json:"sha256"`
	Target string `json:"target"`
}

// differs compares with what a mount shows.
func (f *clientFile) differs(path string) string {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err.Error()
	}
	want := clientFile{Path: f.Path, Ino: st.Ino, Mode: st.Mode, UID: st.Uid, GID: st.Gid, Size: st.Size, Mtime: st.Mtim.Nano()}
	if f.Path == "" {
		want.Ino = f.Ino // FUSE calls every root 1
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		s, err := sum(path)
		if err != nil {
			return err.Error()
		}
		want.SHA256 = s
	case unix.S_IFLNK:
		target, err := os.Readlink(path)
		if err != nil {
			return err.Error()
		}
		want.Target = target
	case unix.S_IFDIR:
		f.Size, want.Size = 0, 0 // the mount may show another number than that of the names
	}
	if want != *f {
		return fmt.Sprintf("the client says %+v, the mount %+v", *f, want)
	}
	return ""
}

// plantTree makes files of every form: in the inode record, in segments, in stripes, over regions, with holes, and other inodes.
func plantTree(t *testing.T, top string, r *rand.Rand) {
	t.Helper()
	dir := filepath.Join(top, "dir/deeper")
	must(t, os.MkdirAll(dir, 0o750))
	content := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	for name, n := range map[string]int{"empty": 0, "inline": 1000, "segment": 20_001, "stripe": 300_000, "regions": 9<<20 + 12_345} {
		must(t, writeSynced(filepath.Join(dir, name), content(n)))
	}
	holes, err := os.Create(filepath.Join(top, "holes"))
	must(t, err)
	for _, off := range []int64{70_000, 5 << 20} {
		_, err := holes.WriteAt(content(100_000), off)
		must(t, err)
	}
	must(t, holes.Truncate(6<<20))
	must(t, holes.Sync())
	must(t, holes.Close())
	must(t, os.Symlink("../some where/ä", filepath.Join(top, "dir/link")))
	must(t, unix.Mkfifo(filepath.Join(top, "fifo"), 0o600))
	must(t, os.Mkdir(filepath.Join(top, "many"), 0o755))
	for i := range 250 { // more than the client asks for at once
		must(t, os.WriteFile(filepath.Join(top, "many", fmt.Sprintf("file %d", i)), content(i%7), 0o640))
	}
	unix.Sync()
}

// pythonClient gives the path of the client.
func pythonClient(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("../../wire/testdata/client/crake_client.py")
	must(t, err)
	return path
}

// takeSlot makes a second mount and stops its frontend, so that somebody else can be the process of that slot: with its pid, nobody will
// kill the one or start another.
func takeSlot(t *testing.T, c *devcluster.Cluster) devcluster.Process {
	t.Helper()
	before, err := c.Find("frontend")
	must(t, err)
	addMount(t, c, "default")
	after, err := c.Find("frontend")
	must(t, err)
	for _, p := range after {
		if p.Name != before[0].Name {
			must(t, syscall.Kill(p.PID, syscall.SIGSTOP))
			t.Cleanup(func() { _ = syscall.Kill(p.PID, syscall.SIGKILL) })
			return p
		}
	}
	t.Fatalf("no second frontend: %+v", after)
	return devcluster.Process{}
}

// flagOf gives the value of a flag on a process's command line, or "".
func flagOf(t *testing.T, pid int, flag string) string {
	t.Helper()
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	must(t, err)
	words := strings.Split(string(line), "\x00")
	for i, w := range words[:len(words)-1] {
		if w == flag {
			return words[i+1]
		}
	}
	return ""
}

// Claim: the frames of a running process can be taken without a restart and read: methods, names in messages, answers with their
// times, errors; and the process forgets about it.
func TestS4WCaptureAndDump(t *testing.T) {
	c := start(t, devcluster.Options{})
	file := filepath.Join(c.Scratch(), "frontend.cap")
	front, err := c.Find("frontend")
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, crakeBin, "wire", "capture", front[0].Name, "--dir", c.Dir, "--data", "16", "-o", file)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	must(t, cmd.Start())
	eventually(t, 20*time.Second, func() string { // its header is written when frames are kept
		if st, err := os.Stat(file); err != nil || st.Size() == 0 {
			return "nothing is captured yet"
		}
		return ""
	})
	must(t, writeSynced(filepath.Join(c.Mount, "remarkable name"), []byte("x")))
	must(t, os.Remove(filepath.Join(c.Mount, "remarkable name")))
	must(t, cmd.Process.Signal(syscall.SIGINT))
	must(t, cmd.Wait())
	out, err := c.Crake("wire", "dump", "-f", "json", file)
	must(t, err)
	type frame struct {
		Type    string         `json:"type"`
		Kind    string         `json:"kind"`
		Method  string         `json:"method"`
		Took    int64          `json:"took_ns"`
		Message map[string]any `json:"message"`
		Problem string         `json:"problem"`
		Text    string         `json:"text"`
	}
	var last frame
	asked, answered := 0, 0
	for line := range strings.Lines(string(out)) {
		last = frame{}
		must(t, json.Unmarshal([]byte(line), &last))
		if last.Problem != "" {
			t.Errorf("a frame that cannot be read: %s", line)
		}
		if last.Method == "Create" && last.Kind == "request" && last.Message["Name"] == "remarkable name" {
			asked++
		}
		if last.Method == "Create" && last.Kind == "response" && last.Took > 0 {
			answered++
		}
	}
	if asked == 0 || answered == 0 || last.Type != "end" {
		t.Errorf("%d requests for the name, %d answers with their time; the last record is %+v", asked, answered, last)
	}
	out, err = c.Crake("wire", "dump", "-v", "--method", "create", file)
	must(t, err)
	if !strings.Contains(string(out), "request Create id ") || !strings.Contains(string(out), `Name: "remarkable name"`) || strings.Contains(string(out), "Heartbeat") {
		t.Errorf("lines:\n%s", tail(out, 2000))
	}
}
