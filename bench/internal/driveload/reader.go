package driveload

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

// worker does one request at a time.
type worker interface {
	// step does a request and waits for the answer.
	step(ctx context.Context) error
	// finish compares a sample of what was written, deletes all of it, and gives memory back.
	finish(ctx context.Context) error
	// release gives memory back, where finish is not called.
	release()
}

// reader reads the prepared strips: single blocks at random, or runs of whole strips in order.
type reader struct {
	s      *Session
	rng    *rand.Rand     // nil: in order
	cursor *atomic.Uint64 // in order: the next request of all workers
	call   rpc.Call
	req    wire.ReadReq
	resp   wire.ReadResp
	strips []uint64 // of the ranges of req
	first  int      // block of the first strip with which the answer begins
	blocks uint64   // received, for compareEvery
	err    error    // of a comparison
}

func newReader(s *Session, ranges int) *reader {
	r := &reader{s: s, strips: make([]uint64, ranges)}
	r.req = wire.ReadReq{Drive: s.cfg.Drive, Ranges: make([]wire.ReadRange, ranges)}
	r.call = rpc.Call{Method: wire.MDriveRead, Req: &r.req, Resp: &r.resp}
	return r
}

// newRandomReader reads one block of a strip at a time.
func newRandomReader(s *Session, seed int) *reader {
	r := newReader(s, 1)
	r.rng = rand.New(rand.NewPCG(uint64(seed), 0x6372616b65))
	return r
}

// newSequentialReader reads bytesEach at a time, in whole strips, in the order in which they were put; all workers share a cursor.
func newSequentialReader(s *Session, bytesEach int, cursor *atomic.Uint64) *reader {
	r := newReader(s, bytesEach/StripBytes)
	r.cursor = cursor
	return r
}

// choose fills the request.
func (r *reader) choose() {
	if r.rng != nil {
		r.strips[0] = r.rng.Uint64N(uint64(r.s.strips))
		r.first = r.rng.IntN(StripBytes / wire.BlockSize)
		r.req.Ranges[0] = wire.ReadRange{
			ID: stripID(wire.ClassData, r.strips[0]), Offset: uint64(r.first) * wire.BlockSize, Len: wire.BlockSize,
		}
		return
	}
	at := (r.cursor.Add(1) - 1) * uint64(len(r.strips))
	for i := range r.strips {
		r.strips[i] = (at + uint64(i)) % uint64(r.s.strips)
		r.req.Ranges[i] = wire.ReadRange{ID: stripID(wire.ClassData, r.strips[i]), Len: StripBytes}
	}
}

func (r *reader) step(ctx context.Context) error {
	r.choose()
	if err := r.s.conn.Do(ctx, &r.call); err != nil {
		return fmt.Errorf("read: %w", err)
	}
	defer r.call.RespData.Release()
	if r.s.cfg.Echo {
		return nil
	}
	for i, k := range r.resp.Status {
		if k != wire.KindNone {
			return fmt.Errorf("read of strip %d: %w", r.strips[i], wire.E("drive.read", k, "", nil))
		}
	}
	want := 0
	for _, g := range r.req.Ranges {
		want += int(g.Len)
	}
	if got := r.call.RespData.Len(); got != want || len(r.resp.Status) != len(r.strips) {
		return fmt.Errorf("read: %d bytes for %d ranges came, %d were asked for", got, len(r.resp.Status), want)
	}
	r.call.RespData.Blocks(r.compare)
	return r.err
}

// compare checks the i-th block of the answer.
func (r *reader) compare(i int, b []byte) {
	const perStrip = StripBytes / wire.BlockSize
	strip, block := r.strips[i/perStrip], r.first+i%perStrip
	var err error
	if r.blocks++; r.blocks%compareEvery == 1 {
		err = r.s.content.check(b, strip, block)
	} else {
		err = checkStamp(b, strip, block)
	}
	if err != nil && r.err == nil {
		r.err = err
	}
}

func (r *reader) finish(context.Context) error { return nil }
func (r *reader) release()                     {}
