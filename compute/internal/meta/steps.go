package meta

import (
	"encoding/binary"
	"fmt"

	"github.com/crakefs/crake/wire"
	"golang.org/x/sys/unix"
)

// Every change of the namespace is a list of steps, each about one inode. Steps of one bucket run in one tx; steps in
// other buckets travel as wire.TxnOp and are kept in prepare records, so their kinds and fields are a format (FORMAT.md).
const (
	// opAddEntry adds Name for Other (type Mode) to directory Ino; if it is there, KindExists, or with Flags 1 KindWouldBlock.
	opAddEntry = 1
	// opRemoveEntry removes Name, which must stand for Other (type Mode), from directory Ino.
	opRemoveEntry = 2
	// opReplaceEntry makes Name in directory Ino stand for Other (type Mode); Extra says for what it stands before: inode
	// and type, 12 bytes.
	opReplaceEntry = 3
	// opMakeInode makes an inode (Mode, UID, GID, Rdev, FS; Other is the parent; Extra the target of a symlink). Ino 0 asks
	// for a new number; the prepare record has the number that was chosen.
	opMakeInode = 4
	// opLinkInode counts one more name of Ino, which is no directory.
	opLinkInode = 5
	// opUnlinkInode counts one name less of Ino, which is no directory; the last one deletes it, or leaves it an orphan.
	opUnlinkInode = 6
	// opRemoveDir deletes the empty directory Ino, or leaves it an orphan.
	opRemoveDir = 7
	// opTouch sets the ctime of Ino.
	opTouch = 8
	// opReparent makes Other the parent of directory Ino.
	opReparent = 9
	// opRenameLock only locks: directories of the filesystem with root Ino move between parents one at a time.
	opRenameLock = 10

	// The kinds from here on only look: they are answered at once, and nothing is prepared.

	// opPeekEntry answers inode and type (as Mode) of Name in directory Ino; inode 0 when there is none.
	opPeekEntry = 20
	// opPeekInode answers the attributes of Ino.
	opPeekInode = 21
	// opPeekParent answers the parent of directory Ino (as inode number).
	opPeekParent = 22
)

// addOrLookAgain is the flag of opAddEntry for an operation that replaces what it finds.
const addOrLookAgain = 1

func isPeek(kind uint8) bool { return kind >= opPeekEntry }

// errChanged says that a name no longer stands for what it did when the operation looked: look again.
var errChanged = wire.Errorf("meta.txn", wire.KindWouldBlock, "", "the name changed meanwhile")

// lockOf gives the lock that a step needs; ok is false when it needs none.
func lockOf(op *wire.TxnOp) (w lockWant, ok bool) {
	switch {
	case op.Kind == opRenameLock:
		return lockWant{lockID{spaceRename, uint64(op.Ino)}, true}, true
	case op.Ino == 0:
		return w, false // a new inode: nobody knows it
	}
	return wantInode(op.Ino, !isPeek(op.Kind)), true
}

func locksOf(ops []wire.TxnOp) []lockWant {
	out := make([]lockWant, 0, len(ops))
	for i := range ops {
		if w, ok := lockOf(&ops[i]); ok {
			out = append(out, w)
		}
	}
	return out
}

// changedInos lists the existing inodes that the steps change, whose leases must end.
func changedInos(ops []wire.TxnOp) []wire.Ino {
	out := make([]wire.Ino, 0, len(ops))
	for i := range ops {
		if k := ops[i].Kind; k != opMakeInode && k != opRenameLock && !isPeek(k) {
			out = append(out, ops[i].Ino)
		}
	}
	return out
}

// checkOp refuses what no coordinator of ours would send. The inode must lie in this bucket.
func (b *Bucket) checkOp(op *wire.TxnOp) error {
	bad := func(what string) error {
		return wire.Errorf("meta.txn", wire.KindInvalid, inoName(op.Ino), "step %d: %s", op.Kind, what)
	}
	switch op.Kind {
	case opAddEntry, opRemoveEntry, opReplaceEntry:
		if err := checkName(op.Name); err != nil {
			return err
		}
		if op.Other == 0 || op.Mode&^unix.S_IFMT != 0 {
			return bad("entry")
		}
		if op.Kind == opReplaceEntry && len(op.Extra) != 12 {
			return bad("entry before")
		}
	case opMakeInode:
		if op.Ino != 0 && op.Ino.Bucket() != b.cfg.Bucket || len(op.Extra) > wire.MaxSymlinkBytes || !validType(op.Mode) {
			return bad("new inode")
		}
		return nil
	case opPeekEntry:
		if err := checkName(op.Name); err != nil {
			return err
		}
	case opLinkInode, opUnlinkInode, opRemoveDir, opTouch, opReparent, opRenameLock, opPeekInode, opPeekParent:
	default:
		return wire.Errorf("meta.txn", wire.KindVersion, inoName(op.Ino), "unknown step %d", op.Kind)
	}
	return b.checkHere("meta.txn", op.Ino)
}

const modeDir = unix.S_IFDIR

