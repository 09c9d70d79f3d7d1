package mgmt

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/crakefs/crake/mgmt/api"
	"github.com/crakefs/crake/mgmt/internal/events"
	"github.com/crakefs/crake/mgmt/internal/leader"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/procfs"
	"github.com/crakefs/crake/wire/route"
	"github.com/crakefs/crake/wire/rpc"
)

func (w *worker) status() *api.Status {
	st := &api.Status{
		Version: w.c.Version, Time: time.Now().UTC(), Processes: map[string]api.Count{}, Filesystems: w.filesystems(), Mounts: w.mounts(),
		Mgmt: w.mgmtInfo(), Wire: string(cmp.Or(w.file.Wire, route.WireShm)), WireEncryption: w.file.WireEncryption,
	}
	h := healthInput{drives: &driveHealth{}}
	var pgs [][]bool
	runs := w.sup.Status()
	w.d.Look(func(_ leader.Millis, c *leader.Core) {
		s, m := c.State(), c.Map()
		st.ClusterID, st.Name, st.Generation = s.Settings.Cluster, s.Settings.Name, uint64(m.Generation)
		st.FormedAt = time.Unix(0, s.Settings.FormedAt).UTC()
		st.Protection = api.Protection{Data: s.Settings.K, Parity: s.Settings.M}
		st.LeaseMs, st.Sessions = c.LeaseMs(), len(m.Sessions)
		for _, p := range s.Procs {
			if p.Wanted {
				n := st.Processes[p.Role.String()]
				n.Total++
				if p.State == wire.ProcUp {
					n.Up++
				}
				st.Processes[p.Role.String()] = n
			}
		}
		up := viewDrives(c, runs, st, &h)
		st.Buckets = countBuckets(c)
		for _, pg := range m.PGs {
			var have []bool
			for _, d := range pg.Drives {
				have = append(have, up[d])
			}
			pgs = append(pgs, have)
		}
	})
	st.Capacity.UsableBytes = st.Capacity.RawBytes * uint64(st.Protection.Data) / uint64(st.Protection.Data+st.Protection.Parity)
	st.Capacity.UsableFreeBytes = st.Capacity.RawFreeBytes * uint64(st.Protection.Data) / uint64(st.Protection.Data+st.Protection.Parity)
	st.Processes["mgmt"] = api.Count{Up: 1, Total: 1}
	h.parity, h.procs, h.buckets, h.mounts, h.pgs = st.Protection.Parity, st.Processes, st.Buckets, st.Mounts, pgs
	w.mu.Lock()
	defer w.mu.Unlock()
	h.stopping = w.stopping
	h.starting = !w.formed && time.Since(w.began) < startupGrace
	st.Health, st.Advice = health(&h), h.drives.advice(&st.Protection)
	w.formed = w.formed || st.Health.State == api.HealthOK
	return st
}

func countBuckets(c *leader.Core) api.BucketCount {
	n := api.BucketCount{Total: len(c.State().Buckets)}
	for i := range c.State().Buckets {
		if c.State().Buckets[i].Owner == 0 {
			n.Unowned++
			continue
		}
		switch c.BucketState(wire.BucketID(i)).State {
		case wire.BucketServing:
			n.Serving++
		case wire.BucketFailed:
			n.Failed++
		default:
			n.Opening++
		}
	}
	return n
}

func (w *worker) mgmtInfo() api.MgmtInfo {
	return api.MgmtInfo{
		PID: os.Getpid(), KeeperPID: w.keeperPID(), StartedAt: w.began.UTC(), RSSBytes: procfs.RSS(os.Getpid()), Leader: true,
		Dir: w.c.Dir, APIListen: w.tcp,
	}
}

// keeperPID gives the process of the keeper, 0 when there is none.
func (w *worker) keeperPID() int {
	if !api.Locked(api.KeeperLock(w.c.Dir)) {
		return 0
	}
	b, err := os.ReadFile(api.KeeperLock(w.c.Dir))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0
	}
	return pid
}

