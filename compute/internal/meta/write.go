package meta

import (
	"bytes"
	"context"

	"github.com/cespare/xxhash/v2"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/copies"
	"golang.org/x/sync/errgroup"
)

// How a write runs: the data goes to stripes and segments first, with no lock held; then the extents, sizes, live counts
// and the reply change in one batch under the locks of the files. Whether a small file lies in its inode is known for sure
// only under the lock; so if the guess made before was wrong, the operation goes round again with what is still missing.

// piece is a run of blocks on its way into a location.
type piece struct {
	block  uint64 // of the file
	length uint64 // bytes
	sums   []uint64
	data   wire.Data // owned
	loc    wire.Location
	at     uint32 // block of the location
	stored bool
}

// fileWrite is one file of a write under way.
type fileWrite struct {
	req    *wire.FileWrite
	off    int // of its first run in the data section, bytes
	inline bool
	data   []byte   // what is in the inode then
	pieces []*piece // of the runs; made when the file is not inline
	// old is the inline data that has to move to a block because the file outgrows its inode; conv is that block.
	old  []byte
	conv *piece
}

// writeOp is a write under way.
type writeOp struct {
	b     *Bucket
	c     *call
	req   *wire.WriteReq
	data  wire.Data
	files []*fileWrite
	now   int64
}

// Write writes blocks to files, all or nothing, durably. It borrows data.
func (b *Bucket) Write(ctx context.Context, req *wire.WriteReq, data wire.Data) (*wire.WriteResp, error) {
	c, err := b.begin(ctx, req.Op)
	if err != nil {
		return nil, err
	}
	defer c.end()
	w := &writeOp{b: b, c: c, req: req, data: data, now: b.cfg.Now()}
	if err := w.parse(); err != nil {
		return nil, err
	}
	if c.replay != nil {
		return w.again(ctx)
	}
	token := b.segments.begin()
	defer func() {
		if b.segments.end(token) {
			b.wake()
		}
	}()
	defer w.release()
	for range staleRounds {
		if err := w.guess(ctx); err != nil {
			return nil, w.undo(err)
		}
		if err := w.store(ctx); err != nil {
			return nil, w.undo(err)
		}
		resp, err := w.commit(ctx)
		if err == nil {
			return resp, nil
		}
		if err != errChanged {
			return nil, w.undo(err)
		}
	}
	return nil, w.undo(final(errChanged))
}

// parse checks the request against its data.
func (w *writeOp) parse() error {
	bad := func(ino wire.Ino, what string) error {
		return wire.Errorf("meta.write", wire.KindInvalid, inoName(ino), "%s", what)
	}
	if w.req.Bucket != w.b.cfg.Bucket {
		return wire.E("meta.write", wire.KindMoved, w.b.id(), nil)
	}
	if len(w.req.Files) > MaxWriteFiles {
		return wire.Errorf("meta.write", wire.KindOverLimit, w.b.id(), "%d files", len(w.req.Files))
	}
	off := 0
	for i := range w.req.Files {
		f := &w.req.Files[i]
		if f.Region >= wire.MaxFileBytes/wire.RegionBytes {
			return wire.E("meta.write", wire.KindTooBig, inoName(f.Ino), nil)
		}
		if wire.RegionBucket(f.Ino, f.Region, w.b.cfg.Buckets) != w.b.cfg.Bucket {
			return wire.Errorf("meta.write", wire.KindMoved, inoName(f.Ino), "region %d", f.Region)
		}
		if f.Publish && (f.Region != 0 || f.Size > wire.MaxFileBytes) {
			return bad(f.Ino, "publish")
		}
		for j := range w.req.Files[:i] {
			if o := &w.req.Files[j]; o.Ino == f.Ino && o.Region == f.Region {
				return bad(f.Ino, "named twice")
			}
		}
		w.files = append(w.files, &fileWrite{req: f, off: off})
		next := f.Region * wire.RegionBytes
		for _, r := range f.Runs {
			n := blocksOf(r.Len)
			if r.Off%wire.BlockSize != 0 || r.Off < next || r.Len == 0 || r.Len > wire.RegionBytes ||
				r.Off+n*wire.BlockSize > (f.Region+1)*wire.RegionBytes || uint64(len(r.Sums)) != n {
				return bad(f.Ino, "run")
			}
			next = r.Off + n*wire.BlockSize
			off += int(n) * wire.BlockSize
		}
	}
	if off != w.data.Len() {
		return wire.Errorf("meta.write", wire.KindInvalid, w.b.id(), "%d bytes of data for runs of %d", w.data.Len(), off)
	}
	return nil
}

