package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/bench/internal/devcluster"
)

// What the POSIX table cannot say by a transcript: mappings, locks that wait, lists that change, space.
func TestFiles(t *testing.T) {
	c := start(t, devcluster.Options{})
	t.Run("Mmap", func(t *testing.T) { mmapFile(t, c.Mount) })
	t.Run("Flock", func(t *testing.T) { flockFile(t, c.Mount) })
	t.Run("FcntlLocks", func(t *testing.T) { fcntlLocks(t, c.Mount) })
	t.Run("Readdir", func(t *testing.T) { readdirChanging(t, c.Mount) })
	t.Run("Statfs", func(t *testing.T) { statfs(t, c.Mount) })
	t.Run("Execute", func(t *testing.T) { executeFrom(t, c.Mount) })
	t.Run("ManyOpen", func(t *testing.T) { manyOpen(t, c.Mount) })
}

// A shared mapping writes the file, sees what write writes, and lives on after close.
func mmapFile(t *testing.T, mount string) {
	path := filepath.Join(mount, "mapped")
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	const size = 300_000
	want := make([]byte, size)
	fill(want, 3)
	_, err = f.Write(want)
	must(t, err)
	m, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	if !bytes.Equal(m, want) {
		t.Fatal("the mapping does not show what was written")
	}
	for i := 0; i < size; i += 1000 {
		m[i] ^= 0xff
		want[i] ^= 0xff
	}
	must(t, unix.Msync(m, unix.MS_SYNC))
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read does not see what the mapping wrote and synced: %v", err)
	}
	must(t, f.Close())
	m[5], want[5] = 1, 1
	must(t, unix.Munmap(m))
	dropCaches(t)
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("what was written into the mapping after close is lost: %v", err)
	}
	// A private mapping does not write.
	f, err = os.Open(path)
	must(t, err)
	defer f.Close()
	p, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	must(t, err)
	p[0] ^= 0xff
	must(t, unix.Munmap(p))
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("a private mapping changed the file: %v", err)
	}
}

