package rpc

import (
	"bytes"
	"context"
	"encoding/binary"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/wire"
)

// shmPeer is a peer of a server that speaks by hand: it has shaken hands and has a channel.
type shmPeer struct {
	t  testing.TB
	s  stream
	ch *channel
}

// shmPeer connects one; it has taken the server's memory.
func (w *world) shmPeer() *shmPeer {
	w.t.Helper()
	s := w.bare()
	o := w.client
	own, other, _, err := shake(s, &o, true, nil)
	if err == nil {
		err = openChannel(s, own, other, true)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	p := &shmPeer{t: w.t, s: s, ch: s.(*sockStream).ch}
	w.t.Cleanup(p.ch.close)
	if got, fds := p.next(); got.kind != packetOffer || got.index != 0 || len(fds) != packetFds {
		w.t.Fatalf("the server said %+v with %d descriptors", got, len(fds))
	} else {
		closeForeign(fds)
	}
	p.say(packet{kind: packetTaken})
	return p
}

func (p *shmPeer) say(x packet, fds ...int) {
	if err := p.ch.send(x, fds...); err != nil {
		p.t.Log(err) // the server may have closed it
	}
}

func (p *shmPeer) next() (packet, []int) {
	_ = p.ch.f.SetReadDeadline(time.Now().Add(10 * time.Second))
	x, fds, err := p.ch.receive()
	if err != nil {
		p.t.Fatal(err)
	}
	return x, fds
}

// offer offers memory and gives the answer's kind.
func (p *shmPeer) offer(index uint32, size int, fds ...int) uint32 {
	p.t.Helper()
	p.say(packet{kind: packetOffer, index: index, size: uint64(size)}, fds...)
	x, _ := p.next()
	if x.index != index {
		p.t.Fatalf("%+v to an offer of %d", x, index)
	}
	return x.kind
}

// memory gives a memfd with seals, and the end of a pipe; the test closes them.
func memory(t testing.TB, size int, seals int) (fd, life int) {
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		t.Fatal(err)
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, fd := range []int{fd, pipe[0], pipe[1]} {
			_ = unix.Close(fd)
		}
	})
	return fd, pipe[1]
}

const wholeSeals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW

// refFrame is a frame whose data is by reference.
func refFrame(h wire.Header, meta []byte, refs ...[3]uint64) []byte {
	total := 0
	for _, r := range refs {
		meta = binary.LittleEndian.AppendUint32(meta, uint32(r[0]))
		meta = binary.LittleEndian.AppendUint32(meta, uint32(r[2]))
		meta = binary.LittleEndian.AppendUint64(meta, r[1])
		total += int(r[2])
	}
	h.Flags |= wire.FlagReferences
	h.Refs, h.MetaBytes = uint16(len(refs)), uint32(len(meta))
	if h.DataBytes == 0 {
		h.DataBytes = uint32(total)
	}
	b := make([]byte, wire.HeaderBytes)
	h.Encode(b, meta)
	return append(b, meta...)
}

func releaseFrame(ids ...uint64) []byte {
	meta := binary.LittleEndian.AppendUint32(nil, uint32(len(ids)))
	for _, id := range ids {
		meta = binary.LittleEndian.AppendUint64(meta, id)
	}
	return frame(wire.Header{Kind: wire.FrameRelease}, meta, nil)
}

