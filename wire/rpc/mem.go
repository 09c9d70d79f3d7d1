package rpc

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/crakefs/crake/wire"
)

// Mem is a network in memory, for tests and simulation. It has hosts; a Mem value is the view of one of them (see Host), and goes
// to Options.Net. Addresses are "mem:name", whatever the host that listens.
type Mem struct {
	n    *memNet
	host string
}

// Link says what one direction between two hosts does to frames. The zero Link hands them on at once, in order.
type Link struct {
	// Delay is called for each frame and tells how long it travels; nil is 0. Frames stay in order.
	Delay func() time.Duration
	// Drop is called for each frame that is not part of a handshake; true loses it. (A socket never loses a single frame; this is
	// for finding out whether a lost request or answer is survived, as when a process is killed with it in its hands.)
	Drop func(h wire.Header) bool
	// Overtake is called for each frame; true lets it travel beside the others, so that later frames may arrive before it.
	Overtake func(h wire.Header) bool
}

type memNet struct {
	mu        sync.Mutex
	listeners map[string]*memAcceptor
	links     map[[2]string]Link
	cut       map[[2]string]bool
	pipes     map[*memPipe]struct{}
}

// NewMem makes a network; the value is the view of host "".
func NewMem() *Mem {
	return &Mem{n: &memNet{
		listeners: map[string]*memAcceptor{}, links: map[[2]string]Link{}, cut: map[[2]string]bool{}, pipes: map[*memPipe]struct{}{},
	}}
}

// Host gives the view of a host of the same network.
func (m *Mem) Host(name string) *Mem { return &Mem{n: m.n, host: name} }

// SetLink sets what happens to frames from one host to another from now on.
func (m *Mem) SetLink(from, to string, l Link) {
	m.n.mu.Lock()
	defer m.n.mu.Unlock()
	m.n.links[[2]string{from, to}] = l
}

// Partition holds all that two hosts send to each other, until Heal: as when packets are lost and TCP sends them again. Dials
// wait.
func (m *Mem) Partition(a, b string) { m.setCut(a, b, true) }

// Heal ends a partition: what was held arrives.
func (m *Mem) Heal(a, b string) { m.setCut(a, b, false) }

func (m *Mem) setCut(a, b string, cut bool) {
	m.n.mu.Lock()
	m.n.cut[[2]string{a, b}], m.n.cut[[2]string{b, a}] = cut, cut
	var pipes []*memPipe
	for p := range m.n.pipes {
		if !cut {
			pipes = append(pipes, p)
		}
	}
	m.n.mu.Unlock()
	for _, p := range pipes {
		p.release()
	}
}

// Break resets all connections between two hosts.
func (m *Mem) Break(a, b string) {
	m.n.mu.Lock()
	var pipes []*memPipe
	for p := range m.n.pipes {
		if p.from == a && p.to == b || p.from == b && p.to == a {
			pipes = append(pipes, p)
		}
	}
	m.n.mu.Unlock()
	for _, p := range pipes {
		p.end(errReset)
	}
}

var errReset = errors.New("connection reset")

func (n *memNet) isCut(from, to string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cut[[2]string{from, to}]
}

func (n *memNet) link(from, to string) (l Link, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	k := [2]string{from, to}
	return n.links[k], n.cut[k]
}

func (m *Mem) listen(name string) (acceptor, error) {
	m.n.mu.Lock()
	defer m.n.mu.Unlock()
	if m.n.listeners[name] != nil {
		return nil, wire.Errorf("rpc.listen", wire.KindExists, "mem:"+name, "another listens there")
	}
	a := &memAcceptor{m: m, nam: name, streams: make(chan *memStream, 64), done: make(chan struct{})}
	m.n.listeners[name] = a
	return a, nil
}

