package driveload

import (
	"context"
	"path/filepath"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/identity"
	"github.com/crakefs/crake/wire/rpc"
)

// Processes of a measurement.
const (
	askerProc wire.ProcID = 1 // the Session
	driveProc wire.ProcID = 2
)

// Mgmt is what a drive needs of mgmt: it gives the drive an identity, takes its registration and heartbeats, and answers with a map that
// knows the two who speak.
type Mgmt struct {
	Addr     string             // where it listens
	Drive    string             // identity file of the drive, whose process is 2
	Identity *identity.Identity // of the Session, for Config

	m    wire.ClusterMap
	done chan error
	stop context.CancelFunc
}

// StartMgmt starts one with its files in dir. Close ends it.
func StartMgmt(dir string, cluster wire.ClusterID) (*Mgmt, error) {
	m := &Mgmt{Addr: "unix:" + filepath.Join(dir, "mgmt.sock"), Drive: filepath.Join(dir, "drive.identity"), done: make(chan error, 1)}
	ca, err := identity.NewCA(cluster)
	if err != nil {
		return nil, err
	}
	own, err := ca.Issue(wire.RoleMgmt, 0)
	if err != nil {
		return nil, err
	}
	if m.Identity, err = ca.Issue(wire.RoleCompute, askerProc); err != nil {
		return nil, err
	}
	drive, err := ca.Issue(wire.RoleDrive, driveProc)
	if err != nil {
		return nil, err
	}
	if err := drive.Write(m.Drive); err != nil {
		return nil, err
	}
	m.m = wire.ClusterMap{Generation: 1, Cluster: cluster, LeaseMs: 5000, Processes: []wire.ProcInfo{
		{ID: askerProc, Server: 1, Role: wire.RoleCompute, State: wire.ProcUp, Name: "asker", Key: m.Identity.Key()},
		{ID: driveProc, Server: 1, Role: wire.RoleDrive, State: wire.ProcUp, Name: "drive0", Key: drive.Key()},
	}}
	l, err := rpc.Listen(m.Addr, rpc.Options{Self: rpc.Self{Cluster: cluster, Role: wire.RoleMgmt}, Identity: own, Handler: m.handle})
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	m.stop = stop
	go func() { m.done <- l.Serve(ctx) }()
	return m, nil
}

// Close ends it and waits.
func (m *Mgmt) Close() error {
	m.stop()
	return <-m.done
}

func (m *Mgmt) handle(ctx context.Context, req *rpc.Request) (wire.Message, wire.Data, error) {
	req.Data.Release()
	switch req.Header.Method {
	case wire.MRegister:
		return &wire.RegisterResp{Incarnation: 1, Map: m.m}, nil, nil
	case wire.MHeartbeat:
		return &wire.HeartbeatResp{Generation: m.m.Generation, LeaseMs: m.m.LeaseMs}, nil, nil
	case wire.MWatchMap:
		<-ctx.Done() // there is no newer one
		return nil, nil, ctx.Err()
	}
	return &wire.Empty{}, nil, nil
}
