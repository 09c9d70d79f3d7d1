package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/crakefs/crake/drive"
	"github.com/crakefs/crake/wire"
)

// TestDriveInspectAndCheck: an empty drive is shown and sound; damage gives status 1 and one line; JSON stays JSON in either case.
func TestDriveInspectAndCheck(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d")
	err := drive.Format(t.Context(), drive.FormatConfig{Path: path, Cluster: wire.ClusterID{1, 2}, Drive: 3, SizeBytes: 32 << 20})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		line string
		says []string
	}{
		{"drive inspect", []string{"3 of cluster 0102", "in use: number 1", "never written", "nothing to replay"}},
		{"drive check", []string{"0 strips", "has nothing to replay", "sound"}},
	} {
		status, out, stderr := runLine(append(strings.Fields(c.line), path)...)
		for _, want := range c.says {
			if status != statusOK || stderr != "" || !strings.Contains(out, want) {
				t.Errorf("%s: status %d, stderr %q, want %q in\n%s", c.line, status, stderr, want, out)
			}
		}
	}
	if err := os.Truncate(path, 32<<20-wire.BlockSize); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 32<<20); err != nil { // the copy of the superblock is gone
		t.Fatal(err)
	}
	status, out, stderr := runLine("drive", "check", path)
	if status != statusFailed || !strings.Contains(out, "DAMAGED: 1 finding") || !strings.Contains(stderr, "is damaged: 1 finding") || strings.Count(stderr, "\n") != 1 {
		t.Errorf("status %d, stderr %q\n%s", status, stderr, out)
	}
	status, out, _ = runLine("drive", "check", "-f", "json", path)
	var r drive.CheckReport
	if err := json.Unmarshal([]byte(out), &r); err != nil || status != statusFailed || r.Sound || len(r.Findings) != 1 || r.Findings[0].Offset != 32<<20-wire.BlockSize {
		t.Errorf("status %d, %v: %s", status, err, out)
	}
	status, out, _ = runLine("drive", "inspect", "-f", "json", path)
	var in drive.Inspection
	if err := json.Unmarshal([]byte(out), &in); err != nil || status != statusOK || len(in.Superblock.DamagedCopies) != 1 {
		t.Errorf("status %d, %v: %s", status, err, out)
	}
	if status, _, stderr := runLine("drive", "check", path+"x"); status != statusFailed || !strings.Contains(stderr, "not found") {
		t.Errorf("missing: %d, %s", status, stderr)
	}
	if status, _, stderr := runLine("drive", "inspect"); status != statusUsage || !strings.Contains(stderr, "DEVICE is missing") {
		t.Errorf("no argument: %d, %s", status, stderr)
	}
}
