package core

import (
	"context"
	"time"
)

// readahead is what a handle has read beyond what was asked for, and how far it should. Guarded by the handle's mu.
type readahead struct {
	next   uint64 // where a sequential reader would read next
	window int    // 0: nobody reads in order
	pieces []*piece
	used   time.Time
}

// piece is one part of the file that is read ahead, in order of offset.
type piece struct {
	off     uint64
	n       int
	content uint64        // in.content when it was begun: what was read counts only while it is the same
	ready   chan struct{} // closed when b or err is set
	b       *Bytes
	err     error
}

// fromReadahead gives the bytes when they have been read ahead (or are just being), and starts further pieces when the reader goes in
// order. nil: read them now.
func (h *Handle) fromReadahead(ctx context.Context, off uint64, n int, size uint64) *Bytes {
	in := h.in
	in.mu.Lock()
	content, cached := in.content, in.cached()
	clean := in.data.Clean()
	in.mu.Unlock()
	if !cached || !clean {
		h.dropReadahead()
		return nil
	}
	h.mu.Lock()
	ra := &h.ra
	ra.used = time.Now()
	end := off + uint64(n)
	if off == ra.next || off == 0 {
		if ra.window = min(max(2*ra.window, raMin, 2*n), raMax); off == 0 && end >= size {
			ra.window = 0 // all of it at once
		}
	} else if off+uint64(raMin) < ra.next || off > ra.next+raMin { // not just a little out of order, as parallel requests are
		ra.window = 0
	}
	ra.next = max(end, ra.next)
	if ra.window == 0 {
		ra.next = end
	}
	old := ra.trim(off, content)
	if ra.window > 0 {
		from := end
		if n < raMin && len(ra.pieces) == 0 {
			from = off // small reads come from the piece too
		}
		h.ahead(from, min(end+uint64(ra.window), size), content)
	}
	use, covered := ra.find(off, end)
	h.mu.Unlock()
	for _, p := range old {
		p.drop()
	}
	if !covered {
		for _, p := range use {
			p.drop()
		}
		return nil
	}
	return join(ctx, use, off, end, func() bool {
		in.mu.Lock()
		defer in.mu.Unlock()
		return in.content == content && in.cached()
	})
}

// ahead starts pieces so that all up to end is read. h.mu is held.
func (h *Handle) ahead(from, end, content uint64) {
	fs := h.in.fs
	ra := &h.ra
	if k := len(ra.pieces); k > 0 {
		last := ra.pieces[k-1]
		from = max(from, last.off+uint64(last.n))
	}
	// Not for a few bytes: the window moves on by half of itself, or to the end.
	if from >= end || end-from < uint64(min(ra.window/2, raUnit)) && len(ra.pieces) > 0 {
		return
	}
	for from < end {
		n := int(min(end-from, raUnit-from%raUnit))
		if !fs.raSem.TryAcquire(int64(n)) {
			return
		}
		p := &piece{off: from, n: n, content: content, ready: make(chan struct{}),
			b: newBytes(func() { fs.raSem.Release(int64(n)) })}
		p.b.refs.Add(1) // the reader's goroutine's own
		ra.pieces = append(ra.pieces, p)
		in := h.in
		fs.spawn(func() {
			p.err = fs.readInto(fs.bg, in, p.off, p.n, p.b)
			close(p.ready)
			p.b.Done()
		})
		from += uint64(n)
	}
}

// trim takes out the pieces that are behind off or of old content. h.mu is held.
func (ra *readahead) trim(off, content uint64) (old []*piece) {
	keep := ra.pieces[:0]
	for _, p := range ra.pieces {
		if p.content != content || p.off+uint64(p.n)+raMin <= off || ra.window == 0 {
			old = append(old, p)
		} else {
			keep = append(keep, p)
		}
	}
	clear(ra.pieces[len(keep):])
	ra.pieces = keep
	return old
}

// find gives the pieces that hold [off, end), each with a reference, and whether they hold all of it. h.mu is held.
func (ra *readahead) find(off, end uint64) (use []*piece, covered bool) {
	at := off
	for _, p := range ra.pieces {
		if p.off <= at && at < p.off+uint64(p.n) {
			p.b.refs.Add(1)
			use = append(use, p)
			if at = p.off + uint64(p.n); at >= end {
				return use, true
			}
		}
	}
	return use, false
}

// drop gives one reference on the piece's bytes back.
func (p *piece) drop() { p.b.Done() }

// join puts [off, end) together from pieces, whose references it takes over. nil when one of them could not be read, or valid
// says that they do not count any more.
func join(ctx context.Context, use []*piece, off, end uint64, valid func() bool) *Bytes {
	out := newBytes(nil)
	ok := true
	at := off
	for _, p := range use {
		select {
		case <-p.ready:
			ok = ok && p.err == nil
		case <-ctx.Done():
			ok = false
		}
		if ok {
			k := min(end, p.off+uint64(p.n)) - at
			out.addPart(p.b, int(at-p.off), int(k))
			at += k
		}
	}
	out.done = func() {
		for _, p := range use {
			p.drop()
		}
	}
	if !ok || !valid() {
		out.Done()
		return nil
	}
	return out
}

// dropReadahead forgets all pieces.
func (h *Handle) dropReadahead() {
	h.mu.Lock()
	old := h.ra.pieces
	h.ra.pieces, h.ra.window = nil, 0
	h.mu.Unlock()
	for _, p := range old {
		p.drop()
	}
}