func (w *worker) processes() []api.Process {
	run := w.sup.Status()
	info := w.mgmtInfo()
	out := []api.Process{{
		Name: "mgmt", Role: "mgmt", State: "up", PID: info.PID, Version: w.c.Version, Ready: true, StartedAt: info.StartedAt,
		RSSBytes: info.RSSBytes, Cores: []int{}, Addrs: []string{api.MgmtAddr(w.c.Dir)}, Links: []api.Link{}, Log: api.LogPath(w.c.Dir, "mgmt"),
	}}
	if info.KeeperPID != 0 {
		out = append(out, api.Process{
			Name: "keeper", Role: "mgmt", State: "up", PID: info.KeeperPID, Version: w.c.Version, Ready: true, HeartbeatAgeMs: -1,
			RSSBytes: procfs.RSS(info.KeeperPID), Cores: []int{}, Addrs: []string{}, Links: []api.Link{}, Log: api.LogPath(w.c.Dir, "mgmt"),
		})
	}
	w.d.Look(func(now leader.Millis, c *leader.Core) {
		for _, id := range c.State().ProcIDs() {
			p, l := c.State().Procs[id], c.Live(id)
			r := run[p.Name]
			a := api.Process{
				ID: uint32(p.ID), Name: p.Name, Role: p.Role.String(), State: p.State.String(), PID: r.PID, Cores: r.Cores,
				Version: p.Version, Incarnation: uint64(p.Incarnation), Ready: l.Ready, StartedAt: r.StartedAt.UTC(), Restarts: r.Restarts,
				RSSBytes: l.RSS, HeartbeatAgeMs: -1, Addrs: p.Addrs, Log: api.LogPath(w.c.Dir, p.Name), LastExit: r.LastExit, Note: l.Note,
				ArenaBytes: l.Arena.Bytes, ArenaUsedBytes: l.Arena.Used, ArenaLentBytes: l.Arena.Lent, ArenaQuarantinedBytes: l.Arena.Quarantined,
				Links: viewLinks(c.State(), l.Links),
			}
			if l.Spoken && p.State != wire.ProcDown {
				a.HeartbeatAgeMs = int64(now - l.Heard)
			}
			if a.Cores == nil {
				a.Cores = []int{}
			}
			if a.Addrs == nil {
				a.Addrs = []string{}
			}
			out = append(out, a)
		}
	})
	for i := range out {
		if out[i].PID != 0 && out[i].RSSBytes == 0 {
			out[i].RSSBytes = procfs.RSS(out[i].PID)
		}
	}
	return out
}

// viewLinks names the peers of a process.
func viewLinks(s *leader.State, links []wire.LinkStat) []api.Link {
	out := make([]api.Link, 0, len(links))
	for _, l := range links {
		a := api.Link{
			Transport: l.Transport, Connections: int(l.Conns), SentInlineBytes: l.SentInline, SentByRefBytes: l.SentByRef,
			ReceivedInlineBytes: l.ReceivedInline, ReceivedByRefBytes: l.ReceivedByRef, Loans: int(l.Loans), LoanBytes: l.LoanBytes,
		}
		switch p := s.Procs[l.Peer]; {
		case p != nil:
			a.Peer = p.Name
		case l.Peer != 0:
			a.Peer = fmt.Sprintf("%s %d", l.Role, l.Peer)
		}
		out = append(out, a)
	}
	return out
}

func (w *worker) buckets() []api.Bucket {
	out := []api.Bucket{}
	w.d.Look(func(_ leader.Millis, c *leader.Core) {
		for i := range c.State().Buckets {
			b := &c.State().Buckets[i]
			r := c.BucketState(wire.BucketID(i))
			a := api.Bucket{ID: uint32(i), Epoch: uint64(b.Epoch), State: r.State.String(), Error: r.Error}
			if p := c.State().Procs[b.Owner]; p != nil {
				a.Owner = p.Name
			}
			out = append(out, a)
		}
	})
	return out
}

