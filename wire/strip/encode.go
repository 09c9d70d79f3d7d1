package strip

import (
	"context"
	"fmt"
	"sync"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/reedsolomon"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/copies"
)

// Codecs gives the Reed-Solomon codec for each (k, m), made once. Safe for concurrent use.
type Codecs struct {
	mu sync.Mutex
	m  map[[2]int]reedsolomon.Encoder // guarded by mu; at most one for each legal (k, m)
}

// NewCodecs makes an empty set.
func NewCodecs() *Codecs { return &Codecs{m: map[[2]int]reedsolomon.Encoder{}} }

// get gives the codec; k and m come from a Location, which may have come from a peer.
func (c *Codecs) get(k, m int) (reedsolomon.Encoder, error) {
	if k < 1 || m < 0 || k+m > wire.MaxStripes {
		return nil, wire.Errorf("stripe.codec", wire.KindInvalid, "", "protection %d+%d", k, m)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if rs, ok := c.m[[2]int{k, m}]; ok {
		return rs, nil
	}
	// One goroutine: a process is pinned to one core, and a stripe takes some 20 µs.
	rs, err := reedsolomon.New(k, m, reedsolomon.WithMaxGoroutines(1))
	if err != nil {
		return nil, wire.E("stripe.codec", wire.KindInvalid, fmt.Sprintf("%d+%d", k, m), err)
	}
	c.m[[2]int{k, m}] = rs
	return rs, nil
}

// Strip is what one position of a stripe stores.
type Strip struct {
	Data wire.Data // empty: the position stores nothing
	Sums []uint64  // xxhash64 of each block
}

// Encode gives the k+m strips of a stripe that holds data (whole blocks, with their sums). Data strips refer to data's
// memory and parity lies in Bufs of the arena; the caller releases the Data of every Strip (see Release), and keeps its
// own reference on data. The sums of data strips are parts of sums.
func (c *Codecs) Encode(ctx context.Context, arena *wire.Arena, k, m int, data wire.Data, sums []uint64) ([]Strip, error) {
	rs, err := c.get(k, m)
	if err != nil {
		return nil, err
	}
	g := wire.Geometry{K: k, M: m, Blocks: data.Len() / wire.BlockSize}
	if g.Blocks < 1 || !wholeBlocks(data) || len(sums) != g.Blocks || g.StripBlocks()*wire.BlockSize > wire.StripBytes {
		return nil, wire.Errorf("stripe.encode", wire.KindInvalid, "", "%d bytes with %d checksums as %d+%d",
			data.Len(), len(sums), k, m)
	}
	rows := g.StripBlocks()
	strips := make([]Strip, k+m)
	walk := make([]wire.Data, k+m)
	for p, b := 0, 0; p < k; p++ {
		n := g.LenBlocks(p)
		if n > 0 {
			strips[p] = Strip{Data: data.Sub(b*wire.BlockSize, n*wire.BlockSize), Sums: sums[b : b+n]}
		}
		walk[p] = strips[p].Data
		b += n
	}
	if m == 0 {
		return strips, nil
	}
	buf, err := arena.AllocFor(ctx, m*rows*wire.BlockSize, wire.UseMore)
	if err != nil {
		Release(strips)
		return nil, err
	}
	defer buf.Release()
	for i := range m {
		at := i * rows * wire.BlockSize
		part := buf.Bytes()[at : at+rows*wire.BlockSize]
		strips[k+i].Data = wire.Data{{Buf: buf.Retain(), B: part}}
		walk[k+i] = strips[k+i].Data
	}
	err = sideBySide(walk, rows, func(_ int, shards [][]byte) error { return rs.Encode(shards) })
	if err != nil {
		Release(strips)
		return nil, wire.E("stripe.encode", wire.KindOther, "", err)
	}
	copies.Add(copies.Parity, m*rows*wire.BlockSize)
	for p := k; p < k+m; p++ {
		strips[p].Sums = Sums(strips[p].Data)
	}
	return strips, nil
}

// Release releases the data of all strips.
func Release(strips []Strip) {
	for i := range strips {
		strips[i].Data.Release()
		strips[i].Data = nil
	}
}

// Sums gives the checksum of every block of d.
func Sums(d wire.Data) []uint64 {
	sums := make([]uint64, d.Len()/wire.BlockSize)
	d.Blocks(func(i int, block []byte) { sums[i] = xxhash.Sum64(block) })
	return sums
}

// wholeBlocks says that every part of d is a whole number of blocks.
func wholeBlocks(d wire.Data) bool {
	for _, s := range d {
		if len(s.B)%wire.BlockSize != 0 {
			return false
		}
	}
	return true
}

// sideBySide walks strips row by row and calls f for every run of rows that is contiguous in all of them, with one slice
// each; a strip that has ended (or is nil) reads as zeros. The slices belong to the call. Rows must be at most
// StripBytes/BlockSize and all parts whole blocks.
func sideBySide(strips []wire.Data, rows int, f func(row int, shards [][]byte) error) error {
	type cursor struct{ part, off int }
	cur := make([]cursor, len(strips))
	shards := make([][]byte, len(strips))
	for row := 0; row < rows; {
		n := (rows - row) * wire.BlockSize
		for i, d := range strips {
			for cur[i].part < len(d) && cur[i].off == len(d[cur[i].part].B) {
				cur[i] = cursor{part: cur[i].part + 1}
			}
			if cur[i].part < len(d) {
				n = min(n, len(d[cur[i].part].B)-cur[i].off)
			}
		}
		for i, d := range strips {
			if cur[i].part == len(d) {
				shards[i] = zeros[:n]
				continue
			}
			shards[i] = d[cur[i].part].B[cur[i].off:][:n]
			cur[i].off += n
		}
		if err := f(row, shards); err != nil {
			return err
		}
		row += n / wire.BlockSize
	}
	return nil
}
