package lease

import (
	"testing"

	"github.com/crakefs/crake/wire"
)

// Claim: a grant that is older than a recall seen, or that answers a request from before the lease was given up, is void.
func TestState(t *testing.T) {
	const none, read, write = wire.LeaseNone, wire.LeaseRead, wire.LeaseWrite
	grant := func(tok Token, m wire.LeaseMode, seq uint64, want bool) func(*testing.T, *State) {
		return func(t *testing.T, s *State) {
			t.Helper()
			if got := s.Grant(tok, wire.Lease{Mode: m, Seq: seq}); got != want {
				t.Errorf("Grant(%d, %d, %d) = %v", tok, m, seq, got)
			}
		}
	}
	recall := func(seq uint64, to wire.LeaseMode, want bool) func(*testing.T, *State) {
		return func(t *testing.T, s *State) {
			t.Helper()
			if got := s.Recall(seq, to); got != want {
				t.Errorf("Recall(%d, %d) = %v", seq, to, got)
			}
		}
	}
	do := func(f func(*State)) func(*testing.T, *State) { return func(_ *testing.T, s *State) { f(s) } }
	lower := func(to wire.LeaseMode) func(*testing.T, *State) { return do(func(s *State) { s.Lower(to) }) }
	is := func(m wire.LeaseMode, writable, pending bool) func(*testing.T, *State) {
		return func(t *testing.T, s *State) {
			t.Helper()
			if s.Mode() != m || s.Writable() != writable || s.Pending() != pending {
				t.Errorf("mode %d writable %v pending %v, want %d %v %v",
					s.Mode(), s.Writable(), s.Pending(), m, writable, pending)
			}
		}
	}
	for name, steps := range map[string][]func(*testing.T, *State){
		"grant":                  {is(none, false, false), grant(1, read, 1, true), is(read, false, false), grant(2, write, 2, true), is(write, true, false)},
		"lower grant keeps":      {grant(1, write, 1, true), grant(2, read, 2, true), is(write, true, false)},
		"no grant":               {grant(1, none, 9, false), is(none, false, false)},
		"recall to none":         {grant(1, write, 1, true), recall(2, none, true), is(write, false, true), lower(none), is(none, false, false)},
		"recall to read":         {grant(1, write, 1, true), recall(2, read, true), is(write, false, true), lower(read), is(read, false, false)},
		"recall of nothing":      {recall(5, none, false), is(none, false, false)},
		"late grant is void":     {recall(5, none, false), grant(1, read, 4, false), grant(1, read, 5, false), is(none, false, false), grant(2, read, 6, true)},
		"recall deepens":         {grant(1, write, 1, true), recall(2, read, true), recall(3, none, true), lower(read), is(read, false, true), lower(none), is(none, false, false)},
		"later weaker recall":    {grant(1, write, 1, true), recall(2, none, true), recall(3, read, true), lower(none), is(none, false, false)},
		"abandoned":              {grant(1, write, 1, true), recall(2, none, true), do((*State).Abandon), is(write, true, false)},
		"given up":               {grant(1, write, 1, true), do(func(s *State) { s.GiveUp(7) }), is(none, false, false), grant(7, read, 9, false), grant(8, read, 9, true)},
		"reclaim keeps":          {grant(1, write, 90, true), do(func(s *State) { s.Reclaim(7) }), is(write, true, false)},
		"reclaim resets Seq":     {recall(90, none, false), do(func(s *State) { s.Reclaim(7) }), grant(6, read, 91, false), grant(8, read, 1, true)},
		"reclaim ends recall":    {grant(1, write, 1, true), recall(2, none, true), do(func(s *State) { s.Reclaim(7) }), is(write, true, false), lower(none), is(none, false, false)},
		"grant after the recall": {grant(1, read, 1, true), recall(2, none, true), lower(none), grant(1, read, 3, true), is(read, false, false)},
	} {
		t.Run(name, func(t *testing.T) {
			var s State
			for _, f := range steps {
				f(t, &s)
			}
		})
	}
}
