package compute

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

// TestServe: a compute opens its buckets on empty drives and serves a tree that spans them; a second process opens the
// same buckets and finds all of it.
func TestServe(t *testing.T) {
	c := newCluster(t)
	a := c.compute(11, "a")
	c.mgmt.assign(11)
	c.waitServed()
	c.makeRoot()
	cl := c.client(21)
	dir := cl.mustCreate(c.root, "dir", modeDir)
	file := cl.mustCreate(dir, "file", modeFile)
	if file.Bucket() != dir.Bucket() {
		t.Fatal("a file lies in its directory's bucket")
	}
	lease := cl.getAttr(file, wire.LeaseWrite).Lease
	if lease.Mode != wire.LeaseWrite {
		t.Fatalf("lease %+v", lease)
	}
	for _, blocks := range []int{1, 40} { // a segment, a stripe
		cl.write(file, uint64(blocks)*wire.BlockSize, blocks)
	}
	var st wire.StatFSResp
	cl.do(c.root.Bucket(), wire.MStatFS, &wire.StatFSReq{FS: 1}, &st)
	if st.TotalBytes != 4<<30 || st.FreeBytes == 0 || st.FreeBytes > st.TotalBytes {
		t.Fatalf("space %+v", st)
	}
	a.stop()
	if err := <-a.err; err != nil {
		t.Fatal(err)
	}
	if len(c.mgmt.byes) != 1 {
		t.Fatal("no goodbye")
	}
	c.compute(12, "b")
	c.mgmt.assign(12)
	c.waitServed()
	if got, err := cl.lookup(dir, "file"); err != nil || got != file {
		t.Fatal(got, err)
	}
	if size := cl.getAttr(file, wire.LeaseRead).Attr.Size; size != 80*wire.BlockSize {
		t.Fatalf("size %d", size)
	}
	var ext wire.ExtentsResp
	cl.do(file.Bucket(), wire.MExtents, &wire.ExtentsReq{Session: cl.sess, Ino: file, Len: wire.RegionBytes}, &ext)
	if len(ext.Extents) != 2 || len(ext.Locations) != 2 {
		t.Fatalf("extents %+v", ext)
	}
}

// write writes whole blocks at off.
func (cl *client) write(ino wire.Ino, off uint64, blocks int) {
	cl.t.Helper()
	data, sums := cl.c.drives.Data(newRand(1), blocks)
	defer data.Release()
	req := &wire.WriteReq{Op: cl.op(), Bucket: ino.Bucket(), Files: []wire.FileWrite{{
		Ino: ino, Runs: []wire.WriteRun{{Off: off, Len: uint64(blocks) * wire.BlockSize, Sums: sums}},
		Publish: true, Size: off + uint64(blocks)*wire.BlockSize, Mtime: 1,
	}}}
	var resp wire.WriteResp
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := cl.r.Bucket(ctx, ino.Bucket(), &rpc.Call{Method: wire.MWrite, Req: req, Resp: &resp, Data: data}); err != nil {
		cl.t.Fatalf("write: %v", err)
	}
	if len(resp.Extents) != 1 || len(resp.Attrs) != 1 {
		cl.t.Fatalf("answer %+v", resp)
	}
}

// TestFailover: a compute vanishes in the middle of work; the other takes its buckets over, and every create is done
// exactly once. When the first comes back, it learns that a newer run exists and ends without having answered anything.
func TestFailover(t *testing.T) {
	c := newCluster(t)
	a := c.compute(11, "a")
	c.compute(12, "b")
	c.mgmt.assign(11)
	c.waitServed()
	c.makeRoot()
	cl := c.client(21)
	dir := cl.mustCreate(c.root, "dir", modeDir)
	done := make(chan struct{})
	var want []string
	go func() {
		defer close(done)
		for i := range 150 {
			name := fmt.Sprintf("f%03d", i)
			if _, err := cl.create(dir, name, modeFile); err != nil {
				t.Errorf("%s: %v", name, err)
				return
			}
			want = append(want, name)
			time.Sleep(time.Millisecond)
		}
	}()
	time.Sleep(50 * time.Millisecond)
	for _, other := range []string{"mgmt", "drives", "client21"} {
		c.net.Partition("a", other)
	}
	c.net.Break("a", "client21") // else the client waits for its call's deadline
	c.mgmt.mu.Lock()
	c.mgmt.incs[11]++
	c.mgmt.mu.Unlock()
	c.mgmt.assign(12)
	<-done
	if got := cl.names(dir); !slices.Equal(got, want) {
		t.Fatalf("%d names, want %d: %v", len(got), len(want), got)
	}
	for _, other := range []string{"mgmt", "drives", "client21"} {
		c.net.Heal("a", other)
	}
	wantKind(t, <-a.err, wire.KindStaleSession)
	if got := cl.names(dir); !slices.Equal(got, want) {
		t.Fatalf("the old owner changed something: %v", got)
	}
}