func validType(mode uint32) bool {
	switch typeOf(mode) {
	case unix.S_IFREG, unix.S_IFDIR, unix.S_IFLNK, unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFBLK:
		return true
	}
	return false
}

func checkName(name string) error {
	switch {
	case len(name) > wire.MaxNameBytes:
		return wire.E("meta.name", wire.KindNameTooLong, "", nil)
	case name == "" || name == "." || name == "..":
		return wire.E("meta.name", wire.KindInvalid, fmt.Sprintf("%q", name), nil)
	}
	for i := range len(name) {
		if name[i] == '/' || name[i] == 0 {
			return wire.E("meta.name", wire.KindInvalid, fmt.Sprintf("%q", name), nil)
		}
	}
	return nil
}

// entryBefore packs what opReplaceEntry expects.
func entryBefore(d dentry) []byte {
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint64(nil, uint64(d.ino)), d.typ)
}

// step checks one step and makes its change in the tx. It gives the attributes of op.Ino as they are after it.
// Preconditions: the step's lock is held, checkOp passed.
func (t *tx) step(op *wire.TxnOp) (wire.Attr, error) {
	switch op.Kind {
	case opAddEntry:
		return t.addEntry(op)
	case opRemoveEntry:
		return t.removeEntry(op)
	case opReplaceEntry:
		return t.replaceEntry(op)
	case opMakeInode:
		return t.makeInode(op)
	case opLinkInode:
		return t.linkInode(op)
	case opUnlinkInode:
		return t.unlinkInode(op)
	case opRemoveDir:
		return t.removeDir(op)
	case opTouch, opReparent:
		n, err := t.named(op.Ino)
		if err != nil {
			return wire.Attr{}, err
		}
		if op.Kind == opReparent {
			n.parent = op.Other
		}
		t.touch(n)
		return n.attr, nil
	case opRenameLock:
		return wire.Attr{}, nil
	case opPeekEntry:
		dir, err := t.directory("meta.lookup", op.Ino)
		if err != nil {
			return wire.Attr{}, err
		}
		_, d, _, err := t.find(dir, op.Name)
		return wire.Attr{Ino: d.ino, Mode: d.typ}, err
	case opPeekInode:
		n, err := t.live("meta.lookup", op.Ino)
		if err != nil {
			return wire.Attr{}, err
		}
		return n.attr, nil
	case opPeekParent:
		n, err := t.directory("meta.lookup", op.Ino)
		if err != nil {
			return wire.Attr{}, err
		}
		return wire.Attr{Ino: n.parent}, nil
	}
	return wire.Attr{}, wire.Errorf("meta.txn", wire.KindVersion, inoName(op.Ino), "unknown step %d", op.Kind)
}

// steps runs all of them.
func (t *tx) steps(ops []wire.TxnOp) ([]wire.Attr, error) {
	attrs := make([]wire.Attr, len(ops))
	for i := range ops {
		var err error
		if attrs[i], err = t.step(&ops[i]); err != nil {
			return nil, err
		}
	}
	return attrs, nil
}

// changeDir notes a change of a directory's names: delta entries, of which links directories.
func (t *tx) changeDir(dir *inode, delta, links int) error {
	nlink := int64(dir.attr.Nlink) + int64(links)
	if links > 0 && nlink > wire.MaxLinks {
		return wire.E("meta.mkdir", wire.KindTooManyLinks, inoName(dir.attr.Ino), nil)
	}
	entries := int64(dir.entries) + int64(delta)
	if nlink < 2 || entries < 0 {
		return wire.Errorf("meta.dir", wire.KindCorrupt, inoName(dir.attr.Ino), "%d links and %d entries", nlink, entries)
	}
	dir.attr.Nlink, dir.entries = uint32(nlink), uint64(entries)
	dir.attr.Size = dir.entries
	dir.attr.Mtime = t.now
	t.touch(dir)
	return nil
}

func isDirType(typ uint32) int {
	if typ == unix.S_IFDIR {
		return 1
	}
	return 0
}

func (t *tx) addEntry(op *wire.TxnOp) (wire.Attr, error) {
	dir, err := t.directory("meta.add", op.Ino)
	if err != nil {
		return wire.Attr{}, err
	}
	slot, _, found, err := t.find(dir, op.Name)
	switch {
	case err != nil:
		return wire.Attr{}, err
	case dir.fs != op.FS:
		return wire.Attr{}, wire.E("meta.add", wire.KindCrossDevice, op.Name, nil)
	case found && op.Flags&addOrLookAgain != 0:
		return wire.Attr{}, errChanged
	case found:
		return wire.Attr{}, wire.E("meta.add", wire.KindExists, op.Name, nil)
	case slot == 0:
		return wire.Attr{}, wire.Errorf("meta.add", wire.KindNoSpace, op.Name, "too many names with one hash")
	}
	if slot != t.b.cfg.nameHash(op.Name) {
		dir.flags |= flagCollided
	}
	if err := t.changeDir(dir, 1, isDirType(op.Mode)); err != nil {
		return wire.Attr{}, err
	}
	return dir.attr, t.putName(op.Ino, slot, dentry{name: op.Name, ino: op.Other, typ: op.Mode})
}

