package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
	"github.com/crakefs/crake/wire/spin"
)

// benchCluster is the cluster of both sides.
var benchCluster = wire.ClusterID{'w', 'i', 'r', 'e', 's', 'p', 'e', 'e', 'd'}

// mAllocs asks how many heap allocations there were: 8 bytes in an XattrResp.
const mAllocs wire.Method = 0x7010

// crakeAsker asks over wire/rpc.
type crakeAsker struct {
	arena *wire.Arena
	conn  *rpc.Conn
	ended chan struct{}
	call  rpc.Call
	resp  wire.ReadResp
	data  int
}

func (c benchCase) dialCrake(ctx context.Context, path string, s *spin.Spinner) (asker, error) {
	arena, err := wire.NewArena(arenaBytes)
	if err != nil {
		return nil, err
	}
	a := &crakeAsker{arena: arena, ended: make(chan struct{}), data: c.data}
	a.call = rpc.Call{Method: wire.MDriveRead, Req: c.request(), Resp: &a.resp}
	a.conn, err = rpc.Dial(ctx, "unix:"+path, rpc.Options{
		Self: rpc.Self{Cluster: benchCluster, Role: wire.RoleCompute, Proc: 1, Version: "wirespeed"}, Arena: arena, Spin: s,
		OnClose: func(*rpc.Conn, error) { close(a.ended) },
	})
	if err != nil {
		return nil, errors.Join(err, arena.Close())
	}
	return a, nil
}

func (a *crakeAsker) ask(ctx context.Context) error {
	if err := a.conn.Do(ctx, &a.call); err != nil {
		return err
	}
	if n := a.call.RespData.Len(); n != a.data {
		return fmt.Errorf("%d bytes came, %d were asked for", n, a.data)
	}
	a.call.RespData.Release()
	return nil
}

func (a *crakeAsker) allocs(ctx context.Context) (uint64, error) {
	var m wire.XattrResp
	if err := a.conn.Do(ctx, &rpc.Call{Method: mAllocs, Resp: &m}); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(m.Value) + ownAllocs(), nil
}

func (a *crakeAsker) close() error {
	err := a.conn.Close()
	<-a.ended
	return errors.Join(err, a.arena.Close())
}

// ownAllocs counts the heap allocations of this process.
func ownAllocs() uint64 {
	var ms runtime.MemStats
	runtime.ReadMemStats(&ms)
	return ms.Mallocs
}

// serveCrake answers reads from memory, in the reading goroutine as a drive takes them, until ctx ends.
func serveCrake(ctx context.Context, path string, s *spin.Spinner) error {
	arena, err := wire.NewArena(arenaBytes)
	if err != nil {
		return err
	}
	var m wire.ReadReq
	resp := &wire.ReadResp{Status: make([]wire.Kind, 1)}
	l, err := rpc.Listen("unix:"+path, rpc.Options{
		Self: rpc.Self{Cluster: benchCluster, Role: wire.RoleDrive, Proc: 2, Version: "wirespeed"}, Arena: arena, Spin: s,
		Start: func(_ context.Context, r *rpc.Request) bool { // one connection, so one goroutine
			if r.Header.Method != wire.MDriveRead || m.Decode(r.Meta) != nil || len(m.Ranges) != 1 {
				return false
			}
			var data wire.Data
			if n := int(m.Ranges[0].Len); n > 0 {
				buf := arena.TryAlloc(n)
				if buf == nil {
					return false
				}
				data = buf.Data(n)
			}
			r.Answer(resp, data, nil)
			return true
		},
		Handler: func(_ context.Context, r *rpc.Request) (wire.Message, wire.Data, error) {
			r.Data.Release()
			if r.Header.Method != mAllocs {
				return nil, nil, wire.Errorf("wirespeed", wire.KindRefused, "", "method %#x", uint16(r.Header.Method))
			}
			return &wire.XattrResp{Value: binary.LittleEndian.AppendUint64(nil, ownAllocs())}, nil, nil
		},
	})
	if err != nil {
		return errors.Join(err, arena.Close())
	}
	return errors.Join(l.Serve(ctx), arena.Close())
}
