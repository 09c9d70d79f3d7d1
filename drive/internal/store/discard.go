package store

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/drive/internal/index"
	"github.com/crakefs/crake/wire"
)

// The limits of discards.
const (
	// discardUnit is the least that is discarded, and its alignment, in blocks: 1 MiB, where areas start. Most devices forget
	// nothing smaller than what they erase at once, some MiB, but gather what they are told.
	discardUnit = 256
	// maxDiscardUnits bounds one discard to 64 MiB: some milliseconds, during which the blocks cannot be used.
	maxDiscardUnits = 64
	// discardEvery is the time before the first pass, and from the end of one to the next. Most of what becomes free is used again sooner: the allocator
	// fills the first holes first.
	discardEvery = 30 * time.Second
	// discardPause is the least time between two discards, and discardShare bounds them to a fifth of the time: a device that is slow
	// to forget is slow for reads meanwhile. A whole empty drive of 16 TiB is told at the start, within an hour.
	discardPause = 10 * time.Millisecond
	discardShare = 5
)

// discards tells the device which blocks hold nothing, in the background.
//
// What is discarded is free in the allocator, and kept from being given out meanwhile (index.Allocator.Hold). So a discard is
// allowed exactly when a Put could have overwritten the blocks: the record that freed them is durable and flushed, and no read that
// could have found them is under way (see freeLater). The hold is in memory only. After a crash the blocks are free, and
// hold anything, as free blocks do; and no discard comes late: the kernel ends one that was begun before it gives the device, and its
// lock, free.
//
// What was freed before the process started is not known, so the first pass tells all that is free.
type discards struct {
	bytes atomic.Uint64 // told
	// Set before Run, for tests: 0 is the default.
	unit  int
	every time.Duration
	pause time.Duration

	// Guarded by Store.mu.
	freed *index.Freed // nil: the device is told nothing
	limit int          // units in one discard
}

// startDiscards begins to note what becomes free, if the device wants to know.
func (s *Store) startDiscards() {
	d := &s.discards
	if d.unit == 0 {
		d.unit, d.every, d.pause = discardUnit, discardEvery, discardPause
	}
	if s.cfg.NoDiscard || s.dev.Info().Discard == "" {
		return
	}
	// At most half the reserve is held: it is counted as free, and file data, which must leave the whole reserve, never finds
	// less than it was promised.
	limit := min(int(s.reserve/2)/d.unit, maxDiscardUnits)
	if limit == 0 {
		return // a drive of less than 64 MiB
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.limit == 0 {
		d.limit, d.freed = limit, index.NewFreed(s.sb.DataBlocks(), d.unit)
	}
}

// noteFreed remembers what has become free. Preconditions: mu is held.
func (d *discards) noteFreed(r format.Run) {
	if d.freed != nil {
		d.freed.Add(r)
	}
}

// runDiscards makes one pass after the other until ctx ends or the device refuses.
func (s *Store) runDiscards(ctx context.Context) {
	s.startDiscards()
	for sleep(ctx, s.discards.every) && s.discardPass(ctx) {
	}
}

// discardPass discards all that is free and not told yet; false: it was the last one.
func (s *Store) discardPass(ctx context.Context) bool {
	d := &s.discards
	for ctx.Err() == nil {
		r, done, on := s.nextDiscard()
		if done || !on {
			return on
		}
		if r.Blocks() == 0 {
			continue
		}
		began := time.Now()
		bytes := int64(r.Blocks()) * format.BlockSize
		err := s.dev.Discard(s.dataOffset(r), bytes)
		took := time.Since(began)
		s.mu.Lock()
		s.alloc.Release(r)
		if err != nil {
			d.freed = nil
		}
		s.mu.Unlock()
		if err != nil { // nothing is lost but the device's speed
			s.event(wire.SeverityWarning, "drive.discard", fmt.Sprintf("nothing is discarded until a restart: %v", err))
			return false
		}
		d.bytes.Add(uint64(bytes))
		if !sleep(ctx, max(d.pause, took*(discardShare-1))) {
			return false
		}
	}
	return false
}

// nextDiscard finds and holds what is to be discarded next; no blocks: there may be more later in the pass. on is false when
// nothing is discarded any more.
func (s *Store) nextDiscard() (r format.Run, done, on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := &s.discards
	if d.freed == nil || s.failed != nil {
		return 0, false, false
	}
	if s.alloc.FreeBlocks() < 2*s.reserve { // nearly full: what is free is used soon, and nothing is to be held
		return 0, true, true
	}
	r, done = d.freed.Next(s.alloc, d.limit)
	if r.Blocks() > 0 {
		s.alloc.Hold(r)
	}
	return r, done, true
}

// sleep waits; false: ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
