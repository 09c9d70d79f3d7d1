package rpc

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/identity"
)

// tlsStream is TLS 1.3 over another stream. Both sides show the certificate of their identity; that they are whom they say, and that nobody
// sits in between, the proofs inside tell, which sign the channel binding.
type tlsStream struct {
	under *tlsPipe
	conn  *tls.Conn

	// owned by the writing goroutine
	plain []byte // small parts on their way into one record
	owed  int    // bytes of the parts that are encrypted and wait in under: they are told as written when they are
}

// tlsOver shakes hands of TLS on a new stream. It waits no longer than the deadline that the stream has, or ctx.
func tlsOver(ctx context.Context, s stream, o *Options, dialled bool) (stream, error) {
	const op = "rpc.tls"
	if o.Identity == nil {
		return nil, wire.Errorf(op, wire.KindInvalid, s.name(), "encryption needs an identity")
	}
	cfg := tlsConfig(o.Identity)
	t := &tlsStream{under: &tlsPipe{s: s, in: make([]byte, 0, tlsReadBytes)}, plain: make([]byte, 0, tlsRecordBytes)}
	if dialled {
		t.conn = tls.Client(t.under, cfg)
	} else {
		t.conn = tls.Server(t.under, cfg)
	}
	err := t.conn.HandshakeContext(ctx)
	if err == nil {
		t.under.hold()
		return t, nil
	}
	var plain tls.RecordHeaderError
	switch kind := wire.KindOf(err); {
	case errors.As(err, &plain):
		if !dialled && bytes.HasPrefix([]byte(helloMagic), plain.RecordHeader[:]) {
			refusePlain(s, o)
		}
		return nil, wire.Errorf(op, wire.KindAuthentication, s.name(), "the peer does not encrypt: start both with encryption of the wire or both without: %w", err)
	case kind == wire.KindAuthentication:
		return nil, wire.E(op, kind, s.name(), err)
	}
	return nil, wire.Errorf(op, wire.KindConnLost, s.name(), "the peer refused or left during the handshake of TLS; perhaps it does not encrypt: %w", err)
}

// refusePlain tells a peer that does not encrypt, in a way that it understands, that it must.
func refusePlain(s stream, o *Options) {
	h := ownHello(o)
	h.status = wire.KindAuthentication
	_ = writeFull(s, h.encode()) // it is a courtesy
}

func tlsConfig(id *identity.Identity) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{id.TLS()},
		// Names of machines mean nothing here: whom a certificate must name is known from the hello, which comes later.
		InsecureSkipVerify: true, ClientAuth: tls.RequireAnyClientCert,
		VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
			if len(raw) != 1 {
				return wire.Errorf("rpc.tls", wire.KindAuthentication, "", "%d certificates, want 1", len(raw))
			}
			_, err := id.Verify(raw[0])
			return err
		},
		SessionTicketsDisabled: true, // a connection lives long; so each is verified
		// A frame is one system call whatever the size of its records, so small records at the start gain nothing.
		DynamicRecordSizingDisabled: true,
	}
}

// binding gives the channel binding of RFC 9266 (tls-exporter).
func (t *tlsStream) binding() ([]byte, error) {
	cs := t.conn.ConnectionState()
	b, err := cs.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
	if err != nil {
		return nil, wire.E("rpc.tls", wire.KindAuthentication, t.name(), err)
	}
	return b, nil
}

func (t *tlsStream) name() string { return t.under.s.name() }

func (t *tlsStream) setDeadline(d time.Time) error { return t.under.s.setDeadline(d) }

// close does not say goodbye within TLS: frames tell by themselves whether they are whole.
func (t *tlsStream) close() error { return t.under.s.close() }

// readv fills the first part: package tls gives one record at a time.
func (t *tlsStream) readv(bufs [][]byte) (int, error) {
	for len(bufs) > 0 && len(bufs[0]) == 0 {
		bufs = bufs[1:]
	}
	if len(bufs) == 0 {
		return 0, nil
	}
	n, err := t.conn.Read(bufs[0])
	if n > 0 {
		return n, nil
	}
	var remote *net.OpError
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		err = io.EOF // see close
	case errors.As(err, &remote) && remote.Op == "remote error": // an alert; the first that comes tells what the peer thinks of our certificate
		err = wire.E("rpc.tls", wire.KindAuthentication, t.name(), fmt.Errorf("the peer refuses this process: %w", err))
	}
	return 0, err
}