// mayWrite checks the session's right to write a file: at the inode's bucket the write lease, elsewhere that it lives.
func (w *writeOp) mayWrite(ino wire.Ino, region uint64) error {
	return w.b.mayWrite(w.req.Op.Session, ino, region)
}

func (b *Bucket) mayWrite(s wire.SessionID, ino wire.Ino, region uint64) error {
	if !b.cfg.Sessions.Alive(s) {
		return wire.E("meta.write", wire.KindStaleSession, sessionName(s), nil)
	}
	if region == 0 && !b.cfg.Leases.Holds(s, ino, wire.LeaseWrite) {
		return wire.E("meta.write", wire.KindLeaseLost, inoName(ino), nil)
	}
	return nil
}

// guess looks at the files without locks to find out which go to their inodes and which grow out of them.
func (w *writeOp) guess(ctx context.Context) error {
	for _, f := range w.files {
		if err := w.mayWrite(f.req.Ino, f.req.Region); err != nil {
			return err
		}
		f.inline = false
		if f.req.Region == 0 {
			n, err := w.b.readInode(f.req.Ino)
			if err != nil {
				return err
			}
			if n == nil {
				return wire.E("meta.write", wire.KindStale, inoName(f.req.Ino), nil)
			}
			f.inline = f.fitsInline(n)
			if !f.inline && f.outgrows(n) && (f.conv == nil || !bytes.Equal(f.old, n.inline)) {
				f.old = n.inline
				if f.conv, err = w.b.blockOf(ctx, n.inline); err != nil {
					return err
				}
			}
		}
		if !f.inline && f.pieces == nil {
			f.cut(w)
		}
	}
	return nil
}

// fitsInline tells whether the whole file lies in its inode after this write.
func (f *fileWrite) fitsInline(n *inode) bool {
	r := f.req
	return r.Publish && len(r.Runs) == 1 && r.Runs[0].Off == 0 && r.Runs[0].Len <= wire.MaxInlineBytes &&
		max(r.Size, n.attr.Size) <= wire.MaxInlineBytes && r.Runs[0].Len <= max(r.Size, n.attr.Size) &&
		n.isRegular() && n.local == 0 && n.flags&flagRegions == 0
}

// outgrows tells whether inline data must be moved to a block: the write does not replace it.
func (f *fileWrite) outgrows(n *inode) bool {
	r := f.req
	if !n.inlined() || len(r.Runs) > 0 && r.Runs[0].Off == 0 {
		return false
	}
	return len(r.Runs) > 0 || r.Publish && r.Size > wire.MaxInlineBytes
}

// blockOf makes a block of inline data.
func (b *Bucket) blockOf(ctx context.Context, data []byte) (*piece, error) {
	buf, err := b.cfg.Arena.Alloc(ctx, wire.BlockSize)
	if err != nil {
		return nil, err
	}
	block := buf.Bytes()
	clear(block[copy(block, data):])
	copies.Add(copies.Inline, len(data))
	return &piece{length: uint64(len(data)), sums: []uint64{xxhash.Sum64(block)}, data: buf.Data(wire.BlockSize)}, nil
}

