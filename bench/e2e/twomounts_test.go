package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/bench/internal/devcluster"
)

// Two mounts of one cluster see each other's changes at once: what one has been answered, the other sees.
func TestTwoMounts(t *testing.T) {
	c := start(t, devcluster.Options{})
	a, b := c.Mount, addMount(t, c, "default")
	t.Run("Namespace", func(t *testing.T) { twoNamespace(t, a, b) })
	t.Run("Data", func(t *testing.T) { twoData(t, a, b) })
	t.Run("Append", func(t *testing.T) { twoAppend(t, a, b) })
	t.Run("PingPong", func(t *testing.T) { twoPingPong(t, a, b) })
	t.Run("Exclusive", func(t *testing.T) { twoExclusive(t, a, b) })
	t.Run("Locks", func(t *testing.T) { twoLocks(t, a, b) })
	t.Run("UnlinkedElsewhere", func(t *testing.T) { twoUnlinked(t, a, b) })
	t.Run("DeadWriter", func(t *testing.T) { twoDeadWriter(t, c, a, b) })
}

func twoNamespace(t *testing.T, a, b string) {
	for i := range 20 {
		x, y := a, b
		if i%2 == 1 {
			x, y = b, a
		}
		d := fmt.Sprintf("ns%d", i)
		if _, err := os.Stat(filepath.Join(y, d)); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("before it exists: %v", err) // and its absence may now be cached
		}
		must(t, os.Mkdir(filepath.Join(x, d), 0o755))
		must(t, os.WriteFile(filepath.Join(x, d, "f"), []byte(d), 0o600))
		entries, err := os.ReadDir(filepath.Join(y, d))
		if err != nil || len(entries) != 1 {
			t.Fatalf("the other mount lists %v, %v", entries, err)
		}
		must(t, os.Rename(filepath.Join(y, d, "f"), filepath.Join(y, d, "g")))
		if _, err := os.Stat(filepath.Join(x, d, "f")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a name that was renamed away elsewhere: %v", err)
		}
		must(t, os.Chmod(filepath.Join(x, d, "g"), 0o440))
		st, err := os.Stat(filepath.Join(y, d, "g"))
		if err != nil || st.Mode().Perm() != 0o440 {
			t.Errorf("mode seen elsewhere: %v, %v", st.Mode(), err)
		}
		must(t, os.RemoveAll(filepath.Join(y, d)))
		if _, err := os.Stat(filepath.Join(x, d)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a directory that was removed elsewhere: %v", err)
		}
	}
}

