package mnt

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFind(t *testing.T) {
	const info = `22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:40 / /mnt/a\040b rw,nosuid shared:7 - fuse.crake crake/default rw,user_id=0
31 22 0:41 / /mnt/a\040b rw - fuse.other x\134y rw
junk
`
	e, err := find(strings.NewReader(info), "/mnt/a b")
	if err != nil || e == nil || e.Device != "0:41" || e.Type != "fuse.other" || e.Source != `x\y` {
		t.Errorf("found %+v, %v", e, err)
	}
	if e, err := find(strings.NewReader(info), "/mnt"); e != nil || err != nil {
		t.Errorf("found %+v, %v", e, err)
	}
}

// Claim: a mount point that cannot be used is told in one line that names it and says why.
func TestPrepare(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "none"): "does not exist",
		file:                       "is not a directory",
		"/proc":                    "is in use",
	} {
		err := Prepare(path, "fuse.crake", "crake/x")
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	if _, err := os.Stat("/dev/fuse"); err == nil {
		if err := Prepare(dir, "fuse.crake", "crake/x"); err != nil {
			t.Error(err)
		}
	}
}
