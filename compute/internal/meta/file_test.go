package meta

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/crakefs/crake/wire"
	"golang.org/x/sys/unix"
)

// Random file operations while buckets crash at random steps: truncations and deletes that concern other buckets are
// resumed, nothing acknowledged is missing, no byte comes back, and all counts agree.
func TestFileModelWithCrashes(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, 3, rigOptions{})
			m := &fileModel{r: r, ino: r.file(r.makeRoot(), "f"), prep: map[uint64]bool{}}
			rng := rand.New(rand.NewPCG(seed, 4))
			defer r.nurse()()
			crashes := 0
			for i := range 80 {
				hit := func() string { return "" }
				if rng.IntN(2) == 0 {
					r.mu.Lock()
					r.keep = []int{0, 50, 100}[rng.IntN(3)]
					r.mu.Unlock()
					hit = r.crashAt(1+rng.IntN(8), rng.IntN(3) == 0)
				}
				what, err := m.step(rng, seed == 0)
				r.disarm()
				if err != nil {
					t.Fatalf("step %d, %s, crash at %q: %v", i, what, hit(), err)
				}
				if hit() != "" {
					crashes++
				}
				r.settle()
				m.verify(fmt.Sprintf("step %d, %s, crash at %q", i, what, hit()))
			}
			r.check()
			r.checkBlocks(m)
			if crashes < 10 {
				t.Errorf("only %d crashes", crashes)
			}
			r.crashAt(2, true)
			ok(t, r.unlink(r.root(), "f", false))
			r.disarm()
			r.settle()
			r.check()
		})
	}
}

// regionIn finds a region above 0 of the file that bucket maps.
func (r *rig) regionIn(ino wire.Ino, bucket wire.BucketID) uint64 {
	for region := uint64(1); ; region++ {
		if wire.RegionBucket(ino, region, r.n) == bucket {
			return region
		}
	}
}

// A truncation keeps the inode locked until every region has answered, also across a crash of its bucket; and a late
// duplicate of its DropRegions does not touch what is written afterwards.
func TestTruncateAcrossBuckets(t *testing.T) {
	r := newRig(t, 3, rigOptions{})
	root := r.makeRoot()
	home := root.Bucket()
	m := &fileModel{r: r, ino: r.file(root, "f"), prep: map[uint64]bool{}}
	other := (home + 1) % 3
	region := r.regionIn(m.ino, other)
	rng := rand.New(rand.NewPCG(1, 1))
	off := region * wire.RegionBytes
	ok(t, m.write(rng, span{off, 100_000}))
	r.settle()

	r.node(other).crash(100)
	err := r.do(home, func(b *Bucket) error {
		_, err := b.SetAttr(briefly(t), &wire.SetAttrReq{Op: r.op(), Ino: m.ino, Valid: wire.SetSize, Size: 10})
		return err
	})
	wantKind(t, err, wire.KindUnavailable)
	locked := func() {
		t.Helper()
		_, err := r.bucket(home).GetAttr(briefly(t), &wire.GetAttrReq{Session: r.session, Ino: m.ino})
		wantKind(t, err, wire.KindTimeout)
	}
	locked()
	r.node(home).crash(0)
	r.start(int(home))
	locked()
	r.restart()
	m.data = m.data[:10]
	m.verify("after the truncation")
	a := r.getattr(m.ino)
	if a.Blocks != 0 { // 10 bytes of a hole
		t.Fatalf("%+v", a)
	}

	m.prep = map[uint64]bool{}
	ok(t, m.write(rng, span{off + 50_000, 3000}))
	late := &wire.DropRegionsReq{Bucket: other, Ino: m.ino, FromOff: 10, Regions: []uint64{region}, Seq: 1, Last: true}
	ok(t, errOf(r.bucket(other).DropRegions(ctxT(t), late)))
	m.verify("after a late drop")
	r.settle()
	r.check()
	r.checkBlocks(m)
}

