package meta

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

// How a change of the namespace runs:
//
//	plan:     look the names up (short shared locks, nothing kept) and list the steps
//	hold:     end the leases of others on the local inodes; no lock is held while that waits
//	prepare:  each other bucket, in order of number: ends leases, locks, checks, records the prepare durably
//	lock:     the local inodes; run the local steps, which check that the names still stand for what the plan saw
//	commit:   one batch: local steps, decision, reply
//	decide:   tell the other buckets
//
// All in this bucket: the same without prepare and decide. If a name has changed since the plan, or somebody else's
// locks do not go away within prepareLockWait, everything is let go and the operation starts again with a plan.

// plan is what one look at the names came to.
type plan struct {
	ops []wire.TxnOp // all steps; those of one bucket run in this order
	// bind, if set, completes local steps with what the prepares of other buckets have answered. attrs is parallel to ops.
	bind func(ops []wire.TxnOp, attrs []wire.Attr)
	// check, if set, runs in the local tx before the local steps: errChanged says to plan anew.
	check func(t *tx) error
	// reply makes the answer from the attributes after the steps. It runs with the local locks held.
	reply func(attrs []wire.Attr) wire.Message
	// done, if set, is the answer: there is nothing to do.
	done wire.Message
}

// looker looks names up for plans, and remembers what must become durable before an answer that relies on it.
type looker struct {
	b       *Bucket
	ctx     context.Context
	tickets []*ticket
}

// durable waits for that.
func (l *looker) durable() error {
	h := held{tickets: l.tickets}
	l.tickets = nil
	return h.durable()
}

// peek runs a step that only looks, wherever its inode lies.
func (l *looker) peek(op wire.TxnOp) (wire.Attr, error) {
	b := l.b
	if bucket := op.Ino.Bucket(); bucket != b.cfg.Bucket {
		if int(bucket) >= b.cfg.Buckets {
			return wire.Attr{}, wire.E("meta.lookup", wire.KindNotFound, inoName(op.Ino), nil)
		}
		var resp wire.TxnPrepareResp
		req := &wire.TxnPrepareReq{Bucket: bucket, Ops: []wire.TxnOp{op}}
		if err := b.cfg.Peers(l.ctx, bucket, &rpc.Call{Method: wire.MTxnPrepare, Req: req, Resp: &resp}); err != nil {
			return wire.Attr{}, err
		}
		if len(resp.Attrs) != 1 {
			return wire.Attr{}, wire.Errorf("meta.peek", wire.KindBadFrame, inoName(op.Ino), "%d answers", len(resp.Attrs))
		}
		return resp.Attrs[0], nil
	}
	h, err := b.locks.acquire(l.ctx, b.cfg.LockWait, wantInode(op.Ino, false))
	if err != nil {
		return wire.Attr{}, err
	}
	defer h.release(nil)
	l.tickets = append(l.tickets, h.tickets...)
	t := tx{b: b}
	return t.step(&op)
}

// dir reads a directory of this bucket.
func (l *looker) dir(op string, ino wire.Ino) (*inode, error) {
	b := l.b
	if err := b.checkHere(op, ino); err != nil {
		return nil, err
	}
	h, err := b.locks.acquire(l.ctx, b.cfg.LockWait, wantInode(ino, false))
	if err != nil {
		return nil, err
	}
	defer h.release(nil)
	l.tickets = append(l.tickets, h.tickets...)
	t := tx{b: b}
	return t.directory(op, ino)
}

// entry looks a name up; ok is false when there is none.
func (l *looker) entry(dir wire.Ino, name string) (d dentry, ok bool, err error) {
	a, err := l.peek(wire.TxnOp{Kind: opPeekEntry, Ino: dir, Name: name})
	return dentry{name: name, ino: a.Ino, typ: a.Mode}, a.Ino != 0, err
}