// expect finds a name that must stand for an inode.
func (t *tx) expect(op *wire.TxnOp, ino wire.Ino, typ uint32) (dir *inode, slot uint64, err error) {
	dir, err = t.directory("meta.entry", op.Ino)
	if err != nil {
		return nil, 0, err
	}
	slot, d, found, err := t.find(dir, op.Name)
	if err == nil && (!found || d.ino != ino || d.typ != typ) {
		err = errChanged
	}
	return dir, slot, err
}

func (t *tx) removeEntry(op *wire.TxnOp) (wire.Attr, error) {
	dir, slot, err := t.expect(op, op.Other, op.Mode)
	if err != nil {
		return wire.Attr{}, err
	}
	if err := t.changeDir(dir, -1, -isDirType(op.Mode)); err != nil {
		return wire.Attr{}, err
	}
	return dir.attr, t.delName(op.Ino, slot)
}

func (t *tx) replaceEntry(op *wire.TxnOp) (wire.Attr, error) {
	before := wire.Ino(binary.LittleEndian.Uint64(op.Extra))
	beforeType := binary.LittleEndian.Uint32(op.Extra[8:])
	dir, slot, err := t.expect(op, before, beforeType)
	if err != nil {
		return wire.Attr{}, err
	}
	if dir.fs != op.FS {
		return wire.Attr{}, wire.E("meta.rename", wire.KindCrossDevice, op.Name, nil)
	}
	if err := t.changeDir(dir, 0, isDirType(op.Mode)-isDirType(beforeType)); err != nil {
		return wire.Attr{}, err
	}
	return dir.attr, t.putName(op.Ino, slot, dentry{name: op.Name, ino: op.Other, typ: op.Mode})
}

func (t *tx) makeInode(op *wire.TxnOp) (wire.Attr, error) {
	if op.Ino == 0 {
		ino, err := t.b.newIno()
		if err != nil {
			return wire.Attr{}, err
		}
		op.Ino = ino
	}
	n := &inode{fs: op.FS}
	n.attr = wire.Attr{Ino: op.Ino, Mode: op.Mode, Nlink: 1, UID: op.UID, GID: op.GID, Rdev: op.Rdev,
		Atime: t.now, Mtime: t.now, Ctime: t.now, Btime: t.now}
	switch typeOf(op.Mode) {
	case unix.S_IFDIR:
		n.attr.Nlink = 2
		n.parent = op.Other
	case unix.S_IFLNK:
		n.target = string(op.Extra)
		n.attr.Size = uint64(len(n.target))
	}
	t.create(n)
	return n.attr, nil
}

func (t *tx) linkInode(op *wire.TxnOp) (wire.Attr, error) {
	n, err := t.live("meta.link", op.Ino)
	if err != nil {
		return wire.Attr{}, err
	}
	switch {
	case n.isDir():
		return wire.Attr{}, wire.E("meta.link", wire.KindPermission, inoName(op.Ino), nil)
	case n.attr.Nlink >= wire.MaxLinks:
		return wire.Attr{}, wire.E("meta.link", wire.KindTooManyLinks, inoName(op.Ino), nil)
	case n.fs != op.FS:
		return wire.Attr{}, wire.E("meta.link", wire.KindCrossDevice, inoName(op.Ino), nil)
	}
	n.attr.Nlink++
	t.touch(n)
	return n.attr, nil
}

// named gives an inode to which the coordinator has just seen a name: if it has none now, that name has gone.
func (t *tx) named(ino wire.Ino) (*inode, error) {
	n, err := t.inode(ino)
	if err == nil && (n == nil || n.attr.Nlink == 0) {
		err = errChanged
	}
	return n, err
}

func (t *tx) unlinkInode(op *wire.TxnOp) (wire.Attr, error) {
	n, err := t.named(op.Ino)
	if err != nil {
		return wire.Attr{}, err
	}
	if n.isDir() {
		return wire.Attr{}, errChanged
	}
	n.attr.Nlink--
	t.touch(n)
	if n.attr.Nlink > 0 {
		return n.attr, nil
	}
	return n.attr, t.nameless(n)
}

func (t *tx) removeDir(op *wire.TxnOp) (wire.Attr, error) {
	n, err := t.named(op.Ino)
	if err != nil {
		return wire.Attr{}, err
	}
	if !n.isDir() {
		return wire.Attr{}, errChanged
	}
	if n.entries != 0 {
		return wire.Attr{}, wire.E("meta.rmdir", wire.KindNotEmpty, inoName(op.Ino), nil)
	}
	n.attr.Nlink = 0
	t.touch(n)
	return n.attr, t.nameless(n)
}

// nameless deletes an inode that has lost its last name, unless a session has it open: then it becomes an orphan.
func (t *tx) nameless(n *inode) error {
	if t.b.cfg.Opens.IsOpen(n.attr.Ino) {
		return t.orphan(n.attr.Ino)
	}
	return t.destroy(n)
}
