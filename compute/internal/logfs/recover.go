package logfs

import (
	"context"
	"errors"
	"sort"
	"sync"
	"time"

	"github.com/crakefs/crake/compute/internal/store"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/strip"
)

// Open gives the files of a bucket to its new owner. The bucket is fenced first, if that was not done.
//
//  1. List descriptions, logs and tables on all reachable drives; at most m failure domains may be missing, so at least
//     one replica of everything acknowledged is seen.
//  2. Which descriptions are live: the newest open record names those that its owner adopted. One of an older epoch that
//     it does not name was removed, or was never acknowledged and not seen then: it is dead, even if a drive brings it
//     back now. Of several with one name, or one content (a rename that was cut short), the newest is live.
//  3. Logs: seal what is open; the file is, segment by segment, what counts of each (see doc.go), and of the last one the
//     longest valid prefix over its replicas: every acknowledged record is on all of them. Unless all segments are on m+1
//     drives in equal length, the log is written anew, with a new description; the old one is superseded with it.
//  4. Descriptions with fewer than m+1 replicas get further ones: Pebble may act on what only one drive remembers.
//  5. Write the open record of this epoch, mirrored. Only now may the files be changed.
//  6. Delete what is dead or debris.
//
// A crash in any step leaves what the next Open handles in the same way.
func Open(ctx context.Context, b *store.Bucket) (*FS, error) {
	fs := newFS(b)
	stop := context.AfterFunc(ctx, fs.cancel) // ends what is repeated
	r := &recovery{fs: fs}
	err := r.run(ctx)
	if !stop() && err == nil {
		err = wire.E("logfs.open", wire.KindInterrupted, "", context.Cause(ctx))
	}
	if err != nil {
		fs.Close()
		return nil, err
	}
	return fs, nil
}

// recovery is one Open under way.
type recovery struct {
	fs     *FS
	descs  []foundDesc
	opens  []foundOpen
	logs   map[logKey]map[uint16]*foundSegment
	tables []store.Listed
	dead   []placed // descriptions and open records to be deleted
}

type foundDesc struct {
	placed
	*description
}

type foundOpen struct {
	placed
	*openRecord
}

// logKey names a log: number and random bits of its data id.
type logKey struct{ number, random uint64 }

func keyOf(id wire.StripID) logKey { return logKey{id.Number(), id.Random()} }

// foundSegment is a segment of a log as the drives list it.
type foundSegment struct {
	placed
	open bool
	used bool
}

func (r *recovery) run(ctx context.Context) error {
	b := r.fs.b
	if !b.Fenced() {
		if _, _, err := b.Fence(ctx); err != nil {
			return err
		}
	}
	if err := r.list(ctx); err != nil {
		return err
	}
	live := r.choose()
	nodes, err := r.adopt(ctx, live)
	if err != nil {
		return err
	}
	if err := r.record(nodes); err != nil {
		return err
	}
	r.collect(nodes)
	for _, n := range nodes {
		r.fs.files[n.name] = n
	}
	return nil
}

// list finds what the drives have (step 1), and reads the descriptions.
func (r *recovery) list(ctx context.Context) error {
	b := r.fs.b
	files, err := b.List(ctx, wire.ClassFile)
	if err != nil {
		return err
	}
	logs, err := b.List(ctx, wire.ClassLog)
	if err != nil {
		return err
	}
	if r.tables, err = b.List(ctx, wire.ClassTable); err != nil {
		return err
	}
	for _, list := range [][]store.Listed{files, logs, r.tables} {
		for _, l := range list {
			r.fs.number = max(r.fs.number, l.ID.Number())
		}
	}
	r.logs = map[logKey]map[uint16]*foundSegment{}
	for _, l := range logs {
		segs := r.logs[keyOf(l.ID)]
		if segs == nil {
			segs = map[uint16]*foundSegment{}
			r.logs[keyOf(l.ID)] = segs
		}
		s := segs[l.ID.Index()]
		if s == nil {
			s = &foundSegment{placed: placed{id: l.ID.WithPos(0)}}
			segs[l.ID.Index()] = s
		}
		s.at = append(s.at, replica{drive: l.Drive, pos: l.ID.Pos(), bytes: l.Len})
		s.open = s.open || l.Open
	}
	return r.readAll(ctx, files)
}

