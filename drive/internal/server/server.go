// Package server answers the requests of wire/msg_drive.go from stores.
package server

import (
	"context"
	"sync"

	"github.com/crakefs/crake/drive/internal/sched"
	"github.com/crakefs/crake/drive/internal/store"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

// Server answers for the devices of a process. Safe for concurrent use.
type Server struct {
	// Never changed.
	stores map[wire.DriveID]*store.Store
	all    []*store.Store

	pending   sync.Pool // of *pending
	mutations sync.Pool // of *mutation
	burst     burst
}

// New makes a server.
func New(stores []*store.Store) *Server {
	s := &Server{stores: map[wire.DriveID]*store.Store{}, all: stores}
	s.pending.New = func() any {
		p := &pending{s: s}
		p.reading.Ended = p.ended
		return p
	}
	s.mutations.New = func() any {
		p := &mutation{s: s}
		p.writing.Ended = p.ended
		return p
	}
	for _, st := range stores {
		s.stores[st.Drive()] = st
	}
	return s
}

// Handle answers one request; it is an rpc.Handler.
func (s *Server) Handle(ctx context.Context, req *rpc.Request) (wire.Message, wire.Data, error) {
	defer req.Data.Release()
	if mayNot(req) {
		return nil, nil, wire.Errorf("drive.request", wire.KindPermission, "", "a frontend may read only")
	}
	m := req.Header.Method
	switch m {
	case wire.MDriveRead:
		return s.read(ctx, req)
	case wire.MDrivePut:
		return s.put(ctx, req)
	case wire.MDriveAppend:
		return s.append(ctx, req)
	case wire.MDriveSeal:
		return s.seal(ctx, req)
	case wire.MDriveDelete:
		return s.delete(ctx, req)
	case wire.MDriveFence:
		return s.fence(ctx, req)
	case wire.MDriveList:
		return s.list(req)
	case wire.MDriveVerify:
		return s.verify(ctx, req)
	case wire.MDriveStat:
		return s.stat(req)
	}
	return nil, nil, wire.Errorf("drive.request", wire.KindVersion, "", "method %#x is not known to a drive", uint16(m))
}

// mayNot says that a request is not for who asks.
func mayNot(req *rpc.Request) bool {
	return changes(req.Header.Method) && req.Conn != nil && req.Conn.Peer().Role == wire.RoleFrontend
}

// changes says that a method is only for who owns a bucket.
func changes(m wire.Method) bool {
	switch m {
	case wire.MDrivePut, wire.MDriveAppend, wire.MDriveSeal, wire.MDriveDelete, wire.MDriveFence:
		return true
	}
	return false
}

// open decodes a request and finds the device; drive points into req.
func (s *Server) open(req *rpc.Request, m wire.Message, drive *wire.DriveID) (*store.Store, error) {
	if err := m.Decode(req.Meta); err != nil {
		return nil, err
	}
	st := s.stores[*drive]
	if st == nil {
		return nil, wire.Errorf("drive.request", wire.KindMoved, "", "drive %d is not here", *drive)
	}
	return st, nil
}

func (s *Server) read(ctx context.Context, req *rpc.Request) (wire.Message, wire.Data, error) {
	var m wire.ReadReq
	st, err := s.open(req, &m, &m.Drive)
	if err != nil {
		return nil, nil, err
	}
	status, data, err := st.Read(sched.WithOrigin(ctx, origin(req, m.Priority)), m.Ranges)
	if err != nil {
		return nil, nil, err
	}
	return &wire.ReadResp{Status: status}, data, nil
}

func (s *Server) put(ctx context.Context, req *rpc.Request) (wire.Message, wire.Data, error) {
	var m wire.PutReq
	st, err := s.open(req, &m, &m.Drive)
	if err != nil {
		return nil, nil, err
	}
	return done(st.Put(sched.WithOrigin(ctx, origin(req, m.Priority)), m.Epoch, m.ID, m.Sums, req.Data))
}

func (s *Server) append(ctx context.Context, req *rpc.Request) (wire.Message, wire.Data, error) {
	var m wire.AppendReq
	st, err := s.open(req, &m, &m.Drive)
	if err != nil {
		return nil, nil, err
	}
	n, err := st.Append(sched.WithOrigin(ctx, origin(req, m.Priority)), m.Epoch, m.ID, m.Offset, req.Data)
	if err != nil {
		return nil, nil, err
	}
	return &wire.AppendResp{Len: n}, nil, nil
}

func (s *Server) seal(ctx context.Context, req *rpc.Request) (wire.Message, wire.Data, error) {
	var m wire.SealReq
	st, err := s.open(req, &m, &m.Drive)
	if err != nil {
		return nil, nil, err
	}
	n, err := st.Seal(ctx, m.Epoch, m.ID)
	if err != nil {
		return nil, nil, err
	}
	return &wire.SealResp{Len: n}, nil, nil
}

func (s *Server) delete(ctx context.Context, req *rpc.Request) (wire.Message, wire.Data, error) {
	var m wire.DeleteReq
	st, err := s.open(req, &m, &m.Drive)
	if err != nil {
		return nil, nil, err
	}
	return done(st.Delete(ctx, m.Epoch, m.IDs))
}

func (s *Server) fence(ctx context.Context, req *rpc.Request) (wire.Message, wire.Data, error) {
	var m wire.FenceReq
	st, err := s.open(req, &m, &m.Drive)
	if err != nil {
		return nil, nil, err
	}
	return done(st.Fence(ctx, m.Bucket, m.Epoch))
}

func (s *Server) list(req *rpc.Request) (wire.Message, wire.Data, error) {
	var m wire.ListReq
	st, err := s.open(req, &m, &m.Drive)
	if err != nil {
		return nil, nil, err
	}
	entries, more := st.List(m.Bucket, m.Class, m.After, int(m.Limit))
	return &wire.ListResp{Entries: entries, More: more}, nil, nil
}

func (s *Server) verify(ctx context.Context, req *rpc.Request) (wire.Message, wire.Data, error) {
	var m wire.VerifyReq
	st, err := s.open(req, &m, &m.Drive)
	if err != nil {
		return nil, nil, err
	}
	bad, last, err := st.Verify(ctx, m.Bucket, m.Class, m.After, int(m.Limit))
	if err != nil {
		return nil, nil, err
	}
	return &wire.VerifyResp{Bad: bad, Last: last}, nil, nil
}

func (s *Server) stat(req *rpc.Request) (wire.Message, wire.Data, error) {
	var m wire.DriveStatReq
	st, err := s.open(req, &m, &m.Drive)
	if err != nil {
		return nil, nil, err
	}
	resp := st.Stat()
	return &resp, nil, nil
}

func done(err error) (wire.Message, wire.Data, error) {
	if err != nil {
		return nil, nil, err
	}
	return &wire.Empty{}, nil, nil
}
