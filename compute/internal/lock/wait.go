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
	barred error // why no request is answered now, or nil
	// dead: cancelled sessions that are not drained yet; a request of theirs that had begun may still come here.
	dead map[wire.SessionID]struct{}
}

// NewManager makes a manager without locks.
func NewManager() *Manager { return &Manager{table: NewTable(), dead: map[wire.SessionID]struct{}{}} }

// Do answers a LockReq. With Wait it returns when the lock is granted, ctx ends (KindInterrupted when it was cancelled,
// KindTimeout at its deadline: nothing was changed), or the wait fails (KindDeadlock, KindStaleSession, KindMoved).
func (m *Manager) Do(ctx context.Context, req *wire.LockReq) (wire.LockResp, error) {
	m.mu.Lock()
	err := m.barred
	if _, ok := m.dead[req.Op.Session]; ok {
		err = wire.E("lock.set", wire.KindStaleSession, fmt.Sprint(req.Op.Session), nil)
	}
	if err != nil {
		m.mu.Unlock()
		return wire.LockResp{}, err
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

// CancelSession drops the locks of a dead session, fails its waiters, and refuses requests of it that still run.
// EndSession follows when none does.
func (m *Manager) CancelSession(s wire.SessionID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead[s] = struct{}{}
	m.table.EndSession(s)
	m.pump()
}

// EndSession forgets a session.
// Preconditions: CancelSession; no request of it runs any more, and none will start.
func (m *Manager) EndSession(s wire.SessionID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.table.EndSession(s)
	m.pump()
	delete(m.dead, s)
}

// Bar fails all waiters with err and refuses requests with it; nil lets them in again. The locks stay.
func (m *Manager) Bar(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.barred = err
	if err != nil {
		m.table.FailAll(err)
		m.pump()
	}
}

// Locks gives the number of held locks.
func (m *Manager) Locks() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.table.Locks()
}
