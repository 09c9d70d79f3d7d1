package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/crakefs/crake/bench/internal/devcluster"
)

// crakeBin is the binary under test; set once by TestMain.
var crakeBin string

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if err := needs(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	crakeBin = os.Getenv("CRAKE_BIN")
	if crakeBin == "" {
		dir, err := os.MkdirTemp("", "crake-bin-")
		if err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
			return 1
		}
		defer os.RemoveAll(dir)
		crakeBin = filepath.Join(dir, "crake")
		cmd := exec.Command("go", "build", "-o", crakeBin, "../../cmd/crake")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "e2e: go build: %v\n%s", err, out)
			return 1
		}
	}
	return m.Run()
}

// needs says what the machine lacks for these tests.
func needs() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("these tests mount filesystems: run them as root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return fmt.Errorf("these tests need /dev/fuse: %w", err)
	}
	for _, p := range []string{"fio", "git", "sqlite3", "go", "diff", "python3", "openssl"} {
		if _, err := exec.LookPath(p); err != nil {
			return fmt.Errorf("these tests need %s (make deps installs it): %w", p, err)
		}
	}
	return nil
}

// start brings a cluster up that the test takes away at its end, whatever happens.
func start(t *testing.T, o devcluster.Options) *devcluster.Cluster {
	t.Helper()
	c := prepare(t, o)
	begin := time.Now()
	if err := c.Up(); err != nil {
		t.Fatalf("%v\n%s", err, c.Logs(20))
	}
	t.Logf("cluster up in %v", time.Since(begin).Round(time.Millisecond))
	return c
}

// prepare makes a cluster's directories and starts nothing.
func prepare(t *testing.T, o devcluster.Options) *devcluster.Cluster {
	t.Helper()
	return prepareBin(t, crakeBin, o)
}

// prepareBin is prepare for another binary.
func prepareBin(t *testing.T, bin string, o devcluster.Options) *devcluster.Cluster {
	t.Helper()
	c, err := devcluster.New(bin, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("logs of the cluster:\n%s", c.Logs(25))
		}
		if err := c.Close(); err != nil {
			t.Errorf("clean-up: %v", err)
		}
	})
	return c
}

// seed gives the seed of a test's random choices: CRAKE_SEED or a new one, which is printed either way.
func seed(t *testing.T) uint64 {
	t.Helper()
	s := uint64(time.Now().UnixNano())
	if env := os.Getenv("CRAKE_SEED"); env != "" {
		var err error
		if s, err = strconv.ParseUint(env, 10, 64); err != nil {
			t.Fatalf("CRAKE_SEED: %v", err)
		}
	}
	t.Logf("CRAKE_SEED=%d", s)
	return s
}

// random gives a generator of a test's random choices.
func random(t *testing.T) *rand.Rand {
	t.Helper()
	return rand.New(rand.NewPCG(seed(t), 0))
}

// command runs a program for at most limit and fails the test with its output when it does not succeed.
func command(t *testing.T, limit time.Duration, dir string, env []string, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	cmd.WaitDelay = 2 * time.Second
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		err = fmt.Errorf("not done within %v", limit)
	}
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, tail(out, 4000))
	}
	return string(out)
}

func tail(b []byte, n int) []byte { return b[max(0, len(b)-n):] }

// dropCaches makes the kernel forget what it has cached, so that a read comes from where the data lies.
func dropCaches(t *testing.T) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		t.Fatalf("drop caches: %v", err)
	}
}

// sum gives the SHA-256 of a file.
func sum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.CopyBuffer(h, onlyReader{f}, make([]byte, 1<<20)); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// sumOf gives the SHA-256 of bytes.
func sumOf(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// onlyReader hides the other methods of a file, so that io.Copy does not take a short cut.
type onlyReader struct{ io.Reader }

// must fails the test on an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// mustSum is sum that fails the test.
func mustSum(t *testing.T, path string) string {
	t.Helper()
	s, err := sum(path)
	must(t, err)
	return s
}

// eventually waits until ok reports "" and fails the test with its last complaint after the timeout.
func eventually(t *testing.T, timeout time.Duration, ok func() string) {
	t.Helper()
	var why string
	for end := time.Now().Add(timeout); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if why = ok(); why == "" {
			return
		}
	}
	t.Fatalf("not within %v: %s", timeout, why)
}