// TestNewerIncarnation: a process ends by itself when mgmt knows a newer run of it.
func TestNewerIncarnation(t *testing.T) {
	c := newCluster(t)
	a := c.compute(11, "a")
	c.mgmt.mu.Lock()
	c.mgmt.incs[11]++
	c.mgmt.mu.Unlock()
	wantKind(t, <-a.err, wire.KindStaleSession)
}

// TestMoveUnderLoad: buckets move between two computes in an orderly way while several clients create, rename across
// buckets and unlink; nothing fails, nothing is done twice.
func TestMoveUnderLoad(t *testing.T) {
	c := newCluster(t)
	c.compute(11, "a")
	c.compute(12, "b")
	c.mgmt.assign(11)
	c.waitServed()
	c.makeRoot()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var clients []*client
	var dirs []wire.Ino
	pace := newPace(t, 2)
	for i := range 2 {
		cl := c.client(wire.ProcID(21 + i))
		clients = append(clients, cl)
		dirs = append(dirs, cl.mustCreate(c.root, fmt.Sprintf("dir%d", i), modeDir))
	}
	for i, cl := range clients {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				name := fmt.Sprintf("c%d-%04d", i, n)
				if _, err := cl.create(dirs[i], name, modeFile); err != nil {
					t.Errorf("%s: %v", name, err)
					return
				}
				// To the other client's directory: two buckets, and the other's caches in the way.
				if err := cl.try(dirs[i].Bucket(), wire.MRename, &wire.RenameReq{
					Op: cl.op(), OldParent: dirs[i], NewParent: dirs[1-i], OldName: name, NewName: name,
				}, &wire.RenameResp{}); err != nil {
					t.Errorf("rename %s: %v", name, err)
					return
				}
				pace.did(i)
			}
		})
	}
	to := wire.ProcID(12)
	for round := 0; round < 3 || !pace.all(10); round++ {
		if round == 50 || t.Failed() {
			t.Fatalf("operations while all buckets moved %d times: %v", round, pace.counts())
		}
		for b := range wire.BucketID(testBuckets) {
			c.mgmt.move(t, b, to)
			eventually(t, "served again", func() bool { return c.served(b) })
		}
		to = 23 - to
	}
	pace.end()
	close(stop)
	wg.Wait()
	for i, cl := range clients {
		got := cl.names(dirs[1-i])
		if made := pace.counts()[i]; len(got) != int(made) {
			t.Fatalf("client %d: %d names, made %d", i, len(got), made)
		}
	}
}

// TestSelfFencing: without heartbeats a process stops answering after half of the lease time, and goes on when mgmt
// answers again and the buckets are still its own.
func TestSelfFencing(t *testing.T) {
	c := newCluster(t)
	c.compute(11, "a")
	c.mgmt.assign(11)
	c.waitServed()
	c.makeRoot()
	cl := c.client(21)
	cl.getAttr(c.root, wire.LeaseRead)
	c.mgmt.mu.Lock()
	c.mgmt.silent[11] = true
	c.mgmt.mu.Unlock()
	silent := time.Now()
	ask := func() error {
		return cl.once(500*time.Millisecond, c.root.Bucket(), wire.MGetAttr, &wire.GetAttrReq{Session: cl.sess, Ino: c.root}, &wire.AttrResp{})
	}
	eventually(t, "it stops serving", func() bool { return ask() != nil })
	wantKind(t, ask(), wire.KindUnavailable)
	// A heartbeat before the silence may be up to half a second old.
	if d := time.Since(silent); d > time.Second+100*time.Millisecond {
		t.Fatalf("it stopped after %v, half of the lease is 1 s", d)
	}
	c.mgmt.mu.Lock()
	c.mgmt.silent[11] = false
	c.mgmt.mu.Unlock()
	eventually(t, "it serves again", func() bool { return ask() == nil })
}

