package meta

import (
	"context"
	"time"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
	"golang.org/x/sys/unix"
)

// maxDepth bounds the walk from a directory to its root.
const maxDepth = 1 << 16

// errNeedRenameLock says that a directory would change its parent.
var errNeedRenameLock = wire.Errorf("meta.rename", wire.KindRefused, "", "needs the rename lock")

// renaming is one rename request.
type renaming struct {
	b      *Bucket
	req    *wire.RenameReq
	locked bool // the filesystem's rename lock is held
	root   wire.Ino
}

// Rename moves a name.
func (b *Bucket) Rename(ctx context.Context, req *wire.RenameReq) (*wire.RenameResp, error) {
	c, err := b.begin(ctx, req.Op)
	if err != nil {
		return nil, err
	}
	defer c.end()
	if c.replay != nil {
		resp := &wire.RenameResp{}
		return resp, c.replayed(resp)
	}
	for _, name := range []string{req.OldName, req.NewName} {
		if err := checkName(name); err != nil {
			return nil, err
		}
	}
	if req.Flags&^(wire.RenameNoReplace|wire.RenameExchange) != 0 || req.Flags == wire.RenameNoReplace|wire.RenameExchange {
		return nil, wire.Errorf("meta.rename", wire.KindInvalid, req.OldName, "flags %x", req.Flags)
	}
	r := &renaming{b: b, req: req}
	m, err := b.execute(ctx, c, r.plan)
	if err == errNeedRenameLock {
		release, lerr := b.lockRenames(ctx, c.op.Session, r.root)
		if lerr != nil {
			return nil, lerr
		}
		defer release()
		r.locked = true
		m, err = b.execute(ctx, c, r.plan)
	}
	if err != nil {
		return nil, err
	}
	return m.(*wire.RenameResp), nil
}

// plan looks both names up and lists the steps.
func (r *renaming) plan(l *looker) (*plan, error) {
	req := r.req
	dir, err := l.dir("meta.rename", req.OldParent)
	if err != nil {
		return nil, err
	}
	r.root = wire.RootIno(dir.fs, r.b.cfg.Buckets)
	from, found, err := l.entry(req.OldParent, req.OldName)
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, wire.E("meta.rename", wire.KindNotFound, req.OldName, nil)
	}
	to, exists, err := l.entry(req.NewParent, req.NewName)
	if err != nil {
		return nil, err
	}
	if err := r.refuse(from, to, exists); err != nil {
		return nil, err
	}
	if exists && from.ino == to.ino {
		return &plan{done: &wire.RenameResp{Moved: from.ino}}, nil
	}
	exchange := req.Flags&wire.RenameExchange != 0
	if err := r.guardTree(l, from, to, exchange); err != nil {
		return nil, err
	}
	resp := &wire.RenameResp{Moved: from.ino, Other: to.ino}
	p := &plan{reply: func([]wire.Attr) wire.Message { return resp }}
	if exchange {
		p.ops = r.exchangeSteps(from, to, dir.fs)
	} else {
		p.ops = r.moveSteps(from, to, exists, dir.fs)
	}
	return p, nil
}

// refuse finds what makes the rename wrong by type or flag.
func (r *renaming) refuse(from, to dentry, exists bool) error {
	fail := func(k wire.Kind) error { return wire.E("meta.rename", k, r.req.NewName, nil) }
	if r.req.Flags&wire.RenameExchange != 0 {
		if !exists {
			return fail(wire.KindNotFound)
		}
		return nil
	}
	switch {
	case !exists:
		return nil
	case r.req.Flags&wire.RenameNoReplace != 0:
		return fail(wire.KindExists)
	case from.ino == to.ino:
		return nil
	case from.typ == unix.S_IFDIR && to.typ != unix.S_IFDIR:
		return fail(wire.KindNotDir)
	case from.typ != unix.S_IFDIR && to.typ == unix.S_IFDIR:
		return fail(wire.KindIsDir)
	}
	return nil
}

// guardTree makes sure that no directory becomes its own ancestor. It takes the rename lock (held by Rename) to know:
// under it nothing else moves a directory, so the ancestors that are found stay.
func (r *renaming) guardTree(l *looker, from, to dentry, exchange bool) error {
	if r.req.OldParent == r.req.NewParent {
		return nil
	}
	fromDir, toDir := from.typ == unix.S_IFDIR, exchange && to.typ == unix.S_IFDIR
	if !fromDir && !toDir {
		return nil
	}
	if !r.locked {
		return errNeedRenameLock
	}
	if fromDir {
		if err := r.notBelow(l, from.ino, r.req.NewParent); err != nil {
			return err
		}
	}
	if toDir {
		return r.notBelow(l, to.ino, r.req.OldParent)
	}
	return nil
}

