package meta

import (
	"slices"
	"strconv"

	"github.com/cockroachdb/pebble/v2"
	"github.com/crakefs/crake/wire"
	"golang.org/x/sys/unix"
)

// tx collects what one operation changes in this bucket, and commits it as one batch. It reads its own changes of inodes
// and names. It is used by one goroutine; every inode and directory that it touches is locked by the caller.
type tx struct {
	b      *Bucket
	now    int64
	batch  *pebble.Batch
	inodes []inodeState
	dents  []dentState
	locs   []locState
	abroad []foreignState
	delta  counters

	// onApplied runs when the change is visible and its locks are still held; onDurable when it is durable.
	onApplied []func()
	onDurable []func()
	committed bool
}

type inodeState struct {
	n       *inode
	ino     wire.Ino
	dirty   bool
	deleted bool
}

type dentState struct {
	dir     wire.Ino
	slot    uint64
	d       dentry
	deleted bool
}

func (b *Bucket) newTx(now int64) *tx {
	return &tx{b: b, now: now, batch: b.db.NewBatch()}
}

// close frees a tx; needed whether it was committed or not.
func (t *tx) close() { _ = t.batch.Close() }

func (t *tx) set(k key, v []byte) error {
	if err := t.batch.Set(k, v, nil); err != nil {
		return t.b.dbError(err)
	}
	return nil
}

func (t *tx) del(k key) error {
	if err := t.batch.Delete(k, nil); err != nil {
		return t.b.dbError(err)
	}
	return nil
}

func inoName(ino wire.Ino) string { return "inode " + strconv.FormatUint(uint64(ino), 16) }

// checkHere refuses an inode of another bucket.
func (b *Bucket) checkHere(op string, ino wire.Ino) error {
	if ino.Bucket() != b.cfg.Bucket {
		return wire.E(op, wire.KindMoved, inoName(ino), nil)
	}
	return nil
}

// readInode gives the inode as it is in the database, or nil when there is none.
func (b *Bucket) readInode(ino wire.Ino) (*inode, error) {
	v, closer, ok, err := b.get(inodeKey(ino))
	if err != nil || !ok {
		return nil, err
	}
	n, err := decodeInode(ino, v)
	_ = closer.Close()
	return n, err
}

// inode gives the inode as this tx sees it, or nil when there is none. Who changes it calls touch.
func (t *tx) inode(ino wire.Ino) (*inode, error) {
	for i := range t.inodes {
		if s := &t.inodes[i]; s.ino == ino {
			if s.deleted {
				return nil, nil
			}
			return s.n, nil
		}
	}
	n, err := t.b.readInode(ino)
	if n == nil || err != nil {
		return nil, err
	}
	t.inodes = append(t.inodes, inodeState{ino: ino, n: n})
	return n, nil
}

// live gives an inode that has a name, or KindNotFound.
func (t *tx) live(op string, ino wire.Ino) (*inode, error) {
	n, err := t.inode(ino)
	if err == nil && (n == nil || n.attr.Nlink == 0) {
		err = wire.E(op, wire.KindNotFound, inoName(ino), nil)
	}
	return n, err
}

// directory gives a directory that has a name.
func (t *tx) directory(op string, ino wire.Ino) (*inode, error) {
	n, err := t.live(op, ino)
	if err == nil && !n.isDir() {
		err = wire.E(op, wire.KindNotDir, inoName(ino), nil)
	}
	return n, err
}

// touch says that the inode is being changed: its version rises once a tx, and its ctime becomes now.
func (t *tx) touch(n *inode) {
	n.attr.Ctime = t.now
	t.bump(n)
}

// bump is touch without the ctime.
func (t *tx) bump(n *inode) {
	for i := range t.inodes {
		if s := &t.inodes[i]; s.ino == n.attr.Ino {
			if !s.dirty {
				n.attr.Version++
			}
			s.dirty = true
			return
		}
	}
	panic("meta: touch of an inode that the tx has not read")
}

// create adds a new inode.
func (t *tx) create(n *inode) {
	n.attr.Version = 1
	t.inodes = append(t.inodes, inodeState{ino: n.attr.Ino, n: n, dirty: true})
	t.delta.inodes++
}

// remove deletes the record of an inode.
func (t *tx) remove(n *inode) {
	for i := range t.inodes {
		if s := &t.inodes[i]; s.ino == n.attr.Ino {
			s.deleted, s.dirty = true, true
			t.delta.inodes--
			return
		}
	}
	panic("meta: remove of an inode that the tx has not read")
}

func (t *tx) readDentry(dir wire.Ino, slot uint64) (d dentry, found bool, err error) {
	for i := range t.dents {
		if s := &t.dents[i]; s.dir == dir && s.slot == slot {
			return s.d, !s.deleted, nil
		}
	}
	return t.b.readDentry(dir, slot)
}

func (b *Bucket) readDentry(dir wire.Ino, slot uint64) (d dentry, found bool, err error) {
	v, closer, ok, err := b.get(dentryKey(dir, slot))
	if err != nil || !ok {
		return d, false, err
	}
	d, err = decodeDentry(v)
	_ = closer.Close()
	return d, err == nil, err
}

