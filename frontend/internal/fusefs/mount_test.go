package fusefs

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/frontend/internal/core"
	"github.com/crakefs/crake/frontend/internal/fake"
	"github.com/crakefs/crake/frontend/internal/mnt"
	"github.com/crakefs/crake/wire"
)

// childEnv names the part that this test binary plays when it is started by a test: a process must not use what it serves.
const childEnv = "CRAKE_FUSEFS_CHILD"

func TestMain(m *testing.M) {
	if part, dir, ok := strings.Cut(os.Getenv(childEnv), ":"); ok {
		if err := children[part](dir); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// mounted serves a cluster in memory at a temporary directory, for session 1.
func mounted(t *testing.T) (f *fake.Cluster, dir string) {
	t.Helper()
	dir = t.TempDir()
	f = fake.New(t)
	served, err := serve(f, dir, t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if lazy, err := mnt.Unmount(dir, 5*time.Second); lazy || err != nil {
			t.Errorf("unmount: lazy %v, %v", lazy, err)
		}
		select {
		case <-served:
		case <-time.After(10 * time.Second):
			t.Error("the server goes on after the unmount")
		}
	})
	return f, dir
}

func serve(f *fake.Cluster, dir string, ctx context.Context) (<-chan struct{}, error) {
	var fs *FS
	c := newCore(f, 1, ctx, func(ino wire.Ino) { fs.DropPages(ino) })
	fs = New(c)
	return fs.Mount(dir, "crake/test", slog.Default())
}

func newCore(f *fake.Cluster, s wire.SessionID, ctx context.Context, drop func(wire.Ino)) *core.FS {
	c, err := core.New(core.Config{Session: s, FS: wire.FSInfo{ID: 1, Root: f.Root()}, Cluster: f.Conn(s), Blocks: f, Arena: f.Arena,
		DirtyBytes: 32 << 20, ReadBytes: 32 << 20, DropPages: drop})
	if err != nil {
		panic(err)
	}
	f.Attach(s, c)
	go func() { _ = c.Run(context.WithoutCancel(ctx)) }()
	return c
}

// child starts a part in a process of its own.
func child(t *testing.T, part, dir string) (cmd *exec.Cmd, in io.WriteCloser, out *bufio.Scanner) {
	t.Helper()
	cmd = exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+part+":"+dir)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	r, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd, in, bufio.NewScanner(r)
}

func expect(t *testing.T, out *bufio.Scanner, want string) {
	t.Helper()
	got := make(chan string, 1)
	go func() {
		out.Scan()
		got <- out.Text()
	}()
	select {
	case s := <-got:
		if s != want {
			t.Fatalf("the child says %q, want %q", s, want)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("the child does not say %q", want)
	}
}

// Claim: what applications do with files works through the kernel: see posix.
func TestPosix(t *testing.T) {
	_, dir := mounted(t)
	_, _, out := child(t, "posix", dir)
	expect(t, out, "ok")
}

// Claim: signals do not end calls: no EINTR but for who waits for a lock.
func TestSignals(t *testing.T) {
	f, dir := mounted(t)
	f.SetHook(func(wire.SessionID, wire.BucketID, wire.Method, wire.Message) error {
		time.Sleep(3 * time.Millisecond) // several signals come meanwhile
		return nil
	})
	_, _, out := child(t, "signals", dir)
	expect(t, out, "ok")
	f.SetHook(nil)
}

// Claim: a call that waits for an unavailable cluster can be killed, and only that.
func TestKill(t *testing.T) {
	f, dir := mounted(t)
	f.SetHook(func(_ wire.SessionID, _ wire.BucketID, m wire.Method, _ wire.Message) error {
		if m == wire.MCreate {
			return fake.Err(wire.KindUnavailable)
		}
		return nil
	})
	cmd, _, out := child(t, "stuck", dir)
	expect(t, out, "going")
	time.Sleep(200 * time.Millisecond)
	if err := cmd.Process.Signal(unix.SIGURG); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Error("the process lives")
		f.SetHook(nil)
		<-done
	}
	f.SetHook(nil)
}

// Claim: a mapping shows what another client wrote after the recall, and what was stored through a mapping is seen by others.
func TestMmapCoherence(t *testing.T) {
	f, dir := mounted(t)
	other := newCore(f, 2, t.Context(), nil)
	_, in, out := child(t, "mmap", dir)
	expect(t, out, "mapped")
	ctx := context.Background()
	a, err := other.Lookup(ctx, f.Root(), "m")
	if err != nil {
		t.Fatal(err)
	}
	h, err := other.Open(ctx, a.Ino, unix.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	b, err := other.Read(ctx, h, 0, 8, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(b.Slices()[0][:6]); got != "stored" {
		t.Errorf("another client reads %q", got)
	}
	b.Done()
	if _, err := other.Write(ctx, h, core.Write{Data: []byte("remote")}); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(in, "look\n")
	expect(t, out, "remote")
}

// Claim: the mount that a killed server leaves behind is found dead and taken away; a live one is refused.
func TestDeadMount(t *testing.T) {
	dir := t.TempDir()
	cmd, _, out := child(t, "server", dir)
	expect(t, out, "mounted")
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	if err := mnt.Prepare(dir, "fuse.crake", "crake/test"); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a live mount: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if err := mnt.Prepare(dir, "fuse.crake", "crake/other"); err == nil {
		t.Error("a dead mount of another filesystem was taken away")
	}
	if err := mnt.Prepare(dir, "fuse.crake", "crake/test"); err != nil {
		t.Errorf("a dead mount: %v", err)
	}
	if e, err := mnt.Find(dir); e != nil || err != nil {
		t.Errorf("still there: %+v, %v", e, err)
	}
	if _, err := os.ReadDir(filepath.Clean(dir)); err != nil {
		t.Error(err)
	}
}