func (m *Mem) dial(ctx context.Context, name string) (stream, error) {
	m.n.mu.Lock()
	a := m.n.listeners[name]
	m.n.mu.Unlock()
	if a == nil {
		return nil, errors.New("connection refused: nobody listens")
	}
	for m.n.isCut(m.host, a.m.host) {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
	out, in := m.n.newPipe(m.host, a.m.host), m.n.newPipe(a.m.host, m.host)
	select {
	case a.streams <- &memStream{in: out, out: in, peer: "mem:" + m.host}:
		return &memStream{in: in, out: out, peer: "mem:" + name}, nil
	case <-a.done:
		return nil, errors.New("connection refused: the listener has ended")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

type memAcceptor struct {
	m       *Mem
	nam     string
	streams chan *memStream
	done    chan struct{}
	once    sync.Once
}

func (a *memAcceptor) accept() (stream, error) {
	select {
	case s := <-a.streams:
		return s, nil
	case <-a.done:
		return nil, net.ErrClosed
	}
}

func (a *memAcceptor) addr() string { return "mem:" + a.nam }

func (a *memAcceptor) close() error {
	a.once.Do(func() {
		a.m.n.mu.Lock()
		delete(a.m.n.listeners, a.nam)
		a.m.n.mu.Unlock()
		close(a.done)
		for {
			select {
			case s := <-a.streams:
				_ = s.close()
			default:
				return
			}
		}
	})
	return nil
}

// memStream is one end of two pipes.
type memStream struct {
	in, out *memPipe
	peer    string
}

func (s *memStream) name() string { return s.peer }

func (s *memStream) readv(bufs [][]byte) (int, error) { return s.in.readv(bufs) }

func (s *memStream) writev(bufs [][]byte, wait bool) (int, error) { return s.out.writev(bufs, wait) }

func (s *memStream) setDeadline(t time.Time) error {
	s.in.setDeadline(t)
	s.out.setDeadline(t)
	return nil
}

func (s *memStream) close() error {
	s.out.end(io.EOF)
	s.in.end(net.ErrClosed)
	return nil
}

// memPipe carries bytes one way. It finds the frames in what is written, so that its link can treat each by itself.
type memPipe struct {
	n        *memNet
	from, to string

	mu       sync.Mutex
	unit     []byte     // written, not yet a whole hello, proof or frame
	shaken   bool       // the hello has passed
	foreign  bool       // what is written is no frames: it passes as it is
	held     []memFrame // on the way, in order
	arrived  []byte     // to be read
	onWay    int        // bytes of held
	err      error      // of the end
	deadline time.Time
	changed  chan struct{} // closed at every change, and made anew
}

type memFrame struct {
	b   []byte
	due time.Time
}

func (n *memNet) newPipe(from, to string) *memPipe {
	p := &memPipe{n: n, from: from, to: to, changed: make(chan struct{})}
	n.mu.Lock()
	n.pipes[p] = struct{}{}
	n.mu.Unlock()
	return p
}

// wake tells all who wait.
// Preconditions: p.mu is held.
func (p *memPipe) wake() {
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *memPipe) setDeadline(t time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.deadline = t
	p.wake()
}

// end closes the pipe: with io.EOF the reader gets first what has arrived.
func (p *memPipe) end(err error) {
	p.mu.Lock()
	if p.err == nil && err == io.EOF && len(p.unit) > 0 { // half a frame arrives too
		p.foreign = true
		p.carry(p.unit)
		p.unit = nil
	}
	if p.err == nil || p.err == io.EOF { // the reader does not wait for what is held when it closes its end itself
		p.err = err
	}
	held := p.err == io.EOF && len(p.held) > 0 // Heal lets it arrive
	p.wake()
	p.mu.Unlock()
	if held {
		return
	}
	p.n.mu.Lock()
	delete(p.n.pipes, p)
	p.n.mu.Unlock()
}

// wait waits for a change.
// Preconditions: p.mu is held; it is given up meanwhile.
func (p *memPipe) wait() error {
	ch, deadline := p.changed, p.deadline
	p.mu.Unlock()
	defer p.mu.Lock()
	if deadline.IsZero() {
		<-ch
		return nil
	}
	t := time.NewTimer(time.Until(deadline))
	defer t.Stop()
	select {
	case <-ch:
		return nil
	case <-t.C:
		return os.ErrDeadlineExceeded
	}
}

func (p *memPipe) readv(bufs [][]byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.arrived) == 0 {
		if p.err != nil && (p.err != io.EOF || len(p.held) == 0) {
			return 0, p.err
		}
		if err := p.wait(); err != nil {
			return 0, err
		}
	}
	if p.err != nil && p.err != io.EOF {
		return 0, p.err
	}
	n := 0
	for _, b := range bufs {
		got := copy(b, p.arrived[n:])
		n += got
	}
	p.arrived = p.arrived[n:]
	if len(p.arrived) == 0 {
		p.arrived = nil
	}
	p.wake()
	return n, nil
}

func (p *memPipe) writev(bufs [][]byte, wait bool) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		if p.err != nil {
			return 0, io.ErrClosedPipe
		}
		room := memPipeBytes - len(p.arrived) - p.onWay
		if room > 0 {
			n := 0
			for _, b := range bufs {
				take := min(len(b), room-n)
				p.put(b[:take])
				n += take
			}
			return n, nil
		}
		if !wait {
			return 0, nil
		}
		if err := p.wait(); err != nil {
			return 0, err
		}
	}
}

