package rpc

import (
	"context"
	"sync/atomic"

	"github.com/crakefs/crake/wire"
)

// A request that Options.Start takes has no goroutine. Its way:
//
//	reader: hold the writer, register, Start ... next frame ... nothing more at hand: Kick, let the writer go
//	anybody, once:  Answer
//
// While the reader works off what one system call has brought it owns the writer's batch (hold), so answers given within Start leave
// together when it lets go (settle), by one system call. It lets go before it reads, waits or yields: what it holds back waits for
// calls of Start only, and for at most burstRequests of them.
//
// The books of a request (served), of Handler's too, are used again after its answer, unless somebody has looked for the end of its ctx: what
// hangs on that may still be on its way to it. They wait in a ring (spareRing), and the youngest are not taken from it: so a second
// Answer to a request finds books that are not in use, and panics, rather than those of another request.

// Whose a served is.
const (
	servedOurs    = iota // nobody may answer it by Answer: Handler has it, or nobody
	servedOffered        // Start is asked, or has taken it
)

// takenState says whether Answer may be called.
type takenState struct{ v atomic.Uint32 }

// Answer ends a request that Options.Start has taken, from any goroutine. It gives away data, in every case, and r, Meta and the ctx
// that came with it must not be used any more. An error travels as a Handler's does. When the connection has ended it has no effect
// but that data is released and the end of the connection, which waits for all that was taken, goes on. It may write to the socket
// but does not wait for it. A second Answer, or one to a request that was not taken, panics.
func (r *Request) Answer(resp wire.Message, data wire.Data, err error) {
	s := r.books
	if s == nil || !s.taken.v.CompareAndSwap(servedOffered, servedOurs) {
		panic("rpc: Answer to a request that was answered before or not taken by Start")
	}
	c := s.req.Conn
	f := c.encodeAnswer(s, resp, data, err)
	c.w.send(f, c.forget(s))
	c.handlers.Done()
}

// offer gives an arrived request to Start, or, if that does not take it or may not be asked, to a handler. It owns r.
func (rd *reader) offer(r *served) error {
	c := rd.c
	if c.o.Start == nil || c.w.backlog.Load() >= maxBacklogBytes {
		return c.accept(r)
	}
	if err := c.register(r); err != nil {
		return err
	}
	if !rd.held {
		rd.held = c.w.hold()
	}
	c.handlers.Add(1)
	r.taken.v.Store(servedOffered)
	if !c.o.Start(&r.ctx, &r.req) {
		if !r.taken.v.CompareAndSwap(servedOffered, servedOurs) {
			panic("rpc: Start has answered a request and not taken it")
		}
		c.handlers.Done()
		c.giveHandler(r)
		return nil
	}
	// r may be answered already, and be another's.
	if rd.started++; rd.started >= burstRequests {
		rd.settle()
	}
	return nil
}

// settle ends a burst: what Start has taken begins, and what was answered meanwhile leaves.
func (rd *reader) settle() {
	if rd.started > 0 {
		rd.started = 0
		if rd.c.o.Kick != nil {
			rd.c.o.Kick()
		}
	}
	if rd.held {
		rd.held = false
		rd.c.w.write()
	}
}

// spareRing keeps books of answered requests for later ones, the oldest first.
type spareRing struct {
	at  [maxSpareServed]*served
	out int // index of the oldest
	n   int
}

func (q *spareRing) put(s *served) {
	if q.n < len(q.at) {
		q.at[(q.out+q.n)%len(q.at)] = s
		q.n++
	}
}

// get gives the oldest, or nil where only the minSpareServed youngest are left.
func (q *spareRing) get() *served {
	if q.n <= minSpareServed {
		return nil
	}
	s := q.at[q.out]
	q.at[q.out] = nil
	q.out = (q.out + 1) % len(q.at)
	q.n--
	return s
}

// retire ends the ctx with its request. true: nobody has looked for its end, so nothing comes back to it.
func (x *reqContext) retire() bool {
	x.mu.Lock()
	untouched := x.done == nil && x.nextID == 0
	x.mu.Unlock()
	x.end(context.Canceled)
	return untouched
}
