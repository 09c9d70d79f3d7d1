// Package opens counts which inodes of a bucket are open by which session: once for each, however often the session's
// programs have it open. An inode without a name lives until its last session ends or releases it.
package opens

import (
	"sync"

	"github.com/crakefs/crake/wire"
)

// MaxSessionOpens bounds the inodes that one session may have open in one bucket: about 100 bytes each. Past it an open
// is refused with KindOverLimit (ENFILE).
const MaxSessionOpens = 1 << 20

// Table is safe for concurrent use. It never calls out.
type Table struct {
	mu        sync.Mutex
	byIno     map[wire.Ino][]wire.SessionID // few for each inode
	bySession map[wire.SessionID]map[wire.Ino]struct{}
}

// New makes an empty table.
func New() *Table {
	return &Table{byIno: map[wire.Ino][]wire.SessionID{}, bySession: map[wire.SessionID]map[wire.Ino]struct{}{}}
}

// IsOpen reports whether any session has the inode open.
func (t *Table) IsOpen(ino wire.Ino) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.byIno[ino]) > 0
}

// Opened counts the inode as open by the session. Session 0 opens nothing.
func (t *Table) Opened(session wire.SessionID, ino wire.Ino) {
	if session == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.bySession[session]
	if s == nil {
		s = map[wire.Ino]struct{}{}
		t.bySession[session] = s
	}
	if _, ok := s[ino]; ok {
		return
	}
	s[ino] = struct{}{}
	t.byIno[ino] = append(t.byIno[ino], session)
}

// Count tells how many inodes the session has open.
func (t *Table) Count(session wire.SessionID) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.bySession[session])
}

// Release ends that the session has the inodes open, and gives those that nobody has open now.
func (t *Table) Release(session wire.SessionID, inos []wire.Ino) (last []wire.Ino) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, ino := range inos {
		if t.release(session, ino) {
			last = append(last, ino)
		}
	}
	return last
}

// EndSession releases all that the session has open.
func (t *Table) EndSession(session wire.SessionID) (last []wire.Ino) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for ino := range t.bySession[session] {
		if t.release(session, ino) {
			last = append(last, ino)
		}
	}
	return last
}

// release tells whether that was the last one. Preconditions: mu is held.
func (t *Table) release(session wire.SessionID, ino wire.Ino) bool {
	s := t.bySession[session]
	if _, ok := s[ino]; !ok {
		return false
	}
	delete(s, ino)
	if len(s) == 0 {
		delete(t.bySession, session)
	}
	by := t.byIno[ino]
	for i, o := range by {
		if o == session {
			by[i] = by[len(by)-1]
			by = by[:len(by)-1]
			break
		}
	}
	if len(by) > 0 {
		t.byIno[ino] = by
		return false
	}
	delete(t.byIno, ino)
	return true
}
