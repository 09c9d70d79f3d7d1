package image

import (
	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/wire"
)

// Journal is the journal after a checkpoint: what its chain of checksums holds together, and where it goes on.
type Journal struct {
	Next    uint64  // number of the batch after the last
	Head    int     // block of the ring after the last
	Prev    uint64  // checksum of the last
	Base    uint64  // checksum of the batch before the first
	Low     uint64  // all operations of batches up to this one were finished
	Batches []Batch // in order
	Records [format.RecordFence + 1]uint64
	// Torn says that a batch with this journal's next number begins where it would lie, and is not sound: its write was cut
	// off, and nobody was told that it is durable. (Or it is the last one and damaged since: the bytes do not tell.)
	Torn bool
}

// Batch is a batch of the journal.
type Batch struct {
	Sum     uint64
	Block   int // of the ring
	Blocks  int
	Records int
}

// FirstSeq gives the number of the first batch.
func (j *Journal) FirstSeq() uint64 { return j.Next - uint64(len(j.Batches)) }

// ringReader reads the journal through.
type ringReader struct {
	dev   Reader
	sb    *format.Superblock
	buf   []byte
	start int // block of the ring that buf begins with
	n     int // blocks in buf
}

func newRingReader(dev Reader, sb *format.Superblock) *ringReader {
	return &ringReader{dev: dev, sb: sb, buf: blockio.AlignedBytes(int(min(ringBytes, sb.JournalBytes)))}
}

// at gives the bytes from a block on: a whole batch if it is not cut by the end of the ring.
func (r *ringReader) at(block int) ([]byte, error) {
	ring := r.sb.JournalBlocks()
	need := min(format.MaxBatchBlocks, ring-block)
	if block < r.start || block+need > r.start+r.n {
		want := min(len(r.buf)/format.BlockSize, ring-block)
		r.n = 0
		if err := r.dev.ReadAt(r.buf[:want*format.BlockSize], r.sb.JournalOff+int64(block)*format.BlockSize); err != nil {
			return nil, err
		}
		r.start, r.n = block, want
	}
	return r.buf[(block-r.start)*format.BlockSize : (block-r.start+need)*format.BlockSize], nil
}

// readJournal follows the journal from a checkpoint on and calls f for each of its records. f must not keep the record.
// Errors: KindCorrupt (damage before the end, see checkEnd), KindIO.
func readJournal(dev Reader, sb *format.Superblock, c *format.Checkpoint, f func(h *format.Batch, r *format.Record)) (*Journal, error) {
	j := &Journal{Next: c.JournalSeq, Head: int(c.JournalBlock), Prev: c.JournalPrev, Base: c.JournalPrev, Low: c.JournalSeq - 1}
	rd := newRingReader(dev, sb)
	for {
		h, b, pos, err := j.nextBatch(rd)
		if err != nil {
			return nil, err
		}
		if b == nil {
			break
		}
		err = h.ForEach(b, sb.DataBlocks(), func(r *format.Record) error {
			f(&h, r)
			j.Records[r.Type]++
			return nil
		})
		if err != nil {
			return nil, err
		}
		j.Batches = append(j.Batches, Batch{Sum: h.Sum, Block: pos, Blocks: h.Blocks, Records: h.Records})
		j.Next, j.Prev, j.Head = h.Seq+1, h.Sum, pos+h.Blocks
		j.Low = max(j.Low, h.LowWater)
	}
	return j, j.checkEnd(rd)
}

// nextBatch finds the batch that continues the journal; b is nil at its end. A batch that did not fit before the end of the
// ring lies at its start.
func (j *Journal) nextBatch(rd *ringReader) (h format.Batch, b []byte, pos int, err error) {
	torn := false
	for _, pos := range []int{j.Head, 0} {
		if pos >= rd.sb.JournalBlocks() {
			continue
		}
		b, err := rd.at(pos)
		if err != nil {
			return h, nil, 0, err
		}
		h, err := format.DecodeBatch(b)
		if err == nil && !h.IsPage && h.Drive == rd.sb.Drive && h.FormatID == rd.sb.FormatID && h.Seq == j.Next && h.Prev == j.Prev {
			return h, b, pos, nil
		}
		torn = torn || err != nil && format.ClaimsSeq(b, rd.sb.FormatID, j.Next)
	}
	j.Torn = torn
	return h, nil, 0, nil
}

// checkEnd tells the end of the journal from damage in its middle: a later batch that knew the missing one as finished
// proves that it was durable. It looks at every block of the ring, also far from the head, in case that more than one batch
// is damaged. Errors: KindCorrupt, KindIO.
func (j *Journal) checkEnd(rd *ringReader) error {
	missing, sb := j.Next, rd.sb
	claims := func(buf []byte, off int64) (blocks []int, _ error) {
		for at := 0; at < len(buf); at += format.BlockSize {
			if format.MayBeBatch(buf[at:], sb.FormatID, missing) {
				blocks = append(blocks, int(off-sb.JournalOff+int64(at))/format.BlockSize)
			}
		}
		return blocks, nil
	}
	return readAhead(rd.dev, sb.JournalOff, sb.JournalBytes, claims, func(_ []byte, blocks []int) error {
		for _, block := range blocks {
			b, err := rd.at(block)
			if err != nil {
				return err
			}
			if h, err := format.DecodeBatch(b); err == nil && h.Drive == sb.Drive && h.Seq > missing && h.LowWater >= missing {
				return wire.Errorf(opOpen, wire.KindCorrupt, "",
					"journal batch %d, expected at %d, is damaged: batch %d comes after it", missing, sb.JournalOff+int64(j.Head)*format.BlockSize, h.Seq)
			}
		}
		return nil
	})
}