// readAll reads all descriptions and open records: in batches from the first drive that has each, and one by one from the
// others what that gives no good copy of.
func (r *recovery) readAll(ctx context.Context, files []store.Listed) error {
	var found []*foundMeta
	for _, l := range files {
		id := l.ID.WithPos(0)
		if len(found) == 0 || found[len(found)-1].id != id {
			found = append(found, &foundMeta{placed: placed{id: id}})
		}
		f := found[len(found)-1]
		f.at = append(f.at, replica{drive: l.Drive, pos: l.ID.Pos(), bytes: l.Len})
	}
	byDrive := map[wire.DriveID][]*foundMeta{}
	for i, f := range found {
		first := i % len(f.at) // spread the reading
		f.at[0], f.at[first] = f.at[first], f.at[0]
		byDrive[f.at[0].drive] = append(byDrive[f.at[0].drive], f)
	}
	var wg sync.WaitGroup
	for d, list := range byDrive {
		wg.Go(func() { r.fs.readBatch(ctx, d, list) })
	}
	wg.Wait()
	for _, f := range found {
		if f.desc == nil && f.open == nil {
			var err error
			if f.desc, f.open, _, err = r.fs.readMeta(ctx, f.id, f.at); err != nil {
				return err
			}
		}
		if f.open != nil {
			r.opens = append(r.opens, foundOpen{placed: f.placed, openRecord: f.open})
		} else {
			r.descs = append(r.descs, foundDesc{placed: f.placed, description: f.desc})
		}
	}
	return nil
}

// foundMeta is a strip of class file with what it holds: one of desc and open, when it was read.
type foundMeta struct {
	placed
	desc *description
	open *openRecord
}

// readBatch reads descriptions from one drive; what fails stays unread.
func (fs *FS) readBatch(ctx context.Context, d wire.DriveID, list []*foundMeta) {
	for len(list) > 0 {
		var ranges []wire.ReadRange
		size := uint64(0)
		for _, f := range list {
			rep := f.at[0]
			if rep.bytes > wire.MaxDataBytes {
				return // no drive takes such a strip
			}
			if len(ranges) == strip.MaxRanges || len(ranges) > 0 && size+rep.bytes > descReadBytes {
				break
			}
			size += rep.bytes
			ranges = append(ranges, wire.ReadRange{ID: f.id.WithPos(rep.pos), Len: uint32(rep.bytes)})
		}
		batch := list[:len(ranges)]
		list = list[len(ranges):]
		ds, _, err := fs.b.ReadStrips(ctx, d, ranges)
		if err != nil {
			return
		}
		for i, f := range batch {
			if ds[i] != nil {
				if desc, open, err := fs.decode(contiguous(ds[i])); err == nil {
					f.desc, f.open = desc, open
				}
			}
			ds[i].Release()
		}
	}
}

// decode reads a description or open record of this bucket.
func (fs *FS) decode(b []byte) (*description, *openRecord, error) {
	d, o, err := decodeMeta(b)
	if err != nil {
		return nil, nil, err
	}
	var h metaHeader
	if d != nil {
		h = d.metaHeader
	} else {
		h = o.metaHeader
	}
	if h.bucket != fs.b.ID() {
		return nil, nil, wire.Errorf("description", wire.KindCorrupt, "", "of bucket %d", h.bucket)
	}
	return d, o, nil
}

