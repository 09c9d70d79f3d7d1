// Package txn is the decision logic of the two-phase commit between buckets: who knows what about which transaction. It
// has no goroutine, clock, socket or database in it; package meta makes its steps durable and carries them out.
//
// The life of a transaction:
//
//	coordinator                                participant
//	Begin                    -- prepare -->    Arrive: Fresh; checks, locks, writes the prepare record; Prepared
//	                         <-- answer --
//	writes the decision record with its own
//	steps and the reply in one batch: Commit
//	                         -- decide  -->    Decide: Apply; applies and removes the record in one batch; Finish
//	                         <-- answer --
//	Acked by all: the record goes
//
// Presumed abort: a coordinator keeps nothing about a transaction that it has not committed. Asked about one that is
// neither open nor decided it answers "unknown", which means aborted. So Abort writes nothing, and a crash before the
// decision record is an abort.
//
// What may go wrong, and who prevents it:
//
//   - A prepare that is late or doubled, met after the outcome: the participant remembers the last FinishedLimit ids and
//     refuses it (Gone). If it has forgotten, the prepare is in doubt, and the coordinator tells a bucket that has
//     acknowledged already "unknown": aborted, no harm.
//   - An abort that overtakes its prepare: remembered as finished, so the prepare is refused when it comes.
//   - A decision for an unknown transaction: done already.
//   - A query from a bucket about a transaction of a later epoch than the one asked: the asker knows a newer owner; only
//     that one may answer (Outcome's error).
package txn
