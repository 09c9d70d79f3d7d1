package lock

import (
	"context"
	"fmt"
	"sync"

	"github.com/crakefs/crake/wire"
)

// Manager lets requests wait on a Table. All methods are safe for concurrent use.
type Manager struct {
	mu     sync.Mutex // held for single steps, never while waiting
	table  *Table
	closed bool
}

// NewManager makes a manager without locks.
func NewManager() *Manager { return &Manager{table: NewTable()} }

// Do answers a LockReq. With Wait it returns when the lock is granted, ctx ends (KindInterrupted when it was cancelled,
// KindTimeout at its deadline: nothing was changed), or the wait fails (KindDeadlock, KindStaleSession, KindMoved).
func (m *Manager) Do(ctx context.Context, req *wire.LockReq) (wire.LockResp, error) {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return wire.LockResp{}, wire.E("lock.set", wire.KindMoved, "", nil)
	}
	if req.Test {
		defer m.mu.Unlock()
		return m.table.Test(req)
	}
	w, err := m.table.Set(req)
	if w != nil {
		w.Wake = make(chan struct{})
	}
	m.pump()
	m.mu.Unlock()
	if w == nil || err != nil {
		return wire.LockResp{Type: req.Type}, err
	}
	select {
	case <-w.Wake:
	case <-ctx.Done():
		m.mu.Lock()
		waited := m.table.Cancel(w)
		m.mu.Unlock()
		if waited {
			kind := wire.KindInterrupted
			if ctx.Err() == context.DeadlineExceeded {
				kind = wire.KindTimeout
			}
			return wire.LockResp{}, wire.E("lock.set", kind, fmt.Sprint(uint64(req.Ino)), nil)
		}
		<-w.Wake
	}
	return wire.LockResp{Type: req.Type}, w.Err
}

// pump wakes whom the table names. Preconditions: mu is held.
func (m *Manager) pump() {
	for _, w := range m.table.Take() {
		close(w.Wake)
	}
}

// Reclaim takes over locks that a session had at the former owner; it tells those that conflict with others'.
func (m *Manager) Reclaim(locks []wire.LockReq) (lost []wire.Ino) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range locks {
		req := locks[i]
		req.Wait, req.Test = false, false
		if _, err := m.table.Set(&req); err != nil {
			lost = append(lost, req.Ino)
		}
	}
	m.pump()
	return lost
}

// EndSession drops all locks of a session and fails its waiters.
func (m *Manager) EndSession(s wire.SessionID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.table.EndSession(s)
	m.pump()
}

// Close fails all waiters with KindMoved and refuses further requests.
func (m *Manager) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	m.table.FailAll(wire.E("lock.set", wire.KindMoved, "", nil))
	m.pump()
}

// Locks gives the number of held locks.
func (m *Manager) Locks() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.table.Locks()
}