// Claim: descriptors that are not sealed memory of just the size that was told, with a pipe, are not mapped, and the connection goes on;
// memory that is, is. Offers beyond the bound are refused, however many.
func TestShmOffers(t *testing.T) {
	w := newWorld(t, "shm")
	w.serve()
	honest := w.dial()
	p := w.shmPeer()
	good, life := memory(t, 1<<20, wholeSeals)
	unsealed, _ := memory(t, 1<<20, 0)
	shrinks, _ := memory(t, 1<<20, unix.F_SEAL_GROW)
	odd, _ := memory(t, 1<<20+100, wholeSeals)
	file, err := os.Create(t.TempDir() + "/file")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	_ = file.Truncate(1 << 20)
	plain := int(file.Fd())
	for name, o := range map[string]struct {
		index uint32
		size  int
		fds   []int
	}{
		"no descriptors": {0, 1 << 20, nil}, "one": {0, 1 << 20, []int{good}}, "three": {0, 1 << 20, []int{good, life, life}},
		"a file": {0, 1 << 20, []int{plain, life}}, "a pipe": {0, 1 << 20, []int{life, life}}, "no pipe": {0, 1 << 20, []int{good, plain}},
		"no seals": {0, 1 << 20, []int{unsealed, life}}, "may shrink": {0, 1 << 20, []int{shrinks, life}},
		"larger than told": {0, 1 << 19, []int{good, life}}, "smaller than told": {0, 2 << 20, []int{good, life}},
		"no blocks": {0, 1<<20 + 100, []int{odd, life}}, "nothing": {0, 0, []int{good, life}}, "negative": {0, -4096, []int{good, life}},
		"giant": {0, 1 << 60, []int{good, life}}, "of others first": {5, 1 << 20, []int{good, life}}, "past the bound": {maxArenas, 1 << 20, []int{good, life}},
	} {
		if kind := p.offer(o.index, o.size, o.fds...); kind != packetRefused {
			t.Errorf("%s: %d", name, kind)
		}
	}
	for i := range uint32(maxArenas) {
		if kind := p.offer(i, 1<<20, good, life); kind != packetTaken {
			t.Fatalf("arena %d: %d", i, kind)
		}
	}
	n := 10_000
	if raceEnabled {
		n = 1000
	}
	for i := range n {
		if kind := p.offer(uint32(maxArenas+i), 1<<20, good, life); kind != packetRefused {
			t.Fatal("an arena past the bound is taken")
		}
	}
	if err := honest.Do(t.Context(), &Call{Method: mEcho}); err != nil {
		t.Error(err)
	}
	_ = p.s.close()
}

// Claim: a peer that says nonsense on its channel, or cuts it off, loses its connection, with a line in the log; others go on.
func TestShmHostileChannel(t *testing.T) {
	w := newWorld(t, "shm")
	book := w.keepLog()
	w.serve()
	honest := w.dial()
	fd, life := memory(t, 1<<20, wholeSeals)
	for name, do := range map[string]func(p *shmPeer){
		"unknown kind":          func(p *shmPeer) { p.say(packet{kind: 9}) },
		"taken, not offered":    func(p *shmPeer) { p.say(packet{kind: packetTaken, index: 7}) },
		"taken twice":           func(p *shmPeer) { p.say(packet{kind: packetTaken}) },
		"index out of range":    func(p *shmPeer) { p.say(packet{kind: packetTaken, index: 1 << 31}) },
		"drop of the own arena": func(p *shmPeer) { p.say(packet{kind: packetDrop}) },
		"drop out of range":     func(p *shmPeer) { p.say(packet{kind: packetDrop, index: 1 << 31}) },
		"descriptors with it":   func(p *shmPeer) { p.say(packet{kind: packetDrop, index: 1}, fd) },
		"the same index twice": func(p *shmPeer) {
			p.offer(0, 1<<20, fd, life)
			p.say(packet{kind: packetOffer, size: 1 << 20}, fd, life)
		},
		"short":   func(p *shmPeer) { _, _ = p.ch.f.Write([]byte("hello")) },
		"long":    func(p *shmPeer) { _, _ = p.ch.f.Write(make([]byte, 4000)) },
		"cut off": func(p *shmPeer) { p.ch.close() },
	} {
		before := len(book.text())
		p := w.shmPeer()
		do(p)
		_ = p.s.setDeadline(time.Now().Add(10 * time.Second))
		for {
			if _, err := (streamReader{p.s}).Read(make([]byte, 100)); err != nil {
				if isTimeout(err) {
					t.Errorf("%s: the peer is not disconnected", name)
				}
				break
			}
		}
		if name != "cut off" {
			eventually(t, name+" to be logged", func() bool { return strings.Contains(book.text()[before:], "bad frame") })
		}
		if err := honest.Do(t.Context(), &Call{Method: mEcho}); err != nil {
			t.Fatal(name, err)
		}
	}
}

