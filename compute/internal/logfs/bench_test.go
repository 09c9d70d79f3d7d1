package logfs

import (
	"context"
	"testing"

	"github.com/crakefs/crake/compute/internal/store"
	"github.com/crakefs/crake/compute/internal/store/storetest"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

// BenchmarkSync is a small WAL append on drives that do nothing: our own share of a commit.
func BenchmarkSync(b *testing.B) {
	c := storetest.New(b, 6, 4, 2)
	s := store.New(store.Config{Up: c.Up, Map: c.Map, Arena: c.Arena(),
		Ask: func(ctx context.Context, d wire.DriveID, call *rpc.Call) error {
			if r, ok := call.Req.(*wire.AppendReq); ok {
				call.Resp.(*wire.AppendResp).Len = r.Offset + uint64(call.Data.Len())
				return nil
			}
			return c.Ask(ctx, d, call)
		}})
	w := &world{t: b, c: c, s: s}
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