// A sparse file of petabytes takes time by its data, not by its size.
func TestHugeSparseFile(t *testing.T) {
	r := newRig(t, 3, rigOptions{})
	root := r.makeRoot()
	ino := r.file(root, "f")
	const last = wire.MaxFileBytes/wire.RegionBytes - 1
	began := time.Now()
	for _, region := range []uint64{1, 1 << 20, last} {
		req := &wire.PrepareReq{Op: r.op(), Ino: ino, Regions: []uint64{region}}
		ok(t, r.bucket(ino.Bucket()).Prepare(ctxT(t), req))
		ok(t, r.writeBlock(ino, region*regionBlocks, 3))
	}
	set := func(size uint64) error {
		return errOf(r.bucket(ino.Bucket()).SetAttr(ctxT(t), &wire.SetAttrReq{Op: r.op(), Ino: ino, Valid: wire.SetSize, Size: size}))
	}
	ok(t, errOf(r.bucket(ino.Bucket()).Publish(ctxT(t), &wire.PublishReq{Op: r.op(), Ino: ino, Size: wire.MaxFileBytes, Mtime: 1})))
	wantKind(t, set(wire.MaxFileBytes+1), wire.KindTooBig)
	ok(t, set(wire.MaxFileBytes-1))
	r.settle()
	if a := r.getattr(ino); a.Blocks != 24 || a.Size != wire.MaxFileBytes-1 {
		t.Fatalf("%+v", a)
	}
	ok(t, set(1<<20*wire.RegionBytes+1))
	if a := r.getattr(ino); a.Blocks != 16 {
		t.Fatalf("%+v", a)
	}
	if got := r.readFile(ino, 1<<20*wire.RegionBytes, 2); got[0] != 3 || got[1] != 0 {
		t.Fatalf("%v", got)
	}
	ok(t, r.unlink(root, "f", false))
	r.settle()
	r.check()
	r.checkGone()
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("it took %v", d)
	}
}

// writeBlock writes one block full of a byte, without publishing.
func (r *rig) writeBlock(ino wire.Ino, block uint64, fill byte) error {
	return errOf(r.writeRaw(r.op(), ino, block, 1, fill))
}

func (r *rig) writeRaw(op wire.OpID, ino wire.Ino, block uint64, blocks int, fill byte) (resp *wire.WriteResp, err error) {
	payload := []byte(strings.Repeat(string([]byte{fill}), blocks*wire.BlockSize))
	run := wire.WriteRun{Off: block * wire.BlockSize, Len: uint64(len(payload))}
	for i := range blocks {
		run.Sums = append(run.Sums, xxhash.Sum64(payload[i*wire.BlockSize:(i+1)*wire.BlockSize]))
	}
	region := block / regionBlocks
	req := &wire.WriteReq{Op: op, Bucket: wire.RegionBucket(ino, region, r.n), Files: []wire.FileWrite{{Ino: ino, Region: region, Runs: []wire.WriteRun{run}}}}
	data := r.payload(payload)
	defer data.Release()
	err = r.do(req.Bucket, func(b *Bucket) error {
		var e error
		resp, e = b.Write(ctxT(r.t), req, data)
		return e
	})
	return resp, err
}

