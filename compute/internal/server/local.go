package server

import (
	"context"

	"github.com/crakefs/crake/compute/internal/meta"
	"github.com/crakefs/crake/compute/internal/own"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

// Local answers a request between computes for a bucket that this process serves itself, without a connection (which
// would cost a mkdir some 100 µs). It tells false when that cannot be done now: the caller then asks as anyone else
// would, and that waits for the bucket. Neither side keeps or changes what it got from the other.
func (s *Server) Local(ctx context.Context, id wire.BucketID, call *rpc.Call) (done bool, err error) {
	b := s.c.Owner.Bucket(id)
	if b == nil || !s.c.Lease.Valid() {
		return false, nil
	}
	bctx, db, err := b.Enter(own.UseOpen)
	if err != nil {
		return false, nil
	}
	defer b.Leave()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(bctx, cancel)()
	err = local(ctx, db, call)
	if wire.KindOf(err).Retryable() || err != nil && bctx.Err() != nil || b.Lost() || !s.c.Lease.Valid() {
		return false, nil
	}
	return true, err
}

func local(ctx context.Context, db *meta.Bucket, call *rpc.Call) error {
	switch q := call.Req.(type) {
	case *wire.TxnPrepareReq:
		return give[wire.TxnPrepareResp](call)(db.TxnPrepare(ctx, q))
	case *wire.TxnDecideReq:
		return db.TxnDecide(ctx, q)
	case *wire.TxnQueryReq:
		return give[wire.TxnQueryResp](call)(db.TxnQuery(ctx, q))
	case *wire.DropRegionsReq:
		return give[wire.DropRegionsResp](call)(db.DropRegions(ctx, q))
	case *wire.RegionBlocksReq:
		return db.RegionBlocks(ctx, q)
	}
	return wire.Errorf("compute.local", wire.KindUnavailable, "", "method %#x has no short way", uint16(call.Method))
}

// give puts an answer where the caller wants it.
func give[T any](call *rpc.Call) func(*T, error) error {
	return func(resp *T, err error) error {
		if err != nil {
			return err
		}
		if to, ok := any(call.Resp).(*T); ok {
			*to = *resp
		}
		return nil
	}
}
