// Package driver does the IO of the leader: it gives the core its time and serialises its steps, writes the state
// before anything of it is seen by others, publishes maps, and passes events and kills on.
//
// Order of one step: core (under mu) -> store -> publish -> answer. Steps do not wait for the writes of others: what
// piled up during one write goes out with the next (group commit).
package driver

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/crakefs/crake/mgmt/internal/leader"
	"github.com/crakefs/crake/mgmt/internal/store"
	"github.com/crakefs/crake/wire"
)

const (
	// saveTimeout bounds one try to write the state; retryAfter is the wait after a failed one.
	saveTimeout = 20 * time.Second
	retryAfter  = 200 * time.Millisecond
)

// Store keeps the documents of the state.
type Store interface {
	Save(ctx context.Context, put map[string][]byte, del []string) error
}

// Config configures a Driver. The callbacks must not block and not call back.
type Config struct {
	Store Store
	// Docs are the documents as they are stored.
	Docs    map[string][]byte
	OnEvent func(leader.Event)
	OnKill  func(leader.Kill)
	// OnMap is called with every published map, in order.
	OnMap func(*wire.ClusterMap)
	Log   *slog.Logger
}

// Driver drives a core. All methods are safe for concurrent use.
type Driver struct {
	c     Config
	start time.Time
	wake  chan struct{} // capacity 1: there is something to write

	mu   sync.Mutex
	core *leader.Core // guarded by mu
	step uint64       // steps that changed the state; guarded by mu

	pubMu   sync.Mutex
	written uint64           // step whose state is stored; guarded by pubMu
	m       *wire.ClusterMap // published; guarded by pubMu
	changed chan struct{}    // closed at each write, and made anew; guarded by pubMu
}

// New makes a driver and its core. From now on the core's clock runs, so call it when the processes can reach this one:
// a lease that is granted anew must not run while nobody can renew it.
func New(s *leader.State, leaseMs int, c Config) (*Driver, error) {
	d := &Driver{c: c, start: time.Now(), wake: make(chan struct{}, 1), changed: make(chan struct{})}
	core, err := leader.New(s, leaseMs, d.now())
	if err != nil {
		return nil, err
	}
	d.core = core
	d.step = 1 // the first state has to be compared with what is stored
	d.nudge()
	return d, nil
}

// now is the core's clock: monotonic, since New.
func (d *Driver) now() leader.Millis { return leader.Millis(time.Since(d.start).Milliseconds()) }

func (d *Driver) nudge() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// Do runs one step of the core. What it changed is not written yet when Do returns; Commit waits for that.
func (d *Driver) Do(f func(now leader.Millis, c *leader.Core)) (step uint64) {
	d.mu.Lock()
	f(d.now(), d.core)
	out := d.core.Take()
	if out.Changed {
		d.step++
		d.nudge()
	}
	step = d.step
	d.mu.Unlock()
	for _, e := range out.Events {
		d.c.OnEvent(e)
	}
	for _, k := range out.Kills {
		d.c.OnKill(k)
	}
	return step
}

// Commit runs one step and waits until everything up to it is written and published.
func (d *Driver) Commit(ctx context.Context, f func(now leader.Millis, c *leader.Core)) error {
	step := d.Do(f)
	for {
		d.pubMu.Lock()
		done, next := d.written >= step, d.changed
		d.pubMu.Unlock()
		if done {
			return nil
		}
		select {
		case <-next:
		case <-ctx.Done():
			return wire.Errorf("mgmt.commit", wire.KindTimeout, "", "the change is not written yet: %w", ctx.Err())
		}
	}
}

// Look reads the core.
func (d *Driver) Look(f func(now leader.Millis, c *leader.Core)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f(d.now(), d.core)
}

// Map gives the published map, nil before the first, and a channel that is closed when a newer one may be there.
func (d *Driver) Map() (*wire.ClusterMap, <-chan struct{}) {
	d.pubMu.Lock()
	defer d.pubMu.Unlock()
	return d.m, d.changed
}

// WaitMap waits until the published map is newer than after, or ctx ends; it gives the newest either way.
func (d *Driver) WaitMap(ctx context.Context, after wire.Generation) *wire.ClusterMap {
	for {
		m, next := d.Map()
		if m != nil && m.Generation > after || ctx.Err() != nil {
			return m
		}
		select {
		case <-next:
		case <-ctx.Done():
		}
	}
}

// Run ticks, writes and publishes until ctx ends, or this process leads no more.
func (d *Driver) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { d.tick(ctx) })
	for {
		select {
		case <-d.wake:
		case <-ctx.Done():
			return nil
		}
		err := d.flush(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, store.ErrNotLeader):
			return err
		case err != nil:
			d.c.Log.Error("cannot write the state; trying again", "err", err)
			d.nudge()
			select {
			case <-time.After(retryAfter):
			case <-ctx.Done():
			}
		}
	}
}

func (d *Driver) tick(ctx context.Context) {
	t := time.NewTicker(leader.TickMs * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			d.Do(func(now leader.Millis, c *leader.Core) { c.Tick(now) })
		case <-ctx.Done():
			return
		}
	}
}

// flush writes what differs from the stored documents, then publishes the map that belongs to it. Only Run calls it.
func (d *Driver) flush(ctx context.Context) error {
	d.mu.Lock()
	docs, err := d.core.State().Encode()
	m, step := d.core.Map(), d.step
	d.mu.Unlock()
	if err != nil {
		return err
	}
	put, del := map[string][]byte{}, []string(nil)
	for k, v := range docs {
		if !bytes.Equal(d.c.Docs[k], v) {
			put[k] = v
		}
	}
	for k := range d.c.Docs {
		if _, ok := docs[k]; !ok {
			del = append(del, k)
		}
	}
	if len(put)+len(del) > 0 {
		// A write whose fate is not known is tried again with whatever the state is then: nothing of it was published, so
		// a generation that reached the store but nobody's eyes may be overwritten.
		wctx, cancel := context.WithTimeout(ctx, saveTimeout)
		defer cancel()
		if err := d.c.Store.Save(wctx, put, del); err != nil {
			// The stored documents are not known now: write all of them next time.
			if !errors.Is(err, store.ErrNotLeader) {
				d.forget(put, del)
			}
			return err
		}
	}
	d.c.Docs = docs
	d.publish(m, step)
	return nil
}

// forget makes the next flush write these documents whatever they hold then.
func (d *Driver) forget(put map[string][]byte, del []string) {
	for k := range put {
		d.c.Docs[k] = nil
	}
	for _, k := range del {
		d.c.Docs[k] = nil
	}
}

func (d *Driver) publish(m *wire.ClusterMap, step uint64) {
	d.pubMu.Lock()
	newer := d.m == nil || m.Generation > d.m.Generation
	if newer {
		d.m = m
	}
	d.written = step
	close(d.changed)
	d.changed = make(chan struct{})
	d.pubMu.Unlock()
	if newer && d.c.OnMap != nil {
		d.c.OnMap(m)
	}
}