// Only who holds the write lease writes, truncates, publishes and punches; elsewhere than at the inode's bucket, only a
// session that lives.
func TestWriteNeedsLease(t *testing.T) {
	r := newRig(t, 3, rigOptions{})
	root := r.makeRoot()
	ino := r.file(root, "f")
	b := r.bucket(ino.Bucket())
	r.leases.lost = map[wire.Ino]bool{ino: true}
	wantKind(t, r.writeBlock(ino, 0, 1), wire.KindLeaseLost)
	wantKind(t, errOf(b.Publish(ctxT(t), &wire.PublishReq{Op: r.op(), Ino: ino, Size: 5})), wire.KindLeaseLost)
	wantKind(t, b.Punch(ctxT(t), &wire.PunchReq{Op: r.op(), Ino: ino, Len: 4096}), wire.KindLeaseLost)
	wantKind(t, b.Prepare(ctxT(t), &wire.PrepareReq{Op: r.op(), Ino: ino, Regions: []uint64{1}}), wire.KindLeaseLost)
	wantKind(t, errOf(b.SetAttr(ctxT(t), &wire.SetAttrReq{Op: r.op(), Ino: ino, Valid: wire.SetSize})), wire.KindLeaseLost)
	ok(t, errOf(b.SetAttr(ctxT(t), &wire.SetAttrReq{Op: r.op(), Ino: ino, Valid: wire.SetMode, Mode: 0600})))
	far := r.regionIn(ino, (ino.Bucket()+1)%3)
	ok(t, r.writeBlock(ino, far*regionBlocks, 1)) // the lease is not known there
	r.dead[r.session] = true
	wantKind(t, r.writeBlock(ino, far*regionBlocks, 1), wire.KindStaleSession)
	_, err := b.Create(ctxT(t), &wire.CreateReq{Op: r.op(), Parent: root, Name: "x", Mode: unix.S_IFREG})
	wantKind(t, err, wire.KindStaleSession)
	r.leases.lost = nil
	r.dead = map[wire.SessionID]bool{}
	r.leases.held = map[wire.Ino]bool{ino: true}
	resp, err := b.ReadDir(ctxT(t), &wire.ReadDirReq{Session: r.session, Ino: root, Plus: true})
	if err != nil || len(resp.Entries) != 1 || resp.Entries[0].HasAttr {
		t.Fatalf("attributes that another session may have changed: %+v, %v", resp, err)
	}
}

// Leases are waited for before locks are taken, by coordinator and participant: while a Hold waits, others go on.
func TestHoldBeforeLocks(t *testing.T) {
	r := newRig(t, 4, rigOptions{})
	s := &scene{}
	base(r, s)
	waiting, goOn := make(chan bool, 10), make(chan bool)
	r.leases.hook = func(_ wire.SessionID, inos []wire.Ino, change bool) error {
		for _, ino := range inos {
			if ino == s.f && change {
				waiting <- true
				<-goOn
			}
		}
		return nil
	}
	done := make(chan error)
	go func() { done <- r.link(s.f, s.b, "l") }() // coordinator in bucket 1, the file in bucket 0
	<-waiting
	r.file(s.a, "x") // the directory of the file, and the file itself
	r.file(s.b, "y")
	r.getattr(s.f)
	goOn <- true
	ok(t, <-done)
	// A lease that is not given up fails the operation, and leaves nothing behind.
	r.leases.hook = func(_ wire.SessionID, inos []wire.Ino, change bool) error {
		for _, ino := range inos {
			if ino == s.f && change {
				return wire.E("lease", wire.KindInterrupted, "", nil)
			}
		}
		return nil
	}
	wantKind(t, r.link(s.f, s.b, "l2"), wire.KindInterrupted)
	r.leases.hook = nil
	r.settle()
	r.check()
}

// A segment without live blocks goes when it can get none any more: not while it is open, and not while a write that may
// have appended to it is under way.
func TestEmptySegments(t *testing.T) {
	r := newRig(t, 1, rigOptions{})
	r.stores[0].limit = 2
	root := r.makeRoot()
	f, g := r.file(root, "f"), r.file(root, "g")
	b := r.bucket(0)
	count := func() int {
		ok(t, b.freeSegments(ctxT(t)))
		r.stores[0].mu.Lock()
		defer r.stores[0].mu.Unlock()
		return len(r.stores[0].segs)
	}
	ok(t, r.writeBlock(f, 0, 1)) // segment A
	ok(t, b.Punch(ctxT(t), &wire.PunchReq{Op: r.op(), Ino: f, Len: 4096}))
	if n := count(); n != 1 {
		t.Fatalf("the open segment is gone (%d left)", n)
	}
	ok(t, r.writeBlock(f, 0, 2)) // still A, which is full now
	token := b.segments.begin()  // a write that has appended to A before, and has not committed yet
	ok(t, b.Punch(ctxT(t), &wire.PunchReq{Op: r.op(), Ino: f, Len: 4096}))
	ok(t, r.writeBlock(g, 0, 3)) // segment B
	if n := count(); n != 2 {
		t.Fatalf("%d segments while a write may need the first", n)
	}
	b.segments.end(token)
	if n := count(); n != 1 {
		t.Fatalf("%d segments", n)
	}
	// An empty one that an owner leaves behind is the next one's to delete.
	ok(t, b.Punch(ctxT(t), &wire.PunchReq{Op: r.op(), Ino: g, Len: 4096}))
	r.node(0).crash(0)
	r.restart()
	b = r.bucket(0)
	if n := count(); n != 0 {
		t.Fatalf("%d segments after a new open", n)
	}
	r.settle()
	r.check()
}

