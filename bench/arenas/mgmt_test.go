package arenas

import (
	"context"
	"slices"
	"sync"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

// fakeMgmt keeps the map of a cluster whose processes never fail. Safe for concurrent use.
type fakeMgmt struct {
	mu       sync.Mutex
	m        wire.ClusterMap
	news     chan struct{} // closed at every new map
	incs     map[wire.ProcID]wire.Incarnation
	serving  map[wire.BucketID]bool
	sessions wire.SessionID
	keys     map[wire.ProcID]wire.ProcKey // of the identities that were issued
}

// knows notes the key of a process that is about to register.
func (f *fakeMgmt) knows(proc wire.ProcID, key wire.ProcKey) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.keys[proc] = key
}

// edit publishes a changed map.
func (f *fakeMgmt) edit(change func(m *wire.ClusterMap)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.m
	m.Processes, m.Owners, m.Sessions, m.Drives = slices.Clone(m.Processes), slices.Clone(m.Owners), slices.Clone(m.Sessions), slices.Clone(m.Drives)
	change(&m)
	m.Generation++
	f.m = m
	close(f.news)
	f.news = make(chan struct{})
}

func (f *fakeMgmt) now() (wire.ClusterMap, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.m, f.news
}

// served says that all buckets are served.
func (f *fakeMgmt) served() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.serving) == int(f.m.Buckets)
}

func (f *fakeMgmt) handle(ctx context.Context, req *rpc.Request) (wire.Message, wire.Data, error) {
	defer req.Data.Release()
	switch req.Header.Method {
	case wire.MRegister:
		var q wire.RegisterReq
		if err := q.Decode(req.Meta); err != nil {
			return nil, nil, err
		}
		return f.register(&q), nil, nil
	case wire.MHeartbeat:
		var q wire.HeartbeatReq
		if err := q.Decode(req.Meta); err != nil {
			return nil, nil, err
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, b := range q.Buckets {
			if b.State == wire.BucketServing {
				f.serving[b.Bucket] = true
			}
		}
		return &wire.HeartbeatResp{Generation: f.m.Generation, LeaseMs: f.m.LeaseMs}, nil, nil
	case wire.MWatchMap:
		var q wire.WatchMapReq
		if err := q.Decode(req.Meta); err != nil {
			return nil, nil, err
		}
		for {
			m, news := f.now()
			if m.Generation > q.After {
				return &wire.WatchMapResp{Map: m}, nil, nil
			}
			select {
			case <-news:
			case <-ctx.Done():
				return &wire.WatchMapResp{Map: m}, nil, nil
			}
		}
	}
	return &wire.Empty{}, nil, nil // events and goodbyes
}

func (f *fakeMgmt) register(q *wire.RegisterReq) *wire.RegisterResp {
	var resp wire.RegisterResp
	f.edit(func(m *wire.ClusterMap) {
		f.incs[q.Proc]++
		resp.Incarnation = f.incs[q.Proc]
		m.Processes = append(m.Processes, wire.ProcInfo{ID: q.Proc, Server: server, Incarnation: resp.Incarnation, Role: q.Role, Name: q.Name,
			Addrs: q.Addrs, State: wire.ProcUp, Key: f.keys[q.Proc]})
		for _, d := range q.Drives {
			if known := m.Drive(d.ID); known != nil {
				known.Proc, known.State = q.Proc, wire.DriveUp
			}
		}
		if q.Role == wire.RoleFrontend {
			f.sessions++
			resp.Session = f.sessions
			m.Sessions = append(m.Sessions, wire.SessionInfo{ID: f.sessions, Proc: q.Proc})
		}
	})
	resp.Map, _ = f.now()
	return &resp
}
