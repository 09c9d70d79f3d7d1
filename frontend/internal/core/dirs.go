package core

import (
	"context"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/crakefs/crake/wire"
)

// Cookies of the entries that the cluster does not tell, and the place behind them.
const (
	cookieDot    = 1
	cookieDotDot = 2
	// FirstCookie is where a reader starts who does not want "." and "..".
	FirstCookie = cookieDotDot
)

// Dir is an open directory.
type Dir struct {
	fs  *FS
	ino wire.Ino

	mu     sync.Mutex // one reader at a time, as the kernel has it
	parent wire.Ino
	after  uint64          // batch holds what comes after this cookie
	batch  []wire.DirEntry // guarded by mu
	eof    bool            // nothing comes after batch
	filled bool
}

// OpenDir opens a directory.
func (fs *FS) OpenDir(ino wire.Ino) *Dir { return &Dir{fs: fs, ino: ino} }

// Read calls f for each entry after the cookie, in order, until f gives false. An entry's Cookie names the place behind
// it, for ever. With plus entries have attributes where they can be had.
func (d *Dir) Read(ctx context.Context, cookie uint64, plus bool, f func(e *wire.DirEntry) bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if cookie == 0 {
		d.filled = false // rewinddir shows what is there now
	}
	if cookie <= cookieDotDot {
		// "." and ".." need the parent, which comes with the first batch.
		if err := d.fill(ctx, 0, plus); err != nil {
			return err
		}
		if cookie < cookieDot && !f(&wire.DirEntry{Cookie: cookieDot, Ino: d.ino, Type: modeDir, Name: "."}) {
			return nil
		}
		if cookie < cookieDotDot && !f(&wire.DirEntry{Cookie: cookieDotDot, Ino: d.parent, Type: modeDir, Name: ".."}) {
			return nil
		}
		cookie = 0
	}
	for {
		if err := d.fill(ctx, cookie, plus); err != nil {
			return err
		}
		for i := range d.batch {
			if d.batch[i].Cookie <= cookie {
				continue
			}
			if !f(&d.batch[i]) {
				return nil
			}
			cookie = d.batch[i].Cookie
		}
		if d.eof {
			return nil
		}
	}
}

// fill makes batch hold what comes after cookie.
func (d *Dir) fill(ctx context.Context, cookie uint64, plus bool) error {
	if d.filled && cookie >= d.after && (d.eof || len(d.batch) > 0 && cookie < d.batch[len(d.batch)-1].Cookie) {
		return nil
	}
	in := d.fs.table.get(d.ino)
	defer d.fs.table.put(in)
	asked, t := in.asks(), d.fs.now()
	var resp wire.ReadDirResp
	req := &wire.ReadDirReq{Session: d.fs.sess.id, Ino: d.ino, Cookie: cookie, Limit: dirBatch, Plus: plus}
	if err := d.fs.ask(ctx, d.ino.Bucket(), wire.MReadDir, req, &resp); err != nil {
		return err
	}
	if len(resp.Entries) == 0 && !resp.EOF {
		return wire.Errorf("frontend.readdir", wire.KindCorrupt, "", "directory %d: neither entries nor the end", d.ino)
	}
	last := cookie
	for i := range resp.Entries {
		if resp.Entries[i].Cookie <= last {
			return wire.Errorf("frontend.readdir", wire.KindCorrupt, "", "directory %d: cookies out of order", d.ino)
		}
		last = resp.Entries[i].Cookie
	}
	if plus {
		d.fs.complete(ctx, resp.Entries)
		for i := range resp.Entries {
			if e := &resp.Entries[i]; e.HasAttr {
				in := d.fs.table.get(e.Ino)
				e.Attr = in.learn(t, e.Attr, wire.Lease{})
				d.fs.table.put(in)
			}
		}
	}
	in.keepList(asked, resp.Entries, cookie == 0 && resp.EOF)
	d.after, d.batch, d.eof, d.filled = cookie, resp.Entries, resp.EOF, true
	d.parent = resp.Parent
	return nil
}

// complete asks for the attributes of entries that lie elsewhere. One that cannot be had stays without.
func (fs *FS) complete(ctx context.Context, entries []wire.DirEntry) {
	var g errgroup.Group
	g.SetLimit(plusParallel)
	for i := range entries {
		e := &entries[i]
		if e.HasAttr {
			continue
		}
		g.Go(func() error {
			if a, err := fs.attr(ctx, e.Ino); err == nil {
				e.Attr, e.HasAttr = a, true
			}
			return nil
		})
	}
	_ = g.Wait()
}
