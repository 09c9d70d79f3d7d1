package arenas

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sync/semaphore"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/route"
	"github.com/crakefs/crake/wire/rpc"
	"github.com/crakefs/crake/wire/strip"
)

// client uses memory as a frontend does: bounds for what is dirty and for what is read, one arena under both. Roles do not show their
// insides, and a mount would need another process to use it.
type client struct {
	t       *testing.T
	session wire.SessionID
	router  *route.Router
	reader  *strip.Reader
	arena   *wire.Arena
	dirty   *semaphore.Weighted
	reads   *semaphore.Weighted
	seq     atomic.Uint64
	refused atomic.Int64 // reads that found no room and were tried again
}

// file is one that a worker writes and reads.
type file struct {
	c    *client
	ino  wire.Ino
	size uint64
}

func (c *client) op() wire.OpID { return wire.OpID{Session: c.session, Seq: c.seq.Add(1)} }

func (c *client) create(ctx context.Context, root wire.Ino, name string) (*file, error) {
	var e wire.EntryResp
	req := &wire.CreateReq{Op: c.op(), Parent: root, Mode: 0o100644, Name: name, Excl: true}
	if err := c.router.Bucket(ctx, root.Bucket(), &rpc.Call{Method: wire.MCreate, Req: req, Resp: &e}); err != nil {
		return nil, err
	}
	var a wire.AttrResp
	get := &wire.GetAttrReq{Session: c.session, Ino: e.Ino, Want: wire.LeaseWrite}
	if err := c.router.Bucket(ctx, e.Ino.Bucket(), &rpc.Call{Method: wire.MGetAttr, Req: get, Resp: &a}); err != nil {
		return nil, err
	}
	if a.Lease.Mode != wire.LeaseWrite {
		return nil, fmt.Errorf("lease %+v", a.Lease)
	}
	return &file{c: c, ino: e.Ino}, nil
}

// write writes n bytes, whole blocks, at off, and gives where they lie.
func (f *file) write(ctx context.Context, off uint64, n int) (*wire.ExtentsResp, error) {
	c := f.c
	if err := c.dirty.Acquire(ctx, int64(n)); err != nil {
		return nil, err
	}
	defer c.dirty.Release(int64(n))
	var data wire.Data // as a frontend has it: in pieces of a strip
	defer func() { data.Release() }()
	for left := n; left > 0; left -= min(left, wire.StripBytes) {
		buf, err := c.arena.Alloc(ctx, min(left, wire.StripBytes))
		if err != nil {
			return nil, err
		}
		for i := range buf.Bytes() {
			buf.Bytes()[i] = byte(uint64(i)*7 + off + uint64(left))
		}
		data = append(data, buf.Data(len(buf.Bytes()))...)
	}
	f.size = max(f.size, off+uint64(n))
	run := wire.WriteRun{Off: off, Len: uint64(n)}
	data.Blocks(func(_ int, b []byte) { run.Sums = append(run.Sums, xxhash.Sum64(b)) })
	req := &wire.WriteReq{Op: c.op(), Bucket: f.ino.Bucket(), Files: []wire.FileWrite{{Ino: f.ino, Publish: true, Size: f.size,
		Mtime: time.Now().UnixNano(), Runs: []wire.WriteRun{run}}}}
	var resp wire.WriteResp
	if err := c.router.Bucket(ctx, req.Bucket, &rpc.Call{Method: wire.MWrite, Req: req, Resp: &resp, Data: data}); err != nil {
		return nil, err
	}
	if len(resp.Extents) != 1 {
		return nil, fmt.Errorf("%d files in the answer", len(resp.Extents))
	}
	return &resp.Extents[0], nil
}

// read reads all that ext has; the reader compares it with its checksums.
func (f *file) read(ctx context.Context, ext *wire.ExtentsResp) error {
	c := f.c
	var wants []strip.Want
	n := int64(0)
	for i := range ext.Extents {
		e := &ext.Extents[i]
		wants = append(wants, strip.Want{Loc: &ext.Locations[e.Loc], Block: int(e.Block), Blocks: len(e.Sums), Sums: e.Sums})
		n += int64(len(e.Sums)) * wire.BlockSize
	}
	if n == 0 {
		return nil // in its inode
	}
	if err := c.reads.Acquire(ctx, n); err != nil {
		return err
	}
	defer c.reads.Release(n)
	for {
		data, err := c.reader.Read(ctx, wants)
		for _, d := range data {
			d.Release()
		}
		if !wire.KindOf(err).Retryable() || ctx.Err() != nil {
			return err
		}
		c.refused.Add(1) // for want of room: again, as a frontend does
	}
}