// execute plans and tries until it works out.
func (b *Bucket) execute(ctx context.Context, c *call, makePlan func(*looker) (*plan, error)) (wire.Message, error) {
	for round := 0; ; round++ {
		l := &looker{b: b, ctx: ctx}
		p, err := makePlan(l)
		var reply wire.Message
		if err == nil && p.done == nil {
			reply, err = b.try(ctx, c, p)
			if err == nil {
				return reply, nil
			}
		}
		if !conflict(err) || round == staleRounds {
			if derr := l.durable(); derr != nil {
				return nil, derr
			}
			if err != nil {
				return nil, final(err)
			}
			return p.done, nil
		}
		if err := backoff(ctx, round, err); err != nil {
			return nil, err
		}
	}
}

// conflict tells whether another try may fare better at once.
func conflict(err error) bool { return errors.Is(err, wire.KindWouldBlock) }

// final turns a conflict that lasted into something to be tried again by the asker.
func final(err error) error {
	if conflict(err) {
		return wire.E("meta.txn", wire.KindUnavailable, "", err)
	}
	return err
}

// backoff pauses for a random time that grows with the rounds. A changed name is no reason to wait, at first.
func backoff(ctx context.Context, round int, err error) error {
	if err == errChanged && round < 3 {
		return nil
	}
	top := min(retryMin<<min(round, 10), retryMax)
	select {
	case <-time.After(retryMin/2 + time.Duration(rand.Int64N(int64(top)))):
		return nil
	case <-ctx.Done():
		return ctxError("meta.txn", ctx)
	}
}

// split sorts the steps by bucket: ours, and those of each other bucket in order. The ints are indices of p.ops.
func (b *Bucket) split(p *plan) (local []int, others [][]int) {
	byBucket := map[wire.BucketID][]int{}
	var order []wire.BucketID
	for i := range p.ops {
		bucket := bucketOf(&p.ops[i])
		if bucket == b.cfg.Bucket {
			local = append(local, i)
			continue
		}
		if byBucket[bucket] == nil {
			order = append(order, bucket)
		}
		byBucket[bucket] = append(byBucket[bucket], i)
	}
	slices.Sort(order)
	for _, bucket := range order {
		others = append(others, byBucket[bucket])
	}
	return local, others
}

// bucketOf tells where a step runs. A new inode in another bucket is asked for with sequence 0 of that bucket.
func bucketOf(op *wire.TxnOp) wire.BucketID { return op.Ino.Bucket() }

// try carries a plan out, all or nothing.
func (b *Bucket) try(ctx context.Context, c *call, p *plan) (wire.Message, error) {
	local, others := b.split(p)
	ops := make([]wire.TxnOp, len(local))
	for i, at := range local {
		ops[i] = p.ops[at]
	}
	if inos := changedInos(ops); len(inos) > 0 {
		release, err := b.cfg.Leases.Hold(ctx, c.op.Session, inos, true)
		if err != nil {
			return nil, err
		}
		defer release()
	}
	attrs := make([]wire.Attr, len(p.ops))
	if len(others) == 0 {
		return b.tryLocal(ctx, c, p, nil, b.cfg.LockWait, attrs)
	}
	return b.tryTxn(ctx, c, p, others, attrs)
}

// tryLocal runs and commits the local steps. d is the transaction that this decides, or nil.
func (b *Bucket) tryLocal(ctx context.Context, c *call, p *plan, d *decision, wait time.Duration, attrs []wire.Attr) (wire.Message, error) {
	var at []int
	var ops []wire.TxnOp
	for i := range p.ops {
		if bucketOf(&p.ops[i]) == b.cfg.Bucket {
			at, ops = append(at, i), append(ops, p.ops[i])
		}
	}
	h, err := b.locks.acquire(ctx, wait, locksOf(ops)...)
	if err != nil {
		return nil, err
	}
	defer h.release(nil)
	t := b.newTx(p.ops[0].Time)
	defer t.close()
	reply, err := b.runLocal(t, p, at, ops, attrs)
	if err != nil {
		h.release(nil)
		if derr := h.durable(); derr != nil {
			return nil, derr
		}
		return nil, err
	}
	if d != nil {
		if err := t.set(decidedKey(d.id), d.append(nil)); err != nil {
			return nil, err
		}
	}
	if err := t.commit(h, c, reply); err != nil {
		return nil, err
	}
	return reply, nil
}