// cut divides the runs into pieces: runs of at least a short stripe into stripes of at most a full one (the last two of
// about equal length, so that no crumb is left), shorter ones as they are.
func (f *fileWrite) cut(w *writeOp) {
	off := f.off
	for i := range f.req.Runs {
		r := &f.req.Runs[i]
		total := len(r.Sums)
		for done := 0; done < total; {
			left := total - done
			n := min(left, w.b.cfg.StripeBlocks)
			if left > n && left-n < shortStripeBlocks {
				n = (left + 1) / 2
			}
			length := min(uint64(n)*wire.BlockSize, r.Len-uint64(done)*wire.BlockSize)
			f.pieces = append(f.pieces, &piece{
				block: r.Off/wire.BlockSize + uint64(done), length: length, sums: r.Sums[done : done+n],
				data: w.data.Sub(off, n*wire.BlockSize),
			})
			off += n * wire.BlockSize
			done += n
		}
	}
}

// missing lists the pieces that have to be stored.
func (w *writeOp) missing() (out []*piece) {
	for _, f := range w.files {
		if f.inline {
			continue
		}
		for _, p := range f.pieces {
			if !p.stored {
				out = append(out, p)
			}
		}
		if f.conv != nil && !f.conv.stored {
			out = append(out, f.conv)
		}
	}
	return out
}

// store writes what is missing: each long piece as a stripe, the short ones together as few appends.
func (w *writeOp) store(ctx context.Context) error { return w.b.storePieces(ctx, w.missing()) }

func (b *Bucket) storePieces(ctx context.Context, pieces []*piece) error {
	if len(pieces) == 0 {
		return nil
	}
	b.crash("data.store")
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelWrites)
	var short []*piece
	blocks := 0
	flush := func() {
		if batch := short; len(batch) > 0 {
			g.Go(func() error { return b.appendPieces(ctx, batch) })
		}
		short, blocks = nil, 0
	}
	for _, p := range pieces {
		if len(p.sums) >= shortStripeBlocks {
			g.Go(func() error { return b.stripePiece(ctx, p) })
			continue
		}
		if blocks+len(p.sums) > MaxAppendBlocks {
			flush()
		}
		short = append(short, p)
		blocks += len(p.sums)
	}
	flush()
	return g.Wait()
}

func (b *Bucket) stripePiece(ctx context.Context, p *piece) error {
	number, err := b.numbers.take()
	if err != nil {
		return err
	}
	loc, err := b.cfg.Data.WriteStripe(ctx, number, p.data, p.sums)
	if err != nil {
		return err
	}
	p.loc, p.stored = loc, true
	return checkStored(&loc, wire.LocStripe, number)
}

func (b *Bucket) appendPieces(ctx context.Context, pieces []*piece) error {
	var data wire.Data
	var sums []uint64
	for _, p := range pieces {
		data = append(data, p.data...)
		sums = append(sums, p.sums...)
	}
	loc, at, err := b.cfg.Data.Append(ctx, data, sums)
	if err != nil {
		return err
	}
	if err := checkStored(&loc, wire.LocSegment, loc.ID.Number()); err != nil {
		return err
	}
	b.segments.appended(loc.ID.Number())
	for _, p := range pieces {
		p.loc, p.at, p.stored = loc, at, true
		at += uint32(len(p.sums))
	}
	return nil
}

// checkStored refuses a location that could not be recorded.
func checkStored(loc *wire.Location, kind wire.LocKind, number uint64) error {
	what := checkLocation(loc)
	if what == "" && (loc.Kind != kind || loc.ID.Number() != number || loc.ID.Pos() != 0) {
		what = "id"
	}
	if what != "" {
		return wire.Errorf("meta.write", wire.KindOther, loc.ID.String(), "the data store answers a bad %s", what)
	}
	return nil
}

// undo frees what an operation that failed has stored.
func (w *writeOp) undo(err error) error {
	for _, f := range w.files {
		w.b.discard(f.pieces...)
		w.b.discard(f.conv)
	}
	return err
}

// discard deletes stripes that no extent points to, unless the bucket has failed: then a commit that points to them may
// yet be durable, and the next owner finds out. Blocks in segments just stay dead.
func (b *Bucket) discard(pieces ...*piece) {
	if b.state() != nil {
		return
	}
	for _, p := range pieces {
		if p != nil && p.stored && p.loc.Kind == wire.LocStripe {
			b.cfg.Data.Delete(p.loc)
		}
	}
}

