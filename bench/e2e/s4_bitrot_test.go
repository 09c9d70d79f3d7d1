package e2e

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/crakefs/crake/bench/internal/devcluster"
)

const blockBytes = 4096

// spot is where a block of data lies: a drive file and a byte offset in it.
type spot struct {
	drive  string
	offset int64
}

// findBlocks finds where 4 KiB blocks of known content lie in the drive files. Data strips hold data as it is.
func findBlocks(t *testing.T, c *devcluster.Cluster, blocks ...[]byte) map[[32]byte][]spot {
	t.Helper()
	want := map[[8]byte][][]byte{}
	for _, b := range blocks {
		want[[8]byte(b)] = append(want[[8]byte(b)], b)
	}
	found := map[[32]byte][]spot{}
	drives, err := filepath.Glob(filepath.Join(c.Dir, "drives", "*"))
	must(t, err)
	buf := make([]byte, 1<<20)
	for _, d := range drives {
		f, err := os.Open(d)
		must(t, err)
		for base := int64(0); ; base += int64(len(buf)) {
			n, err := io.ReadFull(f, buf)
			for at := 0; at+blockBytes <= n; at += blockBytes {
				for _, b := range want[[8]byte(buf[at:])] {
					if bytes.Equal(b, buf[at:at+blockBytes]) {
						k := sha256.Sum256(b)
						found[k] = append(found[k], spot{d, base + int64(at)})
					}
				}
			}
			if err != nil {
				break
			}
		}
		must(t, f.Close())
	}
	return found
}

// flip overwrites a block with dd, as somebody would by hand.
func flip(t *testing.T, s spot) {
	t.Helper()
	command(t, 20e9, "", nil, "dd", "if=/dev/urandom", "of="+s.drive, "bs=4096", "count=1",
		fmt.Sprintf("seek=%d", s.offset/blockBytes), "conv=notrunc,fsync", "status=none")
}

// Claim 4: a strip flipped on disk by hand is detected, read correctly by reconstruction, and reported in an event. A reader with
// an empty cache looks: a second mount.
func TestS4FlippedStrip(t *testing.T) {
	c := start(t, devcluster.Options{})
	data := make([]byte, 2<<20)
	fill(data, random(t).Uint64())
	small := make([]byte, 20_000)
	fill(small, random(t).Uint64())
	must(t, writeSynced(filepath.Join(c.Mount, "striped"), data))
	must(t, writeSynced(filepath.Join(c.Mount, "mirrored"), small))

	block := func(b []byte, i int) []byte { return b[i*blockBytes : (i+1)*blockBytes] }
	picks := [][]byte{block(data, 0), block(data, 40), block(data, 100), block(data, 300), block(small, 1)}
	found := findBlocks(t, c, picks...)
	for i, b := range picks {
		spots := found[sha256.Sum256(b)]
		if len(spots) == 0 {
			t.Fatalf("block %d of the picks lies in no drive file", i)
		}
		if i == len(picks)-1 {
			spots = spots[:len(spots)-1] // a mirrored block may lose all copies but one
		}
		for _, s := range spots {
			t.Logf("flipping %s at %d", filepath.Base(s.drive), s.offset)
			flip(t, s)
		}
	}
	dropCaches(t)
	second := addMount(t, c, "default")
	for name, want := range map[string][]byte{"striped": data, "mirrored": small} {
		for _, mount := range []string{second, c.Mount} {
			got, err := os.ReadFile(filepath.Join(mount, name))
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s at %s reads wrong: %v, equal %v", name, mount, err, bytes.Equal(got, want))
			}
		}
	}
	eventually(t, devcluster.UpTimeout, func() string {
		var events []event
		if err := c.JSON(&events, "events", "--limit", "1000"); err != nil {
			return err.Error()
		}
		for _, e := range events {
			if strings.HasPrefix(e.Type, "strip.") && e.Severity != "info" && e.Text != "" {
				t.Logf("event: %s %s %s: %s", e.Severity, e.Type, e.Process, e.Text)
				return ""
			}
		}
		return fmt.Sprintf("no event tells of the flipped strips among %d", len(events))
	})
}

// event is a line of `crake events -f json`.
type event struct {
	Severity string `json:"severity"`
	Type     string `json:"type"`
	Process  string `json:"process"`
	Text     string `json:"text"`
}

// More flipped than the protection bears: an error, and never wrong bytes.
func TestS4MoreFlippedThanParity(t *testing.T) {
	c := start(t, devcluster.Options{})
	data := make([]byte, 512<<10) // one stripe: strips of 32 blocks on four drives
	fill(data, random(t).Uint64())
	must(t, writeSynced(filepath.Join(c.Mount, "f"), data))
	// Find the four blocks of one row by where they lie, whatever the layout: the same row of three data strips.
	var rows [][]byte
	for i := range 3 {
		rows = append(rows, data[i*(128<<10)+5*blockBytes:][:blockBytes])
	}
	found := findBlocks(t, c, rows...)
	for _, b := range rows {
		spots := found[sha256.Sum256(b)]
		if len(spots) != 1 {
			t.Fatalf("a block of a stripe lies in %d places, want 1", len(spots))
		}
		flip(t, spots[0])
	}
	second := addMount(t, c, "default")
	got, err := os.ReadFile(filepath.Join(second, "f"))
	if err == nil {
		t.Errorf("a file with three strips broken of 4+2 reads without an error; bytes equal: %v", bytes.Equal(got, data))
	}
	// What is not broken still reads.
	f, err := os.Open(filepath.Join(second, "f"))
	must(t, err)
	defer f.Close()
	part := make([]byte, blockBytes)
	if _, err := f.ReadAt(part, 20*blockBytes); err != nil || !bytes.Equal(part, data[20*blockBytes:21*blockBytes]) {
		t.Errorf("a whole block beside the broken ones: %v", err)
	}
}

func writeSynced(path string, data []byte) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return f.Close()
}

// addMount mounts a filesystem of the cluster once more.
func addMount(t *testing.T, c *devcluster.Cluster, fs string) string {
	t.Helper()
	dir, err := c.AddMount()
	must(t, err)
	if _, err := c.Crake("mount", "--dir", c.Dir, fs, dir); err != nil {
		t.Fatal(err)
	}
	return dir
}