// notBelow fails with KindInvalid if dir is moved or lies below it.
func (r *renaming) notBelow(l *looker, moved, dir wire.Ino) error {
	for range maxDepth {
		if dir == moved {
			return wire.Errorf("meta.rename", wire.KindInvalid, r.req.OldName, "a directory cannot be moved below itself")
		}
		if dir == r.root {
			return nil
		}
		a, err := l.peek(wire.TxnOp{Kind: opPeekParent, Ino: dir})
		if err != nil {
			return err
		}
		dir = a.Ino
	}
	return wire.Errorf("meta.rename", wire.KindOverLimit, r.req.NewName, "deeper than %d directories", maxDepth)
}

// carry gives the step for an inode whose name has moved.
func (r *renaming) carry(d dentry, newParent wire.Ino, now int64) wire.TxnOp {
	if d.typ == unix.S_IFDIR && r.req.OldParent != r.req.NewParent {
		return wire.TxnOp{Kind: opReparent, Ino: d.ino, Other: newParent, Time: now}
	}
	return wire.TxnOp{Kind: opTouch, Ino: d.ino, Time: now}
}

func (r *renaming) moveSteps(from, to dentry, exists bool, fs wire.FSID) []wire.TxnOp {
	req, now := r.req, r.b.cfg.Now()
	ops := []wire.TxnOp{
		{Kind: opRemoveEntry, Ino: req.OldParent, Name: req.OldName, Other: from.ino, Mode: from.typ, Time: now},
		{Kind: opAddEntry, Ino: req.NewParent, Name: req.NewName, Other: from.ino, Mode: from.typ, FS: fs, Time: now},
		r.carry(from, req.NewParent, now),
	}
	if req.Flags&wire.RenameNoReplace == 0 {
		ops[1].Flags = addOrLookAgain
	}
	if exists {
		ops[1].Kind, ops[1].Extra = opReplaceEntry, entryBefore(to)
		ops = append(ops, removeStep(to, now))
	}
	return ops
}

func (r *renaming) exchangeSteps(from, to dentry, fs wire.FSID) []wire.TxnOp {
	req, now := r.req, r.b.cfg.Now()
	return []wire.TxnOp{
		{Kind: opReplaceEntry, Ino: req.OldParent, Name: req.OldName, Other: to.ino, Mode: to.typ, FS: fs, Time: now, Extra: entryBefore(from)},
		{Kind: opReplaceEntry, Ino: req.NewParent, Name: req.NewName, Other: from.ino, Mode: from.typ, FS: fs, Time: now, Extra: entryBefore(to)},
		r.carry(from, req.NewParent, now),
		r.carry(to, req.OldParent, now),
	}
}

// lockRenames takes the one lock under which directories of a filesystem move between parents; the bucket of its root has
// it. Elsewhere it is a transaction of its own that is only prepared and, in the end, aborted: so it outlives a crash of
// that bucket as long as this one lives, and goes when this one does. It may be given back before other participants of
// the rename have applied it, because they hold the locks of the directories that move, and the next walk waits there.
func (b *Bucket) lockRenames(ctx context.Context, session wire.SessionID, root wire.Ino) (release func(), err error) {
	bucket := root.Bucket()
	if bucket == b.cfg.Bucket {
		h, err := b.locks.acquire(ctx, b.cfg.LockWait, lockWant{lockID{spaceRename, uint64(root)}, true})
		if err != nil {
			return nil, err
		}
		return func() { h.release(nil) }, nil
	}
	for round := 0; ; round++ {
		id, err := b.newTxn()
		if err != nil {
			return nil, err
		}
		d := &decision{id: id, participants: []wire.BucketID{bucket}}
		req := &wire.TxnPrepareReq{ID: id, Session: session, Bucket: bucket,
			Ops: []wire.TxnOp{{Kind: opRenameLock, Ino: root, Time: b.cfg.Now()}}}
		err = b.cfg.Peers(ctx, bucket, &rpc.Call{Method: wire.MTxnPrepare, Req: req, Resp: &wire.TxnPrepareResp{}})
		if err == nil {
			b.crash("coord.renamelock")
			return func() {
				if b.state() == nil {
					b.abort(ctx, d)
				}
			}, nil
		}
		b.abort(ctx, d)
		if !conflict(err) || round == staleRounds {
			return nil, final(err)
		}
		if err := pause(ctx, min(retryMin<<min(round, 10), 50*time.Millisecond)); err != nil {
			return nil, err
		}
	}
}
