package server

import (
	"context"
	"sync/atomic"
	"unsafe"

	"github.com/crakefs/crake/drive/internal/sched"
	"github.com/crakefs/crake/drive/internal/store"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

// maxBurstBytes bounds what is read from memory between two Kicks in the goroutine that takes requests off a connection: some 100
// microseconds of copying, which what else the connection brings waits for. The rest goes to goroutines.
const maxBurstBytes = 1 << 20

// burst counts the bytes read in the reading goroutines of connections since the last Kick of any: a bound, not a measure.
type burst struct{ bytes atomic.Int64 }

// pending is a read that no goroutine waits for.
type pending struct {
	s       *Server
	req     *rpc.Request
	m       wire.ReadReq
	resp    wire.ReadResp
	reading store.Reading
}

// Start takes the reads that need no goroutine; it is for rpc.Options.Start. All others, and what is wrong with a read, are Handle's.
func (s *Server) Start(_ context.Context, req *rpc.Request) bool {
	if req.Header.Method != wire.MDriveRead || len(req.Data) > 0 {
		return false
	}
	p := s.pending.Get().(*pending)
	p.req = req
	if !s.start(p) {
		p.req = nil
		s.pending.Put(p)
		return false
	}
	return true
}

func (s *Server) start(p *pending) bool {
	if p.m.Decode(p.req.Meta) != nil {
		return false
	}
	st := s.stores[p.m.Drive]
	if st == nil {
		return false
	}
	p.reading.Ranges, p.reading.Origin = p.m.Ranges, origin(p.req, p.m.Priority)
	if !st.IsInline() {
		return st.StartRead(&p.reading)
	}
	n := int64(0)
	for i := range p.m.Ranges {
		n += int64(p.m.Ranges[i].Len)
	}
	if s.burst.bytes.Load()+n > maxBurstBytes || !st.StartRead(&p.reading) {
		return false
	}
	s.burst.bytes.Add(n) // only what is taken is followed by a Kick
	return true
}

// ended answers.
func (p *pending) ended(r *store.Reading) {
	s, req, data := p.s, p.req, r.Data
	p.resp.Status = r.Status
	p.req, r.Data = nil, nil
	req.Answer(&p.resp, data, nil) // which encodes at once
	s.pending.Put(p)
}

// Kick begins what Start has taken; it is for rpc.Options.Kick.
func (s *Server) Kick() {
	s.burst.bytes.Store(0)
	for _, st := range s.all {
		st.Kick()
	}
}

// origin says for whom a request is. The connection's address tells connections apart: a later one at the same address is as good a
// flow.
func origin(req *rpc.Request, p wire.Priority) sched.Origin {
	return sched.Origin{Flow: uint64(uintptr(unsafe.Pointer(req.Conn))), Priority: p}
}