// Claim: references to what is not there, and releases of what is not lent, end the connection of who sent them, and nothing is read or freed.
func TestShmHostileFrames(t *testing.T) {
	w := newWorld(t, "shm")
	book := w.keepLog()
	w.serve()
	honest := w.dial()
	fd, life := memory(t, 1<<20, wholeSeals)
	req := wire.Header{Kind: wire.FrameRequest, Method: mEcho, ID: 1}
	lying, noRefs, answer := req, req, wire.Header{Kind: wire.FrameResponse, ID: 1}
	lying.DataBytes = 8192
	noRefs.DataBytes = 4096
	many := make([][3]uint64, maxReferences+1)
	for i := range many {
		many[i] = [3]uint64{0, uint64(i%256) * 4096, 4096}
	}
	for name, send := range map[string][]byte{
		"past the end":       refFrame(req, nil, [3]uint64{0, 1 << 20, 4096}),
		"over the end":       refFrame(req, nil, [3]uint64{0, 1<<20 - 4096, 8192}),
		"far away":           refFrame(req, nil, [3]uint64{0, 1<<64 - 4096, 8192}),
		"arena not offered":  refFrame(req, nil, [3]uint64{3, 0, 4096}),
		"arena out of range": refFrame(req, nil, [3]uint64{1 << 31, 0, 4096}),
		"within a block":     refFrame(req, nil, [3]uint64{0, 100, 4096}),
		"half a block first": refFrame(req, nil, [3]uint64{0, 0, 100}, [3]uint64{0, 4096, 4096}),
		"empty":              refFrame(req, nil, [3]uint64{0, 0, 4096}, [3]uint64{0, 4096, 0}),
		"another length":     refFrame(lying, nil, [3]uint64{0, 0, 4096}),
		"no references":      refFrame(noRefs, nil),
		"too many":           refFrame(req, nil, many...),
		"more than meta has": func() []byte {
			h := req
			h.Flags, h.Refs, h.DataBytes = wire.FlagReferences, 1, 4096
			return frameOf(h)
		}(),
		"answer to nothing":   refFrame(answer, nil, [3]uint64{0, 0, 4096}),
		"release of nothing":  releaseFrame(3),
		"a giant release":     frame(wire.Header{Kind: wire.FrameRelease}, make([]byte, 100_000), nil),
		"half a release":      frame(wire.Header{Kind: wire.FrameRelease}, []byte{1, 0, 0, 0, 5}, nil),
		"release with data":   frame(wire.Header{Kind: wire.FrameRelease}, []byte{0, 0, 0, 0}, make([]byte, 4096)),
		"a release too short": frame(wire.Header{Kind: wire.FrameRelease}, []byte{0}, nil),
	} {
		before := len(book.text())
		p := w.shmPeer()
		if p.offer(0, 1<<20, fd, life) != packetTaken {
			t.Fatal("good memory is not taken")
		}
		if err := writeFull(p.s, send); err != nil {
			t.Error(name, err)
		}
		eventually(t, name+" to be logged", func() bool {
			line := book.text()[before:]
			return strings.Contains(line, "bad frame") && strings.Contains(line, "peer dropped")
		})
		_ = p.s.close()
		if err := honest.Do(t.Context(), &Call{Method: mEcho}); err != nil {
			t.Fatal(name, err)
		}
	}
	eventually(t, "the arena to be free", func() bool { return w.serverA.Used() == 0 })
}

// frameOf encodes a header as it is, without meta.
func frameOf(h wire.Header) []byte {
	b := make([]byte, wire.HeaderBytes)
	h.Encode(b, nil)
	return b
}

