package driver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/crakefs/crake/mgmt/internal/leader"
	"github.com/crakefs/crake/mgmt/internal/store"
	"github.com/crakefs/crake/wire"
)

// memStore keeps documents and fails when told to.
type memStore struct {
	mu    sync.Mutex
	docs  map[string][]byte
	fail  error // of every write
	lose  bool  // writes, and says that it failed
	saves int
}

func (m *memStore) Save(_ context.Context, put map[string][]byte, del []string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.saves++
	if m.fail != nil {
		return m.fail
	}
	for k, v := range put {
		m.docs[k] = v
	}
	for _, k := range del {
		delete(m.docs, k)
	}
	if m.lose {
		return errors.New("no answer")
	}
	return nil
}

func (m *memStore) set(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

func (m *memStore) copy() map[string][]byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.docs)
}

// begin runs a driver on what the store holds.
func begin(t *testing.T, m *memStore) (d *Driver, maps *[]*wire.ClusterMap, end func()) {
	t.Helper()
	docs := m.copy()
	s, err := leader.Decode(docs)
	if err != nil {
		t.Fatal(err)
	}
	if s == nil {
		s = leader.Form(leader.Settings{Cluster: "0102030405060708090a0b0c0d0e0f10", K: 1, M: 1, Buckets: 4})
	}
	maps = &[]*wire.ClusterMap{}
	d, err = New(s, 5000, Config{
		Store: m, Docs: docs, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), OnEvent: func(leader.Event) {}, OnKill: func(leader.Kill) {},
		OnMap: func(m *wire.ClusterMap) { *maps = append(*maps, m) },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	end = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(end)
	return d, maps, end
}

func addProc(i int) func(leader.Millis, *leader.Core) {
	return func(now leader.Millis, c *leader.Core) {
		_, _ = c.AddProc(now, leader.Proc{Name: fmt.Sprint("p", i), Role: wire.RoleCompute})
	}
}

// Claim: a step is answered when it is written and its map published; maps are published in order; a restart without
// changes keeps the generation, with the same content.
func TestCommit(t *testing.T) {
	m := &memStore{docs: map[string][]byte{}}
	d, pub, end := begin(t, m)
	for i := range 20 {
		if err := d.Commit(t.Context(), addProc(i)); err != nil {
			t.Fatal(err)
		}
		cm, _ := d.Map()
		if len(cm.Processes) != i+1 {
			t.Fatalf("published %d processes, want %d", len(cm.Processes), i+1)
		}
		if s, err := leader.Decode(m.copy()); err != nil || len(s.Procs) != i+1 || s.Generation != cm.Generation {
			t.Fatalf("stored: %v, %v", s, err)
		}
	}
	end()
	for i, cm := range (*pub)[1:] {
		if cm.Generation <= (*pub)[i].Generation {
			t.Fatalf("generation %d after %d", cm.Generation, (*pub)[i].Generation)
		}
	}
	before, _ := d.Map()
	d, _, _ = begin(t, m)
	after := d.WaitMap(t.Context(), 0)
	if after.Generation != before.Generation || string(after.Append(nil)) != string(before.Append(nil)) {
		t.Fatalf("after a restart: generation %d, was %d", after.Generation, before.Generation)
	}
}

// Claim: what is not written is not published, and is written later; a leader that was replaced ends.
func TestFailedWriteIsNotPublished(t *testing.T) {
	m := &memStore{docs: map[string][]byte{}}
	d, _, end := begin(t, m)
	if err := d.Commit(t.Context(), addProc(0)); err != nil {
		t.Fatal(err)
	}
	before, _ := d.Map()
	m.set(func() { m.fail = errors.New("disk full") })
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	err := d.Commit(ctx, addProc(1))
	cancel()
	if wire.KindOf(err) != wire.KindTimeout {
		t.Fatalf("commit with a broken store: %v", err)
	}
	if now, _ := d.Map(); now.Generation != before.Generation {
		t.Fatalf("generation %d was published, only %d is stored", now.Generation, before.Generation)
	}
	m.set(func() { m.fail = nil })
	if now := d.WaitMap(t.Context(), before.Generation); len(now.Processes) != 2 {
		t.Fatalf("published %+v", now.Processes)
	}
	end()
}

// Claim: a write whose answer was lost does no harm: what the store holds at the end is the state.
func TestLostAnswer(t *testing.T) {
	m := &memStore{docs: map[string][]byte{}, lose: true}
	d, _, _ := begin(t, m)
	d.Do(addProc(0))
	time.Sleep(50 * time.Millisecond) // it is stored, and the driver does not know
	var gone wire.ProcID
	d.Do(func(now leader.Millis, c *leader.Core) {
		gone = c.State().ProcNamed("p0").ID
		c.SetWanted(now, gone, false)
	})
	m.set(func() { m.lose = false })
	if err := d.Commit(t.Context(), addProc(1)); err != nil {
		t.Fatal(err)
	}
	s, err := leader.Decode(m.copy())
	if err != nil || len(s.Procs) != 1 || s.ProcNamed("p1") == nil {
		t.Fatalf("stored %+v, %v", s, err)
	}
}

// Claim: steps that come during a write are written together, and each waits for its own.
func TestManyCommits(t *testing.T) {
	m := &memStore{docs: map[string][]byte{}}
	d, _, _ := begin(t, m)
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			if err := d.Commit(t.Context(), addProc(i)); err != nil {
				t.Error(err)
			}
			if cm, _ := d.Map(); !hasProc(cm, fmt.Sprint("p", i)) {
				t.Errorf("p%d is not in the published map", i)
			}
		})
	}
	wg.Wait()
}

func hasProc(m *wire.ClusterMap, name string) bool {
	for i := range m.Processes {
		if m.Processes[i].Name == name {
			return true
		}
	}
	return false
}

// Claim: one that leads no more ends, and publishes nothing of what it could not write.
func TestReplacedLeaderEnds(t *testing.T) {
	m := &memStore{docs: map[string][]byte{}, fail: store.ErrNotLeader}
	s := leader.Form(leader.Settings{Cluster: "0102030405060708090a0b0c0d0e0f10", K: 1, M: 1, Buckets: 4})
	d, err := New(s, 5000, Config{Store: m, Docs: map[string][]byte{}, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Run(t.Context()); !errors.Is(err, store.ErrNotLeader) {
		t.Fatalf("run: %v", err)
	}
	if cm, _ := d.Map(); cm != nil {
		t.Fatal("a map was published")
	}
}