// put adds written bytes and sends the frames on that are whole with them.
// Preconditions: p.mu is held.
func (p *memPipe) put(b []byte) {
	p.unit = append(p.unit, b...)
	for {
		n := p.unitBytes()
		if n == 0 || n > len(p.unit) {
			return
		}
		f := append([]byte(nil), p.unit[:n]...)
		p.unit = append(p.unit[:0], p.unit[n:]...)
		p.carry(f)
	}
}

// unitBytes tells how long the first unit of what is written is, 0 when that cannot be told yet.
func (p *memPipe) unitBytes() int {
	switch {
	case p.foreign:
		return len(p.unit)
	case len(p.unit) < 8:
		return 0
	case !p.shaken && string(p.unit[:8]) == helloMagic:
		return helloBytes
	case isProof(p.unit):
		if len(p.unit) < proofHeadBytes {
			return 0
		}
		n, err := proofBytes(p.unit)
		if err != nil {
			p.foreign = true
			return len(p.unit)
		}
		return n
	case binary.LittleEndian.Uint32(p.unit) != wire.HeaderMagic:
		p.foreign = true
		return len(p.unit)
	case len(p.unit) < wire.HeaderBytes:
		return 0
	}
	h, err := wire.DecodeHeader(p.unit)
	if err != nil {
		p.foreign = true
		return len(p.unit)
	}
	return wire.HeaderBytes + int(h.MetaBytes) + int(h.DataBytes)
}

// isProof tells a proof from a frame.
func isProof(unit []byte) bool { return len(unit) >= 8 && string(unit[:8]) == proofMagic }

// carry sends one unit over the link.
// Preconditions: p.mu is held.
func (p *memPipe) carry(f []byte) {
	l, cut := p.n.link(p.from, p.to)
	var h wire.Header
	if p.shaken && !p.foreign && !isProof(f) {
		h, _ = wire.DecodeHeader(f)
		if l.Drop != nil && l.Drop(h) {
			return
		}
	}
	p.shaken = true
	var delay time.Duration
	if l.Delay != nil {
		delay = l.Delay()
	}
	if delay > 0 && l.Overtake != nil && l.Overtake(h) {
		p.onWay += len(f)
		time.AfterFunc(delay, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.onWay -= len(f)
			p.arrive(f)
		})
		return
	}
	if delay == 0 && !cut && len(p.held) == 0 {
		p.arrive(f)
		return
	}
	p.onWay += len(f)
	p.held = append(p.held, memFrame{b: f, due: time.Now().Add(delay)})
	time.AfterFunc(delay, p.release)
}

// release lets arrive what is due, in order.
func (p *memPipe) release() {
	_, cut := p.n.link(p.from, p.to)
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for !cut && len(p.held) > 0 && !p.held[0].due.After(now) {
		f := p.held[0].b
		p.held = p.held[1:]
		p.onWay -= len(f)
		p.arrive(f)
	}
}

// arrive makes a unit readable.
// Preconditions: p.mu is held.
func (p *memPipe) arrive(f []byte) {
	p.arrived = append(p.arrived, f...)
	p.wake()
}
