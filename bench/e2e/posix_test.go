package e2e

import (
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/bench/internal/devcluster"
)

const (
	create = unix.O_CREAT | unix.O_RDWR
	regime = 0o644
)

// posixTable are scripts whose answers must be those of a local directory, call by call.
var posixTable = []struct {
	name string
	run  func(s *script)
}{
	{"create, write, read, unlink", func(s *script) {
		s.open("f", "f", create|unix.O_EXCL, 0o640)
		s.open("g", "f", create|unix.O_EXCL, 0o640)
		s.pwrite("f", "hello", 0)
		s.pread("f", 10, 0)
		s.pread("f", 10, 3)
		s.pread("f", 10, 5)
		s.pread("f", 10, 500)
		s.stat("f")
		s.done("f")
		s.content("f")
		s.unlink("f")
		s.unlink("f")
		s.stat("f")
		s.open("f", "f", unix.O_RDONLY, 0)
	}},
	{"open flags", func(s *script) {
		s.open("f", "f", create, regime)
		s.write("f", "0123456789")
		s.open("t", "f", unix.O_WRONLY|unix.O_TRUNC, 0)
		s.stat("f")
		s.write("t", "abc")
		s.pread("t", 3, 0)
		s.open("r", "f", unix.O_RDONLY, 0)
		s.write("r", "x")
		s.ftruncate("r", 0)
		s.open("a", "f", unix.O_WRONLY|unix.O_APPEND, 0)
		s.write("a", "def")
		s.seek("a", 0, unix.SEEK_SET)
		s.write("a", "ghi")
		s.pwrite("a", "jkl", 0)
		s.content("f")
		s.open("d", ".", unix.O_WRONLY, 0)
		s.open("d", "f", unix.O_DIRECTORY, 0)
		s.symlink("f", "l")
		s.open("d", "l", unix.O_RDONLY|unix.O_NOFOLLOW, 0)
		s.open("d", "f/x", unix.O_RDONLY, 0)
		s.open("d", "none/x", create, regime)
	}},
	{"sparse files and truncate", func(s *script) {
		s.open("f", "f", create, regime)
		s.pwrite("f", "end", 1<<20)
		s.stat("f")
		s.pread("f", 8192, 4096)
		s.content("f")
		s.ftruncate("f", 5000)
		s.ftruncate("f", 10_000)
		s.content("f")
		s.pwrite("f", strings.Repeat("x", 9000), 1)
		s.ftruncate("f", 4097)
		s.ftruncate("f", 20_000)
		s.content("f")
		s.truncate("f", 3)
		s.truncate("f", 3<<30)
		s.stat("f")
		s.pread("f", 100, 2<<30)
		s.truncate("f", -1)
		s.truncate("none", 1)
		s.truncate(".", 1)
		s.ftruncate("f", 0)
		s.content("f")
	}},
	{"a file across many regions", func(s *script) {
		s.open("f", "f", create, regime)
		for _, off := range []int64{0, 4<<20 - 10, 8 << 20, 12<<20 - 1, 40 << 20} {
			s.pwrite("f", strings.Repeat("r", 30)+strings.Repeat("q", 70_000), off)
		}
		s.stat("f")
		s.pread("f", 1<<20, 4<<20-500)
		s.pread("f", 1<<20, 12<<20-70_000)
		s.content("f")
		s.ftruncate("f", 8<<20+5)
		s.content("f")
		s.ftruncate("f", 13<<20)
		s.content("f")
	}},
	{"fallocate and holes", func(s *script) {
		s.open("f", "f", create, regime)
		s.pwrite("f", strings.Repeat("x", 40_000), 0)
		s.fallocate("f", unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 100, 20_000)
		s.content("f")
		s.fallocate("f", unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 30_000, 90_000)
		s.content("f")
		s.fallocate("f", 0, 0, 100_000)
		s.stat("f")
		s.content("f")
		s.fallocate("f", unix.FALLOC_FL_KEEP_SIZE, 0, 400_000)
		s.stat("f")
		s.fallocate("f", 0, -1, 5)
		s.fallocate("f", 0, 0, 0)
		s.content("f")
	}},
	{"directories", func(s *script) {
		s.mkdir("d", 0o755)
		s.mkdir("d", 0o755)
		s.mkdir("d/e", 0o700)
		s.mkdir("none/e", 0o700)
		s.stat("d")
		s.stat("d/e")
		s.rmdir("d")
		s.rmdir("d/e")
		s.stat("d")
		s.open("f", "f", create, regime)
		s.mkdir("f/x", 0o755)
		s.rmdir("f")
		s.unlink("d")
		s.list(".")
		s.rmdir("d")
		s.rmdir("none")
		s.rmdir(".")
		s.mkdir(strings.Repeat("n", 255), 0o755)
		s.mkdir(strings.Repeat("n", 256), 0o755)
		s.mkdir("über ☃\n\t\\", 0o755)
		s.list(".")
	}},
	{"an open directory that is removed", func(s *script) {
		s.mkdir("d", 0o755)
		s.open("d", "d", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		s.rmdir("d")
		fd, err := unix.Openat(s.fd("d"), "x", create, regime)
		if err == nil {
			_ = unix.Close(fd)
		}
		s.say("create in a removed directory", err)
		var st unix.Stat_t
		s.say("fstat", unix.Fstat(s.fd("d"), &st), st.Nlink == 0)
		s.mkdir("d", 0o755)
		s.list("d")
	}},
	{"rename", func(s *script) {
		s.mkdir("a", 0o755)
		s.mkdir("b", 0o755)
		s.open("f", "a/f", create, regime)
		s.write("f", "data of f")
		s.open("g", "b/g", create, regime)
		s.write("g", "data of g")
		s.rename("a/f", "b/f")
		s.list("a")
		s.list("b")
		s.content("b/f")
		s.rename("b/f", "b/g")
		s.content("b/g")
		s.rename("b/g", "b/g")
		s.rename("none", "b/x")
		s.rename("b/g", "none/x")
		s.rename("b/g", "a")
		s.rename("a", "b/g")
		s.rename("a", "b")
		s.rename("a", "a/x")
		s.mkdir("a/sub", 0o755)
		s.rename("a", "a/sub/x")
		s.rename("a/sub", "b/sub")
		s.stat("a")
		s.stat("b")
		s.mkdir("a/sub", 0o755)
		s.rename("b/sub", "a/sub")
		s.rename("b", "a")
		s.list("a")
		s.list(".")
		s.content("a/g")
		s.link("b/g", "b/h")
		s.rename("b/g", "b/h")
		s.list("b")
	}},
	{"rename flags", func(s *script) {
		s.mkdir("a", 0o755)
		s.mkdir("b", 0o755)
		s.open("f", "a/f", create, regime)
		s.write("f", "F")
		s.open("g", "b/g", create, regime)
		s.write("g", "G")
		s.rename2("a/f", "b/g", unix.RENAME_NOREPLACE)
		s.rename2("a/f", "b/new", unix.RENAME_NOREPLACE)
		s.rename2("b/new", "a/f", unix.RENAME_NOREPLACE)
		s.rename2("a/f", "b/g", unix.RENAME_EXCHANGE)
		s.content("a/f")
		s.content("b/g")
		s.rename2("a/f", "none", unix.RENAME_EXCHANGE)
		s.rename2("a", "b/g", unix.RENAME_EXCHANGE)
		s.stat("a")
		s.stat("b/g")
		s.stat("b")
		s.rename2("b/g", "b", unix.RENAME_EXCHANGE)
		s.rename2("b", "a", unix.RENAME_EXCHANGE)
		s.list("a")
		s.list(".")
		s.rename2("b", "a", unix.RENAME_EXCHANGE|unix.RENAME_NOREPLACE)
	}},
	{"hard links", func(s *script) {
		s.mkdir("d", 0o755)
		s.open("f", "f", create, regime)
		s.write("f", "one")
		s.link("f", "g")
		s.link("f", "d/h")
		s.stat("f")
		s.sameInode("f", "d/h")
		s.link("f", "g")
		s.link("d", "e")
		s.link("none", "e")
		s.unlink("f")
		s.stat("g")
		s.content("d/h")
		s.pwrite("f", "two", 3)
		s.content("g")
		s.unlink("g")
		s.unlink("d/h")
		s.pread("f", 10, 0)
		s.pwrite("f", "three", 6)
		s.pread("f", 20, 0)
		s.list("d")
	}},
	{"unlink of an open file", func(s *script) {
		s.open("f", "f", create, regime)
		s.pwrite("f", strings.Repeat("z", 300_000), 0)
		s.unlink("f")
		s.pread("f", 300_000, 0)
		s.pwrite("f", strings.Repeat("y", 300_000), 100_000)
		s.say("fsync", unix.Fsync(s.fd("f")))
		s.pread("f", 500_000, 0)
		s.ftruncate("f", 10)
		s.pread("f", 500_000, 0)
		var st unix.Stat_t
		s.say("fstat", unix.Fstat(s.fd("f"), &st), st.Nlink, st.Size)
		s.open("f2", "f", create|unix.O_EXCL, regime)
		s.content("f")
		s.open("o", "over", create, regime)
		s.pwrite("o", "old", 0)
		s.open("n", "new", create, regime)
		s.pwrite("n", "new", 0)
		s.rename("new", "over")
		s.pread("o", 10, 0)
		s.content("over")
		s.done("f")
		s.done("o")
	}},
	{"symlinks", func(s *script) {
		s.symlink("target", "l")
		s.readlink("l")
		s.stat("l")
		s.content("l")
		s.open("t", "target", create, regime)
		s.write("t", "T")
		s.content("l")
		s.symlink("l", "l")
		s.symlink("loop2", "loop1")
		s.symlink("loop1", "loop2")
		s.content("loop1")
		s.readlink("target")
		s.symlink(strings.Repeat("s", 4095), "long")
		s.readlink("long")
		s.symlink("", "empty")
		s.chown("l", 12, 34)
		s.stat("l")
		s.unlink("l")
		s.content("target")
	}},
	{"modes and owners", func(s *script) {
		s.open("f", "f", create, 0o600)
		s.chmod("f", 0o4755)
		s.stat("f")
		s.chown("f", 1000, 1001)
		s.stat("f")
		s.chmod("f", 0o6777)
		s.write("f", "x")
		s.stat("f")
		s.chown("f", -1, 7)
		s.stat("f")
		s.chown("f", 8, -1)
		s.stat("f")
		s.chmod("none", 0o600)
		s.access("f", unix.X_OK)
		s.chmod("f", 0)
		s.access("f", unix.X_OK)
		s.mkdir("d", 0o755)
		s.chown("d", 5, 77)
		s.chmod("d", 0o2775)
		s.open("g", "d/g", create, regime)
		s.stat("d/g")
		s.mkdir("d/e", 0o755)
		s.stat("d/e")
		s.chmod("d", 0o1777)
		s.stat("d")
	}},
	{"umask", func(s *script) {
		old := unix.Umask(0o027)
		s.open("f", "f", create, 0o666)
		s.mkdir("d", 0o777)
		unix.Umask(0)
		s.open("g", "g", create, 0o666)
		unix.Umask(old)
		s.stat("f")
		s.stat("d")
		s.stat("g")
	}},
	{"times", func(s *script) {
		s.open("f", "f", create, regime)
		s.utimens("f", unix.Timespec{Sec: 1_000_000_000, Nsec: 123_456_789}, unix.Timespec{Sec: 2_000_000_000, Nsec: 987_654_321})
		s.times("f")
		s.utimens("f", unix.Timespec{Nsec: unix.UTIME_OMIT}, unix.Timespec{Sec: 5})
		s.times("f")
		s.utimens("f", unix.Timespec{Sec: -5, Nsec: 3}, unix.Timespec{Nsec: unix.UTIME_OMIT})
		s.times("f")
		s.symlink("f", "l")
		s.utimens("l", unix.Timespec{Sec: 7}, unix.Timespec{Sec: 8})
		s.times("l")
		s.times("f")
		s.mkdir("d", 0o755)
		s.utimens("d", unix.Timespec{Sec: 9}, unix.Timespec{Sec: 10})
		s.times("d")
		s.open("in", "d/f", create, regime)
		var st unix.Stat_t
		s.say("mtime of a directory after a create", unix.Stat(s.path("d"), &st), st.Mtim.Sec > 10)
		s.utimens("f", unix.Timespec{Sec: 1}, unix.Timespec{Sec: 1})
		s.write("f", "x")
		s.say("fsync", unix.Fsync(s.fd("f")))
		s.say("mtime after a write", unix.Stat(s.path("f"), &st), st.Mtim.Sec > 1)
		s.utimens("none", unix.Timespec{}, unix.Timespec{})
	}},
	{"extended attributes", func(s *script) {
		s.open("f", "f", create, regime)
		s.getxattr("f", "user.a", 100)
		s.setxattr("f", "user.a", "value", 0)
		s.getxattr("f", "user.a", 100)
		s.getxattr("f", "user.a", 0)
		s.getxattr("f", "user.a", 2)
		s.setxattr("f", "user.a", "other", unix.XATTR_CREATE)
		s.setxattr("f", "user.b", "other", unix.XATTR_REPLACE)
		s.setxattr("f", "user.a", "replaced", unix.XATTR_REPLACE)
		s.setxattr("f", "user.b", "", unix.XATTR_CREATE)
		s.setxattr("f", "user.big", strings.Repeat("v", 3000), 0)
		s.getxattr("f", "user.big", 5000)
		s.getxattr("f", "user.b", 10)
		s.listxattr("f")
		s.removexattr("f", "user.a")
		s.removexattr("f", "user.a")
		s.listxattr("f")
		s.setxattr("f", "user."+strings.Repeat("n", 300), "x", 0)
		s.setxattr("f", "nonsense", "x", 0)
		s.mkdir("d", 0o755)
		s.setxattr("d", "user.d", "dir", 0)
		s.rename("f", "d/f")
		s.getxattr("d/f", "user.big", 5000)
		s.listxattr("d")
		s.listxattr("none")
	}},
	{"special files", func(s *script) {
		s.mknod("fifo", unix.S_IFIFO|0o644, 0)
		s.mknod("sock", unix.S_IFSOCK|0o644, 0)
		s.mknod("chr", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3)))
		s.mknod("blk", unix.S_IFBLK|0o600, int(unix.Mkdev(7, 200)))
		s.mknod("reg", unix.S_IFREG|0o640, 0)
		s.mknod("fifo", unix.S_IFIFO|0o644, 0)
		for _, n := range []string{"fifo", "sock", "chr", "blk", "reg"} {
			s.stat(n)
		}
		s.open("r", "fifo", unix.O_RDONLY|unix.O_NONBLOCK, 0)
		s.open("w", "fifo", unix.O_WRONLY|unix.O_NONBLOCK, 0)
		s.write("w", "through")
		b := make([]byte, 20)
		n, err := unix.Read(s.fd("r"), b)
		s.say("read fifo", err, string(b[:max(n, 0)]))
		s.unlink("fifo")
		s.list(".")
	}},
	{"seek", func(s *script) {
		s.open("f", "f", create, regime)
		s.write("f", "0123456789")
		s.seek("f", 2, unix.SEEK_SET)
		s.seek("f", 3, unix.SEEK_CUR)
		s.seek("f", -1, unix.SEEK_END)
		s.seek("f", -100, unix.SEEK_CUR)
		s.seek("f", 0, unix.SEEK_DATA)
		s.seek("f", 100, unix.SEEK_DATA)
		s.seek("f", 0, unix.SEEK_HOLE)
	}},
	{"names", func(s *script) {
		for _, n := range []string{"...", " ", "-rf", "a'b\"c", "ÿ", "日本", ".hidden", strings.Repeat("é", 127)} {
			s.open("f", n, create, regime)
			s.write("f", n)
			s.content(n)
		}
		s.open("x", strings.Repeat("x", 256), create, regime)
		s.list(".")
	}},
}

// The POSIX table: the same calls on the mount and on a local directory answer the same.
func TestPosixTable(t *testing.T) {
	c := start(t, devcluster.Options{})
	for i, row := range posixTable {
		t.Run(row.name, func(t *testing.T) {
			var transcripts [2]string
			for j, top := range []string{filepath.Join(c.Mount, "t"), filepath.Join(c.Scratch(), "t")} {
				dir := top + string(rune('a'+i))
				must(t, unix.Mkdir(dir, 0o755))
				s := newScript(dir)
				row.run(s)
				s.close()
				transcripts[j] = s.out.String()
			}
			diffTranscripts(t, transcripts[0], transcripts[1])
		})
	}
}

func diffTranscripts(t *testing.T, got, want string) {
	t.Helper()
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range max(len(g), len(w)) {
		a, b := "(nothing)", "(nothing)"
		if i < len(g) {
			a = g[i]
		}
		if i < len(w) {
			b = w[i]
		}
		if a != b {
			t.Errorf("line %d:\n  here  %s\n  local %s", i+1, a, b)
		}
	}
}
