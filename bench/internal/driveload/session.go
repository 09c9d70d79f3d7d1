package driveload

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/identity"
	"github.com/crakefs/crake/wire/rpc"
	"github.com/crakefs/crake/wire/spin"
)

// Config says what to drive.
type Config struct {
	Addr      string
	Cluster   wire.ClusterID
	Drive     wire.DriveID
	ReadBytes int64 // of strips to read; Prepare puts them
	// WriteBytes bounds what write jobs have on the drive at once, beside ReadBytes; older strips are deleted for newer ones.
	WriteBytes int64
	// Identity proves to the drive who asks; nil where it asks no proof.
	Identity *identity.Identity
	// Spin, if not nil, is told of answers; its owner runs it.
	Spin *spin.Spinner
	// Echo: the peer answers from memory with arbitrary bytes, so nothing is compared.
	Echo bool
}

// Session is a connection to a drive, and what was put there. Its methods are for one goroutine.
type Session struct {
	// Immutable.
	cfg     Config
	arena   *wire.Arena
	conn    *rpc.Conn
	content *content
	strips  int // to read

	next  atomic.Uint64 // number of the next strip or segment of a write job
	epoch wire.Epoch
}

// Numbers of strips: those to read are from 0 on, those of write jobs from firstWritten on.
const firstWritten = 1 << 32

// bucket owns everything that a session puts.
const bucket wire.BucketID = 1

// Dial connects to a drive.
func Dial(ctx context.Context, cfg Config) (*Session, error) {
	arena, err := wire.NewArena(arenaBytes)
	if err != nil {
		return nil, err
	}
	s := &Session{cfg: cfg, arena: arena, content: newContent(), strips: int(cfg.ReadBytes / StripBytes), epoch: 1}
	s.next.Store(firstWritten)
	s.conn, err = rpc.Dial(ctx, cfg.Addr, rpc.Options{
		Self: rpc.Self{Cluster: cfg.Cluster, Role: wire.RoleCompute, Proc: askerProc, Version: "drivespeed"}, Arena: arena, Identity: cfg.Identity,
		Spin: cfg.Spin, Shm: true,
	})
	if err != nil {
		return nil, errors.Join(err, arena.Close())
	}
	return s, nil
}

// Close ends the connection.
func (s *Session) Close() error {
	return errors.Join(s.conn.Close(), s.arena.Close())
}

// Stat asks the drive how it is.
func (s *Session) Stat(ctx context.Context) (wire.DriveStatResp, error) {
	var resp wire.DriveStatResp
	err := s.conn.Do(ctx, &rpc.Call{Method: wire.MDriveStat, Req: &wire.DriveStatReq{Drive: s.cfg.Drive}, Resp: &resp})
	return resp, err
}

// stripID gives the id of a strip or segment by its number.
func stripID(class wire.Class, n uint64) wire.StripID {
	return wire.MakeStripID(bucket, class, 0, n, 0, n*0x9e3779b97f4a7c15)
}

// Prepare puts the strips to read, in order.
func (s *Session) Prepare(ctx context.Context) error {
	if s.cfg.Echo {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, prepareDepth)
	for w := range prepareDepth {
		wg.Go(func() {
			if errs[w] = s.putAll(ctx, &next); errs[w] != nil {
				cancel()
			}
		})
	}
	wg.Wait()
	if err := first(errs); err != nil {
		return fmt.Errorf("cannot put the %d strips to read: %w", s.strips, err)
	}
	return nil
}

// putAll puts strips until all are there.
func (s *Session) putAll(ctx context.Context, next *atomic.Int64) error {
	p, err := newPutter(s)
	if err != nil {
		return err
	}
	defer p.release()
	for {
		n := next.Add(1) - 1
		if n >= int64(s.strips) {
			return nil
		}
		if err := p.put(ctx, uint64(n)); err != nil {
			return err
		}
	}
}

// delete deletes strips or segments.
func (s *Session) delete(ctx context.Context, ids []wire.StripID) error {
	for len(ids) > 0 {
		n := min(len(ids), maxDeleteIDs)
		req := &wire.DeleteReq{Drive: s.cfg.Drive, Epoch: s.epoch, IDs: ids[:n]}
		if err := s.conn.Do(ctx, &rpc.Call{Method: wire.MDriveDelete, Req: req}); err != nil {
			return fmt.Errorf("delete: %w", err)
		}
		ids = ids[n:]
	}
	return nil
}

// first gives the error to tell of several: one that is no consequence of another's cancelling.
func first(errs []error) error {
	var other error
	for _, err := range errs {
		switch {
		case err == nil:
		case !errors.Is(err, wire.KindInterrupted) && !errors.Is(err, context.Canceled):
			return err
		default:
			other = err
		}
	}
	return other
}
