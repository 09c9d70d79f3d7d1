package dump

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/capture"
	"github.com/crakefs/crake/wire/rpc"
)

// Type says what an Event is.
type Type string

// The types of Event.
const (
	TypeConn  Type = "connection" // Hello, and of a capture Own and Name
	TypeFrame Type = "frame"
	TypeData  Type = "data"  // the beginning of the data section of the frame before on this connection and way
	TypeProof Type = "proof" // of a stream
	TypeLost  Type = "lost"  // frames that the capture has not
	TypeEnd   Type = "end"   // of the capture, and why
)

// Event is one thing that was seen. Slices are valid until the next one is asked for.
type Event struct {
	Type Type
	At   int64     // offset in the input, bytes
	Time time.Time // zero when the input tells no times
	Conn uint32    // 0 in a stream of one direction
	Sent bool      // by the process whose capture it is
	From string    // such as "compute 3"; "" when not known
	To   string

	Hello rpc.Hello // TypeConn: of the other end, or of the sender of the stream
	Name  string    // TypeConn: where the other end is

	Header wire.Header // TypeFrame
	raw    []byte      // TypeFrame: the 64 bytes
	Meta   []byte      // TypeFrame: as far as it was kept
	Data   []byte      // TypeData
	Whole  int         // TypeFrame, TypeData: bytes of the section on the stream
	Lost   uint64      // TypeLost: records
	Text   string      // TypeEnd, TypeProof
}

// Cut says that a part of the meta section is not there.
func (e *Event) Cut() bool { return e.Type == TypeFrame && len(e.Meta) < int(e.Header.MetaBytes) }

// Source gives the events of an input.
type Source struct {
	r    *bufio.Reader
	cap  *capture.Reader // nil: a stream
	own  string          // whose capture it is
	peer map[uint32]string

	at     int64 // of a stream
	sender string
	buf    []byte
	skip   int  // bytes of data of the last frame that are still to come
	hello  bool // the hello is still to come
}

// Open finds out what an input is: a capture, or the bytes of one direction of a connection, from its hello or from a frame on.
func Open(r io.Reader) (*Source, error) {
	s := &Source{r: bufio.NewReaderSize(r, 64<<10), peer: map[uint32]string{}}
	first, err := s.r.Peek(8)
	if err != nil && len(first) < 4 {
		return nil, fmt.Errorf("the input has only %d bytes", len(first))
	}
	switch {
	case string(first) == capture.Magic:
		if s.cap, err = capture.NewReader(s.r); err != nil {
			return nil, err
		}
		o := s.cap.Origin
		s.own = who(o.Role, o.Proc)
		return s, nil
	case string(first) == rpc.HelloMagic:
		s.hello = true
		return s, nil
	case binary.LittleEndian.Uint32(first) == wire.HeaderMagic:
		return s, nil
	case isPacketCapture(first):
		return nil, errors.New("a packet capture; of a TCP connection that is not encrypted, extract one direction first " +
			"(tcpflow, or Wireshark's \"Follow TCP stream\" as raw), else use crake wire capture")
	}
	return nil, fmt.Errorf("neither a capture nor a stream of this protocol: it begins with %q", first)
}

// isPacketCapture knows the magics of pcap (both byte orders, both clocks) and pcapng.
func isPacketCapture(b []byte) bool {
	for _, m := range []string{"\xd4\xc3\xb2\xa1", "\xa1\xb2\xc3\xd4", "\x4d\x3c\xb2\xa1", "\xa1\xb2\x3c\x4d", "\x0a\x0d\x0d\x0a"} {
		if bytes.HasPrefix(b, []byte(m)) {
			return true
		}
	}
	return false
}

// Origin says whose capture it is; ok is false for a stream.
func (s *Source) Origin() (o capture.Origin, ok bool) {
	if s.cap == nil {
		return o, false
	}
	return s.cap.Origin, true
}

// Waits says that the next event may be long in coming: nothing of it has been read.
func (s *Source) Waits() bool { return s.r.Buffered() == 0 }

// Next gives the next event, or io.EOF at the end. An error names the offset of what makes no sense; nothing follows it.
func (s *Source) Next() (*Event, error) {
	if s.cap == nil {
		return s.fromStream()
	}
	for {
		r, err := s.cap.Next()
		if err != nil {
			return nil, err
		}
		e, err := s.fromRecord(&r)
		if err != nil {
			return nil, fmt.Errorf("record at byte %d: %w", r.At, err)
		}
		if e != nil {
			return e, nil
		}
	}
}

