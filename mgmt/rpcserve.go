package mgmt

import (
	"context"
	"fmt"
	"time"

	"github.com/crakefs/crake/mgmt/internal/leader"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

// handle answers the processes of the cluster.
func (w *worker) handle(ctx context.Context, req *rpc.Request) (wire.Message, wire.Data, error) {
	req.Data.Release() // no request to mgmt carries any
	peer := req.Conn.Peer()
	if peer.Role == wire.RoleClient {
		if req.Header.Method != wire.MWatchMap {
			return nil, nil, refuse(peer, "a tool may only read the map")
		}
	} else if peer.Cluster != w.cluster {
		return nil, nil, refuse(peer, "it is of cluster %s, this is %s", peer.Cluster, w.cluster)
	}
	resp, err := w.answer(ctx, peer, req)
	return resp, nil, err
}

func refuse(peer rpc.Self, format string, args ...any) error {
	return wire.Errorf("mgmt", wire.KindRefused, fmt.Sprintf("%s %d", peer.Role, peer.Proc), format, args...)
}

func (w *worker) answer(ctx context.Context, peer rpc.Self, req *rpc.Request) (wire.Message, error) {
	switch req.Header.Method {
	case wire.MRegister:
		var r wire.RegisterReq
		if err := r.Decode(req.Meta); err != nil {
			return nil, err
		}
		if r.Proc != peer.Proc || r.Role != peer.Role {
			return nil, refuse(peer, "it registers as %s %d", r.Role, r.Proc)
		}
		return w.register(ctx, &r, req.Conn.PeerKey())
	case wire.MHeartbeat:
		var r wire.HeartbeatReq
		if err := r.Decode(req.Meta); err != nil {
			return nil, err
		}
		if r.Proc != peer.Proc {
			return nil, refuse(peer, "heartbeat of process %d", r.Proc)
		}
		return w.heartbeat(&r)
	case wire.MWatchMap:
		var r wire.WatchMapReq
		if err := r.Decode(req.Meta); err != nil {
			return nil, err
		}
		return w.watchMap(ctx, r.After)
	case wire.MEvent:
		var r wire.EventReq
		if err := r.Decode(req.Meta); err != nil {
			return nil, err
		}
		w.noteEvent(peer, &r)
		return &wire.Empty{}, nil
	case wire.MDriveTrouble:
		var r wire.DriveTroubleReq
		if err := r.Decode(req.Meta); err != nil {
			return nil, err
		}
		if r.Proc != peer.Proc {
			return nil, refuse(peer, "trouble of process %d", r.Proc)
		}
		var terr error
		w.d.Do(func(now leader.Millis, c *leader.Core) { terr = c.Trouble(now, &r) })
		return &wire.Empty{}, terr
	case wire.MEvict:
		var r wire.EvictReq
		if err := r.Decode(req.Meta); err != nil {
			return nil, err
		}
		if peer.Role != wire.RoleCompute {
			return nil, refuse(peer, "only computes evict")
		}
		return &wire.Empty{}, w.evict(ctx, &r)
	case wire.MGoodbye:
		var r wire.GoodbyeReq
		if err := r.Decode(req.Meta); err != nil {
			return nil, err
		}
		if r.Proc != peer.Proc {
			return nil, refuse(peer, "goodbye of process %d", r.Proc)
		}
		var gerr error
		w.d.Do(func(now leader.Millis, c *leader.Core) { gerr = c.Goodbye(now, r.Proc, r.Incarnation) })
		return &wire.Empty{}, gerr
	}
	return nil, wire.Errorf("mgmt", wire.KindVersion, "", "mgmt has no method %#x", uint16(req.Header.Method))
}

// register takes up a run; it is answered when that is written, so an incarnation or session is never given twice.
func (w *worker) register(ctx context.Context, r *wire.RegisterReq, key wire.ProcKey) (wire.Message, error) {
	var reg leader.Registered
	var rerr error
	err := w.d.Commit(ctx, func(now leader.Millis, c *leader.Core) {
		// A run may have been started since this one connected.
		if rerr = w.ids.mayConnect(rpc.Self{Role: r.Role, Proc: r.Proc}, key); rerr == nil {
			reg, rerr = c.Register(now, r, key)
		}
	})
	if rerr != nil {
		return nil, rerr
	}
	if err != nil {
		return nil, err
	}
	m, _ := w.d.Map()
	return &wire.RegisterResp{Incarnation: reg.Incarnation, Session: reg.Session, Map: *m}, nil
}

func (w *worker) heartbeat(r *wire.HeartbeatReq) (wire.Message, error) {
	var herr error
	lease := 0
	w.d.Do(func(now leader.Millis, c *leader.Core) { herr, lease = c.Heartbeat(now, r), c.LeaseMs() })
	if herr != nil {
		return nil, herr
	}
	return &wire.HeartbeatResp{Generation: w.generation(), LeaseMs: uint32(lease)}, nil
}

func (w *worker) watchMap(ctx context.Context, after wire.Generation) (wire.Message, error) {
	// A little before the asker's deadline, so that the answer still arrives.
	wait := watchWait
	if end, ok := ctx.Deadline(); ok {
		wait = min(wait, time.Until(end)*9/10)
	}
	wctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	m := w.d.WaitMap(wctx, after)
	if m == nil {
		return nil, wire.Errorf("mgmt.watch", wire.KindUnavailable, "", "there is no map yet")
	}
	return &wire.WatchMapResp{Map: *m}, nil
}

func (w *worker) noteEvent(peer rpc.Self, r *wire.EventReq) {
	name := fmt.Sprintf("%s %d", peer.Role, peer.Proc)
	w.d.Look(func(_ leader.Millis, c *leader.Core) {
		if p := c.State().Procs[peer.Proc]; p != nil {
			name = p.Name
		}
	})
	at := time.Now()
	if t := time.Unix(0, r.Time); r.Time > 0 && t.Before(at) {
		at = t
	}
	w.ev.Add(r.Severity, r.Type, name, r.Text, at)
}

// evict ends a session and answers when it is gone from the published map: the asker may then give away what it held.
func (w *worker) evict(ctx context.Context, r *wire.EvictReq) error {
	ctx, cancel := context.WithTimeout(ctx, evictWait)
	defer cancel()
	reason := r.Reason[:min(len(r.Reason), leader.MaxTextBytes)]
	if err := w.d.Commit(ctx, func(now leader.Millis, c *leader.Core) { c.Evict(now, r.Session, reason) }); err != nil {
		return err
	}
	for {
		m, next := w.d.Map()
		if m != nil && !m.HasSession(r.Session) {
			return nil
		}
		select {
		case <-next:
		case <-ctx.Done():
			return wire.Errorf("mgmt.evict", wire.KindTimeout, fmt.Sprint(r.Session), "it is not gone yet: %w", ctx.Err())
		}
	}
}
