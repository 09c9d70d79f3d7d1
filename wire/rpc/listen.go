package rpc

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/crakefs/crake/wire"
)

// acceptor gives new streams; closing it ends accept with net.ErrClosed.
type acceptor interface {
	accept() (stream, error)
	close() error
	addr() string
}

// Listener accepts connections.
type Listener struct {
	o Options
	a acceptor

	mu     sync.Mutex
	shakes []stream // connections that have not shaken hands, oldest first
	conns  map[*Conn]struct{}
	closed bool
}

// Listen starts to listen; a stale unix socket file of a dead process is replaced, a live one gives an error.
func Listen(addr string, o Options) (*Listener, error) {
	const op = "rpc.listen"
	scheme, rest, err := splitAddr(addr)
	if err != nil {
		return nil, err
	}
	var a acceptor
	switch {
	case scheme != schemeMem:
		a, err = listenSock(scheme, rest)
	case o.Net == nil:
		err = wire.Errorf(op, wire.KindInvalid, addr, "no Options.Net")
	default:
		a, err = o.Net.listen(rest)
	}
	if err != nil {
		kind := wire.KindOf(err)
		if errors.Is(err, syscall.EADDRINUSE) {
			kind = wire.KindExists
		}
		return nil, wire.E(op, kind, addr, err)
	}
	return &Listener{o: o, a: a, conns: map[*Conn]struct{}{}}, nil
}

// Addr gives the address, with the real port when 0 was asked for.
func (l *Listener) Addr() string { return l.a.addr() }

// Close ends a listener that is not served.
func (l *Listener) Close() error { return l.a.close() }

// Serve accepts and answers until ctx ends, then closes all connections and waits for their handlers. It returns nil when ctx
// ended it.
func (l *Listener) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = l.a.close() })
	defer stop()
	var wg sync.WaitGroup
	err := l.acceptAll(ctx, &wg)
	_ = l.a.close()
	l.mu.Lock()
	l.closed = true
	for _, s := range l.shakes {
		_ = s.close()
	}
	var conns []*Conn
	for c := range l.conns {
		conns = append(conns, c)
	}
	l.mu.Unlock()
	for _, c := range conns {
		c.fail(wire.Errorf("rpc.serve", wire.KindConnLost, l.Addr(), "the listener has ended"))
	}
	wg.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// acceptAll accepts until the acceptor is closed.
func (l *Listener) acceptAll(ctx context.Context, wg *sync.WaitGroup) error {
	for {
		s, err := l.a.accept()
		switch {
		case err == nil:
		case errors.Is(err, net.ErrClosed):
			return wire.E("rpc.serve", wire.KindShutdown, l.Addr(), err)
		default:
			// Out of descriptors, or the peer went away at once: neither ends the listener.
			l.o.logger().Warn("accept failed", "addr", l.Addr(), "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		if l.admit(s) {
			wg.Go(func() { l.serve(ctx, s) })
		}
	}
}

// admit puts a new stream on the books, or refuses it.
func (l *Listener) admit(s stream) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		_ = s.close()
		return false
	}
	if len(l.shakes) >= maxHandshakes {
		_ = l.shakes[0].close() // its goroutine takes it off
		l.shakes = l.shakes[1:]
	}
	l.shakes = append(l.shakes, s)
	return true
}

// shaken takes a stream off the books of handshakes and says whether there is room for its connection.
func (l *Listener) shaken(s stream) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, x := range l.shakes {
		if x == s {
			l.shakes = append(l.shakes[:i:i], l.shakes[i+1:]...)
			break
		}
	}
	return !l.closed
}

