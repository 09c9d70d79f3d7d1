package server

import (
	"context"
	"sync"
	"time"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

// stat is the newest answer to StatFSReq.
type stat struct {
	mu      sync.Mutex
	resp    wire.StatFSResp
	at      time.Time     // zero: there is none yet
	filesAt time.Time     // of the count of inodes
	busy    chan struct{} // not nil while it is made anew; closed then
}

// statFS tells the space of the cluster: all filesystems share it. It is a moment old; nobody is told what it was when
// somebody asked a long time ago.
func (s *Server) statFS(ctx context.Context, req *rpc.Request) (wire.Message, error) {
	var q wire.StatFSReq
	if err := q.Decode(req.Meta); err != nil {
		return nil, err
	}
	s.stat.mu.Lock()
	have := time.Since(s.stat.at) < statStale
	if time.Since(s.stat.at) > statFresh && s.stat.busy == nil {
		busy := make(chan struct{})
		s.stat.busy = busy
		s.bg.Go(func() { s.refreshStat(busy) })
	}
	busy, resp := s.stat.busy, s.stat.resp
	s.stat.mu.Unlock()
	if have {
		return &resp, nil
	}
	select {
	case <-busy:
	case <-ctx.Done():
		return nil, wire.E("compute.statfs", wire.KindUnavailable, "", ctx.Err())
	}
	s.stat.mu.Lock()
	defer s.stat.mu.Unlock()
	resp = s.stat.resp
	return &resp, nil
}

func (s *Server) refreshStat(busy chan struct{}) {
	ctx, cancel := context.WithTimeout(context.Background(), statWait)
	defer cancel()
	s.stat.mu.Lock()
	old, filesAt := s.stat.resp, s.stat.filesAt
	s.stat.mu.Unlock()
	var next wire.StatFSResp
	if m := s.c.Router.Map(); m != nil {
		next.TotalBytes, next.FreeBytes = s.space(ctx, m)
		next.Files = old.Files
		if time.Since(filesAt) > filesFresh {
			next.Files, filesAt = s.files(ctx, m), time.Now()
		}
		next.FreeFiles = next.FreeBytes / bytesPerInode
	}
	s.stat.mu.Lock()
	defer s.stat.mu.Unlock()
	s.stat.resp, s.stat.at, s.stat.filesAt, s.stat.busy = next, time.Now(), filesAt, nil
	close(busy)
}

// space adds up what drives have, after protection. What is on a drive that does not answer counts as full.
func (s *Server) space(ctx context.Context, m *wire.ClusterMap) (total, free uint64) {
	var mu sync.Mutex
	each(len(m.Drives), func(i int) {
		d := &m.Drives[i]
		var resp wire.DriveStatResp
		err := s.c.Router.Drive(ctx, d.ID, &rpc.Call{
			Method: wire.MDriveStat, Req: &wire.DriveStatReq{Drive: d.ID}, Resp: &resp,
		})
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			total += d.SizeBytes
			return
		}
		total += resp.SizeBytes
		free += resp.FreeBytes
	})
	k, n := uint64(m.K), uint64(m.K)+uint64(m.M)
	if n == 0 {
		return total, free
	}
	return total / n * k, free / n * k
}

// files counts the inodes of all buckets that answer.
func (s *Server) files(ctx context.Context, m *wire.ClusterMap) uint64 {
	var mu sync.Mutex
	var sum uint64
	each(len(m.Owners), func(i int) {
		var resp wire.BucketStatResp
		if b := s.c.Owner.Bucket(wire.BucketID(i)); b != nil {
			resp = b.Stat()
		} else if _, err := s.c.Router.BucketOnce(ctx, wire.BucketID(i), &rpc.Call{
			Method: wire.MBucketStat, Req: &wire.BucketStatReq{Bucket: wire.BucketID(i)}, Resp: &resp,
		}); err != nil {
			return
		}
		mu.Lock()
		sum += resp.Inodes
		mu.Unlock()
	})
	return sum
}

// each calls f for 0 to n-1, statParallel at once.
func each(n int, f func(i int)) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, statParallel)
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			f(i)
			<-slots
		})
	}
	wg.Wait()
}
