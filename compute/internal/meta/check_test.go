package meta

import (
	"bytes"
	"fmt"
	"sort"
	"strings"
	"time"

	"github.com/crakefs/crake/wire"
	"golang.org/x/sys/unix"
)

// check compares all records of all buckets with each other, as fsck does: names and inodes, link and entry counts,
// parents, extents and live counts, block counts, counters; every extent's blocks must be in the data store, and every
// stored block run must be known. Everything must be settled.
func (r *rig) check() {
	r.t.Helper()
	var bad []string
	say := func(format string, args ...any) { bad = append(bad, fmt.Sprintf(format, args...)) }
	inodes := map[wire.Ino]*inode{}
	orphans := map[wire.Ino]bool{}
	names := map[wire.Ino]map[string]dentry{}
	for i := range r.n {
		r.checkBucket(wire.BucketID(i), inodes, orphans, names, say)
	}
	links := map[wire.Ino]uint32{}
	subdirs := map[wire.Ino]uint32{}
	for dir, entries := range names {
		d := inodes[dir]
		if d == nil || !d.isDir() {
			say("names in %x, which is no directory", dir)
			continue
		}
		if d.entries != uint64(len(entries)) || d.attr.Size != d.entries {
			say("directory %x: %d entries counted, %d there", dir, d.entries, len(entries))
		}
		for name, e := range entries {
			n := inodes[e.ino]
			switch {
			case n == nil:
				say("%x/%s: no inode %x", dir, name, e.ino)
				continue
			case typeOf(n.attr.Mode) != e.typ:
				say("%x/%s: type %o, inode %o", dir, name, e.typ, n.attr.Mode)
			case n.fs != d.fs:
				say("%x/%s: filesystem %d in %d", dir, name, n.fs, d.fs)
			case n.isDir() && n.parent != dir:
				say("%x/%s: parent is %x", dir, name, n.parent)
			}
			links[e.ino]++
			if n.isDir() {
				subdirs[dir]++
			}
		}
	}
	for ino, n := range inodes {
		want := links[ino]
		switch {
		case ino.Seq() < wire.FirstInoSeq:
			want = 2 + subdirs[ino]
		case n.isDir():
			if want > 1 {
				say("directory %x has %d names", ino, want)
			}
			if want == 1 {
				want = 2 + subdirs[ino]
			}
		}
		if n.attr.Nlink != want {
			say("inode %x: nlink %d, should be %d", ino, n.attr.Nlink, want)
		}
		if (n.attr.Nlink == 0) != orphans[ino] {
			say("inode %x: nlink %d, orphan %v", ino, n.attr.Nlink, orphans[ino])
		}
		if n.isDir() && n.entries != uint64(len(names[ino])) {
			say("directory %x: %d entries counted, %d there", ino, n.entries, len(names[ino]))
		}
		r.checkTree(ino, inodes, say)
	}
	if len(bad) > 0 {
		sort.Strings(bad)
		r.t.Fatalf("inconsistent:\n%s", strings.Join(bad, "\n"))
	}
}

// checkTree makes sure that a directory hangs below the root.
func (r *rig) checkTree(ino wire.Ino, inodes map[wire.Ino]*inode, say func(string, ...any)) {
	n := inodes[ino]
	if !n.isDir() || n.attr.Nlink == 0 {
		return
	}
	for range 1000 {
		if ino.Seq() < wire.FirstInoSeq {
			return
		}
		if n = inodes[n.parent]; n == nil {
			say("directory %x: a parent is missing", ino)
			return
		}
		ino = n.attr.Ino
	}
	say("directory %x is in a loop", ino)
}

