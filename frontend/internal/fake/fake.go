// Package fake is computes and drives in memory, for the tests of the frontend.
package fake

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
	"github.com/crakefs/crake/wire/strip"
)

// The shape of the cluster.
const (
	K, M      = 2, 1
	Buckets   = 4
	FreeBytes = 1 << 40
)

// Recaller is a session's side of recalls: a core.FS.
type Recaller interface {
	Recall(ctx context.Context, req *wire.RecallReq) error
}

// Hook sees a request; an error is the answer.
type Hook func(s wire.SessionID, b wire.BucketID, m wire.Method, req wire.Message) error

// Cluster is computes and drives in memory, with the semantics that a frontend relies on: leases with recalls, extents, immutable
// strips, exactly once, sizes published apart from data. Requests and answers go through their encodings.
type Cluster struct {
	t     testing.TB
	Arena *wire.Arena

	Mu       sync.Mutex // guards what follows
	Map      wire.ClusterMap
	Inodes   map[wire.Ino]*Inode
	Free     uint64
	Claims   []*wire.ReclaimReq
	Writes   []wire.WriteReq
	Before   Hook // called before a request is served, without Mu; on an error nothing is done
	After    Hook // called when it has been; its error replaces the answer
	ReadHook func(w []strip.Want) error
	Keep     bool // the data of a request that Before lets fail is read on; see GiveBack

	strips  map[uint64][]byte
	next    uint64
	replies map[wire.OpID]reply // Acked zeroed
	clients map[wire.SessionID]Recaller
	changed chan struct{} // closed at changes of leases
	counts  map[wire.Method]int
	kept    []kept
}

// kept is data of a failed request, as it was then.
type kept struct {
	data wire.Data
	was  []byte
}

type reply struct {
	resp wire.Message
	err  error
}

// Inode is one of the cluster's.
type Inode struct {
	Attr   wire.Attr
	Leases map[wire.SessionID]wire.LeaseMode
	Locks  []wire.LockReq
	Blocks map[uint64]block

	names  map[string]wire.Ino
	xattrs map[string][]byte
	target string
	marked map[uint64]bool // regions
	seq    uint64
	recall bool // one is under way
	opens  map[wire.SessionID]bool
}

type block struct {
	strip uint64
	index int
	sum   uint64
	bytes uint64 // that count
}

// New makes a cluster with an empty root directory.
func New(t testing.TB) *Cluster {
	arena, err := wire.NewArena(256 << 20)
	if err != nil {
		t.Fatal(err)
	}
	f := &Cluster{t: t, Arena: arena, Inodes: map[wire.Ino]*Inode{}, strips: map[uint64][]byte{}, next: wire.FirstInoSeq,
		replies: map[wire.OpID]reply{}, clients: map[wire.SessionID]Recaller{}, changed: make(chan struct{}), Free: FreeBytes,
		counts: map[wire.Method]int{}}
	f.Map = wire.ClusterMap{Generation: 1, K: K, M: M, Buckets: Buckets, LeaseMs: 3000}
	for range Buckets {
		f.Map.Owners = append(f.Map.Owners, wire.BucketOwner{Proc: 1, Epoch: 1})
	}
	root := f.NewInode(f.Root(), unix.S_IFDIR|0o755)
	root.Attr.Nlink = 2
	return f
}

// Root gives the inode of the root directory.
func (f *Cluster) Root() wire.Ino { return wire.RootIno(1, Buckets) }

// NewInode makes an inode. Mu is held.
func (f *Cluster) NewInode(ino wire.Ino, mode uint32) *Inode {
	now := time.Now().UnixNano()
	in := &Inode{Attr: wire.Attr{Ino: ino, Mode: mode, Nlink: 1, Atime: now, Mtime: now, Ctime: now, Btime: now, Version: 1},
		names: map[string]wire.Ino{}, xattrs: map[string][]byte{}, Blocks: map[uint64]block{}, marked: map[uint64]bool{},
		Leases: map[wire.SessionID]wire.LeaseMode{}, opens: map[wire.SessionID]bool{}}
	f.Inodes[ino] = in
	return in
}

// Conn gives the way of a session to the cluster. Attach its client before it asks for leases.
func (f *Cluster) Conn(session wire.SessionID) Conn { return Conn{f, session} }

// Attach tells who answers recalls of a session.
func (f *Cluster) Attach(session wire.SessionID, r Recaller) {
	f.Mu.Lock()
	defer f.Mu.Unlock()
	f.clients[session] = r
}

// Conn is a core.Cluster: what a session sees.
type Conn struct {
	f *Cluster
	s wire.SessionID
}

// Map gives the cluster map.
func (c Conn) Map() *wire.ClusterMap {
	c.f.Mu.Lock()
	defer c.f.Mu.Unlock()
	m := c.f.Map
	return &m
}

