package image

import (
	"sync"

	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/wire"
)

// pageChunk is some pages of a checkpoint, read and with their checksums verified.
type pageChunk struct {
	buf   []byte
	heads []format.Batch // of all pages, if err is nil
	err   error
}

// forPages calls f for the pages of a checkpoint, in order. Pages are read in large pieces, several at once, and verified
// by the goroutines that read them, while f works on what came before. Errors: KindCorrupt, KindIO, and what f gives.
func forPages(dev Reader, sb *format.Superblock, area int, c *format.Checkpoint, f func(page []byte, h *format.Batch) error) error {
	chunks := (c.Pages + pagesAtOnce - 1) / pagesAtOnce
	// A reader takes every pageReads-th chunk, delivers it by its channel, and has its one buffer back by done.
	readers := min(pageReads, chunks)
	results := make([]chan *pageChunk, readers)
	done := make([]chan struct{}, readers)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range readers {
		results[i], done[i] = make(chan *pageChunk), make(chan struct{})
		wg.Go(func() {
			buf := blockio.AlignedBytes(int(min(c.Pages, pagesAtOnce)) * format.PageBytes)
			for at := i; at < chunks; at += readers {
				select {
				case results[i] <- readChunk(dev, sb, area, c, at*pagesAtOnce, buf):
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
	err := func() error {
		for at := range chunks {
			chunk := <-results[at%readers]
			if chunk.err != nil {
				return chunk.err
			}
			for i := range chunk.heads {
				if err := f(chunk.buf[i*format.PageBytes:][:format.PageBytes], &chunk.heads[i]); err != nil {
					return err
				}
			}
			done[at%readers] <- struct{}{}
		}
		return nil
	}()
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

// readChunk reads pages from first on into buf, as many as it holds and the checkpoint has.
func readChunk(dev Reader, sb *format.Superblock, area int, c *format.Checkpoint, first uint64, buf []byte) *pageChunk {
	n := min(uint64(len(buf))/format.PageBytes, c.Pages-first)
	chunk := &pageChunk{buf: buf[:n*format.PageBytes], heads: make([]format.Batch, 0, n)}
	if chunk.err = dev.ReadAt(chunk.buf, sb.PageOffset(area, first)); chunk.err != nil {
		return chunk
	}
	for i := range n {
		h, err := format.DecodeBatch(chunk.buf[i*format.PageBytes:][:format.PageBytes])
		switch {
		case err != nil:
			chunk.err = wire.Errorf(opOpen, wire.KindCorrupt, "", "page %d of checkpoint %d, at %d: %w", first+i, c.Seq, sb.PageOffset(area, first+i), err)
		case !h.IsPage || h.Drive != sb.Drive || h.FormatID != sb.FormatID || h.Seq != first+i || h.Nonce != c.Seq:
			chunk.err = wire.Errorf(opOpen, wire.KindCorrupt, "", "page %d of checkpoint %d, at %d, is another one", first+i, c.Seq, sb.PageOffset(area, first+i))
		}
		if chunk.err != nil {
			return chunk
		}
		chunk.heads = append(chunk.heads, h)
	}
	return chunk
}
