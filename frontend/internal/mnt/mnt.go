// Package mnt mounts and unmounts FUSE filesystems by system calls, without helper programs, and says in one line what is
// wrong when that cannot be.
package mnt

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Entry is a mount as /proc/self/mountinfo tells it.
type Entry struct {
	Device string // "major:minor"
	Point  string
	Type   string
	Source string
}

// Find gives the topmost mount at exactly this path, or nil. It touches no mounted filesystem.
func Find(path string) (*Entry, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return find(f, path)
}

func find(r io.Reader, path string) (*Entry, error) {
	var last *Entry
	s := bufio.NewScanner(r)
	for s.Scan() {
		// id parent major:minor root point options [tags] - type source superoptions
		left, right, ok := strings.Cut(s.Text(), " - ")
		l, rt := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 6 || len(rt) < 2 || unescape(l[4]) != path {
			continue
		}
		last = &Entry{Device: l[2], Point: path, Type: rt[0], Source: unescape(rt[1])}
	}
	return last, s.Err()
}

// unescape turns the octal escapes of mountinfo into bytes.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && isOctal(s[i+1]) && isOctal(s[i+2]) && isOctal(s[i+3]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func isOctal(c byte) bool { return c >= '0' && c <= '7' }

// Resolve gives the absolute path of a mount point without looking into it: links are followed in its parent only.
func Resolve(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", fmt.Errorf("mount point %s: %w", path, cause(err))
	}
	return filepath.Join(dir, filepath.Base(abs)), nil
}

// Prepare makes sure that something can be mounted at point (as Resolve gave it). A mount of the same type and source whose
// server is dead is taken away.
func Prepare(point, typ, source string) error {
	for range 8 { // dead mounts may lie over each other
		e, err := Find(point)
		if err != nil {
			return err
		}
		if e == nil {
			break
		}
		if e.Type != typ || e.Source != source || !dead(point) {
			return fmt.Errorf("mount point %s is in use: %s is mounted there; unmount it or choose another directory", point, e.Source)
		}
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("mount point %s: a dead mount is there and cannot be removed: %w", point, err)
		}
	}
	st, err := os.Lstat(point)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("mount point %s does not exist; create the directory", point)
	case err != nil:
		return fmt.Errorf("mount point %s: %w", point, cause(err))
	case !st.IsDir():
		return fmt.Errorf("mount point %s is not a directory", point)
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return fmt.Errorf("/dev/fuse: %w; load the fuse module, or give the container the device", cause(err))
	}
	return nil
}

// dead reports whether the server of the FUSE mount at point has gone. A live one may take its time: it is not dead.
func dead(point string) bool {
	answer := make(chan error, 1)
	go func() {
		var st unix.Stat_t
		answer <- unix.Lstat(point, &st)
	}()
	select {
	case err := <-answer:
		return errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED)
	case <-time.After(2 * time.Second):
		return false
	}
}

// cause gives the errno of a path error: the path is said already.
func cause(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// Unmount takes the mount away. While somebody uses it, it tries again for patience, and then detaches it lazily: users keep what they
// have open until the server ends. lazy says that it came to that.
func Unmount(point string, patience time.Duration) (lazy bool, err error) {
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		err := unix.Unmount(point, unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT):
			return false, nil // gone, by us or by another
		case !errors.Is(err, unix.EBUSY):
			return false, fmt.Errorf("unmount %s: %w", point, err)
		}
		if time.Now().After(end) {
			break
		}
	}
	if err := unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
		return true, fmt.Errorf("unmount %s: %w", point, err)
	}
	return true, nil
}

// SetReadahead sets how far the kernel reads ahead for pages (mmap) of the filesystem mounted at point.
func SetReadahead(point string, kib int) error {
	e, err := Find(point)
	if err != nil || e == nil {
		return err
	}
	return os.WriteFile("/sys/class/bdi/"+e.Device+"/read_ahead_kb", fmt.Appendf(nil, "%d", kib), 0)
}
