package blockio

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A child process, which TestKilled runs, writes to a device until it is killed.
const (
	killPathEnv   = "CRAKE_BLOCKIO_KILL_PATH"
	killEngineEnv = "CRAKE_BLOCKIO_KILL_ENGINE"
	killAreas     = 64
	killAreaBytes = 4 * Align
)

// TestKilledChild is the child of TestKilled: it writes rising versions to all areas, many at once, flushes, and says which version is
// durable.
func TestKilledChild(t *testing.T) {
	path := os.Getenv(killPathEnv)
	if path == "" {
		t.Skip("the child of TestKilled")
	}
	e, err := NewEngine(EngineConfig{Choice: Choice(os.Getenv(killEngineEnv))})
	if err != nil {
		t.Fatal(err)
	}
	d, err := e.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	bufs := make([][]byte, killAreas)
	for i := range bufs {
		bufs[i] = AlignedBytes(killAreaBytes)
	}
	for version := uint64(1); ; version++ {
		var failed atomic.Bool
		var wg sync.WaitGroup
		for i, b := range bufs {
			stamp(b, i, version)
			wg.Add(1)
			if a, ok := d.(Async); ok {
				a.Start(&IO{Write: true, Off: int64(i * killAreaBytes), P: b, Done: func(_ *IO, err error) {
					failed.CompareAndSwap(false, err != nil)
					wg.Done()
				}})
				continue
			}
			go func() {
				failed.CompareAndSwap(false, d.WriteAt(b, int64(i*killAreaBytes)) != nil)
				wg.Done()
			}()
		}
		if a, ok := d.(Async); ok {
			a.Kick()
		}
		wg.Wait()
		if failed.Load() || d.Flush() != nil {
			os.Exit(1)
		}
		fmt.Printf("durable %d\n", version)
	}
}

// stamp fills an area so that each block tells where it belongs and when it was written.
func stamp(b []byte, area int, version uint64) {
	for at := 0; at < len(b); at += 16 {
		binary.LittleEndian.PutUint64(b[at:], version)
		binary.LittleEndian.PutUint64(b[at+8:], uint64(area)<<32|uint64(at))
	}
}

// TestKilled: a process that is killed with writes under way leaves its device free for the next, which finds everything that was durable
// and in every sector a version that was written to it; and no write of the dead one comes after.
func TestKilled(t *testing.T) {
	rounds := 5
	if testing.Short() {
		rounds = 2
	}
	for _, choice := range []Choice{ChooseIOUring, ChoosePread} {
		t.Run(string(choice), func(t *testing.T) {
			path := makeFile(t, t.TempDir(), killAreas*killAreaBytes)
			for range rounds {
				durable := runAndKill(t, choice, path)
				if durable == 0 {
					t.Fatal("the child did nothing")
				}
				began := time.Now()
				e, _ := newEngine(t, EngineConfig{Choice: choice})
				d, err := e.Open(path)
				if err != nil {
					t.Fatal(err)
				}
				t.Logf("version %d was durable; open after %v", durable, time.Since(began))
				checkStamps(t, d, durable)
				// What we write now must stay.
				b := AlignedBytes(killAreaBytes)
				for i := range killAreas {
					stamp(b, i, 1<<60)
					if err := d.WriteAt(b, int64(i*killAreaBytes)); err != nil {
						t.Fatal(err)
					}
				}
				checkStamps(t, d, 1<<60)
				if err := d.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// runAndKill runs the child until it has said something, kills it, and gives the last version that it called durable.
func runAndKill(t *testing.T, choice Choice, path string) (durable uint64) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilledChild$", "-test.v")
	cmd.Env = append(os.Environ(), killPathEnv+"="+path, killEngineEnv+"="+string(choice))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := 0
	for sc := bufio.NewScanner(out); sc.Scan(); {
		if v, ok := strings.CutPrefix(sc.Text(), "durable "); ok {
			_, _ = fmt.Sscan(v, &durable)
			if lines++; lines == 5 {
				_ = cmd.Process.Kill()
			}
		}
	}
	_ = cmd.Wait() // killed
	return durable
}

// checkStamps checks that every 16 bytes belong where they are and are of a version from oldest on.
func checkStamps(t *testing.T, d Device, oldest uint64) {
	t.Helper()
	b := AlignedBytes(killAreaBytes)
	for i := range killAreas {
		if err := d.ReadAt(b, int64(i*killAreaBytes)); err != nil {
			t.Fatal(err)
		}
		for at := 0; at < len(b); at += 16 {
			version, place := binary.LittleEndian.Uint64(b[at:]), binary.LittleEndian.Uint64(b[at+8:])
			if version < oldest || place != uint64(i)<<32|uint64(at) {
				t.Fatalf("area %d, byte %d: version %d of place %#x, where %d was durable", i, at, version, place, oldest)
			}
		}
	}
}
