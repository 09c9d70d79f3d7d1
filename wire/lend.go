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

// Lend notes that each of bufs that is of this arena is lent once more. false: nothing is noted, because more than half of
// the arena would be lent. The caller holds a reference on each until Unlend.
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
		return true
	}
	a.unlend(bufs)
	return false
}

// Unlend takes a Lend back: nobody else can touch the memory any more.
func (a *Arena) Unlend(bufs []*Buf) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.unlend(bufs)
}

func (a *Arena) unlend(bufs []*Buf) {
	for _, b := range bufs {
		if b.arena == a {
			if b.lends--; b.lends == 0 {
				a.lent -= cap(b.b) / BlockSize
			}
			if b.lends < 0 {
				panic("wire: a Buf came back that was not lent" + b.history())
			}
		}
	}
}

// Quarantine adds to, or with a negative number takes from, what ArenaStats tells of it.
func (a *Arena) Quarantine(bytes int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.quarantined += bytes
}
