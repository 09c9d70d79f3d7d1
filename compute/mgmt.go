package compute

import (
	"context"
	"time"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/away"
	"github.com/crakefs/crake/wire/member"
	"github.com/crakefs/crake/wire/rpc"
)

// leaser keeps the right to serve alive by the heartbeats of a member. Its methods are called by one goroutine at a time.
type leaser struct {
	p    *process
	time time.Duration // of mgmt's lease, as it last said
	sent time.Duration // when the heartbeat under way was sent, by the lease's clock
}

func (p *process) newMember(self rpc.Self) *member.Member {
	l := &p.leaser
	return member.New(member.Config{
		Self: self, Name: p.cfg.Name, Cores: p.cfg.Cores, Ask: p.router.Mgmt, HeartbeatTimeout: heartbeatTimeout, Log: p.log,
		Arena: p.arena, Conns: p.router.Conns,
		Beat: l.beat, Answered: l.answered, Silent: l.silent,
	})
}

// register announces the process until mgmt answers. Errors: those of member.Register.
func (p *process) register(ctx context.Context) error {
	resp, err := p.member.Register(ctx, p.listener.Addrs(), nil)
	if err != nil {
		return err
	}
	p.leaser.time = time.Duration(resp.Map.LeaseMs) * time.Millisecond
	p.router.SetMap(&resp.Map)
	return nil
}

// heartbeats renews the lease until ctx ends (nil), or mgmt says that this run is over: then so is the lease.
func (p *process) heartbeats(ctx context.Context) error {
	err := p.member.Heartbeats(ctx)
	if err != nil {
		p.lease.End()
	}
	return err
}

// beat tells of all buckets.
func (l *leaser) beat(req *wire.HeartbeatReq) {
	req.Generation, req.Buckets = l.p.owner.Reports()
	req.Ready = !l.p.stopping.Load()
	l.sent = l.p.lease.Now()
}

// answered renews the lease.
func (l *leaser) answered(ctx context.Context, resp *wire.HeartbeatResp) error {
	if resp.LeaseMs > 0 {
		l.time = time.Duration(resp.LeaseMs) * time.Millisecond
	}
	// If mgmt has made a newer map meanwhile, it may have taken buckets from us (we were silent for too long). The lease
	// is for what that map gives us; so it counts once we have acted upon it.
	if err := l.p.owner.WaitGen(ctx, resp.Generation); err != nil {
		return wire.Errorf("compute.heartbeat", wire.KindStaleGeneration, "", "map %d does not come: %w", resp.Generation, err)
	}
	l.p.lease.Renew(l.sent, l.time)
	return nil
}

// silent lengthens the lease when it is certain that no mgmt runs: while none does, nobody can give away what we own.
func (l *leaser) silent(ctx context.Context) {
	if at := l.p.lease.Now(); away.Refused(ctx, l.p.cfg.Mgmt) {
		l.p.lease.Extend(at, l.time)
	}
}