// Claim: a peer that gives nothing back holds a quarter of the arena at most, and then gets its data through the socket; when it gives the
// same back twice it loses its connection; others are lent to all the while; in the end all comes back.
func TestShmNeverReleases(t *testing.T) {
	w := newWorld(t, "shm")
	w.server.Handler = func(ctx context.Context, r *Request) (wire.Message, wire.Data, error) {
		b, err := w.serverA.Alloc(ctx, 1<<20)
		if err != nil {
			return nil, nil, err
		}
		return nil, b.Data(1 << 20), nil
	}
	book := w.keepLog()
	w.serve()
	p := w.shmPeer()
	lent, head := 0, make([]byte, wire.HeaderBytes)
	const asks = 40
	eventually(t, "the server to know that its memory is taken", func() bool {
		w.listener.mu.Lock()
		defer w.listener.mu.Unlock()
		for c := range w.listener.conns {
			return c.shm.lend.ready()
		}
		return false
	})
	for id := range uint64(asks) {
		if err := writeFull(p.s, frame(wire.Header{Kind: wire.FrameRequest, Method: mMake, ID: id + 1}, nil, nil)); err != nil {
			t.Fatal(err)
		}
		if err := readFull(p.s, head); err != nil {
			t.Fatal(err)
		}
		h, err := wire.DecodeHeader(head)
		if err != nil || h.DataBytes != 1<<20 {
			t.Fatal(h, err)
		}
		rest := int(h.MetaBytes)
		if h.Flags&wire.FlagReferences == 0 {
			rest += int(h.DataBytes)
		} else {
			lent++
		}
		if err := readFull(p.s, make([]byte, rest)); err != nil {
			t.Fatal(err)
		}
	}
	if lent != 16 || w.serverA.Stats().Lent != 16<<20 {
		t.Errorf("%d of %d answers were lent, %d bytes; a quarter of 64 MiB may be", lent, asks, w.serverA.Stats().Lent)
	}
	honest := w.dial()
	sharing2(t, honest)
	call := Call{Method: mMake}
	if err := honest.Do(t.Context(), &call); err != nil || honest.Stats().BorrowedBytes != 1<<20 {
		t.Error("an honest peer:", err, honest.Stats())
	}
	call.RespData.Release()
	_ = writeFull(p.s, releaseFrame(responseLoan(1), responseLoan(1)))
	eventually(t, "a second release to be logged", func() bool { return strings.Contains(book.text(), "of what is not lent") })
	_ = p.s.close()
	p.ch.close()
	eventually(t, "all to come back", func() bool { return w.serverA.Used() == 0 })
}

// sharing2 waits until the answerer has taken nothing but has lent: the dialler has mapped its memory.
func sharing2(t testing.TB, c *Conn) {
	t.Helper()
	eventually(t, "memory to be shared", func() bool {
		call := Call{Method: mMake}
		if err := c.Do(t.Context(), &call); err != nil {
			t.Fatal(err)
		}
		call.RespData.Release()
		return c.Stats().BorrowedBytes > 0
	})
	c.shm.borrow.receivedBytes.Store(0)
}

// Claim: memory that a peer changes, or gives back to the system, while we look at it is other data, and nothing else.
func TestShmMemoryChanges(t *testing.T) {
	w := newWorld(t, "shm")
	w.server.Handler = func(_ context.Context, r *Request) (wire.Message, wire.Data, error) {
		defer r.Data.Release()
		sum := 0
		for range 50 {
			for _, b := range flat(r.Data) {
				sum += int(b)
			}
		}
		return &wire.AppendResp{Len: uint64(sum)}, nil, nil
	}
	w.serve()
	p := w.shmPeer()
	fd, life := memory(t, 1<<20, wholeSeals)
	if p.offer(0, 1<<20, fd, life) != packetTaken {
		t.Fatal("not taken")
	}
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		b := bytes.Repeat([]byte{7}, 1<<20)
		for {
			select {
			case <-stop:
				return
			default:
			}
			_, _ = unix.Pwrite(fd, b, 0)
			_ = unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 1<<20)
		}
	}()
	if err := writeFull(p.s, refFrame(wire.Header{Kind: wire.FrameRequest, Method: mEcho, ID: 1}, nil, [3]uint64{0, 0, 1 << 20})); err != nil {
		t.Fatal(err)
	}
	head := make([]byte, wire.HeaderBytes)
	if err := readFull(p.s, head); err != nil {
		t.Fatal(err)
	}
	if h, err := wire.DecodeHeader(head); err != nil || h.Status != wire.KindNone || h.Flags&wire.FlagDataReturned == 0 {
		t.Errorf("%+v %v", h, err)
	}
	_ = p.s.close()
}

