package wire

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// What an arena lends to other processes is not free before it has come back: a loan holds references on its Bufs, and Trim gives only
// free memory to the system. At most half of an arena is lent, so that the other half always circles without the help of
// anybody else; see docs/decisions/0007-shared-memory.md.

// ArenaStats is what an arena's memory is doing, in bytes.
type ArenaStats struct {
	Size        int64
	Used        int64 // handed out, what is lent included
	Lent        int64 // Bufs of which other processes have some
	Quarantined int64 // of ended connections: lent until nobody can touch it any more
}

// Stats tells what the memory is doing.
func (a *Arena) Stats() ArenaStats {
	a.mu.Lock()
	defer a.mu.Unlock()
	return ArenaStats{
		Size: int64(len(a.mem)), Used: int64(a.usedBlocks()) * BlockSize, Lent: int64(a.lent) * BlockSize, Quarantined: int64(a.quarantined),
	}
}

// Descriptor gives a descriptor of the memory that can only be read from, to be sent to other processes. The arena keeps it. Errors:
// KindIO, KindShutdown after Close.
func (a *Arena) Descriptor() (fd int, err error) {
	const op = "arena.share"
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return 0, Errorf(op, KindShutdown, "", "the arena is closed")
	}
	if a.readOnly >= 0 {
		return a.readOnly, nil
	}
	fd, err = unix.Open(fmt.Sprintf("/proc/self/fd/%d", a.fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, E(op, KindIO, "memfd", err)
	}
	a.readOnly = fd
	return fd, nil
}

// Offset gives where p lies in the arena's memory. Preconditions: it does.
func (a *Arena) Offset(p []byte) int { return offsetIn(a.mem, p) }

// Owns says that b is memory of this arena.
func (a *Arena) Owns(b *Buf) bool { return b.arena == a }

// Lend takes a reference on each of bufs, for a loan, and notes that each that is of this arena is lent once more. false: nothing has
// happened, because more than half of the arena would be lent.
func (a *Arena) Lend(bufs []*Buf) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, b := range bufs {
		if b.arena == a {
			if b.lends++; b.lends == 1 {
				a.lent += cap(b.b) / BlockSize
			}
		}
	}
	if a.lent <= a.buddy.blocks/2 {
		for _, b := range bufs {
			b.Retain()
		}
		return true
	}
	a.unlend(bufs)
	return false
}

// TakeBack ends a Lend: nobody else can touch the memory any more, and the loan's references are released.
func (a *Arena) TakeBack(bufs []*Buf) {
	a.mu.Lock()
	blocks := a.unlend(bufs)
	a.returning += blocks
	a.mu.Unlock()
	for _, b := range bufs {
		b.Release()
	}
	a.mu.Lock()
	a.returning -= blocks
	a.mu.Unlock()
}

// unlend gives the blocks that are not lent any more. Preconditions: a.mu is held.
func (a *Arena) unlend(bufs []*Buf) (blocks int) {
	for _, b := range bufs {
		if b.arena == a {
			if b.lends--; b.lends == 0 {
				a.lent -= cap(b.b) / BlockSize
				blocks += cap(b.b) / BlockSize
			}
			if b.lends < 0 {
				panic("wire: a Buf came back that was not lent" + b.history())
			}
		}
	}
	return blocks
}

// Quarantine adds to, or with a negative number takes from, what ArenaStats tells of it.
func (a *Arena) Quarantine(bytes int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.quarantined += bytes
}
