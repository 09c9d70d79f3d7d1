// Package storetest is a set of drives in memory that behave as drive processes do towards a compute: epochs and fences,
// strips, segments whose records are checked, lists, space; and can be killed, hung, slowed, wiped, corrupted and filled.
// For tests of packages that write to drives.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

// Cluster is the set of drives, with a cluster map that names them. Drive ids start at 1; each is a failure domain.
// Safe for concurrent use.
type Cluster struct {
	t     testing.TB
	arena *wire.Arena

	mu     sync.Mutex
	m      *wire.ClusterMap
	drives map[wire.DriveID]*Drive
	// Before, if not nil, is called before a request takes effect: an error is the answer, and there is no effect.
	// After is called when it has taken effect: an error is the answer all the same (a lost connection, a late answer).
	// Both guarded by mu; set them by Hooks.
	before, after Hook
	lent          []loan // guarded by mu; at most maxLoans
}

// maxLoans bounds the failed requests whose data is read on, each with its memory.
const maxLoans = 32

// loan is the data of a request that failed, which a drive may still read, and what it was then.
type loan struct {
	data wire.Data
	was  []byte
	what string
}

// Hook decides whether a request fails.
type Hook func(d wire.DriveID, method wire.Method, req wire.Message) error

// Drive is one drive.
type Drive struct {
	id   wire.DriveID
	size uint64

	mu     sync.Mutex
	down   bool
	hung   bool
	slow   time.Duration
	used   uint64
	fence  map[wire.BucketID]wire.Epoch
	strips map[wire.StripID]*stored
	counts map[wire.Method]int
}

type stored struct {
	data    []byte
	sums    []uint64 // of a strip
	segment bool
	sealed  bool
}

