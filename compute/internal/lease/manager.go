package lease

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/crakefs/crake/wire"
)

// Peer reaches the sessions and mgmt for a Manager. All methods are safe for concurrent use.
type Peer interface {
	// Recall sends the request on the session's connection and waits for the answer. Without a connection it waits for
	// one, until ctx ends.
	Recall(ctx context.Context, req *wire.RecallReq) error
	// Evict asks mgmt to end the session.
	Evict(ctx context.Context, session wire.SessionID, reason string) error
}

// Config configures a Manager. Zero values mean the defaults.
type Config struct {
	Peer          Peer
	Log           *slog.Logger
	FirstSeq      uint64        // sequences of the manager lie above it
	SessionLeases int           // leases of one session
	RecallTimeout time.Duration // silence after which a session is reported
}

// Manager drives a Table: it waits, sends recalls, sends them again, and reports sessions that do not answer.
// All methods are safe for concurrent use.
type Manager struct {
	cfg    Config
	ctx    context.Context // ends the recalls under way
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex // held for single steps of the table only, never while waiting
	table   *Table
	waiting map[wire.SessionID]int
	closed  bool
	barred  error // why nobody may wait now, or nil
	shut    error // why there are no Holds at all now, or nil
	// dead: cancelled sessions that are not drained yet; a request of theirs that had begun may still come here.
	dead map[wire.SessionID]struct{}
}

// NewManager makes a manager; Close ends it.
func NewManager(cfg Config) *Manager {
	if cfg.RecallTimeout <= 0 {
		cfg.RecallTimeout = DefaultRecallTimeout
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	m := &Manager{cfg: cfg, table: NewTable(cfg.FirstSeq, cfg.SessionLeases), waiting: map[wire.SessionID]int{},
		dead: map[wire.SessionID]struct{}{}}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	return m
}

// Close ends the recalls under way and fails all waiting Holds; it returns when they have ended.
func (m *Manager) Close() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.cancel()
	m.wg.Wait()
}

// Hold begins the use of inodes by a session's request: to look at them, or to change them. It recalls the leases that
// are in the way and waits for them, at most until ctx's deadline (KindTimeout, nothing was done). Until release is
// called no other session is granted a lease that this use forbids. Nothing may be locked by the caller.
// Errors: KindTimeout, KindInterrupted, KindStaleSession, KindUnavailable (too many wait already), KindShutdown.
func (m *Manager) Hold(ctx context.Context, session wire.SessionID, inos []wire.Ino, change bool) (func(), error) {
	use := UseRead
	if change {
		use = UseChange
	}
	return m.Use(ctx, session, inos, use)
}

// Use is Hold for any Use. UseExclusive takes a single inode: with several, two sessions could wait for each other.
func (m *Manager) Use(ctx context.Context, session wire.SessionID, inos []wire.Ino, use Use) (func(), error) {
	if len(inos) == 0 || len(inos) > MaxPinInodes || use == UseExclusive && len(inos) > 1 {
		return nil, wire.Errorf("lease.hold", wire.KindInvalid, "", "%d inodes", len(inos))
	}
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil, wire.E("lease.hold", wire.KindMoved, "", nil)
	}
	if m.shut != nil {
		err := m.shut
		m.mu.Unlock()
		return nil, err
	}
	p := m.table.Pin(session, use, inos)
	if p.Ready() {
		m.pump()
		m.mu.Unlock()
		return func() { m.unpin(p) }, nil
	}
	err := m.barred
	if _, ok := m.dead[session]; ok {
		err = wire.Errorf("lease.hold", wire.KindStaleSession, fmt.Sprint(session), "the session has ended")
	}
	if err != nil {
		m.table.Unpin(p)
		m.pump()
		m.mu.Unlock()
		return nil, err
	}
	if m.waiting[session] >= MaxWaitersPerSession {
		m.table.Unpin(p)
		m.pump()
		m.mu.Unlock()
		return nil, wire.Errorf("lease.hold", wire.KindUnavailable, fmt.Sprint(session),
			"%d requests of the session wait for leases of others", MaxWaitersPerSession)
	}
	m.waiting[session]++
	p.Wake = make(chan struct{})
	m.pump()
	m.mu.Unlock()

	err = m.wait(ctx, p)
	m.mu.Lock()
	if m.waiting[session]--; m.waiting[session] == 0 {
		delete(m.waiting, session)
	}
	if err == nil {
		err = p.Err()
	}
	m.mu.Unlock()
	if err != nil {
		m.unpin(p)
		return nil, err
	}
	return func() { m.unpin(p) }, nil
}

func (m *Manager) wait(ctx context.Context, p *Pin) error {
	t := time.NewTimer(MaxHold)
	defer t.Stop()
	select {
	case <-p.Wake:
		return nil
	case <-m.ctx.Done():
		return wire.E("lease.hold", wire.KindMoved, "", nil)
	case <-ctx.Done():
		if ctx.Err() == context.DeadlineExceeded {
			return wire.Errorf("lease.hold", wire.KindTimeout, fmt.Sprint(p.Session), "another session has not given its lease up")
		}
		return wire.E("lease.hold", wire.KindInterrupted, fmt.Sprint(p.Session), ctx.Err())
	case <-t.C:
		return wire.Errorf("lease.hold", wire.KindTimeout, fmt.Sprint(p.Session), "another session has not given its lease up in %v", MaxHold)
	}
}

