package route

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

// Bucket asks the owner of a bucket, with the epoch of the map in the header. As long as ctx lives, a retryable error
// (wire.Kind.Retryable: moved, stale epoch, connection lost, unavailable, ...) makes it wait (for a newer map where that
// helps, else 2 ms doubling to 250 ms) and send the same request again. So a mutating request must carry its OpID.
func (r *Router) Bucket(ctx context.Context, b wire.BucketID, call *rpc.Call) error {
	backoff := minBackoff
	var before error // of the attempt before the last
	for {
		next := r.nextMap()
		_, err := r.BucketOnce(ctx, b, call)
		switch {
		case err == nil || !wire.KindOf(err).Retryable():
			return err
		case ctx.Err() == nil:
			r.refresh()
			sleep(ctx, backoff, next)
			backoff = min(2*backoff, maxBackoff)
		case errors.Is(err, ctx.Err()):
			if before == nil {
				return err
			}
			// It ended while it waited for an answer: what was in the way says more.
			return wire.E("route.bucket", ctxKind(ctx.Err()), fmt.Sprint(b), fmt.Errorf("%w; at last: %w", err, before))
		}
		if ctx.Err() != nil {
			return wire.E("route.bucket", ctxKind(ctx.Err()), fmt.Sprint(b), fmt.Errorf("%w; at last: %w", ctx.Err(), err))
		}
		before = err
	}
}

// BucketOnce is Bucket without retries; conn is the connection that was used, or nil.
func (r *Router) BucketOnce(ctx context.Context, b wire.BucketID, call *rpc.Call) (conn *rpc.Conn, err error) {
	const op = "route.bucket"
	x := r.index.Load()
	if x == nil {
		return nil, wire.Errorf(op, wire.KindUnavailable, fmt.Sprint(b), "there is no cluster map yet")
	}
	if int(b) >= len(x.m.Owners) {
		return nil, wire.Errorf(op, wire.KindInvalid, fmt.Sprint(b), "the cluster has %d buckets", len(x.m.Owners))
	}
	owner := x.m.Owners[b]
	p := x.procs[owner.Proc]
	if owner.Proc == 0 || p == nil {
		return nil, wire.Errorf(op, wire.KindUnavailable, fmt.Sprint(b), "the bucket has no owner in map %d", x.m.Generation)
	}
	conn, err = r.connect(ctx, x, p, bucketDialTimeout)
	if err != nil {
		return nil, err
	}
	call.Epoch = owner.Epoch
	return conn, conn.Do(ctx, call)
}

// connect gives a connection to a process of a map.
func (r *Router) connect(ctx context.Context, x *index, p *wire.ProcInfo, timeout time.Duration) (*rpc.Conn, error) {
	dctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := r.pool.Get(dctx, x.reach[p.ID])
	if err == nil {
		err = expect(conn, p.Role, p.ID)
	}
	if err == nil {
		return conn, nil
	}
	kind := wire.KindOf(err)
	switch {
	case ctx.Err() != nil:
	case kind == wire.KindTimeout, kind == wire.KindInterrupted, kind == wire.KindConnLost:
		kind = wire.KindUnavailable // the dial took too long, not the request
	case r.c.Identity != nil && (kind == wire.KindRefused || kind == wire.KindAuthentication):
		// One side does not know yet what has become of the other; a run that is over itself is told by mgmt.
		kind = wire.KindUnavailable
	}
	return nil, wire.E("route.connect", kind, p.Name, err)
}

// Drive asks the process of a drive, once: the caller knows what else it can do (another replica, reconstruction).
// A drive that the map says is down or failed, or whose process does not accept a connection at once, gives
// KindUnavailable quickly.
func (r *Router) Drive(ctx context.Context, d wire.DriveID, call *rpc.Call) error {
	const op = "route.drive"
	x, p, err := r.driveProc(d)
	if err != nil {
		return err
	}
	conn, err := r.connect(ctx, x, p, driveDialTimeout)
	if err != nil {
		if ctx.Err() == nil {
			r.markAway(p.ID)
			return wire.E(op, wire.KindUnavailable, fmt.Sprint(d), err)
		}
		return err
	}
	err = conn.Do(ctx, call)
	if errors.Is(err, wire.KindConnLost) {
		r.refresh()
	}
	return err
}

// driveProc finds the process of a drive that is worth asking, in the newest map.
func (r *Router) driveProc(d wire.DriveID) (*index, *wire.ProcInfo, error) {
	const op = "route.drive"
	x := r.index.Load()
	if x == nil {
		return nil, nil, wire.Errorf(op, wire.KindUnavailable, fmt.Sprint(d), "there is no cluster map yet")
	}
	di := x.drives[d]
	if di == nil {
		return nil, nil, wire.Errorf(op, wire.KindUnavailable, fmt.Sprint(d), "the drive is not in map %d", x.m.Generation)
	}
	if di.State != wire.DriveUp {
		return nil, nil, wire.Errorf(op, wire.KindUnavailable, fmt.Sprint(d), "the drive is %s in map %d", di.State, x.m.Generation)
	}
	p := x.procs[di.Proc]
	if p == nil {
		return nil, nil, wire.Errorf(op, wire.KindUnavailable, fmt.Sprint(d), "the drive has no process in map %d", x.m.Generation)
	}
	r.mu.Lock()
	until, away := r.away[p.ID]
	if away && time.Now().After(until) {
		delete(r.away, p.ID)
		away = false
	}
	r.mu.Unlock()
	if away {
		return nil, nil, wire.Errorf(op, wire.KindUnavailable, fmt.Sprint(d), "its process %s was not reachable a moment ago", p.Name)
	}
	return x, p, nil
}

// markAway remembers for a short time that a process does not answer.
func (r *Router) markAway(id wire.ProcID) {
	r.mu.Lock()
	r.away[id] = time.Now().Add(awayFor)
	r.mu.Unlock()
	r.refresh()
}

// DriveUp reports whether the drive is worth asking: up in the map, and not found unreachable in the last moments.
func (r *Router) DriveUp(d wire.DriveID) bool {
	_, _, err := r.driveProc(d)
	return err == nil
}
