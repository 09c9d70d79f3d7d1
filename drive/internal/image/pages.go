package image

import (
	"sync"

	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/wire"
)

// forPages calls f for the pages of a checkpoint, in order. Errors: KindCorrupt, KindIO, and what f gives.
func forPages(dev Reader, sb *format.Superblock, area int, c *format.Checkpoint, f func(page []byte, h *format.Batch) error) error {
	start := sb.PageOffset(area, 0)
	look := func(buf []byte, off int64) ([]format.Batch, error) {
		return pageHeads(sb, c, buf, uint64(off-start)/format.PageBytes, off)
	}
	return readAhead(dev, start, int64(c.Pages)*format.PageBytes, look, func(buf []byte, heads []format.Batch) error {
		for i := range heads {
			if err := f(buf[i*format.PageBytes:][:format.PageBytes], &heads[i]); err != nil {
				return err
			}
		}
		return nil
	})
}

// readAhead reads a stretch of a device in pieces of aheadBytes, several at once. look is called for each by the goroutine that
// read it, while use works, in order, on what came before. Errors: KindIO, and what look and use give.
func readAhead[T any](dev Reader, off, n int64, look func(buf []byte, off int64) (T, error), use func(buf []byte, found T) error) error {
	type piece struct {
		buf   []byte
		found T
		err   error
	}
	pieces := (n + aheadBytes - 1) / aheadBytes
	// A reader takes every aheadReads-th piece, delivers it by its channel, and has its one buffer back by done.
	readers := min(aheadReads, pieces)
	results, done, stop := make([]chan piece, readers), make([]chan struct{}, readers), make(chan struct{})
	var wg sync.WaitGroup
	for i := range readers {
		results[i], done[i] = make(chan piece), make(chan struct{})
		wg.Go(func() {
			buf := blockio.AlignedBytes(int(min(n, aheadBytes)))
			for at := i * aheadBytes; at < n; at += readers * aheadBytes {
				p := piece{buf: buf[:min(n-at, aheadBytes)]}
				if p.err = dev.ReadAt(p.buf, off+at); p.err == nil {
					p.found, p.err = look(p.buf, off+at)
				}
				select {
				case results[i] <- p:
				case <-stop:
					return
				}
				select {
				case <-done[i]:
				case <-stop:
					return
				}
			}
		})
	}
	var err error
	for at := int64(0); at < pieces && err == nil; at++ {
		p := <-results[at%readers]
		if err = p.err; err == nil {
			if err = use(p.buf, p.found); err == nil {
				done[at%readers] <- struct{}{}
			}
		}
	}
	close(stop)
	wg.Wait()
	return err
}

// CheckPages verifies the pages of a checkpoint and their records, without what they say of each other.
// Errors: KindCorrupt, KindIO.
func CheckPages(dev Reader, sb *format.Superblock, area int, c *format.Checkpoint) error {
	return forPages(dev, sb, area, c, func(page []byte, h *format.Batch) error {
		return h.ForEach(page, sb.DataBlocks(), func(*format.Record) error { return nil })
	})
}

// pageHeads verifies the pages in buf, of which the first has the number first and lies at off. Errors: KindCorrupt.
func pageHeads(sb *format.Superblock, c *format.Checkpoint, buf []byte, first uint64, off int64) ([]format.Batch, error) {
	heads := make([]format.Batch, len(buf)/format.PageBytes)
	for i := range heads {
		h, err := format.DecodeBatch(buf[i*format.PageBytes:][:format.PageBytes])
		n := first + uint64(i)
		switch {
		case err != nil:
			return nil, wire.Errorf(opOpen, wire.KindCorrupt, "", "page %d of checkpoint %d, at %d: %w", n, c.Seq, off+int64(i)*format.PageBytes, err)
		case !h.IsPage || h.Drive != sb.Drive || h.FormatID != sb.FormatID || h.Seq != n || h.Nonce != c.Seq:
			return nil, wire.Errorf(opOpen, wire.KindCorrupt, "", "page %d of checkpoint %d, at %d, is another one", n, c.Seq, off+int64(i)*format.PageBytes)
		}
		heads[i] = h
	}
	return heads, nil
}
