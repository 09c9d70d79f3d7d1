package compute

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/away"
	"github.com/crakefs/crake/wire/procfs"
	"github.com/crakefs/crake/wire/rpc"
	"github.com/crakefs/crake/wire/strip"
)

// register announces the process until mgmt answers. Errors: KindRefused, and ctx's.
func (p *process) register(ctx context.Context) error {
	req := &wire.RegisterReq{
		Proc: p.cfg.Proc, Role: wire.RoleCompute, PID: uint32(os.Getpid()), Name: p.cfg.Name, Version: p.cfg.Version,
		Addrs: []string{p.listener.Addr()}, Cores: p.cfg.Cores,
	}
	for pause := registerRetryMin; ; pause = min(2*pause, registerRetryMax) {
		var resp wire.RegisterResp
		rctx, cancel := context.WithTimeout(ctx, heartbeatTimeout)
		err := p.router.Mgmt(rctx, &rpc.Call{Method: wire.MRegister, Req: req, Resp: &resp})
		cancel()
		switch {
		case err == nil:
			p.incarnation = resp.Incarnation
			p.leaseTime = time.Duration(resp.Map.LeaseMs) * time.Millisecond
			p.router.SetMap(&resp.Map)
			p.log.Info("registered", "name", p.cfg.Name, "proc", p.cfg.Proc, "incarnation", resp.Incarnation,
				"generation", resp.Map.Generation)
			return nil
		case errors.Is(err, wire.KindRefused), errors.Is(err, wire.KindVersion), errors.Is(err, wire.KindAuthentication):
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		}
		sleep(ctx, pause)
	}
}

// beat makes a heartbeat go out at once; it does not wait.
func (p *process) beat() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// heartbeats renews the lease until ctx ends (nil), or mgmt says that this run is over.
func (p *process) heartbeats(ctx context.Context) error {
	quiet := false // the failure has been logged
	for {
		err := p.heartbeat(ctx)
		pause := heartbeatEvery
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, wire.KindStaleSession), errors.Is(err, wire.KindRefused):
			p.lease.End()
			return err
		case err != nil:
			if !quiet {
				p.log.Warn("mgmt does not answer heartbeats", "serving", p.lease.Valid(), "err", err)
			}
			quiet, pause = true, heartbeatRetry
			// While no mgmt runs, nobody can give away what we own.
			if at := p.lease.Now(); away.Refused(ctx, p.cfg.Mgmt) {
				p.lease.Extend(at, p.leaseTime)
			}
		case quiet:
			p.log.Info("mgmt answers heartbeats again")
			quiet = false
		}
		if err == nil {
			sleep(ctx, heartbeatGap)
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-p.kick:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// heartbeat sends one and renews the lease if all is well.
func (p *process) heartbeat(ctx context.Context) error {
	gen, reports := p.owner.Reports()
	req := &wire.HeartbeatReq{
		Proc: p.cfg.Proc, Incarnation: p.incarnation, Generation: gen, RSSBytes: procfs.RSS(os.Getpid()), Ready: !p.stopping.Load(),
		Buckets: reports,
	}
	var resp wire.HeartbeatResp
	hctx, cancel := context.WithTimeout(ctx, heartbeatTimeout)
	defer cancel()
	sent := p.lease.Now()
	if err := p.router.Mgmt(hctx, &rpc.Call{Method: wire.MHeartbeat, Req: req, Resp: &resp}); err != nil {
		return err
	}
	if resp.LeaseMs > 0 {
		p.leaseTime = time.Duration(resp.LeaseMs) * time.Millisecond
	}
	// If mgmt has made a newer map meanwhile, it may have taken buckets from us (we were silent for too long). The lease
	// is for what that map gives us; so it counts once we have acted upon it.
	if err := p.owner.WaitGen(hctx, resp.Generation); err != nil {
		return wire.Errorf("compute.heartbeat", wire.KindStaleGeneration, "", "map %d does not come: %w", resp.Generation, err)
	}
	p.lease.Renew(sent, p.leaseTime)
	return nil
}

// goodbye tells mgmt that this run holds nothing any more.
func (p *process) goodbye(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, goodbyeTimeout)
	defer cancel()
	err := p.router.Mgmt(ctx, &rpc.Call{
		Method: wire.MGoodbye, Req: &wire.GoodbyeReq{Proc: p.cfg.Proc, Incarnation: p.incarnation}, Resp: &wire.Empty{},
	})
	if err != nil {
		p.log.Info("mgmt did not take the goodbye", "err", err)
	}
}

// badStrip reports a strip that a read found bad. It does not wait.
func (p *process) badStrip(bad strip.Bad) {
	p.event(wire.SeverityWarning, "strip.corrupt", fmt.Sprintf("drive %d, strip %v: %v", bad.Drive, bad.ID, bad.Kind))
}

// event queues an event for mgmt, or drops it when too many wait.
func (p *process) event(severity uint8, typ, text string) {
	e := &wire.EventReq{Proc: p.cfg.Proc, Severity: severity, Type: typ, Text: text, Time: time.Now().UnixNano()}
	select {
	case p.events <- e:
	default:
		p.dropped.Add(1)
	}
}

// sendEvents sends what is queued, once each, until ctx ends.
func (p *process) sendEvents(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-p.events:
			ectx, cancel := context.WithTimeout(ctx, eventTimeout)
			err := p.router.Mgmt(ectx, &rpc.Call{Method: wire.MEvent, Req: e, Resp: &wire.Empty{}})
			cancel()
			if n := p.dropped.Swap(0); err != nil || n > 0 {
				p.log.Warn("events were not told to mgmt", "type", e.Type, "text", e.Text, "dropped", n, "err", err)
			}
		}
	}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
