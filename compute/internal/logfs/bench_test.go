package logfs

import (
	"testing"

	"github.com/crakefs/crake/compute/internal/store/storetest"
)

// BenchmarkSync is a small WAL append on drives that cost nothing: our own share of a commit.
func BenchmarkSync(b *testing.B) {
	w := newWorld(b, storetest.New(b, 6, 4, 2))
	f, err := w.open(1).Create("1.log", "pebble-wal")
	check(b, err)
	p := make([]byte, 600)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := f.Write(p); err != nil {
			b.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
	}
	check(b, f.Close())
}
