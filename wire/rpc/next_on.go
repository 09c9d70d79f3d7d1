//go:build crake_next

package rpc

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/crakefs/crake/wire"
)

// What the test build of the next version does on every connection: it fills what that version adds to messages, verifies what the peer
// has filled, and uses the method that the version adds. What is not as it must be is logged as an error with "next:" in front; what was
// seen to work, once for each kind of it, as an event.

const (
	nextEchoEvery   = 200 * time.Millisecond
	nextEchoTimeout = 10 * time.Second // under any load
)

// startNext puts the checks of requests in front of the handler, and begins to use the added method where the peer has it.
// Preconditions: the connection reads nothing yet.
func (c *Conn) startNext(wg *sync.WaitGroup) {
	handler, start := c.o.Handler, c.o.Start
	c.o.Handler = func(ctx context.Context, r *Request) (wire.Message, wire.Data, error) {
		if r.Header.Method == wire.MNextEcho {
			return c.answerEcho(r)
		}
		if start == nil {
			c.checkRequest(r)
		}
		if handler == nil {
			r.Data.Release()
			return nil, nil, wire.E("rpc.serve", wire.KindRefused, "", errors.New("this side answers no requests"))
		}
		return handler(ctx, r)
	}
	if start != nil {
		c.o.Start = func(ctx context.Context, r *Request) bool {
			if r.Header.Method == wire.MNextEcho {
				return false
			}
			c.checkRequest(r)
			return start(ctx, r)
		}
	}
	if c.version >= wire.VersionNext {
		wg.Go(c.echoNext)
	}
}

// sendNext gives the message as it is sent: a copy with the field, if it has one. The caller's stays as it is, because it may be sent on
// several connections at once.
func (c *Conn) sendNext(method wire.Method, m wire.Message) wire.Message {
	if g, ok := m.(wire.Grown); !ok || reflect.ValueOf(g).IsNil() {
		return m
	}
	cp := reflect.New(reflect.TypeOf(m).Elem())
	cp.Elem().Set(reflect.ValueOf(m).Elem())
	g := cp.Interface().(wire.Grown)
	*g.AddedNext() = wire.NextOf(c.o.Self.Proc, method)
	return g
}

// gotNext verifies the field of an answer.
func (c *Conn) gotNext(call *Call) {
	if g, ok := call.Resp.(wire.Grown); ok {
		c.check("answer", call.Method, *g.AddedNext())
		*g.AddedNext() = wire.Next{} // the caller may send on what it got
	}
}

// checkRequest verifies the field of a request.
func (c *Conn) checkRequest(r *Request) {
	g := wire.GrownRequest(r.Header.Method)
	if g == nil {
		return
	}
	if err := g.Decode(r.Meta); err != nil {
		c.log.Error("next: a request does not decode", "method", uint16(r.Header.Method), "peer", c.s.name(), "err", err)
		return
	}
	c.check("request", r.Header.Method, *g.AddedNext())
}

// check compares a field with what the peer, at its version, must have sent.
func (c *Conn) check(what string, method wire.Method, got wire.Next) {
	var want wire.Next
	if c.version >= wire.VersionNext {
		want = wire.NextOf(c.peer.Proc, method)
	}
	if got != want {
		c.log.Error("next: a field is not what it must be", "what", what, "method", fmt.Sprintf("%#x", uint16(method)), "peer", c.s.name(),
			"version", c.version, "got", got, "want", want)
		return
	}
	c.seen(what, method)
}

// nextSeen are the lines that this process has logged already.
var nextSeen sync.Map

// seen logs, once in a process, that something was as it must be.
func (c *Conn) seen(what string, method wire.Method) {
	line := fmt.Sprintf("next: verified %s %#x with %s at version %d", what, uint16(method), c.peer.Role, c.version)
	if _, twice := nextSeen.LoadOrStore(line, true); !twice {
		c.log.Info(line)
	}
}

// answerEcho answers the added method.
func (c *Conn) answerEcho(r *Request) (wire.Message, wire.Data, error) {
	r.Data.Release()
	if c.version < wire.VersionNext {
		c.log.Error("next: the added method came from a peer that does not have it", "peer", c.s.name(), "version", c.version)
	}
	var m wire.NextEcho
	if err := m.Decode(r.Meta); err != nil {
		return nil, nil, err
	}
	return &m, nil, nil
}

// echoNext uses the added method as long as the connection lives.
func (c *Conn) echoNext() {
	t := time.NewTicker(nextEchoEvery)
	defer t.Stop()
	for n := uint64(0); ; n++ {
		ctx, cancel := context.WithTimeout(c.ctx, nextEchoTimeout)
		sent := wire.NextEcho{From: c.o.Self.Proc, Text: fmt.Sprint("echo ", n), Marks: []wire.Next{{From: 1, Mark: n}, {Mark: n + 1}}}
		var got wire.NextEcho
		err := c.Do(ctx, &Call{Method: wire.MNextEcho, Req: &sent, Resp: &got})
		cancel()
		switch {
		case wire.KindOf(err) == wire.KindConnLost, c.ctx.Err() != nil:
			return
		case err != nil || got.From != sent.From || got.Text != sent.Text || !slices.Equal(got.Marks, sent.Marks):
			c.log.Error("next: the added method failed", "peer", c.s.name(), "sent", sent, "got", got, "err", err)
		default:
			c.seen("method", wire.MNextEcho)
		}
		select {
		case <-c.done:
			return
		case <-t.C:
		}
	}
}
