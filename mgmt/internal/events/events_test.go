package events

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/crakefs/crake/mgmt/internal/store"
	"github.com/crakefs/crake/wire"
)

type sink struct {
	mu    sync.Mutex
	fails int
	kept  map[uint64]store.StoredEvent
}

func (s *sink) SaveEvents(_ context.Context, events []store.StoredEvent, upTo uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fails > 0 {
		s.fails--
		return errors.New("store is away")
	}
	for _, e := range events {
		s.kept[e.ID] = e
	}
	for id := range s.kept {
		if id <= upTo {
			delete(s.kept, id)
		}
	}
	return nil
}

func newLog(s *sink, old []store.StoredEvent) *Log {
	return New(s, old, slog.New(slog.NewTextHandler(io.Discard, nil)))
}

// Claim: the newest Keep events are kept, in memory and in the store, with rising ids, and ids go on after a restart.
func TestRing(t *testing.T) {
	s := &sink{kept: map[uint64]store.StoredEvent{}, fails: 1}
	l := newLog(s, nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = l.Run(ctx) }()
	const n = Keep + 700
	for i := range n {
		l.Add(wire.SeverityInfo, "t", fmt.Sprint("p", i), fmt.Sprint(i), time.Now())
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		l.mu.Lock()
		saved := l.saved
		l.mu.Unlock()
		if saved == n {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("saved up to %d", saved)
		}
	}
	cancel()
	<-done
	list := l.List(Filter{Limit: n})
	if len(list) != Keep || list[0].ID != n-Keep+1 || list[Keep-1].Text != fmt.Sprint(n-1) {
		t.Fatalf("%d events from %d", len(list), list[0].ID)
	}
	if len(s.kept) != Keep {
		t.Fatalf("%d stored", len(s.kept))
	}
	again := newLog(s, list)
	again.Add(wire.SeverityError, "t", "", "next", time.Now())
	if got := again.List(Filter{Limit: 1}); len(got) != 1 || got[0].ID != n+1 {
		t.Fatalf("after a restart: %+v", got)
	}
}

// Claim: a loud source does not push the others out, and what was dropped is counted.
func TestLoudSource(t *testing.T) {
	l := newLog(&sink{kept: map[uint64]store.StoredEvent{}}, nil)
	for range 100_000 {
		l.Add(wire.SeverityError, "strip.corrupt", "drive0", "again", time.Now())
	}
	l.Add(wire.SeverityInfo, "other", "drive1", "quiet", time.Now())
	list := l.List(Filter{Limit: Keep})
	if len(list) > burst+10 || list[len(list)-1].Text != "quiet" {
		t.Fatalf("%d events", len(list))
	}
	b := l.sources[source{"strip.corrupt", "drive0"}]
	b.at = b.at.Add(-time.Minute)
	l.Add(wire.SeverityError, "strip.corrupt", "drive0", "later", time.Now())
	list = l.List(Filter{Limit: 2})
	if !strings.HasSuffix(list[0].Text, "more were not written") || list[1].Text != "later" {
		t.Fatalf("%+v", list)
	}
}

// Claim: what a process says cannot break a line or the answer's encoding, and is bounded.
func TestClean(t *testing.T) {
	l := newLog(&sink{kept: map[uint64]store.StoredEvent{}}, nil)
	l.Add(200, strings.Repeat("t", 500), "a\nb\x00", "x\xff\x1b[1m"+strings.Repeat("y", 5000), time.Now())
	e := l.List(Filter{Limit: 1})[0]
	if e.Severity != wire.SeverityError || len(e.Type) != maxName || e.Process != "a b " || len(e.Text) > maxText || !strings.HasPrefix(e.Text, "x? [1m") {
		t.Fatalf("%+v", e)
	}
}

func TestFilter(t *testing.T) {
	l := newLog(&sink{kept: map[uint64]store.StoredEvent{}}, nil)
	for i, typ := range []string{"a.x", "a.y", "b", "a.x"} {
		l.Add(uint8(i%3)+1, typ, "", "", time.Now())
	}
	for _, c := range []struct {
		f    Filter
		want string
	}{
		{Filter{Limit: 10}, "[1 2 3 4]"}, {Filter{Limit: 2}, "[3 4]"}, {Filter{Limit: 10, After: 2}, "[3 4]"},
		{Filter{Limit: 10, Type: "a."}, "[1 2 4]"}, {Filter{Limit: 10, Type: "a.x"}, "[1 4]"}, {Filter{Limit: 10, Type: "a"}, "[]"},
		{Filter{Limit: 10, Severity: 2}, "[2 3]"},
	} {
		ids := []uint64{}
		for _, e := range l.List(c.f) {
			ids = append(ids, e.ID)
		}
		if fmt.Sprint(ids) != c.want {
			t.Errorf("%+v: %v, want %s", c.f, ids, c.want)
		}
	}
}
