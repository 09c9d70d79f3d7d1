package rpc

import (
	"context"
	"errors"
	"io"

	"github.com/crakefs/crake/wire"
)

// reader takes frames from a stream. It is owned by the connection's reading goroutine.
//
// Headers and small metas go through buf; of a data section only what was read along with them is copied from there, the rest
// lands where it belongs.
type reader struct {
	c    *Conn
	buf  []byte
	r, w int      // buf[r:w] is read and not used
	vec  [][]byte // for readv
	far  int      // how much is read at once into buf
}

// read takes frames until the connection ends, and tells why.
func (c *Conn) read() error {
	rd := &reader{c: c, buf: make([]byte, readBufferBytes), far: readBufferBytes}
	for {
		if err := rd.frame(); err != nil {
			return err
		}
	}
}

// fill reads until buf holds at least n bytes.
// Preconditions: n <= len(buf).
func (rd *reader) fill(n int) error {
	if rd.r == rd.w {
		rd.r, rd.w = 0, 0
	}
	if len(rd.buf)-rd.r < n {
		rd.w = copy(rd.buf, rd.buf[rd.r:rd.w])
		rd.r = 0
	}
	for rd.w-rd.r < n {
		rd.c.midFrame.Store(rd.w > rd.r)
		end := min(len(rd.buf), rd.w+max(rd.far, n-(rd.w-rd.r)))
		rd.vec = append(rd.vec[:0], rd.buf[rd.w:end])
		got, err := rd.c.s.readv(rd.vec)
		if err != nil {
			if isEnd(err) && rd.w > rd.r {
				return wire.E("rpc.read", wire.KindBadFrame, rd.c.s.name(), io.ErrUnexpectedEOF)
			}
			return err
		}
		rd.w += got
		rd.c.rxBytes.Add(uint64(got))
	}
	return nil
}

// full reads exactly len(b) bytes into b: first what buf has, then from the stream; what comes along behind it goes to buf.
func (rd *reader) full(b []byte) error {
	n := copy(b, rd.buf[rd.r:rd.w])
	rd.r += n
	b = b[n:]
	if len(b) == 0 {
		return nil
	}
	rd.r, rd.w = 0, 0
	rd.c.midFrame.Store(true)
	for len(b) > 0 {
		rd.vec = append(rd.vec[:0], b, rd.buf[:min(rd.far, len(rd.buf))])
		got, err := rd.c.s.readv(rd.vec)
		if err != nil {
			if isEnd(err) {
				err = wire.E("rpc.read", wire.KindBadFrame, rd.c.s.name(), io.ErrUnexpectedEOF)
			}
			return err
		}
		rd.c.rxBytes.Add(uint64(got))
		if got > len(b) {
			rd.w = got - len(b)
			got = len(b)
		}
		b = b[got:]
	}
	return nil
}

// discard reads n bytes and forgets them.
func (rd *reader) discard(n int) error {
	for n > 0 {
		if rd.r == rd.w {
			if err := rd.fill(1); err != nil {
				return err
			}
		}
		got := min(n, rd.w-rd.r)
		rd.r += got
		n -= got
	}
	return nil
}

// frame reads and handles one frame.
func (rd *reader) frame() error {
	if err := rd.fill(wire.HeaderBytes); err != nil {
		return err
	}
	h, err := wire.DecodeHeader(rd.buf[rd.r:])
	if err != nil {
		return err
	}
	if h.Kind == wire.FrameRequest || h.Kind == wire.FrameOneWay {
		return rd.request(h)
	}
	total := wire.HeaderBytes + int(h.MetaBytes)
	if total > len(rd.buf) {
		return rd.bigResponse(h)
	}
	if err := rd.fill(total); err != nil {
		return err
	}
	b := rd.buf[rd.r : rd.r+total]
	if err := wire.CheckHeader(b, b[wire.HeaderBytes:]); err != nil {
		return err
	}
	rd.r += total
	rd.c.sawGeneration(h.Generation)
	switch h.Kind {
	case wire.FrameResponse:
		return rd.response(&h, b[wire.HeaderBytes:])
	case wire.FrameCancel:
		rd.c.cancelled(h.ID)
	case wire.FrameCredit: // reserved: the windows of version 1 are fixed
	}
	if h.DataBytes != 0 {
		return wire.Errorf("rpc.read", wire.KindBadFrame, rd.c.s.name(), "data in a frame of kind %d", h.Kind)
	}
	return nil
}

