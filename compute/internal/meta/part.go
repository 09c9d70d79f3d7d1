package meta

import (
	"context"
	"errors"
	"time"

	"github.com/crakefs/crake/compute/internal/txn"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

// preparedTxn is a transaction in which this bucket takes part, from prepare to outcome. Guarded by Bucket.mu where the
// participant's state says who works on it.
type preparedTxn struct {
	id      wire.TxnID
	session wire.SessionID
	ops     []wire.TxnOp // with the numbers of new inodes
	attrs   []wire.Attr  // the answer
	locks   *held
	release func() // of the leases held off; nil after a restart (the locks keep grants away)
	since   time.Time
	// recovered: found at open, so the decision may have been told long ago; ask at once.
	recovered bool
}

// The value of a prepare record: request and answer as on the wire.
func (p *preparedTxn) append(b []byte) []byte {
	b = append(b, recordVersion)
	b = appendBytes(b, (&wire.TxnPrepareReq{ID: p.id, Session: p.session, Ops: p.ops}).Append(nil))
	return appendBytes(b, (&wire.TxnPrepareResp{Attrs: p.attrs}).Append(nil))
}

func decodePrepared(id wire.TxnID, v []byte) (*preparedTxn, error) {
	r := newReader(v)
	reqBytes, respBytes := r.bytes(wire.MaxMetaBytes, "steps"), r.bytes(wire.MaxMetaBytes, "answer")
	if err := r.done("prepare"); err != nil {
		return nil, err
	}
	var req wire.TxnPrepareReq
	var resp wire.TxnPrepareResp
	if err := errors.Join(req.Decode(reqBytes), resp.Decode(respBytes)); err != nil {
		return nil, wire.E("meta.decode", wire.KindCorrupt, "prepare", err)
	}
	if req.ID != id || len(req.Ops) == 0 || len(req.Ops) != len(resp.Attrs) {
		return nil, wire.Errorf("meta.decode", wire.KindCorrupt, "prepare", "of transaction %v", req.ID)
	}
	return &preparedTxn{id: id, session: req.Session, ops: req.Ops, attrs: resp.Attrs}, nil
}

// TxnPrepare checks the steps, locks what they touch and records that, durably. Kinds: KindWouldBlock (locked by others,
// or a name has changed: look again), KindRefused (the transaction is over), and what the steps find.
func (b *Bucket) TxnPrepare(ctx context.Context, req *wire.TxnPrepareReq) (*wire.TxnPrepareResp, error) {
	if err := b.enter(); err != nil {
		return nil, err
	}
	defer b.leave()
	if req.Bucket != b.cfg.Bucket {
		return nil, wire.E("meta.prepare", wire.KindMoved, b.id(), nil)
	}
	if len(req.Ops) == 0 || len(req.Ops) > maxTxnOps {
		return nil, wire.Errorf("meta.prepare", wire.KindInvalid, b.id(), "%d steps", len(req.Ops))
	}
	peeks := 0
	for i := range req.Ops {
		if err := b.checkOp(&req.Ops[i]); err != nil {
			return nil, err
		}
		if isPeek(req.Ops[i].Kind) {
			peeks++
		}
	}
	switch {
	case peeks == len(req.Ops):
		return b.peekAll(ctx, req.Ops)
	case peeks > 0 || req.ID == (wire.TxnID{}):
		return nil, wire.Errorf("meta.prepare", wire.KindInvalid, b.id(), "mixed steps, or no transaction")
	}
	for {
		b.mu.Lock()
		action := b.part.Arrive(req.ID)
		if action == txn.Fresh && len(b.prepared) >= maxParticipantTxns {
			b.part.Failed(req.ID)
			b.mu.Unlock()
			return nil, wire.Errorf("meta.prepare", wire.KindUnavailable, b.id(), "%d transactions in doubt", maxParticipantTxns)
		}
		p := b.prepared[req.ID]
		b.mu.Unlock()
		switch action {
		case txn.Fresh:
			return b.prepareFresh(ctx, req)
		case txn.Answer:
			return &wire.TxnPrepareResp{Attrs: p.attrs}, nil
		case txn.Gone:
			return nil, wire.Errorf("meta.prepare", wire.KindRefused, b.id(), "the transaction is over")
		}
		if err := pause(ctx, retryMin); err != nil {
			return nil, err
		}
	}
}

// pause waits for a moment.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctxError("meta.txn", ctx)
	}
}

