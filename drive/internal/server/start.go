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

// mutation is a Put or Append that no goroutine waits for.
type mutation struct {
	s       *Server
	req     *rpc.Request
	put     wire.PutReq
	append  wire.AppendReq
	resp    wire.AppendResp
	writing store.Writing
}

// Start takes the requests that need no goroutine: reads, puts and appends, if they can begin at once. It is for rpc.Options.Start. All
// others, and what is wrong with one, are Handle's.
func (s *Server) Start(_ context.Context, req *rpc.Request) bool {
	switch req.Header.Method {
	case wire.MDriveRead:
		return s.startRead(req)
	case wire.MDrivePut, wire.MDriveAppend:
		return s.startMutation(req)
	}
	return false
}

func (s *Server) startRead(req *rpc.Request) bool {
	if len(req.Data) > 0 {
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

func (s *Server) startMutation(req *rpc.Request) bool {
	if mayNot(req) {
		return false
	}
	p := s.mutations.Get().(*mutation)
	p.req, p.writing.Data = req, req.Data
	if !p.start() {
		p.clear()
		return false
	}
	return true
}

func (p *mutation) start() bool {
	w, req := &p.writing, p.req
	if req.Header.Method == wire.MDrivePut {
		m := &p.put
		if m.Decode(req.Meta) != nil || p.s.stores[m.Drive] == nil {
			return false
		}
		w.ID, w.Epoch, w.Sums, w.Origin = m.ID, m.Epoch, m.Sums, origin(req, m.Priority)
		return p.s.stores[m.Drive].StartPut(w)
	}
	m := &p.append
	if m.Decode(req.Meta) != nil || p.s.stores[m.Drive] == nil {
		return false
	}
	w.ID, w.Epoch, w.Offset, w.Origin = m.ID, m.Epoch, m.Offset, origin(req, m.Priority)
	return p.s.stores[m.Drive].StartAppend(w)
}

// ended answers.
func (p *mutation) ended(w *store.Writing) {
	req, resp := p.req, wire.Message(&wire.Empty{})
	if req.Header.Method == wire.MDriveAppend {
		p.resp.Len = w.Len
		resp = &p.resp
	}
	req.Data.Release()
	req.Answer(resp, nil, w.Err) // which encodes at once
	p.clear()
}

// clear gives p back.
func (p *mutation) clear() {
	p.req, p.put.Sums, p.writing.Sums, p.writing.Data = nil, nil, nil, nil
	p.s.mutations.Put(p)
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
