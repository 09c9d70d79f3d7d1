package meta

import (
	"context"
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/crakefs/crake/wire"
	"golang.org/x/sys/unix"
)

// A request that comes twice is done once: at the same time, later, and by the next owner.
func TestExactlyOnce(t *testing.T) {
	r := newRig(t, 1, rigOptions{})
	root := r.makeRoot()
	req := &wire.CreateReq{Op: r.op(), Parent: root, Name: "f", Mode: unix.S_IFREG | 0644, Excl: true, Want: wire.LeaseWrite, Open: true}
	answers := make(chan *wire.EntryResp, 10)
	for range 10 {
		go func() {
			resp, err := r.bucket(0).Create(ctxT(t), req)
			if err != nil {
				t.Error(err)
			}
			answers <- resp
		}()
	}
	first := <-answers
	leases := 0
	for i := range 10 {
		a := first
		if i > 0 {
			a = <-answers
		}
		if a == nil || a.Ino != first.Ino {
			t.Fatalf("%+v and %+v", a, first)
		}
		if a.Lease.Mode != wire.LeaseNone {
			leases++
		}
	}
	if leases != 1 {
		t.Errorf("%d answers with a lease", leases)
	}
	r.release(first.Ino, r.session)
	r.node(0).crash(0)
	r.restart()
	again, err := r.bucket(0).Create(ctxT(t), req)
	if err != nil || again.Ino != first.Ino || again.Attr != first.Attr {
		t.Fatalf("%+v, %v", again, err)
	}
	if !r.IsOpen(first.Ino) {
		t.Error("a replayed create with Open is not counted as open")
	}
}

// Acknowledged answers go, and a request below the mark is refused: it is a late duplicate.
func TestAcknowledged(t *testing.T) {
	r := newRig(t, 1, rigOptions{})
	root := r.makeRoot()
	b := r.bucket(0)
	create := func(op wire.OpID, name string) error {
		return errOf(b.Create(ctxT(t), &wire.CreateReq{Op: op, Parent: root, Name: name, Mode: unix.S_IFREG, Excl: true}))
	}
	records := func() (n int) {
		ok(t, b.scan(newKey(tagReply), nil, func(_, _ []byte) (bool, error) { n++; return true, nil }))
		return n
	}
	for i := range uint64(10) {
		ok(t, create(wire.OpID{Session: 5, Seq: i + 1}, fmt.Sprint(i)))
	}
	if n := records(); n != 10 {
		t.Fatalf("%d records", n)
	}
	ok(t, create(wire.OpID{Session: 5, Seq: 11, Acked: 8}, "x"))
	if n := records(); n != 4 { // 8, 9, 10 and 11
		t.Fatalf("%d records", n)
	}
	wantKind(t, create(wire.OpID{Session: 5, Seq: 3, Acked: 3}, "late"), wire.KindRefused)
	// A failed request leaves no record, and may be asked again.
	wantKind(t, create(wire.OpID{Session: 5, Seq: 12}, "x"), wire.KindExists)
	ok(t, r.unlink(root, "x", false))
	ok(t, create(wire.OpID{Session: 5, Seq: 12}, "x"))
	ok(t, b.DropSession(ctxT(t), 5))
	if n := records(); n != 1 { // of the unlink
		t.Fatalf("%d records", n)
	}
	if s := b.RecordedSessions(); len(s) != 1 || s[0] != r.session {
		t.Fatalf("%v", s)
	}
	for i := range uint64(maxRepliesPerSession) {
		b.replies.session(6).insert(i + 1)
	}
	wantKind(t, create(wire.OpID{Session: 6, Seq: 1 << 20}, "y"), wire.KindOverLimit)
}

// A database is opened only by who it belongs to, and corrupt records are errors with a place.
func TestOpenChecks(t *testing.T) {
	r := newRig(t, 1, rigOptions{})
	root := r.makeRoot()
	f := r.file(root, "f")
	b := r.bucket(0)
	for _, k := range []key{inodeKey(f), dentryKey(root, wire.NameHash("f"))} {
		ok(t, b.set(k, []byte{recordVersion, 0xff, 0xff}))
	}
	_, err := b.GetAttr(ctxT(t), &wire.GetAttrReq{Session: 1, Ino: f})
	wantKind(t, err, wire.KindCorrupt)
	_, err = b.Lookup(ctxT(t), &wire.LookupReq{Session: 1, Parent: root, Name: "f"})
	wantKind(t, err, wire.KindCorrupt)
	_, err = b.ReadDir(ctxT(t), &wire.ReadDirReq{Session: 1, Ino: root})
	wantKind(t, err, wire.KindCorrupt)
	cfg := b.cfg
	cfg.Cache, cfg.Crash = nil, nil
	r.stop(0)
	open := func(change func(c *Config)) error {
		c := cfg
		change(&c)
		b, err := Open(ctxT(t), c)
		if err == nil {
			ok(t, b.Close())
		}
		return err
	}
	wantKind(t, open(func(c *Config) { c.Buckets = 2 }), wire.KindCorrupt)
	wantKind(t, open(func(c *Config) { c.Bucket, c.Buckets = 1, 2 }), wire.KindCorrupt)
	wantKind(t, open(func(c *Config) { c.Epoch = 0 }), wire.KindInvalid)
	ok(t, open(func(c *Config) { c.Epoch = 9 }))
	wantKind(t, open(func(c *Config) { c.Epoch = 8 }), wire.KindStaleEpoch)
	wantKind(t, open(func(c *Config) { c.Data, c.Peers = nil, nil }), wire.KindInvalid)
	for _, tag := range []byte{tagReply, tagOrphan, tagDecided, tagPrepare, tagCleanup, tagZero, tagReport} {
		db, err := pebble.Open("db", &pebble.Options{FS: r.fs[0], Merger: counterMerger, Logger: &dbLogger{b, quiet()}})
		ok(t, err)
		k := newKey(tag).u16(1)
		ok(t, db.Set(k, []byte{1}, pebble.Sync))
		ok(t, db.Close())
		wantKind(t, open(func(c *Config) { c.Epoch = 10 }), wire.KindCorrupt)
		db, err = pebble.Open("db", &pebble.Options{FS: r.fs[0], Merger: counterMerger, Logger: &dbLogger{b, quiet()}})
		ok(t, err)
		ok(t, db.Delete(k, pebble.Sync))
		ok(t, db.Close())
	}
	ok(t, open(func(c *Config) { c.Epoch = 10 }))
}

// Requests end when the bucket closes, and are refused afterwards.
func TestClosed(t *testing.T) {
	r := newRig(t, 1, rigOptions{})
	root := r.makeRoot()
	b := r.bucket(0)
	r.stop(0)
	_, err := b.GetAttr(context.Background(), &wire.GetAttrReq{Session: 1, Ino: root})
	wantKind(t, err, wire.KindUnavailable)
	_, err = b.NextNumber()
	wantKind(t, err, wire.KindUnavailable)
	ok(t, b.Close())
}