func (b *Bucket) peekAll(ctx context.Context, ops []wire.TxnOp) (*wire.TxnPrepareResp, error) {
	h, err := b.locks.acquire(ctx, prepareLockWait, locksOf(ops)...)
	if err != nil {
		return nil, asConflict(err)
	}
	t := tx{b: b}
	attrs, err := t.steps(ops)
	h.release(nil)
	if derr := h.durable(); derr != nil {
		return nil, derr
	}
	if err != nil {
		return nil, err
	}
	return &wire.TxnPrepareResp{Attrs: attrs}, nil
}

// asConflict tells a coordinator that a lock was not to be had in time, in a way that it acts on itself.
func asConflict(err error) error {
	if errors.Is(err, errLockTime) {
		return wire.E("meta.prepare", wire.KindWouldBlock, "", err)
	}
	return err
}

// prepareFresh does the work of a prepare.
// Preconditions: the participant said Fresh.
func (b *Bucket) prepareFresh(ctx context.Context, req *wire.TxnPrepareReq) (_ *wire.TxnPrepareResp, err error) {
	p := &preparedTxn{id: req.ID, session: req.Session, ops: req.Ops, since: time.Now()}
	defer func() {
		if err != nil {
			p.locks.release(nil)
			if p.release != nil {
				p.release()
			}
			b.mu.Lock()
			delete(b.prepared, p.id)
			b.part.Failed(p.id)
			b.mu.Unlock()
		}
	}()
	for i := range p.ops {
		if op := &p.ops[i]; op.Kind == opMakeInode && op.Ino == 0 {
			if op.Ino, err = b.newIno(); err != nil {
				return nil, err
			}
		}
	}
	if inos := changedInos(p.ops); len(inos) > 0 {
		if p.release, err = b.cfg.Leases.Hold(ctx, p.session, inos, true); err != nil {
			return nil, err
		}
	}
	if p.locks, err = b.locks.acquireFor(ctx, p.id, prepareLockWait, locksOf(p.ops)...); err != nil {
		return nil, asConflict(err)
	}
	t := b.newTx(p.ops[0].Time)
	p.attrs, err = t.steps(p.ops)
	t.close() // only tried: the outcome makes the same changes again
	if err != nil {
		if derr := p.locks.durable(); derr != nil {
			return nil, derr
		}
		return nil, err
	}
	b.crash("part.prepare")
	if err = b.set(prepareKey(p.id), p.append(nil)); err != nil {
		return nil, err
	}
	b.mu.Lock()
	b.prepared[p.id] = p
	b.part.Prepared(p.id)
	first := len(b.prepared) == 1
	b.mu.Unlock()
	if first {
		b.wake() // Run looks again from time to time as long as there are any
	}
	b.crash("part.prepared")
	return &wire.TxnPrepareResp{Attrs: p.attrs}, nil
}

// TxnDecide carries the outcome out. Idempotent.
func (b *Bucket) TxnDecide(ctx context.Context, req *wire.TxnDecideReq) error {
	if err := b.enter(); err != nil {
		return err
	}
	defer b.leave()
	if req.Bucket != b.cfg.Bucket {
		return wire.E("meta.decide", wire.KindMoved, b.id(), nil)
	}
	for {
		b.mu.Lock()
		action := b.part.Decide(req.ID, req.Commit)
		p := b.prepared[req.ID]
		b.mu.Unlock()
		switch action {
		case txn.Done:
			return nil
		case txn.Apply:
			return b.carryOut(p, req.Commit)
		}
		if err := pause(ctx, retryMin); err != nil {
			return err
		}
	}
}