func (b *Bucket) runLocal(t *tx, p *plan, at []int, ops []wire.TxnOp, attrs []wire.Attr) (wire.Message, error) {
	if p.check != nil {
		if err := p.check(t); err != nil {
			return nil, err
		}
	}
	got, err := t.steps(ops)
	if err != nil {
		return nil, err
	}
	for i, a := range got {
		attrs[at[i]] = a
	}
	return p.reply(attrs), nil
}

// decision is the record that a transaction is committed: whom to tell.
type decision struct {
	id           wire.TxnID
	participants []wire.BucketID
}

func (d *decision) append(b []byte) []byte {
	b = appendUvarint(append(b, recordVersion), uint64(len(d.participants)))
	for _, p := range d.participants {
		b = appendUvarint(b, uint64(p))
	}
	return b
}

func decodeDecision(id wire.TxnID, b []byte) (*decision, error) {
	r := newReader(b)
	d := &decision{id: id}
	for range r.small(maxTxnOps, "participants") {
		d.participants = append(d.participants, wire.BucketID(r.small(wire.MaxBuckets, "participant")))
	}
	return d, r.done("decision")
}

// newTxn makes an id and notes that it is open.
func (b *Bucket) newTxn() (wire.TxnID, error) {
	seq, err := b.txnSeqs.take()
	if err != nil {
		return wire.TxnID{}, err
	}
	id := wire.TxnID{Coordinator: b.cfg.Bucket, Epoch: b.cfg.Epoch, Seq: seq}
	b.mu.Lock()
	b.coord.Begin(id)
	b.mu.Unlock()
	return id, nil
}

// tryTxn runs a plan that concerns other buckets.
func (b *Bucket) tryTxn(ctx context.Context, c *call, p *plan, others [][]int, attrs []wire.Attr) (wire.Message, error) {
	id, err := b.newTxn()
	if err != nil {
		return nil, err
	}
	d := &decision{id: id}
	for _, group := range others {
		bucket := bucketOf(&p.ops[group[0]])
		d.participants = append(d.participants, bucket)
		b.crash("coord.prepare")
		if err := b.prepareAt(ctx, c, d, p, group, attrs); err != nil {
			b.abort(ctx, d)
			return nil, err
		}
	}
	b.crash("coord.prepared")
	if p.bind != nil {
		p.bind(p.ops, attrs)
	}
	reply, err := b.tryLocal(ctx, c, p, d, prepareLockWait, attrs)
	if errors.Is(err, errLockTime) {
		err = wire.E("meta.txn", wire.KindWouldBlock, "", err)
	}
	if err != nil {
		if b.state() == nil {
			b.abort(ctx, d)
		}
		return nil, err
	}
	b.mu.Lock()
	b.coord.Commit(id, d.participants)
	b.mu.Unlock()
	b.crash("coord.decided")
	b.tell(ctx, d)
	return reply, nil
}

// prepareAt asks one bucket to prepare its steps.
func (b *Bucket) prepareAt(ctx context.Context, c *call, d *decision, p *plan, group []int, attrs []wire.Attr) error {
	req := &wire.TxnPrepareReq{ID: d.id, Session: c.op.Session, Bucket: bucketOf(&p.ops[group[0]])}
	if int(req.Bucket) >= b.cfg.Buckets {
		return wire.Errorf("meta.txn", wire.KindNotFound, "", "bucket %d", req.Bucket)
	}
	for _, i := range group {
		op := p.ops[i]
		if op.Kind == opMakeInode {
			op.Ino = 0
		}
		req.Ops = append(req.Ops, op)
	}
	var resp wire.TxnPrepareResp
	if err := b.cfg.Peers(ctx, req.Bucket, &rpc.Call{Method: wire.MTxnPrepare, Req: req, Resp: &resp}); err != nil {
		return err
	}
	if len(resp.Attrs) != len(group) {
		return wire.Errorf("meta.txn", wire.KindBadFrame, "", "%d answers to %d steps", len(resp.Attrs), len(group))
	}
	for n, i := range group {
		attrs[i] = resp.Attrs[n]
	}
	return nil
}

