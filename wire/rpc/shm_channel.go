package rpc

import (
	"encoding/binary"
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/wire"
)

// packetBytes is the length of a packet on the descriptor channel, little-endian:
//
//	 0 magic u32 "CRKM"   4 kind u32   8 arena index u32   12 zero u32
//	16 size u64 (of an offer: the arena's bytes)           24 zero u64
//
// An offer carries two descriptors, the memory and the life, in this order; the others none.
const (
	packetBytes = 32
	packetMagic = 0x4d4b5243
	packetFds   = 2
)

// Kinds of packets.
const (
	packetOffer   = 1 // here is memory, called by this index of the sender's
	packetTaken   = 2 // answer: mapped, references to it may come
	packetRefused = 3 // answer: not mapped
	packetDrop    = 4 // the sender has no use for this memory any more: no reference to it is under way, or out
)

type packet struct {
	kind  uint32
	index uint32
	size  uint64
}

func (p packet) encode() []byte {
	b := make([]byte, packetBytes)
	le := binary.LittleEndian
	le.PutUint32(b, packetMagic)
	le.PutUint32(b[4:], p.kind)
	le.PutUint32(b[8:], p.index)
	le.PutUint64(b[16:], p.size)
	return b
}

// decodePacket reads a packet; an error has KindBadFrame.
func decodePacket(b []byte) (packet, error) {
	le := binary.LittleEndian
	if len(b) != packetBytes || le.Uint32(b) != packetMagic {
		return packet{}, wire.Errorf("rpc.channel", wire.KindBadFrame, "", "%d bytes that are no packet", len(b))
	}
	return packet{kind: le.Uint32(b[4:]), index: le.Uint32(b[8:]), size: le.Uint64(b[16:])}, nil
}

// channel is one end of a descriptor channel: a SOCK_SEQPACKET socket. Its methods are safe for concurrent use, receive by one goroutine.
// No call waits in the kernel: the peer may hold a copy of this end, and clear its O_NONBLOCK.
type channel struct {
	f  *os.File
	rc syscall.RawConn
}

// openChannel makes the channel of a stream whose hellos were exchanged, if both sides want one: the dialler makes it and sends one
// end of it. The deadline of the stream bounds it.
func openChannel(s stream, own, peer *hello, dialled bool) error {
	if own.features&peer.features&featureShm == 0 {
		return nil
	}
	k := s.(*sockStream) // that it is a unix socket stands in own.features
	nc := k.nc.(*net.UnixConn)
	var err error
	if dialled {
		k.ch, err = makeChannel(nc)
	} else {
		k.ch, err = takeChannel(nc)
	}
	if err != nil {
		return wire.E("rpc.handshake", wire.KindOf(err), s.name(), err)
	}
	return nil
}

// makeChannel makes a channel and sends its other end, with one byte.
func makeChannel(nc *net.UnixConn) (*channel, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	defer func() { _ = unix.Close(pair[1]) }()
	ch, err := newChannel(pair[0])
	if err != nil {
		return nil, err
	}
	rc, err := nc.SyscallConn()
	if err != nil {
		return nil, err
	}
	var serr error
	err = rc.Write(func(fd uintptr) bool {
		serr = unix.Sendmsg(int(fd), []byte{1}, unix.UnixRights(pair[1]), nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		return serr != unix.EAGAIN
	})
	if err == nil {
		err = os.NewSyscallError("sendmsg", serr)
	}
	if err != nil {
		ch.close()
		return nil, err
	}
	return ch, nil
}

// takeChannel receives the end of a channel that the dialler has made.
func takeChannel(nc *net.UnixConn) (*channel, error) {
	rc, err := nc.SyscallConn()
	if err != nil {
		return nil, err
	}
	one := make([]byte, 1)
	n, fds, err := receiveFds(rc, one)
	switch {
	case err != nil:
	case n == 0:
		err = io.ErrUnexpectedEOF
	case len(fds) != 1:
		err = wire.Errorf("rpc.handshake", wire.KindBadFrame, "", "%d descriptors instead of that of a channel", len(fds))
	default:
		kind, kerr := unix.GetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_TYPE)
		family, ferr := unix.GetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_DOMAIN)
		if kerr == nil && ferr == nil && kind == unix.SOCK_SEQPACKET && family == unix.AF_UNIX {
			return newChannel(fds[0])
		}
		err = wire.Errorf("rpc.handshake", wire.KindBadFrame, "", "the descriptor is no channel: socket type %d, family %d", kind, family)
	}
	closeForeign(fds)
	return nil, err
}

// newChannel owns fd.
func newChannel(fd int) (*channel, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	f := os.NewFile(uintptr(fd), "channel")
	rc, err := f.SyscallConn()
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &channel{f: f, rc: rc}, nil
}

// send sends a packet and copies of fds. It does not wait: a peer that has left so many packets unread that there is no room is broken.
func (ch *channel) send(p packet, fds ...int) error {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	var serr error
	err := ch.rc.Control(func(fd uintptr) {
		serr = unix.Sendmsg(int(fd), p.encode(), oob, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	})
	if err != nil {
		return err
	}
	return os.NewSyscallError("sendmsg", serr)
}

// receive waits for a packet. The caller owns the descriptors that came with it: none if there were
// more than packetFds.
func (ch *channel) receive() (packet, []int, error) {
	b := make([]byte, packetBytes+1) // one more shows a longer packet
	n, fds, err := receiveFds(ch.rc, b)
	if err == nil && n == 0 {
		err = io.EOF
	}
	var p packet
	if err == nil {
		p, err = decodePacket(b[:n])
	}
	if err != nil {
		closeForeign(fds)
		return packet{}, nil, err
	}
	return p, fds, nil
}

func (ch *channel) close() { _ = ch.f.Close() }

// receiveFds waits for bytes, or a packet, and up to packetFds descriptors with them; if there were more, there are none.
func receiveFds(rc syscall.RawConn, b []byte) (n int, fds []int, err error) {
	oob := make([]byte, unix.CmsgSpace(packetFds*4))
	var oobn, flags int
	var rerr error
	err = rc.Read(func(fd uintptr) bool {
		n, oobn, flags, _, rerr = unix.Recvmsg(int(fd), b, oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
		return rerr != unix.EAGAIN && rerr != unix.EINTR
	})
	if err != nil {
		return 0, nil, err
	}
	if rerr != nil {
		return 0, nil, os.NewSyscallError("recvmsg", rerr)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return 0, nil, err
	}
	for i := range messages {
		if got, err := unix.ParseUnixRights(&messages[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	if flags&unix.MSG_CTRUNC != 0 { // more were sent, or this process has as many as it may: none is as good as some
		closeForeign(fds)
		fds = nil
	}
	return n, fds, nil
}

// closeForeign closes descriptors of a peer of which nothing is known. Not in the calling goroutine: closing a file of a filesystem
// that the peer plays itself may never end.
func closeForeign(fds []int) {
	if len(fds) == 0 {
		return
	}
	go func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}()
}
