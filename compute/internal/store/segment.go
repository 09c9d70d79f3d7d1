package store

import (
	"context"
	"errors"
	"sync"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

// Segment is a mirrored segment that this process appends to. Not safe for concurrent use.
type Segment struct {
	b *Bucket
	// Loc tells the id and the m+1 drives, in distinct failure domains.
	Loc wire.Location
	// Len is the acknowledged length in bytes: every replica has it.
	Len    uint64
	broken bool
}

// NewSegment chooses drives for a segment with an id of NewID. Nothing is written before the first Append.
// data says that it holds file data, which leaves the reserve free.
func (b *Bucket) NewSegment(id wire.StripID, data bool) (*Segment, error) {
	const op = "segment.create"
	if err := b.alive(op); err != nil {
		return nil, err
	}
	need := logRoomBytes
	if data {
		need = int(b.s.c.SegmentBytes)
	}
	p, err := b.s.newPicker(op, true, data, need)
	if err != nil {
		return nil, err
	}
	n := p.v.m + 1
	drives := p.pick(n)
	if drives == nil {
		return nil, p.err(op, n, nil)
	}
	loc := wire.Location{Kind: wire.LocSegment, K: uint8(p.v.k), M: uint8(p.v.m), ID: id.WithPos(0), Drives: drives}
	return &Segment{b: b, Loc: loc}, nil
}

// Append writes whole records at the end of all replicas, at once, and returns when all are durable. On an error the
// segment takes no more: what was acknowledged stays, the rest may or may not be on some replicas, and belongs in a new
// segment. data is borrowed.
func (s *Segment) Append(ctx context.Context, data wire.Data) error {
	const op = "segment.append"
	if err := s.b.alive(op); err != nil {
		return err
	}
	if s.broken {
		return wire.Errorf(op, wire.KindRefused, s.Loc.ID.String(), "after a failed append")
	}
	n := len(s.Loc.Drives)
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := 1; i < n; i++ {
		wg.Go(func() { errs[i] = s.appendOne(ctx, i, data) })
	}
	errs[0] = s.appendOne(ctx, 0, data) // one goroutine less on the path of every commit
	wg.Wait()
	var failure error
	for i, err := range errs {
		if err == nil {
			continue
		}
		s.b.s.failed(s.Loc.Drives[i], err)
		if failure == nil || errors.Is(err, wire.KindStaleEpoch) {
			failure = err
		}
	}
	if failure != nil {
		s.broken = true
		return failure
	}
	s.Len += uint64(data.Len())
	return nil
}

func (s *Segment) appendOne(ctx context.Context, pos int, data wire.Data) error {
	d := s.Loc.Drives[pos]
	resp := &wire.AppendResp{}
	req := &wire.AppendReq{Drive: d, Epoch: s.b.epoch, ID: s.Loc.ID.WithPos(pos), Offset: s.Len}
	call := &rpc.Call{Method: wire.MDriveAppend, Req: req, Resp: resp, Data: data}
	if err := s.b.ask(ctx, d, s.b.s.c.WriteTimeout, call); err != nil {
		return err
	}
	if want := s.Len + uint64(data.Len()); resp.Len != want {
		return wire.Errorf("segment.append", wire.KindCorrupt, req.ID.String(), "drive %d says %d bytes, want %d", d, resp.Len, want)
	}
	s.b.s.wrote(d, data.Len())
	return nil
}

// Abandon ends the segment: it is sealed in the background where it has acknowledged records, and deleted where it has
// none. Nothing depends on when that happens.
func (s *Segment) Abandon() {
	if s.Len == 0 {
		for pos, d := range s.Loc.Drives {
			s.b.s.del.orphan(s.b, d, s.Loc.ID.WithPos(pos))
		}
		return
	}
	for pos, d := range s.Loc.Drives {
		s.b.s.del.seal(s.b, d, s.Loc.ID.WithPos(pos))
	}
}
