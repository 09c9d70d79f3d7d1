package store

import (
	"context"
	crand "crypto/rand"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
	"github.com/crakefs/crake/wire/strip"
)

// Config configures a Store.
type Config struct {
	// Ask asks a drive once (route.Router.Drive). It must return soon after its ctx ended.
	Ask func(ctx context.Context, d wire.DriveID, call *rpc.Call) error
	// Up says whether a drive is worth asking (route.Router.DriveUp).
	Up func(d wire.DriveID) bool
	// Map gives the newest cluster map (route.Router.Map); nil when there is none yet.
	Map func() *wire.ClusterMap
	// Arena gives memory for parity, heads of records and rebuilt blocks.
	Arena *wire.Arena
	// Report is called for strips that reads find bad; nil ignores them. Must not block.
	Report func(strip.Bad)
	// HedgeDelay of reads; 0 is strip.DefaultHedgeDelay.
	HedgeDelay time.Duration
	// Log is for events; nil is slog.Default.
	Log *slog.Logger
	// WriteTimeout, OrphanDelay and SegmentBytes replace the constants of these names; 0 keeps them. For tests.
	WriteTimeout time.Duration
	OrphanDelay  time.Duration
	SegmentBytes uint64
}

// Store writes to the drives for all buckets of a process. Safe for concurrent use.
type Store struct {
	c      Config
	reader *strip.Reader
	del    *deleter

	mu     sync.Mutex
	rng    *rand.ChaCha8                // guarded by mu; seeded by the system: ids cannot be guessed
	view   *view                        // guarded by mu; of the newest map
	drives map[wire.DriveID]*driveState // guarded by mu; at most one for each drive of the maps seen
}

// driveState is what the Store knows of a drive beyond the map.
type driveState struct {
	suspectUntil time.Time
	known        bool // size and free are known
	full         bool // it refused for lack of space since the last poll
	size         uint64
	free         uint64
}

// New makes a Store; Run it.
func New(c Config) *Store {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.WriteTimeout == 0 {
		c.WriteTimeout = WriteTimeout
	}
	if c.OrphanDelay == 0 {
		c.OrphanDelay = OrphanDelay
	}
	if c.SegmentBytes == 0 {
		c.SegmentBytes = SegmentBytes
	}
	var seed [32]byte
	_, _ = crand.Read(seed[:]) // never fails, by its contract
	s := &Store{
		c: c, rng: rand.NewChaCha8(seed), drives: map[wire.DriveID]*driveState{},
		reader: strip.New(strip.Config{
			Drive: c.Ask, Up: c.Up, Arena: c.Arena, Report: c.Report, HedgeDelay: c.HedgeDelay,
		}),
	}
	s.del = newDeleter(s)
	return s
}

// Run polls the drives' space and deletes what was queued, until ctx ends. It always returns nil. Without it writes work,
// but nothing is deleted and space is not known.
func (s *Store) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { s.pollSpace(ctx) })
	wg.Go(func() { s.del.run(ctx) })
	wg.Wait()
	return nil
}

// Reader gives the reader of stripes and segments.
func (s *Store) Reader() *strip.Reader { return s.reader }

// Arena gives the memory that the Store uses.
func (s *Store) Arena() *wire.Arena { return s.c.Arena }

// random gives 64 random bits that cannot be foretold.
func (s *Store) random() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rng.Uint64()
}

// state gives the drive's state, made when needed. s.mu is held.
func (s *Store) state(d wire.DriveID) *driveState {
	st := s.drives[d]
	if st == nil {
		st = &driveState{}
		s.drives[d] = st
	}
	return st
}

// failed notes what a failed write says about a drive.
func (s *Store) failed(d wire.DriveID, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch wire.KindOf(err) {
	case wire.KindNoSpace:
		s.state(d).full = true
	case wire.KindUnavailable, wire.KindConnLost, wire.KindTimeout, wire.KindIO, wire.KindShutdown, wire.KindCorrupt:
		s.state(d).suspectUntil = time.Now().Add(SuspectFor)
	}
}

// wrote counts a write against the free space that is known of a drive.
func (s *Store) wrote(d wire.DriveID, bytes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.state(d)
	st.free -= min(st.free, uint64(bytes))
}

// DataStrips gives k, the data strips of a stripe; 0 when there is no map yet.
func (b *Bucket) DataStrips() int {
	v := b.s.currentView()
	if v == nil {
		return 0
	}
	return v.k
}

// Replicas gives m+1, the replicas of a log; 0 when there is no map yet.
func (b *Bucket) Replicas() int {
	v := b.s.currentView()
	if v == nil {
		return 0
	}
	return v.m + 1
}

// Domain gives the failure domain of a drive, and false when the map does not have it.
func (b *Bucket) Domain(d wire.DriveID) (uint32, bool) {
	v := b.s.currentView()
	if v == nil {
		return 0, false
	}
	domain, ok := v.domain[d]
	return domain, ok
}
