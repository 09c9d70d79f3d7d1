package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/bench/internal/devcluster"
)

// The model fuzz: random operations on a few files, each also done to a slice of bytes in memory; every read must give
// what the slice has. With two mounts each operation takes one of them.
func TestFsx(t *testing.T) {
	c := start(t, devcluster.Options{})
	ops := 4000
	if testing.Short() {
		ops = 800
	}
	t.Run("OneMount", func(t *testing.T) { fsx(t, []string{c.Mount}, ops) })
	second := addMount(t, c, "default")
	t.Run("TwoMounts", func(t *testing.T) { fsx(t, []string{c.Mount, second}, ops/2) })
}

// fsxFile is one file under test.
type fsxFile struct {
	t      *testing.T
	r      *rand.Rand
	paths  []string // one a mount
	files  []*os.File
	direct []*os.File
	want   []byte
	max    int
	log    []string
}

func fsx(t *testing.T, mounts []string, ops int) {
	r := random(t)
	var files []*fsxFile
	for i, size := range []int{5000, 300_000, 1 << 20, 9 << 20} { // inline, segments, a stripe or two, several regions
		f := &fsxFile{t: t, r: r, max: size}
		for _, m := range mounts {
			f.paths = append(f.paths, filepath.Join(m, fmt.Sprintf("fsx%d-%d", len(mounts), i)))
		}
		must(t, os.WriteFile(f.paths[0], nil, 0o600))
		f.reopen()
		t.Cleanup(f.shut)
		files = append(files, f)
	}
	for i := range ops {
		f := files[r.IntN(len(files))]
		if err := f.step(); err != nil {
			t.Fatalf("operation %d on %s (want %d bytes): %v\nlast operations:\n%s", i, f.paths[0], len(f.want), err, strings.Join(f.log, "\n"))
		}
	}
	for _, f := range files {
		f.shut()
		dropCaches(t)
		for _, p := range f.paths {
			got, err := os.ReadFile(p)
			if err != nil || !bytes.Equal(got, f.want) {
				t.Errorf("%s at the end: %v, %d bytes, %s", p, err, len(got), firstDiff(got, f.want))
			}
		}
		must(t, os.Remove(f.paths[0]))
	}
}

func (f *fsxFile) note(format string, args ...any) {
	f.log = append(f.log, fmt.Sprintf(format, args...))
	if len(f.log) > 25 {
		f.log = f.log[1:]
	}
}

func (f *fsxFile) shut() {
	for _, h := range append(f.files, f.direct...) {
		if err := h.Close(); err != nil {
			f.t.Errorf("close: %v", err)
		}
	}
	f.files, f.direct = nil, nil
}

func (f *fsxFile) reopen() {
	f.shut()
	for _, p := range f.paths {
		h, err := os.OpenFile(p, os.O_RDWR, 0)
		must(f.t, err)
		d, err := os.OpenFile(p, os.O_RDWR|unix.O_DIRECT, 0)
		must(f.t, err)
		f.files, f.direct = append(f.files, h), append(f.direct, d)
	}
}

// span picks a part of the file, often at the edges of blocks, stripes and regions.
func (f *fsxFile) span() (off, n int) {
	off = f.r.IntN(f.max)
	switch f.r.IntN(6) {
	case 0:
		off = off / 4096 * 4096
	case 1:
		off = off / (128 << 10) * (128 << 10)
	case 2:
		off = off / (4 << 20) * (4 << 20)
		off = max(0, off-f.r.IntN(5000))
	case 3:
		off = min(off, len(f.want))
	}
	most := []int{1, 100, 4096, 20_000, 200_000, 1 << 20}[f.r.IntN(6)]
	n = 1 + f.r.IntN(most)
	if f.r.IntN(4) == 0 {
		n = (n + 4095) / 4096 * 4096
	}
	return off, max(1, min(n, f.max-off))
}

func (f *fsxFile) step() error {
	m := f.r.IntN(len(f.files))
	off, n := f.span()
	switch op := f.r.IntN(100); {
	case op < 28:
		return f.write(m, off, n)
	case op < 52:
		return f.read(m, off, n)
	case op < 58:
		return f.truncate(m, f.r.IntN(f.max+1))
	case op < 62:
		return f.punch(m, off, n)
	case op < 65:
		return f.allocate(m, off, n)
	case op < 70:
		return f.mapWrite(m, off, n)
	case op < 76:
		return f.mapRead(m, off, n)
	case op < 82:
		return f.directIO(m, off, n)
	case op < 86:
		return f.append(m, n)
	case op < 91:
		f.note("fsync %d", m)
		return f.files[m].Sync()
	case op < 94:
		f.note("reopen")
		f.reopen()
		return nil
	case op < 95:
		f.note("drop caches")
		dropCaches(f.t)
		return nil
	}
	return f.size(m)
}

// grow makes the model at least n bytes long.
func (f *fsxFile) grow(n int) {
	if n > len(f.want) {
		f.want = append(f.want, make([]byte, n-len(f.want))...)
	}
}

func (f *fsxFile) data(n int) []byte {
	b := make([]byte, n)
	fill(b, f.r.Uint64())
	return b
}

func (f *fsxFile) write(m, off, n int) error {
	f.note("write %d: %d at %d", m, n, off)
	b := f.data(n)
	if _, err := f.files[m].WriteAt(b, int64(off)); err != nil {
		return err
	}
	f.grow(off + n)
	copy(f.want[off:], b)
	return nil
}

