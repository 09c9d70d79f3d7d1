package sched

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/crakefs/crake/wire"
)

// TestWait: many goroutines take turns, some give up; at the end nothing is on the books.
func TestWait(t *testing.T) {
	l := DefaultLimits()
	l.IOs = 3
	s := New(l)
	var under, most atomic.Int32
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for j := range 200 {
				ctx, cancel := context.WithCancel(context.Background())
				if (i+j)%3 == 0 {
					go cancel()
				}
				turn, err := s.Wait(ctx, Class(i)%NumClasses, uint64(i), 4096)
				if err == nil {
					n := under.Add(1)
					for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
					}
					under.Add(-1)
					s.Done(turn)
				} else if !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if s.Waiting() != 0 || s.core.load != (Load{}) {
		t.Errorf("%d wait, %+v under way", s.Waiting(), s.core.load)
	}
	if most.Load() > 3 {
		t.Errorf("%d at once", most.Load())
	}
}

// TestLeaveCallsReady: who waits is told by who leaves, and may come again from within.
func TestLeaveCallsReady(t *testing.T) {
	l := DefaultLimits()
	l.IOs = 1
	s := New(l)
	first := &Item{Bytes: 4096}
	if !s.Enter(first) {
		t.Fatal("no turn on an idle device")
	}
	var n int
	second := &Item{Bytes: 4096}
	second.Ready = func() {
		if n++; n < 5 {
			s.Leave(second)
			if !s.Enter(second) {
				t.Error("no turn on an idle device")
			}
		}
	}
	if s.Enter(second) {
		t.Fatal("two at once")
	}
	if s.Waiting() != 1 {
		t.Errorf("%d wait", s.Waiting())
	}
	if got := s.Leave(first); got != 1 || n != 1 {
		t.Errorf("Leave gave %d, Ready was called %d times", got, n)
	}
}

// TestClasses: a priority that this version does not know has the lowest.
func TestClasses(t *testing.T) {
	for p, want := range map[wire.Priority][2]Class{
		wire.PriorityClient: {ClientRead, ClientWrite}, wire.PriorityRebuild: {Rebuild, Rebuild}, wire.PriorityScrub: {Scrub, Scrub}, 77: {Scrub, Scrub},
	} {
		if got := [2]Class{ReadClass(p), WriteClass(p)}; got != want {
			t.Errorf("priority %d: %v, want %v", p, got, want)
		}
	}
	if o := OriginOf(WithOrigin(context.Background(), Origin{Flow: 3, Priority: wire.PriorityScrub})); o.Flow != 3 || o.Priority != wire.PriorityScrub {
		t.Errorf("%+v", o)
	}
	if o := OriginOf(context.Background()); o != (Origin{}) {
		t.Errorf("%+v", o)
	}
}

// BenchmarkUncontended is what an IO pays for its turn when nobody else wants one.
func BenchmarkUncontended(b *testing.B) {
	s := New(DefaultLimits())
	it := &Item{Bytes: 4096}
	b.ReportAllocs()
	for b.Loop() {
		if !s.Enter(it) {
			b.Fatal("no turn")
		}
		s.Leave(it)
	}
}

// BenchmarkContended is the same with 256 of each of 16 connections waiting.
func BenchmarkContended(b *testing.B) {
	l := DefaultLimits()
	l.IOs = 1
	s := New(l)
	var next *Item
	for flow := range uint64(16) {
		for range 256 {
			it := &Item{Flow: flow, Bytes: 4096}
			it.Ready = func() { next = it }
			if s.Enter(it) {
				next = it
			}
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		it := next
		s.Leave(it)
		s.Enter(it)
	}
}
