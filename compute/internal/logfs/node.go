package logfs

import (
	"path"
	"sync"
	"time"

	"github.com/crakefs/crake/compute/internal/store"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/copies"
	"github.com/crakefs/crake/wire/strip"
)

// node is a file.
type node struct {
	fs   *FS
	kind fileKind

	// write is held by the one who writes, renames or publishes, during IO too.
	write sync.Mutex
	seg   *store.Segment // of a log: the one that is appended to; guarded by write
	next  int            // of a log: index of the next segment; guarded by write
	dirty bool           // of a table: changed since it was published; guarded by write

	mu      sync.Mutex // guards all below; never held during IO
	name    string
	modTime time.Time
	refs    int
	removed bool
	desc    placed       // the description; zero: not published
	data    wire.StripID // names the content
	segs    []segRef     // of a log, in order of start
	damage  error        // of a log: why it cannot be read to its end; nil: it can
	chunks  []chunk      // of a table
	ends    []int64      // of a table: where each chunk ends in the file
	unread  bool         // of a table: the sums of chunks are not in memory, the description must be read
	inline  []byte       // of a table: all of it; then there are no chunks and no buf
	buf     *wire.Buf    // what is not on drives yet, from bufAt on; behind a block of room for a head in a log
	bufLen  int
	mem     []byte // of a table that is written at random places: all of it
	inMem   bool
}

// placed is a mirrored strip with all drives that may hold it.
type placed struct {
	id wire.StripID // position 0
	at []replica
}

// replica is one copy of a mirrored strip or segment.
type replica struct {
	drive wire.DriveID
	pos   int
	bytes uint64
}

func placedAt(loc wire.Location, bytes int) placed {
	p := placed{id: loc.ID.WithPos(0)}
	for pos, d := range loc.Drives {
		p.at = append(p.at, replica{drive: d, pos: pos, bytes: uint64(bytes)})
	}
	return p
}

// newNode makes a file that exists in memory only.
func newNode(fs *FS, name string) *node {
	n := &node{fs: fs, kind: fileTable, name: name, modTime: time.Now(), dirty: true}
	class := wire.ClassTable
	if isLog(name) {
		n.kind, class = fileLog, wire.ClassLog
	}
	n.data = fs.b.NewID(class, fs.nextNumber(), 0)
	return n
}

func (n *node) open(write bool) *handle {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.refs++
	return &handle{n: n, write: write}
}

// close gives a handle's reference back.
func (n *node) close() {
	n.mu.Lock()
	n.refs--
	last := n.refs == 0 && n.removed
	n.mu.Unlock()
	if last {
		n.free()
	}
}

// remove deletes the file: its description now (that is queued, as all deletes are), its content once nobody has it open.
func (n *node) remove() {
	n.mu.Lock()
	n.removed = true
	desc := n.desc
	n.desc = placed{}
	last := n.refs == 0
	n.mu.Unlock()
	n.fs.deletePlaced(desc)
	if last {
		n.free()
	}
}

// free deletes the content.
func (n *node) free() {
	n.mu.Lock()
	segs, chunks := n.segs, n.chunks
	n.segs, n.chunks, n.ends = nil, nil, nil
	n.mu.Unlock()
	for _, s := range segs {
		n.fs.deletePlaced(placed{id: s.id, at: s.replicas})
	}
	for i := range chunks {
		n.fs.b.Delete(chunks[i].loc)
	}
	n.drop()
}

// drop gives memory back.
func (n *node) drop() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.buf != nil {
		n.buf.Release()
		n.buf, n.bufLen = nil, 0
	}
}

func (fs *FS) deletePlaced(p placed) {
	for _, r := range p.at {
		fs.b.DeleteStrips(r.drive, p.id.WithPos(r.pos))
	}
}

// size gives the length, with what is not on drives yet. n.mu is held.
func (n *node) size() int64 {
	if n.inMem {
		return int64(len(n.mem))
	}
	return n.saved() + int64(n.bufLen)
}

