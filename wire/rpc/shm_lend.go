package rpc

import (
	"encoding/binary"
	"errors"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/wire"
)

// referenceBytes is the length of a reference at the end of meta: arena index u32, length u32, offset u64.
const referenceBytes = 16

// Ids of loans: that of the request times 2, and 1 for the data of the response to it.
func requestLoan(id uint64) uint64  { return 2 * id }
func responseLoan(id uint64) uint64 { return 2*id + 1 }

// lender is the side of a connection that sends data by reference. A loan holds references on its Bufs from before its frame is written
// until the peer gives it back or, when the connection has ended, the life pipe says that nobody can touch it any more.
type lender struct {
	// immutable
	s     *shm
	arena *wire.Arena
	limit int      // bytes of memory that may be lent to this peer
	life  *os.File // the end to read from; nil: nothing was offered

	sentBytes atomic.Uint64

	mu     sync.Mutex // a leaf but for Arena.mu
	ended  bool
	loans  map[uint64]*lent
	bytes  int // of memory that they hold
	spare  []*lent
	offers [maxArenas]offer
	index  map[*wire.Foreign]int // of memory that is passed on
}

// lent is a loan.
type lent struct {
	bufs  []*wire.Buf // with a reference on each
	bytes int         // of memory that they hold
}

// offer is what the peer knows of an arena index of ours.
type offer struct {
	state offerState
	mem   *wire.Foreign // passed on; nil: the own arena
	stop  func()        // takes its OnGone back
}

type offerState uint8

const (
	offerNone    offerState = iota
	offerSent               // not answered yet
	offerTaken              // references may be sent
	offerRefused            // never
	offerLeaving            // sent, dropped, and not answered yet
)

// init offers the own arena.
func (l *lender) init(s *shm, arena *wire.Arena) {
	l.s, l.arena, l.limit = s, arena, arena.Size()/lendShare
	l.loans, l.index = map[uint64]*lent{}, map[*wire.Foreign]int{}
	if !s.trusted {
		return
	}
	if err := l.offerOwn(); err != nil {
		s.c.log.Warn("own memory cannot be lent: data goes through the socket", "peer", s.c.s.name(), "reason", err)
	}
}

func (l *lender) offerOwn() error {
	fd, err := l.arena.Descriptor()
	if err != nil {
		return err
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return err
	}
	err = l.s.ch.send(packet{kind: packetOffer, size: uint64(l.arena.Size())}, fd, pipe[1])
	_ = unix.Close(pipe[1]) // only copies that were sent hold it open
	if err != nil {
		_ = unix.Close(pipe[0])
		return err
	}
	l.life = os.NewFile(uintptr(pipe[0]), "life")
	l.offers[0].state = offerSent
	return nil
}

// ready says that the peer has taken the own arena.
func (l *lender) ready() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.offers[0].state == offerTaken
}

// lend makes a loan of d and adds the references to it to the end of head. 0: it must go inline, and nothing has happened. The caller keeps
// its references; d's bytes must not change any more.
func (l *lender) lend(id uint64, d wire.Data, head *headBuf) (refs int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended || l.offers[0].state != offerTaken || l.loans[id] != nil {
		return 0
	}
	x := l.newLent()
	meta := len(head.b)
	refs = l.refer(x, d, head)
	if refs == 0 || len(head.b)-wire.HeaderBytes > wire.MaxMetaBytes || l.bytes+x.bytes > l.limit || !l.arena.Lend(x.bufs) {
		head.b = head.b[:meta]
		l.keep(x)
		return 0
	}
	l.loans[id] = x
	l.bytes += x.bytes
	l.sentBytes.Add(uint64(d.Len()))
	return refs
}

// refer adds references to the parts of d to head, and their Bufs to x. 0: not all can be. Parts that follow one another in memory
// share a reference. Preconditions: mu is held.
func (l *lender) refer(x *lent, d wire.Data, head *headBuf) (refs int) {
	index, off, n := -1, 0, 0 // of the reference being made
	flush := func() {
		if n > 0 {
			head.b = binary.LittleEndian.AppendUint32(head.b, uint32(index))
			head.b = binary.LittleEndian.AppendUint32(head.b, uint32(n))
			head.b = binary.LittleEndian.AppendUint64(head.b, uint64(off))
			refs++
		}
	}
	for _, s := range d {
		if len(s.B) == 0 {
			continue
		}
		i, at := l.place(s)
		if i < 0 || at%wire.BlockSize != 0 || n%wire.BlockSize != 0 || refs == maxReferences {
			return 0 // who receives data may count on whole blocks that start at a block
		}
		if k := len(x.bufs); k == 0 || x.bufs[k-1] != s.Buf {
			x.bufs = append(x.bufs, s.Buf)
			x.bytes += s.Buf.Capacity()
		}
		if i == index && at == off+n {
			n += len(s.B)
			continue
		}
		flush()
		index, off, n = i, at, len(s.B)
	}
	flush()
	if refs > maxReferences {
		return 0
	}
	return refs
}

