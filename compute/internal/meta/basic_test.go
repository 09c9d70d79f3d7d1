package meta

import (
	"errors"
	"fmt"
	"testing"

	"github.com/crakefs/crake/wire"
	"golang.org/x/sys/unix"
)

// Helpers that run one request and fail the test when it fails.

func (r *rig) create(parent wire.Ino, name string, mode uint32) *wire.EntryResp {
	r.t.Helper()
	resp, err := r.tryCreate(r.op(), parent, name, mode)
	if err != nil {
		r.t.Fatalf("create %s: %v", name, err)
	}
	return resp
}

func (r *rig) tryCreate(op wire.OpID, parent wire.Ino, name string, mode uint32) (resp *wire.EntryResp, err error) {
	req := &wire.CreateReq{Op: op, Parent: parent, Name: name, Mode: mode, Excl: true}
	if typeOf(mode) == unix.S_IFLNK {
		req.Target = "to/" + name
	}
	err = r.retry(parent.Bucket(), func(b *Bucket) error {
		var e error
		resp, e = b.Create(ctxT(r.t), req)
		return e
	})
	return resp, err
}

func (r *rig) file(parent wire.Ino, name string) wire.Ino {
	r.t.Helper()
	return r.create(parent, name, unix.S_IFREG|0644).Ino
}

func (r *rig) dir(parent wire.Ino, name string) wire.Ino {
	r.t.Helper()
	return r.create(parent, name, unix.S_IFDIR|0755).Ino
}

// dirIn makes directories until one lies in the bucket wanted.
func (r *rig) dirIn(parent wire.Ino, name string, bucket wire.BucketID) wire.Ino {
	r.t.Helper()
	for i := range 4 * r.n {
		n := name
		if i > 0 {
			n = fmt.Sprintf("%s.%d", name, i)
		}
		ino := r.dir(parent, n)
		if ino.Bucket() == bucket {
			if i > 0 {
				if err := r.rename(parent, n, parent, name, 0); err != nil {
					r.t.Fatal(err)
				}
			}
			return ino
		}
		if err := r.unlink(parent, n, true); err != nil {
			r.t.Fatal(err)
		}
	}
	r.t.Fatalf("no directory in bucket %d", bucket)
	return 0
}

func (r *rig) rename(from wire.Ino, oldName string, to wire.Ino, newName string, flags uint32) error {
	req := &wire.RenameReq{Op: r.op(), OldParent: from, OldName: oldName, NewParent: to, NewName: newName, Flags: flags}
	return r.retry(from.Bucket(), func(b *Bucket) error {
		_, err := b.Rename(ctxT(r.t), req)
		return err
	})
}

func (r *rig) unlink(parent wire.Ino, name string, dir bool) error {
	req := &wire.UnlinkReq{Op: r.op(), Parent: parent, Name: name, Dir: dir}
	return r.retry(parent.Bucket(), func(b *Bucket) error {
		_, err := b.Unlink(ctxT(r.t), req)
		return err
	})
}

func (r *rig) link(ino, parent wire.Ino, name string) error {
	req := &wire.LinkReq{Op: r.op(), Ino: ino, Parent: parent, Name: name}
	return r.retry(parent.Bucket(), func(b *Bucket) error {
		_, err := b.Link(ctxT(r.t), req)
		return err
	})
}

func (r *rig) lookup(parent wire.Ino, name string) (*wire.EntryResp, error) {
	return r.bucket(parent.Bucket()).Lookup(ctxT(r.t), &wire.LookupReq{Session: r.session, Parent: parent, Name: name})
}

