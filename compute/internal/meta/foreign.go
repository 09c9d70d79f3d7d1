package meta

import (
	"context"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

// st_blocks of a file whose regions lie in many buckets: each bucket counts what it maps of the inode, in all regions
// above 0 together (tagForeign). A change is marked in the same batch (tagReport), and Run reports the new count to the
// inode's bucket, every settlePause; so st_blocks is exact as soon as the reports are in, also after a crash. The
// inode's bucket adds up what it was told (tagRemote, inode.remote). Reports recall no leases: they would take the
// write lease away from who is just writing.

// reportBatch bounds the inodes of one report.
const reportBatch = 1024

// foreignState is what a tx changes about an inode of which this bucket maps regions.
type foreignState struct {
	ino    wire.Ino
	f      foreign
	loaded bool // there is a record
	dirty  bool
	gone   bool // forget it
	report bool // tell the inode's bucket
}

func (b *Bucket) readForeign(ino wire.Ino) (f foreign, found bool, err error) {
	v, closer, ok, err := b.get(foreignKey(ino))
	if err != nil || !ok {
		return f, false, err
	}
	f, err = decodeForeign(v)
	_ = closer.Close()
	return f, true, err
}

// foreign gives what is known about an inode's regions here, as this tx sees it. The pointer is valid until the next call.
func (t *tx) foreign(ino wire.Ino) (*foreignState, error) {
	for i := range t.abroad {
		if t.abroad[i].ino == ino {
			return &t.abroad[i], nil
		}
	}
	f, found, err := t.b.readForeign(ino)
	if err != nil {
		return nil, err
	}
	t.abroad = append(t.abroad, foreignState{ino: ino, f: f, loaded: found})
	return &t.abroad[len(t.abroad)-1], nil
}

// changeForeign notes that this bucket maps delta blocks more of the inode.
func (t *tx) changeForeign(ino wire.Ino, delta int64) error {
	s, err := t.foreign(ino)
	if err != nil {
		return err
	}
	blocks := int64(s.f.blocks) + delta
	if blocks < 0 {
		return wire.Errorf("meta.extent", wire.KindCorrupt, inoName(ino), "%d blocks in the regions here", blocks)
	}
	s.dirty = true
	if delta != 0 {
		s.f.blocks = uint64(blocks)
		s.f.version++
		s.report = true
	}
	return nil
}

// writeForeigns puts the changes into the batch.
func (t *tx) writeForeigns() error {
	for i := range t.abroad {
		s := &t.abroad[i]
		if !s.dirty {
			continue
		}
		ino := s.ino
		if s.gone {
			if !s.loaded {
				continue
			}
			if err := t.del(foreignKey(ino)); err != nil {
				return err
			}
			if err := t.del(reportKey(ino)); err != nil {
				return err
			}
			t.onApplied = append(t.onApplied, func() { t.b.noReport(ino) })
			continue
		}
		if err := t.set(foreignKey(ino), s.f.append(nil)); err != nil {
			return err
		}
		if s.report {
			if err := t.set(reportKey(ino), appendFlagRecord(nil)); err != nil {
				return err
			}
			t.onApplied = append(t.onApplied, func() { t.b.wantReport(ino) })
		}
	}
	return nil
}

func (b *Bucket) wantReport(ino wire.Ino) {
	b.mu.Lock()
	first := len(b.reports) == 0
	b.reports[ino] = struct{}{}
	b.mu.Unlock()
	if first {
		b.wake()
	}
}

func (b *Bucket) noReport(ino wire.Ino) {
	b.mu.Lock()
	delete(b.reports, ino)
	b.mu.Unlock()
}

func (b *Bucket) loadReports() error {
	return b.scan(newKey(tagReport), nil, func(k, _ []byte) (bool, error) {
		f, rest, ok := splitKey(k, 1)
		if !ok || len(rest) != 0 {
			return false, corruptKey(k)
		}
		b.reports[wire.Ino(f[0])] = struct{}{}
		return true, nil
	})
}

// pendingReports gives up to reportBatch inodes that one other bucket has to be told about, or none.
func (b *Bucket) pendingReports() (home wire.BucketID, inos []wire.Ino) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for ino := range b.reports {
		if len(inos) == 0 {
			home = ino.Bucket()
		}
		if ino.Bucket() == home {
			inos = append(inos, ino)
		}
		if len(inos) == reportBatch {
			break
		}
	}
	return home, inos
}