// A write whose data cannot be stored, or that is refused under the lock, leaves nothing behind.
func TestFailedWrite(t *testing.T) {
	r := newRig(t, 1, rigOptions{})
	root := r.makeRoot()
	f := r.file(root, "f")
	ok(t, errOf(r.writeRaw(r.op(), f, 0, 40, 1)))
	r.stores[0].fail = wire.E("store", wire.KindNoSpace, "", nil)
	wantKind(t, errOf(r.writeRaw(r.op(), f, 10, 40, 2)), wire.KindNoSpace)
	r.stores[0].fail = nil
	calls := 0
	r.mu.Lock()
	r.onPoint = func(*node, string) bool { // between the stripe and the commit the lease is lost
		calls++
		r.leases.mu.Lock()
		r.leases.lost = map[wire.Ino]bool{f: true}
		r.leases.mu.Unlock()
		return false
	}
	r.mu.Unlock()
	wantKind(t, errOf(r.writeRaw(r.op(), f, 10, 40, 2)), wire.KindLeaseLost)
	r.disarm()
	if calls == 0 {
		t.Fatal("the hook was not called")
	}
	r.leases.lost = nil
	if n := len(r.stores[0].stripes); n != 1 {
		t.Fatalf("%d stripes", n)
	}
	r.settle()
	r.check()
	bad := []wire.FileWrite{
		{Ino: f, Runs: []wire.WriteRun{{Off: 1, Len: 4096, Sums: []uint64{1}}}},
		{Ino: f, Runs: []wire.WriteRun{{Off: 0, Len: 0}}},
		{Ino: f, Runs: []wire.WriteRun{{Off: 0, Len: 4097, Sums: []uint64{1}}}},
		{Ino: f, Runs: []wire.WriteRun{{Off: wire.RegionBytes - 4096, Len: 8192, Sums: []uint64{1, 2}}}},
		{Ino: f, Runs: []wire.WriteRun{{Off: 4096, Len: 4096, Sums: []uint64{1}}, {Off: 0, Len: 4096, Sums: []uint64{1}}}},
		{Ino: f, Region: 1 << 60},
		{Ino: f, Region: 1, Publish: true},
		{Ino: f, Publish: true, Size: 1 << 63},
		{Ino: f, Runs: []wire.WriteRun{{Off: ^uint64(0) &^ 4095, Len: 4096, Sums: []uint64{1}}}},
	}
	for i, fw := range bad {
		data := r.payload(make([]byte, 4096*max(1, len(fw.Runs))))
		_, err := r.bucket(0).Write(ctxT(t), &wire.WriteReq{Op: r.op(), Bucket: 0, Files: []wire.FileWrite{fw}}, data)
		data.Release()
		if err == nil {
			t.Errorf("write %d is accepted", i)
		}
	}
}

// A corrupt small file is refused where it enters the database, because from there on only the database's checksum
// covers it.
func TestInlineChecksum(t *testing.T) {
	r := newRig(t, 1, rigOptions{})
	f := r.file(r.makeRoot(), "f")
	data := r.payload(make([]byte, wire.BlockSize))
	defer data.Release()
	req := &wire.WriteReq{Op: r.op(), Files: []wire.FileWrite{{Ino: f, Publish: true, Size: 100,
		Runs: []wire.WriteRun{{Off: 0, Len: 100, Sums: []uint64{12345}}}}}}
	_, err := r.bucket(0).Write(ctxT(t), req, data)
	wantKind(t, err, wire.KindCorrupt)
}

