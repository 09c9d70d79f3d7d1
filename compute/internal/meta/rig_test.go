package meta

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

// rig is a cluster of buckets in memory: each over its own crashable filesystem, all over one data store, calling each
// other through encoded messages. Any bucket can be crashed at any crash point, and comes back as a new owner.
type rig struct {
	t       testing.TB
	n       int
	arena   *wire.Arena
	opts    rigOptions
	session wire.SessionID
	seq     atomic.Uint64
	clock   atomic.Int64
	noRun   bool

	restarting sync.Mutex // one restart at a time
	wrapFS     func(vfs.FS) vfs.FS

	mu      sync.Mutex
	nodes   []*node // the present owner of each bucket; nil while it is down
	epochs  []wire.Epoch
	fs      []*vfs.MemFS
	stores  []*fakeStore
	open    map[wire.Ino]map[wire.SessionID]bool
	dead    map[wire.SessionID]bool
	leases  *fakeLeases
	onPoint func(n *node, point string) bool // true: crash here
	keep    int                              // percent of what is not synced that a crash at a point keeps
}

type rigOptions struct {
	nameHash func(string) uint64
	plainFS  bool // not crashable: faster
	memTable int
}

// node is one owner of a bucket.
type node struct {
	r      *rig
	bucket wire.BucketID
	b      *Bucket
	dead   atomic.Bool
	cancel context.CancelFunc
	ran    chan struct{}
}

func newRig(t testing.TB, buckets int, opts rigOptions) *rig {
	arena, err := wire.NewArena(64 << 20)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, n: buckets, arena: arena, opts: opts, session: 7, open: map[wire.Ino]map[wire.SessionID]bool{},
		dead: map[wire.SessionID]bool{}}
	r.leases = &fakeLeases{r: r}
	r.clock.Store(1_000_000_000)
	for i := range buckets {
		fs := vfs.NewMem()
		if !opts.plainFS {
			fs = vfs.NewCrashableMem()
		}
		r.fs = append(r.fs, fs)
		r.stores = append(r.stores, newFakeStore(r, wire.BucketID(i)))
		r.epochs = append(r.epochs, 0)
		r.nodes = append(r.nodes, nil)
	}
	for i := range buckets {
		r.start(i)
	}
	t.Cleanup(func() {
		for i := range buckets {
			r.stop(i)
		}
		if used := arena.Used(); used != 0 {
			t.Errorf("%d bytes of the arena leaked", used)
		}
		_ = arena.Close()
	})
	return r
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// start opens the bucket under its next epoch.
func (r *rig) start(i int) *node {
	r.mu.Lock()
	r.epochs[i]++
	n := &node{r: r, bucket: wire.BucketID(i), ran: make(chan struct{})}
	cfg := Config{
		Bucket: n.bucket, Epoch: r.epochs[i], Buckets: r.n, FS: r.fs[i], Data: &nodeStore{n, r.stores[i]}, Leases: r.leases,
		Opens: r, Sessions: r, Peers: n.peer, Arena: r.arena, Log: quiet(), LockWait: 2 * time.Second,
		Now: func() int64 { return r.clock.Add(1) }, Crash: n.point, nameHash: r.opts.nameHash, MemTableBytes: r.opts.memTable,
		doubtAge: 20 * time.Millisecond, settlePause: 10 * time.Millisecond,
	}
	if r.wrapFS != nil {
		cfg.FS = r.wrapFS(cfg.FS)
	}
	r.stores[i].newOwner()
	r.mu.Unlock()
	b, err := Open(context.Background(), cfg)
	if err != nil {
		r.t.Fatalf("open bucket %d: %v", i, err)
	}
	n.b = b
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	go func() {
		defer close(n.ran)
		if !r.noRun {
			_ = n.guard(func() error { return b.Run(ctx) })
		}
	}()
	r.mu.Lock()
	r.nodes[i] = n
	r.mu.Unlock()
	return n
}

// stop closes a bucket in an orderly way.
func (r *rig) stop(i int) {
	r.mu.Lock()
	n := r.nodes[i]
	r.nodes[i] = nil
	r.mu.Unlock()
	if n == nil {
		return
	}
	n.cancel()
	<-n.ran
	if err := n.b.Close(); err != nil && n.b.Err() == nil {
		r.t.Errorf("close bucket %d: %v", i, err)
	}
}

// point is the Crash hook of a node.
func (n *node) point(point string) {
	if n.dead.Load() {
		runtime.Goexit()
	}
	r := n.r
	r.mu.Lock()
	f := r.onPoint
	r.mu.Unlock()
	if f == nil || !f(n, point) {
		return
	}
	n.crash(r.keep)
	runtime.Goexit()
}

