package mgmt

import (
	"fmt"

	"github.com/crakefs/crake/mgmt/api"
)

// healthInput is what health is judged by.
type healthInput struct {
	parity   int
	drives   *driveHealth
	procs    map[string]api.Count // by role
	buckets  api.BucketCount
	mounts   []api.Mount
	pgs      [][]bool // of each placement group, which drives are up
	starting bool     // not everything was up yet, and it is early
	stopping bool
}

// health judges the cluster: data is unavailable when a bucket has no owner that serves it, or a placement group has lost more drives
// than the protection bears; degraded when anything that is wanted is down. Each reason is in numbers.
func health(in *healthInput) api.Health {
	h := api.Health{State: api.HealthOK, Reasons: []string{}}
	worsen := func(state, format string, args ...any) {
		if h.State != api.HealthUnavailable {
			h.State = state
		}
		h.Reasons = append(h.Reasons, fmt.Sprintf(format, args...))
	}
	in.drives.judge(in.parity, worsen)
	lost, tight := 0, 0
	for _, pg := range in.pgs {
		down := 0
		for _, up := range pg {
			if !up {
				down++
			}
		}
		switch {
		case down > in.parity:
			lost++
		case down == in.parity:
			tight++
		}
	}
	if lost > 0 {
		worsen(api.HealthUnavailable, "%d of %d placement groups have lost more than the %d drives that the protection bears", lost, len(in.pgs), in.parity)
	}
	if tight > 0 {
		worsen(api.HealthDegraded, "%d of %d placement groups bear no further loss", tight, len(in.pgs))
	}
	if n := in.procs["compute"]; n.Up < n.Total {
		worsen(api.HealthDegraded, "%d of %d computes are down", n.Total-n.Up, n.Total)
	}
	b := in.buckets
	if b.Failed > 0 {
		worsen(api.HealthUnavailable, "%d of %d buckets cannot be opened", b.Failed, b.Total)
	}
	if b.Unowned > 0 {
		worsen(api.HealthUnavailable, "%d of %d buckets have no owner", b.Unowned, b.Total)
	}
	if b.Opening > 0 {
		worsen(api.HealthUnavailable, "%d of %d buckets are being opened", b.Opening, b.Total)
	}
	for _, m := range in.mounts {
		switch {
		case m.Error != "":
			worsen(api.HealthDegraded, "mount at %s: %s", m.Path, m.Error)
		case !m.Ready:
			worsen(api.HealthDegraded, "mount at %s is not ready", m.Path)
		}
	}
	switch {
	case in.stopping:
		h.State = api.HealthStopping
	case in.starting && in.pending() && h.State != api.HealthOK:
		h.State = api.HealthStarting
	}
	return h
}

// pending says that something may come up yet. What has failed for good does not.
func (in *healthInput) pending() bool {
	if d := in.drives.count; d.Up+d.Failed < d.Total || in.buckets.Opening+in.buckets.Unowned > 0 {
		return true
	}
	if n := in.procs["compute"]; n.Up < n.Total {
		return true
	}
	for _, m := range in.mounts {
		if !m.Ready {
			return true
		}
	}
	return false
}
