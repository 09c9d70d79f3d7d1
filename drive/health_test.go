package drive_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/crakefs/crake/drive"
	"github.com/crakefs/crake/wire"
)

// Claim: a device that cannot be opened is told to mgmt with the reason before the process ends, whatever the reason.
func TestOpenFailureIsTold(t *testing.T) {
	dir := t.TempDir()
	m := startMgmt(t, dir)
	other, cut := filepath.Join(dir, "other"), filepath.Join(dir, "cut")
	format(t, other, 7)
	format(t, cut, 1)
	if err := os.Truncate(cut, 1<<20); err != nil {
		t.Fatal(err)
	}
	zeros := filepath.Join(dir, "zeros")
	if err := os.WriteFile(zeros, make([]byte, 64<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for i, c := range []struct{ path, says string }{
		{filepath.Join(dir, "missing"), "no such file"}, {other, "is drive 7"}, {cut, "is it cut off"}, {zeros, "not a drive of"},
	} {
		err := drive.Run(t.Context(), drive.Config{
			Name: "drive0", Proc: 2, Cluster: testCluster, Mgmt: m.addr, Listen: []string{"unix:" + filepath.Join(dir, "d.sock")}, Identity: identityFile(t, 2), Version: "test",
			Devices: []drive.Device{{Path: c.path, ID: 1}}, Log: slog.New(slog.DiscardHandler),
		})
		if err == nil {
			t.Fatalf("%s was opened", c.path)
		}
		m.mu.Lock()
		n := len(m.troubles)
		var got wire.DriveTroubleReq
		if n > 0 {
			got = m.troubles[n-1]
		}
		m.mu.Unlock()
		if n != i+1 || got.Drive != 1 || got.Proc != 2 || got.PID != uint32(os.Getpid()) || !strings.Contains(got.Text, c.says) {
			t.Errorf("%s: %d reports, the last %+v; want %q", c.path, n, got, c.says)
		}
	}
}

// Claim: mgmt that does not answer delays the end of a process that cannot open its device by little.
func TestOpenFailureWithoutMgmt(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	err := drive.Run(ctx, drive.Config{
		Name: "drive0", Proc: 2, Cluster: testCluster, Mgmt: "unix:" + filepath.Join(dir, "nobody"), Listen: []string{"unix:" + filepath.Join(dir, "d.sock")}, Identity: identityFile(t, 2),
		Devices: []drive.Device{{Path: filepath.Join(dir, "missing"), ID: 1}}, Version: "test", Log: slog.New(slog.DiscardHandler),
	})
	if err == nil || ctx.Err() != nil {
		t.Errorf("%v, %v", err, ctx.Err())
	}
}

// Claim: a file that becomes shorter while it is served is a fault in the next heartbeats, and what can be served is.
func TestShorterFileIsAFault(t *testing.T) {
	dir := t.TempDir()
	m := startMgmt(t, dir)
	path := filepath.Join(dir, "a")
	format(t, path, 1)
	d := startDrive(t, dir, m, drive.Device{Path: path, ID: 1})
	m.wait(t, "a heartbeat of a drive that is well", func() bool {
		n := len(m.beats)
		return n > 0 && len(m.beats[n-1].Drives) == 1 && m.beats[n-1].Drives[0].Fault == ""
	})
	if err := os.Truncate(path, 32<<20); err != nil {
		t.Fatal(err)
	}
	m.wait(t, "a fault", func() bool {
		return strings.Contains(m.beats[len(m.beats)-1].Drives[0].Fault, "has become shorter: 33554432 bytes, it had 67108864")
	})
	arena := testArena(t)
	c := dial(t, d.addr, arena, wire.RoleCompute)
	var st wire.DriveStatResp
	if _, err := ask(t, c, wire.MDriveStat, &wire.DriveStatReq{Drive: 1}, &st, nil); err != nil || st.Fault == "" {
		t.Errorf("stat %+v, %v", st, err)
	}
}