// readMeta reads one description or open record from any of its replicas; raw is a copy of its strip.
func (fs *FS) readMeta(ctx context.Context, id wire.StripID, at []replica) (d *description, o *openRecord, raw []byte, err error) {
	err = wire.Errorf("description.read", wire.KindNotFound, id.String(), "no replica")
	for _, rep := range at {
		if rep.bytes == 0 || rep.bytes > wire.MaxDataBytes {
			err = wire.Errorf("description.read", wire.KindCorrupt, id.String(), "%d bytes on drive %d", rep.bytes, rep.drive)
			continue
		}
		rng := wire.ReadRange{ID: id.WithPos(rep.pos), Len: uint32(rep.bytes)}
		ds, kinds, rerr := fs.b.ReadStrips(ctx, rep.drive, []wire.ReadRange{rng})
		switch {
		case rerr != nil:
			err = rerr
			continue
		case kinds[0] != wire.KindNone:
			err = wire.Errorf("description.read", kinds[0], rng.ID.String(), "drive %d", rep.drive)
			continue
		}
		raw = append([]byte(nil), contiguous(ds[0])...)
		ds[0].Release()
		if d, o, rerr = fs.decode(raw); rerr == nil {
			return d, o, raw, nil
		}
		err = wire.E("description.read", wire.KindOf(rerr), rng.ID.String(), rerr)
	}
	return nil, nil, nil, err
}

// choose tells live descriptions from dead ones (step 2).
func (r *recovery) choose() []foundDesc {
	var newest *foundOpen
	for i := range r.opens {
		r.dead = append(r.dead, r.opens[i].placed)
		if newest == nil || r.opens[i].newer(newest.metaHeader) {
			newest = &r.opens[i]
		}
	}
	adopted := map[wire.StripID]bool{}
	if newest != nil {
		for _, id := range newest.live {
			adopted[id] = true
		}
	}
	sort.Slice(r.descs, func(i, j int) bool { return r.descs[i].newer(r.descs[j].metaHeader) })
	var live []foundDesc
	names, contents := map[string]bool{}, map[wire.StripID]bool{}
	for _, d := range r.descs {
		ghost := newest != nil && d.epoch < newest.epoch && !adopted[d.id]
		if ghost || names[d.name] || contents[d.data] {
			r.dead = append(r.dead, d.placed)
			continue
		}
		names[d.name], contents[d.data] = true, true
		live = append(live, d)
	}
	return live
}

