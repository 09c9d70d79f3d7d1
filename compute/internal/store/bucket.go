package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
	"github.com/crakefs/crake/wire/strip"
)

// Bucket is one ownership of a bucket: all writes carry its epoch. Safe for concurrent use.
type Bucket struct {
	s     *Store
	id    wire.BucketID
	epoch wire.Epoch

	ctx    context.Context // of appends, which several callers share; ends with Close
	cancel context.CancelFunc

	deposeOnce sync.Once
	deposed    chan struct{}

	app appender

	mu         sync.Mutex
	nextNumber func() (uint64, error) // guarded by mu
	// fenced is what the last Fence reached, nil before it; guarded by mu. What was not fenced does not count when the
	// bucket lists: an old owner may still change it.
	fenced map[wire.DriveID]bool
}

// Bucket makes the handle for an ownership. Fence before anything else. Close it when the ownership ends.
func (s *Store) Bucket(id wire.BucketID, epoch wire.Epoch) *Bucket {
	b := &Bucket{s: s, id: id, epoch: epoch, deposed: make(chan struct{})}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	return b
}

// ID gives the bucket's number.
func (b *Bucket) ID() wire.BucketID { return b.id }

// Epoch gives the epoch that all writes carry.
func (b *Bucket) Epoch() wire.Epoch { return b.epoch }

// Store gives the Store that the bucket writes with.
func (b *Bucket) Store() *Store { return b.s }

// SetNextNumber says where Append takes the numbers of new segments from (the bucket's database, which opens after the
// Bucket). Numbers must rise and never repeat. Until it is called Append gives KindRefused.
func (b *Bucket) SetNextNumber(f func() (uint64, error)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.nextNumber = f
}

// Deposed is closed when a drive has answered that the bucket has a newer owner. All writes fail from then on with
// KindStaleEpoch.
func (b *Bucket) Deposed() <-chan struct{} { return b.deposed }

// Close ends the bucket's work: appends under way fail, and it waits for them. Writes after it fail.
func (b *Bucket) Close() {
	b.cancel()
	b.app.wait()
}

// alive says why the bucket may not write, or nil.
func (b *Bucket) alive(op string) error {
	select {
	case <-b.deposed:
		return wire.Errorf(op, wire.KindStaleEpoch, b.name(), "deposed")
	default:
	}
	if b.ctx.Err() != nil {
		return wire.Errorf(op, wire.KindShutdown, b.name(), "closed")
	}
	return nil
}

func (b *Bucket) name() string { return fmt.Sprintf("bucket %d epoch %d", b.id, b.epoch) }

// ask asks a drive within a time limit and notes if the answer deposes us.
func (b *Bucket) ask(ctx context.Context, d wire.DriveID, limit time.Duration, call *rpc.Call) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	call.Epoch = b.epoch
	err := b.s.c.Ask(ctx, d, call)
	if errors.Is(err, wire.KindStaleEpoch) {
		b.deposeOnce.Do(func() {
			b.s.c.Log.Warn("bucket has a newer owner", "bucket", b.id, "epoch", b.epoch, "drive", d)
			close(b.deposed)
		})
	}
	return err
}

// NewID makes the id (position 0) of a new stripe, segment or strip of the bucket, with fresh random bits.
func (b *Bucket) NewID(c wire.Class, number uint64, index uint16) wire.StripID {
	return wire.MakeStripID(b.id, c, 0, number, index, b.s.random())
}

// Read reads n blocks of a location from block on, verified against sums; the caller owns the Data. See
// strip.Reader.Read for the kinds of error.
func (b *Bucket) Read(ctx context.Context, loc wire.Location, block uint32, n int, sums []uint64) (wire.Data, error) {
	ds, err := b.s.reader.Read(ctx, []strip.Want{{Loc: &loc, Block: int(block), Blocks: n, Sums: sums}})
	if err != nil {
		return nil, err
	}
	return ds[0], nil
}

// each calls f for every drive of the map at once (at most MaxListConcurrency) and sorts the drives by outcome. It gives
// an error when more failure domains failed than the protection allows for, or the bucket was deposed.
func (b *Bucket) each(op string, f func(d wire.DriveID) error) (good, bad []wire.DriveID, err error) {
	v := b.s.currentView()
	if v == nil {
		return nil, nil, wire.Errorf(op, wire.KindUnavailable, b.name(), "no cluster map yet")
	}
	b.mu.Lock()
	fenced := b.fenced
	b.mu.Unlock()
	errs := make([]error, len(v.all))
	var wg sync.WaitGroup
	slots := make(chan struct{}, MaxListConcurrency)
	for i, d := range v.all {
		if fenced != nil && !fenced[d] {
			errs[i] = wire.Errorf(op, wire.KindUnavailable, b.name(), "drive %d is not fenced", d)
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			errs[i] = f(d)
			<-slots
		})
	}
	wg.Wait()
	domains := map[uint32]bool{}
	var cause error
	for i, d := range v.all {
		if errs[i] == nil {
			good = append(good, d)
			continue
		}
		bad = append(bad, d)
		domains[v.domain[d]] = true
		if cause == nil || errors.Is(errs[i], wire.KindStaleEpoch) {
			cause = errs[i]
		}
	}
	if err := b.alive(op); err != nil {
		return good, bad, err
	}
	if len(domains) > v.m {
		return good, bad, wire.Errorf(op, wire.KindUnavailable, b.name(),
			"%d failure domains do not answer, the protection allows for %d: %w", len(domains), v.m, cause)
	}
	return good, bad, nil
}