// askBuckets fills in what the owners say; a bucket whose owner does not answer stays as it is.
func (w *worker) askBuckets(ctx context.Context, list []api.Bucket) {
	ctx, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	room := make(chan struct{}, statAtOnce)
	var wg sync.WaitGroup
	for i := range list {
		b := &list[i]
		if b.Owner == "" {
			continue
		}
		room <- struct{}{}
		wg.Go(func() {
			defer func() { <-room }()
			var r wire.BucketStatResp
			call := rpc.Call{Method: wire.MBucketStat, Req: &wire.BucketStatReq{Bucket: wire.BucketID(b.ID)}, Resp: &r}
			if _, err := w.router.BucketOnce(ctx, wire.BucketID(b.ID), &call); err != nil {
				if b.Error == "" {
					b.Error = "no detail: " + err.Error()
				}
				return
			}
			b.State, b.Inodes, b.DataBytes, b.Stripes, b.Segments = r.State.String(), r.Inodes, r.DataBytes, r.Stripes, r.Segments
			b.OpenTxns, b.Leases, b.Orphans, b.TableBytes, b.Error = r.OpenTxns, r.Leases, r.Orphans, r.TableBytes, r.Error
		})
	}
	wg.Wait()
}

func (w *worker) pgs() []api.PG {
	out := []api.PG{}
	w.d.Look(func(_ leader.Millis, c *leader.Core) {
		m := c.Map()
		up := map[wire.DriveID]bool{}
		for _, d := range m.Drives {
			up[d.ID] = d.State == wire.DriveUp
		}
		for _, pg := range m.PGs {
			a := api.PG{ID: uint32(pg.ID)}
			for _, d := range pg.Drives {
				a.Drives = append(a.Drives, uint32(d))
				if up[d] {
					a.Up++
				}
			}
			out = append(out, a)
		}
	})
	return out
}

func (w *worker) filesystems() []api.Filesystem {
	out := []api.Filesystem{}
	w.d.Look(func(_ leader.Millis, c *leader.Core) {
		s := c.State()
		for _, id := range s.FSIDs() {
			f := s.FSs[id]
			if !f.Made {
				continue
			}
			a := api.Filesystem{ID: uint32(f.ID), Name: f.Name, Root: uint64(f.Root), Deleting: f.Deleting, Mounts: []string{}}
			for _, p := range s.Procs {
				if p.FS == id && p.Wanted {
					a.Mounts = append(a.Mounts, p.Mount)
				}
			}
			slices.Sort(a.Mounts)
			out = append(out, a)
		}
	})
	return out
}

func (w *worker) mounts() []api.Mount {
	run := w.sup.Status()
	out := []api.Mount{}
	w.d.Look(func(_ leader.Millis, c *leader.Core) {
		s := c.State()
		for _, id := range s.ProcIDs() {
			p := s.Procs[id]
			if p.Role != wire.RoleFrontend || !p.Wanted {
				continue
			}
			a := api.Mount{Name: p.Name, Path: p.Mount, PID: run[p.Name].PID, Ready: p.State == wire.ProcUp && c.Live(id).Ready}
			if f := s.FSs[p.FS]; f != nil {
				a.FS = f.Name
			}
			w.mu.Lock()
			if a.Ready {
				w.failures[p.Name] = 0
			} else if w.failures[p.Name] > 0 {
				a.Error = run[p.Name].LastExit
			}
			w.mu.Unlock()
			out = append(out, a)
		}
	})
	return out
}

var severityNames = map[uint8]string{
	wire.SeverityInfo: api.SeverityInfo, wire.SeverityWarning: api.SeverityWarning, wire.SeverityError: api.SeverityError,
}

func (w *worker) events(limit int, after uint64, severity uint8, typ string) []api.Event {
	out := []api.Event{}
	for _, e := range w.ev.List(events.Filter{Limit: limit, After: after, Severity: severity, Type: typ}) {
		out = append(out, api.Event{
			ID: e.ID, Time: time.Unix(0, e.Time).UTC(), Severity: severityNames[e.Severity], Type: e.Type, Process: e.Process, Text: e.Text,
		})
	}
	return out
}