func wantKind(t *testing.T, err error, kind wire.Kind) {
	t.Helper()
	if wire.KindOf(err) != kind {
		t.Fatalf("error %v, want %v", err, kind)
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// POSIX rules of the namespace, over one bucket and over several.
func TestNamespace(t *testing.T) {
	for _, buckets := range []int{1, 2, 5} {
		t.Run(fmt.Sprint(buckets), func(t *testing.T) {
			r := newRig(t, buckets, rigOptions{})
			root := r.makeRoot()
			ok(t, r.bucket(root.Bucket()).MakeRoot(ctxT(t), &wire.MakeRootReq{FS: rootFS, Root: root, Mode: 0755})) // idempotent
			testCreate(t, r, root)
			testUnlink(t, r, root)
			testRename(t, r, root)
			testLink(t, r, root)
			r.settle()
			r.check()
			r.checkLeaks(false)
		})
	}
}

func testCreate(t *testing.T, r *rig, root wire.Ino) {
	before := r.getattr(root)
	f := r.create(root, "file", unix.S_IFREG|04640)
	if f.Attr.Mode != unix.S_IFREG|04640 || f.Attr.Nlink != 1 || f.Parent.Mtime <= before.Mtime || f.Parent.Ctime != f.Parent.Mtime {
		t.Fatalf("%+v after %+v", f, before)
	}
	d := r.dir(root, "dir")
	if a := r.getattr(root); a.Nlink != 3 || a.Size != 2 {
		t.Fatalf("root %+v", a)
	}
	_, err := r.tryCreate(r.op(), root, "dir", unix.S_IFDIR|0755)
	wantKind(t, err, wire.KindExists)
	_, err = r.tryCreate(r.op(), root, "file", unix.S_IFREG)
	wantKind(t, err, wire.KindExists)
	_, err = r.tryCreate(r.op(), f.Ino, "x", unix.S_IFREG)
	wantKind(t, err, wire.KindNotDir)
	_, err = r.tryCreate(r.op(), root, string(make([]byte, 256)), unix.S_IFREG)
	wantKind(t, err, wire.KindNameTooLong)
	for _, name := range []string{"", ".", "..", "a/b", "a\x00"} {
		_, err = r.tryCreate(r.op(), root, name, unix.S_IFREG)
		wantKind(t, err, wire.KindInvalid)
	}
	open := &wire.CreateReq{Op: r.op(), Parent: root, Name: "file", Mode: unix.S_IFREG | 0600}
	resp, err := r.bucket(root.Bucket()).Create(ctxT(t), open)
	if err != nil || resp.Ino != f.Ino || !resp.HasAttr {
		t.Fatalf("%+v, %v", resp, err)
	}
	for _, typ := range []uint32{unix.S_IFLNK, unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFBLK} {
		name := fmt.Sprintf("t%o", typ)
		e := r.create(d, name, typ|0600)
		if l, err := r.lookup(d, name); err != nil || l.Ino != e.Ino || l.Type != typ {
			t.Fatalf("%+v, %v", l, err)
		}
	}
	// A setgid directory gives its group, and the bit to directories.
	_, err = r.bucket(d.Bucket()).SetAttr(ctxT(t), &wire.SetAttrReq{Op: r.op(), Ino: d, Valid: wire.SetMode | wire.SetGID, Mode: 02775, GID: 42})
	ok(t, err)
	if sub := r.create(d, "sub", unix.S_IFDIR|0700); sub.Attr.Mode != unix.S_IFDIR|02700 || sub.Attr.GID != 42 {
		t.Fatalf("%+v", sub.Attr)
	}
	if e := r.create(d, "f", unix.S_IFREG|0700); e.Attr.Mode != unix.S_IFREG|0700 || e.Attr.GID != 42 {
		t.Fatalf("%+v", e.Attr)
	}
}

func testUnlink(t *testing.T, r *rig, root wire.Ino) {
	d := r.dir(root, "u")
	f := r.file(d, "f")
	wantKind(t, r.unlink(root, "u", false), wire.KindIsDir)
	wantKind(t, r.unlink(d, "f", true), wire.KindNotDir)
	wantKind(t, r.unlink(root, "u", true), wire.KindNotEmpty)
	wantKind(t, r.unlink(root, "none", true), wire.KindNotFound)
	r.Opened(r.session, f)
	ok(t, r.unlink(d, "f", false))
	if a := r.getattr(f); a.Nlink != 0 {
		t.Fatalf("%+v", a)
	}
	wantKind(t, r.link(f, d, "again"), wire.KindNotFound)
	ok(t, r.bucket(f.Bucket()).ReleaseOrphan(ctxT(t), f)) // still open
	r.getattr(f)
	r.release(f, r.session)
	ok(t, r.bucket(f.Bucket()).ReleaseOrphan(ctxT(t), f))
	_, err := r.bucket(f.Bucket()).GetAttr(ctxT(t), &wire.GetAttrReq{Session: r.session, Ino: f})
	wantKind(t, err, wire.KindStale)
	// An open directory that was removed takes no names.
	r.Opened(r.session, d)
	ok(t, r.unlink(root, "u", true))
	_, err = r.tryCreate(r.op(), d, "x", unix.S_IFREG)
	wantKind(t, err, wire.KindNotFound)
	if resp, err := r.bucket(d.Bucket()).ReadDir(ctxT(t), &wire.ReadDirReq{Session: r.session, Ino: d}); err != nil || len(resp.Entries) != 0 || !resp.EOF {
		t.Fatalf("%+v %v", resp, err)
	}
	r.release(d, r.session)
	ok(t, r.bucket(d.Bucket()).ReleaseOrphan(ctxT(t), d))
}

func testRename(t *testing.T, r *rig, root wire.Ino) {
	a, b := r.dir(root, "a"), r.dir(root, "b")
	f := r.file(a, "f")
	g := r.file(b, "g")
	ok(t, r.rename(a, "f", a, "f", 0))
	ctime := r.getattr(f).Ctime
	ok(t, r.rename(a, "f", a, "f2", 0))
	if r.getattr(f).Ctime <= ctime {
		t.Fatal("rename leaves ctime")
	}
	ok(t, r.rename(a, "f2", b, "f", 0))
	wantKind(t, r.rename(a, "f2", b, "x", 0), wire.KindNotFound)
	wantKind(t, r.rename(b, "f", b, "g", wire.RenameNoReplace), wire.KindExists)
	wantKind(t, r.rename(b, "f", root, "a", 0), wire.KindIsDir)
	wantKind(t, r.rename(root, "a", b, "g", 0), wire.KindNotDir)
	wantKind(t, r.rename(b, "f", b, "none", wire.RenameExchange), wire.KindNotFound)
	wantKind(t, r.rename(b, "f", b, "x", wire.RenameExchange|wire.RenameNoReplace), wire.KindInvalid)
	ok(t, r.rename(b, "f", b, "g", 0)) // replaces g
	if _, err := r.bucket(g.Bucket()).GetAttr(ctxT(t), &wire.GetAttrReq{Session: r.session, Ino: g}); wire.KindOf(err) != wire.KindStale {
		t.Fatalf("replaced file: %v", err)
	}
	// Directories: loops, replacing, exchanging.
	sub := r.dir(a, "sub")
	deep := r.dir(sub, "deep")
	wantKind(t, r.rename(root, "a", sub, "x", 0), wire.KindInvalid)
	wantKind(t, r.rename(root, "a", deep, "x", 0), wire.KindInvalid)
	wantKind(t, r.rename(a, "sub", sub, "x", 0), wire.KindInvalid)
	wantKind(t, r.rename(sub, "deep", root, "a", wire.RenameExchange), wire.KindInvalid)
	wantKind(t, r.rename(sub, "deep", root, "a", 0), wire.KindNotEmpty)
	ok(t, r.rename(a, "sub", b, "sub", 0))
	if p, err := r.bucket(sub.Bucket()).ReadDir(ctxT(t), &wire.ReadDirReq{Session: r.session, Ino: sub}); err != nil || p.Parent != b {
		t.Fatalf("%+v %v", p, err)
	}
	if x, y := r.getattr(a), r.getattr(b); x.Nlink != 2 || y.Nlink != 3 {
		t.Fatalf("links %d and %d", x.Nlink, y.Nlink)
	}
	ok(t, r.rename(b, "sub", root, "a", 0)) // replaces the empty a
	wantKind(t, errOf(r.lookup(b, "sub")), wire.KindNotFound)
	ok(t, r.rename(root, "a", b, "g", wire.RenameExchange)) // a directory and a file
	if l, err := r.lookup(b, "g"); err != nil || l.Ino != sub || l.Type != unix.S_IFDIR {
		t.Fatalf("%+v %v", l, err)
	}
	if l, err := r.lookup(root, "a"); err != nil || l.Ino != f {
		t.Fatalf("%+v %v", l, err)
	}
	// Two names of one file: nothing happens.
	ok(t, r.link(f, b, "f"))
	ok(t, r.rename(root, "a", b, "f", 0))
	if r.getattr(f).Nlink != 2 {
		t.Fatal("rename of a file to its other name")
	}
}

func errOf[T any](_ T, err error) error { return err }

func testLink(t *testing.T, r *rig, root wire.Ino) {
	d := r.dir(root, "l")
	e := r.dir(root, "m")
	f := r.file(d, "f")
	ok(t, r.link(f, e, "g"))
	ok(t, r.link(f, d, "h"))
	wantKind(t, r.link(f, d, "f"), wire.KindExists)
	wantKind(t, r.link(e, d, "dir"), wire.KindPermission)
	wantKind(t, r.link(f+1000, d, "x"), wire.KindNotFound)
	if a := r.getattr(f); a.Nlink != 3 {
		t.Fatalf("%+v", a)
	}
	ok(t, r.unlink(d, "f", false))
	ok(t, r.rename(e, "g", root, "g", 0))
	ok(t, r.unlink(root, "g", false))
	ok(t, r.unlink(d, "h", false))
	if _, err := r.bucket(f.Bucket()).GetAttr(ctxT(t), &wire.GetAttrReq{Session: r.session, Ino: f}); !errors.Is(err, wire.KindStale) {
		t.Fatal(err)
	}
}
