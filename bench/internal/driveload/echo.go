package driveload

import (
	"context"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
	"github.com/crakefs/crake/wire/spin"
)

// ServeEcho answers as a drive would whose device takes no time: reads with arbitrary bytes from memory, writes with success. It
// shows what the wire alone costs. As in a drive, reads have no goroutine and writes have one each. Beside it,
// at BarePath, is the bare exchange. spin, if not nil, is told of requests; its owner runs it. ServeEcho returns when ctx ends.
func ServeEcho(ctx context.Context, addr string, cluster wire.ClusterID, spin *spin.Spinner) error {
	arena, err := wire.NewArena(arenaBytes)
	if err != nil {
		return err
	}
	e := &echo{arena: arena}
	l, err := rpc.Listen(addr, rpc.Options{
		Self: rpc.Self{Cluster: cluster, Role: wire.RoleDrive, Proc: 2, Version: "echo"}, Arena: arena, Handler: e.handle, Start: e.start,
		Spin: spin, Shm: true,
	})
	if err != nil {
		return err
	}
	return serveBoth(ctx, addr, l.Serve)
}

type echo struct {
	arena *wire.Arena
}

// start answers reads at once, where there is memory for them.
func (e *echo) start(_ context.Context, req *rpc.Request) bool {
	if req.Header.Method != wire.MDriveRead {
		return false
	}
	resp, n, err := decodeRead(req)
	if err != nil {
		return false // handle says why
	}
	buf := e.arena.TryAlloc(n)
	if buf == nil {
		return false
	}
	req.Data.Release()
	req.Answer(resp, buf.Data(n), nil)
	return true
}

// decodeRead gives the answer to a read, and the bytes that go with it.
func decodeRead(req *rpc.Request) (*wire.ReadResp, int, error) {
	var m wire.ReadReq
	if err := m.Decode(req.Meta); err != nil {
		return nil, 0, err
	}
	n := 0
	for _, r := range m.Ranges {
		n += int(r.Len)
	}
	return &wire.ReadResp{Status: make([]wire.Kind, len(m.Ranges))}, n, nil
}

// handle decodes requests, as a drive must.
func (e *echo) handle(ctx context.Context, req *rpc.Request) (wire.Message, wire.Data, error) {
	defer req.Data.Release()
	switch req.Header.Method {
	case wire.MDriveRead:
		resp, n, err := decodeRead(req)
		if err != nil {
			return nil, nil, err
		}
		buf, err := e.arena.Alloc(ctx, n)
		if err != nil {
			return nil, nil, err
		}
		return resp, buf.Data(n), nil
	case wire.MDrivePut:
		var m wire.PutReq
		return &wire.Empty{}, nil, m.Decode(req.Meta)
	case wire.MDriveAppend:
		var m wire.AppendReq
		err := m.Decode(req.Meta)
		return &wire.AppendResp{Len: m.Offset + uint64(req.Data.Len())}, nil, err
	case wire.MDriveStat:
		return &wire.DriveStatResp{Engine: "echo"}, nil, nil
	}
	return nil, nil, wire.Errorf("echo", wire.KindVersion, "", "method %#x is not echoed", uint16(req.Header.Method))
}
