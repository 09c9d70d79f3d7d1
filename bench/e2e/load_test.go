package e2e

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// load is a workload that several writers and readers run on a mount while something is killed. Each writer has a
// directory of its own; it writes files, syncs some, reads back what it wrote before, renames and removes. Any error, and
// any byte that differs, fails the test.
type load struct {
	t    *testing.T
	dir  string
	stop chan struct{}
	wg   sync.WaitGroup

	ops     atomic.Int64
	slowest atomic.Int64 // nanoseconds of the slowest single operation since resetSlowest

	mu    sync.Mutex
	files map[string]string // path -> SHA-256 of what was written
	errs  []error
}

// startLoad starts writers on dir (made if need be).
func startLoad(t *testing.T, dir string, writers int, r *rand.Rand) *load {
	t.Helper()
	must(t, os.MkdirAll(dir, 0o755))
	l := &load{t: t, dir: dir, stop: make(chan struct{}), files: map[string]string{}}
	for i := range writers {
		l.wg.Add(1)
		seed := r.Uint64()
		go l.writer(filepath.Join(dir, fmt.Sprintf("w%d", i)), rand.New(rand.NewPCG(seed, uint64(i))))
	}
	t.Cleanup(func() { l.halt() })
	return l
}

func (l *load) halt() {
	l.mu.Lock()
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.mu.Unlock()
	l.wg.Wait()
}

func (l *load) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.errs) < 20 {
		l.errs = append(l.errs, fmt.Errorf("%s: %w", time.Now().Format("15:04:05.000"), err))
	}
}

// timed runs one operation and keeps how long the slowest took.
func (l *load) timed(op func() error) error {
	begin := time.Now()
	err := op()
	took := int64(time.Since(begin))
	for old := l.slowest.Load(); took > old && !l.slowest.CompareAndSwap(old, took); old = l.slowest.Load() {
	}
	l.ops.Add(1)
	return err
}

func (l *load) resetSlowest() { l.slowest.Store(0) }

func (l *load) writer(dir string, r *rand.Rand) {
	defer l.wg.Done()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		l.fail(err)
		return
	}
	var mine []string
	for n := 0; ; n++ {
		select {
		case <-l.stop:
			return
		default:
		}
		if err := l.step(dir, n, &mine, r); err != nil {
			l.fail(err)
			return
		}
	}
}

// step does one round of a writer.
func (l *load) step(dir string, n int, mine *[]string, r *rand.Rand) error {
	path := filepath.Join(dir, fmt.Sprintf("f%d", n))
	data := make([]byte, []int{100, 3000, 20_000, 150_000, 700_000, 3 << 20}[r.IntN(6)]+r.IntN(1000))
	fill(data, r.Uint64())
	if err := l.write(path, data, r.IntN(3) == 0); err != nil {
		return err
	}
	if r.IntN(4) == 0 {
		to := path + "-renamed"
		if err := l.timed(func() error { return os.Rename(path, to) }); err != nil {
			return err
		}
		path = to
	}
	l.mu.Lock()
	l.files[path] = sumOf(data)
	l.mu.Unlock()
	*mine = append(*mine, path)
	if err := l.verify((*mine)[r.IntN(len(*mine))]); err != nil {
		return err
	}
	if len(*mine) <= 30 {
		return nil
	}
	i := r.IntN(len(*mine))
	gone := (*mine)[i]
	*mine = append((*mine)[:i], (*mine)[i+1:]...)
	l.mu.Lock()
	delete(l.files, gone)
	l.mu.Unlock()
	return l.timed(func() error { return os.Remove(gone) })
}

func (l *load) write(path string, data []byte, sync bool) error {
	return l.timed(func() error {
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.Write(data); err != nil {
			return err
		}
		if sync {
			if err := f.Sync(); err != nil {
				return err
			}
		}
		return f.Close()
	})
}

// verify compares a file with what was written.
func (l *load) verify(path string) error {
	l.mu.Lock()
	want := l.files[path]
	l.mu.Unlock()
	var got string
	if err := l.timed(func() (err error) { got, err = sum(path); return err }); err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("%s holds %s, %s was written", path, got, want)
	}
	return nil
}

// check stops the load and verifies every file. It gives how many there are.
func (l *load) check() int {
	l.t.Helper()
	l.halt()
	l.mu.Lock()
	for _, err := range l.errs {
		l.t.Errorf("under load: %v", err)
	}
	paths := make([]string, 0, len(l.files))
	for p := range l.files {
		paths = append(paths, p)
	}
	l.mu.Unlock()
	for _, p := range paths {
		if err := l.verify(p); err != nil {
			l.t.Errorf("afterwards: %v", err)
		}
	}
	return len(paths)
}

// alive fails the test unless the load goes on: at least so many operations within the time.
func (l *load) alive(ops int64, within time.Duration) {
	l.t.Helper()
	from := l.ops.Load()
	eventually(l.t, within, func() string {
		l.mu.Lock()
		defer l.mu.Unlock()
		if len(l.errs) > 0 {
			return "" // check reports them
		}
		if done := l.ops.Load() - from; done < ops {
			return fmt.Sprintf("the load did only %d of %d operations", done, ops)
		}
		return ""
	})
}

// fill makes data that depends on the seed alone.
func fill(b []byte, seed uint64) {
	r := rand.NewPCG(seed, 1)
	for len(b) >= 8 {
		binary.LittleEndian.PutUint64(b, r.Uint64())
		b = b[8:]
	}
	for i := range b {
		b[i] = byte(r.Uint64())
	}
}