// adopt makes nodes of the live descriptions (steps 3 and 4).
func (r *recovery) adopt(ctx context.Context, live []foundDesc) ([]*node, error) {
	nodes := make([]*node, len(live))
	errs := make([]error, len(live))
	var wg sync.WaitGroup
	slots := make(chan struct{}, openConcurrency)
	for i, d := range live {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			nodes[i], errs[i] = r.adoptOne(ctx, d)
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return nodes, nil
}

func (r *recovery) adoptOne(ctx context.Context, d foundDesc) (*node, error) {
	n := &node{fs: r.fs, kind: d.kind, name: d.name, modTime: time.Unix(0, d.stamp), desc: d.placed, data: d.data}
	if d.kind == fileTable {
		n.setChunks(d.description)
		n.unread = len(d.chunks) > 0 // the sums are read again when it is opened: most are not, and they take memory
		for i := range n.chunks {
			n.chunks[i].sums = nil
		}
		return n, r.mirror(ctx, n)
	}
	whole, err := r.log(ctx, n)
	if err != nil {
		return nil, err
	}
	if whole {
		return n, r.mirror(ctx, n)
	}
	return r.copyLog(ctx, n)
}

// mirror gives a description further replicas until it has m+1 (step 4).
func (r *recovery) mirror(ctx context.Context, n *node) error {
	b := r.fs.b
	missing := b.Replicas() - r.domains(n.desc.at)
	if missing <= 0 {
		return nil
	}
	_, _, raw, err := r.fs.readMeta(ctx, n.desc.id, n.desc.at)
	if err != nil {
		return err
	}
	buf, err := b.Store().Arena().Alloc(ctx, len(raw))
	if err != nil {
		return err
	}
	defer buf.Release()
	copy(buf.Bytes(), raw)
	data := wire.Data{{Buf: buf, B: buf.Bytes()}}
	taken := map[int]bool{}
	var have []wire.DriveID
	for _, rep := range n.desc.at {
		taken[rep.pos] = true
		have = append(have, rep.drive)
	}
	var positions []int
	for pos := 0; len(positions) < missing; pos++ {
		if !taken[pos] {
			positions = append(positions, pos)
		}
	}
	drives, err := b.Replicate(ctx, n.desc.id, have, positions, data, strip.Sums(data))
	if err != nil {
		return err
	}
	for i, d := range drives {
		n.desc.at = append(n.desc.at, replica{drive: d, pos: positions[i], bytes: uint64(len(raw))})
	}
	return nil
}

// domains counts the failure domains that replicas are in.
func (r *recovery) domains(at []replica) int {
	seen := map[uint32]bool{}
	for _, rep := range at {
		if domain, ok := r.fs.b.Domain(rep.drive); ok {
			seen[domain] = true
		}
	}
	return len(seen)
}

// log finds the segments of a log and what counts of each (step 3). It reports whether all are fully mirrored.
func (r *recovery) log(ctx context.Context, n *node) (whole bool, err error) {
	segs := r.logs[keyOf(n.data)]
	order := make([]int, 0, len(segs))
	for i := range segs {
		order = append(order, int(i))
	}
	sort.Ints(order)
	whole = true
	for _, i := range order {
		s := segs[uint16(i)]
		s.used = true
		if err := r.sealSegment(ctx, s); err != nil {
			return false, err
		}
		start, err := r.fs.segmentStart(ctx, s.id, s.at)
		if err != nil {
			return false, err
		}
		// A later segment tells how far the ones before it count.
		for len(n.segs) > 0 && n.segs[len(n.segs)-1].start >= start {
			n.segs = n.segs[:len(n.segs)-1]
		}
		if len(n.segs) > 0 {
			n.segs[len(n.segs)-1].end = start
		}
		longest := uint64(0)
		for _, rep := range s.at {
			longest = max(longest, rep.bytes)
		}
		var equal []replica
		for _, rep := range s.at {
			if rep.bytes == longest {
				equal = append(equal, rep)
			}
		}
		whole = whole && r.domains(equal) >= r.fs.b.Replicas()
		n.segs = append(n.segs, segRef{id: s.id, replicas: s.at, start: start, end: start, bytes: longest})
	}
	if len(n.segs) == 0 {
		return whole, nil
	}
	if n.segs[0].start != 0 {
		n.damage = wire.Errorf("log.open", wire.KindCorrupt, n.name, "begins at %d", n.segs[0].start)
		n.segs = nil
		return true, nil
	}
	ended, err := r.lastSegment(ctx, n)
	return whole && ended, err
}

// lastSegment reads the end of a log. It reports whether the records end where the replicas do; where some replica has a
// record that is not valid while another ends before it, the record was never acknowledged.
func (r *recovery) lastSegment(ctx context.Context, n *node) (bool, error) {
	last := &n.segs[len(n.segs)-1]
	s := r.fs.readSegment(ctx, last.id, last.replicas)
	last.end = last.start + int64(len(s.payload))
	if s.err == nil {
		return true, nil
	}
	if wire.KindOf(s.err).Retryable() {
		return false, s.err
	}
	for _, rep := range last.replicas {
		if rep.bytes <= s.bytes {
			return false, nil
		}
	}
	n.damage = s.err
	return true, nil // the good part stays where it is
}

// sealSegment ends the replicas of a segment and learns their lengths.
func (r *recovery) sealSegment(ctx context.Context, s *foundSegment) error {
	if !s.open {
		return nil
	}
	errs := make([]error, len(s.at))
	var wg sync.WaitGroup
	for i := range s.at {
		wg.Go(func() {
			rep := &s.at[i]
			rep.bytes, errs[i] = r.fs.b.Seal(ctx, rep.drive, s.id.WithPos(rep.pos))
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// segmentStart reads the first record of a segment.
func (fs *FS) segmentStart(ctx context.Context, id wire.StripID, at []replica) (int64, error) {
	var err error
	for _, rep := range at {
		if rep.bytes < wire.BlockSize {
			continue
		}
		rng := wire.ReadRange{ID: id.WithPos(rep.pos), Len: wire.BlockSize}
		ds, kinds, rerr := fs.b.ReadStrips(ctx, rep.drive, []wire.ReadRange{rng})
		switch {
		case rerr != nil:
			err = rerr
			continue
		case kinds[0] != wire.KindNone:
			err = wire.Errorf("log.open", kinds[0], rng.ID.String(), "drive %d", rep.drive)
			continue
		}
		rec, inline, _, derr := wire.DecodeSegHead(contiguous(ds[0]))
		start, ok := int64(0), false
		if derr == nil && rec.ID == id && rec.Offset == 0 {
			start, ok = decodeSegHead(inline)
		}
		ds[0].Release()
		if ok {
			return start, nil
		}
		err = wire.Errorf("log.open", wire.KindCorrupt, rng.ID.String(), "first record on drive %d", rep.drive)
	}
	if err == nil {
		err = wire.Errorf("log.open", wire.KindCorrupt, id.String(), "all replicas are empty")
	}
	return 0, err
}

// copyLog writes a log anew, fully mirrored, under a new description of the same name, which replaces the old one. The
// old segments become debris.
func (r *recovery) copyLog(ctx context.Context, old *node) (*node, error) {
	fs := r.fs
	n := newNode(fs, old.name)
	defer n.drop() // after an error; else nothing is left
	n.kind, n.modTime, n.damage = old.kind, old.modTime, old.damage
	if n.data.Class() != wire.ClassLog {
		n.data = fs.b.NewID(wire.ClassLog, n.data.Number(), 0)
	}
	from := &handle{n: old}
	buf := make([]byte, MaxRecordBytes)
	for off := int64(0); off < old.size(); {
		c, err := from.readLog(ctx, buf[:min(int64(len(buf)), old.size()-off)], off)
		if err != nil && wire.KindOf(err).Retryable() {
			return nil, err
		}
		if err != nil { // not its end, which was read: a segment before is broken. Nothing is thrown away then.
			old.damage = err
			n.logSeal()
			return old, nil
		}
		if err := n.logWrite(buf[:c]); err != nil {
			return nil, err
		}
		off += int64(c)
	}
	if err := n.logSync(); err != nil {
		return nil, err
	}
	n.logSeal()
	if err := n.publish(n.name); err != nil {
		return nil, err
	}
	for _, s := range r.logs[keyOf(old.data)] {
		s.used = false
	}
	r.fs.mu.Lock()
	r.dead = append(r.dead, old.desc)
	r.fs.mu.Unlock()
	return n, nil
}

// record writes the open record (step 5).
func (r *recovery) record(nodes []*node) error {
	fs := r.fs
	rec := openRecord{metaHeader: metaHeader{
		bucket: fs.b.ID(), epoch: fs.b.Epoch(), number: fs.nextNumber(), stamp: time.Now().UnixNano(),
	}}
	for _, n := range nodes {
		rec.live = append(rec.live, n.desc.id)
	}
	_, err := fs.putMeta(rec.number, rec.encode())
	return err
}

// collect deletes the dead and the debris (step 6).
func (r *recovery) collect(nodes []*node) {
	fs := r.fs
	for _, p := range r.dead {
		fs.deletePlaced(p)
	}
	for _, segs := range r.logs {
		for _, s := range segs {
			if !s.used {
				fs.deletePlaced(s.placed)
			}
		}
	}
	live := map[wire.StripID]bool{}
	byDesc := map[wire.StripID]bool{}
	for _, n := range nodes {
		byDesc[n.desc.id] = true
	}
	for _, d := range r.descs {
		if byDesc[d.id] {
			for i := range d.chunks {
				live[d.chunks[i].loc.ID.WithPos(0)] = true
			}
		}
	}
	for _, l := range r.tables {
		if !live[l.ID.WithPos(0)] {
			fs.b.DeleteStrips(l.Drive, l.ID)
		}
	}
}