// writev encrypts at most tlsWriteBytes and writes that. What is encrypted cannot be taken back; so when not all of it fits, it says
// that nothing did, keeps it, and goes on with it when it is asked to write the same parts again, as every caller of a stream does.
func (t *tlsStream) writev(bufs [][]byte, wait bool) (int, error) {
	if t.owed == 0 {
		n, err := t.encrypt(bufs)
		if err != nil {
			return 0, err
		}
		t.owed = n
	}
	done, err := t.under.flush(wait)
	if err != nil || !done {
		return 0, err
	}
	n := t.owed
	t.owed = 0
	return n, nil
}

// encrypt takes parts, up to the bound. Small ones share a record.
func (t *tlsStream) encrypt(bufs [][]byte) (n int, err error) {
	for _, b := range bufs {
		if n+len(b) > tlsWriteBytes {
			b = b[:tlsWriteBytes-n]
		}
		n += len(b)
		if len(t.plain)+len(b) <= tlsRecordBytes {
			t.plain = append(t.plain, b...)
			continue
		}
		if err := t.seal(); err != nil {
			return 0, err
		}
		if _, err := t.conn.Write(b); err != nil {
			return 0, err
		}
	}
	return n, t.seal()
}

// seal encrypts the small parts that have come together.
func (t *tlsStream) seal() error {
	if len(t.plain) == 0 {
		return nil
	}
	_, err := t.conn.Write(t.plain)
	t.plain = t.plain[:0]
	return err
}

// tlsPipe is the stream below as package tls wants it. During the handshake writes wait for the stream; after hold they only fill a
// buffer, which flush writes: a write that package tls gives up half way would end its connection.
type tlsPipe struct {
	s stream

	// owned by the reading goroutine
	in    []byte // read and not used yet: in[at:]
	at    int
	parts [1][]byte

	mu   sync.Mutex // package tls may write an alert or an update of its keys while it reads
	held bool
	out  []byte // encrypted; bounded by tlsWriteBytes with the heads of its records, and the little that package tls writes of its own

	flushing []byte    // being written; owned by the writing goroutine
	spare    []byte    // memory for out
	vec      [1][]byte // of the writing goroutine
}

func (p *tlsPipe) hold() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = true
}

// Read implements net.Conn. It reads ahead as much as fits, so that several records cost one system call.
func (p *tlsPipe) Read(b []byte) (int, error) {
	if p.at == len(p.in) {
		p.in = p.in[:cap(p.in)]
		p.parts[0] = p.in
		n, err := p.s.readv(p.parts[:])
		p.at, p.in = 0, p.in[:n]
		if err != nil {
			return 0, err
		}
	}
	n := copy(b, p.in[p.at:])
	p.at += n
	return n, nil
}

// Write implements net.Conn.
func (p *tlsPipe) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held {
		if len(p.out)+len(b) > tlsHeldBytes {
			return 0, errors.New("more is to be written than was asked for") // a peer that makes package tls write on its own without end
		}
		p.out = append(p.out, b...)
		return len(b), nil
	}
	return len(b), writeFull(p.s, b)
}

// flush writes what is held. Without wait it may leave some: not done.
func (p *tlsPipe) flush(wait bool) (done bool, err error) {
	for {
		if len(p.flushing) == 0 {
			p.mu.Lock()
			p.flushing, p.out, p.spare = p.out, p.spare[:0], p.out
			p.mu.Unlock()
			if len(p.flushing) == 0 {
				return true, nil
			}
		}
		p.vec[0] = p.flushing
		n, err := p.s.writev(p.vec[:], wait)
		if err != nil {
			return false, err
		}
		if n == 0 && !wait {
			return false, nil
		}
		p.flushing = p.flushing[n:]
	}
}

// Close implements net.Conn.
func (p *tlsPipe) Close() error { return p.s.close() }

// LocalAddr implements net.Conn; nobody asks.
func (p *tlsPipe) LocalAddr() net.Addr { return streamAddr(p.s.name()) }

// RemoteAddr implements net.Conn.
func (p *tlsPipe) RemoteAddr() net.Addr { return streamAddr(p.s.name()) }

// SetDeadline implements net.Conn.
func (p *tlsPipe) SetDeadline(t time.Time) error { return p.s.setDeadline(t) }

// SetReadDeadline implements net.Conn; package tls calls it only where the stream has no other.
func (p *tlsPipe) SetReadDeadline(time.Time) error { return os.ErrNoDeadline }

// SetWriteDeadline implements net.Conn.
func (p *tlsPipe) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }

// streamAddr is the name of a stream as an address.
type streamAddr string

// Network implements net.Addr.
func (streamAddr) Network() string { return "crake" }

// String implements net.Addr.
func (a streamAddr) String() string { return string(a) }