func (r *rig) checkBucket(id wire.BucketID, inodes map[wire.Ino]*inode, orphans map[wire.Ino]bool, names map[wire.Ino]map[string]dentry, say func(string, ...any)) {
	b := r.bucket(id)
	live := map[uint64]uint64{}
	local, abroad := map[wire.Ino]uint64{}, map[wire.Ino]uint64{}
	locs := map[uint64]*location{}
	var sum counters
	fail := func(err error) {
		if err != nil {
			say("bucket %d: %v", id, err)
		}
	}
	fail(b.scan(newKey(tagInode), nil, func(k, v []byte) (bool, error) {
		f, _, _ := splitKey(k, 1)
		n, err := decodeInode(wire.Ino(f[0]), v)
		if err == nil {
			inodes[n.attr.Ino] = n
			sum.inodes++
			if n.inlined() && uint64(len(n.inline)) != n.attr.Size {
				say("inode %x: size %d, %d bytes in it", f[0], n.attr.Size, len(n.inline))
			}
		}
		return true, err
	}))
	fail(b.scan(newKey(tagOrphan), nil, func(k, _ []byte) (bool, error) {
		f, _, _ := splitKey(k, 1)
		orphans[wire.Ino(f[0])] = true
		return true, nil
	}))
	fail(b.scan(newKey(tagDentry), nil, func(k, v []byte) (bool, error) {
		f, _, _ := splitKey(k, 2)
		d, err := decodeDentry(v)
		dir := wire.Ino(f[0])
		if names[dir] == nil {
			names[dir] = map[string]dentry{}
		}
		if _, twice := names[dir][d.name]; twice {
			say("%x/%s is there twice", dir, d.name)
		}
		names[dir][d.name] = d
		return true, err
	}))
	fail(b.scan(newKey(tagLoc), nil, func(k, v []byte) (bool, error) {
		l, err := decodeLocation(v)
		if err == nil {
			locs[l.loc.ID.Number()] = l
			if l.loc.Kind == wire.LocSegment {
				sum.segments++
			} else {
				sum.stripes++
			}
		}
		return true, err
	}))
	var end uint64
	var last wire.Ino
	fail(b.scan(newKey(tagExtent), nil, func(k, v []byte) (bool, error) {
		f, _, _ := splitKey(k, 2)
		e, err := decodeExtent(f[1], v)
		if err != nil {
			return false, err
		}
		ino := wire.Ino(f[0])
		if ino == last && e.block < end {
			say("inode %x: extents overlap at %d", ino, e.block)
		}
		last, end = ino, e.end()
		live[e.number] += e.blocks()
		sum.blocks += int64(e.blocks())
		if region := e.block / regionBlocks; region == 0 && ino.Bucket() == id {
			local[ino] += e.blocks()
		} else {
			abroad[ino] += e.blocks()
			if wire.RegionBucket(ino, region, r.n) != id {
				say("inode %x: region %d is in bucket %d", ino, region, id)
			}
		}
		l := locs[e.number]
		if l == nil {
			say("inode %x block %d: no location %d", ino, e.block, e.number)
			return true, nil
		}
		for i, s := range e.sums {
			if _, err := r.stores[id].block(&l.loc, e.locBlock+uint32(i), s); err != nil {
				say("inode %x block %d: %v", ino, e.block+uint64(i), err)
			}
		}
		return true, nil
	}))
	r.checkCounts(b, inodes, local, abroad, live, locs, sum, say)
	for _, tag := range []byte{tagDecided, tagPrepare, tagCleanup, tagReport} {
		fail(b.scan(newKey(tag), nil, func(k, _ []byte) (bool, error) {
			say("bucket %d: record %q is left: %x", id, tag, k)
			return true, nil
		}))
	}
}

func (r *rig) checkCounts(b *Bucket, inodes map[wire.Ino]*inode, local, abroad map[wire.Ino]uint64, live map[uint64]uint64,
	locs map[uint64]*location, sum counters, say func(string, ...any)) {
	id := b.cfg.Bucket
	for ino, n := range inodes {
		if ino.Bucket() == id && n.local != local[ino] {
			say("inode %x: %d blocks counted, %d there", ino, n.local, local[ino])
		}
	}
	for ino := range local {
		if inodes[ino] == nil {
			say("extents of inode %x, which is gone", ino)
		}
	}
	for ino, n := range abroad {
		if f, _, err := b.readForeign(ino); err != nil || f.blocks != n {
			say("bucket %d: inode %x: %d blocks counted here, %d there (%v)", id, ino, f.blocks, n, err)
		}
	}
	for number, l := range locs {
		if l.live != live[number] {
			say("bucket %d: location %d: %d live, %d used", id, number, l.live, live[number])
		}
		if l.live == 0 && l.loc.Kind == wire.LocStripe {
			say("bucket %d: stripe %d without live blocks", id, number)
		}
	}
	v, closer, ok, err := b.get(systemKey(sysCounters))
	got := counters{}
	if ok {
		got, err = decodeCounters(v)
		_ = closer.Close()
	}
	if err != nil || got != sum {
		say("bucket %d: counters %+v, should be %+v (%v)", id, got, sum, err)
	}
	b.mu.Lock()
	if b.sum != sum {
		say("bucket %d: counters in memory %+v, should be %+v", id, b.sum, sum)
	}
	b.mu.Unlock()
	b.locks.check(say)
}

// check makes sure that nothing is locked.
func (t *lockTable) check(say func(string, ...any)) {
	// Run may have found the same work as the test, and be on its last step. A lock that nobody gives back is still there in the end.
	for end := time.Now().Add(10 * time.Second); t.left() > 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		for id, e := range s.m {
			say("lock %v: exclusive %v, %d readers, %d wait, last %v", id, e.exclusive, e.readers, len(e.queue), e.last)
		}
		s.mu.Unlock()
	}
}