func (w *writeOp) release() {
	for _, f := range w.files {
		for _, p := range f.pieces {
			p.data.Release()
		}
		if f.conv != nil {
			f.conv.data.Release()
		}
	}
}

// commit changes the metadata. errChanged: a guess was wrong, nothing was done.
func (w *writeOp) commit(ctx context.Context) (*wire.WriteResp, error) {
	wants := make([]lockWant, len(w.files))
	for i, f := range w.files {
		if wants[i] = wantInode(f.req.Ino, true); f.req.Region > 0 {
			wants[i] = wantRegions(f.req.Ino, true)
		}
	}
	h, err := w.b.locks.acquire(ctx, w.b.cfg.LockWait, wants...)
	if err != nil {
		return nil, err
	}
	defer h.release(nil)
	t := w.b.newTx(w.now)
	defer t.close()
	resp := &wire.WriteResp{}
	for _, f := range w.files {
		if err := w.mayWrite(f.req.Ino, f.req.Region); err != nil {
			return nil, err
		}
		if f.req.Region > 0 {
			err = w.applyRegion(t, f)
		} else {
			err = w.applyHome(t, f, resp)
		}
		if err != nil {
			return nil, err
		}
		resp.Extents = append(resp.Extents, f.describe())
	}
	// The reply is not recorded in full: its extents are in the database anyway.
	if err := t.commit(h, w.c, nil); err != nil {
		return nil, err
	}
	return resp, nil
}

// replace makes the file's pieces its extents where they lie, and gives the change in blocks.
func (f *fileWrite) replace(t *tx) (delta int64, err error) {
	pieces := f.pieces
	if len(pieces) == 0 {
		return 0, nil
	}
	last := pieces[len(pieces)-1]
	s, err := t.b.loadExtents(f.req.Ino, pieces[0].block, last.block+uint64(len(last.sums)))
	if err != nil {
		return 0, err
	}
	for _, p := range pieces {
		delta += p.place(t, s)
	}
	return delta, s.store(t)
}

// place makes a stored piece an extent.
func (p *piece) place(t *tx, s *extentSet) (delta int64) {
	n := uint64(len(p.sums))
	removed := s.cut(t, p.block, p.block+n)
	s.put(t, extent{block: p.block, length: p.length, number: p.loc.ID.Number(), locBlock: p.at, sums: p.sums}, &p.loc)
	return int64(n) - int64(removed)
}

func (w *writeOp) applyRegion(t *tx, f *fileWrite) error {
	delta, err := f.replace(t)
	if err != nil {
		return err
	}
	return t.changeForeign(f.req.Ino, delta)
}

func (w *writeOp) applyHome(t *tx, f *fileWrite, resp *wire.WriteResp) error {
	n, err := t.existing("meta.write", f.req.Ino)
	if err != nil {
		return err
	}
	if !n.isRegular() {
		return wire.E("meta.write", wire.KindInvalid, inoName(f.req.Ino), nil)
	}
	if f.req.Publish {
		t.publish(n, f.req.Size, f.req.Mtime)
	} else {
		t.bump(n)
	}
	switch {
	case f.inline != f.fitsInline(n):
		return errChanged
	case f.inline:
		if err := w.intoInode(t, n, f); err != nil {
			return err
		}
	case f.outgrows(n):
		if f.conv == nil || !bytes.Equal(f.old, n.inline) {
			return errChanged
		}
		if err := t.moveOut(n, f.conv); err != nil {
			return err
		}
	case len(f.pieces) > 0:
		n.dropInline() // the first run replaces it
	case n.inlined():
		n.padInline()
	}
	if f.inline {
		f.data = n.inline
	} else {
		delta, err := f.replace(t)
		if err != nil {
			return err
		}
		n.local = uint64(int64(n.local) + delta)
	}
	n.setBlocks()
	if f.req.Publish {
		resp.Attrs = append(resp.Attrs, n.attr)
	}
	return nil
}

