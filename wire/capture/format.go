package capture

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/crakefs/crake/wire"
)

// The layout is in doc.go.
const (
	// Magic starts a capture.
	Magic       = "CRAKECAP"
	version     = 1
	headerBytes = 64
	nameBytes   = 24
	recordBytes = 24
	helloBytes  = 128
	flagSent    = 1
)

// Kind says what a record is.
type Kind uint8

// The kinds of record; a reader skips others.
const (
	KindConn  Kind = 1
	KindFrame Kind = 2
	KindData  Kind = 3
	KindLost  Kind = 4
	KindEnd   Kind = 5
)

// Origin says whose connections a capture is of.
type Origin struct {
	Role    wire.Role
	Proc    wire.ProcID
	Cluster wire.ClusterID
	Name    string    // of the process, cut to 24 bytes
	Start   time.Time // of the capture
}

func (o *Origin) encode() []byte {
	b := make([]byte, headerBytes)
	copy(b, Magic)
	le := binary.LittleEndian
	le.PutUint16(b[8:], version)
	b[10] = byte(o.Role)
	le.PutUint32(b[12:], uint32(o.Proc))
	copy(b[16:32], o.Cluster[:])
	le.PutUint64(b[32:], uint64(o.Start.UnixNano()))
	copy(b[40:40+nameBytes], o.Name)
	return b
}

// Record is one record of a capture.
type Record struct {
	Kind  Kind
	Sent  bool   // by the process; else received
	Conn  uint32 // number of the connection in the capture
	Whole int    // bytes that Body would have were it not cut
	Time  time.Time
	Body  []byte // as doc.go has it; valid until the next record is read
	At    int64  // where the record begins in the capture, bytes
}

// Cut says that a part of the body was left out.
func (r *Record) Cut() bool { return r.Whole > len(r.Body) }

// appendRecord encodes a record whose body is the parts, as far as keep goes.
func appendRecord(b []byte, r *Record, keep int, parts ...[]byte) []byte {
	whole := 0
	for _, p := range parts {
		whole += len(p)
	}
	flags := byte(0)
	if r.Sent {
		flags = flagSent
	}
	body := min(whole, keep)
	le := binary.LittleEndian
	b = le.AppendUint32(b, uint32(body))
	b = append(b, byte(r.Kind), flags, 0, 0)
	b = le.AppendUint32(b, r.Conn)
	b = le.AppendUint32(b, uint32(max(whole, r.Whole)))
	b = le.AppendUint64(b, uint64(r.Time.UnixNano()))
	for _, p := range parts {
		p = p[:min(len(p), body)]
		b = append(b, p...)
		body -= len(p)
	}
	return b
}

// ConnInfo says what a connection is.
type ConnInfo struct {
	Own     []byte // hello of the process, 128 bytes
	Peer    []byte // hello of the other end
	Version uint16 // of the protocol
	Name    string // of the other end, for people
}

func (c *ConnInfo) encode() []byte {
	b := append(append(make([]byte, 0, 2*helloBytes+2+len(c.Name)), c.Own...), c.Peer...)
	return append(binary.LittleEndian.AppendUint16(b, c.Version), c.Name...)
}

// DecodeConn reads the body of a KindConn record. The result points into it.
func DecodeConn(b []byte) (ConnInfo, error) {
	if len(b) < 2*helloBytes+2 {
		return ConnInfo{}, fmt.Errorf("description of a connection of %d bytes, want %d or more", len(b), 2*helloBytes+2)
	}
	rest := b[2*helloBytes:]
	return ConnInfo{
		Own: b[:helloBytes], Peer: b[helloBytes : 2*helloBytes], Version: binary.LittleEndian.Uint16(rest), Name: string(rest[2:]),
	}, nil
}

// Reader reads a capture.
type Reader struct {
	Origin Origin
	r      io.Reader
	at     int64 // bytes read
	body   []byte
}

// NewReader reads the header of a capture.
func NewReader(r io.Reader) (*Reader, error) {
	b := make([]byte, headerBytes)
	if n, err := io.ReadFull(r, b); err != nil {
		return nil, fmt.Errorf("a capture begins with %d bytes, here are %d", headerBytes, n)
	}
	le := binary.LittleEndian
	if string(b[:8]) != Magic {
		return nil, fmt.Errorf("no capture: it begins with %q", b[:8])
	}
	if v := le.Uint16(b[8:]); v != version {
		return nil, fmt.Errorf("a capture of version %d; this program reads version %d", v, version)
	}
	rd := &Reader{r: r, at: headerBytes, Origin: Origin{
		Role: wire.Role(b[10]), Proc: wire.ProcID(le.Uint32(b[12:])), Start: time.Unix(0, int64(le.Uint64(b[32:]))),
		Name: string(bytes.ToValidUTF8(bytes.TrimRight(b[40:40+nameBytes], "\x00"), []byte("?"))),
	}}
	copy(rd.Origin.Cluster[:], b[16:])
	return rd, nil
}

// Next gives the next record, or io.EOF at the end. An error names the offset of the record that makes no sense; after it nothing
// further can be read.
func (rd *Reader) Next() (Record, error) {
	var h [recordBytes]byte
	at := rd.at
	bad := func(format string, args ...any) (Record, error) {
		return Record{}, fmt.Errorf("record at byte %d: %s", at, fmt.Sprintf(format, args...))
	}
	n, err := io.ReadFull(rd.r, h[:])
	switch {
	case errors.Is(err, io.EOF):
		return Record{}, io.EOF
	case errors.Is(err, io.ErrUnexpectedEOF):
		return bad("cut off after %d bytes", n)
	case err != nil:
		return bad("%v", err)
	}
	le := binary.LittleEndian
	size := le.Uint32(h[:])
	r := Record{
		Kind: Kind(h[4]), Sent: h[5]&flagSent != 0, Conn: le.Uint32(h[8:]), Whole: int(le.Uint32(h[12:])),
		Time: time.Unix(0, int64(le.Uint64(h[16:]))), At: at,
	}
	if size > maxBodyBytes {
		return bad("%d bytes, more than the %d that a record can have", size, maxBodyBytes)
	}
	if uint32(cap(rd.body)) < size {
		rd.body = make([]byte, size)
	}
	r.Body = rd.body[:size]
	if n, err := io.ReadFull(rd.r, r.Body); err != nil {
		return bad("cut off after %d of %d bytes of its body", n, size)
	}
	rd.at += recordBytes + int64(size)
	return r, nil
}
