package rpc

import (
	"context"
	"errors"
	"net"
	"strings"
	"time"

	"github.com/crakefs/crake/wire"
)

// Schemes of addresses.
const (
	schemeUnix = "unix"
	schemeTCP  = "tcp"
	schemeMem  = "mem"
)

// splitAddr takes an address apart; an error has KindInvalid.
func splitAddr(addr string) (scheme, rest string, err error) {
	scheme, rest, ok := strings.Cut(addr, ":")
	if !ok || rest == "" || (scheme != schemeUnix && scheme != schemeTCP && scheme != schemeMem) {
		return "", "", wire.Errorf("rpc.address", wire.KindInvalid, addr, `want "unix:/path", "tcp:host:port" or "mem:name"`)
	}
	return scheme, rest, nil
}

// Dial connects to an address: "unix:/path", "tcp:host:port" or "mem:name" (see Mem). Errors: KindInvalid for a bad address,
// KindUnavailable when nobody answers there, KindVersion, KindRefused (other cluster), KindOverLimit (the peer has too many
// connections), KindAuthentication (one side cannot prove who it is), KindBadFrame (it is no Crake process), KindTimeout, KindInterrupted,
// and what Options.Admit of either side says.
func Dial(ctx context.Context, addr string, o Options) (*Conn, error) {
	const op = "rpc.dial"
	if o.DialTimeout == 0 {
		o.DialTimeout = defaultDialTimeout
	}
	dctx, cancel := context.WithTimeout(ctx, o.DialTimeout)
	defer cancel()
	s, err := dialStream(dctx, addr, &o)
	if err != nil {
		if wire.KindOf(err) == wire.KindInvalid {
			return nil, err
		}
		return nil, wire.E(op, wire.KindUnavailable, addr, err)
	}
	c, err := dialled(dctx, s, addr, o)
	if err != nil {
		_ = s.close()
		if ctx.Err() != nil {
			err = ctxError(ctx.Err(), addr)
		}
		return nil, wire.E(op, wire.KindOf(err), addr, err)
	}
	return c, nil
}

// dialled shakes hands on a new stream.
func dialled(ctx context.Context, s stream, addr string, o Options) (*Conn, error) {
	_ = s.setDeadline(time.Now().Add(handshakeTimeout))
	stop := context.AfterFunc(ctx, func() { _ = s.setDeadline(time.Unix(1, 0)) })
	inner := s
	var own, peer *hello
	var version uint16
	var err error
	if o.TLS && strings.HasPrefix(addr, schemeTCP+":") {
		s, err = tlsOver(ctx, inner, &o, true)
	}
	if err == nil {
		own, peer, version, err = greet(ctx, s, &o, true, nil)
	}
	if err == nil {
		err = openChannel(s, own, peer, true)
	}
	if !stop() {
		closeChannel(s)
		return nil, wire.E("rpc.handshake", wire.KindTimeout, inner.name(), errors.Join(ctx.Err(), err))
	}
	if err != nil {
		return nil, err
	}
	_ = s.setDeadline(time.Time{})
	return newConn(s, o, own, peer, version), nil
}

func dialStream(ctx context.Context, addr string, o *Options) (stream, error) {
	scheme, rest, err := splitAddr(addr)
	if err != nil {
		return nil, err
	}
	if scheme == schemeMem {
		if o.Net == nil {
			return nil, wire.Errorf("rpc.dial", wire.KindInvalid, addr, "no Options.Net")
		}
		return o.Net.dial(ctx, rest)
	}
	var d net.Dialer
	d.KeepAliveConfig = keepAlive
	path, free, err := sockPath(scheme, rest)
	if err != nil {
		return nil, err
	}
	defer free()
	nc, err := d.DialContext(ctx, scheme, path)
	if err != nil {
		return nil, err
	}
	s, err := sockOf(nc)
	if err != nil {
		_ = nc.Close()
		return nil, err
	}
	s.peer = addr
	return s, nil
}
