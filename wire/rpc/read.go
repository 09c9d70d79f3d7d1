package rpc

import (
	"context"
	"errors"
	"io"
	"runtime"
	"slices"
	"time"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/copies"
)

// reader takes frames from a stream. It is owned by the connection's reading goroutine.
//
// Headers and small metas go through buf; of a data section only what was read along with them is copied from there, the rest
// lands where it belongs. How much is read along follows the last data section: behind a short one (copyBytes) as much as buf holds,
// so that one system call brings many frames, behind a long one just enough for the next header (smallReadBytes).
type reader struct {
	c     *Conn
	buf   []byte
	r, w  int      // buf[r:w] is read and not used
	vec   [][]byte // for readv
	parts [][]byte // what fullParts fills
	far   int      // how much is read at once into buf

	now time.Time // when what is in buf was read; zero: not looked yet. The clock costs as much as a lock or two

	// of the burst under way; see taken.go
	started int  // requests that Start has taken since the last settle
	held    bool // the writer's batch is ours
}

// read takes frames until the connection ends, and tells why.
func (c *Conn) read() error {
	rd := &reader{c: c, buf: make([]byte, readBufferBytes), far: readBufferBytes}
	defer rd.settle()
	for {
		if err := rd.frame(); err != nil {
			return err
		}
		if rd.r == rd.w {
			rd.settle()
			// Nothing more is there. Who was just woken runs before the next look at the socket, which will most likely find
			// nothing and cost a system call.
			runtime.Gosched()
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
		got, err := rd.readv()
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

// readv reads into vec, as much as is there, and forgets vec: it must not hold on to memory that is given away.
func (rd *reader) readv() (int, error) {
	rd.settle()
	got, err := rd.c.s.readv(rd.vec)
	clear(rd.vec)
	rd.now = time.Time{}
	rd.c.o.Spin.Note()
	return got, err
}

// full reads exactly len(b) bytes into b: first what buf has, then from the stream; what comes along behind it goes to buf.
func (rd *reader) full(b []byte) error {
	rd.parts = append(rd.parts[:0], b)
	return rd.fullParts()
}

// fullParts is full for rd.parts, one after the other. It takes as many parts by one system call as that allows.
func (rd *reader) fullParts() error {
	parts := rd.parts
	defer clear(rd.parts) // no pointers to memory that is given away
	for {
		for len(parts) > 0 && rd.r < rd.w {
			n := copy(parts[0], rd.buf[rd.r:rd.w])
			rd.r += n
			if parts[0] = parts[0][n:]; len(parts[0]) > 0 {
				break
			}
			parts = parts[1:]
		}
		for len(parts) > 0 && len(parts[0]) == 0 {
			parts = parts[1:]
		}
		if len(parts) == 0 {
			return nil
		}
		rd.r, rd.w = 0, 0
		rd.c.midFrame.Store(true)
		rd.vec = append(rd.vec[:0], parts[:min(len(parts), batchParts)]...)
		room := 0
		for _, p := range rd.vec {
			room += len(p)
		}
		if len(parts) <= batchParts {
			rd.vec = append(rd.vec, rd.buf[:rd.far])
		}
		got, err := rd.readv()
		if err != nil {
			if isEnd(err) {
				err = wire.E("rpc.read", wire.KindBadFrame, rd.c.s.name(), io.ErrUnexpectedEOF)
			}
			return err
		}
		rd.c.rxBytes.Add(uint64(got))
		if got > room {
			rd.w = got - room
			got = room
		}
		for got > 0 {
			n := min(got, len(parts[0]))
			parts[0] = parts[0][n:]
			got -= n
			if len(parts[0]) == 0 {
				parts = parts[1:]
			}
		}
	}
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
	switch h.Kind {
	case wire.FrameRequest:
		return rd.request(h)
	case wire.FrameOneWay:
		return wire.Errorf("rpc.read", wire.KindBadFrame, rd.c.s.name(), "one-way frame: protocol version 1 has none")
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
	rd.c.tap.Frame(false, b)
	rd.c.sawGeneration(h.Generation)
	switch h.Kind {
	case wire.FrameResponse:
		return rd.response(&h, b[wire.HeaderBytes:])
	case wire.FrameCancel:
		rd.c.cancelled(h.ID)
	case wire.FrameCredit: // reserved: the windows of version 1 are fixed
	case wire.FrameRelease:
		if err := rd.c.released(b[wire.HeaderBytes:]); err != nil {
			return err
		}
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
	if err := rd.requestReturned(h); err != nil {
		p.finish(c.lostBecause(err))
		return err
	}
	if h.DataBytes == 0 && !c.byReference(h) {
		rd.far = readBufferBytes
		p.deliver(h, meta, nil, nil)
		return nil
	}
	if c.byReference(h) {
		rd.far = readBufferBytes
		meta, loan, err := c.shm.borrow.take(h, meta)
		if err != nil {
			p.finish(c.lostBecause(err))
			return err
		}
		c.tap.Data(false, loan.Data())
		p.deliver(h, meta, loan.Data(), nil)
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
	c.tap.Data(false, data)
	p.deliver(h, keep.b, data, lack)
	return nil
}

// byReference says that a frame's data is not on the stream. A flag that was not agreed upon means nothing.
func (c *Conn) byReference(h *wire.Header) bool {
	return c.shm != nil && h.Flags&wire.FlagReferences != 0
}

// requestReturned ends the loan of a request's data if the response to it gives it back.
func (rd *reader) requestReturned(h *wire.Header) error {
	c := rd.c
	if c.shm == nil || h.Flags&wire.FlagDataReturned == 0 || c.shm.lend.returned(requestLoan(h.ID)) {
		return nil
	}
	return wire.Errorf("rpc.read", wire.KindBadFrame, c.s.name(), "the answer to request %d gives data back that is not lent", h.ID)
}

// land reads a data section. lack tells why there was no room for it (it is thrown away then); err ends the connection.
func (rd *reader) land(n int, use wire.Use) (data wire.Data, lack, err error) {
	if rd.far = readBufferBytes; n > copyBytes {
		rd.far = smallReadBytes
	}
	if data, lack = rd.room(n, use); lack != nil {
		return nil, lack, rd.discard(n)
	}
	rd.parts = rd.parts[:0]
	for _, s := range data {
		rd.parts = append(rd.parts, s.B)
	}
	rd.c.landed.Add(uint64(n))
	copies.Add(copies.Landing, min(n, rd.w-rd.r))
	copies.Add(copies.Socket, n)
	if err := rd.fullParts(); err != nil {
		data.Release()
		return nil, nil, err
	}
	return data, nil, nil
}

// room takes memory of the arena, waiting a bounded time for it. Errors: KindOverLimit when it never can be had, KindUnavailable when
// it cannot now.
func (rd *reader) room(n int, use wire.Use) (wire.Data, error) {
	c := rd.c
	if c.o.Arena == nil {
		return nil, wire.E("rpc.read", wire.KindOverLimit, c.s.name(), errors.New("no arena for data"))
	}
	if data := c.o.Arena.TryAllocData(n, use); data != nil {
		return data, nil
	}
	rd.settle()
	c.midFrame.Store(false) // a wait here is not the peer's fault
	ctx, cancel := context.WithTimeout(c.ctx, landingWait)
	defer cancel()
	data, err := c.o.Arena.AllocData(ctx, n, use)
	switch {
	case err == nil:
		return data, nil
	case errors.Is(err, wire.KindOverLimit):
		return nil, wire.E("rpc.read", wire.KindOverLimit, c.s.name(), err)
	}
	return nil, wire.E("rpc.read", wire.KindUnavailable, c.s.name(), err)
}

// request takes a request: meta to memory that stays until the handler has returned, data to the arena.
func (rd *reader) request(h wire.Header) error {
	if rd.now.IsZero() {
		rd.now = time.Now()
	}
	r := rd.c.newServed(h, rd.now)
	lack, err := rd.requestMeta(r)
	if err != nil {
		r.free()
		return err
	}
	if lack != nil {
		r.free()
		return rd.refuse(r, lack)
	}
	rd.c.sawGeneration(h.Generation)
	if h.DataBytes == 0 && !rd.c.byReference(&h) {
		rd.far = readBufferBytes
		return rd.offer(r)
	}
	if err := rd.c.checkWindow(int(h.DataBytes)); err != nil {
		r.free()
		return err
	}
	if rd.c.byReference(&h) {
		rd.far = readBufferBytes
		if r.req.Meta, r.loan, err = rd.c.shm.borrow.take(&h, r.req.Meta); err != nil {
			r.free()
			return err
		}
		r.req.Data = r.loan.Data()
		rd.c.tap.Data(false, r.req.Data)
		return rd.offer(r)
	}
	data, lack, err := rd.land(int(h.DataBytes), wire.UseRequest)
	if err != nil {
		r.free()
		return err
	}
	if lack != nil {
		r.free()
		return rd.refuse(r, lack)
	}
	rd.c.tap.Data(false, data)
	r.req.Data = data
	return rd.offer(r)
}

// refuse answers a request for which there was no room; it had no effect.
func (rd *reader) refuse(r *served, lack error) error {
	rd.c.w.send(rd.c.encodeAnswer(r, nil, nil, lack), false)
	return nil
}

// requestMeta reads header and meta of a request and verifies them. lack is as in land; then meta and data are thrown away.
func (rd *reader) requestMeta(r *served) (lack, err error) {
	h := &r.req.Header
	total := wire.HeaderBytes + int(h.MetaBytes)
	if total <= heapMetaBytes {
		r.meta = newHeadBuf()
		r.meta.b = slices.Grow(r.meta.b[:0], total)[:total]
		b := r.meta.b
		if err := rd.full(b); err != nil {
			return nil, err
		}
		r.req.Meta = b[wire.HeaderBytes:]
		return nil, rd.sound(b[:wire.HeaderBytes], r.req.Meta)
	}
	buf, lack := rd.bigMeta(int(h.MetaBytes), wire.UseRequest)
	if lack != nil {
		n := int(h.DataBytes)
		if r.gave = rd.c.byReference(h); r.gave {
			n = 0
		}
		return lack, rd.discard(total + n)
	}
	r.big, r.req.Meta = buf, buf.Bytes()
	return nil, rd.checked(r.req.Meta)
}

// checked reads a header, which was looked at already, and the meta section behind it, and verifies both.
func (rd *reader) checked(meta []byte) error {
	head := make([]byte, wire.HeaderBytes)
	rd.parts = append(rd.parts[:0], head, meta)
	if err := rd.fullParts(); err != nil {
		return err
	}
	return rd.sound(head, meta)
}

// sound verifies a header and its meta section, and shows them to who looks.
func (rd *reader) sound(head, meta []byte) error {
	if err := wire.CheckHeader(head, meta); err != nil {
		return err
	}
	rd.c.tap.Frame(false, head, meta)
	return nil
}

// bigMeta gives memory for a long meta section, without the header: the longest that may be is the longest run of the arena. Errors as
// room.
func (rd *reader) bigMeta(n int, use wire.Use) (*wire.Buf, error) {
	c := rd.c
	if c.o.Arena == nil {
		return nil, wire.Errorf("rpc.read", wire.KindOverLimit, c.s.name(), "meta of %d bytes and no arena", n)
	}
	rd.settle()
	c.midFrame.Store(false)
	ctx, cancel := context.WithTimeout(c.ctx, landingWait)
	defer cancel()
	buf, err := c.o.Arena.AllocFor(ctx, n, use)
	switch {
	case err == nil:
		return buf, nil
	case errors.Is(err, wire.KindOverLimit):
		return nil, wire.E("rpc.read", wire.KindOverLimit, c.s.name(), err)
	}
	return nil, wire.E("rpc.read", wire.KindUnavailable, c.s.name(), err)
}

// bigResponse reads a response whose meta does not fit into buf. A process without an arena is a tool: it has few connections, to
// peers that it chose, so there the heap will do.
func (rd *reader) bigResponse(h wire.Header) error {
	total := wire.HeaderBytes + int(h.MetaBytes)
	var meta []byte
	if rd.c.o.Arena == nil || total <= heapMetaBytes {
		meta = make([]byte, h.MetaBytes)
	} else {
		buf, lack := rd.bigMeta(int(h.MetaBytes), wire.UseResponse)
		if lack != nil {
			if err := rd.discard(total); err != nil {
				return err
			}
			return rd.failResponse(&h, lack)
		}
		defer buf.Release()
		meta = buf.Bytes()
	}
	if err := rd.checked(meta); err != nil {
		return err
	}
	rd.c.sawGeneration(h.Generation)
	if h.Kind != wire.FrameResponse {
		return wire.Errorf("rpc.read", wire.KindBadFrame, rd.c.s.name(), "%d bytes of meta in a frame of kind %d", h.MetaBytes, h.Kind)
	}
	return rd.response(&h, meta)
}

// failResponse ends the call of a response that was thrown away, and throws its data away too.
func (rd *reader) failResponse(h *wire.Header, lack error) error {
	err := rd.requestReturned(h)
	if p, ok := rd.c.answered(h.ID); ok && p != nil {
		rd.c.out.release(p.bytes)
		p.finish(lack)
	}
	if err != nil {
		return err
	}
	if rd.c.byReference(h) {
		rd.c.shm.back.add(responseLoan(h.ID), int(h.DataBytes))
		return nil
	}
	return rd.discard(int(h.DataBytes))
}
