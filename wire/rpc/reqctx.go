package rpc

import (
	"context"
	"sync"
	"time"
)

// reqContext is the ctx of a handler. It lies in the request's own allocation, and its channel and timer are made only when the
// handler looks for them: most handlers never do.
type reqContext struct {
	deadline time.Time // zero: none; immutable

	mu     sync.Mutex
	err    error
	done   chan struct{}
	timer  *time.Timer
	nextID int
	after  map[int]func()
}

// Deadline implements context.Context.
func (x *reqContext) Deadline() (time.Time, bool) { return x.deadline, !x.deadline.IsZero() }

// Value implements context.Context: there are none.
func (x *reqContext) Value(any) any { return nil }

// Err implements context.Context.
func (x *reqContext) Err() error {
	x.mu.Lock()
	err := x.err
	x.mu.Unlock()
	if err == nil && !x.deadline.IsZero() && !time.Now().Before(x.deadline) {
		x.end(context.DeadlineExceeded)
		return context.DeadlineExceeded
	}
	return err
}

// Done implements context.Context.
func (x *reqContext) Done() <-chan struct{} {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.done == nil {
		x.done = make(chan struct{})
		if x.err != nil {
			close(x.done)
		}
		x.arm()
	}
	return x.done
}

// AfterFunc lets package context hang children on this ctx without a goroutine for each.
func (x *reqContext) AfterFunc(f func()) (stop func() bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.err != nil {
		go f()
		return func() bool { return false }
	}
	if x.after == nil {
		x.after = map[int]func(){}
	}
	id := x.nextID
	x.nextID++
	x.after[id] = f
	x.arm()
	return func() bool {
		x.mu.Lock()
		defer x.mu.Unlock()
		_, ok := x.after[id]
		delete(x.after, id)
		return ok
	}
}

// arm starts the timer of the deadline.
// Preconditions: x.mu is held.
func (x *reqContext) arm() {
	if x.timer == nil && x.err == nil && !x.deadline.IsZero() {
		x.timer = time.AfterFunc(time.Until(x.deadline), func() { x.end(context.DeadlineExceeded) })
	}
}

// end ends the ctx for the first reason given.
func (x *reqContext) end(err error) {
	x.mu.Lock()
	if x.err != nil {
		x.mu.Unlock()
		return
	}
	x.err = err
	if x.done != nil {
		close(x.done)
	}
	if x.timer != nil {
		x.timer.Stop()
	}
	after := x.after
	x.after = nil
	x.mu.Unlock()
	for _, f := range after {
		go f() // as context.AfterFunc promises: in a goroutine of its own
	}
}
