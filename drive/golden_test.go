package drive_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/crakefs/crake/drive"
	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/wire"
)

// TestGoldenImage: a drive of layout version 1, with strips and segments in its checkpoint and in its journal, opens for ever and has
// what it had; and what inspect and check print of it as JSON keeps its keys. make golden writes what is missing, and the
// JSON anew.
func TestGoldenImage(t *testing.T) {
	write := os.Getenv("CRAKE_GOLDEN") == "write"
	arena := testArena(t)
	path := filepath.Join("testdata", "v1-image.gz")
	if _, err := os.Stat(path); write && errors.Is(err, os.ErrNotExist) {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		_, werr := w.Write(mutantImage(t, arena))
		if err := errors.Join(werr, w.Close(), os.MkdirAll("testdata", 0o755), os.WriteFile(path, b.Bytes(), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	r, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	img, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	dev := blockio.NewCrashDevice(img, false)
	in, err := drive.InspectReader(t.Context(), dev)
	if err != nil {
		t.Fatal(err)
	}
	report, err := drive.CheckReader(t.Context(), dev)
	if err != nil || !report.Sound {
		t.Fatalf("%+v, %v", report, err)
	}
	report.Seconds, report.BytesPerSec, report.ReadBytes = 0, 0, 0
	for name, v := range map[string]any{"v1-inspect.json": in, "v1-check.json": report} {
		got, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join("testdata", name)
		if write {
			if err := os.WriteFile(path, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s changed; keys never change their meaning. Got\n%s", name, got)
		}
	}
	s, stop := openMutant(t, dev, arena)
	if s == nil {
		t.Fatal("the image no longer opens")
	}
	defer func() { _ = stop() }()
	for life := range 2 {
		for i := 1; i < 6; i++ { // the first was deleted
			want, _ := testData(t, arena, byte(life*16+i), 1+i%3)
			status, got, err := s.Read(t.Context(), []wire.ReadRange{{ID: sampleStrip(life*100 + i), Len: uint32(want.Len())}})
			if err != nil || status[0] != wire.KindNone || !bytes.Equal(got[0].B, want[0].B) {
				t.Errorf("strip %d of life %d: %v, %v", i, life, status, err)
			}
			got.Release()
			want.Release()
		}
	}
}
