package rpc

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"

	"github.com/cespare/xxhash/v2"

	"github.com/crakefs/crake/wire"
)

// Protocol versions that this software speaks. Each number says what it changed; numbers are never reused.
const (
	// version1 is the first: frames as in wire.Header, windows fixed by the handshake.
	version1 = 1

	minVersion = version1
	maxVersion = version1
)

// helloBytes is the length of a hello. Its layout is frozen for ever (see PROTOCOL.md), little-endian:
//
//	  0 magic 8 bytes "CRAKEHLO"       8 status u16 (a wire.Kind)   10 role u8   11 zero u8
//	 12 process id u32                16 cluster id 16 bytes
//	 32 lowest version u16            34 highest version u16        36 window: requests u32
//	 40 window: request data bytes u64                              48 feature bits u64
//	 56 nonce 16 bytes                72 software version 48 bytes, zero padded
//	120 xxhash64 of bytes 0 to 119
const (
	helloBytes        = 128
	helloMagic        = "CRAKEHLO"
	helloVersionBytes = 48
)

// hello is what each side says first.
type hello struct {
	status     wire.Kind // KindNone, or why the sender refuses and closes
	self       Self
	lowest     uint16
	highest    uint16
	windowReqs uint32 // requests that the sender of the hello takes unanswered
	windowData uint64 // bytes of request data that it takes unanswered
	features   uint64
	nonce      [16]byte

	// what is known beside, and not in the bytes of a hello that is sent

	raw string       // the bytes as they were sent or received; what proofs sign
	key wire.ProcKey // of a peer that has proved who it is
}

func (h *hello) encode() []byte {
	b := make([]byte, helloBytes)
	le := binary.LittleEndian
	copy(b, helloMagic)
	le.PutUint16(b[8:], uint16(h.status))
	b[10] = byte(h.self.Role)
	le.PutUint32(b[12:], uint32(h.self.Proc))
	copy(b[16:32], h.self.Cluster[:])
	le.PutUint16(b[32:], h.lowest)
	le.PutUint16(b[34:], h.highest)
	le.PutUint32(b[36:], h.windowReqs)
	le.PutUint64(b[40:], h.windowData)
	le.PutUint64(b[48:], h.features)
	copy(b[56:72], h.nonce[:])
	copy(b[72:72+helloVersionBytes], h.self.Version)
	sumHello(b)
	return b
}

// sumHello fills the checksum of an encoded hello in.
func sumHello(b []byte) { binary.LittleEndian.PutUint64(b[120:], xxhash.Sum64(b[:120])) }

// decodeHello reads a hello; an error has KindBadFrame, or KindAuthentication when it is TLS.
func decodeHello(b []byte) (hello, error) {
	const op = "rpc.handshake"
	le := binary.LittleEndian
	if len(b) != helloBytes {
		return hello{}, wire.Errorf(op, wire.KindBadFrame, "", "%d bytes, want %d", len(b), helloBytes)
	}
	if b[0] == 0x16 && b[1] == 3 { // a record of TLS that holds a part of a handshake
		return hello{}, wire.Errorf(op, wire.KindAuthentication, "", "the peer encrypts, this side does not: start both with encryption of the wire or both without")
	}
	if string(b[:8]) != helloMagic {
		return hello{}, wire.Errorf(op, wire.KindBadFrame, "", "the peer does not speak this protocol: it began with %q", b[:8])
	}
	if got, want := le.Uint64(b[120:]), xxhash.Sum64(b[:120]); got != want {
		return hello{}, wire.Errorf(op, wire.KindBadFrame, "", "checksum %#x, want %#x", got, want)
	}
	h := hello{
		status: wire.Kind(le.Uint16(b[8:])),
		self:   Self{Role: wire.Role(b[10]), Proc: wire.ProcID(le.Uint32(b[12:]))},
		lowest: le.Uint16(b[32:]), highest: le.Uint16(b[34:]),
		windowReqs: le.Uint32(b[36:]), windowData: le.Uint64(b[40:]), features: le.Uint64(b[48:]),
	}
	copy(h.self.Cluster[:], b[16:])
	copy(h.nonce[:], b[56:])
	v := b[72 : 72+helloVersionBytes]
	if i := bytes.IndexByte(v, 0); i >= 0 {
		v = v[:i]
	}
	h.self.Version = string(bytes.ToValidUTF8(v, []byte("?")))
	return h, nil
}