// crash ends a node on the spot: of what was not synced each part is kept with the given probability, in percent.
func (n *node) crash(keep int) {
	r := n.r
	r.mu.Lock()
	if n.dead.Swap(true) {
		r.mu.Unlock()
		return
	}
	i := int(n.bucket)
	old := r.fs[i]
	r.fs[i] = old.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: keep, RNG: rand.New(rand.NewPCG(uint64(keep), uint64(r.epochs[i])))})
	if r.nodes[i] == n {
		r.nodes[i] = nil
	}
	r.mu.Unlock()
	n.cancel()
	go func() { // what is left of it ends by itself; nobody hears of it any more
		<-n.ran
		_ = n.b.Close()
	}()
}

// restart brings crashed buckets back.
func (r *rig) restart() {
	r.restarting.Lock()
	defer r.restarting.Unlock()
	for i := range r.n {
		r.mu.Lock()
		down := r.nodes[i] == nil
		r.mu.Unlock()
		if down {
			r.start(i)
		}
	}
}

func (r *rig) node(i wire.BucketID) *node {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.nodes[i]
}

func (r *rig) bucket(i wire.BucketID) *Bucket { return r.node(i).b }

var errLost = wire.Errorf("rig", wire.KindConnLost, "", "crashed")

// guard runs f on a node and turns a crash under it into a lost connection. What a dead node answers is not heard.
func (n *node) guard(f func() error) error {
	done := make(chan error, 1)
	go func() {
		var err error = errLost // when a crash point ends the goroutine
		defer func() { done <- err }()
		err = f()
	}()
	err := <-done
	if n.dead.Load() {
		return errLost
	}
	return err
}

// peer is Config.Peers: it sends again as long as the bucket does not answer.
func (n *node) peer(ctx context.Context, bucket wire.BucketID, call *rpc.Call) error {
	for {
		if n.dead.Load() {
			return errLost
		}
		to := n.r.node(bucket)
		err := errLost
		if to != nil {
			var resp wire.Message
			e := to.guard(func() (err error) {
				resp, err = to.serve(ctx, call)
				return err
			})
			if e == nil {
				if call.Resp != nil {
					if err := call.Resp.Decode(resp.Append(nil)); err != nil {
						n.r.t.Errorf("answer to %x: %v", call.Method, err)
					}
				}
				return nil
			}
			if !errors.As(e, &err) {
				n.r.t.Errorf("method %x: not a wire error: %v", call.Method, e)
			}
		}
		if !err.Kind.Retryable() {
			return &wire.Error{Op: err.Op, Kind: err.Kind, ID: err.ID, Err: errors.New(fmt.Sprint(err.Err))}
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return wire.E("rig", wire.KindTimeout, "", ctx.Err())
		}
	}
}

// decoded sends a message through its encoding.
func decoded[M wire.Message](from wire.Message, to M) M {
	if err := to.Decode(from.Append(nil)); err != nil {
		panic(err)
	}
	return to
}

func (n *node) serve(ctx context.Context, call *rpc.Call) (wire.Message, error) {
	b := n.b
	switch call.Method {
	case wire.MTxnPrepare:
		return b.TxnPrepare(ctx, decoded(call.Req, &wire.TxnPrepareReq{}))
	case wire.MTxnDecide:
		return &wire.Empty{}, b.TxnDecide(ctx, decoded(call.Req, &wire.TxnDecideReq{}))
	case wire.MTxnQuery:
		return b.TxnQuery(ctx, decoded(call.Req, &wire.TxnQueryReq{}))
	case wire.MDropRegions:
		return b.DropRegions(ctx, decoded(call.Req, &wire.DropRegionsReq{}))
	case wire.MRegionBlocks:
		return &wire.Empty{}, b.RegionBlocks(ctx, decoded(call.Req, &wire.RegionBlocksReq{}))
	}
	return nil, wire.Errorf("rig", wire.KindVersion, "", "method %x", call.Method)
}

// Opens and Sessions.

func (r *rig) IsOpen(ino wire.Ino) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.open[ino]) > 0
}

func (r *rig) Opened(s wire.SessionID, ino wire.Ino) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.open[ino] == nil {
		r.open[ino] = map[wire.SessionID]bool{}
	}
	r.open[ino][s] = true
}

func (r *rig) release(ino wire.Ino, s wire.SessionID) {
	r.mu.Lock()
	delete(r.open[ino], s)
	if len(r.open[ino]) == 0 {
		delete(r.open, ino)
	}
	r.mu.Unlock()
}

func (r *rig) Alive(s wire.SessionID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.dead[s]
}

// brokenFS fails writes or syncs once it is on.
type brokenFS struct {
	vfs.FS
	what string
	on   atomic.Bool
}