// TestTooFewDrives: with more than m drives away a bucket does not open, says why, and opens when they are back.
func TestTooFewDrives(t *testing.T) {
	c := newCluster(t)
	c.drives.Kill(1, 2, 3)
	c.compute(11, "a")
	c.mgmt.assign(11)
	eventually(t, "the failure is reported", func() bool {
		r := c.mgmt.report(0)
		return r.State == wire.BucketFailed && r.Error != ""
	})
	c.drives.Revive(1)
	c.waitServed()
}

// TestReopen: a bucket whose database fails is opened again under the same epoch; what was acknowledged is there, what
// sessions hold is still theirs, and requests meanwhile wait.
func TestReopen(t *testing.T) {
	c := newCluster(t)
	a := c.compute(11, "a")
	c.mgmt.assign(11)
	c.waitServed()
	c.makeRoot()
	cl := c.client(21)
	ino := cl.mustCreate(c.root, "f", modeFile)
	cl.getAttr(ino, wire.LeaseWrite)
	b := a.p.owner.Bucket(c.root.Bucket())
	want := []string{"f"}
	for i := range 5 {
		go b.Fail(errors.New("the test says so"))
		for k := range 10 {
			name := fmt.Sprintf("f%d-%d", i, k)
			cl.mustCreate(c.root, name, modeFile)
			want = append(want, name)
		}
		eventually(t, "it was opened again", func() bool { s, _ := b.State(); return s == wire.BucketServing })
	}
	if got := cl.names(c.root); !slices.Equal(got, want) {
		t.Fatalf("got %v", got)
	}
	if b != a.p.owner.Bucket(c.root.Bucket()) || !b.Leases.Holds(cl.sess, ino, wire.LeaseWrite) {
		t.Fatal("the lease is gone")
	}
	cl.write(ino, 0, 1)
}

// TestDeposed: a drive that has seen a newer owner ends the service of the bucket at once, before any map tells.
func TestDeposed(t *testing.T) {
	c := newCluster(t)
	c.compute(11, "a")
	c.mgmt.assign(11)
	c.waitServed()
	c.makeRoot()
	cl := c.client(21)
	for d := range wire.DriveID(6) {
		req := &wire.FenceReq{Drive: d + 1, Bucket: c.root.Bucket(), Epoch: 9}
		if err := c.drives.Ask(context.Background(), d+1, &rpc.Call{Method: wire.MDriveFence, Req: req, Resp: &wire.Empty{}}); err != nil {
			t.Fatal(err)
		}
	}
	err := cl.once(5*time.Second, c.root.Bucket(), wire.MCreate, &wire.CreateReq{Op: cl.op(), Parent: c.root, Mode: modeFile, Name: "x"}, &wire.EntryResp{})
	if !wire.KindOf(err).Retryable() {
		t.Fatalf("got %v", err)
	}
	eventually(t, "the bucket is given up", func() bool { return c.mgmt.report(c.root.Bucket()).State == wire.BucketFailed })
	for c.mgmt.now().Owners[c.root.Bucket()].Epoch < 9 {
		c.mgmt.assign(11, c.root.Bucket())
	}
	eventually(t, "served again", func() bool { return c.served(c.root.Bucket()) })
	if _, err := cl.create(c.root, "x", modeFile); err != nil {
		t.Fatal(err)
	}
}

