package rpc

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/crakefs/crake/wire"
)

// pending is a call that has been sent and not answered.
type pending struct {
	done  chan struct{} // capacity 1: one token when the call is over
	state atomic.Uint32
	call  *Call // owned by the reader between delivering and the token, else by the caller
	bytes int   // of request data: the share of the window
	err   error // valid after the token
	timer *time.Timer
}

// States of a pending call. The reader moves waiting to delivering when the answer has arrived whole; the caller moves
// waiting to abandoned when it gives up. Whoever comes first has it.
const (
	callWaiting = iota
	callDelivering
	callAbandoned
)

// newPending takes a pending call from the connection's spare ones, or makes one. They are not shared by connections: a channel of
// one simulation (testing/synctest) must not be met in another.
func (c *Conn) newPending(call *Call, bytes int) *pending {
	c.mu.Lock()
	var p *pending
	if n := len(c.spare); n > 0 {
		p, c.spare = c.spare[n-1], c.spare[:n-1]
	}
	c.mu.Unlock()
	if p == nil {
		p = &pending{done: make(chan struct{}, 1)}
	}
	p.call, p.bytes, p.err = call, bytes, nil
	p.state.Store(callWaiting)
	return p
}

// keep makes p a spare one.
// Preconditions: its token has been taken, so nobody else knows it.
func (c *Conn) keep(p *pending) {
	p.call, p.err = nil, nil
	c.mu.Lock()
	if len(c.spare) < maxSpareCalls {
		c.spare = append(c.spare, p)
	}
	c.mu.Unlock()
}

// finish ends the call with err unless the caller gave up.
func (p *pending) finish(err error) {
	if p.state.CompareAndSwap(callWaiting, callDelivering) {
		p.err = err
		p.done <- struct{}{}
	}
}

// Do sends a request and waits for the answer. The ctx deadline travels; without one, 60 s. Errors: what the peer
// answered (*wire.Error), KindConnLost (it may have had an effect), KindTimeout (same), KindInterrupted when ctx was
// cancelled (a cancel frame has been sent). An answer whose data finds no room in the arena in time is
// KindUnavailable.
func (c *Conn) Do(ctx context.Context, call *Call) error {
	const op = "rpc.call"
	call.RespData = nil
	dataBytes := call.Data.Len()
	if dataBytes > wire.MaxDataBytes {
		return wire.Errorf(op, wire.KindOverLimit, c.s.name(), "%d bytes of data, limit %d", dataBytes, wire.MaxDataBytes)
	}
	if err := ctx.Err(); err != nil {
		return ctxError(err, c.s.name())
	}
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(defaultDeadline)
	}
	if err := c.enter(ctx, dataBytes, deadline); err != nil {
		if errors.Is(err, errDone) {
			return c.lost()
		}
		return ctxError(err, c.s.name())
	}
	p := c.newPending(call, dataBytes)
	left := time.Until(deadline)
	id, err := c.ask(p, left)
	if err != nil {
		c.out.release(dataBytes)
		return err
	}
	return c.await(ctx, p, id, left, ok)
}

// enter takes the call's share of the window.
func (c *Conn) enter(ctx context.Context, bytes int, deadline time.Time) error {
	if c.out.try(bytes) {
		return nil
	}
	ctx, cancel := context.WithDeadline(ctx, deadline) // without effect where ctx has one
	defer cancel()
	return c.out.acquire(ctx, bytes, c.done)
}

// ask registers and sends the request.
func (c *Conn) ask(p *pending, left time.Duration) (id uint64, err error) {
	call := p.call
	c.mu.Lock()
	if c.ended {
		c.mu.Unlock()
		return 0, c.lost()
	}
	c.nextID++
	id = c.nextID
	c.calls[id] = p
	company := len(c.calls) > 1
	c.mu.Unlock()

	h := c.header(wire.FrameRequest, id)
	h.Method, h.Epoch, h.Trace = call.Method, call.Epoch, call.Trace
	h.DeadlineMs = uint32(min(max(left.Milliseconds(), 1), 1<<32-1))
	f := outFrame{head: newHeadBuf(), data: call.Data, id: id, req: true}
	if err := c.encode(&f, &h, call.Req); err != nil {
		f.head.free()
		c.mu.Lock()
		delete(c.calls, id)
		c.mu.Unlock()
		return 0, err
	}
	f.data.Retain()      // nil where it is lent: the loan has its own
	c.w.send(f, company) // when it refuses, fail ends the call
	return id, nil
}

