package driveload

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"

	"github.com/cespare/xxhash/v2"

	"github.com/crakefs/crake/wire"
)

// Block b of strip n is one of poolBlocks blocks of random bytes, chosen by both numbers, with the two numbers stamped over its
// first stampBytes. So every block of the drive is another one, and what must be there is known without asking anybody; making
// 128 KiB costs 2 us of the load generator, and random bytes would cost 30.
const (
	poolBlocks = 61 // a prime, so that no run of strips repeats it in step
	stampBytes = 16
)

// content makes and checks the blocks of strips.
type content struct {
	pool []byte
}

func newContent() *content {
	c := &content{pool: make([]byte, poolBlocks*wire.BlockSize)}
	r := rand.NewChaCha8([32]byte{'c', 'r', 'a', 'k', 'e'})
	_, _ = r.Read(c.pool) // never fails
	return c
}

// of gives the pool's block of a strip's block.
func (c *content) of(strip uint64, block int) []byte {
	i := int((strip*31 + uint64(block)) % poolBlocks)
	return c.pool[i*wire.BlockSize:][:wire.BlockSize]
}

// fill writes the blocks of a strip from block first on into dst, and gives their checksums in sums where that is not nil.
func (c *content) fill(dst []byte, strip uint64, first int, sums []uint64) {
	for i := range len(dst) / wire.BlockSize {
		b := dst[i*wire.BlockSize:][:wire.BlockSize]
		copy(b, c.of(strip, first+i))
		binary.LittleEndian.PutUint64(b, strip)
		binary.LittleEndian.PutUint64(b[8:], uint64(first+i))
		if sums != nil {
			sums[i] = xxhash.Sum64(b)
		}
	}
}

// checkStamp says whether a block is the one that it must be, by its stamp.
func checkStamp(b []byte, strip uint64, block int) error {
	gotStrip, gotBlock := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
	if gotStrip != strip || gotBlock != uint64(block) {
		return fmt.Errorf("WRONG DATA: block %d of strip %d was asked for, and what came says %d of %d", block, strip, gotBlock, gotStrip)
	}
	return nil
}

// check compares all bytes of a block.
func (c *content) check(b []byte, strip uint64, block int) error {
	if err := checkStamp(b, strip, block); err != nil {
		return err
	}
	want := c.of(strip, block)
	if bytes.Equal(b[stampBytes:], want[stampBytes:]) {
		return nil
	}
	at := stampBytes
	for b[at] == want[at] {
		at++
	}
	return fmt.Errorf("WRONG DATA: block %d of strip %d differs at byte %d", block, strip, at)
}
