package wire

import (
	"context"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Buf is reference-counted, page-aligned memory from an Arena. Who receives a Buf releases it.
// The bytes may be written by one owner until they are shared; from then on they are read only.
type Buf struct {
	arena *Arena
	b     []byte
	refs  atomic.Int32
}

// Bytes gives the memory; valid until the last reference is released.
func (b *Buf) Bytes() []byte { return b.b }

// Retain takes a further reference.
func (b *Buf) Retain() *Buf {
	if b.refs.Add(1) <= 1 {
		panic("wire: Retain of a released Buf")
	}
	return b
}

// Release gives one reference back; the last one returns the memory to the arena.
func (b *Buf) Release() {
	switch n := b.refs.Add(-1); {
	case n == 0:
		b.arena.free(b)
	case n < 0:
		panic("wire: double Release of a Buf")
	}
}

// Data gives the first n bytes as a Data that owns the caller's reference.
func (b *Buf) Data(n int) Data { return Data{{Buf: b, B: b.b[:n]}} }

// Arena hands out Bufs. TODO(H1): replace by a memfd mapping with a bound; this placeholder maps anonymously.
type Arena struct {
	sizeBytes int
	used      atomic.Int64
}

// NewArena makes an arena of at most sizeBytes.
func NewArena(sizeBytes int) (*Arena, error) { return &Arena{sizeBytes: sizeBytes}, nil }

// Alloc gives a Buf of n bytes (rounded up to whole blocks in memory; Bytes has length n) with one reference.
// Contents are arbitrary. When the arena is exhausted it waits in order of arrival, until ctx ends.
func (a *Arena) Alloc(ctx context.Context, n int) (*Buf, error) {
	size := (n + BlockSize - 1) &^ (BlockSize - 1)
	m, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, E("arena.alloc", KindOverLimit, "", err)
	}
	a.used.Add(int64(size))
	b := &Buf{arena: a, b: m[:n]}
	b.refs.Store(1)
	return b, nil
}

// Size gives the bound of the arena in bytes.
func (a *Arena) Size() int { return a.sizeBytes }

// Use says what memory is wanted for; see Arena.
type Use uint8

// The uses of memory.
const (
	UseRequest  Use = 0 // data of a request of a peer, for a handler
	UseOwn      Use = 1 // what Alloc is for
	UseResponse Use = 2 // data of an answer that this process waits for
)

// AllocFor is Alloc for a given use.
func (a *Arena) AllocFor(ctx context.Context, n int, use Use) (*Buf, error) { return a.Alloc(ctx, n) }

// AllocData is Alloc for a given use, in one part or, when no run that long is free, in several of whole blocks.
func (a *Arena) AllocData(ctx context.Context, n int, use Use) (Data, error) {
	b, err := a.Alloc(ctx, n)
	if err != nil {
		return nil, err
	}
	return b.Data(n), nil
}

// Used gives the bytes that are handed out.
func (a *Arena) Used() int64 { return a.used.Load() }

// Close unmaps the arena; every Buf must have been released.
func (a *Arena) Close() error { return nil }

func (a *Arena) free(b *Buf) {
	m := unsafe.Slice(unsafe.SliceData(b.b), cap(b.b))
	a.used.Add(-int64(len(m)))
	_ = unix.Munmap(m)
}