func (f *fsxFile) append(m, n int) error {
	n = min(n, f.max-len(f.want))
	if n <= 0 {
		return nil
	}
	f.note("append %d: %d at %d", m, n, len(f.want))
	h, err := os.OpenFile(f.paths[m], os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer h.Close()
	b := f.data(n)
	if _, err := h.Write(b); err != nil {
		return err
	}
	f.want = append(f.want, b...)
	return h.Close()
}

func (f *fsxFile) read(m, off, n int) error {
	f.note("read %d: %d at %d", m, n, off)
	b := make([]byte, n)
	got, err := f.files[m].ReadAt(b, int64(off))
	return f.compare(b[:got], off, n, err)
}

func (f *fsxFile) compare(got []byte, off, n int, err error) error {
	if err != nil && err != io.EOF {
		return err
	}
	want := f.want[min(off, len(f.want)):min(off+n, len(f.want))]
	if !bytes.Equal(got, want) {
		return fmt.Errorf("read %d at %d: %s", n, off, firstDiff(got, want))
	}
	return nil
}

func firstDiff(got, want []byte) string {
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			last := i
			for j := i; j < min(len(got), len(want)); j++ {
				if got[j] != want[j] {
					last = j
				}
			}
			return fmt.Sprintf("byte %d is %#x, want %#x (wrong until %d; %d bytes, want %d)", i, got[i], want[i], last, len(got), len(want))
		}
	}
	return fmt.Sprintf("%d bytes, want %d", len(got), len(want))
}

func (f *fsxFile) truncate(m, n int) error {
	f.note("truncate %d: %d (was %d)", m, n, len(f.want))
	if err := f.files[m].Truncate(int64(n)); err != nil {
		return err
	}
	if n < len(f.want) {
		f.want = f.want[:n:n]
	}
	f.grow(n)
	return nil
}

func (f *fsxFile) punch(m, off, n int) error {
	f.note("punch %d: %d at %d", m, n, off)
	err := unix.Fallocate(int(f.files[m].Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off), int64(n))
	if err == nil && off < len(f.want) {
		clear(f.want[off:min(off+n, len(f.want))])
	}
	return err
}

func (f *fsxFile) allocate(m, off, n int) error {
	f.note("fallocate %d: %d at %d", m, n, off)
	err := unix.Fallocate(int(f.files[m].Fd()), 0, int64(off), int64(n))
	if err == nil {
		f.grow(off + n)
	}
	return err
}

// mapped maps the whole file and calls do. The fstat before is what every application does to learn how much it may map, and
// what tells this mount's kernel of a size that another mount has changed.
func (f *fsxFile) mapped(m, prot int, do func(b []byte) error) error {
	if st, err := f.files[m].Stat(); err != nil || st.Size() != int64(len(f.want)) {
		return fmt.Errorf("fstat before mmap: %d bytes, want %d, %w", st.Size(), len(f.want), err)
	}
	b, err := unix.Mmap(int(f.files[m].Fd()), 0, len(f.want), prot, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	err = do(b)
	return errors.Join(err, unix.Munmap(b))
}

func (f *fsxFile) mapWrite(m, off, n int) error {
	if off >= len(f.want) {
		return nil
	}
	n = min(n, len(f.want)-off)
	f.note("mapped write %d: %d at %d", m, n, off)
	b := f.data(n)
	return f.mapped(m, unix.PROT_READ|unix.PROT_WRITE, func(p []byte) error {
		copy(p[off:], b)
		copy(f.want[off:], b)
		return unix.Msync(p, unix.MS_SYNC)
	})
}

func (f *fsxFile) mapRead(m, off, n int) error {
	if off >= len(f.want) {
		return nil
	}
	n = min(n, len(f.want)-off)
	f.note("mapped read %d: %d at %d", m, n, off)
	return f.mapped(m, unix.PROT_READ, func(p []byte) error { return f.compare(bytes.Clone(p[off:off+n]), off, n, nil) })
}

// directIO reads or writes whole blocks from aligned memory.
func (f *fsxFile) directIO(m, off, n int) error {
	off, n = off/4096*4096, (n+4095)/4096*4096
	b := aligned(n)
	if f.r.IntN(2) == 0 || off+n > f.max {
		f.note("direct read %d: %d at %d", m, n, off)
		got, err := f.direct[m].ReadAt(b, int64(off))
		return f.compare(b[:got], off, n, err)
	}
	f.note("direct write %d: %d at %d", m, n, off)
	fill(b, f.r.Uint64())
	if _, err := f.direct[m].WriteAt(b, int64(off)); err != nil {
		return err
	}
	f.grow(off + n)
	copy(f.want[off:], b)
	return nil
}

// aligned gives n bytes that begin on a page.
func aligned(n int) []byte {
	b := make([]byte, n+4096)
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(b))) & 4095)
	return b[skip : skip+n : skip+n]
}

func (f *fsxFile) size(m int) error {
	f.note("stat %d", m)
	st, err := os.Stat(f.paths[m])
	if err != nil {
		return err
	}
	if st.Size() != int64(len(f.want)) {
		return fmt.Errorf("stat tells of %d bytes, want %d", st.Size(), len(f.want))
	}
	end, err := f.files[m].Seek(0, io.SeekEnd)
	if err == nil && end != int64(len(f.want)) {
		return fmt.Errorf("lseek to the end gives %d, want %d", end, len(f.want))
	}
	return err
}
