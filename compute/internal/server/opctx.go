package server

import (
	"context"
	"sync"
	"time"
)

// opCtx is the ctx of an operation: it ends at the deadline, with the bucket's service or with the session. Most
// operations never wait, so the timer and the hooks into the other two are made when somebody first asks for Done (a
// context.WithDeadline for each would be a tenth of the CPU of a create).
type opCtx struct {
	bucket, session context.Context
	deadline        time.Time

	mu     sync.Mutex
	inner  context.Context // made by Done; nil before
	cancel context.CancelFunc
	unhook func() bool
	ended  bool
}

// Deadline implements context.Context.
func (c *opCtx) Deadline() (time.Time, bool) { return c.deadline, true }

// Value implements context.Context: there are none.
func (c *opCtx) Value(any) any { return nil }

// Done implements context.Context.
func (c *opCtx) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inner == nil {
		c.inner, c.cancel = context.WithDeadline(c.bucket, c.deadline)
		c.unhook = context.AfterFunc(c.session, c.cancel)
		if c.ended {
			c.cancel()
		}
	}
	return c.inner.Done()
}

// Err implements context.Context.
func (c *opCtx) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.inner != nil:
		return c.inner.Err()
	case c.ended || c.bucket.Err() != nil || c.session.Err() != nil:
		return context.Canceled
	case !time.Now().Before(c.deadline):
		return context.DeadlineExceeded
	}
	return nil
}

// end gives back what Done made; the operation is over.
func (c *opCtx) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	if c.inner != nil {
		c.unhook()
		c.cancel()
	}
}
