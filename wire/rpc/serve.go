package rpc

import (
	"context"
	"errors"
	"time"

	"github.com/crakefs/crake/wire"
)

// served is a request of the peer that is not answered yet.
type served struct {
	req   Request
	ctx   reqContext
	meta  *headBuf // memory of req.Meta, or nil
	big   *wire.Buf
	bytes int        // of data, as it arrived
	loan  *wire.Loan // of data that came by reference, until the request is answered; nil: none
	gave  bool       // such data is given back already: there was no room for the request
	taken takenState
}

// accept takes an arrived request: starts its handler, or queues it. It owns r.
func (c *Conn) accept(r *served) error {
	if err := c.register(r); err != nil {
		return err
	}
	c.giveHandler(r)
	return nil
}

// register puts a request on the books. It owns r when it fails.
func (c *Conn) register(r *served) error {
	id := r.req.Header.ID
	c.serveMu.Lock()
	defer c.serveMu.Unlock()
	if _, twice := c.serving[id]; twice || len(c.serving) >= maxQueued {
		r.req.Data.Release()
		r.free()
		return wire.Errorf("rpc.read", wire.KindBadFrame, c.s.name(), "request %d while %d are unanswered: twice, or past the window of %d",
			id, len(c.serving), maxQueued)
	}
	c.serving[id] = r
	c.servedBytes += r.bytes
	return nil
}

// giveHandler starts the handler of a registered request, or queues it.
func (c *Conn) giveHandler(r *served) {
	c.serveMu.Lock()
	start := c.mayStart()
	if start {
		c.running++
		if len(c.idle) == 0 {
			c.handlers.Add(1)
		}
	} else {
		c.queue = append(c.queue, r)
	}
	var w *worker
	if n := len(c.idle); start && n > 0 {
		w, c.idle = c.idle[n-1], c.idle[:n-1]
	}
	c.serveMu.Unlock()
	switch {
	case w != nil:
		w.next <- r
	case start:
		go c.handle(r)
	}
}

// worker is a goroutine that has handled requests and waits for more: its stack has grown already, which costs a new one about a
// microsecond.
type worker struct {
	next chan *served // capacity 1; nil ends it
}

// mayStart says that the limits allow a further handler.
// Preconditions: serveMu is held.
func (c *Conn) mayStart() bool {
	return c.running < c.o.MaxHandlers && c.w.backlog.Load() < maxBacklogBytes
}

// startQueued starts handlers of queued requests as far as the limits allow.
func (c *Conn) startQueued() {
	c.serveMu.Lock()
	defer c.serveMu.Unlock()
	for len(c.queue) > 0 && c.mayStart() {
		r := c.queue[0]
		c.queue = c.queue[1:]
		c.running++
		c.handlers.Add(1)
		go c.handle(r)
	}
}

// handle answers requests in the goroutine of a handler: one, then queued ones, and, if it is among the few that may wait idle, those
// that come later.
func (c *Conn) handle(r *served) {
	defer c.handlers.Done()
	var me worker
	for r != nil {
		var resp wire.Message
		var data wire.Data
		var err error
		switch {
		case r.ctx.Err() != nil: // while it waited in the queue
			r.req.Data.Release()
			err = wire.E("rpc.serve", wire.KindInterrupted, "", r.ctx.Err())
		case c.o.Handler == nil:
			r.req.Data.Release()
			err = wire.E("rpc.serve", wire.KindRefused, "", errors.New("this side answers no requests"))
		default:
			resp, data, err = c.o.Handler(&r.ctx, &r.req)
		}
		f := c.encodeAnswer(r, resp, data, err)
		c.w.send(f, c.forget(r))
		r = c.nextRequest(&me)
	}
}

// forget takes an answered request off the books: before the answer leaves, because the peer may ask again as soon as it has it. It tells
// whether others are there. r may be another request when it returns.
func (c *Conn) forget(r *served) (company bool) {
	reusable := r.ctx.retire()
	r.free()
	c.serveMu.Lock()
	defer c.serveMu.Unlock()
	delete(c.serving, r.req.Header.ID)
	c.servedBytes -= r.bytes
	if reusable {
		c.spareServed.put(r)
	}
	return len(c.serving) > 0
}

// nextRequest gives a handler's goroutine its next request, perhaps after waiting idle for it; nil when it must end.
func (c *Conn) nextRequest(me *worker) *served {
	c.serveMu.Lock()
	if len(c.queue) > 0 && c.w.backlog.Load() < maxBacklogBytes {
		r := c.queue[0]
		c.queue = c.queue[1:]
		c.serveMu.Unlock()
		return r
	}
	c.running--
	if len(c.idle) >= maxIdleWorkers || c.noMore {
		c.serveMu.Unlock()
		return nil
	}
	if me.next == nil {
		me.next = make(chan *served, 1)
	}
	c.idle = append(c.idle, me)
	c.serveMu.Unlock()
	return <-me.next
}