func twoData(t *testing.T, a, b string) {
	r := random(t)
	want := make([]byte, 3<<20)
	fa, err := os.OpenFile(filepath.Join(a, "data"), os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	defer fa.Close()
	must(t, fa.Truncate(int64(len(want))))
	fb, err := os.OpenFile(filepath.Join(b, "data"), os.O_RDWR, 0)
	must(t, err)
	defer fb.Close()
	for i := range 200 {
		w, rd := fa, fb
		if i%2 == 1 {
			w, rd = fb, fa
		}
		off := r.IntN(len(want) - 100_000)
		part := make([]byte, 1+r.IntN(100_000))
		fill(part, r.Uint64())
		copy(want[off:], part)
		if _, err := w.WriteAt(part, int64(off)); err != nil {
			t.Fatal(err)
		}
		// No fsync, no close: the other mount's read must recall what is buffered here.
		lo := max(0, off-5000)
		hi := min(len(want), off+len(part)+5000)
		got := make([]byte, hi-lo)
		if _, err := rd.ReadAt(got, int64(lo)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want[lo:hi]) {
			t.Fatalf("write %d of %d bytes at %d is not seen by the other mount", i, len(part), off)
		}
	}
	must(t, fb.Truncate(1000))
	if st, err := fa.Stat(); err != nil || st.Size() != 1000 {
		t.Errorf("size after a truncate elsewhere: %d, %v", st.Size(), err)
	}
}

// Appends of two clients never overwrite each other.
func twoAppend(t *testing.T, a, b string) {
	const each, lineBytes = 300, 100
	var wg sync.WaitGroup
	errs := make(chan error, 4)
	for i, mnt := range []string{a, b, a, b} {
		wg.Add(1)
		go func() {
			defer wg.Done()
			f, err := os.OpenFile(filepath.Join(mnt, "append"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
			if err != nil {
				errs <- err
				return
			}
			defer f.Close()
			for n := range each {
				line := fmt.Sprintf("%-*s\n", lineBytes-1, fmt.Sprintf("writer %d line %d", i, n))
				if _, err := f.WriteString(line); err != nil {
					errs <- err
					return
				}
			}
		}()
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	for _, mnt := range []string{a, b} {
		text, err := os.ReadFile(filepath.Join(mnt, "append"))
		must(t, err)
		if len(text) != 4*each*lineBytes {
			t.Errorf("%d bytes, want %d: appends were lost", len(text), 4*each*lineBytes)
		}
		seen := map[string]int{}
		for line := range bytes.Lines(text) {
			seen[string(line)]++
		}
		if len(seen) != 4*each {
			t.Errorf("%d different lines, want %d", len(seen), 4*each)
		}
	}
}

// Two clients count in one file under a lock: no count is lost.
func twoPingPong(t *testing.T, a, b string) {
	const each = 60
	must(t, os.WriteFile(filepath.Join(a, "counter"), []byte("0"), 0o600))
	var wg sync.WaitGroup
	errs := make(chan error, 2)
	for _, mnt := range []string{a, b} {
		wg.Add(1)
		go func() {
			defer wg.Done()
			errs <- func() error {
				f, err := os.OpenFile(filepath.Join(mnt, "counter"), os.O_RDWR, 0)
				if err != nil {
					return err
				}
				defer f.Close()
				for range each {
					if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
						return err
					}
					var n int
					text, err := io.ReadAll(io.NewSectionReader(f, 0, 100))
					if err != nil {
						return err
					}
					if _, err := fmt.Sscan(string(text), &n); err != nil {
						return fmt.Errorf("counter holds %q: %w", text, err)
					}
					if _, err := f.WriteAt([]byte(fmt.Sprint(n+1)), 0); err != nil {
						return err
					}
					if err := unix.Flock(int(f.Fd()), unix.LOCK_UN); err != nil {
						return err
					}
				}
				return nil
			}()
		}()
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		must(t, err)
	}
	if text, err := os.ReadFile(filepath.Join(b, "counter")); err != nil || string(text) != fmt.Sprint(2*each) {
		t.Errorf("the counter holds %q, %v; want %d", text, err, 2*each)
	}
}

// Of several that create a name exclusively, one wins.
func twoExclusive(t *testing.T, a, b string) {
	for i := range 50 {
		var wg sync.WaitGroup
		won := make(chan string, 4)
		for _, mnt := range []string{a, b, a, b} {
			wg.Add(1)
			go func() {
				defer wg.Done()
				f, err := os.OpenFile(filepath.Join(mnt, fmt.Sprintf("excl%d", i)), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
				if err == nil {
					f.Close()
					won <- mnt
				} else if !errors.Is(err, fs.ErrExist) {
					t.Error(err)
				}
			}()
		}
		wg.Wait()
		if len(won) != 1 {
			t.Fatalf("%d creators of one name won", len(won))
		}
	}
}

func twoLocks(t *testing.T, a, b string) {
	must(t, os.WriteFile(filepath.Join(a, "locked"), make([]byte, 100), 0o600))
	fa, err := os.OpenFile(filepath.Join(a, "locked"), os.O_RDWR, 0)
	must(t, err)
	defer fa.Close()
	fb, err := os.OpenFile(filepath.Join(b, "locked"), os.O_RDWR, 0)
	must(t, err)
	defer fb.Close()
	lock := func(f *os.File, typ int16, start, length int64) error {
		lk := unix.Flock_t{Type: typ, Whence: io.SeekStart, Start: start, Len: length}
		return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lk)
	}
	must(t, lock(fa, unix.F_WRLCK, 0, 10))
	if err := lock(fb, unix.F_WRLCK, 5, 10); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("an overlapping lock elsewhere: %v", err)
	}
	must(t, lock(fb, unix.F_WRLCK, 10, 10))
	must(t, lock(fa, unix.F_RDLCK, 50, 10))
	must(t, lock(fb, unix.F_RDLCK, 55, 10))
	if err := lock(fa, unix.F_WRLCK, 55, 1); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("a write lock on a range read elsewhere: %v", err)
	}
	if err := unix.Flock(int(fa.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Errorf("flock is apart from fcntl locks: %v", err)
	}
	if err := unix.Flock(int(fb.Fd()), unix.LOCK_SH|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("flock held elsewhere: %v", err)
	}
	// A waiter elsewhere gets it when it is let go.
	got := make(chan error, 1)
	go func() { got <- unix.Flock(int(fb.Fd()), unix.LOCK_EX) }()
	select {
	case err := <-got:
		t.Fatalf("did not wait: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	must(t, unix.Flock(int(fa.Fd()), unix.LOCK_UN))
	select {
	case err := <-got:
		must(t, err)
	case <-time.After(5 * time.Second):
		t.Fatal("the waiter was not woken")
	}
	// Closing lets all go.
	must(t, fb.Close())
	eventually(t, 5*time.Second, func() string { // the kernel tells of the close behind the caller's back
		if err := lock(fa, unix.F_WRLCK, 0, 100); err != nil {
			return err.Error()
		}
		return ""
	})
}

// A file that is open here and removed there can be read and written until the last close.
func twoUnlinked(t *testing.T, a, b string) {
	data := make([]byte, 400_000)
	fill(data, random(t).Uint64())
	must(t, os.WriteFile(filepath.Join(a, "gone"), data, 0o600))
	f, err := os.OpenFile(filepath.Join(b, "gone"), os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	must(t, os.Remove(filepath.Join(a, "gone")))
	got := make([]byte, len(data))
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, data) {
		t.Errorf("read after a removal elsewhere: %v", err)
	}
	if _, err := f.WriteAt([]byte("still mine"), 100); err != nil {
		t.Error(err)
	}
	must(t, f.Sync())
	if _, err := f.ReadAt(got[:10], 100); err != nil || string(got[:10]) != "still mine" {
		t.Errorf("read back: %q, %v", got[:10], err)
	}
}

// A frontend that dies with leases and locks: the other mount gets on after its session is over, and sees all that was synced.
func twoDeadWriter(t *testing.T, c *devcluster.Cluster, a, b string) {
	f, err := os.Create(filepath.Join(b, "dead"))
	must(t, err)
	defer f.Close()
	data := make([]byte, 200_000)
	fill(data, 7)
	_, err = f.Write(data)
	must(t, err)
	must(t, f.Sync())
	must(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
	frontends, err := c.Find("frontend")
	must(t, err)
	if len(frontends) != 2 {
		t.Fatalf("%d frontends, want 2", len(frontends))
	}
	_, err = c.Kill(frontends[1].Name) // the later one
	must(t, err)
	begin := time.Now()
	got, err := os.ReadFile(filepath.Join(a, "dead"))
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("what a dead client had synced: %d bytes, %v", len(got), err)
	}
	g, err := os.OpenFile(filepath.Join(a, "dead"), os.O_RDWR, 0)
	must(t, err)
	defer g.Close()
	eventually(t, 20*time.Second, func() string {
		if err := unix.Flock(int(g.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			return err.Error()
		}
		return ""
	})
	t.Logf("read, and its lock taken over, in %v", time.Since(begin).Round(time.Millisecond))
	must(t, c.WaitState(devcluster.UpTimeout, "the killed frontend to return", devcluster.AllUp))
	eventually(t, devcluster.UpTimeout, func() string {
		got, err := os.ReadFile(filepath.Join(b, "dead"))
		if err != nil || !bytes.Equal(got, data) {
			return fmt.Sprintf("the second mount after its return: %d bytes, %v", len(got), err)
		}
		return ""
	})
}
