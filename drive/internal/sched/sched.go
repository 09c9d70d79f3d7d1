// Package sched decides which IO a device does next: client reads, client writes, rebuild and scrub share it by weight, the
// connections of a class take turns, and what is under way is bounded, so that a read never waits behind much else. limits.go has
// the figures and why, core.go the decision, which has no goroutine, clock or IO; this file makes it safe for concurrent use.
//
// What does not come through here: journal writes and flushes. At most one of each is under way, each serves all that wait for it, of
// whatever class, and everything that is acknowledged needs one: if they waited behind data, a client's write would wait for the
// rebuild whose record is in the same batch.
//
// # How much can wait
//
// Every waiting read of a connection has its memory already, so the arena bounds them: 64 MiB hold 16,384 reads of a block, of about
// 200 bytes each here. Before that, each connection is bounded by its window (wire.MaxInFlight requests). Mutations are
// bounded by the store's slots.
package sched

import (
	"context"
	"sync"

	"github.com/crakefs/crake/wire"
)

// Class is a kind of IO. Among equals the lower one goes first.
type Class uint8

// The classes.
const (
	ClientRead Class = iota
	ClientWrite
	Rebuild // reads and writes
	Scrub   // and the drive's own background work
	// NumClasses is how many there are.
	NumClasses
)

// ReadClass gives the class of a read of a priority.
func ReadClass(p wire.Priority) Class { return classOf(p, ClientRead) }

// WriteClass gives the class of a write of a priority.
func WriteClass(p wire.Priority) Class { return classOf(p, ClientWrite) }

func classOf(p wire.Priority, client Class) Class {
	switch p {
	case wire.PriorityClient:
		return client
	case wire.PriorityRebuild:
		return Rebuild
	}
	return Scrub
}

// Origin says for whom an IO is done: within a class, flows take turns.
type Origin struct {
	Flow     uint64 // of a connection; 0 for the drive itself
	Priority wire.Priority
}

type originKey struct{}

// WithOrigin gives a ctx that carries an origin to where the IO is done; a ctx without counts as a client's, of flow 0.
func WithOrigin(ctx context.Context, o Origin) context.Context {
	return context.WithValue(ctx, originKey{}, o)
}

// OriginOf gives the origin that ctx carries.
func OriginOf(ctx context.Context) Origin {
	o, _ := ctx.Value(originKey{}).(Origin)
	return o
}

// Item is one IO that wants its turn. Whoever makes it may use it again after Leave or a Cancel that succeeded.
type Item struct {
	// Immutable from Enter until Leave.
	Class Class
	Flow  uint64
	Bytes int
	// Ready is called once when the turn has come, if Enter gave false; from the goroutine of somebody's Leave, with no lock held. It
	// must not block.
	Ready func()

	// Of the core.
	flow       *flow // nil: does not wait
	prev, next *Item
}

// Sched is the scheduler of one device. All methods are safe for concurrent use.
type Sched struct {
	turns sync.Pool // of *Turn

	mu   sync.Mutex
	core *core
}

// New makes a scheduler.
func New(l Limits) *Sched { return &Sched{core: newCore(l)} }

// Enter asks for a turn. True: the IO may begin now. False: Ready will be called.
func (s *Sched) Enter(it *Item) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.core.enter(it)
}

// Leave says that the IO has ended, and lets others begin: it calls their Ready, and tells how many.
func (s *Sched) Leave(it *Item) int {
	s.mu.Lock()
	s.core.leave(it)
	return s.beginUnlock()
}

// beginUnlock lets begin whoever may. Preconditions: mu is held; it is freed.
func (s *Sched) beginUnlock() (n int) {
	var first, last *Item
	for it := s.core.next(); it != nil; it = s.core.next() {
		if last == nil {
			first = it
		} else {
			last.next = it
		}
		last = it
		n++
	}
	s.mu.Unlock()
	for it := first; it != nil; {
		next := it.next
		it.next = nil
		it.Ready() // from here on it is another's
		it = next
	}
	return n
}

// Cancel takes an IO back that waits; Ready will not be called. False: its turn has come.
func (s *Sched) Cancel(it *Item) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.core.cancel(it)
}

// Waiting tells how many IOs wait for their turn.
func (s *Sched) Waiting() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.core.waiting
}

// Turn is the right of a goroutine to do one IO.
type Turn struct {
	item  Item
	ready chan struct{} // capacity 1
}

func (s *Sched) newTurn() *Turn {
	if t, ok := s.turns.Get().(*Turn); ok {
		return t
	}
	t := &Turn{ready: make(chan struct{}, 1)}
	t.item.Ready = func() { t.ready <- struct{}{} }
	return t
}

// Wait waits for a turn, until ctx ends. Whoever gets one calls Done. Errors: that of ctx.
func (s *Sched) Wait(ctx context.Context, class Class, flow uint64, bytes int) (*Turn, error) {
	t := s.newTurn()
	t.item.Class, t.item.Flow, t.item.Bytes = class, flow, bytes
	if s.Enter(&t.item) {
		return t, nil
	}
	select {
	case <-t.ready:
		return t, nil
	case <-ctx.Done():
	}
	if !s.Cancel(&t.item) {
		<-t.ready // the turn came at the same time: pass it on
		s.Leave(&t.item)
	}
	s.turns.Put(t)
	return nil, ctx.Err()
}

// Done ends the turn; the Turn must not be used any more. It gives what Leave gives.
func (s *Sched) Done(t *Turn) int {
	n := s.Leave(&t.item)
	s.turns.Put(t)
	return n
}
