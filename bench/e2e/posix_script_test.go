package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// script runs system calls below one directory and keeps a transcript of what each answered, errors by their name. The
// same script on the mount and on a local directory must give the same transcript.
type script struct {
	dir string
	out strings.Builder
	fds map[string]int
}

func newScript(dir string) *script { return &script{dir: dir, fds: map[string]int{}} }

// close closes what the script left open.
func (s *script) close() {
	for _, fd := range s.fds {
		_ = unix.Close(fd)
	}
}

func (s *script) path(name string) string { return filepath.Join(s.dir, name) }

// say adds a line: the call, and the error's name or the values.
func (s *script) say(call string, err error, values ...any) {
	s.out.WriteString(call)
	var errno unix.Errno
	switch {
	case errors.As(err, &errno):
		fmt.Fprintf(&s.out, " = %s", unix.ErrnoName(errno))
	case err != nil:
		fmt.Fprintf(&s.out, " = error %v", err)
	default:
		s.out.WriteString(" = ok")
		for _, v := range values {
			fmt.Fprintf(&s.out, " %v", v)
		}
	}
	s.out.WriteByte('\n')
}

func (s *script) open(as, name string, flags int, mode uint32) {
	fd, err := unix.Open(s.path(name), flags|unix.O_CLOEXEC, mode)
	if err == nil {
		if old, ok := s.fds[as]; ok {
			_ = unix.Close(old)
		}
		s.fds[as] = fd
	}
	s.say(fmt.Sprintf("open %s %#x", name, flags), err)
}

func (s *script) fd(as string) int {
	if fd, ok := s.fds[as]; ok {
		return fd
	}
	return -1
}

func (s *script) done(as string) {
	err := unix.Close(s.fd(as))
	delete(s.fds, as)
	s.say("close "+as, err)
}

func (s *script) pwrite(as, data string, off int64) {
	n, err := unix.Pwrite(s.fd(as), []byte(data), off)
	s.say(fmt.Sprintf("pwrite %s %d bytes at %d", as, len(data), off), err, n)
}

func (s *script) write(as, data string) {
	n, err := unix.Write(s.fd(as), []byte(data))
	s.say(fmt.Sprintf("write %s %d bytes", as, len(data)), err, n)
}

func (s *script) pread(as string, n int, off int64) {
	b := make([]byte, n)
	got, err := unix.Pread(s.fd(as), b, off)
	text := ""
	if err == nil {
		text = digest(b[:got])
	}
	s.say(fmt.Sprintf("pread %s %d at %d", as, n, off), err, got, text)
}

// digest shows short data as it is and long data as a hash.
func digest(b []byte) string {
	if len(b) <= 40 {
		return fmt.Sprintf("%q", b)
	}
	return sumOf(b)[:16]
}

func (s *script) seek(as string, off int64, whence int) {
	n, err := unix.Seek(s.fd(as), off, whence)
	s.say(fmt.Sprintf("lseek %s %d %d", as, off, whence), err, n)
}

func (s *script) ftruncate(as string, n int64) {
	s.say(fmt.Sprintf("ftruncate %s %d", as, n), unix.Ftruncate(s.fd(as), n))
}

func (s *script) truncate(name string, n int64) {
	s.say(fmt.Sprintf("truncate %s %d", name, n), unix.Truncate(s.path(name), n))
}

func (s *script) fallocate(as string, mode uint32, off, n int64) {
	s.say(fmt.Sprintf("fallocate %s %#x %d %d", as, mode, off, n), unix.Fallocate(s.fd(as), mode, off, n))
}

func (s *script) mkdir(name string, mode uint32) {
	s.say("mkdir "+name, unix.Mkdir(s.path(name), mode))
}

func (s *script) rmdir(name string) { s.say("rmdir "+name, unix.Rmdir(s.path(name))) }

func (s *script) unlink(name string) { s.say("unlink "+name, unix.Unlink(s.path(name))) }

func (s *script) rename(from, to string) { s.rename2(from, to, 0) }

func (s *script) rename2(from, to string, flags uint) {
	err := unix.Renameat2(unix.AT_FDCWD, s.path(from), unix.AT_FDCWD, s.path(to), flags)
	s.say(fmt.Sprintf("rename %s %s %d", from, to, flags), err)
}

