package rpc

import (
	"encoding/binary"
	"sync"
	"time"

	"github.com/crakefs/crake/wire"
)

// releases collects the loans that are over here, to be told to the lender: with the next frames that leave (writer.next), or, when there
// are many or none leaves, by a frame of their own, which the writer goroutine sends. Who releases a Buf may hold any lock, so
// nothing is sent here.
type releases struct {
	w *writer // immutable

	mu    sync.Mutex // a leaf
	ids   []uint64
	bytes int // of data that they hold
	timer *time.Timer
	armed bool
	ended bool
}

// add notes that a loan of this much data is over.
func (r *releases) add(id uint64, bytes int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return // the lender learns it from the life pipe
	}
	r.ids = append(r.ids, id)
	r.bytes += bytes
	switch {
	case len(r.ids) >= releaseCount || r.bytes >= releaseBytes:
		r.w.nudge()
	case r.armed:
	case r.timer == nil:
		r.armed = true
		r.timer = time.AfterFunc(releaseDelay, r.late)
	default:
		r.armed = true
		r.timer.Reset(releaseDelay)
	}
}

// late is called by the timer. It runs on when frames have taken the releases along meanwhile: to stop it for each would cost more.
func (r *releases) late() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.armed = false
	if len(r.ids) > 0 {
		r.w.nudge()
	}
}

// frame gives the frame that tells what has been collected; false: nothing has.
func (r *releases) frame() (outFrame, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.ids) == 0 {
		return outFrame{}, false
	}
	f := outFrame{head: newHeadBuf()}
	n := min(len(r.ids), maxReleases)
	f.head.b = binary.LittleEndian.AppendUint32(f.head.b, uint32(n))
	for _, id := range r.ids[:n] {
		f.head.b = binary.LittleEndian.AppendUint64(f.head.b, id)
	}
	r.ids = r.ids[:copy(r.ids, r.ids[n:])]
	r.bytes = 0
	if len(r.ids) > 0 {
		r.w.nudge()
	}
	h := wire.Header{Kind: wire.FrameRelease, MetaBytes: uint32(len(f.head.b) - wire.HeaderBytes)}
	h.Encode(f.head.b[:wire.HeaderBytes], f.head.b[wire.HeaderBytes:])
	return f, true
}

func (r *releases) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = true
	r.ids = nil
	if r.timer != nil {
		r.timer.Stop()
	}
}

// released takes a release frame: loans that the peer gives back.
func (c *Conn) released(meta []byte) error {
	bad := func(why string) error {
		return wire.Errorf("rpc.read", wire.KindBadFrame, c.s.name(), "a release of %d bytes: %s", len(meta), why)
	}
	if c.shm == nil {
		return bad("nothing is lent on this connection")
	}
	le := binary.LittleEndian
	if len(meta) < 4 || len(meta)-4 != 8*int(le.Uint32(meta)) {
		return bad("its length is wrong")
	}
	for meta = meta[4:]; len(meta) > 0; meta = meta[8:] {
		if !c.shm.lend.returned(le.Uint64(meta)) {
			return bad("of what is not lent")
		}
	}
	return nil
}
