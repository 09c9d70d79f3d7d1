package core

import (
	"context"
	"errors"
	"slices"

	"github.com/crakefs/crake/frontend/internal/locks"
	"github.com/crakefs/crake/wire"
)

// SetLock sets or drops (Type wire.LockUnlock) a lock. With wait it waits until it is granted or ctx ends; without, a
// lock in the way gives KindWouldBlock.
func (fs *FS) SetLock(ctx context.Context, ino wire.Ino, l locks.Held, wait bool) error {
	in := fs.table.get(ino)
	defer fs.table.put(in)
	return fs.setLock(ctx, in, l, wait)
}

func (fs *FS) lockRequest(in *inode, l locks.Held) *wire.LockReq {
	return &wire.LockReq{Op: wire.OpID{Session: fs.sess.id}, Ino: in.ino, Owner: l.Owner, Start: l.Start, End: l.End, Type: l.Type,
		Flock: l.Flock, PID: l.PID}
}

func (fs *FS) setLock(ctx context.Context, in *inode, l locks.Held, wait bool) error {
	req := fs.lockRequest(in, l)
	req.Wait = wait
	err := fs.ask(ctx, in.ino.Bucket(), wire.MLock, req, &wire.LockResp{})
	if err == nil || l.Type == wire.LockUnlock {
		// An unlock that failed is noted all the same: a new owner must not be told of it.
		in.mu.Lock()
		in.locks.Set(l)
		in.mu.Unlock()
		return err
	}
	if errors.Is(err, wire.KindInterrupted) || errors.Is(err, wire.KindTimeout) {
		// It may have been granted while we gave up: put back what there was, for as long as it takes.
		fs.spawn(func() { fs.restoreLock(in.ino, l) })
		return interrupted(ctx)
	}
	return err
}

// restoreLock makes the owner hold what the table says, in the range of a request whose outcome is not known.
func (fs *FS) restoreLock(ino wire.Ino, l locks.Held) {
	in := fs.table.get(ino)
	defer fs.table.put(in)
	l.Type = wire.LockUnlock
	for {
		in.mu.Lock()
		had := in.locks.Within(l.Owner, l.Flock, l.Start, l.End)
		in.mu.Unlock()
		// First what is less: an unlock of the whole, then the parts again. A part that another session took meanwhile
		// is lost, and gone from the table; its owner was interrupted in the middle of changing it.
		for _, part := range append([]locks.Held{l}, had...) {
			err := fs.ask(fs.bg, ino.Bucket(), wire.MLock, fs.lockRequest(in, part), &wire.LockResp{})
			if err != nil && part.Type != wire.LockUnlock {
				part.Type = wire.LockUnlock
				in.mu.Lock()
				in.locks.Set(part)
				in.mu.Unlock()
			}
		}
		in.mu.Lock()
		same := slices.Equal(had, in.locks.Within(l.Owner, l.Flock, l.Start, l.End))
		in.mu.Unlock()
		if same || fs.bg.Err() != nil {
			return // else a close came between: once more
		}
	}
}

// TestLock gives the first lock that is in the way of l; its Type is wire.LockUnlock when there is none.
func (fs *FS) TestLock(ctx context.Context, ino wire.Ino, l locks.Held) (wire.LockResp, error) {
	in := fs.table.get(ino)
	defer fs.table.put(in)
	req := fs.lockRequest(in, l)
	req.Test = true
	var resp wire.LockResp
	err := fs.ask(ctx, ino.Bucket(), wire.MLock, req, &resp)
	return resp, err
}
