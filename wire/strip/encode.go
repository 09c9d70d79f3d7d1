package strip

import (
	"context"

	"github.com/crakefs/crake/wire"
)

// Codecs gives the Reed-Solomon codec for each (k, m), made once. Safe for concurrent use.
type Codecs struct{}

// NewCodecs makes an empty set.
func NewCodecs() *Codecs { return &Codecs{} }

// Strip is what one position of a stripe stores.
type Strip struct {
	Data wire.Data // empty: the position stores nothing
	Sums []uint64  // xxhash64 of each block
}

// Encode gives the k+m strips of a stripe that holds data (whole blocks, with their sums). Data strips refer to data's
// memory and parity lies in Bufs of the arena; the caller releases the Data of every Strip (see Release), and keeps its
// own reference on data.
func (c *Codecs) Encode(ctx context.Context, arena *wire.Arena, k, m int, data wire.Data, sums []uint64) ([]Strip, error) {
	panic("todo")
}

// Release releases the data of all strips.
func Release(strips []Strip) {
	for i := range strips {
		strips[i].Data.Release()
		strips[i].Data = nil
	}
}
