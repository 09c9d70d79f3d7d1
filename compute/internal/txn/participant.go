package txn

import "github.com/crakefs/crake/wire"

// FinishedLimit is how many finished transactions a participant remembers, to refuse requests that come late. A request
// lives for a minute at most (its deadline); 65,536 in a minute are a thousand transactions a second for one bucket.
const FinishedLimit = 1 << 16

// State is what a participant knows about a transaction.
type State uint8

// The states.
const (
	Unknown   State = 0
	Preparing State = 1 // a prepare request is at work
	Prepared  State = 2 // the prepare record is durable
	Deciding  State = 3 // the outcome is being applied
	Finished  State = 4
)

// Action is what to do with a request.
type Action uint8

// The actions.
const (
	// Fresh: do the work of the prepare; then Prepared or Failed.
	Fresh Action = 1
	// Wait: another request for it is at work; ask again when it has ended.
	Wait Action = 2
	// Answer: it is prepared; give the recorded answer.
	Answer Action = 3
	// Gone: it is over; refuse the prepare.
	Gone Action = 4
	// Apply: carry out the outcome; then Finish (or Undo when that failed).
	Apply Action = 5
	// Done: nothing to do; acknowledge.
	Done Action = 6
)

// Participant knows the transactions in which this bucket takes part. Not safe for concurrent use.
type Participant struct {
	states   map[wire.TxnID]State
	finished []wire.TxnID // a ring, the oldest at next
	next     int
}

// NewParticipant makes one that knows nothing.
func NewParticipant() *Participant { return &Participant{states: map[wire.TxnID]State{}} }

// Load notes a transaction whose prepare record was found when the bucket opened.
func (p *Participant) Load(id wire.TxnID) { p.states[id] = Prepared }

// State tells what is known.
func (p *Participant) State(id wire.TxnID) State { return p.states[id] }

// Arrive decides about a prepare request: Fresh, Wait, Answer or Gone.
func (p *Participant) Arrive(id wire.TxnID) Action {
	switch p.states[id] {
	case Unknown:
		p.states[id] = Preparing
		return Fresh
	case Preparing, Deciding:
		return Wait
	case Prepared:
		return Answer
	}
	return Gone
}

// Prepared notes that the prepare record is durable.
// Preconditions: Arrive said Fresh.
func (p *Participant) Prepared(id wire.TxnID) { p.must(id, Preparing, Prepared) }

// Failed notes that the prepare was refused, so that it may be tried again.
// Preconditions: Arrive said Fresh.
func (p *Participant) Failed(id wire.TxnID) {
	p.must(id, Preparing, Unknown)
	delete(p.states, id)
}

// Decide decides about an outcome: Apply, Wait or Done.
func (p *Participant) Decide(id wire.TxnID, commit bool) Action {
	switch p.states[id] {
	case Unknown:
		if !commit {
			p.remember(id) // the prepare may still be on its way
		}
		return Done
	case Preparing, Deciding:
		return Wait
	case Prepared:
		p.states[id] = Deciding
		return Apply
	}
	return Done
}

// Finish notes that the outcome is applied and durable.
// Preconditions: Decide said Apply.
func (p *Participant) Finish(id wire.TxnID) {
	p.must(id, Deciding, Finished)
	p.remember(id)
}

// Undo notes that the outcome could not be applied now.
// Preconditions: Decide said Apply.
func (p *Participant) Undo(id wire.TxnID) { p.must(id, Deciding, Prepared) }

func (p *Participant) must(id wire.TxnID, from, to State) {
	if p.states[id] != from {
		panic("txn: step out of order")
	}
	p.states[id] = to
}

func (p *Participant) remember(id wire.TxnID) {
	p.states[id] = Finished
	if len(p.finished) < FinishedLimit {
		p.finished = append(p.finished, id)
		return
	}
	delete(p.states, p.finished[p.next])
	p.finished[p.next] = id
	p.next = (p.next + 1) % FinishedLimit
}
