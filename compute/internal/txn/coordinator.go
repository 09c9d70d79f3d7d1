package txn

import (
	"slices"

	"github.com/crakefs/crake/wire"
)

// Coordinator knows the transactions that this bucket coordinates and that are not over. Not safe for concurrent use.
type Coordinator struct {
	open    map[wire.TxnID]struct{}
	decided map[wire.TxnID][]wire.BucketID // who has not acknowledged yet
}

// NewCoordinator makes one that knows nothing.
func NewCoordinator() *Coordinator {
	return &Coordinator{open: map[wire.TxnID]struct{}{}, decided: map[wire.TxnID][]wire.BucketID{}}
}

// Open counts the transactions that are not over.
func (c *Coordinator) Open() int { return len(c.open) + len(c.decided) }

// Begin notes that a transaction is under way, so that queries are told to wait.
func (c *Coordinator) Begin(id wire.TxnID) { c.open[id] = struct{}{} }

// Abort forgets it: from now on queries are told that it was aborted. Nothing may be committed under this id any more.
func (c *Coordinator) Abort(id wire.TxnID) { delete(c.open, id) }

// Commit notes that the decision record is durable.
func (c *Coordinator) Commit(id wire.TxnID, participants []wire.BucketID) {
	delete(c.open, id)
	c.decided[id] = slices.Clone(participants)
}

// Acked notes that a participant has applied it. last is true when that was the last one: the decision record may go.
func (c *Coordinator) Acked(id wire.TxnID, from wire.BucketID) (last bool) {
	rest, ok := c.decided[id]
	if !ok {
		return false
	}
	if i := slices.Index(rest, from); i >= 0 {
		rest = slices.Delete(rest, i, i+1)
	}
	if len(rest) == 0 {
		delete(c.decided, id)
		return true
	}
	c.decided[id] = rest
	return false
}

// Outcome answers a query of a participant, given the epoch in which this bucket is open: a wire.Txn outcome. ok is false
// when only a newer owner can know.
func (c *Coordinator) Outcome(id wire.TxnID, from wire.BucketID, epoch wire.Epoch) (outcome uint8, ok bool) {
	if id.Epoch > epoch {
		return 0, false
	}
	if _, open := c.open[id]; open {
		return wire.TxnPending, true
	}
	if slices.Contains(c.decided[id], from) {
		return wire.TxnCommitted, true
	}
	return wire.TxnUnknown, true
}

// Decided lists up to limit committed transactions and who must still be told.
func (c *Coordinator) Decided(limit int) map[wire.TxnID][]wire.BucketID {
	out := make(map[wire.TxnID][]wire.BucketID, min(limit, len(c.decided)))
	for id, rest := range c.decided {
		if len(out) == limit {
			break
		}
		out[id] = slices.Clone(rest)
	}
	return out
}