func (m *Manager) unpin(p *Pin) {
	m.mu.Lock()
	m.table.Unpin(p)
	m.pump()
	m.mu.Unlock()
}

// pump does what the table asks for. Preconditions: mu is held.
func (m *Manager) pump() {
	recalls, done := m.table.Take()
	for _, p := range done {
		if p.Wake != nil {
			close(p.Wake)
		}
	}
	for _, r := range recalls {
		if m.closed {
			return
		}
		// One goroutine a recall: there are at most as many as leases that running requests (bounded by the handlers of the
		// connections, times MaxPinInodes) ask for, and one a grant above a session's limit.
		m.wg.Add(1)
		go m.deliver(r)
	}
}

// Grant gives the session a lease if it can have one now: see Table.Grant for what the caller must have done.
func (m *Manager) Grant(session wire.SessionID, ino wire.Ino, want wire.LeaseMode) wire.Lease {
	if want == wire.LeaseNone || session == 0 {
		return wire.Lease{}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return wire.Lease{}
	}
	l := m.table.Grant(session, ino, want, time.Now())
	m.pump()
	return l
}

// Holds tells whether the session has at least this mode.
func (m *Manager) Holds(session wire.SessionID, ino wire.Ino, mode wire.LeaseMode) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.table.Holds(session, ino, mode)
}

// WriteHeld tells whether any session but this one has the write lease.
func (m *Manager) WriteHeld(session wire.SessionID, ino wire.Ino) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.table.WriteHeld(session, ino)
}

// Leases gives the number of leases.
func (m *Manager) Leases() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.table.Leases()
}

// Drop takes back leases that the session gives up by itself. seqs, if not empty, names the newest grant of each that
// the session knows: a lease granted since stays.
func (m *Manager) Drop(session wire.SessionID, inos []wire.Ino, seqs []uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, ino := range inos {
		var seq uint64
		if i < len(seqs) {
			seq = seqs[i]
		}
		m.table.Drop(session, ino, seq)
	}
	m.pump()
}

// Reclaim takes over what a session held from the former owner.
func (m *Manager) Reclaim(session wire.SessionID, leases []wire.HeldLease) (lost []wire.Ino, seq uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.table.Reclaim(session, leases, time.Now())
}

// CancelSession fails the requests of a dead session that wait for leases. EndSession follows when none runs any more.
func (m *Manager) CancelSession(session wire.SessionID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead[session] = struct{}{}
	m.table.CancelSession(session)
	m.pump()
}

// Bar fails all waiting Holds with err, and those that would have to wait from now on; nil lets them wait again. The
// leases stay: the bucket's database has to be closed, and perhaps is opened again.
func (m *Manager) Bar(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.barred = err
	if err != nil {
		m.table.CancelAll(err)
		m.pump()
	}
}

// Shut makes every Hold fail with err; nil opens again. Until all sessions have reclaimed, nobody knows what is in the
// way of a change.
func (m *Manager) Shut(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.shut = err
}

// Seq gives the newest sequence.
func (m *Manager) Seq() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.table.seq
}

// EndSession drops the leases of a session that the map no longer has.
// Preconditions: no request of it runs any more, and none will start.
func (m *Manager) EndSession(session wire.SessionID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.dead, session)
	m.table.EndSession(session)
	m.pump()
}

// deliver sends one recall until it is answered, the lease is gone another way, or the manager is closed.
func (m *Manager) deliver(r Recall) {
	defer m.wg.Done()
	if r.From == wire.LeaseWrite {
		if rest := minLeaseLife - time.Since(r.GrantedAt); rest > 0 && !m.sleep(rest) {
			return
		}
	}
	pause := recallRetryMin
	silentSince := time.Now()
	reported := false
	req := &wire.RecallReq{Session: r.Session, Ino: r.Ino, To: r.To, Seq: r.Seq}
	for m.pending(r) {
		ctx, cancel := context.WithTimeout(m.ctx, m.cfg.RecallTimeout)
		err := m.cfg.Peer.Recall(ctx, req)
		cancel()
		if err == nil {
			m.answered(r)
			return
		}
		if m.busy(r) {
			silentSince = time.Now() // it is flushing
		}
		if silent := time.Since(silentSince); silent >= m.cfg.RecallTimeout && m.pending(r) {
			if !reported {
				m.cfg.Log.Warn("session does not give up its lease, asking to end it", "session", r.Session, "ino", r.Ino,
					"to", r.To, "silent", silent, "err", err)
			}
			ctx, cancel := context.WithTimeout(m.ctx, evictCall)
			evictErr := m.cfg.Peer.Evict(ctx, r.Session, fmt.Sprintf("no answer to a recall of inode %d for %v", r.Ino, silent.Round(time.Millisecond)))
			cancel()
			reported = evictErr == nil
			silentSince = time.Now() // mgmt needs a moment; ask again when nothing comes of it
		}
		if !m.sleep(pause) {
			return
		}
		pause = min(2*pause, recallRetryMax)
	}
}

func (m *Manager) pending(r Recall) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return !m.closed && m.table.Pending(r.Session, r.Ino, r.Seq)
}

func (m *Manager) busy(r Recall) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.table.Busy(r.Session, r.Ino)
}

func (m *Manager) answered(r Recall) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.table.Answered(r.Session, r.Ino, r.Seq)
	m.pump()
}

// sleep waits, or tells false when the manager is closed.
func (m *Manager) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-m.ctx.Done():
		return false
	}
}