// Bucket serves a request, as route.Router does: again until ctx ends or the error is final.
func (c Conn) Bucket(ctx context.Context, b wire.BucketID, call *rpc.Call) error {
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

func (c Conn) once(ctx context.Context, b wire.BucketID, call *rpc.Call) error {
	f := c.f
	f.Mu.Lock()
	hook, after := f.Before, f.After
	f.counts[call.Method]++
	f.Mu.Unlock()
	if hook != nil {
		if err := hook(c.s, b, call.Method, call.Req); err != nil {
			f.keep(call.Data)
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

// keep goes on reading the data of a request after it has failed, as a peer may to whom it is lent.
func (f *Cluster) keep(data wire.Data) {
	f.Mu.Lock()
	defer f.Mu.Unlock()
	if f.Keep && data.Len() > 0 {
		f.kept = append(f.kept, kept{data.Retain(), flat(data)})
	}
}

// GiveBack ends the reading of all that was kept, and gives how many requests it was. It fails the test if any of it has changed.
func (f *Cluster) GiveBack() int {
	f.Mu.Lock()
	defer f.Mu.Unlock()
	n := len(f.kept)
	for _, k := range f.kept {
		if !bytes.Equal(flat(k.data), k.was) {
			f.t.Error("memory was written to while it was lent")
		}
		k.data.Release()
	}
	f.kept = nil
	return n
}

func flat(data wire.Data) (b []byte) {
	for _, p := range data {
		b = append(b, p.B...)
	}
	return b
}

// exactly does a mutation once.
func (f *Cluster) exactly(op wire.OpID, do func() (wire.Message, error)) (wire.Message, error) {
	op.Acked = 0
	if r, ok := f.replies[op]; ok {
		return r.resp, r.err
	}
	resp, err := do()
	if !wire.KindOf(err).Retryable() {
		f.replies[op] = reply{resp, err}
	}
	return resp, err
}

// Err makes an error of a kind.
func Err(k wire.Kind) error { return wire.E("fake", k, "", nil) }

// wait waits for a change of leases. mu is held.
func (f *Cluster) wait(ctx context.Context) error {
	ch := f.changed
	f.Mu.Unlock()
	defer f.Mu.Lock()
	select {
	case <-ch:
		return nil
	case <-ctx.Done():
		return wire.E("fake", wire.KindInterrupted, "", ctx.Err())
	}
}

func (f *Cluster) wake() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// claim makes other sessions have at most mode on an inode. mu is held, and released while it waits.
func (f *Cluster) claim(ctx context.Context, s wire.SessionID, in *Inode, mode wire.LeaseMode) error {
	for {
		busy := false
		for other, have := range in.Leases {
			if other == s || have <= mode {
				continue
			}
			busy = true
			if in.recall {
				continue
			}
			in.recall = true
			in.seq++
			req := &wire.RecallReq{Session: other, Ino: in.Attr.Ino, To: mode, Seq: in.seq}
			fs := f.clients[other]
			go func() {
				err := fs.Recall(context.Background(), req)
				f.Mu.Lock()
				defer f.Mu.Unlock()
				in.recall = false
				if err == nil {
					in.Leases[other] = min(in.Leases[other], mode)
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
func (f *Cluster) grant(s wire.SessionID, in *Inode, want wire.LeaseMode) wire.Lease {
	if want == wire.LeaseNone || in.recall {
		return wire.Lease{}
	}
	for other, have := range in.Leases {
		if other != s && (have == wire.LeaseWrite || want == wire.LeaseWrite && have > wire.LeaseNone) {
			return wire.Lease{}
		}
	}
	in.seq++
	in.Leases[s] = max(in.Leases[s], want)
	return wire.Lease{Mode: in.Leases[s], Seq: in.seq}
}

func (f *Cluster) get(ino wire.Ino) (*Inode, error) {
	in := f.Inodes[ino]
	if in == nil {
		return nil, Err(wire.KindStale)
	}
	return in, nil
}

// attrFor gives attributes after recalling writers (or, for a write lease, everybody).
func (f *Cluster) attrFor(ctx context.Context, s wire.SessionID, ino wire.Ino, want wire.LeaseMode) (*Inode, wire.Lease, error) {
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

func (in *Inode) touch() {
	in.Attr.Version++
	in.Attr.Ctime = time.Now().UnixNano()
	in.Attr.Blocks = uint64(len(in.Blocks)) * 8
	if in.Attr.Mode&unix.S_IFMT == unix.S_IFDIR {
		in.Attr.Size = uint64(len(in.names))
	}
}

func (f *Cluster) serve(ctx context.Context, s wire.SessionID, b wire.BucketID, call *rpc.Call) (wire.Message, error) {
	f.Mu.Lock()
	defer f.Mu.Unlock()
	switch q := call.Req.(type) {
	case *wire.LookupReq:
		dir, err := f.get(q.Parent)
		if err != nil {
			return nil, err
		}
		ino, ok := dir.names[q.Name]
		if !ok {
			return nil, Err(wire.KindNotFound)
		}
		in := f.Inodes[ino]
		resp := &wire.EntryResp{Ino: ino, Type: in.Attr.Mode & unix.S_IFMT}
		if ino.Bucket() == q.Parent.Bucket() {
			resp.HasAttr, resp.Attr, resp.Lease = true, in.Attr, f.grant(s, in, q.Want)
		}
		return resp, nil
	case *wire.GetAttrReq:
		in, l, err := f.attrFor(ctx, s, q.Ino, q.Want)
		if err != nil {
			return nil, err
		}
		return &wire.AttrResp{Attr: in.Attr, Lease: l}, nil
	case *wire.OpenReq:
		in, l, err := f.attrFor(ctx, s, q.Ino, q.Want)
		if err != nil {
			return nil, err
		}
		in.opens[s] = true
		resp := &wire.OpenResp{Attr: in.Attr, Lease: l}
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
		f.Claims = append(f.Claims, q)
		for _, l := range q.Leases {
			f.Inodes[l.Ino].Leases[s] = l.Mode
		}
		return &wire.ReclaimResp{}, nil
	case *wire.ReleaseReq:
		for _, ino := range q.Inos {
			if in := f.Inodes[ino]; in != nil {
				delete(in.opens, s)
				f.reap(in)
			}
		}
		return &wire.Empty{}, nil
	case *wire.LeaseDropReq:
		for _, ino := range q.Inos {
			if in := f.Inodes[ino]; in != nil {
				delete(in.Leases, s)
			}
		}
		f.wake()
		return &wire.Empty{}, nil
	case *wire.StatFSReq:
		return &wire.StatFSResp{TotalBytes: FreeBytes, FreeBytes: f.Free}, nil
	case *wire.LockReq:
		return f.lock(ctx, q)
	case *wire.ReadDirReq:
		return f.readDir(q)
	case *wire.ReadLinkReq:
		in, err := f.get(q.Ino)
		if err != nil {
			return nil, err
		}
		return &wire.ReadLinkResp{Target: in.target}, nil
	}
	return f.mutate(ctx, s, call.Req)
}

func (f *Cluster) bucket(ino wire.Ino, region uint64) wire.BucketID {
	return wire.RegionBucket(ino, region, Buckets)
}

// reap deletes an inode that has neither name nor opener.
func (f *Cluster) reap(in *Inode) {
	if in.Attr.Nlink == 0 && len(in.opens) == 0 && in.Attr.Mode&unix.S_IFMT != unix.S_IFDIR {
		delete(f.Inodes, in.Attr.Ino)
	}
}

func (f *Cluster) readDir(q *wire.ReadDirReq) (wire.Message, error) {
	dir, err := f.get(q.Ino)
	if err != nil {
		return nil, err
	}
	resp := &wire.ReadDirResp{EOF: true, Parent: f.Root()}
	for name, ino := range dir.names {
		in := f.Inodes[ino]
		e := wire.DirEntry{Cookie: wire.NameHash(name), Ino: ino, Type: in.Attr.Mode & unix.S_IFMT, Name: name}
		if q.Plus && ino.Bucket() == q.Ino.Bucket() {
			e.HasAttr, e.Attr = true, in.Attr
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

func (f *Cluster) lock(ctx context.Context, q *wire.LockReq) (wire.Message, error) {
	for {
		in, err := f.get(q.Ino)
		if err != nil {
			return nil, err
		}
		free := true
		for _, l := range in.Locks {
			if l.Flock == q.Flock && (l.Owner != q.Owner || l.Op.Session != q.Op.Session) && l.Start <= q.End && l.End >= q.Start &&
				(l.Type == wire.LockWrite || q.Type == wire.LockWrite) && q.Type != wire.LockUnlock {
				free = false
			}
		}
		switch {
		case free:
			in.Locks = slices.DeleteFunc(in.Locks, func(l wire.LockReq) bool {
				return l.Flock == q.Flock && l.Owner == q.Owner && l.Op.Session == q.Op.Session && l.Start >= q.Start && l.End <= q.End
			})
			if q.Type != wire.LockUnlock {
				in.Locks = append(in.Locks, *q)
			}
			f.wake()
			return &wire.LockResp{Type: wire.LockUnlock}, nil
		case !q.Wait:
			return nil, Err(wire.KindWouldBlock)
		}
		if err := f.wait(ctx); err != nil {
			return nil, err
		}
	}
}

// Content gives what is committed of a file, up to its published size.
func (f *Cluster) Content(ino wire.Ino) []byte {
	f.Mu.Lock()
	defer f.Mu.Unlock()
	in := f.Inodes[ino]
	out := make([]byte, in.Attr.Size)
	for b, blk := range in.Blocks {
		if start := b * wire.BlockSize; start < in.Attr.Size {
			s := f.strips[blk.strip][blk.index*wire.BlockSize:][:blk.bytes]
			copy(out[start:], s)
		}
	}
	return out
}

// Count tells how often a method was asked for.
func (f *Cluster) Count(m wire.Method) int {
	f.Mu.Lock()
	defer f.Mu.Unlock()
	return f.counts[m]
}

// SetHook sets Before.
func (f *Cluster) SetHook(h func(s wire.SessionID, b wire.BucketID, m wire.Method, req wire.Message) error) {
	f.Mu.Lock()
	f.Before = h
	f.Mu.Unlock()
}