// checkLeaks makes sure that what the store holds and the bucket denies is what crashes and failures have left, and
// deletes it, as the owner does after an open.
func (r *rig) checkLeaks(allowed bool) {
	for i := range r.n {
		s := r.stores[i]
		b := r.bucket(wire.BucketID(i))
		s.mu.Lock()
		ids := make([]wire.StripID, 0, len(s.stripes))
		for id := range s.stripes {
			ids = append(ids, id)
		}
		for id := range s.segs {
			ids = append(ids, id)
		}
		s.mu.Unlock()
		for _, id := range ids {
			has, err := b.HasLocation(id.WithPos(3))
			if err != nil {
				r.t.Fatal(err)
			}
			if !has && !allowed {
				r.t.Errorf("%v is a leak", id)
			}
		}
	}
}

// tree describes all that can be seen from the root: paths, types, link counts, sizes, contents.
func (r *rig) tree() string {
	var out []string
	var walk func(path string, ino wire.Ino)
	walk = func(path string, ino wire.Ino) {
		list := r.list(ino)
		for _, e := range list {
			p := path + "/" + e.Name
			a := r.getattr(e.Ino)
			line := fmt.Sprintf("%s %o nlink=%d size=%d", p, a.Mode, a.Nlink, a.Size)
			if typeOf(a.Mode) == unix.S_IFLNK {
				l, err := r.bucket(e.Ino.Bucket()).ReadLink(ctxT(r.t), &wire.ReadLinkReq{Session: r.session, Ino: e.Ino})
				if err != nil {
					r.t.Fatal(err)
				}
				line += " -> " + l.Target
			}
			out = append(out, line)
			if e.Type == unix.S_IFDIR {
				walk(p, e.Ino)
			}
		}
	}
	walk("", r.root())
	sort.Strings(out)
	return strings.Join(out, "\n")
}

func (r *rig) list(dir wire.Ino) []wire.DirEntry {
	var out []wire.DirEntry
	req := &wire.ReadDirReq{Session: r.session, Ino: dir, Limit: 3, Plus: true}
	for {
		resp, err := r.bucket(dir.Bucket()).ReadDir(ctxT(r.t), req)
		if err != nil {
			r.t.Fatalf("readdir %x: %v", dir, err)
		}
		out = append(out, resp.Entries...)
		if resp.EOF {
			return out
		}
		req.Cookie = resp.Entries[len(resp.Entries)-1].Cookie
	}
}

func (r *rig) getattr(ino wire.Ino) wire.Attr {
	resp, err := r.bucket(ino.Bucket()).GetAttr(ctxT(r.t), &wire.GetAttrReq{Session: r.session, Ino: ino})
	if err != nil {
		r.t.Fatalf("getattr %x: %v", ino, err)
	}
	return resp.Attr
}

// readFile gives the bytes of [off, off+n) as a frontend reads them.
func (r *rig) readFile(ino wire.Ino, off, n uint64) []byte {
	r.t.Helper()
	out := make([]byte, n)
	for at := off; at < off+n; {
		region := at / wire.RegionBytes
		end := min(off+n, (region+1)*wire.RegionBytes)
		bucket := wire.RegionBucket(ino, region, r.n)
		x, err := r.bucket(bucket).Extents(ctxT(r.t), &wire.ExtentsReq{Session: r.session, Ino: ino, Off: at, Len: end - at})
		if err != nil {
			r.t.Fatalf("extents %x: %v", ino, err)
		}
		if x.HasInline {
			if at < uint64(len(x.Inline)) {
				copy(out[at-off:], x.Inline[at:])
			}
		}
		for _, e := range x.Extents {
			r.copyExtent(bucket, x, &e, off, out)
		}
		at = end
	}
	return out
}

func (r *rig) copyExtent(bucket wire.BucketID, x *wire.ExtentsResp, e *wire.Extent, off uint64, out []byte) {
	var data bytes.Buffer
	for i, s := range e.Sums {
		b, err := r.stores[bucket].block(&x.Locations[e.Loc], e.Block+uint32(i), s)
		if err != nil {
			r.t.Fatalf("read: %v", err)
		}
		data.Write(b)
	}
	b := data.Bytes()[:e.Len]
	from, to := e.FileOff, e.FileOff+e.Len
	if from < off {
		b, from = b[min(uint64(len(b)), off-from):], off
	}
	if to > off+uint64(len(out)) {
		to = off + uint64(len(out))
	}
	if from < to {
		copy(out[from-off:to-off], b)
	}
}