// fromRecord makes an event of a record; nil for a kind that is not known.
func (s *Source) fromRecord(r *capture.Record) (*Event, error) {
	e := &Event{At: r.At, Time: r.Time, Conn: r.Conn, Sent: r.Sent, Whole: r.Whole}
	if e.From, e.To = s.peer[r.Conn], s.own; r.Sent {
		e.From, e.To = e.To, e.From
	}
	switch r.Kind {
	case capture.KindConn:
		info, err := capture.DecodeConn(r.Body)
		if err != nil {
			return nil, err
		}
		if e.Hello, err = rpc.ParseHello(info.Peer); err != nil {
			return nil, err
		}
		e.Type, e.Name = TypeConn, info.Name
		e.From, e.To = who(e.Hello.Role, e.Hello.Proc), s.own
		s.peer[r.Conn] = e.From
	case capture.KindFrame:
		e.Type = TypeFrame
		if err := e.frame(r.Body); err != nil {
			return nil, err
		}
		if !r.Cut() {
			return e, wire.CheckHeader(e.raw, e.Meta)
		}
	case capture.KindData:
		e.Type, e.Data = TypeData, r.Body
	case capture.KindLost:
		if len(r.Body) != 8 {
			return nil, fmt.Errorf("a count of %d bytes", len(r.Body))
		}
		e.Type, e.Lost = TypeLost, binary.LittleEndian.Uint64(r.Body)
	case capture.KindEnd:
		e.Type, e.Text = TypeEnd, string(bytes.ToValidUTF8(r.Body, []byte("?")))
	default:
		return nil, nil
	}
	return e, nil
}

// frame takes header and meta from b, which may lack the end of the meta section.
func (e *Event) frame(b []byte) (err error) {
	if e.Header, err = wire.DecodeHeader(b); err != nil {
		return err
	}
	e.raw, e.Meta = b[:wire.HeaderBytes], b[wire.HeaderBytes:]
	if len(e.Meta) > int(e.Header.MetaBytes) {
		return fmt.Errorf("%d bytes of meta, the header says %d", len(e.Meta), e.Header.MetaBytes)
	}
	e.Whole = int(e.Header.MetaBytes)
	return nil
}

// fromStream reads a hello or a frame of a stream.
func (s *Source) fromStream() (*Event, error) {
	if err := s.pass(); err != nil {
		return nil, err
	}
	e := &Event{At: s.at, From: s.sender}
	if s.hello {
		s.hello = false
		b, err := s.take(rpc.HelloBytes, "hello")
		if err != nil {
			return nil, err
		}
		if e.Hello, err = rpc.ParseHello(b); err != nil {
			return nil, fmt.Errorf("hello at byte %d: %w", e.At, err)
		}
		s.sender = who(e.Hello.Role, e.Hello.Proc)
		e.Type, e.From = TypeConn, s.sender
		return e, nil
	}
	next, err := s.r.Peek(len(rpc.ProofMagic))
	if len(next) == 0 && err == io.EOF {
		return nil, io.EOF
	}
	if string(next) == rpc.ProofMagic {
		return s.proof(e)
	}
	e.Type = TypeFrame
	b, err := s.take(wire.HeaderBytes, "frame")
	if err != nil {
		return nil, err
	}
	h, err := wire.DecodeHeader(b)
	if err != nil {
		return nil, fmt.Errorf("frame at byte %d: %w", e.At, err)
	}
	if b, err = s.more(int(h.MetaBytes), e.At); err != nil {
		return nil, err
	}
	if err := e.frame(b); err != nil {
		return nil, fmt.Errorf("frame at byte %d: %w", e.At, err)
	}
	if err := wire.CheckHeader(e.raw, e.Meta); err != nil {
		return nil, fmt.Errorf("frame at byte %d: %w", e.At, err)
	}
	if byReference(e) {
		return e, nil // the data is not on the stream
	}
	s.skip = int(h.DataBytes)
	return e, nil
}

// proof reads a proof or verdict, which may follow a hello.
func (s *Source) proof(e *Event) (*Event, error) {
	b, err := s.take(rpc.ProofHeadBytes, "proof")
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	status, cert, sig, text := wire.Kind(le.Uint16(b[8:])), int(le.Uint16(b[10:])), int(le.Uint16(b[12:])), int(le.Uint16(b[14:]))
	if b, err = s.more(cert+sig+text, e.At); err != nil {
		return nil, err
	}
	e.Type = TypeProof
	switch {
	case status != wire.KindNone:
		e.Text = fmt.Sprintf("refused, %s: %s", status.Error(), bytes.ToValidUTF8(b[len(b)-text:], []byte("?")))
	case cert > 0:
		e.Text = fmt.Sprintf("certificate of %d bytes", cert)
	default:
		e.Text = "accepted"
	}
	return e, nil
}

// pass goes over the data section of the last frame.
func (s *Source) pass() error {
	at := s.at
	n, err := s.r.Discard(s.skip)
	s.at += int64(n)
	if err != nil {
		return fmt.Errorf("the data section that begins at byte %d is cut off after %d of %d bytes", at, n, s.skip)
	}
	s.skip = 0
	return nil
}

// take reads n bytes into buf.
func (s *Source) take(n int, what string) ([]byte, error) {
	s.buf = s.buf[:0]
	at := s.at
	b, err := s.more(n, at)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return b, nil
}

// more reads n further bytes into buf, and gives all of it. It grows only as bytes come.
func (s *Source) more(n int, at int64) ([]byte, error) {
	var part [4096]byte
	for n > 0 {
		got, err := io.ReadFull(s.r, part[:min(n, len(part))])
		s.buf = append(s.buf, part[:got]...)
		s.at += int64(got)
		if n -= got; err != nil {
			return nil, fmt.Errorf("what begins at byte %d is cut off after %d bytes", at, len(s.buf))
		}
	}
	return s.buf, nil
}

// who names a process.
func who(r wire.Role, p wire.ProcID) string {
	if p == 0 {
		return r.String()
	}
	return fmt.Sprintf("%s %d", r, p)
}
