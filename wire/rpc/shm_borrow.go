package rpc

import (
	"encoding/binary"
	"sync"
	"sync/atomic"

	"github.com/crakefs/crake/wire"
)

// borrower is the side of a connection that receives data by reference.
type borrower struct {
	// immutable
	s     *shm
	loans *wire.Loans

	receivedBytes atomic.Uint64

	mu     sync.Mutex
	ended  bool
	arenas [maxArenas]*wire.Foreign // what the peer has offered and we have mapped
	mapped uint64                   // bytes of them
}

func (b *borrower) init(s *shm, arena *wire.Arena) {
	b.s, b.loans = s, wire.NewLoans(arena, s.back.add)
}

// ready says that the peer's own arena is mapped.
func (b *borrower) ready() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.arenas[0] != nil
}

// offered maps memory that the peer offers. It owns fds. An error of KindBadFrame ends the connection, any other refuses the offer.
func (b *borrower) offered(p packet, fds []int) error {
	const op = "rpc.channel"
	b.mu.Lock()
	defer b.mu.Unlock()
	var parent *wire.Foreign
	var err error
	switch {
	case p.index >= maxArenas:
		err = wire.Errorf(op, wire.KindOverLimit, "", "arena %d, at most %d are taken", p.index, maxArenas)
	case b.arenas[p.index] != nil:
		err = wire.Errorf(op, wire.KindBadFrame, "", "arena %d is offered a second time", p.index)
	case !b.s.trusted:
		err = wire.Errorf(op, wire.KindRefused, "", "the peer is not one of those that share memory with this process")
	case len(fds) != packetFds:
		err = wire.Errorf(op, wire.KindInvalid, "", "an offer with %d descriptors; perhaps this process has as many as it may", len(fds))
	case p.size > maxMappedBytes-b.mapped:
		err = wire.Errorf(op, wire.KindOverLimit, "", "%d bytes, with %d mapped of this peer and a limit of %d", p.size, b.mapped, uint64(maxMappedBytes))
	case p.index > 0 && b.arenas[0] == nil:
		err = wire.Errorf(op, wire.KindInvalid, "", "memory of others before the peer's own")
	case b.ended:
		err = wire.Errorf(op, wire.KindShutdown, "", "the connection has ended")
	}
	if err != nil {
		closeForeign(fds)
		return err
	}
	if p.index > 0 {
		parent = b.arenas[0]
	}
	f, err := wire.MapForeign(fds[0], fds[1], int(p.size), parent)
	if err != nil {
		return err
	}
	b.arenas[p.index] = f
	b.mapped += p.size
	return nil
}

// dropped forgets memory for which the peer has no use any more. Its own arena it always has use for.
func (b *borrower) dropped(index int) error {
	if index <= 0 || index >= maxArenas {
		return wire.Errorf("rpc.channel", wire.KindBadFrame, "", "arena %d is dropped", index)
	}
	b.mu.Lock()
	f := b.arenas[index]
	if f != nil { // else the offer was refused, and the drop on its way before it could know
		b.arenas[index] = nil
		b.mapped -= uint64(f.Size())
	}
	b.mu.Unlock()
	if f != nil {
		f.Release()
	}
	return nil
}

// take splits the references off a frame's meta and makes the loan that they describe. An error, of KindBadFrame, ends the connection.
func (b *borrower) take(h *wire.Header, meta []byte) (rest []byte, loan *wire.Loan, err error) {
	n := int(h.Refs)
	if n == 0 || n > maxReferences || n*referenceBytes > len(meta) {
		return nil, nil, wire.Errorf("rpc.read", wire.KindBadFrame, b.s.c.s.name(), "%d references in %d bytes of meta", n, len(meta))
	}
	rest, refs := meta[:len(meta)-n*referenceBytes], meta[len(meta)-n*referenceBytes:]
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.check(h, refs); err != nil {
		return nil, nil, err
	}
	id := requestLoan(h.ID)
	if h.Kind == wire.FrameResponse {
		id = responseLoan(h.ID)
	}
	loan = b.loans.Begin(id, n, h.Kind == wire.FrameRequest)
	for ; len(refs) > 0; refs = refs[referenceBytes:] {
		index, off, length := reference(refs)
		loan.Add(b.arenas[index], int(off), int(length))
	}
	b.receivedBytes.Add(uint64(h.DataBytes))
	return rest, loan, nil
}

// check refuses references that are not whole blocks of memory that is mapped, together as long as the header says.
// Preconditions: mu is held.
func (b *borrower) check(h *wire.Header, refs []byte) error {
	total := uint64(0)
	for ; len(refs) > 0; refs = refs[referenceBytes:] {
		index, off, n := reference(refs)
		var f *wire.Foreign
		if index < maxArenas {
			f = b.arenas[index]
		}
		if f == nil || n == 0 || off > uint64(f.Size()) || uint64(n) > uint64(f.Size())-off ||
			off%wire.BlockSize != 0 || total%wire.BlockSize != 0 {
			return wire.Errorf("rpc.read", wire.KindBadFrame, b.s.c.s.name(), "a reference to %d bytes at %d of arena %d", n, off, index)
		}
		total += uint64(n)
	}
	if total != uint64(h.DataBytes) {
		return wire.Errorf("rpc.read", wire.KindBadFrame, b.s.c.s.name(), "references to %d bytes for %d", total, h.DataBytes)
	}
	return nil
}

func reference(b []byte) (index uint32, off uint64, n uint32) {
	le := binary.LittleEndian
	return le.Uint32(b), le.Uint64(b[8:]), le.Uint32(b[4:])
}

// close gives up the mappings: each goes when the last that was borrowed there is released.
func (b *borrower) close() {
	b.mu.Lock()
	b.ended = true
	arenas := b.arenas
	b.arenas = [maxArenas]*wire.Foreign{}
	b.mu.Unlock()
	for _, f := range arenas {
		if f != nil {
			f.Release()
		}
	}
}