func flockFile(t *testing.T, mount string) {
	path := filepath.Join(mount, "flocked")
	open := func() *os.File {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		must(t, err)
		return f
	}
	a, b := open(), open()
	defer b.Close()
	must(t, unix.Flock(int(a.Fd()), unix.LOCK_SH))
	must(t, unix.Flock(int(b.Fd()), unix.LOCK_SH|unix.LOCK_NB))
	if err := unix.Flock(int(b.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("an upgrade while another shares: %v", err)
	}
	must(t, unix.Flock(int(a.Fd()), unix.LOCK_UN))
	must(t, unix.Flock(int(b.Fd()), unix.LOCK_EX|unix.LOCK_NB))
	got := make(chan error, 1)
	go func() { got <- unix.Flock(int(a.Fd()), unix.LOCK_EX) }()
	time.Sleep(100 * time.Millisecond)
	must(t, b.Close())
	select {
	case err := <-got:
		must(t, err)
	case <-time.After(5 * time.Second):
		t.Fatal("a close did not wake the waiter")
	}
	must(t, a.Close())
	// A waiter that is interrupted by a signal gives up: flock(1) with a timeout gets SIGALRM.
	a = open()
	defer a.Close()
	must(t, unix.Flock(int(a.Fd()), unix.LOCK_EX))
	begin := time.Now()
	err := exec.Command("flock", "-w", "1", path, "true").Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || time.Since(begin) > 10*time.Second {
		t.Errorf("flock -w 1 on a held lock: %v after %v", err, time.Since(begin))
	}
}

func fcntlLocks(t *testing.T, mount string) {
	path := filepath.Join(mount, "ranges")
	must(t, os.WriteFile(path, make([]byte, 1000), 0o600))
	open := func() *os.File {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		must(t, err)
		return f
	}
	a, b := open(), open()
	defer a.Close()
	defer b.Close()
	lock := func(f *os.File, cmd int, typ int16, start, length int64) (unix.Flock_t, error) {
		lk := unix.Flock_t{Type: typ, Whence: io.SeekStart, Start: start, Len: length}
		err := unix.FcntlFlock(f.Fd(), cmd, &lk)
		return lk, err
	}
	ok := func(f *os.File, typ int16, start, length int64) {
		t.Helper()
		if _, err := lock(f, unix.F_OFD_SETLK, typ, start, length); err != nil {
			t.Errorf("lock %d at %d+%d: %v", typ, start, length, err)
		}
	}
	held := func(f *os.File, typ int16, start, length int64) {
		t.Helper()
		if _, err := lock(f, unix.F_OFD_SETLK, typ, start, length); !errors.Is(err, unix.EAGAIN) {
			t.Errorf("lock %d at %d+%d: %v, want EAGAIN", typ, start, length, err)
		}
	}
	ok(a, unix.F_WRLCK, 100, 100)
	held(b, unix.F_RDLCK, 150, 1)
	ok(b, unix.F_WRLCK, 200, 100)
	ok(a, unix.F_UNLCK, 140, 20) // splits
	ok(b, unix.F_WRLCK, 140, 20)
	held(b, unix.F_WRLCK, 139, 1)
	held(b, unix.F_WRLCK, 160, 1)
	held(b, unix.F_WRLCK, 0, 0) // to the end of the file and beyond
	if lk, err := lock(b, unix.F_OFD_GETLK, unix.F_WRLCK, 0, 0); err != nil || lk.Type != unix.F_WRLCK || lk.Start != 100 || lk.Len != 40 {
		t.Errorf("who holds it: %+v, %v", lk, err)
	}
	ok(a, unix.F_RDLCK, 100, 40) // downgrades
	ok(b, unix.F_RDLCK, 100, 40)
	got := make(chan error, 1)
	go func() {
		_, err := lock(b, unix.F_OFD_SETLKW, unix.F_WRLCK, 170, 10)
		got <- err
	}()
	select {
	case err := <-got:
		t.Fatalf("did not wait: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	ok(a, unix.F_UNLCK, 0, 0)
	select {
	case err := <-got:
		must(t, err)
	case <-time.After(5 * time.Second):
		t.Fatal("the waiter was not woken")
	}
	// A classic lock of a process that ends is gone; sqlite3 lives on these (s1).
	must(t, b.Close())
	// The kernel tells a FUSE filesystem of the last close behind the caller's back, so these locks go a moment after it.
	eventually(t, 5*time.Second, func() string {
		if _, err := lock(a, unix.F_OFD_SETLK, unix.F_WRLCK, 0, 0); err != nil {
			return err.Error()
		}
		return ""
	})
}

// A list taken while names come and go holds every name that was there all the time, each once.
func readdirChanging(t *testing.T, mount string) {
	dir := filepath.Join(mount, "list")
	must(t, os.Mkdir(dir, 0o755))
	const stable = 1500
	for i := range stable {
		must(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("stable%d", i)), nil, 0o600))
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 2 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				name := filepath.Join(dir, fmt.Sprintf("w%d-%d", w, i%300))
				if err := os.WriteFile(name, nil, 0o600); err != nil {
					t.Error(err)
					return
				}
				if i%2 == 0 {
					if err := os.Rename(name, name+"x"); err != nil {
						t.Error(err)
						return
					}
					name += "x"
				}
				if err := os.Remove(name); err != nil {
					t.Error(err)
					return
				}
			}
		}()
	}
	for range 8 {
		f, err := os.Open(dir)
		must(t, err)
		seen := map[string]int{}
		for {
			names, err := f.Readdirnames(64)
			for _, n := range names {
				seen[n]++
			}
			if err == io.EOF {
				break
			}
			must(t, err)
		}
		must(t, f.Close())
		for i := range stable {
			if n := seen[fmt.Sprintf("stable%d", i)]; n != 1 {
				t.Fatalf("stable%d is listed %d times", i, n)
			}
		}
	}
	close(stop)
	wg.Wait()
	seekdir(t, dir)
	must(t, os.RemoveAll(dir))
}

