package drive

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/procfs"
	"github.com/crakefs/crake/wire/rpc"
)

// member registers at mgmt and sends heartbeats until ctx ends (nil), mgmt says that this run is over, or a store has
// failed.
//
// A drive serves whether mgmt answers or not: what protects data from an owner that was replaced are the epochs that it
// keeps itself.
func (p *process) member(ctx context.Context) error {
	if err := p.register(ctx); err != nil || ctx.Err() != nil {
		return err
	}
	t := time.NewTicker(heartbeatEvery)
	defer t.Stop()
	quiet := false // the failure has been logged
	for {
		p.tickHealth()
		err := p.heartbeat(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, wire.KindStaleSession), errors.Is(err, wire.KindRefused):
			return err
		case err != nil && !quiet:
			p.log.Warn("mgmt does not answer heartbeats; serving goes on", "err", err)
		case err == nil && quiet:
			p.log.Info("mgmt answers heartbeats again")
		}
		quiet = err != nil
		if err := p.deviceFailed(ctx); err != nil {
			return err
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// register announces the process until mgmt answers. Errors: KindRefused, KindVersion, KindAuthentication.
func (p *process) register(ctx context.Context) error {
	req := &wire.RegisterReq{
		Proc: p.cfg.Proc, Role: wire.RoleDrive, PID: uint32(os.Getpid()), Name: p.cfg.Name, Version: p.cfg.Version,
		Addrs: p.addrs, Cores: p.cfg.Cores,
	}
	for _, s := range p.stores {
		st := s.Stat()
		req.Drives = append(req.Drives, wire.DriveInfo{
			ID: st.Drive, Proc: p.cfg.Proc, State: wire.DriveUp, SizeBytes: st.SizeBytes, Path: st.Path,
		})
	}
	for pause := registerRetryMin; ; pause = min(2*pause, registerRetryMax) {
		var resp wire.RegisterResp
		err := p.ask(ctx, heartbeatTimeout, wire.MRegister, req, &resp)
		switch {
		case err == nil:
			p.incarnation = resp.Incarnation
			p.log.Info("registered", "name", p.cfg.Name, "proc", p.cfg.Proc, "incarnation", resp.Incarnation)
			return nil
		case errors.Is(err, wire.KindRefused), errors.Is(err, wire.KindVersion), errors.Is(err, wire.KindAuthentication):
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
	}
}

func (p *process) heartbeat(ctx context.Context) error {
	req := &wire.HeartbeatReq{Proc: p.cfg.Proc, Incarnation: p.incarnation, RSSBytes: procfs.RSS(os.Getpid()), Ready: true}
	for _, s := range p.stores {
		req.Drives = append(req.Drives, s.Stat())
	}
	return p.ask(ctx, heartbeatTimeout, wire.MHeartbeat, req, &wire.HeartbeatResp{})
}

// goodbye tells mgmt that the process ends in an orderly way.
func (p *process) goodbye() {
	if p.incarnation == 0 {
		return // mgmt does not know us
	}
	err := p.ask(context.Background(), goodbyeTimeout, wire.MGoodbye, &wire.GoodbyeReq{Proc: p.cfg.Proc, Incarnation: p.incarnation}, &wire.Empty{})
	if err != nil {
		p.log.Info("mgmt did not take the goodbye", "err", err)
	}
}

// ask sends a request to mgmt, once.
func (p *process) ask(ctx context.Context, timeout time.Duration, m wire.Method, req, resp wire.Message) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c, err := p.pool.Get(ctx, []string{p.cfg.Mgmt})
	if err != nil {
		return err
	}
	return c.Do(ctx, &rpc.Call{Method: m, Req: req, Resp: resp})
}

// event queues an event for mgmt, or drops it when too many wait. It does not block.
func (p *process) event(severity uint8, typ, text string) {
	e := &wire.EventReq{Proc: p.cfg.Proc, Severity: severity, Type: typ, Text: text, Time: time.Now().UnixNano()}
	select {
	case p.events <- e:
	default:
		p.dropped.Add(1)
	}
}

// sendEvents sends what is queued, once each, until ctx ends.
func (p *process) sendEvents(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-p.events:
			if err := p.ask(ctx, heartbeatTimeout, wire.MEvent, e, &wire.Empty{}); err != nil && ctx.Err() == nil {
				p.log.Warn("an event did not reach mgmt", "type", e.Type, "text", e.Text, "dropped", p.dropped.Load(), "err", err)
			}
		}
	}
}
