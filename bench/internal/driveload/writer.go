package driveload

import (
	"context"
	"fmt"
	"math/rand/v2"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

// putter puts strips of StripBytes.
type putter struct {
	s    *Session
	call rpc.Call
	req  wire.PutReq
	buf  *wire.Buf

	keep    int      // strips on the drive at which the older half is deleted
	written []uint64 // numbers of strips on the drive
	ids     []wire.StripID
}

func newPutter(s *Session) (*putter, error) {
	buf, err := s.arena.Alloc(context.Background(), StripBytes)
	if err != nil {
		return nil, err
	}
	p := &putter{s: s, buf: buf}
	p.req = wire.PutReq{Drive: s.cfg.Drive, Epoch: s.epoch, Sums: make([]uint64, StripBytes/wire.BlockSize)}
	p.call = rpc.Call{Method: wire.MDrivePut, Req: &p.req, Data: buf.Data(StripBytes)}
	return p, nil
}

// put puts strip n.
func (p *putter) put(ctx context.Context, n uint64) error {
	p.req.ID = stripID(wire.ClassData, n)
	p.s.content.fill(p.buf.Bytes(), n, 0, p.req.Sums)
	if err := p.s.conn.Do(ctx, &p.call); err != nil {
		return fmt.Errorf("put of strip %d: %w", n, err)
	}
	return nil
}

// step puts a strip. When the drive holds many it also deletes the older half of its own, in one request, so that this costs little.
func (p *putter) step(ctx context.Context) error {
	n := p.s.next.Add(1) - 1
	if err := p.put(ctx, n); err != nil {
		return err
	}
	p.written = append(p.written, n)
	if len(p.written) < p.keep {
		return nil
	}
	half := len(p.written) / 2
	if err := p.delete(ctx, p.written[:half]); err != nil {
		return err
	}
	p.written = append(p.written[:0], p.written[half:]...)
	return nil
}

func (p *putter) delete(ctx context.Context, numbers []uint64) error {
	p.ids = p.ids[:0]
	if p.s.cfg.Echo {
		return nil
	}
	for _, n := range numbers {
		p.ids = append(p.ids, stripID(wire.ClassData, n))
	}
	return p.s.delete(ctx, p.ids)
}

func (p *putter) finish(ctx context.Context) error {
	defer p.release()
	if !p.s.cfg.Echo {
		for range min(sampleStrips, len(p.written)) {
			if err := p.s.readBack(ctx, p.written[rand.IntN(len(p.written))]); err != nil {
				return err
			}
		}
	}
	return p.delete(ctx, p.written)
}

func (p *putter) release() { p.buf.Release() }

// readBack reads a strip and compares all of it.
func (s *Session) readBack(ctx context.Context, n uint64) error {
	r := newReader(s, 1)
	r.strips[0] = n
	r.req.Ranges[0] = wire.ReadRange{ID: stripID(wire.ClassData, n), Len: StripBytes}
	if err := s.conn.Do(ctx, &r.call); err != nil {
		return fmt.Errorf("read back: %w", err)
	}
	defer r.call.RespData.Release()
	if len(r.resp.Status) != 1 || r.resp.Status[0] != wire.KindNone || r.call.RespData.Len() != StripBytes {
		return fmt.Errorf("LOST: strip %d was put, and reading it gives %v and %d bytes", n, r.resp.Status, r.call.RespData.Len())
	}
	var bad error
	r.call.RespData.Blocks(func(i int, b []byte) {
		if err := s.content.check(b, n, i); err != nil && bad == nil {
			bad = err
		}
	})
	return bad
}

// appender appends records of one block to a segment, as a database's log does, and starts another when it has grown long.
type appender struct {
	s    *Session
	call rpc.Call
	req  wire.AppendReq
	resp wire.AppendResp
	rec  wire.SegRecord
	buf  *wire.Buf

	maxBytes uint64 // length at which another segment is started
	segments []wire.StripID
}

// appendPayload fills a record's block but for its head.
const appendPayload = wire.SegInlineBytes

func newAppender(s *Session) (*appender, error) {
	buf, err := s.arena.Alloc(context.Background(), wire.BlockSize)
	if err != nil {
		return nil, err
	}
	a := &appender{s: s, buf: buf}
	a.call = rpc.Call{Method: wire.MDriveAppend, Req: &a.req, Resp: &a.resp, Data: buf.Data(wire.BlockSize)}
	a.open()
	return a, nil
}

// open begins another segment; the first append makes it.
func (a *appender) open() {
	id := stripID(wire.ClassLog, a.s.next.Add(1)-1)
	a.segments = append(a.segments, id)
	a.req = wire.AppendReq{Drive: a.s.cfg.Drive, Epoch: a.s.epoch, ID: id}
	a.rec = wire.SegRecord{ID: id, Epoch: a.s.epoch, Payload: appendPayload}
}

// payload gives what the record at an offset of a segment holds.
func (a *appender) payload(id wire.StripID, off uint64) []byte {
	return a.s.content.of(id.Number(), int(off/wire.BlockSize))[:appendPayload]
}

func (a *appender) step(ctx context.Context) error {
	a.rec.Offset = a.req.Offset
	a.rec.EncodeHead(a.buf.Bytes(), a.payload(a.req.ID, a.req.Offset))
	if err := a.s.conn.Do(ctx, &a.call); err != nil {
		return fmt.Errorf("append at %d: %w", a.req.Offset, err)
	}
	a.req.Offset += wire.BlockSize
	if a.s.cfg.Echo {
		return nil
	}
	if a.resp.Len != a.req.Offset {
		return fmt.Errorf("append: the segment has %d bytes, and should have %d", a.resp.Len, a.req.Offset)
	}
	if a.req.Offset < a.maxBytes {
		return nil
	}
	a.open()
	if len(a.segments) < 3 {
		return nil
	}
	old := a.segments[0]
	a.segments = a.segments[1:]
	return a.s.delete(ctx, []wire.StripID{old})
}

// finish reads the last segment's records back, up to a strip's worth.
func (a *appender) finish(ctx context.Context) error {
	defer a.release()
	if a.s.cfg.Echo {
		return nil
	}
	if a.req.Offset == 0 { // the last one was never made
		a.segments = a.segments[:len(a.segments)-1]
	} else if err := a.readTail(ctx); err != nil {
		return err
	}
	return a.s.delete(ctx, a.segments)
}

func (a *appender) readTail(ctx context.Context) error {
	id, end := a.req.ID, a.req.Offset
	from := end - min(end, StripBytes)
	var resp wire.ReadResp
	call := rpc.Call{Method: wire.MDriveRead, Resp: &resp, Req: &wire.ReadReq{
		Drive: a.s.cfg.Drive, Ranges: []wire.ReadRange{{ID: id, Offset: from, Len: uint32(end - from)}},
	}}
	if err := a.s.conn.Do(ctx, &call); err != nil {
		return fmt.Errorf("read back: %w", err)
	}
	defer call.RespData.Release()
	if len(resp.Status) != 1 || resp.Status[0] != wire.KindNone || call.RespData.Len() != int(end-from) {
		return fmt.Errorf("LOST: %d bytes were appended to %v, and reading from %d gives %v and %d bytes", end, id, from, resp.Status, call.RespData.Len())
	}
	var bad error
	call.RespData.Blocks(func(i int, b []byte) {
		off := from + uint64(i)*wire.BlockSize
		rec, inline, _, err := wire.DecodeSegHead(b)
		switch {
		case bad != nil:
		case err != nil:
			bad = fmt.Errorf("WRONG DATA: record at %d: %w", off, err)
		case rec.Offset != off || rec.ID != id || string(inline) != string(a.payload(id, off)):
			bad = fmt.Errorf("WRONG DATA: the record at %d of %v says that it is at %d of %v, or holds other bytes", off, id, rec.Offset, rec.ID)
		}
	})
	return bad
}

func (a *appender) release() { a.buf.Release() }
