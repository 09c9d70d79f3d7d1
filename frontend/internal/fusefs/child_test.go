package fusefs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/frontend/internal/fake"
)

// children are the parts that this test binary plays: see childEnv.
var children = map[string]func(dir string) error{
	"posix": childPosix, "signals": childSignals, "stuck": childStuck, "mmap": childMmap, "server": childServer,
}

// childPosix uses the mount as applications do.
func childPosix(dir string) error {
	for _, step := range []struct {
		name string
		run  func(dir string) error
	}{
		{"files", posixFiles}, {"names", posixNames}, {"direct", posixDirect}, {"holes", posixHoles}, {"mmap", posixMmap},
		{"dirs", posixDirs}, {"locks", posixLocks}, {"errors", posixErrors},
	} {
		sub := filepath.Join(dir, step.name)
		if err := os.Mkdir(sub, 0o755); err != nil {
			return err
		}
		if err := step.run(sub); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	fmt.Println("ok")
	return nil
}

func check(ok bool, format string, args ...any) error {
	if ok {
		return nil
	}
	return fmt.Errorf(format, args...)
}

func pattern(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*7 + i>>9)
	}
	return p
}

func posixFiles(dir string) error {
	name := filepath.Join(dir, "f")
	p := pattern(3<<20 + 77)
	if err := os.WriteFile(name, p, 0o640); err != nil {
		return err
	}
	st, err := os.Stat(name)
	if err != nil {
		return err
	}
	if st.Size() != int64(len(p)) || st.Mode().Perm() != 0o640 {
		return fmt.Errorf("size %d mode %o", st.Size(), st.Mode())
	}
	got, err := os.ReadFile(name)
	if err != nil || !bytes.Equal(got, p) {
		return fmt.Errorf("read back %d bytes, %w", len(got), err)
	}
	f, err := os.OpenFile(name, os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString("tail"); err != nil {
		return err
	}
	if err := f.Truncate(int64(len(p)) + 2); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Remove(name); err != nil {
		return err
	}
	end := make([]byte, 10)
	n, _ := f.ReadAt(end, int64(len(p))-1)
	if string(end[1:n]) != "ta" {
		return fmt.Errorf("the end of an unlinked file is %q", end[1:n])
	}
	var s unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &s); err != nil || s.Nlink != 0 {
		return fmt.Errorf("%d links of an unlinked file, %w", s.Nlink, err)
	}
	// O_TRUNC of a file that exists.
	if err := os.WriteFile(name, p, 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(name, []byte("short"), 0o600); err != nil {
		return err
	}
	got, err = os.ReadFile(name)
	return errors.Join(err, check(string(got) == "short", "after O_TRUNC: %q", got))
}

func posixNames(dir string) error {
	a, b, c := filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "c")
	var errs []error
	step := func(err error) { errs = append(errs, err) }
	step(os.WriteFile(a, []byte("a"), 0o600))
	step(os.Link(a, b))
	step(os.Symlink("a", c))
	link, err := os.Readlink(c)
	step(errors.Join(err, check(link == "a", "link to %q", link)))
	step(os.Rename(a, filepath.Join(dir, "d")))
	_, err = os.Stat(c)
	step(check(os.IsNotExist(err), "a dangling link: %v", err))
	step(unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	step(unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
	var st unix.Stat_t
	step(unix.Lstat(filepath.Join(dir, "null"), &st))
	step(check(st.Mode&unix.S_IFMT == unix.S_IFCHR, "mode %o", st.Mode))
	err = unix.Renameat2(unix.AT_FDCWD, b, unix.AT_FDCWD, c, unix.RENAME_NOREPLACE)
	step(check(errors.Is(err, unix.EEXIST), "rename over a name with NOREPLACE: %v", err))
	step(os.Chmod(b, 0o600))
	step(os.Chtimes(b, time.Unix(1, 0), time.Unix(2, 5)))
	fi, err := os.Stat(b)
	step(err)
	if err == nil {
		step(check(fi.ModTime().Equal(time.Unix(2, 5)), "mtime %v", fi.ModTime()))
	}
	// The time that utimens set stays, though the data is published later.
	f, err := os.Create(filepath.Join(dir, "t"))
	step(err)
	_, err = f.WriteString("data")
	step(err)
	step(os.Chtimes(f.Name(), time.Unix(1, 0), time.Unix(2, 5)))
	step(f.Sync())
	fi, err = f.Stat()
	step(err)
	if err == nil {
		step(check(fi.ModTime().Equal(time.Unix(2, 5)), "mtime after the flush %v", fi.ModTime()))
	}
	step(f.Close())
	return errors.Join(errs...)
}

func aligned(n int) []byte {
	b := make([]byte, n+4096)
	skip := 4096 - int(uintptr(unsafe.Pointer(&b[0]))&4095)
	return b[skip : skip+n]
}

func posixDirect(dir string) error {
	name := filepath.Join(dir, "f")
	fd, err := unix.Open(name, unix.O_CREAT|unix.O_RDWR|unix.O_DIRECT, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	p := aligned(1 << 20)
	copy(p, pattern(len(p)))
	for i := range 4 {
		if n, err := unix.Pwrite(fd, p, int64(i)<<20); n != len(p) || err != nil {
			return fmt.Errorf("wrote %d, %w", n, err)
		}
	}
	got := aligned(1 << 20)
	if n, err := unix.Pread(fd, got, 2<<20); n != len(p) || err != nil || !bytes.Equal(got, p) {
		return fmt.Errorf("read %d, %w", n, err)
	}
	// Buffered and direct IO on one file see each other.
	buffered, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer buffered.Close()
	if _, err := buffered.WriteAt([]byte("buffered"), 5000); err != nil {
		return err
	}
	if _, err := unix.Pread(fd, got[:8192], 4096); err != nil || string(got[904:912]) != "buffered" {
		return fmt.Errorf("direct read sees %q, %w", got[904:912], err)
	}
	return nil
}

func posixHoles(dir string) error {
	f, err := os.Create(filepath.Join(dir, "f"))
	if err != nil {
		return err
	}
	defer f.Close()
	fd := int(f.Fd())
	if _, err := f.WriteAt(pattern(100000), 1<<20); err != nil {
		return err
	}
	at, err := unix.Seek(fd, 0, unix.SEEK_DATA)
	if err != nil || at != 1<<20 {
		return fmt.Errorf("data at %d, %w", at, err)
	}
	if at, err = unix.Seek(fd, 1<<20, unix.SEEK_HOLE); err != nil || at != 1<<20+100000 {
		return fmt.Errorf("hole at %d, %w", at, err)
	}
	if _, err = unix.Seek(fd, 2<<20, unix.SEEK_DATA); !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("behind the end: %w", err)
	}
	if err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 1<<20+100, 50000); err != nil {
		return err
	}
	got := make([]byte, 100000)
	if _, err := f.ReadAt(got, 1<<20); err != nil {
		return err
	}
	want := pattern(100000)
	clear(want[100:50100])
	if !bytes.Equal(got, want) {
		return errors.New("the hole has the wrong bytes")
	}
	if err := unix.Fallocate(fd, 0, 0, 5<<20); err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil || st.Size() != 5<<20 {
		return fmt.Errorf("size %d, %w", st.Size(), err)
	}
	err = unix.Fallocate(fd, unix.FALLOC_FL_COLLAPSE_RANGE, 0, 4096)
	return check(errors.Is(err, unix.EOPNOTSUPP), "collapse: %v", err)
}

func posixMmap(dir string) error {
	f, err := os.Create(filepath.Join(dir, "f"))
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(pattern(300000)); err != nil {
		return err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, 300000, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	if !bytes.Equal(m, pattern(300000)) {
		return errors.New("the mapping shows other bytes than were written")
	}
	copy(m[123456:], "by the mapping")
	if err := unix.Msync(m, unix.MS_SYNC); err != nil {
		return err
	}
	got := make([]byte, 14)
	if _, err := f.ReadAt(got, 123456); err != nil || string(got) != "by the mapping" {
		return fmt.Errorf("read %q after msync, %w", got, err)
	}
	if _, err := f.WriteAt([]byte("by write"), 200000); err != nil {
		return err
	}
	if string(m[200000:200008]) != "by write" {
		return fmt.Errorf("the mapping shows %q after a write", m[200000:200008])
	}
	return unix.Munmap(m)
}

func posixDirs(dir string) error {
	const n = 700
	for i := range n {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("file%d", i)), nil, 0o600); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != n {
		return fmt.Errorf("%d entries, %w", len(entries), err)
	}
	for _, e := range entries {
		if _, err := e.Info(); err != nil {
			return err
		}
	}
	if err := unix.Rmdir(dir); !errors.Is(err, unix.ENOTEMPTY) {
		return fmt.Errorf("rmdir of a full directory: %w", err)
	}
	for i := range n {
		if err := os.Remove(filepath.Join(dir, fmt.Sprintf("file%d", i))); err != nil {
			return err
		}
	}
	entries, err = os.ReadDir(dir)
	if err != nil || len(entries) != 0 {
		return fmt.Errorf("%d entries left, %w", len(entries), err)
	}
	// A directory that is removed while it is open.
	fd, err := unix.Open(dir, unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Rmdir(dir); err != nil {
		return err
	}
	_, err = unix.Openat(fd, "x", unix.O_CREAT|unix.O_RDWR, 0o600)
	var st unix.Stat_t
	serr := unix.Fstat(fd, &st)
	return errors.Join(check(errors.Is(err, unix.ENOENT), "create in a removed directory: %v", err),
		check(serr == nil && st.Nlink == 0, "fstat of a removed directory: %d links, %v", st.Nlink, serr))
}

func posixLocks(dir string) error {
	name := filepath.Join(dir, "f")
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	g, err := os.Open(name)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	if err := unix.Flock(int(g.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("flock twice: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_UN); err != nil {
		return err
	}
	if err := unix.Flock(int(g.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return err
	}
	if err := g.Close(); err != nil { // drops its lock
		return err
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if time.Now().After(end) { // the release is not waited for by close
			return fmt.Errorf("flock after the other's close: %w", err)
		}
	}
	l := unix.Flock_t{Type: unix.F_WRLCK, Start: 10, Len: 5}
	if err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &l); err != nil {
		return err
	}
	l = unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &l); err != nil || l.Type != unix.F_UNLCK {
		return fmt.Errorf("own lock in the way: %+v, %w", l, err)
	}
	return nil
}

func posixErrors(dir string) error {
	long := make([]byte, 256)
	for i := range long {
		long[i] = 'x'
	}
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		return err
	}
	_, noent := os.Stat(filepath.Join(dir, "none"))
	_, toolong := os.Stat(filepath.Join(dir, string(long)))
	_, excl := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	_, notdir := os.Stat(filepath.Join(file, "x"))
	_, tmpfile := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR, 0o600)
	var errs []error
	for _, c := range []struct {
		err  error
		want unix.Errno
	}{{noent, unix.ENOENT}, {toolong, unix.ENAMETOOLONG}, {excl, unix.EEXIST}, {notdir, unix.ENOTDIR}, {tmpfile, unix.EOPNOTSUPP}} {
		errs = append(errs, check(errors.Is(c.err, c.want), "got %v, want %v", c.err, c.want))
	}
	return errors.Join(errs...)
}

// childSignals does calls while a timer sends signals.
func childSignals(dir string) error {
	got := make(chan os.Signal, 1)
	signal.Notify(got, unix.SIGALRM)
	every := unix.Timeval{Usec: 1000}
	if _, err := unix.Setitimer(unix.ITIMER_REAL, unix.Itimerval{Interval: every, Value: every}); err != nil {
		return err
	}
	buf := make([]byte, 100)
	for i := range 50 {
		name := filepath.Join(dir, fmt.Sprint(i))
		fd, err := unix.Open(name, unix.O_CREAT|unix.O_RDWR, 0o600)
		if err != nil {
			return fmt.Errorf("open %d: %w", i, err)
		}
		if _, err := unix.Pwrite(fd, buf, 0); err != nil {
			return fmt.Errorf("write %d: %w", i, err)
		}
		if err := unix.Fsync(fd); err != nil {
			return fmt.Errorf("fsync %d: %w", i, err)
		}
		if _, err := unix.Pread(fd, buf, 0); err != nil {
			return fmt.Errorf("read %d: %w", i, err)
		}
		var st unix.Stat_t
		if err := unix.Stat(name, &st); err != nil {
			return fmt.Errorf("stat %d: %w", i, err)
		}
		if err := unix.Close(fd); err != nil {
			return fmt.Errorf("close %d: %w", i, err)
		}
	}
	select {
	case <-got:
	default:
		return errors.New("no signal came: the test shows nothing")
	}
	fmt.Println("ok")
	return nil
}

func childStuck(dir string) error {
	fmt.Println("going")
	fd, err := unix.Open(filepath.Join(dir, "x"), unix.O_CREAT|unix.O_RDWR, 0o600)
	return fmt.Errorf("open gave %d, %w", fd, err)
}

func childMmap(dir string) error {
	f, err := os.Create(filepath.Join(dir, "m"))
	if err != nil {
		return err
	}
	if _, err := f.Write(make([]byte, 8192)); err != nil {
		return err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	copy(m, "stored")
	fmt.Println("mapped")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	for end := time.Now().Add(5 * time.Second); string(m[:6]) != "remote" && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	fmt.Println(string(m[:6]))
	return nil
}

// childServer serves a mount until it is killed.
func childServer(dir string) error {
	f := fake.New(&testing.T{})
	served, err := serve(f, dir, context.Background())
	if err != nil {
		return err
	}
	fmt.Println("mounted")
	<-served
	return nil
}
