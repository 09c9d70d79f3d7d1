// Package events keeps the newest events of the cluster: in memory for reading, in the store for ever until newer ones
// push them out.
package events

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/crakefs/crake/mgmt/internal/store"
	"github.com/crakefs/crake/wire"
)

// Limits, each with its reason.
const (
	// Keep is how many events are kept: some days of a cluster that has trouble, some MiB.
	Keep = 10_000
	// maxText bounds the text of an event; processes write it.
	maxText = 2000
	// maxName bounds types and process names.
	maxName = 64
	// maxBatch bounds the events of one write to the store.
	maxBatch = 500
	// burst and refill bound the events of one type and process: so many at once, then one a refill. The others are counted
	// and told in one event later, so that a broken drive cannot push everything else out.
	burst  = 50
	refill = 2 * time.Second
	// maxSources bounds the remembered sources; they are forgotten together when there are more.
	maxSources = 1024
	// retryAfter is the wait after a failed write to the store.
	retryAfter = time.Second
)

// Sink stores events.
type Sink interface {
	SaveEvents(ctx context.Context, events []store.StoredEvent, upTo uint64) error
}

// Log is the ring of events. All methods are safe for concurrent use.
type Log struct {
	sink Sink
	log  *slog.Logger
	wake chan struct{} // capacity 1: there is something to store

	mu      sync.Mutex
	ring    []store.StoredEvent // oldest first, at most Keep; guarded by mu
	next    uint64              // id of the next event; guarded by mu
	saved   uint64              // id of the newest event that is stored; guarded by mu
	sources map[source]*bucket  // guarded by mu
}

type source struct{ typ, proc string }

// bucket is a token bucket.
type bucket struct {
	tokens  float64
	at      time.Time
	dropped int
}

// New makes a log with the events that were stored.
func New(sink Sink, old []store.StoredEvent, log *slog.Logger) *Log {
	l := &Log{sink: sink, log: log, wake: make(chan struct{}, 1), next: 1, sources: map[source]*bucket{}}
	l.ring = append(l.ring, old[max(0, len(old)-Keep):]...)
	if n := len(l.ring); n > 0 {
		l.next = l.ring[n-1].ID + 1
	}
	l.saved = l.next - 1
	return l
}

// Add adds an event, now or, when its source is too loud, not. It never waits.
func (l *Log) Add(severity uint8, typ, proc, text string, at time.Time) {
	severity = min(max(severity, wire.SeverityInfo), wire.SeverityError)
	typ, proc = clean(typ, maxName), clean(proc, maxName)
	l.mu.Lock()
	defer l.mu.Unlock()
	ok, dropped := l.allow(source{typ, proc}, time.Now())
	if dropped > 0 {
		l.put(store.StoredEvent{Time: at.UnixNano(), Severity: severity, Type: typ, Process: proc, Text: fmt.Sprintf("%d more were not written", dropped)})
	}
	if ok {
		l.put(store.StoredEvent{Time: at.UnixNano(), Severity: severity, Type: typ, Process: proc, Text: clean(text, maxText)})
	}
}

func clean(s string, limit int) string {
	s = strings.ToValidUTF8(s[:min(len(s), limit)], "?")
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

// allow takes a token of the source; dropped is how many were refused before this one. Preconditions: mu is held.
func (l *Log) allow(s source, now time.Time) (ok bool, dropped int) {
	b := l.sources[s]
	if b == nil {
		if len(l.sources) >= maxSources {
			clear(l.sources)
		}
		b = &bucket{tokens: burst, at: now}
		l.sources[s] = b
	}
	b.tokens = min(burst, b.tokens+max(0, now.Sub(b.at).Seconds())/refill.Seconds())
	b.at = now
	if b.tokens < 1 {
		b.dropped++
		return false, 0
	}
	b.tokens--
	dropped, b.dropped = b.dropped, 0
	return true, dropped
}

// put appends to the ring. Preconditions: mu is held.
func (l *Log) put(e store.StoredEvent) {
	e.ID = l.next
	l.next++
	l.ring = append(l.ring, e)
	if len(l.ring) > Keep+maxBatch { // cut in steps: a copy for each event would be costly
		l.ring = slices.Clone(l.ring[len(l.ring)-Keep:])
	}
	l.log.Info("event", "type", e.Type, "process", e.Process, "severity", e.Severity, "text", e.Text)
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Filter says which events to list.
type Filter struct {
	Limit    int    // the newest so many
	After    uint64 // ids above
	Severity uint8  // at least
	Type     string // this one; with a final dot, those that start so; "" is all
}

// List gives events, oldest first.
func (l *Log) List(f Filter) []store.StoredEvent {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []store.StoredEvent
	for i := len(l.ring) - 1; i >= max(0, len(l.ring)-Keep) && len(out) < f.Limit; i-- {
		e := l.ring[i]
		if e.ID <= f.After {
			break
		}
		if e.Severity >= f.Severity && (f.Type == "" || e.Type == f.Type || strings.HasSuffix(f.Type, ".") && strings.HasPrefix(e.Type, f.Type)) {
			out = append(out, e)
		}
	}
	slices.Reverse(out)
	return out
}

// Run stores events until ctx ends; then it tries once more to store the rest.
func (l *Log) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		select {
		case <-l.wake:
		case <-ctx.Done():
		}
		for l.flush(ctx) {
		}
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), retryAfter)
	defer cancel()
	for l.flush(last) {
	}
	return nil
}

// flush stores one batch and reports whether to go on.
func (l *Log) flush(ctx context.Context) bool {
	l.mu.Lock()
	first := l.next - uint64(len(l.ring)) // id of ring[0]
	from := max(l.saved+1, first)
	batch := slices.Clone(l.ring[from-first:])
	l.mu.Unlock()
	batch = batch[:min(len(batch), maxBatch)]
	if len(batch) == 0 {
		return false
	}
	newest := batch[len(batch)-1].ID
	upTo := uint64(0)
	if newest > Keep {
		upTo = newest - Keep
	}
	if err := l.sink.SaveEvents(ctx, batch, upTo); err != nil {
		if ctx.Err() != nil {
			return false
		}
		l.log.Warn("cannot store events", "err", err)
		t := time.NewTimer(retryAfter)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		return true
	}
	l.mu.Lock()
	l.saved = newest
	l.mu.Unlock()
	return true
}
