package meta

import (
	"context"
	"slices"
	"strconv"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/crakefs/crake/wire"
)

// Reply records make mutations happen exactly once: the answer is stored under (session, sequence) in the batch of the
// mutation. A request that arrives again while the first is still at work waits for it. Failed requests leave no record:
// they had no effect, and may be tried again as if new.

// replies knows the records of every session, so that a commit can delete those acknowledged without a search.
type replies struct {
	mu       sync.Mutex
	sessions map[wire.SessionID]*sessionReplies
}

type sessionReplies struct {
	seqs    []uint64 // with a record, ascending
	acked   uint64   // all sequences below are answered and not asked again
	running map[uint64]chan struct{}
}

func (r *replies) session(s wire.SessionID) *sessionReplies {
	x := r.sessions[s]
	if x == nil {
		x = &sessionReplies{running: map[uint64]chan struct{}{}}
		r.sessions[s] = x
	}
	return x
}

func (x *sessionReplies) insert(seq uint64) {
	i, found := slices.BinarySearch(x.seqs, seq)
	if !found {
		x.seqs = slices.Insert(x.seqs, i, seq)
	}
}

// call is one request under way, from begin to end.
type call struct {
	b       *Bucket
	op      wire.OpID
	replay  []byte // the recorded answer of an earlier run; nil: do the work
	running chan struct{}
}

// enter begins any request: the database stays open until leave.
func (b *Bucket) enter() error {
	b.inside.Add(1)
	if err := b.state(); err != nil {
		b.leave()
		return err
	}
	return nil
}

func (b *Bucket) leave() {
	if b.inside.Add(-1) == 0 && b.closed.Load() {
		select {
		case b.idle <- struct{}{}:
		default:
		}
	}
}

// begin begins a mutation. Session 0 (mgmt) and sequence 0 are not recorded. On success end must follow.
func (b *Bucket) begin(ctx context.Context, op wire.OpID) (*call, error) {
	if err := b.enter(); err != nil {
		return nil, err
	}
	c := &call{b: b, op: op}
	if op.Session == 0 {
		return c, nil
	}
	if !b.cfg.Sessions.Alive(op.Session) {
		b.leave()
		return nil, wire.E("meta.begin", wire.KindStaleSession, sessionName(op.Session), nil)
	}
	if op.Seq == 0 {
		return c, nil
	}
	if err := c.register(ctx); err != nil {
		b.leave()
		return nil, err
	}
	return c, nil
}

func (c *call) register(ctx context.Context) error {
	r := &c.b.replies
	for {
		r.mu.Lock()
		x := r.session(c.op.Session)
		x.acked = max(x.acked, c.op.Acked)
		if c.op.Seq < x.acked {
			r.mu.Unlock()
			return wire.Errorf("meta.begin", wire.KindRefused, sessionName(c.op.Session),
				"sequence %d was acknowledged before", c.op.Seq)
		}
		wait, busy := x.running[c.op.Seq]
		if !busy {
			_, recorded := slices.BinarySearch(x.seqs, c.op.Seq)
			if !recorded && len(x.seqs)+len(x.running) >= maxRepliesPerSession {
				r.mu.Unlock()
				return wire.Errorf("meta.begin", wire.KindOverLimit, sessionName(c.op.Session),
					"%d answers are not acknowledged", len(x.seqs))
			}
			c.running = make(chan struct{})
			x.running[c.op.Seq] = c.running
			r.mu.Unlock()
			if recorded {
				if err := c.load(); err != nil {
					c.unregister()
					return err
				}
			}
			return nil
		}
		r.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return ctxError("meta.begin", ctx)
		}
	}
}

func (c *call) load() error {
	v, closer, ok, err := c.b.get(replyKey(c.op.Session, c.op.Seq))
	if err != nil {
		return err
	}
	if !ok {
		return wire.Errorf("meta.begin", wire.KindCorrupt, sessionName(c.op.Session), "reply %d is missing", c.op.Seq)
	}
	defer func() { _ = closer.Close() }()
	rd := newReader(v)
	c.replay = append([]byte{}, rd.b...)
	if rd.bad != "" {
		return rd.done("reply")
	}
	return nil
}

func (c *call) unregister() {
	r := &c.b.replies
	r.mu.Lock()
	if x := r.sessions[c.op.Session]; x != nil && x.running[c.op.Seq] == c.running {
		delete(x.running, c.op.Seq)
	}
	r.mu.Unlock()
	close(c.running)
}

// end ends the request.
func (c *call) end() {
	if c.running != nil {
		c.unregister()
	}
	c.b.leave()
}

// replayed decodes the recorded answer into m.
func (c *call) replayed(m wire.Message) error {
	if err := m.Decode(c.replay); err != nil {
		return wire.E("meta.replay", wire.KindCorrupt, sessionName(c.op.Session), err)
	}
	return nil
}

// record adds the answer to the batch, and removes the answers acknowledged since. Called right before the commit:
// when that fails the bucket has failed, so what is noted in memory here is never wrong.
func (c *call) record(batch *pebble.Batch, reply wire.Message) error {
	if c == nil || c.running == nil {
		return nil
	}
	r := &c.b.replies
	r.mu.Lock()
	x := r.session(c.op.Session)
	n, _ := slices.BinarySearch(x.seqs, x.acked)
	trim := append([]uint64(nil), x.seqs[:n]...)
	x.seqs = append(x.seqs[:0], x.seqs[n:]...)
	x.insert(c.op.Seq)
	r.mu.Unlock()
	for _, seq := range trim {
		if err := batch.Delete(replyKey(c.op.Session, seq), nil); err != nil {
			return c.b.dbError(err)
		}
	}
	v := []byte{recordVersion}
	if reply != nil {
		v = reply.Append(v)
	}
	if err := batch.Set(replyKey(c.op.Session, c.op.Seq), v, nil); err != nil {
		return c.b.dbError(err)
	}
	return nil
}

// loadReplies finds all records, once, when the bucket opens.
func (b *Bucket) loadReplies() error {
	return b.scan(newKey(tagReply), nil, func(k, _ []byte) (bool, error) {
		f, rest, ok := splitKey(k, 2)
		if !ok || len(rest) != 0 {
			return false, corruptKey(k)
		}
		b.replies.session(wire.SessionID(f[0])).insert(f[1])
		return true, nil
	})
}

// DropSession forgets the reply records of a dead session. Sessions.Alive denies it already.
func (b *Bucket) DropSession(ctx context.Context, session wire.SessionID) error {
	if err := b.enter(); err != nil {
		return err
	}
	defer b.leave()
	b.replies.mu.Lock()
	x := b.replies.sessions[session]
	var running []chan struct{}
	if x != nil {
		for _, ch := range x.running {
			running = append(running, ch)
		}
	}
	b.replies.mu.Unlock()
	if x == nil {
		return nil
	}
	for _, ch := range running { // those that were let in before it died
		select {
		case <-ch:
		case <-ctx.Done():
			return ctxError("meta.dropsession", ctx)
		}
	}
	b.replies.mu.Lock()
	seqs := append([]uint64(nil), x.seqs...)
	delete(b.replies.sessions, session)
	b.replies.mu.Unlock()
	batch := b.db.NewBatch()
	defer func() { _ = batch.Close() }()
	for _, seq := range seqs {
		if err := batch.Delete(replyKey(session, seq), nil); err != nil {
			return b.dbError(err)
		}
	}
	// Not synced: if it is lost, the records are found at the next open and dropped again.
	return b.apply(batch, pebble.NoSync)
}

func sessionName(s wire.SessionID) string { return "session " + strconv.FormatUint(uint64(s), 10) }