// judge decides from both hellos whether a connection may be: the version to speak, or why not. Both sides reach the
// same verdict on versions; on clusters each judges by its own rule.
func judge(own, peer *hello, anyCluster, dialled bool) (version uint16, err error) {
	const op = "rpc.handshake"
	who := peer.self.who()
	version = min(own.highest, peer.highest)
	if version < max(own.lowest, peer.lowest) {
		return 0, wire.Errorf(op, wire.KindVersion, who,
			"no common protocol version: this is %s %s, which speaks %d to %d; the peer is %s %s, which speaks %d to %d",
			own.self.Role, printable(own.self.Version), own.lowest, own.highest,
			peer.self.Role, printable(peer.self.Version), peer.lowest, peer.highest)
	}
	var none wire.ClusterID
	switch {
	case own.self.Cluster == peer.self.Cluster && own.self.Cluster != none:
	case peer.self.Cluster == none && anyCluster:
	case own.self.Cluster == none && dialled: // a tool asks whom it was told to
	default:
		return 0, wire.Errorf(op, wire.KindRefused, who, "other cluster: this process is of %s, the peer of %s",
			clusterName(own.self.Cluster), clusterName(peer.self.Cluster))
	}
	if peer.windowReqs == 0 {
		return 0, wire.Errorf(op, wire.KindBadFrame, who, "the peer takes no requests at all")
	}
	return version, nil
}

func printable(v string) string {
	if v == "" {
		return "(no version)"
	}
	return v
}

func clusterName(c wire.ClusterID) string {
	if c == (wire.ClusterID{}) {
		return "none"
	}
	return c.String()
}

func ownHello(o *Options) *hello {
	h := &hello{self: o.Self, lowest: minVersion, highest: maxVersion, windowReqs: maxQueued, windowData: minWindowBytes}
	if o.Arena != nil {
		h.windowData = uint64(min(max(o.Arena.Size()/8, minWindowBytes), maxWindowBytes))
	}
	if o.Identity != nil {
		h.features |= featureProof
	}
	_, _ = rand.Read(h.nonce[:]) // never fails since Go 1.24
	return h
}

// shake exchanges hellos: the dialling side speaks first. A refusal is told to the peer in a hello with a status. The
// listening side asks room last.
func shake(s stream, o *Options, dialled bool, room func() error) (own, peer *hello, version uint16, err error) {
	own = ownHello(o)
	own.features |= shmFeature(s, o)
	own.raw = string(own.encode())
	if dialled {
		if err := writeFull(s, []byte(own.raw)); err != nil {
			return nil, nil, 0, wire.E("rpc.handshake", wire.KindConnLost, s.name(), err)
		}
	}
	b := make([]byte, helloBytes)
	if err := readFull(s, b); err != nil {
		kind := wire.KindConnLost
		if errors.Is(err, wire.KindAuthentication) { // by TLS
			kind = wire.KindAuthentication
		}
		return nil, nil, 0, wire.E("rpc.handshake", kind, s.name(), err)
	}
	p, err := decodeHello(b)
	if err != nil {
		return nil, nil, 0, err
	}
	p.raw = string(b)
	version, err = judge(own, &p, o.AnyCluster, dialled)
	if err == nil && p.status == wire.KindNone {
		_, err = mustProve(own, &p, o, dialled)
	}
	if err == nil && room != nil {
		err = room()
	}
	if err != nil {
		own.status = wire.KindOf(err)
		own.raw = string(own.encode())
	}
	if !dialled {
		if werr := writeFull(s, []byte(own.raw)); werr != nil && err == nil {
			err = wire.E("rpc.handshake", wire.KindConnLost, s.name(), werr)
		}
	}
	if err == nil && p.status != wire.KindNone {
		err = wire.Errorf("rpc.handshake", p.status, p.self.who(), "refused by the peer at %s", s.name())
	}
	return own, &p, version, err
}

func readFull(s stream, b []byte) error {
	for len(b) > 0 {
		n, err := s.readv([][]byte{b})
		if n == 0 && err == nil {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func writeFull(s stream, b []byte) error {
	for len(b) > 0 {
		n, err := s.writev([][]byte{b}, true)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}