// response delivers an answer. meta may lie in buf, so it is used before buf is.
func (rd *reader) response(h *wire.Header, meta []byte) error {
	c := rd.c
	p, ok := c.answered(h.ID)
	if !ok {
		return wire.Errorf("rpc.read", wire.KindBadFrame, c.s.name(), "answer to request %d, which was not asked", h.ID)
	}
	if p == nil { // the connection has ended
		return errDone
	}
	c.out.release(p.bytes)
	if h.DataBytes == 0 {
		rd.far = readBufferBytes
		p.deliver(h, meta, nil, nil)
		return nil
	}
	if p.state.Load() == callAbandoned {
		return rd.discard(int(h.DataBytes))
	}
	keep := newHeadBuf() // landing the data overwrites buf
	defer keep.free()
	keep.b = append(keep.b[:0], meta...)
	data, lack, err := rd.land(int(h.DataBytes), wire.UseResponse)
	if err != nil {
		p.finish(c.lostBecause(err))
		return err
	}
	p.deliver(h, keep.b, data, lack)
	return nil
}

// land reads a data section. lack tells why there was no room for it (it is thrown away then); err ends the connection.
func (rd *reader) land(n int, use wire.Use) (data wire.Data, lack, err error) {
	c := rd.c
	rd.far = smallReadBytes
	if c.o.Arena == nil {
		lack = wire.E("rpc.read", wire.KindOverLimit, c.s.name(), errors.New("no arena for data"))
	} else {
		ctx, cancel := context.WithTimeout(c.ctx, landingWait)
		c.midFrame.Store(false) // a wait here is not the peer's fault
		data, lack = c.o.Arena.AllocData(ctx, n, use)
		cancel()
		if lack != nil {
			lack = wire.E("rpc.read", wire.KindUnavailable, c.s.name(), lack)
		}
	}
	if lack != nil {
		return nil, lack, rd.discard(n)
	}
	for _, s := range data {
		if err := rd.full(s.B); err != nil {
			data.Release()
			return nil, nil, err
		}
	}
	return data, nil, nil
}

// request takes a request: meta to memory that stays until the handler has returned, data to the arena.
func (rd *reader) request(h wire.Header) error {
	r := rd.c.newServed(h)
	if err := rd.requestMeta(r); err != nil {
		r.free()
		return err
	}
	rd.c.sawGeneration(h.Generation)
	if h.DataBytes == 0 {
		rd.far = readBufferBytes
		return rd.c.accept(r)
	}
	if err := rd.c.checkWindow(int(h.DataBytes)); err != nil {
		r.free()
		return err
	}
	data, lack, err := rd.land(int(h.DataBytes), wire.UseRequest)
	if err != nil {
		r.free()
		return err
	}
	if lack != nil {
		r.free()
		rd.c.answer(&r.req.Header, nil, nil, lack)
		return nil
	}
	r.req.Data = data
	return rd.c.accept(r)
}

// requestMeta reads header and meta of a request and verifies them.
func (rd *reader) requestMeta(r *served) error {
	total := wire.HeaderBytes + int(r.req.Header.MetaBytes)
	var b []byte
	if total <= heapMetaBytes {
		r.meta = newHeadBuf()
		r.meta.b = append(r.meta.b[:0], make([]byte, total)...)
		b = r.meta.b
	} else {
		buf, err := rd.bigMeta(total, wire.UseRequest)
		if err != nil {
			return err
		}
		r.big, b = buf, buf.Bytes()
	}
	if err := rd.full(b); err != nil {
		return err
	}
	r.req.Meta = b[wire.HeaderBytes:]
	return wire.CheckHeader(b, r.req.Meta)
}

// bigMeta gives memory for a long meta section.
func (rd *reader) bigMeta(n int, use wire.Use) (*wire.Buf, error) {
	c := rd.c
	if c.o.Arena == nil {
		return nil, wire.Errorf("rpc.read", wire.KindOverLimit, c.s.name(), "meta of %d bytes and no arena", n)
	}
	ctx, cancel := context.WithTimeout(c.ctx, landingWait)
	defer cancel()
	return c.o.Arena.AllocFor(ctx, n, use)
}

// bigResponse reads a response whose meta does not fit into buf.
func (rd *reader) bigResponse(h wire.Header) error {
	total := wire.HeaderBytes + int(h.MetaBytes)
	var b []byte
	if buf, err := rd.bigMeta(total, wire.UseResponse); err == nil {
		defer buf.Release()
		b = buf.Bytes()
	} else if rd.c.o.Arena == nil {
		b = make([]byte, total) // a tool: one connection, and the peer is one it chose
	} else {
		return err
	}
	if err := rd.full(b); err != nil {
		return err
	}
	if err := wire.CheckHeader(b, b[wire.HeaderBytes:]); err != nil {
		return err
	}
	rd.c.sawGeneration(h.Generation)
	return rd.response(&h, b[wire.HeaderBytes:])
}
