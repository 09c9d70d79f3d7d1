package core

import (
	"sync"

	"github.com/crakefs/crake/wire"
)

// session numbers the mutations of this client, so that each happens exactly once however often it is sent.
type session struct {
	id wire.SessionID

	mu    sync.Mutex
	first uint64 // sequence of open[0]; all below are answered
	open  []bool // answered, by sequence
}

func newSession(id wire.SessionID) *session { return &session{id: id, first: 1} }

// begin gives the id of a new mutation. Every retry of it carries the same one. end must be called once its outcome is
// known or nobody will ask again.
func (s *session) begin() wire.OpID {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open = append(s.open, false)
	return wire.OpID{Session: s.id, Seq: s.first + uint64(len(s.open)) - 1, Acked: s.first}
}

func (s *session) end(op wire.OpID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[op.Seq-s.first] = true
	n := 0
	for n < len(s.open) && s.open[n] {
		n++
	}
	s.open = s.open[n:]
	s.first += uint64(n)
	if len(s.open) == 0 {
		s.open = nil // give the array back
	}
}