// FuzzChannel sends arbitrary packets with descriptors of all sorts: the connection ends or lives, and nothing leaks, faults or panics.
func FuzzChannel(f *testing.F) {
	f.Add([]byte{packetOffer, 0, 1, 0, packetTaken, 0, 0, 0}, true)
	f.Add([]byte{packetOffer, 0, 5, 1, packetOffer, 1, 1, 0, packetDrop, 1, 0, 0}, true)
	f.Add([]byte("nonsense on a channel of 32 bytes"), false)
	f.Fuzz(func(t *testing.T, script []byte, whole bool) {
		good, life := memory(t, 1<<20, wholeSeals)
		unsealed, _ := memory(t, 1<<20, 0)
		null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = unix.Close(null) }()
		sets := [][]int{nil, {good, life}, {unsealed, life}, {null, life}, {good, null}, {good}, {good, life, null}, {life, good}}
		w := newWorld(t, "shm")
		w.server.Log = slog.New(slog.DiscardHandler)
		w.serve()
		p := w.shmPeer()
		if !whole {
			_, _ = p.ch.f.Write(script)
		}
		for whole && len(script) >= 4 {
			_ = p.ch.send(packet{kind: uint32(script[0] % 6), index: uint32(script[1]), size: 1 << (script[3] % 64)}, sets[int(script[2])%len(sets)]...)
			_ = p.ch.send(packet{kind: uint32(script[0] % 6), index: uint32(script[1] % 3), size: 1 << 20}, sets[int(script[2])%len(sets)]...)
			script = script[4:]
		}
		_, _ = p.s.writev([][]byte{refFrame(wire.Header{Kind: wire.FrameRequest, Method: mEcho, ID: 1}, nil, [3]uint64{0, 0, 8192})}, true)
		_ = p.s.close()
		p.ch.close()
	})
}

// FuzzReferences feeds arbitrary frames, and a request with arbitrary references, to a connection that shares memory: it ends or lives, and
// nothing leaks, faults or panics.
func FuzzReferences(f *testing.F) {
	ref := refFrame(wire.Header{Kind: wire.FrameRequest, Method: mEcho, ID: 1}, nil, [3]uint64{0, 4096, 8192})
	f.Add(ref, []byte{0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, uint32(4096))
	f.Add(append(ref, releaseFrame(3)...), []byte{1, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, uint32(4096))
	f.Add(releaseFrame(1, 2, 3), bytes.Repeat([]byte{0}, 64), uint32(0))
	f.Fuzz(func(t *testing.T, frames, refs []byte, n uint32) {
		fd, life := memory(t, 1<<20, wholeSeals)
		w := newWorld(t, "shm")
		w.server.Log = slog.New(slog.DiscardHandler)
		w.serve()
		p := w.shmPeer()
		if p.offer(0, 1<<20, fd, life) != packetTaken {
			t.Fatal("good memory is not taken")
		}
		refs = refs[:min(len(refs), 64<<10)]
		h := wire.Header{Kind: wire.FrameRequest, Method: mEcho, ID: 1, Flags: wire.FlagReferences, MetaBytes: uint32(len(refs)), DataBytes: n % wire.MaxDataBytes, Refs: uint16(len(refs) / referenceBytes)}
		head := make([]byte, wire.HeaderBytes)
		h.Encode(head, refs)
		_, _ = p.s.writev([][]byte{head, refs, fixSums(frames)}, true)
		_ = p.s.close()
		p.ch.close()
	})
}