// Fence makes every reachable drive refuse older epochs. An error with KindUnavailable says that more failure domains
// than m are unreachable, so that the bucket cannot be opened; KindStaleEpoch, that it has a newer owner.
func (b *Bucket) Fence(ctx context.Context) (reachable, unreachable []wire.DriveID, err error) {
	b.mu.Lock()
	b.fenced = nil
	b.mu.Unlock()
	reachable, unreachable, err = b.each("bucket.fence", func(d wire.DriveID) error {
		req := &wire.FenceReq{Drive: d, Bucket: b.id, Epoch: b.epoch}
		err := b.ask(ctx, d, QuickTimeout, &rpc.Call{Method: wire.MDriveFence, Req: req})
		if errors.Is(err, wire.KindConnLost) && ctx.Err() == nil { // the drive has restarted: fencing twice is harmless
			err = b.ask(ctx, d, QuickTimeout, &rpc.Call{Method: wire.MDriveFence, Req: req})
		}
		return err
	})
	fenced := map[wire.DriveID]bool{}
	for _, d := range reachable {
		fenced[d] = true
	}
	b.mu.Lock()
	b.fenced = fenced
	b.mu.Unlock()
	return reachable, unreachable, err
}

// Fenced says whether Fence has succeeded for some drives.
func (b *Bucket) Fenced() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.fenced) > 0
}

// Listed is a strip or segment that a drive holds.
type Listed struct {
	Drive wire.DriveID
	wire.ListEntry
}

// List gives what the reachable (and fenced) drives hold of a class of the bucket, in order of id without the position, then of
// drive: replicas and strips of one segment or stripe stand together. Errors as of Fence.
func (b *Bucket) List(ctx context.Context, class wire.Class) ([]Listed, error) {
	var mu sync.Mutex
	var all []Listed
	_, _, err := b.each("bucket.list", func(d wire.DriveID) error {
		list, err := b.listDrive(ctx, d, class)
		mu.Lock()
		all = append(all, list...)
		mu.Unlock()
		return err
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(all, func(x, y Listed) int {
		if c := x.ID.WithPos(0).Compare(y.ID.WithPos(0)); c != 0 {
			return c
		}
		if x.Drive != y.Drive {
			return int(x.Drive) - int(y.Drive)
		}
		return x.ID.Pos() - y.ID.Pos()
	})
	return all, nil
}

func (b *Bucket) listDrive(ctx context.Context, d wire.DriveID, class wire.Class) ([]Listed, error) {
	var list []Listed
	var after wire.StripID
	for {
		resp := &wire.ListResp{}
		req := &wire.ListReq{Drive: d, Bucket: b.id, Class: class, After: after}
		if err := b.ask(ctx, d, QuickTimeout, &rpc.Call{Method: wire.MDriveList, Req: req, Resp: resp}); err != nil {
			return nil, err
		}
		for _, e := range resp.Entries {
			if e.ID.Bucket() == b.id && e.ID.Class() == class && after.Less(e.ID) {
				list = append(list, Listed{Drive: d, ListEntry: e})
				after = e.ID
			}
		}
		if !resp.More || len(resp.Entries) == 0 {
			return list, nil
		}
	}
}

// Seal ends a replica of a segment on one drive and gives its length.
func (b *Bucket) Seal(ctx context.Context, d wire.DriveID, id wire.StripID) (uint64, error) {
	resp := &wire.SealResp{}
	req := &wire.SealReq{Drive: d, Epoch: b.epoch, ID: id}
	err := b.ask(ctx, d, QuickTimeout, &rpc.Call{Method: wire.MDriveSeal, Req: req, Resp: resp})
	return resp.Len, err
}

// SealAll ends all open segments of a class on all reachable drives. Errors as of Fence.
func (b *Bucket) SealAll(ctx context.Context, class wire.Class) error {
	_, _, err := b.each("bucket.seal", func(d wire.DriveID) error {
		list, err := b.listDrive(ctx, d, class)
		for _, l := range list {
			if !l.Open || err != nil {
				continue
			}
			if _, serr := b.Seal(ctx, d, l.ID); serr != nil && !errors.Is(serr, wire.KindNotFound) {
				err = serr
			}
		}
		return err
	})
	return err
}

// ReadStrips reads whole strips or segments, at most strip.MaxRanges of at most wire.MaxDataBytes together, from one
// drive, unverified. It gives one Data for each (nil when its kind is not KindNone); the caller owns them.
func (b *Bucket) ReadStrips(ctx context.Context, d wire.DriveID, ranges []wire.ReadRange) ([]wire.Data, []wire.Kind, error) {
	resp := &wire.ReadResp{}
	call := &rpc.Call{Method: wire.MDriveRead, Req: &wire.ReadReq{Drive: d, Ranges: ranges}, Resp: resp}
	err := b.ask(ctx, d, b.s.c.WriteTimeout, call)
	defer call.RespData.Release()
	if err != nil {
		return nil, nil, err
	}
	want := 0
	for i, k := range resp.Status {
		if k == wire.KindNone && i < len(ranges) {
			want += int(ranges[i].Len)
		}
	}
	if len(resp.Status) != len(ranges) || call.RespData.Len() != want {
		return nil, nil, wire.Errorf("bucket.read", wire.KindBadFrame, "", "drive %d answered %d ranges, %d bytes",
			d, len(resp.Status), call.RespData.Len())
	}
	out := make([]wire.Data, len(ranges))
	off := 0
	for i, k := range resp.Status {
		if k == wire.KindNone {
			out[i] = call.RespData.Sub(off, int(ranges[i].Len))
			off += int(ranges[i].Len)
		}
	}
	return out, resp.Status, nil
}