type brokenFile struct {
	vfs.File
	fs *brokenFS
}

var errBroken = errors.New("the device is broken")

func (b *brokenFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := b.FS.Create(name, c)
	return &brokenFile{f, b}, err
}

func (b *brokenFS) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := b.FS.ReuseForWrite(oldname, newname, c)
	return &brokenFile{f, b}, err
}

func (f *brokenFile) fails(what string) bool { return f.fs.on.Load() && f.fs.what == what }

func (f *brokenFile) Write(b []byte) (int, error) {
	if f.fails("write") {
		return 0, errBroken
	}
	return f.File.Write(b)
}

func (f *brokenFile) Sync() error {
	if f.fails("sync") {
		return errBroken
	}
	return f.File.Sync()
}

func (f *brokenFile) SyncData() error {
	if f.fails("sync") {
		return errBroken
	}
	return f.File.SyncData()
}

// fakeLeases grants everything, except what a test takes away. It checks the rule that nobody waits for leases with a
// lock held by counting, and that Grant happens within a Hold.
type fakeLeases struct {
	r    *rig
	mu   sync.Mutex
	lost map[wire.Ino]bool // nobody has the write lease
	held map[wire.Ino]bool // another session has the write lease
	hook func(session wire.SessionID, inos []wire.Ino, change bool) error
}

func (l *fakeLeases) Hold(ctx context.Context, s wire.SessionID, inos []wire.Ino, change bool) (func(), error) {
	if len(inos) == 0 {
		return nil, wire.E("lease", wire.KindInvalid, "", nil)
	}
	l.mu.Lock()
	hook := l.hook
	l.mu.Unlock()
	if hook != nil {
		if err := hook(s, inos, change); err != nil {
			return nil, err
		}
	}
	return func() {}, nil
}

func (l *fakeLeases) Grant(_ wire.SessionID, _ wire.Ino, want wire.LeaseMode) wire.Lease {
	return wire.Lease{Mode: want, Seq: 1}
}

func (l *fakeLeases) Holds(_ wire.SessionID, ino wire.Ino, _ wire.LeaseMode) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.lost[ino]
}

func (l *fakeLeases) WriteHeld(_ wire.SessionID, ino wire.Ino) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.held[ino]
}

// fakeStore keeps the data of one bucket, across crashes.
type fakeStore struct {
	r      *rig
	bucket wire.BucketID

	mu      sync.Mutex
	stripes map[wire.StripID][][]byte
	segs    map[wire.StripID][][]byte
	openID  wire.StripID
	deleted map[wire.StripID]bool
	limit   int // blocks of a segment
	fail    error
	appends int
	writes  int
}

func newFakeStore(r *rig, b wire.BucketID) *fakeStore {
	return &fakeStore{r: r, bucket: b, stripes: map[wire.StripID][][]byte{}, segs: map[wire.StripID][][]byte{},
		deleted: map[wire.StripID]bool{}, limit: 64}
}

func (s *fakeStore) newOwner() {
	s.mu.Lock()
	s.openID = wire.StripID{}
	s.mu.Unlock()
}

// nodeStore is the store as one owner of the bucket sees it: fenced off once it is dead.
type nodeStore struct {
	n *node
	*fakeStore
}

func blocksIn(data wire.Data, sums []uint64) ([][]byte, error) {
	var out [][]byte
	var err error
	data.Blocks(func(i int, b []byte) {
		if i >= len(sums) || xxhash.Sum64(b) != sums[i] {
			err = wire.Errorf("store", wire.KindCorrupt, "", "block %d", i)
		}
		out = append(out, append([]byte(nil), b...))
	})
	if len(out) != len(sums) {
		err = wire.Errorf("store", wire.KindInvalid, "", "%d blocks, %d sums", len(out), len(sums))
	}
	return out, err
}

