package store

import (
	"context"
	"sync"

	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/wire"
)

// piece is one stretch of the device that a read needs.
type piece struct {
	rangeIndex int
	run        format.Run
	buf        []byte
}

// Read reads parts of strips and segments; see wire.ReadReq and wire.ReadResp. The caller owns the data, which is the
// device's own bytes: block checksums are the reader's to verify. Never gives more than what is acknowledged. Errors:
// KindInvalid, KindOverLimit, KindInterrupted (no memory before ctx ended); failures of single ranges are statuses.
func (s *Store) Read(ctx context.Context, ranges []wire.ReadRange) ([]wire.Kind, wire.Data, error) {
	const name = "drive.read"
	total, err := checkRanges(name, ranges)
	if err != nil {
		return nil, nil, err
	}
	buf, err := s.cfg.Arena.Alloc(ctx, total) // may wait, so before anything is pinned
	if err != nil {
		return nil, nil, err
	}
	status := make([]wire.Kind, len(ranges))
	s.mu.RLock()
	pieces := s.locate(ranges, status, buf.Bytes())
	p := s.enterRead()
	s.mu.RUnlock()
	s.readPieces(ranges, pieces, status)
	s.leaveRead(p)
	return status, s.readData(ranges, status, buf), nil
}

func checkRanges(name string, ranges []wire.ReadRange) (total int, err error) {
	if len(ranges) == 0 || len(ranges) > maxReadRanges {
		return 0, wire.Errorf(name, wire.KindOverLimit, "", "%d ranges, want 1 to %d", len(ranges), maxReadRanges)
	}
	for _, r := range ranges {
		if r.Offset%format.BlockSize != 0 || r.Len%format.BlockSize != 0 || r.Len == 0 {
			return 0, wire.Errorf(name, wire.KindInvalid, r.ID.String(), "%d bytes at %d are not whole blocks", r.Len, r.Offset)
		}
		if total += int(r.Len); total > wire.MaxDataBytes {
			return 0, wire.Errorf(name, wire.KindOverLimit, r.ID.String(), "more than %d bytes together", wire.MaxDataBytes)
		}
	}
	return total, nil
}

// locate plans the read into buf, each range at its place as if all succeeded. Preconditions: mu is held for reading.
func (s *Store) locate(ranges []wire.ReadRange, status []wire.Kind, buf []byte) []piece {
	pieces := make([]piece, 0, len(ranges))
	var memory [4]format.Run
	for i, r := range ranges {
		part := buf[:r.Len]
		buf = buf[r.Len:]
		runs, kind := s.idx.Locate(r.ID, r.Offset, int(r.Len), memory[:0])
		if status[i] = kind; kind != wire.KindNone {
			continue
		}
		for _, run := range runs {
			n := run.Blocks() * format.BlockSize
			pieces = append(pieces, piece{rangeIndex: i, run: run, buf: part[:n]})
			part = part[n:]
		}
	}
	return pieces
}

// readPieces reads all pieces, several at once where the device gains from it, and notes failures in status.
func (s *Store) readPieces(ranges []wire.ReadRange, pieces []piece, status []wire.Kind) {
	if len(pieces) < 2 || s.dev.Info().Fast {
		for _, p := range pieces {
			if err := s.readPiece(p); err != nil {
				status[p.rangeIndex] = wire.KindIO
				s.ioFailed("read of "+ranges[p.rangeIndex].ID.String(), err)
			}
		}
		return
	}
	var wg sync.WaitGroup
	var mu sync.Mutex // of status
	next := 0
	for range min(parallelReads, len(pieces)) {
		wg.Go(func() {
			for {
				mu.Lock()
				i := next
				next++
				mu.Unlock()
				if i >= len(pieces) {
					return
				}
				p := pieces[i]
				if err := s.readPiece(p); err != nil {
					mu.Lock()
					status[p.rangeIndex] = wire.KindIO
					mu.Unlock()
					s.ioFailed("read of "+ranges[p.rangeIndex].ID.String(), err)
				}
			}
		})
	}
	wg.Wait()
}

func (s *Store) readPiece(p piece) error {
	s.reads.Add(1)
	s.readBytes.Add(uint64(len(p.buf)))
	return s.readRun(p.run, p.buf)
}

// readData makes the data section: the ranges that succeeded, in order. It takes over the reference on buf.
func (s *Store) readData(ranges []wire.ReadRange, status []wire.Kind, buf *wire.Buf) wire.Data {
	all := true
	for _, k := range status {
		all = all && k == wire.KindNone
	}
	if all {
		return buf.Data(len(buf.Bytes()))
	}
	var data wire.Data
	at := 0
	for i, r := range ranges {
		if status[i] == wire.KindNone {
			data = append(data, wire.Slice{Buf: buf.Retain(), B: buf.Bytes()[at : at+int(r.Len)]})
		}
		at += int(r.Len)
	}
	buf.Release()
	return data
}

// List gives the strips of a bucket and class with ids above after, in order; see wire.ListReq.
func (s *Store) List(bucket wire.BucketID, class wire.Class, after wire.StripID, limit int) (entries []wire.ListEntry, more bool) {
	if limit <= 0 || limit > maxListEntries {
		limit = maxListEntries
	}
	s.ascend(bucket, class, after, func(st *stripInfo) bool {
		if len(entries) == limit {
			more = true
			return false
		}
		entries = append(entries, wire.ListEntry{ID: st.ID, Len: st.LenBytes(), Open: st.Segment != nil && !st.Segment.Sealed, Sum: st.Sum})
		return true
	})
	return entries, more
}