func TestXattrs(t *testing.T) {
	r := newRig(t, 1, rigOptions{})
	root := r.makeRoot()
	f := r.file(root, "f")
	b := r.bucket(0)
	set := func(name, value string, flags uint32) error {
		return b.SetXattr(ctxT(t), &wire.XattrReq{Op: r.op(), Ino: f, Name: name, Value: []byte(value), Flags: flags})
	}
	get := func(name string) (string, error) {
		resp, err := b.GetXattr(ctxT(t), &wire.XattrReq{Op: wire.OpID{Session: r.session}, Ino: f, Name: name})
		if err != nil {
			return "", err
		}
		return string(resp.Value), nil
	}
	wantKind(t, errOf(get("user.a")), wire.KindNoData)
	wantKind(t, set("user.a", "1", xattrReplace), wire.KindNoData)
	ok(t, set("user.a", "1", xattrCreate))
	wantKind(t, set("user.a", "2", xattrCreate), wire.KindExists)
	ok(t, set("user.a", "2", xattrReplace))
	ok(t, set("user.ab", "", 0))
	ok(t, set("user.big", strings.Repeat("x", wire.MaxXattrBytes), 0))
	wantKind(t, set("user.big", strings.Repeat("x", wire.MaxXattrBytes+1), 0), wire.KindOverLimit)
	wantKind(t, set("", "x", 0), wire.KindInvalid)
	wantKind(t, set(strings.Repeat("n", 256), "x", 0), wire.KindRange)
	if v, err := get("user.a"); v != "2" || err != nil {
		t.Fatalf("%q, %v", v, err)
	}
	if v, err := get("user.ab"); v != "" || err != nil {
		t.Fatalf("%q, %v", v, err)
	}
	l, err := b.ListXattr(ctxT(t), &wire.XattrReq{Ino: f})
	if err != nil || strings.Join(l.Names, " ") != "user.ab user.a user.big" { // the order of keys, which end in ff
		t.Fatalf("%+v, %v", l, err)
	}
	del := func(name string) error {
		return b.RemoveXattr(ctxT(t), &wire.XattrReq{Op: r.op(), Ino: f, Name: name})
	}
	ok(t, del("user.a"))
	wantKind(t, del("user.a"), wire.KindNoData)
	var full error
	for i := 0; full == nil && i < 1000; i++ {
		full = set(fmt.Sprintf("user.%0240d", i), "", 0)
	}
	wantKind(t, full, wire.KindNoSpace)
	ok(t, r.unlink(root, "f", false))
	r.settle()
	r.checkGone()
}

