package logfs

import (
	"context"
	"sort"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/copies"
)

// segRef is a segment of a log and the part [start, end) of the file that counts of it.
type segRef struct {
	id         wire.StripID // position 0
	replicas   []replica
	start, end int64
	bytes      uint64 // the longest replica, heads of records included
}

// logWrite takes bytes for the next Sync. n.write is held.
func (n *node) logWrite(p []byte) error {
	if gone, err := n.fs.gone(); gone {
		return err
	}
	for len(p) > 0 {
		if n.bufLen == MaxRecordBytes {
			if err := n.logSync(); err != nil {
				return err
			}
		}
		if err := n.grow(wire.BlockSize, MaxRecordBytes, n.logSync); err != nil {
			return err
		}
		n.mu.Lock()
		c := copy(n.buf.Bytes()[wire.BlockSize+n.bufLen:], p)
		copies.Add(copies.Meta, c)
		n.bufLen += c
		n.modTime = time.Now()
		n.mu.Unlock()
		p = p[c:]
	}
	return nil
}

// logSync makes all that was written durable: one record, sent to all replicas at once. n.write is held.
func (n *node) logSync() error {
	if gone, err := n.fs.gone(); gone { // even if nothing waits: Close may have thrown it away
		return err
	}
	if n.bufLen == 0 {
		return nil
	}
	rec := wire.SegRecord{Epoch: n.fs.b.Epoch(), Payload: n.bufLen}
	if n.bufLen > wire.SegInlineBytes {
		rec.Sums = make([]uint64, (n.bufLen+wire.BlockSize-1)/wire.BlockSize)
		b, _ := n.record(&rec)
		for i := range rec.Sums {
			rec.Sums[i] = xxhash.Sum64(b[(1+i)*wire.BlockSize : (2+i)*wire.BlockSize])
		}
	}
	err := n.fs.retry(n.name, func() error { return n.logAppend(&rec) })
	if err != nil {
		n.fs.lose(err) // a log with a gap is of no use
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	last := &n.segs[len(n.segs)-1]
	last.end += int64(n.bufLen)
	n.buf.Release()
	n.buf, n.bufLen = nil, 0
	return nil
}

// record gives the memory of the record that buf is to become, head and padded payload; inline is what goes into its head instead.
// The memory must be ours alone. n.write is held.
func (n *node) record(rec *wire.SegRecord) (b, inline []byte) {
	b = n.buf.Bytes()
	if rec.Sums == nil {
		return b[:wire.BlockSize], b[wire.BlockSize : wire.BlockSize+rec.Payload]
	}
	b = b[:(1+len(rec.Sums))*wire.BlockSize]
	clear(b[wire.BlockSize+rec.Payload:])
	return b, nil
}

// logAppend tries to append what is in buf once, as a record, in a new segment where need be.
func (n *node) logAppend(rec *wire.SegRecord) error {
	if err := n.own(wire.BlockSize); err != nil { // of the last attempt
		return err
	}
	b, inline := n.record(rec)
	if n.seg != nil && n.seg.Len+uint64(len(b)) > SegmentBytes {
		n.seg.Abandon()
		n.seg = nil
	}
	data := wire.Data{{Buf: n.buf, B: b}}
	if n.seg == nil {
		if n.next > wire.MaxStripIndex {
			return wire.Errorf("log.append", wire.KindTooBig, n.name, "%d segments", n.next)
		}
		id := wire.MakeStripID(n.fs.b.ID(), wire.ClassLog, 0, n.data.Number(), uint16(n.next), n.data.Random())
		seg, err := n.fs.b.NewSegment(id, false)
		if err != nil {
			return err
		}
		n.seg = seg
		n.next++
	}
	rec.ID, rec.Offset = n.seg.Loc.ID, n.seg.Len
	start := int64(-1)
	if n.seg.Len == 0 { // the first record tells where the segment goes on
		n.mu.Lock()
		start = n.saved()
		n.mu.Unlock()
		head, err := n.fs.b.Store().Arena().AllocFor(n.fs.ctx, wire.BlockSize, wire.UseMore)
		if err != nil {
			return err
		}
		defer head.Release()
		payload := encodeSegHead(start)
		first := wire.SegRecord{ID: rec.ID, Epoch: rec.Epoch, Payload: len(payload)}
		first.EncodeHead(head.Bytes(), payload)
		rec.Offset = wire.BlockSize
		data = wire.Data{{Buf: head, B: head.Bytes()}, data[0]}
	}
	rec.EncodeHead(b[:wire.BlockSize], inline)
	if err := n.seg.Append(n.fs.ctx, data); err != nil {
		n.seg.Abandon()
		n.seg = nil
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if start >= 0 {
		ref := segRef{id: n.seg.Loc.ID, start: start, end: start}
		for pos, d := range n.seg.Loc.Drives {
			ref.replicas = append(ref.replicas, replica{drive: d, pos: pos})
		}
		n.segs = append(n.segs, ref)
	}
	ref := &n.segs[len(n.segs)-1]
	ref.bytes = n.seg.Len
	for i := range ref.replicas {
		ref.replicas[i].bytes = n.seg.Len
	}
	return nil
}

// logSeal ends the open segment, in the background. n.write is held.
func (n *node) logSeal() {
	if n.seg != nil {
		n.seg.Abandon()
		n.seg = nil
	}
}

// segmentAt gives the segment that holds the place off of a log, and its index; false past the end of what is on drives.
func (n *node) segmentAt(off int64) (segRef, int, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	i := sort.Search(len(n.segs), func(i int) bool { return n.segs[i].end > off })
	if i == len(n.segs) {
		return segRef{}, i, false
	}
	ref := n.segs[i]
	ref.replicas = append([]replica(nil), ref.replicas...)
	return ref, i, true
}

// scan is what was read of a segment.
type scan struct {
	start   int64 // place in the file
	payload []byte
	bytes   uint64 // read well, heads of records included
	err     error  // why it ended before the longest replica's end: nil, or unreadable there
}

// readSegment reads a segment from its replicas: record after record, each from any replica that has it whole.
func (fs *FS) readSegment(ctx context.Context, id wire.StripID, replicas []replica) scan {
	var s scan
	first := true
	for {
		ended := true // no replica has more
		advanced := false
		var failure error
		for i := range replicas {
			r := replicas[(int(id.Random()%16)+i)%len(replicas)]
			if r.bytes <= s.bytes {
				continue
			}
			ended = false
			n, err := fs.readRecords(ctx, id, r, &s, &first)
			if err != nil {
				failure = err
			}
			if advanced = n > 0; advanced {
				break
			}
		}
		if ended {
			if first && s.err == nil && len(replicas) > 0 {
				s.err = wire.Errorf("log.read", wire.KindCorrupt, id.String(), "empty segment")
			}
			return s
		}
		if !advanced {
			s.err = failure
			return s
		}
	}
}

// readRecords reads whole valid records from one replica at s.bytes into s. It gives how many it found.
func (fs *FS) readRecords(ctx context.Context, id wire.StripID, r replica, s *scan, first *bool) (int, error) {
	want := min(r.bytes-s.bytes, segmentReadBytes)
	rng := wire.ReadRange{ID: id.WithPos(r.pos), Offset: s.bytes, Len: uint32(want)}
	ds, kinds, err := fs.b.ReadStrips(ctx, r.drive, []wire.ReadRange{rng})
	if err != nil {
		return 0, err
	}
	defer ds[0].Release()
	if kinds[0] != wire.KindNone {
		return 0, wire.Errorf("log.read", kinds[0], rng.ID.String(), "drive %d", r.drive)
	}
	b := contiguous(ds[0])
	n := 0
	for len(b) > 0 {
		rec, inline, need, err := wire.DecodeSegHead(b)
		if err == nil && (need > len(b) || rec.Bytes() > len(b)) {
			if n > 0 {
				return n, nil // cut by the window
			}
			err = wire.Errorf("log.read", wire.KindCorrupt, rng.ID.String(), "record is cut")
		}
		if err == nil && (rec.ID != id.WithPos(0) || rec.Offset != s.bytes) {
			err = wire.Errorf("log.read", wire.KindCorrupt, rng.ID.String(), "record of another place")
		}
		if err == nil {
			err = checkBlocks(&rec, b)
		}
		if err == nil && *first {
			start, ok := decodeSegHead(inline)
			if !ok {
				err = wire.Errorf("log.read", wire.KindCorrupt, rng.ID.String(), "first record")
			}
			s.start = start
		}
		if err != nil {
			return n, err
		}
		copies.Add(copies.Meta, rec.Payload)
		if *first {
			*first = false
		} else if rec.Sums == nil {
			s.payload = append(s.payload, inline...)
		} else {
			s.payload = append(s.payload, b[rec.HeadBytes():rec.HeadBytes()+rec.Payload]...)
		}
		s.bytes += uint64(rec.Bytes())
		b = b[rec.Bytes():]
		n++
	}
	return n, nil
}

// checkBlocks verifies the payload blocks of a record that lies whole at the start of b.
func checkBlocks(rec *wire.SegRecord, b []byte) error {
	for i, sum := range rec.Sums {
		at := rec.HeadBytes() + i*wire.BlockSize
		if xxhash.Sum64(b[at:at+wire.BlockSize]) != sum {
			return wire.Errorf("log.read", wire.KindCorrupt, rec.ID.String(), "checksum of block %d of the record at %d", i, rec.Offset)
		}
	}
	return nil
}

// contiguous gives the bytes of d in one slice: without a copy when they are in one part.
func contiguous(d wire.Data) []byte {
	if len(d) == 1 {
		return d[0].B
	}
	b := make([]byte, 0, d.Len())
	for _, s := range d {
		b = append(b, s.B...)
	}
	return b
}
