package core

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
	"github.com/crakefs/crake/wire/strip"
)

const (
	fakeK, fakeM  = 2, 1
	fakeBuckets   = 4
	fakeFreeBytes = 1 << 40
)

// fake is computes and drives in memory, with the semantics that a frontend relies on: leases with recalls, extents, immutable strips,
// exactly once, sizes published apart from data. Requests and answers go through their encodings.
type fake struct {
	t     testing.TB
	arena *wire.Arena

	mu       sync.Mutex
	m        wire.ClusterMap
	inodes   map[wire.Ino]*fakeInode
	strips   map[uint64][]byte
	next     uint64
	replies  map[wire.OpID]fakeReply // Acked zeroed
	clients  map[wire.SessionID]*FS
	changed  chan struct{} // closed at changes of leases
	free     uint64
	claims   []*wire.ReclaimReq
	counts   map[wire.Method]int
	writes   []wire.WriteReq
	released []wire.Ino

	// hook is called before a request is served, without mu; an error is the answer, and nothing is done. after is called when
	// it has been; its error replaces the answer.
	hook, after func(s wire.SessionID, b wire.BucketID, m wire.Method, req wire.Message) error
	readHook    func(w []strip.Want) error
}

type fakeReply struct {
	resp wire.Message
	err  error
}

type fakeInode struct {
	attr   wire.Attr
	names  map[string]wire.Ino
	xattrs map[string][]byte
	target string
	blocks map[uint64]fakeBlock
	marked map[uint64]bool // regions
	leases map[wire.SessionID]wire.LeaseMode
	seq    uint64
	recall bool // one is under way
	opens  map[wire.SessionID]bool
	locks  []wire.LockReq
}

type fakeBlock struct {
	strip uint64
	index int
	sum   uint64
	bytes uint64 // that count
}

func newFake(t testing.TB) *fake {
	arena, err := wire.NewArena(256 << 20)
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{t: t, arena: arena, inodes: map[wire.Ino]*fakeInode{}, strips: map[uint64][]byte{}, next: wire.FirstInoSeq,
		replies: map[wire.OpID]fakeReply{}, clients: map[wire.SessionID]*FS{}, changed: make(chan struct{}), free: fakeFreeBytes,
		counts: map[wire.Method]int{}}
	f.m = wire.ClusterMap{Generation: 1, K: fakeK, M: fakeM, Buckets: fakeBuckets, LeaseMs: 3000}
	for range fakeBuckets {
		f.m.Owners = append(f.m.Owners, wire.BucketOwner{Proc: 1, Epoch: 1})
	}
	root := f.newInode(f.root(), modeDir|0o755)
	root.attr.Nlink = 2
	return f
}

func (f *fake) root() wire.Ino { return wire.RootIno(1, fakeBuckets) }

func (f *fake) newInode(ino wire.Ino, mode uint32) *fakeInode {
	now := time.Now().UnixNano()
	in := &fakeInode{attr: wire.Attr{Ino: ino, Mode: mode, Nlink: 1, Atime: now, Mtime: now, Ctime: now, Btime: now, Version: 1},
		names: map[string]wire.Ino{}, xattrs: map[string][]byte{}, blocks: map[uint64]fakeBlock{}, marked: map[uint64]bool{},
		leases: map[wire.SessionID]wire.LeaseMode{}, opens: map[wire.SessionID]bool{}}
	f.inodes[ino] = in
	return in
}

// client makes an FS of the cluster and runs it.
func (f *fake) client(session wire.SessionID, c Config) *FS {
	c.Session, c.FS = session, wire.FSInfo{ID: 1, Root: f.root(), Name: "test"}
	c.Cluster, c.Blocks, c.Arena = fakeConn{f, session}, f, f.arena
	fs, err := New(c)
	if err != nil {
		f.t.Fatal(err)
	}
	f.mu.Lock()
	f.clients[session] = fs
	f.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = fs.Run(ctx)
	}()
	f.t.Cleanup(func() {
		cancel()
		<-done
	})
	return fs
}