// serve shakes hands on a stream and lives as long as its connection.
func (l *Listener) serve(ctx context.Context, s stream) {
	inner := s
	_ = s.setDeadline(time.Now().Add(handshakeTimeout))
	var own, peer *hello
	var version uint16
	var err error
	if l.o.TLS && strings.HasPrefix(l.Addr(), schemeTCP+":") {
		s, err = tlsOver(ctx, inner, &l.o, false)
	}
	if err == nil {
		own, peer, version, err = greet(ctx, s, &l.o, false, l.full)
	}
	if err == nil {
		err = openChannel(s, own, peer, false)
	}
	ok := l.shaken(inner)
	if err != nil || !ok {
		_ = inner.close()
		closeChannel(inner)
		if ok {
			l.o.logger().Warn("handshake failed", "addr", l.Addr(), "peer", inner.name(), "err", err)
		}
		return
	}
	_ = s.setDeadline(time.Time{})
	if peer.self.Role != wire.RoleNone {
		s = &namedStream{stream: s, who: peer.self.who() + " at " + l.Addr()}
	}
	c := newConn(s, l.o, own, peer, version)
	l.mu.Lock()
	l.conns[c] = struct{}{}
	closed := l.closed
	l.mu.Unlock()
	if closed {
		_ = c.Close()
	}
	c.readmit(ctx)
	<-c.finished
	l.mu.Lock()
	delete(l.conns, c)
	l.mu.Unlock()
}

// full says that there is no room for a further connection.
func (l *Listener) full() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.conns) >= maxConns {
		return wire.Errorf("rpc.handshake", wire.KindOverLimit, l.Addr(), "%d connections, no more are taken", len(l.conns))
	}
	return nil
}

// namedStream is a stream whose other end has said who it is.
type namedStream struct {
	stream
	who string
}

func (n *namedStream) name() string { return n.who }

// sockAcceptor listens on a socket.
type sockAcceptor struct {
	l    net.Listener
	text string
	path string      // of a unix socket, or empty
	info os.FileInfo // of that file when it was made: only that one is removed
	once sync.Once
}

func listenSock(scheme, rest string) (*sockAcceptor, error) {
	if scheme == schemeTCP {
		lc := net.ListenConfig{KeepAliveConfig: keepAlive}
		l, err := lc.Listen(context.Background(), "tcp", rest)
		if err != nil {
			return nil, err
		}
		return &sockAcceptor{l: l, text: "tcp:" + l.Addr().String()}, nil
	}
	path, free, err := sockPath(scheme, rest)
	if err != nil {
		return nil, err
	}
	defer free()
	if err := clearStale(path); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil { // for the user of the process alone, whatever its umask
		_ = l.Close()
		return nil, err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // the path may be by descriptor, or a successor's by then
	a := &sockAcceptor{l: l, text: "unix:" + rest, path: rest}
	if a.info, err = os.Lstat(rest); err != nil {
		_ = l.Close()
		return nil, err
	}
	return a, nil
}

// clearStale removes a socket file on which nobody listens.
func clearStale(path string) error {
	fi, err := os.Lstat(path)
	if err != nil {
		return nil // there is none
	}
	if fi.Mode()&os.ModeSocket == 0 {
		return wire.Errorf("rpc.listen", wire.KindExists, path, "there is a file of that name which is no socket")
	}
	c, err := net.Dial("unix", path)
	switch {
	case err == nil:
		_ = c.Close()
		return wire.Errorf("rpc.listen", wire.KindExists, path, "another process listens there")
	case errors.Is(err, syscall.ECONNREFUSED):
		return os.Remove(path)
	}
	return err
}

func (a *sockAcceptor) accept() (stream, error) {
	nc, err := a.l.Accept()
	if err != nil {
		return nil, err
	}
	s, err := sockOf(nc)
	if err != nil {
		_ = nc.Close()
		return nil, err
	}
	return s, nil
}

func (a *sockAcceptor) addr() string { return a.text }

func (a *sockAcceptor) close() error {
	err := a.l.Close()
	a.once.Do(func() {
		if a.path == "" {
			return
		}
		if fi, serr := os.Lstat(a.path); serr == nil && os.SameFile(fi, a.info) {
			_ = os.Remove(a.path)
		}
	})
	return err
}
