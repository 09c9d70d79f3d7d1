package wire

// TrimGuard stands between Trim and memory that somebody keeps pages of, such as a kernel that does IO on registered buffers: whoever
// pinned pages goes on with them after the memory has got others, and what goes there is lost. It is called with free memory that is
// about to lose its pages. It makes sure that nobody keeps these pages, calls punch once, and lets nobody take hold of them
// before punch has returned. It is called under the arena's lock: so it must not call the arena, and whoever
// waits for something that the guard holds must not either.
//
// That memory is free means that no Buf lies in it; who does IO holds a reference until it has ended. So there is no IO under way in it.
type TrimGuard func(mem []byte, punch func())

// Guard sets the guard; nil removes it, and when Guard has returned the old one is not running. Errors: KindInvalid when there is one already.
func (a *Arena) Guard(g TrimGuard) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if g != nil && a.guard != nil {
		return Errorf("arena.guard", KindInvalid, "", "the arena has a guard already")
	}
	a.guard = g
	return nil
}

// Memory gives all of the arena's memory, for whoever registers it with the kernel. To be addressed, not to be read or written.
func (a *Arena) Memory() []byte { return a.mem }

// Populated tells the arena that mem, a part of Memory, has pages now although not all of it was handed out: Trim gives them back too.
func (a *Arena) Populated(mem []byte) {
	if len(mem) == 0 {
		return
	}
	start := offsetIn(a.mem, mem) / BlockSize
	a.mu.Lock()
	defer a.mu.Unlock()
	a.buddy.touch(start, blocksOf(len(mem)))
}

// punch gives free blocks back to the system and tells whether it did. Preconditions: mu is held.
func (a *Arena) punch(start, blocks int) (done bool) {
	off, n := start*BlockSize, blocks*BlockSize
	if a.guard == nil {
		return a.punchHole(off, n)
	}
	a.guard(a.mem[off:off+n], func() { done = a.punchHole(off, n) })
	return done
}