// TestReclaim: after a move the bucket serves only when every session has said what it holds; a lease, an open file
// without a name and a lock live on, and conflict with others as before. What a session that died meanwhile held is gone.
func TestReclaim(t *testing.T) {
	c := newCluster(t)
	c.compute(11, "a")
	c.compute(12, "b")
	c.mgmt.assign(11)
	c.waitServed()
	c.makeRoot()
	c1, c2, c3 := c.client(21), c.client(22), c.client(23)
	dir := c1.mustCreate(c.root, "dir", modeDir)
	b := dir.Bucket()
	leased := c1.mustCreate(dir, "leased", modeFile)
	c1.getAttr(leased, wire.LeaseWrite)
	var inos []wire.Ino
	for i, cl := range []*client{c1, c3} {
		name := fmt.Sprintf("orphan%d", i)
		ino := cl.mustCreate(dir, name, modeFile)
		cl.do(b, wire.MOpen, &wire.OpenReq{Session: cl.sess, Ino: ino}, &wire.OpenResp{})
		cl.opens[ino] = true
		cl.do(b, wire.MUnlink, &wire.UnlinkReq{Op: cl.op(), Parent: dir, Name: name}, &wire.UnlinkResp{})
		inos = append(inos, ino)
		lock := wire.LockReq{Op: wire.OpID{Session: cl.sess}, Ino: leased, Owner: 5, Start: uint64(10 * i), End: uint64(10*i + 9), Type: wire.LockWrite, PID: 7}
		cl.do(b, wire.MLock, &lock, &wire.LockResp{})
		cl.locks = append(cl.locks, lock)
	}
	c3.mu.Lock()
	c3.mute = true
	c3.mu.Unlock()
	c.mgmt.move(t, b, 12)
	eventually(t, "it waits", func() bool { return c.mgmt.report(b).State == wire.BucketReclaim })
	time.Sleep(50 * time.Millisecond)
	if c.mgmt.report(b).State != wire.BucketReclaim {
		t.Fatal("it serves before session 3 has reclaimed")
	}
	c.mgmt.endSession(c3.sess)
	eventually(t, "served", func() bool { return c.served(b) })

	// The lease is still c1's: c2 has to recall it.
	recalled := make(chan wire.RecallReq, 1)
	c1.mu.Lock()
	c1.onRecall = func(_ context.Context, q *wire.RecallReq) error { recalled <- *q; return nil }
	c1.mu.Unlock()
	c2.getAttr(leased, wire.LeaseRead)
	select {
	case q := <-recalled:
		if q.Ino != leased || q.To != wire.LeaseRead {
			t.Fatalf("recalled %+v", q)
		}
	default:
		t.Fatal("the lease was forgotten")
	}
	// Locks: c1's is there, c3's is gone.
	for i, want := range []wire.Kind{wire.KindWouldBlock, wire.KindNone} {
		err := c2.try(b, wire.MLock, &wire.LockReq{Op: wire.OpID{Session: c2.sess}, Ino: leased, Start: uint64(10 * i), End: uint64(10 * i), Type: wire.LockWrite}, &wire.LockResp{})
		if wire.KindOf(err) != want {
			t.Fatalf("lock %d: %v, want %v", i, err, want)
		}
	}
	// Files without a name: c1's lives until it is released, c3's is deleted.
	gone := func(ino wire.Ino) bool {
		err := c1.try(b, wire.MGetAttr, &wire.GetAttrReq{Session: c1.sess, Ino: ino}, &wire.AttrResp{})
		if err != nil && !errors.Is(err, wire.KindStale) && !errors.Is(err, wire.KindNotFound) {
			t.Fatal(err)
		}
		return err != nil
	}
	eventually(t, "the dead session's file is deleted", func() bool { return gone(inos[1]) })
	if gone(inos[0]) {
		t.Fatal("the living session's file is deleted")
	}
	c1.do(b, wire.MRelease, &wire.ReleaseReq{Session: c1.sess, Bucket: b, Inos: inos[:1]}, &wire.Empty{})
	eventually(t, "the released file is deleted", func() bool { return gone(inos[0]) })
}

// TestDeadSession: when a session ends, its leases and locks pass on and its open files without a name are deleted; its
// own requests are refused.
func TestDeadSession(t *testing.T) {
	c := newCluster(t)
	c.compute(11, "a")
	c.mgmt.assign(11)
	c.waitServed()
	c.makeRoot()
	c1, c2 := c.client(21), c.client(22)
	ino := c1.mustCreate(c.root, "f", modeFile)
	c1.getAttr(ino, wire.LeaseWrite)
	c1.mu.Lock()
	c1.onRecall = func(ctx context.Context, _ *wire.RecallReq) error { <-ctx.Done(); return ctx.Err() }
	c1.mu.Unlock()
	lock := &wire.LockReq{Op: wire.OpID{Session: c1.sess}, Ino: ino, End: 9, Type: wire.LockWrite}
	c1.do(ino.Bucket(), wire.MLock, lock, &wire.LockResp{})
	got := make(chan error, 2)
	go func() {
		l := *lock
		l.Op.Session, l.Wait = c2.sess, true
		got <- c2.try(ino.Bucket(), wire.MLock, &l, &wire.LockResp{})
	}()
	go func() {
		got <- c2.try(ino.Bucket(), wire.MGetAttr, &wire.GetAttrReq{Session: c2.sess, Ino: ino, Want: wire.LeaseWrite}, &wire.AttrResp{})
	}()
	time.Sleep(100 * time.Millisecond)
	if len(got) > 0 {
		t.Fatal("session 2 did not wait")
	}
	c.mgmt.endSession(c1.sess)
	for range 2 {
		if err := <-got; err != nil {
			t.Fatal(err)
		}
	}
	err := c1.try(ino.Bucket(), wire.MGetAttr, &wire.GetAttrReq{Session: c1.sess, Ino: ino}, &wire.AttrResp{})
	wantKind(t, err, wire.KindStaleSession)
	err = c2.try(ino.Bucket(), wire.MGetAttr, &wire.GetAttrReq{Session: c1.sess, Ino: ino}, &wire.AttrResp{})
	wantKind(t, err, wire.KindStaleSession)
}