// encodeAnswer makes the response to a request; it owns data.
func (c *Conn) encodeAnswer(s *served, resp wire.Message, data wire.Data, err error) outFrame {
	if err == nil && data.Len() > wire.MaxDataBytes {
		err = wire.Errorf("rpc.serve", wire.KindOverLimit, "", "answer of %d bytes of data, limit %d", data.Len(), wire.MaxDataBytes)
	}
	req := &s.req.Header
	h := c.header(wire.FrameResponse, req.ID)
	h.Method, h.Epoch, h.Trace = req.Method, req.Epoch, req.Trace
	if s.dataReturned() {
		h.Flags = wire.FlagDataReturned
	}
	f := outFrame{head: newHeadBuf(), data: data}
	if err == nil {
		if err = c.encode(&f, &h, resp); err == nil && f.data == nil {
			data.Release() // the loan has its own references
		}
	}
	if err != nil {
		f.head.b = f.head.b[:wire.HeaderBytes]
		f.data.Release()
		f.data = nil
		var body wire.ErrorBody
		h.Status, body = errorBody(err)
		_ = c.encode(&f, &h, &body) // errorBody keeps it short
	}
	return f
}

// dataReturned ends the loan of a request's data as far as the answer goes. true: nobody has any of it, so the answer gives it back.
func (s *served) dataReturned() bool {
	loan := s.loan
	s.loan = nil
	return s.gave || loan != nil && loan.Answered()
}

// errorBody makes what travels of an error: a *wire.Error as it is, the end of a ctx as KindTimeout or KindInterrupted, any other
// as KindOther. Its texts are cut: an error is for people.
func errorBody(err error) (wire.Kind, wire.ErrorBody) {
	const longest = 4096
	cut := func(s string) string { return s[:min(len(s), longest)] }
	kind := wire.KindOf(err)
	var e *wire.Error
	if !errors.As(err, &e) || e.Kind == wire.KindNone {
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			kind = wire.KindTimeout
		case errors.Is(err, context.Canceled):
			kind = wire.KindInterrupted
		case kind == wire.KindNone:
			kind = wire.KindOther
		}
		return kind, wire.ErrorBody{Text: cut(err.Error())}
	}
	body := wire.ErrorBody{Op: cut(e.Op), ID: cut(e.ID)}
	if e.Err != nil {
		body.Text = cut(e.Err.Error())
	}
	return e.Kind, body
}

func (r *served) free() {
	r.dataReturned() // of a request that is not answered any more
	if r.meta != nil {
		r.meta.free()
		r.meta = nil
	}
	if r.big != nil {
		r.big.Release()
		r.big = nil
	}
	r.req.Meta = nil
}

// cancelled ends the ctx of a request that the asker no longer waits for.
func (c *Conn) cancelled(id uint64) {
	c.serveMu.Lock()
	defer c.serveMu.Unlock()
	if r := c.serving[id]; r != nil {
		r.ctx.end(context.Canceled) // under the lock: once it is off the books, r may be another request's
	}
}

// stopServing ends the ctx of all requests, drops those without a handler, and waits for the handlers and for the answers to all that
// Start has taken: so after OnClose nobody works on a request of the connection, and whatever memory they used may go.
func (c *Conn) stopServing() {
	c.serveMu.Lock()
	for _, r := range c.queue {
		r.req.Data.Release()
		r.free()
		delete(c.serving, r.req.Header.ID)
	}
	c.queue = nil
	c.noMore = true
	for _, w := range c.idle {
		w.next <- nil
	}
	c.idle = nil
	for _, r := range c.serving {
		r.ctx.end(context.Canceled)
	}
	c.serveMu.Unlock()
	c.handlers.Wait()
}

// newServed makes the books of a request that has arrived now.
func (c *Conn) newServed(h wire.Header, now time.Time) *served {
	c.serveMu.Lock()
	r := c.spareServed.get()
	c.serveMu.Unlock()
	if r == nil {
		r = &served{}
	} else {
		*r = served{}
	}
	r.req = Request{Conn: c, Header: h, books: r}
	r.bytes = int(h.DataBytes)
	if h.DeadlineMs != 0 {
		r.ctx.deadline = now.Add(time.Duration(h.DeadlineMs) * time.Millisecond)
	}
	return r
}
