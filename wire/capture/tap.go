package capture

import (
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/crakefs/crake/wire"
)

// Tap is where the frames of a process can be looked at. A nil Tap is one where nobody ever looks. All methods are safe for
// concurrent use.
type Tap struct {
	origin Origin // immutable; Start is filled in for each sink
	sinks  atomic.Pointer[[]*sink]
	conns  atomic.Uint32 // numbers given

	mu sync.Mutex // orders changes of sinks
}

// New makes a Tap of a process.
func New(o Origin) *Tap { return &Tap{origin: o} }

// Conn is what a connection has of its process's Tap. A nil Conn is one at which nobody looks.
type Conn struct {
	tap  *Tap
	id   uint32
	info []byte // encoded ConnInfo
}

// Conn makes the Conn of a new connection; nil for a nil Tap.
func (t *Tap) Conn(c *ConnInfo) *Conn {
	if t == nil {
		return nil
	}
	return &Conn{tap: t, id: t.conns.Add(1), info: c.encode()}
}

// Frame keeps a frame for those who look: header and meta section, in one part or several. It copies, and does not wait.
func (c *Conn) Frame(sent bool, head ...[]byte) {
	if c == nil || c.tap.sinks.Load() == nil {
		return
	}
	c.record(&Record{Kind: KindFrame, Sent: sent}, MaxFrameBytes, head)
}

// Data keeps the beginning of the data section of the frame before, for those who look and want it. It copies, and does not wait.
func (c *Conn) Data(sent bool, data wire.Data) {
	if c == nil || c.tap.sinks.Load() == nil || len(data) == 0 {
		return
	}
	var parts [][]byte
	for n, i := 0, 0; n < MaxDataBytes && i < len(data); i++ {
		parts, n = append(parts, data[i].B), n+len(data[i].B)
	}
	c.record(&Record{Kind: KindData, Sent: sent, Whole: data.Len()}, MaxDataBytes, parts)
}

func (c *Conn) record(r *Record, keep int, parts [][]byte) {
	sinks := c.tap.sinks.Load()
	if sinks == nil {
		return
	}
	r.Conn, r.Time = c.id, time.Now()
	for _, s := range *sinks {
		if r.Kind == KindData {
			keep = s.dataBytes
			if keep == 0 {
				continue
			}
		}
		s.add(c, r, keep, parts)
	}
}

// errTooMany says that as many look as may.
var errTooMany = errors.New("too many look already")

func (t *Tap) attach(s *sink) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []*sink
	if old := t.sinks.Load(); old != nil {
		all = slices.Clone(*old)
	}
	if len(all) >= maxSinks {
		return errTooMany
	}
	all = append(all, s)
	t.sinks.Store(&all)
	return nil
}

func (t *Tap) detach(s *sink) {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := slices.Clone(*t.sinks.Load())
	all = slices.DeleteFunc(all, func(x *sink) bool { return x == s })
	if len(all) == 0 {
		t.sinks.Store(nil)
		return
	}
	t.sinks.Store(&all)
}

// sink gathers records for one who looks.
type sink struct {
	// immutable
	dataBytes int   // of each data section
	limit     int64 // bytes of the whole capture; 0: none
	wake      chan struct{}

	mu    sync.Mutex
	buf   []byte          // not written yet
	total int64           // bytes taken so far
	known map[uint32]bool // connections that are described
	lost  uint64          // records since the last that was taken
	ended bool            // the last record is in
}

// newSink makes a sink whose capture begins now.
func (t *Tap) newSink(dataBytes int, limit int64) *sink {
	o := t.origin
	o.Start = time.Now()
	s := &sink{dataBytes: min(dataBytes, MaxDataBytes), limit: limit, wake: make(chan struct{}, 1), known: map[uint32]bool{}}
	s.buf = o.encode()
	s.total = int64(len(s.buf))
	s.wake <- struct{}{}
	return s
}

// add takes a record if there is room.
func (s *sink) add(c *Conn, r *Record, keep int, parts [][]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	was := len(s.buf)
	// The longest that may come: what was lost, the connection, the record. Exact lengths would cost more than they gain.
	room := recordBytes + 8 + recordBytes + len(c.info) + recordBytes + keep
	if was+room > sinkBytes {
		s.lost++
		return
	}
	if s.lost > 0 {
		s.buf = appendRecord(s.buf, &Record{Kind: KindLost, Time: r.Time}, 8, binary.LittleEndian.AppendUint64(nil, s.lost))
		s.lost = 0
	}
	if !s.known[c.id] {
		s.known[c.id] = true
		s.buf = appendRecord(s.buf, &Record{Kind: KindConn, Conn: c.id, Time: r.Time}, len(c.info), c.info)
	}
	s.buf = appendRecord(s.buf, r, keep, parts...)
	s.total += int64(len(s.buf) - was)
	if s.limit > 0 && s.total >= s.limit {
		s.end(r.Time, "the capture has reached its longest")
	}
	if was == 0 {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// end puts the last record in.
// Preconditions: mu is held, and ended is false.
func (s *sink) end(now time.Time, why string) {
	if s.lost > 0 {
		s.buf = appendRecord(s.buf, &Record{Kind: KindLost, Time: now}, 8, binary.LittleEndian.AppendUint64(nil, s.lost))
	}
	s.buf = appendRecord(s.buf, &Record{Kind: KindEnd, Time: now}, len(why), []byte(why))
	s.ended = true
}

// stop ends the capture unless it has ended.
func (s *sink) stop(why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.end(time.Now(), why)
	}
}

// take gives what waits, for which spare is the next memory, and whether more may come.
func (s *sink) take(spare []byte) (b []byte, more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, s.buf = s.buf, spare[:0]
	return b, !s.ended
}
