package rpc

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/wire"
)

// keepAlive finds a TCP peer whose machine has gone silently within about 11 s.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3}

// tcpUserTimeout ends a TCP connection whose data is not acknowledged for so long.
const tcpUserTimeout = 10 * time.Second

// sockBufferBytes is what a unix socket may hold on its way: with the default of 208 KiB a frame of 1 MiB makes both sides wait
// for one another several times.
const sockBufferBytes = 1 << 20

// sockOf sets a new socket up.
func sockOf(nc net.Conn) (*sockStream, error) {
	s, err := newSockStream(nc)
	if err != nil {
		return nil, err
	}
	var serr error
	err = s.rc.Control(func(fd uintptr) {
		switch nc.(type) {
		case *net.TCPConn: // Go has set TCP_NODELAY
			serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(tcpUserTimeout.Milliseconds()))
		case *net.UnixConn:
			// The forced form needs CAP_NET_ADMIN; the plain one is cut to the system's limit. Either will do.
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sockBufferBytes) != nil {
				serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, sockBufferBytes)
			}
		}
	})
	if err == nil {
		err = serr
	}
	return s, err
}

// unix says that it is a unix socket.
func (s *sockStream) unix() bool {
	_, ok := s.nc.(*net.UnixConn)
	return ok
}

// maxSockPath is the longest path of a unix socket (sun_path less its final zero).
const maxSockPath = 107

// sockPath gives what to hand to package net for the rest of an address: a path that is too long for a unix socket is reached by
// the descriptor of its folder. free closes that, after the socket is made.
func sockPath(scheme, rest string) (path string, free func(), err error) {
	if scheme != schemeUnix || len(rest) <= maxSockPath {
		return rest, func() {}, nil
	}
	dir, err := os.Open(filepath.Dir(rest))
	if err != nil {
		return "", nil, err
	}
	path = fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(rest))
	if len(path) > maxSockPath {
		_ = dir.Close()
		return "", nil, wire.Errorf("rpc.address", wire.KindInvalid, rest, "the name of the socket is too long")
	}
	return path, func() { _ = dir.Close() }, nil
}