// publish takes size and mtime of a writer.
func (t *tx) publish(n *inode, size uint64, mtime int64) {
	n.attr.Size = max(n.attr.Size, size)
	n.attr.Mtime = mtime
	t.touch(n)
}

// intoInode puts the file's only run into the inode.
func (w *writeOp) intoInode(t *tx, n *inode, f *fileWrite) error {
	run := &f.req.Runs[0]
	block := w.data.Sub(f.off, wire.BlockSize)
	defer block.Release()
	data := make([]byte, 0, wire.BlockSize)
	for _, s := range block {
		data = append(data, s.B...)
	}
	copies.Add(copies.Inline, len(data))
	// From here on the database's checksum covers it; so this is where the writer's must be verified.
	if xxhash.Sum64(data) != run.Sums[0] {
		return wire.Errorf("meta.write", wire.KindCorrupt, inoName(f.req.Ino), "block at 0 fails its checksum")
	}
	n.flags |= flagInline
	n.inline = data[:run.Len]
	n.padInline()
	return nil
}

// padInline makes the inline data as long as the file.
func (n *inode) padInline() {
	if pad := int(n.attr.Size) - len(n.inline); pad > 0 && n.attr.Size <= wire.MaxInlineBytes {
		n.inline = append(bytes.Clone(n.inline), make([]byte, pad)...)
	}
}

func (n *inode) dropInline() {
	n.flags &^= flagInline
	n.inline = nil
}

// moveOut makes a stored block of what was the inode's inline data. There are no other extents in region 0.
func (t *tx) moveOut(n *inode, conv *piece) error {
	n.dropInline()
	s := &extentSet{ino: n.attr.Ino}
	conv.block = 0
	n.local += uint64(conv.place(t, s))
	return s.store(t)
}

// describe gives the extents of what was written.
func (f *fileWrite) describe() wire.ExtentsResp {
	if f.inline {
		return wire.ExtentsResp{HasInline: true, Inline: f.data}
	}
	x := wire.ExtentsResp{}
	index := map[uint64]uint32{}
	for _, p := range f.pieces {
		at, ok := index[p.loc.ID.Number()]
		if !ok {
			at = uint32(len(x.Locations))
			index[p.loc.ID.Number()] = at
			x.Locations = append(x.Locations, p.loc)
		}
		x.Extents = append(x.Extents, wire.Extent{FileOff: p.block * wire.BlockSize, Len: p.length, Loc: at, Block: p.at, Sums: p.sums})
	}
	return x
}

// again makes the answer of a write that was done before, from the database.
func (w *writeOp) again(ctx context.Context) (*wire.WriteResp, error) {
	resp := &wire.WriteResp{}
	for _, f := range w.files {
		want := wantInode(f.req.Ino, false)
		if f.req.Region > 0 {
			want = wantRegions(f.req.Ino, false)
		}
		h, err := w.b.locks.acquire(ctx, w.b.cfg.LockWait, want)
		if err != nil {
			return nil, err
		}
		err = w.describeAgain(f, resp)
		h.release(nil)
		if derr := h.durable(); derr != nil {
			return nil, derr
		}
		if err != nil {
			return nil, err
		}
	}
	return resp, nil
}

func (w *writeOp) describeAgain(f *fileWrite, resp *wire.WriteResp) error {
	var n *inode
	if f.req.Region == 0 {
		var err error
		if n, err = w.b.readInode(f.req.Ino); err != nil {
			return err
		}
		if n == nil {
			return wire.E("meta.write", wire.KindStale, inoName(f.req.Ino), nil)
		}
		if f.req.Publish {
			resp.Attrs = append(resp.Attrs, n.attr)
		}
	}
	x := &wire.ExtentsResp{}
	if runs := f.req.Runs; len(runs) > 0 {
		last := &runs[len(runs)-1]
		var err error
		x, err = w.b.answerExtents(n, f.req.Ino, runs[0].Off/wire.BlockSize, blocksOf(last.Off+last.Len))
		if err != nil {
			return err
		}
	}
	resp.Extents = append(resp.Extents, *x)
	return nil
}