// TestLockCancel: a waiting lock request ends when its asker cancels, and does not get the lock afterwards.
func TestLockCancel(t *testing.T) {
	c := newCluster(t)
	c.compute(11, "a")
	c.mgmt.assign(11)
	c.waitServed()
	c.makeRoot()
	cl := c.client(21)
	ino := cl.mustCreate(c.root, "f", modeFile)
	lock := func(owner uint64, typ uint8, wait bool) *wire.LockReq {
		return &wire.LockReq{Op: wire.OpID{Session: cl.sess}, Ino: ino, Owner: owner, End: 9, Type: typ, Wait: wait}
	}
	cl.do(ino.Bucket(), wire.MLock, lock(1, wire.LockWrite, false), &wire.LockResp{})
	ctx, cancel := context.WithCancel(context.Background())
	got := make(chan error, 1)
	go func() {
		_, err := cl.r.BucketOnce(ctx, ino.Bucket(), &rpc.Call{Method: wire.MLock, Req: lock(2, wire.LockWrite, true), Resp: &wire.LockResp{}})
		got <- err
	}()
	time.Sleep(50 * time.Millisecond)
	cancel()
	wantKind(t, <-got, wire.KindInterrupted)
	time.Sleep(20 * time.Millisecond) // the cancel frame
	cl.do(ino.Bucket(), wire.MLock, lock(1, wire.LockUnlock, false), &wire.LockResp{})
	cl.do(ino.Bucket(), wire.MLock, lock(3, wire.LockWrite, false), &wire.LockResp{})
}

// TestWrongPeer: requests from those who may not ask, for another's session, for a bucket of another owner or epoch, and
// of unknown methods get a clear refusal.
func TestWrongPeer(t *testing.T) {
	c := newCluster(t)
	c.compute(11, "a")
	c.mgmt.assign(11, 0, 1, 2)
	eventually(t, "served", func() bool { return c.served(0) && c.served(1) && c.served(2) })
	c.makeRoot()
	cl := c.client(21)
	root := c.root.Bucket()
	wantKind(t, cl.once(time.Second, root, wire.MMakeRoot, &wire.MakeRootReq{Root: c.root}, &wire.Empty{}), wire.KindPermission)
	wantKind(t, cl.once(time.Second, root, wire.MTxnQuery, &wire.TxnQueryReq{}, &wire.TxnQueryResp{}), wire.KindPermission)
	wantKind(t, cl.once(time.Second, root, 0x7777, &wire.Empty{}, &wire.Empty{}), wire.KindVersion)
	wantKind(t, cl.once(time.Second, root, wire.MGetAttr, &wire.GetAttrReq{Session: 99, Ino: c.root}, &wire.AttrResp{}), wire.KindStaleSession)
	other := c.client(22)
	if _, err := cl.r.WaitMap(context.Background(), c.mgmt.now().Generation); err != nil {
		t.Fatal(err)
	}
	wantKind(t, cl.once(time.Second, root, wire.MGetAttr, &wire.GetAttrReq{Session: other.sess, Ino: c.root}, &wire.AttrResp{}), wire.KindPermission)
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	conn, err := cl.r.BucketOnce(ctx, root, &rpc.Call{Method: wire.MBucketStat, Req: &wire.BucketStatReq{Bucket: root}, Resp: &wire.BucketStatResp{}})
	if err != nil {
		t.Fatal(err)
	}
	for _, epoch := range []wire.Epoch{0, c.mgmt.now().Owners[root].Epoch + 1} {
		err := conn.Do(ctx, &rpc.Call{Method: wire.MGetAttr, Epoch: epoch, Req: &wire.GetAttrReq{Session: cl.sess, Ino: c.root}, Resp: &wire.AttrResp{}})
		wantKind(t, err, wire.KindMoved)
	}
	err = conn.Do(ctx, &rpc.Call{Method: wire.MGetAttr, Epoch: 1, Req: &wire.GetAttrReq{Session: cl.sess, Ino: wire.MakeIno(3, 1<<20)}, Resp: &wire.AttrResp{}})
	wantKind(t, err, wire.KindMoved)
}
