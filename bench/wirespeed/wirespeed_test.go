package main

import (
	"context"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/crakefs/crake/wire/procfs"
)

// TestMain makes this binary play the answering side too.
func TestMain(m *testing.M) {
	if len(os.Args) == 5 && os.Args[1] == serveCommand {
		exit(serveMain(os.Args[2], os.Args[3], os.Args[4] == "true"))
	}
	os.Exit(m.Run())
}

// Claim: every case is measured both ways, the table has them all, and nothing is left.
func TestRun(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	cores, err := procfs.AllowedCores()
	if err != nil {
		t.Fatal(err)
	}
	cfg := &config{runs: 1, seconds: 0.02, ask: cores[0], answer: cores[len(cores)-1]}
	var out strings.Builder
	if err := run(t.Context(), cfg, &out); err != nil {
		t.Fatal(err)
	}
	for _, c := range allCases() {
		if !strings.Contains(out.String(), " "+c.String()+" ") {
			t.Errorf("the table lacks %q:\n%s", c, &out)
		}
	}
	if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// Claim: an answering side that does not start is an error, not a wait, and so is an interrupt.
func TestRunFails(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (benchCase{}).measure(ctx, &config{seconds: 10}, wayCrake); err == nil {
		t.Error("interrupted, and no error")
	}
	if err := serveMain(wayBare, t.TempDir()+"/none/s", true); err == nil {
		t.Error("it serves in a folder that is not there")
	}
}

// Claim: a bare exchange has as many bytes as ours.
func TestBareBytes(t *testing.T) {
	small, in := (benchCase{}).bareBytes()
	same, large := (benchCase{data: 4 << 10}).bareBytes()
	if small != same || large != in+4<<10 || small < 64+bareHeadBytes || in < 64 || large > maxBareBytes {
		t.Errorf("%d and %d, with data %d and %d", small, in, same, large)
	}
}

func TestParse(t *testing.T) {
	for _, args := range []string{"--runs 0", "--seconds 0", "more", "--nothing"} {
		if _, err := parse(strings.Fields(args), io.Discard); err == nil {
			t.Errorf("%q is taken", args)
		}
	}
	t.Setenv(coresEnv, "3,5")
	if cfg, err := parse(nil, io.Discard); err != nil || cfg.ask != 3 || cfg.answer != 5 || cfg.runs != 5 {
		t.Errorf("%+v, %v", cfg, err)
	}
}

// Claim: the median is the run in the middle.
func TestMedian(t *testing.T) {
	if m := median([]sample{{us: 5, cpu: 1}, {us: 1, cpu: 2}, {us: 3, cpu: 9}}); m.us != 3 || m.cpu != 9 {
		t.Errorf("%+v", m)
	}
}