func (s *nodeStore) WriteStripe(_ context.Context, number uint64, data wire.Data, sums []uint64) (wire.Location, error) {
	blocks, err := blocksIn(data, sums)
	if err != nil {
		return wire.Location{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return wire.Location{}, s.fail
	}
	s.writes++
	id := wire.MakeStripID(s.bucket, wire.ClassData, 0, number, 0, rand.Uint64())
	s.stripes[id] = blocks
	return wire.Location{Kind: wire.LocStripe, K: 4, M: 2, ID: id, Blocks: uint32(len(blocks)), Drives: []wire.DriveID{1, 2, 3, 4, 5, 6}}, nil
}

func (s *nodeStore) Append(_ context.Context, data wire.Data, sums []uint64) (wire.Location, uint32, error) {
	blocks, err := blocksIn(data, sums)
	if err != nil {
		return wire.Location{}, 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return wire.Location{}, 0, s.fail
	}
	if s.n.dead.Load() {
		return wire.Location{}, 0, wire.E("store", wire.KindStaleEpoch, "", nil)
	}
	s.appends++
	if s.openID.IsZero() || len(s.segs[s.openID]) >= s.limit {
		number, err := s.n.b.NextNumber()
		if err != nil {
			return wire.Location{}, 0, err
		}
		s.openID = wire.MakeStripID(s.bucket, wire.ClassSegment, 0, number, 0, rand.Uint64())
	}
	at := len(s.segs[s.openID])
	s.segs[s.openID] = append(s.segs[s.openID], blocks...)
	return wire.Location{Kind: wire.LocSegment, M: 2, ID: s.openID, Drives: []wire.DriveID{1, 2, 3}}, uint32(at), nil
}

func (s *nodeStore) Read(context.Context, wire.Location, uint32, int, []uint64) (wire.Data, error) {
	panic("the bucket does not read data by itself")
}

func (s *nodeStore) Delete(locs ...wire.Location) {
	if s.n.dead.Load() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range locs {
		if s.stripes[l.ID] == nil && s.segs[l.ID] == nil {
			s.r.t.Errorf("delete of %v, which is not there", l.ID)
		}
		if l.ID == s.openID {
			s.r.t.Errorf("delete of the open segment %v", l.ID)
		}
		delete(s.stripes, l.ID)
		delete(s.segs, l.ID)
		s.deleted[l.ID] = true
	}
}

// block reads a stored block.
func (s *fakeStore) block(loc *wire.Location, n uint32, sum uint64) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	blocks := s.stripes[loc.ID]
	if loc.Kind == wire.LocSegment {
		blocks = s.segs[loc.ID]
	}
	if int(n) >= len(blocks) {
		return nil, fmt.Errorf("block %d of %v is not there (deleted %v)", n, loc.ID, s.deleted[loc.ID])
	}
	if xxhash.Sum64(blocks[n]) != sum {
		return nil, fmt.Errorf("block %d of %v: checksum", n, loc.ID)
	}
	return blocks[n], nil
}

// Client side.

func (r *rig) op() wire.OpID {
	return wire.OpID{Session: r.session, Seq: r.seq.Add(1)}
}

// opAcked is an OpID that acknowledges everything before it.
func (r *rig) opAcked() wire.OpID {
	s := r.seq.Add(1)
	return wire.OpID{Session: r.session, Seq: s, Acked: s}
}

// nurse restarts what crashes until stop is called.
func (r *rig) nurse() (stop func()) {
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-end:
				return
			case <-time.After(2 * time.Millisecond):
				r.restart()
			}
		}
	}()
	return func() { close(end); <-done }
}

// do runs a request on the owner of a bucket.
func (r *rig) do(bucket wire.BucketID, f func(b *Bucket) error) error {
	n := r.node(bucket)
	if n == nil {
		return errLost
	}
	return n.guard(func() error { return f(n.b) })
}

// must runs a request until the bucket answers, restarting whatever has crashed.
func (r *rig) retry(bucket wire.BucketID, f func(b *Bucket) error) error {
	for began := time.Now(); ; {
		err := r.do(bucket, f)
		if !wire.KindOf(err).Retryable() {
			return err
		}
		if time.Since(began) > 15*time.Second {
			return fmt.Errorf("for 15 s: %w", err)
		}
		r.restart()
		time.Sleep(time.Millisecond)
	}
}

const rootFS = wire.FSID(3) // of 4 buckets the last has the root

func (r *rig) root() wire.Ino { return wire.RootIno(rootFS, r.n) }

func (r *rig) makeRoot() wire.Ino {
	root := r.root()
	if err := r.bucket(root.Bucket()).MakeRoot(ctxT(r.t), &wire.MakeRootReq{FS: rootFS, Root: root, Mode: 0755}); err != nil {
		r.t.Fatal(err)
	}
	return root
}

// ctxT gives a context that ends before the test binary does.
func ctxT(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// settle restarts all and waits until nothing is pending anywhere.
func (r *rig) settle() {
	r.t.Helper()
	r.restart()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for again := true; again; {
		again = false
		for i := range r.n {
			if err := r.bucket(wire.BucketID(i)).Settle(ctx); err != nil {
				r.t.Fatalf("settle bucket %d: %v", i, err)
			}
		}
		for i := range r.n {
			if err := r.bucket(wire.BucketID(i)).freeSegments(ctx); err != nil {
				r.t.Fatal(err)
			}
			again = again || r.bucket(wire.BucketID(i)).PendingWork() > 0
		}
	}
}
