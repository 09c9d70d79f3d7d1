package core

import (
	"github.com/crakefs/crake/frontend/internal/lease"
	"github.com/crakefs/crake/wire"
)

// dirNames is what is known of the names in a directory, under its lease. Guarded by the inode's mu.
//
// What an answer says of a name is kept only if the lease was there from before the request until now, and no mutation of ours was
// under way in between: else it could have been overtaken.
type dirNames struct {
	m        map[string]wire.Ino // 0: there is no such name
	complete bool                // a name that is not in m does not exist
	mutating int                 // mutations of ours under way
	mutated  lease.Token         // when the last one began or ended
	dropped  lease.Token         // when what was known was last dropped
}

// knows tells what is known of a name.
func (in *inode) knows(name string) (ino wire.Ino, known bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.cached() {
		return 0, false
	}
	if ino, known = in.dir.m[name]; known {
		return ino, true
	}
	return 0, in.dir.complete && in.dir.mutating == 0
}

// quietSince says that nothing has changed what is known since t, when the lease was there. mu is held.
func (in *inode) quietSince(t lease.Token) bool {
	return in.cached() && in.dir.mutating == 0 && t > in.dir.mutated && t > in.dir.dropped
}

// asks gives the time before a question about names, or 0 when the answer is not to be kept.
func (in *inode) asks() lease.Token {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.cached() || in.dir.mutating > 0 {
		return 0
	}
	return in.fs.now()
}

// keepName keeps an answer to a question of time t.
func (in *inode) keepName(t lease.Token, name string, ino wire.Ino) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.quietSince(t) {
		in.setName(name, ino)
	}
}

// keepList keeps a part of a listing that was asked for at t; all says that it is the whole directory.
func (in *inode) keepList(t lease.Token, entries []wire.DirEntry, all bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.quietSince(t) || in.fs.names.Load()+int64(len(entries)) > maxNames || len(in.dir.m)+len(entries) > maxDirNames {
		return
	}
	for i := range entries {
		in.setName(entries[i].Name, entries[i].Ino)
	}
	in.dir.complete = in.dir.complete || all
}

// setName notes a name. mu is held.
func (in *inode) setName(name string, ino wire.Ino) {
	if len(in.dir.m) >= maxDirNames || in.fs.names.Load() >= maxNames {
		in.clearNames()
		return
	}
	if in.dir.m == nil {
		in.dir.m = map[string]wire.Ino{}
	}
	if _, ok := in.dir.m[name]; !ok {
		in.fs.names.Add(1)
	}
	in.dir.m[name] = ino
}

func (in *inode) dropName(name string) {
	if _, ok := in.dir.m[name]; ok {
		in.fs.names.Add(-1)
		delete(in.dir.m, name)
	}
}

// clearNames forgets all names. mu is held.
func (in *inode) clearNames() {
	in.fs.names.Add(-int64(len(in.dir.m)))
	in.dir.m, in.dir.complete, in.dir.dropped = nil, false, in.fs.now()
}

// change begins a mutation of names in a directory. The function that it gives ends it: with nil, all that it meant to do was done, and
// after is what the names are now (0: gone).
func (fs *FS) change(dir wire.Ino, names ...string) func(err error, after ...wire.Ino) {
	in := fs.table.get(dir)
	in.mu.Lock()
	in.dir.mutating++
	began := fs.now()
	in.dir.mutated = began
	for _, n := range names {
		in.dropName(n)
	}
	in.mu.Unlock()
	return func(err error, after ...wire.Ino) {
		in.mu.Lock()
		in.dir.mutating--
		alone := in.dir.mutating == 0 && in.dir.mutated == began && began > in.dir.dropped
		in.dir.mutated = fs.now()
		for _, n := range names {
			in.dropName(n)
		}
		if err != nil || !alone || len(after) != len(names) || !in.cached() {
			in.dir.complete = false
		} else {
			for i, n := range names {
				in.setName(n, after[i])
			}
		}
		in.mu.Unlock()
		fs.table.put(in)
	}
}
