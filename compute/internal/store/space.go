package store

import (
	"context"
	"sort"
	"sync"
	"time"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

// Space is what data can take, after protection and the reserve.
type Space struct {
	TotalBytes uint64
	FreeBytes  uint64
}

// Space tells how much data the drives can take, from the last poll (at most StatInterval old while Run runs; it polls
// itself when no drive is known yet).
func (s *Store) Space(ctx context.Context) (Space, error) {
	v := s.currentView()
	if v == nil {
		return Space{}, wire.Errorf("space", wire.KindUnavailable, "", "no cluster map yet")
	}
	s.mu.Lock()
	known := false
	for _, st := range s.drives {
		known = known || st.known
	}
	s.mu.Unlock()
	if !known {
		s.pollOnce(ctx)
	}
	size, free := map[uint32]uint64{}, map[uint32]uint64{}
	s.mu.Lock()
	for _, d := range v.all {
		st := s.drives[d]
		if st == nil || !st.known {
			continue
		}
		reserve := reserveBytes(st.size)
		size[v.domain[d]] += st.size - min(st.size, reserve)
		if v.up[d] && !st.full {
			free[v.domain[d]] += st.free - min(st.free, reserve)
		}
	}
	s.mu.Unlock()
	return Space{TotalBytes: capacity(size, v.k, v.m), FreeBytes: capacity(free, v.k, v.m)}, nil
}

// capacity tells how much data domains of these sizes can take as k+m stripes with one strip a domain (two where there
// are fewer than k+m domains): k times the most strips x with sum(min(size, x)) >= (k+m)*x.
func capacity(domains map[uint32]uint64, k, m int) uint64 {
	var sizes []uint64
	for _, v := range domains {
		if v > 0 {
			sizes = append(sizes, v)
		}
	}
	if len(sizes) < k+m {
		for i := range sizes {
			sizes[i] /= MaxPerDomain
		}
		for n := len(sizes); n > 0; n-- {
			sizes = append(sizes, sizes[n-1])
		}
	}
	if len(sizes) < k+m || k < 1 {
		return 0
	}
	sort.Slice(sizes, func(i, j int) bool { return sizes[i] < sizes[j] })
	var sum uint64 // of the domains that are smaller than x
	for i, v := range sizes {
		// With x = v: those before are full, those from i on give v each.
		if sum+uint64(len(sizes)-i)*v < uint64(k+m)*v {
			// x lies between the size before and v: sum + (n-i)x = (k+m)x. k+m > n-i, or it would have fit.
			return sum / uint64(k+m-(len(sizes)-i)) * uint64(k)
		}
		sum += v
	}
	return sum / uint64(k+m) * uint64(k) // x is above every size: all are filled
}

func (s *Store) pollSpace(ctx context.Context) {
	tick := time.NewTicker(StatInterval)
	defer tick.Stop()
	for {
		s.pollOnce(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// pollOnce asks every drive that is up for its space.
func (s *Store) pollOnce(ctx context.Context) {
	v := s.currentView()
	if v == nil {
		return
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, MaxListConcurrency)
	for _, d := range v.all {
		if !v.up[d] || !s.c.Up(d) {
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			ctx, cancel := context.WithTimeout(ctx, QuickTimeout)
			defer cancel()
			resp := &wire.DriveStatResp{}
			err := s.c.Ask(ctx, d, &rpc.Call{Method: wire.MDriveStat, Req: &wire.DriveStatReq{Drive: d}, Resp: resp})
			if err != nil {
				return // the drive's health is judged by reads and writes
			}
			s.mu.Lock()
			st := s.state(d)
			st.known, st.full, st.size, st.free = true, false, resp.SizeBytes, resp.FreeBytes
			s.mu.Unlock()
		})
	}
	wg.Wait()
}
