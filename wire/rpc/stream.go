package rpc

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stream is an ordered, reliable flow of bytes both ways: a socket, or a pipe of Mem. One goroutine at a time reads and one
// writes.
type stream interface {
	// readv waits for bytes and fills bufs in order with what is there, as much as one system call gives. The end of the
	// stream is io.EOF.
	readv(bufs [][]byte) (int, error)
	// writev takes bytes of bufs in order, as much as fits. With wait it waits until at least one byte fits; without, 0
	// says that none does.
	writev(bufs [][]byte, wait bool) (int, error)
	// setDeadline ends waits at t with an error; the zero time is never.
	setDeadline(t time.Time) error
	// close ends all waits.
	close() error
	// name tells the other end, for people.
	name() string
}

// sockStream is a unix or TCP socket.
type sockStream struct {
	nc   net.Conn
	rc   syscall.RawConn
	peer string
	ch   *channel // that of the connection, once it is made; nil: it has none

	// owned by the reading goroutine; rfn is made once, so that a read allocates nothing
	riov []unix.Iovec
	rn   int
	rerr syscall.Errno
	rfn  func(fd uintptr) bool

	// owned by the writing goroutine
	wiov  []unix.Iovec
	wn    int
	werr  syscall.Errno
	wwait bool
	wfn   func(fd uintptr) bool
}

func newSockStream(nc net.Conn) (*sockStream, error) {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return nil, errors.New("no socket")
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &sockStream{nc: nc, rc: rc, peer: nc.RemoteAddr().String()}
	s.rfn = func(fd uintptr) bool {
		s.rn, s.rerr = vecCall(unix.SYS_READV, unix.SYS_READ, fd, s.riov)
		return s.rerr != unix.EAGAIN
	}
	s.wfn = func(fd uintptr) bool {
		s.wn, s.werr = vecCall(unix.SYS_WRITEV, unix.SYS_WRITE, fd, s.wiov)
		return s.werr != unix.EAGAIN || !s.wwait
	}
	return s, nil
}

func (s *sockStream) name() string { return s.peer }

func (s *sockStream) readv(bufs [][]byte) (int, error) {
	s.riov = setIovecs(s.riov, bufs)
	err := s.rc.Read(s.rfn)
	clear(s.riov)
	switch {
	case err != nil:
		return 0, err
	case s.rerr != 0:
		return 0, os.NewSyscallError("readv", s.rerr)
	case s.rn == 0:
		return 0, io.EOF
	}
	return s.rn, nil
}

func (s *sockStream) writev(bufs [][]byte, wait bool) (int, error) {
	s.wiov, s.wwait = setIovecs(s.wiov, bufs[:min(len(bufs), batchParts)]), wait
	err := s.rc.Write(s.wfn)
	clear(s.wiov)
	switch {
	case err != nil:
		return 0, err
	case s.werr == unix.EAGAIN:
		return 0, nil
	case s.werr != 0:
		return 0, os.NewSyscallError("writev", s.werr)
	}
	return s.wn, nil
}

func (s *sockStream) setDeadline(t time.Time) error { return s.nc.SetDeadline(t) }

func (s *sockStream) close() error { return s.nc.Close() }