// seekdir: a place in a list that was told earlier leads to the same rest, also through another open of the directory.
func seekdir(t *testing.T, dir string) {
	t.Helper()
	read := func(f *os.File, room int) (names []string, next int64) {
		buf := make([]byte, room)
		n, err := unix.Getdents(int(f.Fd()), buf)
		must(t, err)
		next, err = unix.Seek(int(f.Fd()), 0, io.SeekCurrent)
		must(t, err)
		_, _, names = unix.ParseDirent(buf[:n], -1, nil)
		return names, next
	}
	a, err := os.Open(dir)
	must(t, err)
	defer a.Close()
	_, place := read(a, 4096)
	first, _ := read(a, 4096)
	b, err := os.Open(dir)
	must(t, err)
	defer b.Close()
	_, err = unix.Seek(int(b.Fd()), place, io.SeekStart)
	must(t, err)
	again, _ := read(b, 4096)
	if fmt.Sprint(first) != fmt.Sprint(again) || len(first) == 0 {
		t.Errorf("the same place gives another rest: %v and %v", first, again)
	}
}

func statfs(t *testing.T, mount string) {
	var before, after unix.Statfs_t
	time.Sleep(1500 * time.Millisecond) // what statfs tells may be a second old, and logs grew for the files before
	must(t, unix.Statfs(mount, &before))
	if before.Bsize < 512 || before.Blocks == 0 || before.Bavail == 0 || before.Bavail > before.Blocks || before.Namelen != 255 {
		t.Errorf("statfs: %+v", before)
	}
	path := filepath.Join(mount, "space")
	must(t, writeSynced(path, make([]byte, 16<<20)))
	eventually(t, 15*time.Second, func() string {
		must(t, unix.Statfs(mount, &after))
		if used := int64(before.Bavail-after.Bavail) * after.Bsize; used < 12<<20 {
			return fmt.Sprintf("16 MiB were written, statfs tells of %d bytes less", used)
		}
		return ""
	})
	must(t, os.Remove(path))
	eventually(t, 20*time.Second, func() string {
		must(t, unix.Statfs(mount, &after))
		if gone := (int64(before.Bavail) - int64(after.Bavail)) * after.Bsize; gone > 8<<20 {
			return fmt.Sprintf("16 MiB were removed, %d bytes of them are still away", gone)
		}
		return ""
	})
}

// A program on the mount runs: the kernel maps it.
func executeFrom(t *testing.T, mount string) {
	path := filepath.Join(mount, "true")
	src, err := exec.LookPath("true")
	must(t, err)
	b, err := os.ReadFile(src)
	must(t, err)
	must(t, os.WriteFile(path, b, 0o755))
	command(t, 20*time.Second, "", nil, path)
	// A text file that is being executed cannot be written.
	script := filepath.Join(mount, "script")
	must(t, os.WriteFile(script, []byte("#!/bin/sh\necho from the mount\n"), 0o755))
	if out := command(t, 20*time.Second, "", nil, script); out != "from the mount\n" {
		t.Errorf("the script said %q", out)
	}
}

// Many open and unlinked files at once.
func manyOpen(t *testing.T, mount string) {
	var files []*os.File
	for i := range 400 {
		f, err := os.Create(filepath.Join(mount, fmt.Sprintf("open%d", i)))
		must(t, err)
		files = append(files, f)
		_, err = fmt.Fprintf(f, "file %d", i)
		must(t, err)
		must(t, os.Remove(f.Name()))
	}
	for i, f := range files {
		b := make([]byte, 50)
		n, err := f.ReadAt(b, 0)
		if string(b[:n]) != fmt.Sprintf("file %d", i) {
			t.Errorf("file %d holds %q, %v", i, b[:n], err)
		}
		must(t, f.Close())
	}
}