func TestSetAttr(t *testing.T) {
	r := newRig(t, 1, rigOptions{})
	root := r.makeRoot()
	f := r.file(root, "f")
	b := r.bucket(0)
	set := func(req wire.SetAttrReq) wire.Attr {
		t.Helper()
		req.Op, req.Ino = r.op(), f
		resp, err := b.SetAttr(ctxT(t), &req)
		ok(t, err)
		if got := r.getattr(f); got != resp.Attr {
			t.Fatalf("answer %+v, then %+v", resp.Attr, got)
		}
		return resp.Attr
	}
	before := r.getattr(f)
	a := set(wire.SetAttrReq{Valid: wire.SetMode | wire.SetUID | wire.SetGID, Mode: unix.S_IFDIR | 06751, UID: 5, GID: 6})
	if a.Mode != unix.S_IFREG|06751 || a.UID != 5 || a.GID != 6 || a.Ctime <= before.Ctime || a.Mtime != before.Mtime || a.Version != before.Version+1 {
		t.Fatalf("%+v", a)
	}
	a = set(wire.SetAttrReq{Valid: wire.SetKillPriv})
	if a.Mode != unix.S_IFREG|0751 {
		t.Fatalf("%o", a.Mode)
	}
	a = set(wire.SetAttrReq{Valid: wire.SetAtime | wire.SetMtime, Atime: -5, Mtime: 77})
	if a.Atime != -5 || a.Mtime != 77 {
		t.Fatalf("%+v", a)
	}
	a = set(wire.SetAttrReq{Valid: wire.SetAtimeNow | wire.SetMtimeNow})
	if a.Atime <= before.Atime || a.Mtime != a.Atime {
		t.Fatalf("%+v", a)
	}
	a = set(wire.SetAttrReq{Valid: wire.SetSize, Size: 100})
	if a.Size != 100 || a.Blocks != 0 {
		t.Fatalf("%+v", a)
	}
	_, err := b.SetAttr(ctxT(t), &wire.SetAttrReq{Op: r.op(), Ino: root, Valid: wire.SetSize})
	wantKind(t, err, wire.KindIsDir)
	_, err = b.SetAttr(ctxT(t), &wire.SetAttrReq{Op: r.op(), Ino: f + 99, Valid: wire.SetMode})
	wantKind(t, err, wire.KindStale)
	_, err = b.SetAttr(ctxT(t), &wire.SetAttrReq{Op: r.op(), Ino: f, Valid: 1 << 30})
	wantKind(t, err, wire.KindInvalid)
	o, err := b.Open(ctxT(t), &wire.OpenReq{Session: r.session, Ino: f, Want: wire.LeaseWrite, Extents: true})
	if err != nil || o.Lease.Mode != wire.LeaseWrite || !r.IsOpen(f) {
		t.Fatalf("%+v, %v", o, err)
	}
	_, err = b.GetAttr(ctxT(t), &wire.GetAttrReq{Session: r.session, Ino: f + 99})
	wantKind(t, err, wire.KindStale)
	if _, err := b.ReadLink(ctxT(t), &wire.ReadLinkReq{Ino: f}); !errors.Is(err, wire.KindInvalid) {
		t.Fatal(err)
	}
}

// Every inode that an operation changes is taken from the caches of other sessions first: parents, what gets or loses a
// name, what is replaced; in whatever bucket it lies.
func TestHoldsWhatChanges(t *testing.T) {
	r := newRig(t, 4, rigOptions{})
	s := &scene{}
	base(r, s)
	d := r.dirIn(s.a, "d", 2)
	var mu sync.Mutex
	held := map[wire.Ino]bool{}
	r.leases.hook = func(_ wire.SessionID, inos []wire.Ino, change bool) error {
		mu.Lock()
		defer mu.Unlock()
		for _, ino := range inos {
			held[ino] = held[ino] || change
		}
		return nil
	}
	for _, step := range []struct {
		what string
		inos []wire.Ino
		do   func() error
	}{
		{"create", []wire.Ino{s.a}, func() error { return errOf(r.tryCreate(r.op(), s.a, "n", unix.S_IFREG)) }},
		{"mkdir", []wire.Ino{s.a}, func() error { return errOf(r.tryCreate(r.op(), s.a, "m", unix.S_IFDIR)) }},
		{"link", []wire.Ino{s.f, s.a}, func() error { return r.link(s.f, s.a, "f2") }},
		{"link elsewhere", []wire.Ino{s.f, s.b}, func() error { return r.link(s.f, s.b, "f3") }},
		{"rename over", []wire.Ino{s.f, s.g, s.a, s.b}, func() error { return r.rename(s.a, "f", s.b, "g", 0) }},
		{"move of a directory", []wire.Ino{d, s.a, s.b}, func() error { return r.rename(s.a, "d", s.b, "d", 0) }},
		{"exchange", []wire.Ino{d, s.f, s.b}, func() error { return r.rename(s.b, "d", s.b, "g", wire.RenameExchange) }},
		{"unlink", []wire.Ino{s.f, s.a}, func() error { return r.unlink(s.a, "f2", false) }},
		{"rmdir", []wire.Ino{d, s.b}, func() error { return r.unlink(s.b, "g", true) }},
	} {
		mu.Lock()
		clear(held)
		mu.Unlock()
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.what, err)
		}
		mu.Lock()
		for _, ino := range step.inos {
			if !held[ino] {
				t.Errorf("%s changes inode %x, which others may have in their caches", step.what, ino)
			}
		}
		mu.Unlock()
	}
}