// encode writes header and meta of a frame of the connection. Where it can, it lends the data: then f has none any more, and the caller
// releases it if it was to go with the frame.
func (c *Conn) encode(f *outFrame, h *wire.Header, m wire.Message) error {
	if m != nil {
		f.head.b = m.Append(f.head.b)
	}
	meta := f.head.b[wire.HeaderBytes:]
	if len(meta) > wire.MaxMetaBytes {
		return wire.Errorf("rpc.encode", wire.KindOverLimit, "", "%d bytes of meta, limit %d", len(meta), wire.MaxMetaBytes)
	}
	n := f.data.Len()
	if c.shm != nil && n > 0 {
		id := requestLoan(h.ID)
		if h.Kind == wire.FrameResponse {
			id = responseLoan(h.ID)
		}
		if refs := c.shm.lend.lend(id, f.data, f.head); refs > 0 {
			h.Flags, h.Refs, f.data = h.Flags|wire.FlagReferences, uint16(refs), nil
			meta = f.head.b[wire.HeaderBytes:]
		}
	}
	h.MetaBytes, h.DataBytes = uint32(len(meta)), uint32(n)
	h.Encode(f.head.b[:wire.HeaderBytes], meta)
	return nil
}

// await waits for the answer, the end of ctx or, when that has no deadline, the default one.
func (c *Conn) await(ctx context.Context, p *pending, id uint64, left time.Duration, hasDeadline bool) error {
	var expired <-chan time.Time
	if !hasDeadline {
		if p.timer == nil {
			p.timer = time.NewTimer(left)
		} else {
			p.timer.Reset(left)
		}
		expired = p.timer.C
	}
	var giveUp error
	select {
	case <-p.done:
	case <-ctx.Done():
		giveUp = ctx.Err()
	case <-expired:
		giveUp = context.DeadlineExceeded
	}
	if p.timer != nil {
		p.timer.Stop()
	}
	if giveUp != nil {
		if p.state.CompareAndSwap(callWaiting, callAbandoned) {
			c.abandon(id, p)
			return ctxError(giveUp, c.s.name())
		}
		<-p.done // the answer has just come
	}
	err := p.err
	c.keep(p)
	return err
}

// abandon withdraws the request if it was not sent, else tells the peer that nobody waits. The call stays registered, and
// keeps its share of the window, until the peer answers.
func (c *Conn) abandon(id uint64, p *pending) {
	if c.w.withdraw(id) {
		c.mu.Lock()
		delete(c.calls, id)
		c.mu.Unlock()
		c.out.release(p.bytes)
		if c.shm != nil {
			c.shm.lend.returned(requestLoan(id))
		}
		return
	}
	h := c.header(wire.FrameCancel, id)
	f := outFrame{head: newHeadBuf()}
	_ = c.encode(&f, &h, nil) // no meta, so within the limit
	c.w.send(f, false)
}

// ctxError turns the error of a ctx into ours.
func ctxError(err error, peer string) error {
	kind := wire.KindInterrupted
	if errors.Is(err, context.DeadlineExceeded) {
		kind = wire.KindTimeout
	}
	return wire.E("rpc.call", kind, peer, err)
}

// answered takes the call that an arrived response belongs to. ok is false for an id that was never asked or was answered
// already: a broken peer.
func (c *Conn) answered(id uint64) (p *pending, ok bool) {
	c.mu.Lock()
	p, ok = c.calls[id]
	if ok {
		delete(c.calls, id)
	}
	ok = ok || c.ended
	c.mu.Unlock()
	return p, ok
}

// deliver ends a call with its answer: meta is the meta section, data belongs to the caller from now on.
func (p *pending) deliver(h *wire.Header, meta []byte, data wire.Data, err error) {
	if !p.state.CompareAndSwap(callWaiting, callDelivering) {
		data.Release() // given up
		return
	}
	switch {
	case err != nil:
	case h.Status != wire.KindNone:
		err = decodeError(h.Status, meta)
	case p.call.Resp != nil:
		err = p.call.Resp.Decode(meta)
	}
	if err != nil {
		data.Release()
	} else {
		p.call.RespData = data
	}
	p.err = err
	p.done <- struct{}{}
}

// decodeError makes the error that travelled.
func decodeError(status wire.Kind, meta []byte) error {
	var b wire.ErrorBody
	if err := b.Decode(meta); err != nil {
		return wire.E("rpc.call", status, "", err)
	}
	e := &wire.Error{Op: b.Op, Kind: status, ID: b.ID}
	if b.Text != "" {
		e.Err = errors.New(b.Text)
	}
	return e
}