// report tells one bucket what is mapped here of its inodes.
func (b *Bucket) report(ctx context.Context, home wire.BucketID, inos []wire.Ino) error {
	req := &wire.RegionBlocksReq{Bucket: home, From: b.cfg.Bucket}
	for _, ino := range inos {
		h, err := b.locks.acquire(ctx, b.cfg.LockWait, wantRegions(ino, false))
		if err != nil {
			return err
		}
		f, found, err := b.readForeign(ino)
		h.release(nil)
		if derr := h.durable(); derr != nil {
			return derr
		}
		if err != nil {
			return err
		}
		if found {
			req.Blocks = append(req.Blocks, wire.RegionBlocks{Ino: ino, Blocks: f.blocks, Version: f.version})
		} else {
			b.noReport(ino)
		}
	}
	if len(req.Blocks) == 0 {
		return nil
	}
	if err := b.cfg.Peers(ctx, home, &rpc.Call{Method: wire.MRegionBlocks, Req: req}); err != nil {
		return err
	}
	for _, r := range req.Blocks {
		if err := b.reported(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// reported removes the mark of a report, unless there was a change since.
func (b *Bucket) reported(ctx context.Context, r wire.RegionBlocks) error {
	h, err := b.locks.acquire(ctx, b.cfg.LockWait, wantRegions(r.Ino, true))
	if err != nil {
		return err
	}
	defer h.release(nil)
	f, found, err := b.readForeign(r.Ino)
	if err != nil || found && f.version != r.Version {
		return err
	}
	// Not synced: a report too many does no harm.
	if err := b.guard(func() error { return b.db.Delete(reportKey(r.Ino), noSync) }); err != nil {
		b.fail(err)
		return b.state()
	}
	b.noReport(r.Ino)
	return nil
}

// RegionBlocks takes in what another bucket maps of inodes of this one.
func (b *Bucket) RegionBlocks(ctx context.Context, req *wire.RegionBlocksReq) error {
	if err := b.enter(); err != nil {
		return err
	}
	defer b.leave()
	if len(req.Blocks) > reportBatch {
		return wire.Errorf("meta.regionblocks", wire.KindOverLimit, b.id(), "%d inodes", len(req.Blocks))
	}
	for i := range req.Blocks {
		r := &req.Blocks[i]
		if err := b.checkHere("meta.regionblocks", r.Ino); err != nil {
			return err
		}
		if err := b.takeReport(ctx, req.From, r); err != nil {
			return err
		}
	}
	return nil
}

func (b *Bucket) takeReport(ctx context.Context, from wire.BucketID, r *wire.RegionBlocks) error {
	h, err := b.locks.acquire(ctx, b.cfg.LockWait, wantInode(r.Ino, true))
	if err != nil {
		return err
	}
	defer h.release(nil)
	t := b.newTx(b.cfg.Now())
	defer t.close()
	n, err := t.inode(r.Ino)
	if err != nil || n == nil {
		return err // a deleted inode needs no count
	}
	if err := t.noteRemote(n, from, r); err != nil {
		return err
	}
	return t.commit(h, nil, nil)
}

// noteRemote adds a report to an inode.
func (t *tx) noteRemote(n *inode, from wire.BucketID, r *wire.RegionBlocks) error {
	var m remote
	v, closer, ok, err := t.b.get(remoteKey(n.attr.Ino, from))
	if err != nil {
		return err
	}
	if ok {
		m, err = decodeRemote(v)
		_ = closer.Close()
		if err != nil {
			return err
		}
	}
	if r.Version <= m.version {
		return nil
	}
	if m.blocks > n.remote || r.Blocks > wire.MaxFileBytes/wire.BlockSize {
		return wire.Errorf("meta.regionblocks", wire.KindCorrupt, inoName(n.attr.Ino), "%d blocks of %d", m.blocks, n.remote)
	}
	n.remote += r.Blocks - m.blocks
	n.setBlocks()
	t.bump(n)
	m = remote{blocks: r.Blocks, version: r.Version}
	return t.set(remoteKey(n.attr.Ino, from), m.append(nil))
}
