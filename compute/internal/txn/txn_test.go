package txn

import (
	"fmt"
	"strings"
	"testing"

	"github.com/crakefs/crake/wire"
)

func id(seq uint64) wire.TxnID { return wire.TxnID{Coordinator: 1, Epoch: 3, Seq: seq} }

// The coordinator's answers over the life of a transaction: pending until it is decided; committed for those that have
// not acknowledged; unknown, which is aborted, for all else.
func TestCoordinator(t *testing.T) {
	c := NewCoordinator()
	expect := func(what string, seq uint64, from wire.BucketID, want uint8) {
		t.Helper()
		if got, ok := c.Outcome(id(seq), from, 3); !ok || got != want {
			t.Fatalf("%s: %d, %v, want %d", what, got, ok, want)
		}
	}
	expect("never heard of", 1, 5, wire.TxnUnknown)
	c.Begin(id(1))
	expect("open", 1, 5, wire.TxnPending)
	c.Abort(id(1))
	expect("aborted", 1, 5, wire.TxnUnknown)
	c.Begin(id(2))
	c.Commit(id(2), []wire.BucketID{5, 6})
	expect("committed", 2, 5, wire.TxnCommitted)
	expect("committed, but not a participant", 2, 7, wire.TxnUnknown)
	if c.Acked(id(2), 5) {
		t.Fatal("last of two")
	}
	if c.Acked(id(2), 5) {
		t.Fatal("twice")
	}
	expect("acknowledged: a prepare that comes now is late", 2, 5, wire.TxnUnknown)
	expect("the other", 2, 6, wire.TxnCommitted)
	if d := c.Decided(10); len(d) != 1 || fmt.Sprint(d[id(2)]) != "[6]" {
		t.Fatalf("%v", d)
	}
	if !c.Acked(id(2), 6) || c.Acked(id(2), 6) || c.Open() != 0 {
		t.Fatal("not over")
	}
	if _, ok := c.Outcome(wire.TxnID{Coordinator: 1, Epoch: 4, Seq: 1}, 5, 3); ok {
		t.Fatal("answered for a later owner")
	}
}

// The participant's answers, as scripts of steps and what each gives.
func TestParticipant(t *testing.T) {
	names := map[Action]string{Fresh: "fresh", Wait: "wait", Answer: "answer", Gone: "gone", Apply: "apply", Done: "done"}
	for _, script := range []string{
		"arrive=fresh arrive=wait decide=wait prepared arrive=answer decide=apply arrive=wait decide=wait finish arrive=gone decide=done",
		"arrive=fresh failed arrive=fresh prepared abort=apply finish arrive=gone abort=done decide=done",
		"decide=done arrive=fresh",                               // a decision for what nobody knows changes nothing
		"abort=done arrive=gone",                                 // an abort that overtakes its prepare
		"load decide=apply undo decide=apply finish arrive=gone", // found at open
	} {
		p := NewParticipant()
		for _, step := range strings.Fields(script) {
			name, want, _ := strings.Cut(step, "=")
			got := Action(0)
			switch name {
			case "arrive":
				got = p.Arrive(id(1))
			case "decide":
				got = p.Decide(id(1), true)
			case "abort":
				got = p.Decide(id(1), false)
			case "prepared":
				p.Prepared(id(1))
			case "failed":
				p.Failed(id(1))
			case "finish":
				p.Finish(id(1))
			case "undo":
				p.Undo(id(1))
			case "load":
				p.Load(id(1))
			}
			if names[got] != want {
				t.Errorf("%s: %s gives %q", script, step, names[got])
			}
		}
	}
}

// What is remembered is bounded; the oldest goes first.
func TestFinishedLimit(t *testing.T) {
	p := NewParticipant()
	for i := range uint64(FinishedLimit + 10) {
		p.Decide(id(i), false)
	}
	if p.State(id(9)) != Unknown || p.State(id(10)) != Finished || len(p.states) != FinishedLimit {
		t.Fatalf("%v %v %d", p.State(id(9)), p.State(id(10)), len(p.states))
	}
}

// A step out of order is broken reasoning of the caller, and stops at once.
func TestOutOfOrder(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	NewParticipant().Finish(id(1))
}
