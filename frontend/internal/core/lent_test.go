package core

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/crakefs/crake/frontend/internal/fake"
	"github.com/crakefs/crake/wire"
)

// Claim: while somebody still reads what a failed send has lent, none of it changes, whatever is written, truncated, completed and sent
// again meanwhile; and the cluster gets in the end what was written.
func TestLentMemory(t *testing.T) {
	for seed := range uint64(10) {
		f := fake.New(t)
		f.Keep = true
		fs := client(t, f, 1, Config{DirtyBytes: 3 << 20, ReadBytes: 8 << 20})
		h := create(t, fs, "f")
		r := rand.New(rand.NewPCG(seed, 9))
		const size = 300_000
		want := random(size)
		write(t, fs, h, 0, want, 0)
		fsync(t, fs, h)
		var fail atomic.Bool
		f.Mu.Lock()
		f.Before = func(_ wire.SessionID, _ wire.BucketID, m wire.Method, _ wire.Message) error {
			if m == wire.MWrite && fail.Load() {
				return fake.Err(wire.KindNoSpace)
			}
			return nil
		}
		f.Mu.Unlock()
		for step := range 60 {
			fail.Store(step%4 != 3)
			for range 3 {
				n := 1 + r.IntN([]int{50, 6000, 40000}[r.IntN(3)])
				off := r.IntN(len(want))
				p := random(min(n, size-off))
				writeOn(t, fs, h, uint64(off), p)
				want = append(want, make([]byte, max(off+len(p)-len(want), 0))...)
				copy(want[off:], p)
			}
			if err := fs.Fsync(context.Background(), h); (err != nil) != fail.Load() {
				t.Fatalf("fsync: %v", err)
			}
			if r.IntN(4) == 0 {
				fail.Store(false) // a truncate waits for what is under way
				cut := len(want)/2 + r.IntN(len(want)/2)
				if _, err := fs.SetAttr(context.Background(), h.Ino(), SetAttr{Valid: wire.SetSize, Size: uint64(cut)}); err != nil {
					t.Fatal(err)
				}
				want = want[:cut:cut]
			}
			if got := read(t, fs, h, 0, size, 0); !bytes.Equal(got, want) {
				t.Fatalf("seed %d step %d: a reader sees something else", seed, step)
			}
		}
		fail.Store(false)
		fsync(t, fs, h)
		if !bytes.Equal(f.Content(h.Ino()), want) {
			t.Fatalf("seed %d: the cluster has something else", seed)
		}
		if f.GiveBack() == 0 {
			t.Error("nothing was lent")
		}
		fs.Release(context.Background(), h, false)
		eventually(t, "memory is free", func() bool { return fs.Dirty() == 0 && f.Arena.Used() == 0 })
	}
}

// writeOn writes, again while the cluster is thought to be full.
func writeOn(t *testing.T, fs *FS, h *Handle, off uint64, p []byte) {
	t.Helper()
	eventually(t, "there is room", func() bool {
		n, err := fs.Write(context.Background(), h, Write{Off: off, Data: p})
		off += uint64(n)
		p = p[n:]
		return err == nil && len(p) == 0
	})
}