// New makes a cluster of n drives of 1 GiB (nominally: memory is taken as written) with protection k+m and, if there are
// enough drives, PGs that take turns over them. At the end of the test it checks that no Buf of the arena is left.
//
// The data of requests that fail is held on to for a while, as by a drive that has not answered and reads shared memory: it fails the
// test if that memory changes.
func New(t testing.TB, n, k, m int) *Cluster {
	arena, err := wire.NewArena(256 << 20)
	if err != nil {
		t.Fatal(err)
	}
	c := &Cluster{t: t, arena: arena, drives: map[wire.DriveID]*Drive{}}
	c.m = &wire.ClusterMap{Generation: 1, K: uint8(k), M: uint8(m), Buckets: 4}
	for i := 1; i <= n; i++ {
		d := wire.DriveID(i)
		c.drives[d] = &Drive{
			id: d, size: 1 << 30, fence: map[wire.BucketID]wire.Epoch{}, strips: map[wire.StripID]*stored{},
			counts: map[wire.Method]int{},
		}
		c.m.Drives = append(c.m.Drives, wire.DriveInfo{ID: d, Domain: uint32(i), State: wire.DriveUp})
	}
	for i := range n {
		pg := wire.PGInfo{ID: wire.PGID(i + 1)}
		for j := range min(k+m, n) {
			pg.Drives = append(pg.Drives, wire.DriveID((i+j)%n+1))
		}
		c.m.PGs = append(c.m.PGs, pg)
	}
	t.Cleanup(func() {
		c.mu.Lock()
		c.giveBack(0)
		c.mu.Unlock()
		for range 400 {
			if arena.Used() == 0 {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
		t.Errorf("%d bytes of the arena leaked", arena.Used())
	})
	return c
}

// Arena gives the arena where answers land.
func (c *Cluster) Arena() *wire.Arena { return c.arena }

// Map gives the cluster map.
func (c *Cluster) Map() *wire.ClusterMap {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.m
}

// SetDomain moves a drive to a failure domain.
func (c *Cluster) SetDomain(d wire.DriveID, domain uint32) {
	c.editDrive(d, func(i *wire.DriveInfo) { i.Domain = domain })
}

func (c *Cluster) editDrive(d wire.DriveID, f func(*wire.DriveInfo)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := *c.m
	m.Drives = slices.Clone(m.Drives)
	m.Generation++
	f(m.Drive(d))
	c.m = &m
}

// Hooks sets what is called around every request; nil is nothing.
func (c *Cluster) Hooks(before, after Hook) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.before, c.after = before, after
}

// Up reports whether the drive was not killed.
func (c *Cluster) Up(d wire.DriveID) bool {
	dr := c.drives[d]
	if dr == nil {
		return false
	}
	dr.mu.Lock()
	defer dr.mu.Unlock()
	return !dr.down
}

func (c *Cluster) with(d wire.DriveID, f func(*Drive)) {
	dr := c.drives[d]
	dr.mu.Lock()
	defer dr.mu.Unlock()
	f(dr)
}

// Kill makes drives unreachable; Revive brings them back with what they hold.
func (c *Cluster) Kill(ds ...wire.DriveID) {
	for _, d := range ds {
		c.with(d, func(dr *Drive) { dr.down = true })
	}
}

// Revive makes drives reachable again.
func (c *Cluster) Revive(ds ...wire.DriveID) {
	for _, d := range ds {
		c.with(d, func(dr *Drive) { dr.down, dr.hung, dr.slow = false, false, 0 })
	}
}

// Hang makes a drive take requests and never answer, until Revive.
func (c *Cluster) Hang(d wire.DriveID) { c.with(d, func(dr *Drive) { dr.hung = true }) }

// Slow delays every answer of a drive.
func (c *Cluster) Slow(d wire.DriveID, by time.Duration) {
	c.with(d, func(dr *Drive) { dr.slow = by })
}

// SetSize sets the size of a drive.
func (c *Cluster) SetSize(d wire.DriveID, size uint64) { c.with(d, func(dr *Drive) { dr.size = size }) }

// Wipe empties a drive, fences too, as if it had been replaced.
func (c *Cluster) Wipe(d wire.DriveID) {
	c.with(d, func(dr *Drive) {
		clear(dr.strips)
		clear(dr.fence)
		dr.used = 0
	})
}

// Lose removes a strip from a drive.
func (c *Cluster) Lose(d wire.DriveID, id wire.StripID) {
	c.with(d, func(dr *Drive) { delete(dr.strips, id) })
}

// Corrupt flips a bit in a block of a strip or segment.
func (c *Cluster) Corrupt(d wire.DriveID, id wire.StripID, block int) {
	c.with(d, func(dr *Drive) {
		s := dr.strips[id]
		if s == nil {
			c.t.Fatalf("drive %d has no %v", d, id)
		}
		s.data = slices.Clone(s.data)
		s.data[block*wire.BlockSize+77] ^= 0x10
	})
}

// Cut shortens an unsealed segment, as if the last records had never reached the drive.
func (c *Cluster) Cut(d wire.DriveID, id wire.StripID, length uint64) {
	c.with(d, func(dr *Drive) {
		if s := dr.strips[id]; s != nil && uint64(len(s.data)) > length {
			s.data = s.data[:length:length]
		}
	})
}

// Strips gives the ids that a drive holds of a class, in order.
func (c *Cluster) Strips(d wire.DriveID, class wire.Class) []wire.StripID {
	var ids []wire.StripID
	c.with(d, func(dr *Drive) {
		for id := range dr.strips {
			if id.Class() == class {
				ids = append(ids, id)
			}
		}
	})
	slices.SortFunc(ids, wire.StripID.Compare)
	return ids
}

// Count tells how many requests of a method all drives have got.
func (c *Cluster) Count(method wire.Method) int {
	n := 0
	for d := range c.drives {
		c.with(d, func(dr *Drive) { n += dr.counts[method] })
	}
	return n
}

// Snapshot gives a cluster that holds what this one holds now, as after a crash of everything: drives stay killed.
func (c *Cluster) Snapshot(t testing.TB) *Cluster {
	n := New(t, len(c.drives), int(c.m.K), int(c.m.M))
	n.m = c.Map()
	for d := range c.drives {
		c.with(d, func(dr *Drive) {
			to := n.drives[d]
			to.size, to.used, to.down = dr.size, dr.used, dr.down
			for b, e := range dr.fence {
				to.fence[b] = e
			}
			for id, s := range dr.strips {
				copied := *s // data is replaced, never changed in place
				to.strips[id] = &copied
			}
		})
	}
	return n
}

// Ask answers as route.Router.Drive does.
func (c *Cluster) Ask(ctx context.Context, d wire.DriveID, call *rpc.Call) error {
	err := c.ask(ctx, d, call)
	if err != nil && call.Data.Len() > 0 {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.lent = append(c.lent, loan{call.Data.Retain(), flat(call.Data), fmt.Sprintf("method %#x of drive %d, %v", call.Method, d, err)})
		c.giveBack(maxLoans)
	}
	return err
}

// giveBack ends the oldest loans, so that at most `left` are left. mu is held.
func (c *Cluster) giveBack(left int) {
	for len(c.lent) > left {
		l := c.lent[0]
		c.lent = c.lent[1:]
		if !bytes.Equal(flat(l.data), l.was) {
			c.t.Errorf("memory was written while a drive may still read it: %s", l.what)
		}
		l.data.Release()
	}
}

func (c *Cluster) ask(ctx context.Context, d wire.DriveID, call *rpc.Call) error {
	dr := c.drives[d]
	if dr == nil {
		return wire.Errorf("storetest", wire.KindUnavailable, "", "no drive %d", d)
	}
	c.mu.Lock()
	before, after := c.before, c.after
	c.mu.Unlock()
	dr.mu.Lock()
	down, hung, slow := dr.down, dr.hung, dr.slow
	dr.counts[call.Method]++
	dr.mu.Unlock()
	if slow > 0 {
		select {
		case <-time.After(slow):
		case <-ctx.Done():
		}
	}
	if hung {
		<-ctx.Done()
	}
	if err := ctx.Err(); err != nil {
		kind := wire.KindInterrupted
		if errors.Is(err, context.DeadlineExceeded) {
			kind = wire.KindTimeout
		}
		return wire.E("storetest", kind, "", err)
	}
	if down {
		return wire.Errorf("storetest", wire.KindUnavailable, "", "drive %d is down", d)
	}
	if before != nil {
		if err := before(d, call.Method, call.Req); err != nil {
			return err
		}
	}
	if err := c.serve(ctx, dr, call); err != nil {
		return err
	}
	if after != nil {
		if err := after(d, call.Method, call.Req); err != nil {
			call.RespData.Release()
			call.RespData = nil
			return err
		}
	}
	return nil
}

func (c *Cluster) serve(ctx context.Context, dr *Drive, call *rpc.Call) error {
	if r, ok := call.Req.(*wire.ReadReq); ok {
		return c.read(ctx, dr, r, call)
	}
	dr.mu.Lock()
	defer dr.mu.Unlock()
	switch r := call.Req.(type) {
	case *wire.PutReq:
		return dr.put(r, call.Data)
	case *wire.AppendReq:
		n, err := dr.append(r, call.Data)
		call.Resp.(*wire.AppendResp).Len = n
		return err
	case *wire.SealReq:
		if err := dr.allowed(r.ID.Bucket(), r.Epoch); err != nil {
			return err
		}
		s := dr.strips[r.ID]
		if s == nil || !s.segment {
			return wire.E("storetest.seal", wire.KindNotFound, r.ID.String(), nil)
		}
		s.sealed = true
		call.Resp.(*wire.SealResp).Len = uint64(len(s.data))
	case *wire.DeleteReq:
		if len(r.IDs) > 4096 {
			return wire.Errorf("storetest.delete", wire.KindOverLimit, "", "%d ids", len(r.IDs))
		}
		for _, id := range r.IDs {
			if err := dr.allowed(id.Bucket(), r.Epoch); err != nil {
				return err
			}
		}
		for _, id := range r.IDs {
			if s := dr.strips[id]; s != nil {
				dr.used -= uint64(len(s.data))
				delete(dr.strips, id)
			}
		}
	case *wire.ListReq:
		dr.list(r, call.Resp.(*wire.ListResp))
	case *wire.FenceReq:
		if dr.fence[r.Bucket] > r.Epoch {
			return wire.Errorf("storetest.fence", wire.KindStaleEpoch, "", "%d, seen %d", r.Epoch, dr.fence[r.Bucket])
		}
		dr.fence[r.Bucket] = r.Epoch
	case *wire.DriveStatReq:
		*call.Resp.(*wire.DriveStatResp) = wire.DriveStatResp{
			Drive: dr.id, SizeBytes: dr.size, FreeBytes: dr.size - min(dr.size, dr.used), Strips: uint64(len(dr.strips)),
		}
	default:
		return wire.Errorf("storetest", wire.KindVersion, "", "method %#x", call.Method)
	}
	return nil
}

// allowed checks the epoch, and remembers a newer one.
func (dr *Drive) allowed(b wire.BucketID, e wire.Epoch) error {
	if e < dr.fence[b] {
		return wire.Errorf("storetest", wire.KindStaleEpoch, "", "bucket %d epoch %d, fence %d", b, e, dr.fence[b])
	}
	dr.fence[b] = e
	return nil
}

func flat(d wire.Data) []byte {
	b := make([]byte, 0, d.Len())
	for _, s := range d {
		b = append(b, s.B...)
	}
	return b
}

func (dr *Drive) room(n int) error {
	if dr.used+uint64(n) > dr.size {
		return wire.Errorf("storetest", wire.KindNoSpace, "", "%d of %d used", dr.used, dr.size)
	}
	return nil
}

func (dr *Drive) put(r *wire.PutReq, data wire.Data) error {
	bad := func(what string) error {
		return wire.Errorf("storetest.put", wire.KindInvalid, r.ID.String(), "%s", what)
	}
	b := flat(data)
	if len(b) == 0 || len(b)%wire.BlockSize != 0 || len(r.Sums) != len(b)/wire.BlockSize || r.Drive != dr.id {
		return bad("shape")
	}
	for i, sum := range r.Sums {
		if xxhash.Sum64(b[i*wire.BlockSize:(i+1)*wire.BlockSize]) != sum {
			return bad("checksum")
		}
	}
	if err := dr.allowed(r.ID.Bucket(), r.Epoch); err != nil {
		return err
	}
	if s := dr.strips[r.ID]; s != nil {
		if s.segment || !slices.Equal(s.sums, r.Sums) {
			return wire.E("storetest.put", wire.KindExists, r.ID.String(), nil)
		}
		return nil
	}
	if err := dr.room(len(b)); err != nil {
		return err
	}
	dr.used += uint64(len(b))
	dr.strips[r.ID] = &stored{data: b, sums: slices.Clone(r.Sums)}
	return nil
}

func (dr *Drive) append(r *wire.AppendReq, data wire.Data) (uint64, error) {
	if err := dr.allowed(r.ID.Bucket(), r.Epoch); err != nil {
		return 0, err
	}
	b := flat(data)
	if err := CheckRecords(r.ID, r.Offset, b); err != nil {
		return 0, err
	}
	s := dr.strips[r.ID]
	switch {
	case s == nil && r.Offset != 0:
		return 0, wire.Errorf("storetest.append", wire.KindRange, r.ID.String(), "length 0")
	case s == nil:
		s = &stored{segment: true}
	case !s.segment:
		return 0, wire.E("storetest.append", wire.KindExists, r.ID.String(), nil)
	}
	end := r.Offset + uint64(len(b))
	if end <= uint64(len(s.data)) && string(s.data[r.Offset:end]) == string(b) {
		return uint64(len(s.data)), nil
	}
	if s.sealed {
		return 0, wire.Errorf("storetest.append", wire.KindRefused, r.ID.String(), "sealed at %d", len(s.data))
	}
	if r.Offset != uint64(len(s.data)) {
		return 0, wire.Errorf("storetest.append", wire.KindRange, r.ID.String(), "length %d", len(s.data))
	}
	if err := dr.room(len(b)); err != nil {
		return 0, err
	}
	dr.used += uint64(len(b))
	s.data = append(s.data[:len(s.data):len(s.data)], b...)
	dr.strips[r.ID] = s
	return end, nil
}

// CheckRecords verifies that b is whole records of a segment that chain from offset, payload blocks too.
func CheckRecords(id wire.StripID, offset uint64, b []byte) error {
	bad := func(what string) error {
		return wire.Errorf("storetest.append", wire.KindInvalid, id.String(), "%s", what)
	}
	if len(b) == 0 {
		return bad("empty")
	}
	for len(b) > 0 {
		rec, _, need, err := wire.DecodeSegHead(b)
		if err != nil || need > len(b) {
			return bad("no record")
		}
		if rec.ID != id.WithPos(0) || rec.Offset != offset || rec.Bytes() > len(b) {
			return bad("record out of place")
		}
		for i, sum := range rec.Sums {
			at := rec.HeadBytes() + i*wire.BlockSize
			if xxhash.Sum64(b[at:at+wire.BlockSize]) != sum {
				return bad("checksum of a block")
			}
		}
		offset += uint64(rec.Bytes())
		b = b[rec.Bytes():]
	}
	return nil
}

func (dr *Drive) list(r *wire.ListReq, resp *wire.ListResp) {
	limit := int(r.Limit)
	if limit == 0 || limit > 16384 {
		limit = 16384
	}
	var ids []wire.StripID
	for id := range dr.strips {
		if id.Bucket() == r.Bucket && id.Class() == r.Class && r.After.Less(id) {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, wire.StripID.Compare)
	if len(ids) > limit {
		ids, resp.More = ids[:limit], true
	}
	for _, id := range ids {
		s := dr.strips[id]
		e := wire.ListEntry{ID: id, Len: uint64(len(s.data)), Open: s.segment && !s.sealed}
		if !s.segment {
			e.Sum = wire.StripSum(s.sums)
		}
		resp.Entries = append(resp.Entries, e)
	}
}

func (c *Cluster) read(ctx context.Context, dr *Drive, r *wire.ReadReq, call *rpc.Call) error {
	resp := call.Resp.(*wire.ReadResp)
	var out []byte
	dr.mu.Lock()
	for _, x := range r.Ranges {
		s := dr.strips[x.ID]
		switch {
		case s == nil:
			resp.Status = append(resp.Status, wire.KindNotFound)
		case x.Offset+uint64(x.Len) > uint64(len(s.data)):
			resp.Status = append(resp.Status, wire.KindRange)
		default:
			resp.Status = append(resp.Status, wire.KindNone)
			out = append(out, s.data[x.Offset:x.Offset+uint64(x.Len)]...)
		}
	}
	dr.mu.Unlock()
	if len(r.Ranges) > 256 || len(out) > wire.MaxDataBytes {
		return wire.Errorf("storetest.read", wire.KindOverLimit, "", "%d ranges, %d bytes", len(r.Ranges), len(out))
	}
	if len(out) == 0 {
		return nil
	}
	buf, err := c.arena.Alloc(ctx, len(out))
	if err != nil {
		return err
	}
	copy(buf.Bytes(), out)
	call.RespData = buf.Data(len(out))
	return nil
}

// Data makes n blocks of random bytes in the cluster's arena, in parts of random length, with their checksums.
func (c *Cluster) Data(rng *rand.Rand, n int) (wire.Data, []uint64) {
	var d wire.Data
	var sums []uint64
	for n > 0 {
		part := 1 + rng.IntN(n)
		buf, err := c.arena.Alloc(context.Background(), part*wire.BlockSize)
		if err != nil {
			c.t.Fatal(err)
		}
		for b := buf.Bytes(); len(b) > 0; b = b[wire.BlockSize:] {
			for i := 0; i < wire.BlockSize; i += 512 {
				b[i], b[i+1] = byte(rng.Uint32()), byte(rng.Uint32())
			}
			sums = append(sums, xxhash.Sum64(b[:wire.BlockSize]))
		}
		d = append(d, buf.Data(part*wire.BlockSize)...)
		n -= part
	}
	return d, sums
}

// Flat copies the bytes of d.
func Flat(d wire.Data) []byte { return flat(d) }