func (s *script) link(from, to string) {
	s.say("link "+from+" "+to, unix.Link(s.path(from), s.path(to)))
}

func (s *script) symlink(target, name string) {
	s.say("symlink "+name, unix.Symlink(target, s.path(name)))
}

func (s *script) readlink(name string) {
	b := make([]byte, 8192)
	n, err := unix.Readlink(s.path(name), b)
	s.say("readlink "+name, err, digest(b[:max(n, 0)]))
}

func (s *script) mknod(name string, mode uint32, dev int) {
	s.say(fmt.Sprintf("mknod %s %#o", name, mode), unix.Mknod(s.path(name), mode, dev))
}

func (s *script) chmod(name string, mode uint32) {
	s.say(fmt.Sprintf("chmod %s %#o", name, mode), unix.Chmod(s.path(name), mode))
}

func (s *script) chown(name string, uid, gid int) {
	s.say(fmt.Sprintf("chown %s %d %d", name, uid, gid), unix.Lchown(s.path(name), uid, gid))
}

func (s *script) access(name string, mode uint32) {
	s.say(fmt.Sprintf("access %s %d", name, mode), unix.Access(s.path(name), mode))
}

func (s *script) utimens(name string, atime, mtime unix.Timespec) {
	err := unix.UtimesNanoAt(unix.AT_FDCWD, s.path(name), []unix.Timespec{atime, mtime}, unix.AT_SYMLINK_NOFOLLOW)
	s.say("utimens "+name, err)
}

// stat says what does not depend on the time and on the filesystem; of a directory its size neither.
func (s *script) stat(name string) {
	var st unix.Stat_t
	err := unix.Lstat(s.path(name), &st)
	size := st.Size
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		size = -1
	}
	s.say("lstat "+name, err, fmt.Sprintf("mode=%o nlink=%d uid=%d gid=%d size=%d rdev=%d", st.Mode, st.Nlink, st.Uid, st.Gid, size, st.Rdev))
}

// times says the times that a script has set.
func (s *script) times(name string) {
	var st unix.Stat_t
	err := unix.Lstat(s.path(name), &st)
	s.say("times "+name, err, st.Atim.Sec, st.Atim.Nsec, st.Mtim.Sec, st.Mtim.Nsec)
}

// sameInode says whether two names are one file.
func (s *script) sameInode(a, b string) {
	var x, y unix.Stat_t
	err := errors.Join(unix.Lstat(s.path(a), &x), unix.Lstat(s.path(b), &y))
	s.say("same "+a+" "+b, err, x.Ino == y.Ino)
}

func (s *script) list(name string) {
	f, err := os.Open(s.path(name))
	if err != nil {
		s.say("list "+name, err)
		return
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	sort.Strings(names)
	s.say("list "+name, err, names)
}

func (s *script) content(name string) {
	b, err := os.ReadFile(s.path(name))
	s.say("read "+name, err, len(b), digest(b))
}

func (s *script) setxattr(name, attr, value string, flags int) {
	s.say(fmt.Sprintf("setxattr %s %.40s %d bytes %d", name, attr, len(value), flags), unix.Setxattr(s.path(name), attr, []byte(value), flags))
}

func (s *script) getxattr(name, attr string, room int) {
	b := make([]byte, room)
	n, err := unix.Getxattr(s.path(name), attr, b)
	text := ""
	if err == nil && room > 0 {
		text = digest(b[:n])
	}
	s.say(fmt.Sprintf("getxattr %s %.40s", name, attr), err, n, text)
}

func (s *script) listxattr(name string) {
	b := make([]byte, 64<<10)
	n, err := unix.Listxattr(s.path(name), b)
	var names []string
	for a := range strings.SplitSeq(string(b[:max(n, 0)]), "\x00") {
		if strings.HasPrefix(a, "user.") {
			names = append(names, a)
		}
	}
	sort.Strings(names)
	s.say("listxattr "+name, err, names)
}

func (s *script) removexattr(name, attr string) {
	s.say("removexattr "+name+" "+attr, unix.Removexattr(s.path(name), attr))
}