// place gives arena index and offset of a part; -1: the peer cannot see it, or not yet. Preconditions: mu is held.
func (l *lender) place(s wire.Slice) (index, off int) {
	if l.arena.Owns(s.Buf) {
		return 0, l.arena.Offset(s.B)
	}
	f := s.Buf.Foreign()
	if f == nil {
		return -1, 0 // of another arena
	}
	i, ok := l.index[f]
	if !ok {
		i = l.passOn(f)
	}
	if i < 0 || l.offers[i].state != offerTaken {
		return -1, 0
	}
	return i, f.Offset(s.B)
}

// passOn offers memory of another process; -1: it cannot be. Preconditions: mu is held, and the caller has a Buf that lies in f.
func (l *lender) passOn(f *wire.Foreign) int {
	fd, life, ok := f.Descriptors()
	if !ok {
		return -1
	}
	for i := 1; i < maxArenas; i++ {
		o := &l.offers[i]
		if o.state != offerNone {
			continue
		}
		switch err := l.s.ch.send(packet{kind: packetOffer, index: uint32(i), size: uint64(f.Size())}, fd, life); {
		case errors.Is(err, unix.ETOOMANYREFS):
			return -1 // too many descriptors are under way in the system: later, perhaps
		case err != nil:
			l.broken(err)
			return -1
		}
		*o = offer{state: offerSent, mem: f, stop: f.OnGone(func() { l.gone(f) })}
		l.index[f] = i
		return i
	}
	return -1
}

// broken ends the connection; from elsewhere, because locks are held here.
func (l *lender) broken(err error) {
	go l.s.c.fail(wire.E("rpc.channel", wire.KindConnLost, l.s.c.s.name(), err))
}

// gone drops memory that was passed on: nothing of it is lent, since a loan would hold it.
func (l *lender) gone(f *wire.Foreign) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i, ok := l.index[f]
	if !ok || l.ended {
		return
	}
	delete(l.index, f)
	was := l.offers[i].state
	l.offers[i] = offer{}
	switch was {
	case offerRefused:
		return
	case offerSent:
		l.offers[i].state = offerLeaving
	}
	if err := l.s.ch.send(packet{kind: packetDrop, index: uint32(i)}); err != nil {
		l.broken(err)
	}
}

// answered notes the answer to an offer.
func (l *lender) answered(index int, taken bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if index >= 0 && index < maxArenas {
		switch o := &l.offers[index]; {
		case o.state == offerLeaving:
			o.state = offerNone
			return nil
		case o.state == offerSent && taken:
			o.state = offerTaken
			return nil
		case o.state == offerSent:
			o.state = offerRefused
			return nil
		}
	}
	return wire.Errorf("rpc.channel", wire.KindBadFrame, "", "an answer to an offer of arena %d, which was not made", index)
}

// returned ends a loan that the peer gives back, or that never left. false: there is none of this id.
func (l *lender) returned(id uint64) bool {
	l.mu.Lock()
	x := l.loans[id]
	if x == nil {
		l.mu.Unlock()
		return false
	}
	delete(l.loans, id)
	l.bytes -= x.bytes
	l.mu.Unlock()
	l.arena.TakeBack(x.bufs)
	l.mu.Lock()
	l.keep(x)
	l.mu.Unlock()
	return true
}

func (l *lender) newLent() *lent {
	if n := len(l.spare); n > 0 {
		x := l.spare[n-1]
		l.spare = l.spare[:n-1]
		return x
	}
	return &lent{}
}

// keep makes x a spare one. Preconditions: mu is held.
func (l *lender) keep(x *lent) {
	clear(x.bufs)
	x.bufs, x.bytes = x.bufs[:0], 0
	if len(l.spare) < maxSpareCalls {
		l.spare = append(l.spare, x)
	}
}

// state tells loans that are out and the bytes of memory that they hold.
func (l *lender) state() (loans, bytes int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.loans), l.bytes
}

// close puts what is out in quarantine. Preconditions: nothing of the connection runs any more.
func (l *lender) close() {
	l.mu.Lock()
	l.ended = true
	offers, out := l.offers, len(l.loans)
	l.mu.Unlock()
	for _, o := range offers {
		if o.stop != nil {
			o.stop()
		}
	}
	switch {
	case out > 0:
		go l.quarantine()
	case l.life != nil:
		_ = l.life.Close()
	}
}

// quarantine waits until nobody, however many processes away, can touch what was lent, and gives it back. There is no other way out:
// memory that is given back earlier could be read, or be under IO, while its next owner writes to it.
func (l *lender) quarantine() {
	_, bytes := l.state()
	l.arena.Quarantine(bytes)
	b := make([]byte, 64)
	for {
		if _, err := l.life.Read(b); err != nil { // what somebody has written there says nothing
			break
		}
	}
	_ = l.life.Close()
	l.arena.Quarantine(-bytes)
	l.mu.Lock()
	loans := l.loans
	l.loans, l.bytes = nil, 0
	l.mu.Unlock()
	for _, x := range loans {
		l.arena.TakeBack(x.bufs)
	}
}
