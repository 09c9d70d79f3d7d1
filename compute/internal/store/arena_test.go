package store

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/crakefs/crake/compute/internal/store/storetest"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/strip"
)

// Claim: writers who hold all of the arena that own use may have, and want parity for it, all get it: what they wait for is kept for them.
func TestParityOfAFullArena(t *testing.T) {
	c := storetest.New(t, 6, 4, 2)
	arena, err := wire.NewArena(2 * wire.MaxDataBytes)
	if err != nil {
		t.Fatal(err)
	}
	b := newBucket(t, newStore(t, c, func(cfg *Config) { cfg.Arena = arena }), 1)
	var hold []*wire.Buf
	for buf := arena.TryAlloc(4 * wire.StripBytes); buf != nil; buf = arena.TryAlloc(4 * wire.StripBytes) {
		clear(buf.Bytes())
		hold = append(hold, buf)
	}
	for buf := arena.TryAlloc(wire.BlockSize); buf != nil; buf = arena.TryAlloc(wire.BlockSize) {
		defer buf.Release()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for _, buf := range hold {
		wg.Go(func() {
			defer buf.Release()
			data := wire.Data{{Buf: buf, B: buf.Bytes()}}
			if _, err := b.PutStripe(ctx, b.NewID(wire.ClassTable, 1, 0), data, strip.Sums(data), true); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(hold) < 8 {
		t.Errorf("only %d writers", len(hold))
	}
}