// saved gives the length of what is on drives (or inline). n.mu is held.
func (n *node) saved() int64 {
	switch {
	case n.kind == fileLog && len(n.segs) > 0:
		return n.segs[len(n.segs)-1].end
	case len(n.ends) > 0:
		return n.ends[len(n.ends)-1]
	}
	return int64(len(n.inline))
}

func (n *node) info() *fileInfo {
	n.mu.Lock()
	defer n.mu.Unlock()
	return &fileInfo{name: path.Base(n.name), size: n.size(), modTime: n.modTime}
}

// publish writes a description of what is on drives under a name, which replaces the old one. n.write is held, or
// nobody else has the node yet.
func (n *node) publish(name string) error {
	fs := n.fs
	n.mu.Lock()
	d := description{
		metaHeader: metaHeader{bucket: fs.b.ID(), epoch: fs.b.Epoch(), stamp: n.modTime.UnixNano()},
		kind:       n.kind, name: name, data: n.data, inline: n.inline, chunks: n.chunks,
	}
	if n.kind == fileTable {
		d.length = n.saved()
	}
	n.mu.Unlock()
	d.number = fs.nextNumber()
	at, err := fs.putMeta(d.number, d.encode())
	if err != nil {
		return err
	}
	n.mu.Lock()
	old := n.desc
	n.desc, n.name = at, name
	gone := n.removed
	if gone {
		old, n.desc = n.desc, placed{}
	}
	n.mu.Unlock()
	fs.deletePlaced(old)
	return nil
}

// putMeta writes a strip of class file, with a new id at each attempt.
func (fs *FS) putMeta(number uint64, b []byte) (placed, error) {
	buf, err := fs.b.Store().Arena().Alloc(fs.ctx, len(b))
	if err != nil {
		return placed{}, err
	}
	defer buf.Release()
	copy(buf.Bytes(), b)
	data := wire.Data{{Buf: buf, B: buf.Bytes()}}
	sums := strip.Sums(data)
	var loc wire.Location
	err = fs.retry("description", func() (err error) {
		loc, err = fs.b.PutMirrored(fs.ctx, fs.b.NewID(wire.ClassFile, number, 0), data, sums)
		return err
	})
	return placedAt(loc, len(b)), err
}

// grow makes room for at least one byte more in buf, which has `room` bytes before the content and at most limit bytes
// of content, and makes sure that nobody else reads it. Where a longer buffer is not to be had at once the content goes to the drives by
// send: waiting for memory with some in the hand, each table and log could wait for the others. n.write is held.
func (n *node) grow(room, limit int, send func() error) error {
	have := 0
	if n.buf != nil {
		if have = len(n.buf.Bytes()) - room; n.bufLen < have {
			return n.own(room)
		}
		want := room + min(4*have, limit)
		if buf := n.arena().TryAlloc(want); buf != nil {
			n.move(buf, room)
			return nil
		}
		if err := send(); err != nil {
			return err
		}
	}
	buf, err := n.arena().Alloc(n.fs.ctx, room+min(firstPendBytes, limit))
	if err != nil {
		return err
	}
	n.move(buf, room)
	return nil
}

// own makes sure that nobody else reads buf, before it is written: a drive that was sent it and has not answered may still do so. Then
// the content goes to new memory. n.write is held.
func (n *node) own(room int) error {
	if n.buf == nil || !n.buf.Shared() {
		return nil
	}
	buf, err := n.arena().AllocFor(n.fs.ctx, len(n.buf.Bytes()), wire.UseMore)
	if err != nil {
		return err
	}
	n.move(buf, room)
	return nil
}

// move makes buf the memory of what is not on drives, and takes the content there. n.write is held.
func (n *node) move(buf *wire.Buf, room int) {
	n.mu.Lock()
	old := n.buf
	if old != nil {
		copies.Add(copies.Meta, copy(buf.Bytes()[room:], old.Bytes()[room:room+n.bufLen]))
	}
	n.buf = buf
	n.mu.Unlock()
	if old != nil {
		old.Release()
	}
}

func (n *node) arena() *wire.Arena { return n.fs.b.Store().Arena() }
