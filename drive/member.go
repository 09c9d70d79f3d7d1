package drive

import (
	"context"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/member"
	"github.com/crakefs/crake/wire/rpc"
)

// newMember makes the process's life with mgmt. A drive serves whether mgmt answers or not: what protects data from an owner that
// was replaced are the epochs that it keeps itself.
func (p *process) newMember() *member.Member {
	return member.New(member.Config{
		Self: p.self(), Name: p.cfg.Name, Cores: p.cfg.Cores, Ask: p.router.Mgmt, Log: p.log,
		Arena: p.arena, Conns: p.router.Conns,
		Beat: p.beat, Check: p.deviceFailed,
	})
}

func (p *process) self() rpc.Self {
	return rpc.Self{Cluster: p.cfg.Cluster, Role: wire.RoleDrive, Proc: p.cfg.Proc, Version: p.cfg.Version}
}

// live registers at mgmt and sends heartbeats until ctx ends (nil), mgmt says that this run is over, or a store has failed.
func (p *process) live(ctx context.Context) error {
	var drives []wire.DriveInfo
	for _, s := range p.stores {
		st := s.Stat()
		drives = append(drives, wire.DriveInfo{
			ID: st.Drive, Proc: p.cfg.Proc, State: wire.DriveUp, SizeBytes: st.SizeBytes, Path: st.Path,
		})
	}
	resp, err := p.member.Register(ctx, p.addrs, drives)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	p.router.SetMap(&resp.Map)
	return p.member.Heartbeats(ctx)
}

// beat tells how the devices are.
func (p *process) beat(req *wire.HeartbeatReq) {
	p.tickHealth()
	for _, s := range p.stores {
		req.Drives = append(req.Drives, s.Stat())
	}
}
