package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/crakefs/crake/bench/internal/devcluster"
)

// Claim 5 from outside (each single crash point is tested inside compute): files and directories move between directories of
// different buckets while computes are killed and, at the end, everything. At any time each thing is in exactly one place.
func TestS5RenamesAreAllOrNothing(t *testing.T) {
	c := start(t, devcluster.Options{})
	r := random(t)
	const dirs, things = 8, 12
	dir := func(i int) string { return filepath.Join(c.Mount, fmt.Sprintf("d%d", i)) }
	for i := range dirs { // a new directory goes to another bucket, so these are spread
		must(t, os.Mkdir(dir(i), 0o755))
	}
	name := func(i int) string {
		if i%2 == 0 {
			return fmt.Sprintf("file%d", i)
		}
		return fmt.Sprintf("dir%d", i)
	}
	at := make([]int, things) // where each thing was last seen to be
	for i := range things {
		at[i] = i % dirs
		path := filepath.Join(dir(at[i]), name(i))
		if i%2 == 0 {
			must(t, writeSynced(path, []byte(name(i))))
		} else {
			must(t, os.Mkdir(path, 0o755))
			must(t, writeSynced(filepath.Join(path, "inside"), []byte(name(i))))
		}
	}
	rounds := 5
	if testing.Short() {
		rounds = 2
	}
	moves := 0
	for round := range rounds {
		done, halt := mover(dir, name, at, dirs, r)
		for range 2 {
			time.Sleep(time.Duration(200+r.IntN(800)) * time.Millisecond)
			computes, err := c.Find("compute")
			must(t, err)
			if k := computes[r.IntN(len(computes))]; k.PID != 0 {
				_, err := c.Kill(k.Name)
				must(t, err)
			}
			time.Sleep(time.Duration(r.IntN(1500)) * time.Millisecond)
		}
		if round == rounds-1 {
			must(t, c.KillAll())
			n, _ := halt()
			moves += n
			must(t, c.Up())
		} else {
			n, err := halt()
			moves += n
			if err != nil {
				t.Errorf("a rename failed when a compute was killed: %v", err)
			}
		}
		<-done
		inOnePlace(t, dir, name, dirs, things)
		if t.Failed() {
			t.FailNow()
		}
	}
	t.Logf("%d renames", moves)
	healthy(t, c)
}

// mover renames things to random directories in three goroutines until halt, which gives how many renames were done and the
// first error.
func mover(dir func(int) string, name func(int) string, at []int, dirs int, r *rand.Rand) (done chan struct{}, halt func() (int, error)) {
	stop := make(chan struct{})
	done = make(chan struct{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	moves := 0
	for w := range 3 {
		wg.Add(1)
		r := rand.New(rand.NewPCG(r.Uint64(), uint64(w)))
		go func() {
			defer wg.Done()
			for {
				select {
				case <-stop:
					return
				default:
				}
				i := w + 3*r.IntN(len(at)/3) // every goroutine has things of its own
				to := r.IntN(dirs)
				if to == at[i] {
					continue
				}
				if err := os.Rename(filepath.Join(dir(at[i]), name(i)), filepath.Join(dir(to), name(i))); err != nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
					return
				}
				at[i] = to
				mu.Lock()
				moves++
				mu.Unlock()
			}
		}()
	}
	go func() { wg.Wait(); close(done) }()
	return done, func() (int, error) {
		close(stop)
		<-done
		mu.Lock()
		defer mu.Unlock()
		if len(errs) > 0 {
			// A restarted run starts from where things really are.
			for i := range at {
				for d := range dirs {
					if _, err := os.Lstat(filepath.Join(dir(d), name(i))); err == nil {
						at[i] = d
					}
				}
			}
			return moves, errs[0]
		}
		return moves, nil
	}
}

// inOnePlace looks for every thing in every directory, by name and by listing.
func inOnePlace(t *testing.T, dir func(int) string, name func(int) string, dirs, things int) {
	t.Helper()
	listed := map[string]int{}
	for d := range dirs {
		entries, err := os.ReadDir(dir(d))
		must(t, err)
		for _, e := range entries {
			listed[e.Name()]++
		}
	}
	for i := range things {
		places := 0
		for d := range dirs {
			path := filepath.Join(dir(d), name(i))
			if i%2 == 1 {
				path = filepath.Join(path, "inside")
			}
			got, err := os.ReadFile(path)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			must(t, err)
			places++
			if string(got) != name(i) {
				t.Errorf("%s holds %q", path, got)
			}
		}
		if places != 1 || listed[name(i)] != 1 {
			t.Errorf("%s is found in %d directories and listed in %d, want 1", name(i), places, listed[name(i)])
		}
	}
	if len(listed) != things {
		t.Errorf("%d names are listed, want %d: %v", len(listed), things, listed)
	}
}