type fakeConn struct {
	f *fake
	s wire.SessionID
}

func (c fakeConn) Map() *wire.ClusterMap {
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	m := c.f.m
	return &m
}

// Bucket serves a request, as route.Router does: again until ctx ends or the error is final.
func (c fakeConn) Bucket(ctx context.Context, b wire.BucketID, call *rpc.Call) error {
	for {
		err := c.once(ctx, b, call)
		if !wire.KindOf(err).Retryable() {
			return err
		}
		select {
		case <-ctx.Done():
			return wire.E("fake", wire.KindInterrupted, "", ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
}

func (c fakeConn) once(ctx context.Context, b wire.BucketID, call *rpc.Call) error {
	f := c.f
	f.mu.Lock()
	hook, after := f.hook, f.after
	f.counts[call.Method]++
	f.mu.Unlock()
	if hook != nil {
		if err := hook(c.s, b, call.Method, call.Req); err != nil {
			return err
		}
	}
	resp, err := f.serve(ctx, c.s, b, call)
	if after != nil {
		if aerr := after(c.s, b, call.Method, call.Req); aerr != nil {
			return aerr
		}
	}
	if err != nil {
		return err
	}
	return call.Resp.Decode(resp.Append(nil))
}

// exactly does a mutation once.
func (f *fake) exactly(op wire.OpID, do func() (wire.Message, error)) (wire.Message, error) {
	op.Acked = 0
	if r, ok := f.replies[op]; ok {
		return r.resp, r.err
	}
	resp, err := do()
	if !wire.KindOf(err).Retryable() {
		f.replies[op] = fakeReply{resp, err}
	}
	return resp, err
}

func fakeErr(k wire.Kind) error { return wire.E("fake", k, "", nil) }

// wait waits for a change of leases. mu is held.
func (f *fake) wait(ctx context.Context) error {
	ch := f.changed
	f.mu.Unlock()
	defer f.mu.Lock()
	select {
	case <-ch:
		return nil
	case <-ctx.Done():
		return wire.E("fake", wire.KindInterrupted, "", ctx.Err())
	}
}

func (f *fake) wake() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// claim makes other sessions have at most mode on an inode. mu is held, and released while it waits.
func (f *fake) claim(ctx context.Context, s wire.SessionID, in *fakeInode, mode wire.LeaseMode) error {
	for {
		busy := false
		for other, have := range in.leases {
			if other == s || have <= mode {
				continue
			}
			busy = true
			if in.recall {
				continue
			}
			in.recall = true
			in.seq++
			req := &wire.RecallReq{Session: other, Ino: in.attr.Ino, To: mode, Seq: in.seq}
			fs := f.clients[other]
			go func() {
				err := fs.Recall(context.Background(), req)
				f.mu.Lock()
				defer f.mu.Unlock()
				in.recall = false
				if err == nil {
					in.leases[other] = min(in.leases[other], mode)
				}
				f.wake()
			}()
		}
		if !busy {
			return nil
		}
		if err := f.wait(ctx); err != nil {
			return err
		}
	}
}

// grant gives a lease if nobody is in the way. mu is held.
func (f *fake) grant(s wire.SessionID, in *fakeInode, want wire.LeaseMode) wire.Lease {
	if want == wire.LeaseNone || in.recall {
		return wire.Lease{}
	}
	for other, have := range in.leases {
		if other != s && (have == wire.LeaseWrite || want == wire.LeaseWrite && have > wire.LeaseNone) {
			return wire.Lease{}
		}
	}
	in.seq++
	in.leases[s] = max(in.leases[s], want)
	return wire.Lease{Mode: in.leases[s], Seq: in.seq}
}

func (f *fake) get(ino wire.Ino) (*fakeInode, error) {
	in := f.inodes[ino]
	if in == nil {
		return nil, fakeErr(wire.KindStale)
	}
	return in, nil
}

// attrFor gives attributes after recalling writers (or, for a write lease, everybody).
func (f *fake) attrFor(ctx context.Context, s wire.SessionID, ino wire.Ino, want wire.LeaseMode) (*fakeInode, wire.Lease, error) {
	in, err := f.get(ino)
	if err != nil {
		return nil, wire.Lease{}, err
	}
	most := wire.LeaseRead
	if want == wire.LeaseWrite {
		most = wire.LeaseNone
	}
	if err := f.claim(ctx, s, in, most); err != nil {
		return nil, wire.Lease{}, err
	}
	return in, f.grant(s, in, want), nil
}

func (in *fakeInode) changed() {
	in.attr.Version++
	in.attr.Ctime = time.Now().UnixNano()
	in.attr.Blocks = uint64(len(in.blocks)) * 8
}

func (f *fake) serve(ctx context.Context, s wire.SessionID, b wire.BucketID, call *rpc.Call) (wire.Message, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch q := call.Req.(type) {
	case *wire.LookupReq:
		dir, err := f.get(q.Parent)
		if err != nil {
			return nil, err
		}
		ino, ok := dir.names[q.Name]
		if !ok {
			return nil, fakeErr(wire.KindNotFound)
		}
		in := f.inodes[ino]
		resp := &wire.EntryResp{Ino: ino, Type: in.attr.Mode & modeType}
		if ino.Bucket() == q.Parent.Bucket() {
			resp.HasAttr, resp.Attr, resp.Lease = true, in.attr, f.grant(s, in, q.Want)
		}
		return resp, nil
	case *wire.GetAttrReq:
		in, l, err := f.attrFor(ctx, s, q.Ino, q.Want)
		if err != nil {
			return nil, err
		}
		return &wire.AttrResp{Attr: in.attr, Lease: l}, nil
	case *wire.OpenReq:
		in, l, err := f.attrFor(ctx, s, q.Ino, q.Want)
		if err != nil {
			return nil, err
		}
		in.opens[s] = true
		resp := &wire.OpenResp{Attr: in.attr, Lease: l}
		if q.Extents {
			resp.Extents = *f.extents(in, 0)
		}
		return resp, nil
	case *wire.ExtentsReq:
		in, err := f.get(q.Ino)
		if err != nil {
			return nil, err
		}
		if want := f.bucket(q.Ino, q.Off/wire.RegionBytes); b != want {
			return nil, wire.Errorf("fake", wire.KindInvalid, "", "extents asked of bucket %d, want %d", b, want)
		}
		return f.extents(in, q.Off/wire.RegionBytes), nil
	case *wire.WriteReq:
		return f.exactly(q.Op, func() (wire.Message, error) { return f.write(s, b, q, call.Data) })
	case *wire.ReclaimReq:
		f.claims = append(f.claims, q)
		for _, l := range q.Leases {
			f.inodes[l.Ino].leases[s] = l.Mode
		}
		return &wire.ReclaimResp{}, nil
	case *wire.ReleaseReq:
		for _, ino := range q.Inos {
			if in := f.inodes[ino]; in != nil {
				delete(in.opens, s)
				f.reap(in)
			}
			f.released = append(f.released, ino)
		}
		return &wire.Empty{}, nil
	case *wire.LeaseDropReq:
		for _, ino := range q.Inos {
			if in := f.inodes[ino]; in != nil {
				delete(in.leases, s)
			}
		}
		f.wake()
		return &wire.Empty{}, nil
	case *wire.StatFSReq:
		return &wire.StatFSResp{TotalBytes: fakeFreeBytes, FreeBytes: f.free}, nil
	case *wire.LockReq:
		return f.lock(ctx, q)
	case *wire.ReadDirReq:
		return f.readDir(q)
	}
	return f.mutate(ctx, s, call.Req)
}

func (f *fake) bucket(ino wire.Ino, region uint64) wire.BucketID {
	return wire.RegionBucket(ino, region, fakeBuckets)
}

// mutate serves the changes of names and attributes.
func (f *fake) mutate(ctx context.Context, s wire.SessionID, req wire.Message) (wire.Message, error) {
	switch q := req.(type) {
	case *wire.CreateReq:
		return f.exactly(q.Op, func() (wire.Message, error) {
			dir, err := f.get(q.Parent)
			if err != nil {
				return nil, err
			}
			if err := f.claim(ctx, s, dir, wire.LeaseNone); err != nil {
				return nil, err
			}
			if _, ok := dir.names[q.Name]; ok {
				return nil, fakeErr(wire.KindExists)
			}
			f.next++
			bucket := q.Parent.Bucket()
			if q.Mode&modeType == modeDir {
				bucket = wire.BucketID(f.next % fakeBuckets)
			}
			in := f.newInode(wire.MakeIno(bucket, f.next), q.Mode)
			in.target = q.Target
			dir.names[q.Name] = in.attr.Ino
			dir.changed()
			if q.Open {
				in.opens[s] = true
			}
			return &wire.EntryResp{Ino: in.attr.Ino, Type: q.Mode & modeType, HasAttr: true, Attr: in.attr, Lease: f.grant(s, in, q.Want),
				Parent: dir.attr}, nil
		})
	case *wire.UnlinkReq:
		return f.exactly(q.Op, func() (wire.Message, error) {
			dir, err := f.get(q.Parent)
			if err != nil {
				return nil, err
			}
			ino, ok := dir.names[q.Name]
			if !ok {
				return nil, fakeErr(wire.KindNotFound)
			}
			in := f.inodes[ino]
			for _, x := range []*fakeInode{dir, in} {
				if err := f.claim(ctx, s, x, wire.LeaseNone); err != nil {
					return nil, err
				}
			}
			delete(dir.names, q.Name)
			dir.changed()
			in.attr.Nlink--
			in.changed()
			f.reap(in)
			return &wire.UnlinkResp{Ino: ino}, nil
		})
	case *wire.LinkReq:
		return f.exactly(q.Op, func() (wire.Message, error) {
			in, err := f.get(q.Ino)
			if err != nil {
				return nil, err
			}
			f.inodes[q.Parent].names[q.Name] = q.Ino
			in.attr.Nlink++
			in.changed()
			return &wire.EntryResp{Ino: q.Ino, HasAttr: true, Attr: in.attr}, nil
		})
	case *wire.RenameReq:
		return f.exactly(q.Op, func() (wire.Message, error) {
			from, to := f.inodes[q.OldParent], f.inodes[q.NewParent]
			ino, ok := from.names[q.OldName]
			if !ok {
				return nil, fakeErr(wire.KindNotFound)
			}
			other := to.names[q.NewName]
			delete(from.names, q.OldName)
			to.names[q.NewName] = ino
			f.inodes[ino].changed()
			if in := f.inodes[other]; in != nil {
				in.attr.Nlink--
				in.changed()
				f.reap(in)
			}
			return &wire.RenameResp{Moved: ino, Other: other}, nil
		})
	case *wire.SetAttrReq:
		return f.exactly(q.Op, func() (wire.Message, error) { return f.setAttr(ctx, s, q) })
	case *wire.PrepareReq:
		return f.exactly(q.Op, func() (wire.Message, error) {
			in, err := f.get(q.Ino)
			if err != nil {
				return nil, err
			}
			for _, r := range q.Regions {
				in.marked[r] = true
			}
			return &wire.Empty{}, nil
		})
	case *wire.PublishReq:
		return f.exactly(q.Op, func() (wire.Message, error) {
			in, err := f.get(q.Ino)
			if err != nil {
				return nil, err
			}
			if in.leases[s] != wire.LeaseWrite {
				return nil, fakeErr(wire.KindLeaseLost)
			}
			in.attr.Size = max(in.attr.Size, q.Size)
			in.attr.Mtime = q.Mtime
			in.changed()
			return &wire.AttrResp{Attr: in.attr}, nil
		})
	case *wire.PunchReq:
		return f.exactly(q.Op, func() (wire.Message, error) {
			in := f.inodes[q.Ino]
			if q.Off%wire.BlockSize != 0 || q.Len%wire.BlockSize != 0 || q.Off/wire.RegionBytes != (q.Off+q.Len-1)/wire.RegionBytes {
				return nil, fakeErr(wire.KindInvalid)
			}
			for blk := q.Off / wire.BlockSize; blk < (q.Off+q.Len)/wire.BlockSize; blk++ {
				delete(in.blocks, blk)
			}
			in.changed()
			return &wire.Empty{}, nil
		})
	}
	return nil, wire.Errorf("fake", wire.KindVersion, "", "%T", req)
}

func (f *fake) setAttr(ctx context.Context, s wire.SessionID, q *wire.SetAttrReq) (wire.Message, error) {
	in, err := f.get(q.Ino)
	if err != nil {
		return nil, err
	}
	if err := f.claim(ctx, s, in, wire.LeaseNone); err != nil {
		return nil, err
	}
	if q.Valid&wire.SetMode != 0 {
		in.attr.Mode = in.attr.Mode&modeType | q.Mode
	}
	if q.Valid&wire.SetKillPriv != 0 {
		in.attr.Mode &^= modeSUID | modeSGID
	}
	if q.Valid&wire.SetMtime != 0 {
		in.attr.Mtime = q.Mtime
	}
	if q.Valid&wire.SetSize != 0 {
		if in.leases[s] != wire.LeaseWrite {
			return nil, fakeErr(wire.KindLeaseLost)
		}
		for b, blk := range in.blocks {
			switch start := b * wire.BlockSize; {
			case start >= q.Size:
				delete(in.blocks, b)
			case start+blk.bytes > q.Size:
				blk.bytes = q.Size - start
				in.blocks[b] = blk
			}
		}
		in.attr.Size = q.Size
		in.attr.Mtime = time.Now().UnixNano()
	}
	in.changed()
	return &wire.AttrResp{Attr: in.attr}, nil
}

// reap deletes an inode that has neither name nor opener.
func (f *fake) reap(in *fakeInode) {
	if in.attr.Nlink == 0 && len(in.opens) == 0 && in.attr.Mode&modeType != modeDir {
		delete(f.inodes, in.attr.Ino)
	}
}

// write stores runs, after checking what compute would: lease, region, checksums, marks, space.
func (f *fake) write(s wire.SessionID, b wire.BucketID, q *wire.WriteReq, data wire.Data) (wire.Message, error) {
	flat := make([]byte, 0, data.Len())
	for _, p := range data {
		flat = append(flat, p.B...)
	}
	if uint64(len(flat)) > f.free {
		return nil, fakeErr(wire.KindNoSpace)
	}
	resp := &wire.WriteResp{}
	for _, w := range q.Files {
		in := f.inodes[w.Ino]
		if in == nil {
			return nil, fakeErr(wire.KindStale)
		}
		if in.leases[s] != wire.LeaseWrite {
			return nil, fakeErr(wire.KindLeaseLost)
		}
		if f.bucket(w.Ino, w.Region) != b || w.Region > 0 && !in.marked[w.Region] {
			return nil, wire.Errorf("fake", wire.KindInvalid, "", "region %d in bucket %d, marked %v", w.Region, b, in.marked[w.Region])
		}
	}
	for _, w := range q.Files {
		in := f.inodes[w.Ino]
		for _, r := range w.Runs {
			f.next++
			n := len(r.Sums) * wire.BlockSize
			f.strips[f.next] = slices.Clone(flat[:n])
			for i, sum := range r.Sums {
				if got := xxhash.Sum64(flat[i*wire.BlockSize : (i+1)*wire.BlockSize]); got != sum {
					return nil, fakeErr(wire.KindCorrupt)
				}
				blk := r.Off/wire.BlockSize + uint64(i)
				if blk*wire.BlockSize/wire.RegionBytes != w.Region {
					return nil, fakeErr(wire.KindInvalid)
				}
				in.blocks[blk] = fakeBlock{f.next, i, sum, min(wire.BlockSize, r.Len-uint64(i)*wire.BlockSize)}
			}
			if want := (r.Len + wire.BlockSize - 1) / wire.BlockSize; want != uint64(len(r.Sums)) {
				return nil, fakeErr(wire.KindInvalid)
			}
			flat = flat[n:]
		}
		if w.Publish {
			in.attr.Size = max(in.attr.Size, w.Size)
			in.attr.Mtime = w.Mtime
		}
		in.changed()
		if w.Publish {
			resp.Attrs = append(resp.Attrs, in.attr)
		}
		resp.Extents = append(resp.Extents, *f.extentsOf(in, w.Runs))
	}
	f.free -= uint64(data.Len())
	f.writes = append(f.writes, *q)
	return resp, nil
}

func (f *fake) extentsOf(in *fakeInode, runs []wire.WriteRun) *wire.ExtentsResp {
	var r wire.ExtentsResp
	for _, run := range runs {
		for i := range run.Sums {
			f.addExtent(&r, in, run.Off/wire.BlockSize+uint64(i))
		}
	}
	return &r
}

func (f *fake) extents(in *fakeInode, region uint64) *wire.ExtentsResp {
	var r wire.ExtentsResp
	for b := region * wire.RegionBytes / wire.BlockSize; b < (region+1)*wire.RegionBytes/wire.BlockSize; b++ {
		if _, ok := in.blocks[b]; ok {
			f.addExtent(&r, in, b)
		}
	}
	return &r
}

func (f *fake) addExtent(r *wire.ExtentsResp, in *fakeInode, b uint64) {
	blk := in.blocks[b]
	if k := len(r.Extents); k > 0 {
		e := &r.Extents[k-1]
		if l := &r.Locations[e.Loc]; l.ID.Number() == blk.strip && e.FileOff+e.Len == b*wire.BlockSize &&
			int(e.Block)+len(e.Sums) == blk.index {
			e.Len += blk.bytes
			e.Sums = append(e.Sums, blk.sum)
			return
		}
	}
	r.Locations = append(r.Locations, wire.Location{Kind: wire.LocStripe, K: fakeK, M: fakeM, Drives: make([]wire.DriveID, fakeK+fakeM),
		ID:     wire.MakeStripID(in.attr.Ino.Bucket(), wire.ClassData, 0, blk.strip, 0, 7),
		Blocks: uint32(len(f.strips[blk.strip]) / wire.BlockSize)})
	r.Extents = append(r.Extents, wire.Extent{FileOff: b * wire.BlockSize, Len: blk.bytes, Loc: uint32(len(r.Locations) - 1),
		Block: uint32(blk.index), Sums: []uint64{blk.sum}})
}

// Read is the drives.
func (f *fake) Read(ctx context.Context, wants []strip.Want) ([]wire.Data, error) {
	f.mu.Lock()
	hook := f.readHook
	f.mu.Unlock()
	if hook != nil {
		if err := hook(wants); err != nil {
			return nil, err
		}
	}
	var out []wire.Data
	fail := func(k wire.Kind) ([]wire.Data, error) {
		for _, d := range out {
			d.Release()
		}
		return nil, fakeErr(k)
	}
	for _, w := range wants {
		f.mu.Lock()
		s, ok := f.strips[w.Loc.ID.Number()]
		f.mu.Unlock()
		if !ok {
			return fail(wire.KindNotFound)
		}
		n := w.Blocks * wire.BlockSize
		buf, err := f.arena.Alloc(ctx, n)
		if err != nil {
			return nil, err
		}
		copy(buf.Bytes(), s[w.Block*wire.BlockSize:])
		out = append(out, buf.Data(n))
		for i, sum := range w.Sums {
			if xxhash.Sum64(buf.Bytes()[i*wire.BlockSize:(i+1)*wire.BlockSize]) != sum {
				return fail(wire.KindCorrupt)
			}
		}
	}
	return out, nil
}

// rewrite moves everything to other strips and deletes the old ones, as compaction does, without telling anybody.
func (f *fake) rewrite() {
	f.mu.Lock()
	defer f.mu.Unlock()
	old := f.strips
	f.strips = map[uint64][]byte{}
	for _, in := range f.inodes {
		for b, blk := range in.blocks {
			f.next++
			f.strips[f.next] = slices.Clone(old[blk.strip][blk.index*wire.BlockSize:][:wire.BlockSize])
			blk.strip, blk.index = f.next, 0
			in.blocks[b] = blk
		}
	}
}

func (f *fake) readDir(q *wire.ReadDirReq) (wire.Message, error) {
	dir, err := f.get(q.Ino)
	if err != nil {
		return nil, err
	}
	resp := &wire.ReadDirResp{EOF: true, Parent: f.root()}
	for name, ino := range dir.names {
		in := f.inodes[ino]
		e := wire.DirEntry{Cookie: wire.NameHash(name), Ino: ino, Type: in.attr.Mode & modeType, Name: name}
		if q.Plus && ino.Bucket() == q.Ino.Bucket() {
			e.HasAttr, e.Attr = true, in.attr
		}
		if e.Cookie > q.Cookie {
			resp.Entries = append(resp.Entries, e)
		}
	}
	slices.SortFunc(resp.Entries, func(a, b wire.DirEntry) int {
		if a.Cookie < b.Cookie {
			return -1
		}
		return 1
	})
	if n := 7; len(resp.Entries) > n { // short batches
		resp.Entries, resp.EOF = resp.Entries[:n], false
	}
	return resp, nil
}

func (f *fake) lock(ctx context.Context, q *wire.LockReq) (wire.Message, error) {
	for {
		in, err := f.get(q.Ino)
		if err != nil {
			return nil, err
		}
		free := true
		for _, l := range in.locks {
			if l.Flock == q.Flock && (l.Owner != q.Owner || l.Op.Session != q.Op.Session) && l.Start <= q.End && l.End >= q.Start &&
				(l.Type == wire.LockWrite || q.Type == wire.LockWrite) && q.Type != wire.LockUnlock {
				free = false
			}
		}
		switch {
		case free:
			in.locks = slices.DeleteFunc(in.locks, func(l wire.LockReq) bool {
				return l.Flock == q.Flock && l.Owner == q.Owner && l.Op.Session == q.Op.Session && l.Start >= q.Start && l.End <= q.End
			})
			if q.Type != wire.LockUnlock {
				in.locks = append(in.locks, *q)
			}
			f.wake()
			return &wire.LockResp{Type: wire.LockUnlock}, nil
		case !q.Wait:
			return nil, fakeErr(wire.KindWouldBlock)
		}
		if err := f.wait(ctx); err != nil {
			return nil, err
		}
	}
}

// content gives what is committed of a file, up to its published size.
func (f *fake) content(ino wire.Ino) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	in := f.inodes[ino]
	out := make([]byte, in.attr.Size)
	for b, blk := range in.blocks {
		if start := b * wire.BlockSize; start < in.attr.Size {
			s := f.strips[blk.strip][blk.index*wire.BlockSize:][:blk.bytes]
			copy(out[start:], s)
		}
	}
	return out
}

func (f *fake) count(m wire.Method) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.counts[m]
}

func (f *fake) setHook(h func(s wire.SessionID, b wire.BucketID, m wire.Method, req wire.Message) error) {
	f.mu.Lock()
	f.hook = h
	f.mu.Unlock()
}
