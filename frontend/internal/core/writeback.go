package core

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/crakefs/crake/wire"
)

// writeback knows the inodes that have something to be done later: to send data, or to release. Everything here runs in
// FS.Run's goroutine, except what locks mu.
type writeback struct {
	kick chan struct{} // capacity 1: there is pressure

	mu     sync.Mutex
	listed map[*inode]struct{} // those with in.wb set

	groups  map[wire.BucketID]int // MWrites of small files under way; guarded by mu
	flushes int                   // files that are being flushed; guarded by mu
}

func (w *writeback) init() {
	w.kick = make(chan struct{}, 1)
	w.listed = map[*inode]struct{}{}
	w.groups = map[wire.BucketID]int{}
}

// list notes that there is something to do for the inode. Its mu is held.
func (w *writeback) list(in *inode) {
	if in.wb {
		return
	}
	in.wb = true
	w.mu.Lock()
	w.listed[in] = struct{}{}
	w.mu.Unlock()
}

// press wakes the write-back because memory is short.
func (w *writeback) press() {
	select {
	case w.kick <- struct{}{}:
	default:
	}
}

// inodes gives those that are listed, after taking off those with nothing to do.
func (w *writeback) inodes() []*inode {
	w.mu.Lock()
	all := make([]*inode, 0, len(w.listed))
	for in := range w.listed {
		all = append(all, in)
	}
	w.mu.Unlock()
	keep := all[:0]
	for _, in := range all {
		in.mu.Lock()
		if in.unsent() || in.flushing || in.srvOpen && in.handles == 0 {
			keep = append(keep, in)
		} else {
			in.wb, in.hurry = false, false
			w.mu.Lock()
			delete(w.listed, in)
			w.mu.Unlock()
		}
		in.mu.Unlock()
	}
	return keep
}

// writeBack starts to send what has waited long enough, small files of one bucket together.
func (fs *FS) writeBack(now time.Time) {
	pressure := fs.dirtyNow.Load() > fs.c.DirtyBytes/2
	groups := map[wire.BucketID][]*inode{}
	for _, in := range fs.wb.inodes() {
		in.mu.Lock()
		due := in.hurry || now.Sub(in.since) >= dirtyAge || pressure && in.sends == 0 && len(in.ready) == 0
		if !in.unsent() || !due || in.flushing || in.busy || now.Before(in.retryAt) {
			in.mu.Unlock()
			continue
		}
		if n := in.data.DirtyBytes(); n > 0 && n <= smallFile && len(in.flights) == 0 && in.data.End() <= wire.RegionBytes {
			b := in.ino.Bucket()
			groups[b] = append(groups[b], in)
		} else if fs.wb.flushSlot() {
			in.flushing, in.hurry = true, false
			fs.spawn(func() { fs.flushOne(in) })
		}
		in.mu.Unlock()
	}
	for b, list := range groups {
		for len(list) > 0 && fs.wb.groupSlot(b) {
			n := min(len(list), maxGroup)
			if !fs.sendGroup(b, list[:n]) {
				fs.wb.groupDone(b)
			}
			list = list[n:]
		}
	}
}

// maxFlushes bounds the files that are flushed at once in the background, maxBucketGroups the groups of a bucket under way: while
// these are, others gather.
// closedTries is how often data of a file that nobody has open is offered to a cluster that refuses it, a second apart.
const (
	closedTries     = 5
	maxFlushes      = 8
	maxBucketGroups = 2
)

func (w *writeback) flushSlot() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.flushes >= maxFlushes {
		return false
	}
	w.flushes++
	return true
}

func (w *writeback) groupSlot(b wire.BucketID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.groups[b] >= maxBucketGroups {
		return false
	}
	w.groups[b]++
	return true
}

func (w *writeback) groupDone(b wire.BucketID) {
	w.mu.Lock()
	if w.groups[b]--; w.groups[b] == 0 {
		delete(w.groups, b)
	}
	w.mu.Unlock()
	w.press() // those that gathered meanwhile
}

// flushOne flushes a file in the background. Errors are noted at the file. A file that nobody has open any more and that the cluster
// does not take is given up after a while.
func (fs *FS) flushOne(in *inode) {
	err := fs.flush(fs.bg, in, 0, wholeFile, true)
	in.mu.Lock()
	defer in.mu.Unlock()
	in.flushing = false
	if err == nil {
		in.refusals = 0
	} else if fs.bg.Err() == nil {
		if in.refusals++; in.handles == 0 && in.refusals >= closedTries {
			in.giveUpData(err)
			in.refusals = 0
		}
	}
	in.wake()
	fs.wb.mu.Lock()
	fs.wb.flushes--
	fs.wb.mu.Unlock()
}

// sendGroup sends small files in one MWrite, in the background. It reports whether there was anything to send.
func (fs *FS) sendGroup(b wire.BucketID, list []*inode) bool {
	if !fs.sendSem.TryAcquire(1) {
		return false
	}
	var sends []*send
	bytes := 0
	for _, in := range list {
		in.mu.Lock()
		if !in.busy && len(in.flights) == 0 && bytes < groupBytes {
			if s := in.take(0, wire.RegionBytes, smallFile); s != nil {
				s.carry()
				bytes += s.batch.Bytes()
				in.hurry = false
				sends = append(sends, s)
			}
		}
		in.mu.Unlock()
	}
	if len(sends) == 0 {
		fs.sendSem.Release(1)
		return false
	}
	fs.spawn(func() {
		err := fs.transmit(sends)
		fs.sendSem.Release(1)
		if err != nil && len(sends) > 1 && fs.bg.Err() == nil {
			// All or nothing was done: nothing. Each by itself, so that what fits is taken, and the error goes where it belongs.
			for _, s := range sends {
				_ = fs.flush(fs.bg, s.in, 0, wholeFile, true) // noted at the file
			}
		}
		fs.wb.groupDone(b)
	})
	return true
}

// Sync makes durable all that was written before. ctx bounds the waiting. It gives the first error.
func (fs *FS) Sync(ctx context.Context) error {
	var g errgroup.Group
	g.SetLimit(maxFlushes)
	for _, in := range fs.wb.inodes() {
		g.Go(func() error { return fs.flush(ctx, in, 0, wholeFile, true) })
	}
	return g.Wait()
}

// Dirty gives the bytes of memory that hold data which is not durable yet.
func (fs *FS) Dirty() int64 { return fs.dirtyNow.Load() }