// abort gives a transaction up, and tells those that may have prepared it. Who is not told asks, and learns it.
func (b *Bucket) abort(ctx context.Context, d *decision) {
	b.mu.Lock()
	b.coord.Abort(d.id)
	b.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortCall)
	defer cancel()
	b.each(d.participants, func(bucket wire.BucketID) {
		_ = b.decideAt(ctx, d.id, bucket, false)
	})
}

// tell tells the participants of a committed transaction. Those that cannot be reached now are told by Run.
func (b *Bucket) tell(ctx context.Context, d *decision) {
	b.each(d.participants, func(bucket wire.BucketID) {
		if err := b.decideAt(ctx, d.id, bucket, true); err != nil {
			b.wake()
			return
		}
		b.crash("coord.told")
		b.acked(d.id, bucket)
	})
}

// each calls f for every bucket, side by side, and waits.
func (b *Bucket) each(buckets []wire.BucketID, f func(wire.BucketID)) {
	var wg sync.WaitGroup
	for _, bucket := range buckets[1:] {
		wg.Add(1)
		go func() {
			defer wg.Done()
			f(bucket)
		}()
	}
	f(buckets[0])
	wg.Wait()
}

func (b *Bucket) decideAt(ctx context.Context, id wire.TxnID, bucket wire.BucketID, commit bool) error {
	req := &wire.TxnDecideReq{ID: id, Bucket: bucket, Commit: commit}
	return b.cfg.Peers(ctx, bucket, &rpc.Call{Method: wire.MTxnDecide, Req: req})
}

// acked notes that a participant has applied the transaction; after the last one its record goes.
func (b *Bucket) acked(id wire.TxnID, from wire.BucketID) {
	b.mu.Lock()
	last := b.coord.Acked(id, from)
	if last {
		b.forgetting++
	}
	b.mu.Unlock()
	if !last {
		return
	}
	defer func() {
		b.mu.Lock()
		b.forgetting--
		b.mu.Unlock()
	}()
	// Not synced: if it is lost, the participants are told once more, which does no harm.
	if err := b.guard(func() error { return b.db.Delete(decidedKey(id), noSync) }); err != nil {
		b.fail(err)
	}
}

// TxnQuery answers a participant in doubt.
func (b *Bucket) TxnQuery(_ context.Context, req *wire.TxnQueryReq) (*wire.TxnQueryResp, error) {
	if err := b.enter(); err != nil {
		return nil, err
	}
	defer b.leave()
	if req.ID.Coordinator != b.cfg.Bucket {
		return nil, wire.E("meta.query", wire.KindMoved, b.id(), nil)
	}
	b.mu.Lock()
	outcome, ok := b.coord.Outcome(req.ID, req.Bucket, b.cfg.Epoch)
	b.mu.Unlock()
	if !ok {
		return nil, wire.Errorf("meta.query", wire.KindMoved, b.id(), "epoch %d asked in epoch %d", req.ID.Epoch, b.cfg.Epoch)
	}
	return &wire.TxnQueryResp{Outcome: outcome}, nil
}

// loadDecided finds the committed transactions of which not all may know.
func (b *Bucket) loadDecided() error {
	return b.scan(newKey(tagDecided), nil, func(k, v []byte) (bool, error) {
		f, rest, ok := splitKey(k, 2)
		if !ok || len(rest) != 0 {
			return false, corruptKey(k)
		}
		d, err := decodeDecision(wire.TxnID{Coordinator: b.cfg.Bucket, Epoch: wire.Epoch(f[0]), Seq: f[1]}, v)
		if err == nil {
			b.coord.Commit(d.id, d.participants)
		}
		return true, err
	})
}
