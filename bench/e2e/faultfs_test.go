package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/bench/internal/devcluster"
)

// faultFS shows files at another place, where their IO can be made slow, or hang. To a drive it is a filesystem as any other, so
// nothing in the product has to know of faults.
type faultFS struct {
	fs.Inode
	files []*faultFile
	where string // mount point
}

// faultFile is a file of it.
type faultFile struct {
	fs.Inode
	f    *os.File
	name string

	mu    sync.Mutex
	delay time.Duration // of every read, write and fsync
	gate  chan struct{} // IO waits until it is closed; nil: it does not
}

var (
	_ fs.NodeOnAdder   = (*faultFS)(nil)
	_ fs.NodeOpener    = (*faultFile)(nil)
	_ fs.NodeGetattrer = (*faultFile)(nil)
	_ fs.NodeReader    = (*faultFile)(nil)
	_ fs.NodeWriter    = (*faultFile)(nil)
	_ fs.NodeFsyncer   = (*faultFile)(nil)
)

// startFaultFS shows files, by their base names, until the test ends.
func startFaultFS(t *testing.T, c *devcluster.Cluster, paths []string) *faultFS {
	t.Helper()
	x := &faultFS{where: filepath.Join(c.Scratch(), "faults")}
	must(t, os.Mkdir(x.where, 0o755))
	for _, p := range paths {
		f, err := os.OpenFile(p, os.O_RDWR, 0)
		must(t, err)
		x.files = append(x.files, &faultFile{f: f, name: filepath.Base(p)})
	}
	srv, err := fs.Mount(x.where, x, &fs.Options{MountOptions: fuse.MountOptions{
		DirectMount: true, FsName: "crake-faults", Name: "crakefaults", MaxWrite: 1 << 20, MaxBackground: 256,
	}})
	must(t, err)
	t.Cleanup(func() {
		for _, f := range x.files {
			f.set(0, false)
		}
		_ = c.Down() // nobody must have the files open
		if err := unix.Unmount(x.where, 0); err != nil {
			t.Errorf("unmount %s: %v", x.where, err)
			_ = unix.Unmount(x.where, unix.MNT_DETACH)
		}
		srv.Wait()
		for _, f := range x.files {
			_ = f.f.Close()
		}
	})
	return x
}

// path gives where a file is shown.
func (x *faultFS) path(i int) string { return filepath.Join(x.where, x.files[i].name) }

// OnAdd implements fs.NodeOnAdder.
func (x *faultFS) OnAdd(ctx context.Context) {
	for i, f := range x.files {
		x.AddChild(f.name, x.NewPersistentInode(ctx, f, fs.StableAttr{Mode: syscall.S_IFREG, Ino: uint64(i + 2)}), false)
	}
}

// set makes every IO take so long from now on, or hang until the next set.
func (f *faultFile) set(delay time.Duration, hang bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.delay = delay
	if f.gate != nil {
		close(f.gate)
		f.gate = nil
	}
	if hang {
		f.gate = make(chan struct{})
	}
}

// suffer waits as long as the test wants; an IO whose asker was killed goes on.
func (f *faultFile) suffer(ctx context.Context) {
	f.mu.Lock()
	delay, gate := f.delay, f.gate
	f.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
		}
	}
	time.Sleep(delay)
}

// Open implements fs.NodeOpener.
func (f *faultFile) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

// Getattr implements fs.NodeGetattrer.
func (f *faultFile) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	var st syscall.Stat_t
	if err := syscall.Fstat(int(f.f.Fd()), &st); err != nil {
		return fs.ToErrno(err)
	}
	out.FromStat(&st)
	return 0
}

// Read implements fs.NodeReader.
func (f *faultFile) Read(ctx context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	f.suffer(ctx)
	n, err := unix.Pread(int(f.f.Fd()), dest, off)
	if err != nil {
		return nil, fs.ToErrno(err)
	}
	return fuse.ReadResultData(dest[:n]), 0
}

// Write implements fs.NodeWriter.
func (f *faultFile) Write(ctx context.Context, _ fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	f.suffer(ctx)
	n, err := unix.Pwrite(int(f.f.Fd()), data, off)
	return uint32(max(n, 0)), fs.ToErrno(err)
}

// Fsync implements fs.NodeFsyncer.
func (f *faultFile) Fsync(ctx context.Context, _ fs.FileHandle, _ uint32) syscall.Errno {
	f.suffer(ctx)
	return 0
}

// A drive whose device becomes slow is told of, then failed, while its peers set the measure; one whose device hangs is failed
// as well. The load goes on, and both are used again when they are well.
func TestS9SlowAndHungDevices(t *testing.T) {
	t.Parallel() // it mostly waits
	c := prepare(t, devcluster.Options{Drives: 7, DriveSize: "256MiB"})
	must(t, c.Up())
	must(t, c.Down())
	var paths []string
	for i := range 7 {
		paths = append(paths, filepath.Join(c.Dir, "drives", fmt.Sprintf("drive%d", i)))
	}
	x := startFaultFS(t, c, paths)
	moveDrives(t, c, func(id int, _ string) string { return x.path(id - 1) })
	must(t, c.Up())
	r := random(t)
	sums := map[string]string{"f": writeRandom(t, filepath.Join(c.Mount, "f"), 16<<20, r)}
	l := startLoad(t, filepath.Join(c.Mount, "load"), 2, r)
	l.alive(20, 20*time.Second)

	x.files[1].set(200*time.Millisecond, false)
	waitDrive(t, c, 2, "failed")
	saysFailed(t, c, 2, "those of its ") // 5 or 6 peers: one that was written to too little is no measure
	var events []event
	must(t, c.JSON(&events, "events", "--type", "drive.slow"))
	if !slices.ContainsFunc(events, func(e event) bool { return e.Severity == "warning" && e.Process == "drive1" }) {
		t.Errorf("no warning came first: %+v", events)
	}
	l.alive(20, 20*time.Second)
	if !testing.Short() {
		x.files[4].set(0, true)
		waitDrive(t, c, 5, "failed")
		saysFailed(t, c, 5, "the device hangs")
		l.alive(20, 20*time.Second)
	}
	t.Logf("%d files hold what was written; the slowest operation took %v", l.check(), time.Duration(l.slowest.Load()).Round(time.Millisecond))
	allThere(t, c, sums)
	for _, i := range []int{1, 4} {
		x.files[i].set(0, false)
		if d := oneDrive(t, c, i+1); d.State == "failed" {
			_, err := c.Crake("cluster", "drive", "activate", fmt.Sprint(i+1), "--dir", c.Dir)
			must(t, err)
			waitDrive(t, c, i+1, "up")
		}
	}
	allThere(t, c, sums)
	healthy(t, c)
}