// carryOut applies an outcome.
// Preconditions: the participant said Apply.
func (b *Bucket) carryOut(p *preparedTxn, commit bool) error {
	err := b.applyOutcome(p, commit)
	b.mu.Lock()
	if err != nil {
		b.part.Undo(p.id)
		b.mu.Unlock()
		return err
	}
	delete(b.prepared, p.id)
	b.part.Finish(p.id)
	b.mu.Unlock()
	if p.release != nil {
		p.release()
	}
	b.crash("part.finished")
	return nil
}

func (b *Bucket) applyOutcome(p *preparedTxn, commit bool) error {
	if !commit {
		b.crash("part.abort")
		// Not synced: if it is lost, the transaction is in doubt again after a crash, and found to be aborted.
		if err := b.guard(func() error { return b.db.Delete(prepareKey(p.id), noSync) }); err != nil {
			b.fail(err)
			return wire.E("meta.decide", wire.KindUnavailable, b.id(), err)
		}
		p.locks.release(nil)
		return nil
	}
	t := b.newTx(p.ops[0].Time)
	defer t.close()
	if _, err := t.steps(p.ops); err != nil {
		// Checked at prepare and locked since: only a device error, or broken reasoning, comes here.
		return wire.Errorf("meta.decide", wire.KindCorrupt, b.id(), "a prepared step fails: %w", err)
	}
	if err := t.del(prepareKey(p.id)); err != nil {
		return err
	}
	b.crash("part.apply")
	return t.commit(p.locks, nil, nil)
}

// loadPrepared finds the transactions in doubt and takes their locks. The steps cannot clash: each had its locks when it
// was prepared, and every record before it in the log is here too.
func (b *Bucket) loadPrepared(ctx context.Context) error {
	return b.scan(newKey(tagPrepare), nil, func(k, v []byte) (bool, error) {
		if len(k) != 1+2+8+8 {
			return false, corruptKey(k)
		}
		id := wire.TxnID{Coordinator: wire.BucketID(uint16(k[1])<<8 | uint16(k[2]))}
		f, _, _ := splitKey(k[2:], 2)
		id.Epoch, id.Seq = wire.Epoch(f[0]), f[1]
		p, err := decodePrepared(id, v)
		if err != nil {
			return false, err
		}
		p.since, p.recovered = time.Now(), true
		if p.locks, err = b.locks.acquireFor(ctx, p.id, time.Second, locksOf(p.ops)...); err != nil {
			return false, wire.Errorf("meta.open", wire.KindCorrupt, b.id(), "two prepared transactions touch one inode: %w", err)
		}
		b.prepared[id] = p
		b.part.Load(id)
		return true, nil
	})
}

// doubts lists the prepared transactions that have waited long for their outcome.
func (b *Bucket) doubts() []*preparedTxn {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []*preparedTxn
	for _, p := range b.prepared {
		if (p.recovered || time.Since(p.since) >= b.cfg.doubtAge) && len(out) < settleBatch {
			out = append(out, p)
		}
	}
	return out
}

// resolve asks the coordinator for the outcome, and carries it out.
func (b *Bucket) resolve(ctx context.Context, p *preparedTxn) error {
	var resp wire.TxnQueryResp
	req := &wire.TxnQueryReq{ID: p.id, Bucket: b.cfg.Bucket}
	if err := b.cfg.Peers(ctx, p.id.Coordinator, &rpc.Call{Method: wire.MTxnQuery, Req: req, Resp: &resp}); err != nil {
		return err
	}
	if resp.Outcome == wire.TxnPending {
		return nil
	}
	return b.TxnDecide(ctx, &wire.TxnDecideReq{ID: p.id, Bucket: b.cfg.Bucket, Commit: resp.Outcome == wire.TxnCommitted})
}