// find looks a name up in a directory.
func (t *tx) find(dir *inode, name string) (slot uint64, d dentry, found bool, err error) {
	return findName(t.b.cfg.nameHash(name), dir.flags&flagCollided != 0, name, func(slot uint64) (dentry, bool, error) {
		return t.readDentry(dir.attr.Ino, slot)
	})
}

// lookup looks a name up as it is in the database.
func (b *Bucket) lookup(dir *inode, name string) (d dentry, found bool, err error) {
	_, d, found, err = findName(b.cfg.nameHash(name), dir.flags&flagCollided != 0, name, func(slot uint64) (dentry, bool, error) {
		return b.readDentry(dir.attr.Ino, slot)
	})
	return d, found, err
}

// findName searches the slots where a name may lie. As long as no name of the directory lies off its hash (collided is
// false, nearly always) that is one slot. When the name is not found, slot is where it may be put: the first free one.
// No free one: slot is 0.
func findName(hash uint64, collided bool, name string, read func(uint64) (dentry, bool, error)) (slot uint64, d dentry, found bool, err error) {
	free := uint64(0)
	for s := hash; s < hash+probeWindow; s++ {
		d, ok, err := read(s)
		switch {
		case err != nil:
			return 0, d, false, err
		case ok && d.name == name:
			return s, d, true, nil
		case !ok && free == 0:
			free = s
		}
		if free != 0 && !collided {
			break
		}
	}
	return free, dentry{}, false, nil
}

// putName writes a name at a slot; del takes it away.
func (t *tx) putName(dir wire.Ino, slot uint64, d dentry) error {
	t.noteDent(dentState{dir: dir, slot: slot, d: d})
	return t.set(dentryKey(dir, slot), d.append(nil))
}

func (t *tx) delName(dir wire.Ino, slot uint64) error {
	t.noteDent(dentState{dir: dir, slot: slot, deleted: true})
	return t.del(dentryKey(dir, slot))
}

func (t *tx) noteDent(n dentState) {
	for i := range t.dents {
		if s := &t.dents[i]; s.dir == n.dir && s.slot == n.slot {
			*s = n
			return
		}
	}
	t.dents = append(t.dents, n)
}

// orphan notes that an inode without a name is kept until its last close.
func (t *tx) orphan(ino wire.Ino) error {
	t.onApplied = append(t.onApplied, func() {
		t.b.mu.Lock()
		t.b.orphans[ino] = struct{}{}
		t.b.mu.Unlock()
	})
	return t.set(orphanKey(ino), appendFlagRecord(nil))
}

func (t *tx) unorphan(ino wire.Ino) error {
	t.onApplied = append(t.onApplied, func() {
		t.b.mu.Lock()
		delete(t.b.orphans, ino)
		t.b.mu.Unlock()
	})
	return t.del(orphanKey(ino))
}

// writeInodes puts the changed inodes into the batch.
func (t *tx) writeInodes() error {
	var buf [512]byte
	for i := range t.inodes {
		s := &t.inodes[i]
		var err error
		switch {
		case !s.dirty:
		case s.deleted:
			err = t.del(inodeKey(s.ino))
		default:
			err = t.set(inodeKey(s.ino), s.n.append(buf[:0]))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// commit makes the change durable and answers the call with reply (c may be nil). It gives the locks of h back; h may be
// nil when the locks are to stay. After an error the tx had no effect, unless the bucket has failed.
func (t *tx) commit(h *held, c *call, reply wire.Message) error {
	b := t.b
	t.committed = true
	if err := t.writeInodes(); err != nil {
		return err
	}
	if err := t.writeForeigns(); err != nil {
		return err
	}
	locs, err := t.settleLocations()
	if err != nil {
		return err
	}
	defer locs.release(nil) // on a way out before the commit
	if t.delta != (counters{}) {
		if err := t.batch.Merge(systemKey(sysCounters), t.delta.append(nil), nil); err != nil {
			return b.dbError(err)
		}
	}
	if err := c.record(t.batch, reply); err != nil {
		return err
	}
	if t.batch.Empty() {
		h.release(nil)
		return nil
	}
	b.crash("commit")
	if err := b.apply(t.batch, pebble.Sync); err != nil {
		return err
	}
	last := &ticket{done: make(chan struct{})}
	t.applied()
	locks := slices.Clone(locs.all())
	locs.release(last)
	if h != nil {
		locks = append(locks, h.locks...)
		h.release(last)
	}
	last.err = b.durable(t.batch)
	close(last.done)
	if last.err != nil {
		b.fail(last.err)
		return wire.E("meta.commit", wire.KindUnavailable, b.id(), last.err)
	}
	b.locks.settled(locks, last)
	b.crash("committed")
	for _, f := range t.onDurable {
		f()
	}
	return nil
}

func (t *tx) applied() {
	t.b.mu.Lock()
	t.b.sum.add(t.delta)
	t.b.mu.Unlock()
	for _, f := range t.onApplied {
		f()
	}
}

func (h *held) all() []lockWant {
	if h == nil {
		return nil
	}
	return h.locks
}

// typeOf gives the S_IFMT part of a mode.
func typeOf(mode uint32) uint32 { return mode & unix.S_IFMT }
