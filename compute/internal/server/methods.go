package server

import (
	"context"
	"fmt"

	"github.com/crakefs/crake/compute/internal/lease"
	"github.com/crakefs/crake/compute/internal/opens"
	"github.com/crakefs/crake/compute/internal/own"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

// table lists all methods.
func (s *Server) table() map[wire.Method]method {
	t := map[wire.Method]method{
		wire.MStatFS:     {by: byAnyone, run: s.statFS},
		wire.MBucketStat: {by: byAnyone, free: true, run: s.bucketStat},
	}
	s.addNames(t)
	s.addFiles(t)
	s.addSessions(t)
	s.addOthers(t)
	return t
}

// addNames adds what is about names and attributes.
func (s *Server) addNames(t map[wire.Method]method) {
	t[wire.MLookup] = inBucket(s, byFrontend, own.UseServing,
		func(q *wire.LookupReq) (wire.BucketID, wire.SessionID) { return q.Parent.Bucket(), q.Session },
		func(c *call, q *wire.LookupReq) (wire.Message, error) { return some(c.db.Lookup(c.ctx, q)) })
	t[wire.MGetAttr] = inBucket(s, byFrontend, own.UseServing,
		func(q *wire.GetAttrReq) (wire.BucketID, wire.SessionID) { return q.Ino.Bucket(), q.Session },
		func(c *call, q *wire.GetAttrReq) (wire.Message, error) {
			release, err := c.forWriting(q.Ino, q.Want)
			if err != nil {
				return nil, err
			}
			defer release()
			return some(c.db.GetAttr(c.ctx, q))
		})
	t[wire.MSetAttr] = inBucket(s, byFrontend, own.UseServing,
		func(q *wire.SetAttrReq) (wire.BucketID, wire.SessionID) { return q.Ino.Bucket(), q.Op.Session },
		func(c *call, q *wire.SetAttrReq) (wire.Message, error) { return some(c.db.SetAttr(c.ctx, q)) })
	t[wire.MCreate] = inBucket(s, byFrontend, own.UseServing,
		func(q *wire.CreateReq) (wire.BucketID, wire.SessionID) { return q.Parent.Bucket(), q.Op.Session },
		func(c *call, q *wire.CreateReq) (wire.Message, error) {
			if q.Open {
				if err := c.mayOpen(); err != nil {
					return nil, err
				}
			}
			return some(c.db.Create(c.ctx, q))
		})
	t[wire.MUnlink] = inBucket(s, byFrontend, own.UseServing,
		func(q *wire.UnlinkReq) (wire.BucketID, wire.SessionID) { return q.Parent.Bucket(), q.Op.Session },
		func(c *call, q *wire.UnlinkReq) (wire.Message, error) { return some(c.db.Unlink(c.ctx, q)) })
	t[wire.MRename] = inBucket(s, byFrontend, own.UseServing,
		func(q *wire.RenameReq) (wire.BucketID, wire.SessionID) { return q.OldParent.Bucket(), q.Op.Session },
		func(c *call, q *wire.RenameReq) (wire.Message, error) { return some(c.db.Rename(c.ctx, q)) })
	t[wire.MLink] = inBucket(s, byFrontend, own.UseServing,
		func(q *wire.LinkReq) (wire.BucketID, wire.SessionID) { return q.Parent.Bucket(), q.Op.Session },
		func(c *call, q *wire.LinkReq) (wire.Message, error) { return some(c.db.Link(c.ctx, q)) })
	t[wire.MReadDir] = inBucket(s, byFrontend, own.UseServing,
		func(q *wire.ReadDirReq) (wire.BucketID, wire.SessionID) { return q.Ino.Bucket(), q.Session },
		func(c *call, q *wire.ReadDirReq) (wire.Message, error) { return some(c.db.ReadDir(c.ctx, q)) })
	t[wire.MReadLink] = inBucket(s, byFrontend, own.UseServing,
		func(q *wire.ReadLinkReq) (wire.BucketID, wire.SessionID) { return q.Ino.Bucket(), q.Session },
		func(c *call, q *wire.ReadLinkReq) (wire.Message, error) { return some(c.db.ReadLink(c.ctx, q)) })
	xattr := func(q *wire.XattrReq) (wire.BucketID, wire.SessionID) { return q.Ino.Bucket(), q.Op.Session }
	t[wire.MGetXattr] = inBucket(s, byFrontend, own.UseServing, xattr,
		func(c *call, q *wire.XattrReq) (wire.Message, error) { return some(c.db.GetXattr(c.ctx, q)) })
	t[wire.MListXattr] = inBucket(s, byFrontend, own.UseServing, xattr,
		func(c *call, q *wire.XattrReq) (wire.Message, error) { return some(c.db.ListXattr(c.ctx, q)) })
	t[wire.MSetXattr] = inBucket(s, byFrontend, own.UseServing, xattr,
		func(c *call, q *wire.XattrReq) (wire.Message, error) { return done(c.db.SetXattr(c.ctx, q)) })
	t[wire.MRemoveXattr] = inBucket(s, byFrontend, own.UseServing, xattr,
		func(c *call, q *wire.XattrReq) (wire.Message, error) { return done(c.db.RemoveXattr(c.ctx, q)) })
}

// addFiles adds what is about files that are open, and their data.
func (s *Server) addFiles(t map[wire.Method]method) {
	t[wire.MOpen] = inBucket(s, byFrontend, own.UseServing,
		func(q *wire.OpenReq) (wire.BucketID, wire.SessionID) { return q.Ino.Bucket(), q.Session },
		func(c *call, q *wire.OpenReq) (wire.Message, error) {
			if err := c.mayOpen(); err != nil {
				return nil, err
			}
			release, err := c.forWriting(q.Ino, q.Want)
			if err != nil {
				return nil, err
			}
			defer release()
			return some(c.db.Open(c.ctx, q))
		})
	t[wire.MRelease] = inBucket(s, byFrontend, own.UseServing,
		func(q *wire.ReleaseReq) (wire.BucketID, wire.SessionID) { return q.Bucket, q.Session }, s.release)
	t[wire.MExtents] = inBucket(s, byFrontend, own.UseServing, regionWhere(s,
		func(q *wire.ExtentsReq) (wire.Ino, uint64, wire.SessionID) { return q.Ino, q.Off, q.Session }),
		func(c *call, q *wire.ExtentsReq) (wire.Message, error) { return some(c.db.Extents(c.ctx, q)) })
	t[wire.MWrite] = inBucket(s, byFrontend, own.UseServing,
		func(q *wire.WriteReq) (wire.BucketID, wire.SessionID) { return q.Bucket, q.Op.Session },
		func(c *call, q *wire.WriteReq) (wire.Message, error) { return some(c.db.Write(c.ctx, q, c.data)) })
	t[wire.MPrepare] = inBucket(s, byFrontend, own.UseServing,
		func(q *wire.PrepareReq) (wire.BucketID, wire.SessionID) { return q.Ino.Bucket(), q.Op.Session },
		func(c *call, q *wire.PrepareReq) (wire.Message, error) { return done(c.db.Prepare(c.ctx, q)) })
	t[wire.MPublish] = inBucket(s, byFrontend, own.UseServing,
		func(q *wire.PublishReq) (wire.BucketID, wire.SessionID) { return q.Ino.Bucket(), q.Op.Session },
		func(c *call, q *wire.PublishReq) (wire.Message, error) { return some(c.db.Publish(c.ctx, q)) })
	t[wire.MPunch] = inBucket(s, byFrontend, own.UseServing, regionWhere(s,
		func(q *wire.PunchReq) (wire.Ino, uint64, wire.SessionID) { return q.Ino, q.Off, q.Op.Session }),
		func(c *call, q *wire.PunchReq) (wire.Message, error) { return done(c.db.Punch(c.ctx, q)) })
	t[wire.MLock] = inBucket(s, byFrontend, own.UseServing,
		func(q *wire.LockReq) (wire.BucketID, wire.SessionID) { return q.Ino.Bucket(), q.Op.Session },
		func(c *call, q *wire.LockReq) (wire.Message, error) {
			resp, err := c.bucket.Locks.Do(c.peer, q) // the one wait that the asker may cancel
			if err != nil {
				return nil, err
			}
			return &resp, nil
		})
}

// addSessions adds what is about what a session holds. It needs no database.
func (s *Server) addSessions(t map[wire.Method]method) {
	t[wire.MLeaseDrop] = inBucket(s, byFrontend, 0,
		func(q *wire.LeaseDropReq) (wire.BucketID, wire.SessionID) { return q.Bucket, q.Session },
		func(c *call, q *wire.LeaseDropReq) (wire.Message, error) {
			c.bucket.Leases.Drop(q.Session, q.Inos, q.Seqs)
			return &wire.Empty{}, nil
		})
	t[wire.MReclaim] = inBucket(s, byFrontend, 0,
		func(q *wire.ReclaimReq) (wire.BucketID, wire.SessionID) { return q.Bucket, q.Session },
		func(c *call, q *wire.ReclaimReq) (wire.Message, error) { return some(c.bucket.Reclaim(q)) })
}

// addOthers adds what mgmt and other computes ask for.
func (s *Server) addOthers(t map[wire.Method]method) {
	root := func(q *wire.MakeRootReq) (wire.BucketID, wire.SessionID) { return q.Root.Bucket(), 0 }
	t[wire.MMakeRoot] = inBucket(s, byMgmt, own.UseServing, root,
		func(c *call, q *wire.MakeRootReq) (wire.Message, error) { return done(c.db.MakeRoot(c.ctx, q)) })
	t[wire.MDropRoot] = inBucket(s, byMgmt, own.UseServing, root,
		func(c *call, q *wire.MakeRootReq) (wire.Message, error) { return done(c.db.DropRoot(c.ctx, q)) })

	// The work of other buckets is answered as soon as the database is open: see own.UseOpen.
	t[wire.MTxnPrepare] = inBucket(s, byCompute, own.UseOpen,
		func(q *wire.TxnPrepareReq) (wire.BucketID, wire.SessionID) { return q.Bucket, q.Session },
		func(c *call, q *wire.TxnPrepareReq) (wire.Message, error) { return some(c.db.TxnPrepare(c.ctx, q)) })
	t[wire.MTxnDecide] = inBucket(s, byCompute, own.UseOpen,
		func(q *wire.TxnDecideReq) (wire.BucketID, wire.SessionID) { return q.Bucket, 0 },
		func(c *call, q *wire.TxnDecideReq) (wire.Message, error) { return done(c.db.TxnDecide(c.ctx, q)) })
	t[wire.MTxnQuery] = inBucket(s, byCompute, own.UseOpen,
		func(q *wire.TxnQueryReq) (wire.BucketID, wire.SessionID) { return q.ID.Coordinator, 0 },
		func(c *call, q *wire.TxnQueryReq) (wire.Message, error) { return some(c.db.TxnQuery(c.ctx, q)) })
	t[wire.MDropRegions] = inBucket(s, byCompute, own.UseOpen,
		func(q *wire.DropRegionsReq) (wire.BucketID, wire.SessionID) { return q.Bucket, 0 },
		func(c *call, q *wire.DropRegionsReq) (wire.Message, error) { return some(c.db.DropRegions(c.ctx, q)) })
	t[wire.MRegionBlocks] = inBucket(s, byCompute, own.UseOpen,
		func(q *wire.RegionBlocksReq) (wire.BucketID, wire.SessionID) { return q.Bucket, 0 },
		func(c *call, q *wire.RegionBlocksReq) (wire.Message, error) { return done(c.db.RegionBlocks(c.ctx, q)) })
}

// some turns a typed nil into none.
func some[T any, PT interface {
	*T
	wire.Message
}](resp *T, err error) (wire.Message, error) {
	if err != nil {
		return nil, err
	}
	return PT(resp), nil
}

func done(err error) (wire.Message, error) {
	if err != nil {
		return nil, err
	}
	return &wire.Empty{}, nil
}

// mayOpen bounds the open inodes of a session.
func (c *call) mayOpen() error {
	if c.bucket.Opens.Count(c.session) >= opens.MaxSessionOpens {
		return wire.Errorf("compute.open", wire.KindOverLimit, fmt.Sprint(c.session), "%d inodes are open", opens.MaxSessionOpens)
	}
	return nil
}

// forWriting waits until the session can be granted the write lease, if that is what it wants, and keeps it so until
// release: several sessions that want it get it in turn.
func (c *call) forWriting(ino wire.Ino, want wire.LeaseMode) (release func(), err error) {
	if want < wire.LeaseWrite {
		return func() {}, nil
	}
	return c.bucket.Leases.Use(c.ctx, c.session, []wire.Ino{ino}, lease.UseExclusive)
}

// regionWhere tells the bucket of a request that is about a region of a file.
func regionWhere[Q any](s *Server, f func(*Q) (wire.Ino, uint64, wire.SessionID)) where[Q] {
	return func(q *Q) (wire.BucketID, wire.SessionID) {
		ino, off, sess := f(q)
		m := s.c.Router.Map()
		if m == nil || m.Buckets == 0 {
			return ino.Bucket(), sess
		}
		return wire.RegionBucket(ino, off/wire.RegionBytes, int(m.Buckets)), sess
	}
}

// release ends that a session has inodes open. It never fails once that is noted: what cannot be deleted now is later.
func (s *Server) release(c *call, q *wire.ReleaseReq) (wire.Message, error) {
	for _, ino := range c.bucket.Opens.Release(q.Session, q.Inos) {
		if err := c.db.ReleaseOrphan(c.ctx, ino); err != nil {
			c.bucket.RetryOrphans()
		}
	}
	return &wire.Empty{}, nil
}

// bucketStat describes a bucket, for people and tools; in any state, and under any epoch.
func (s *Server) bucketStat(_ context.Context, req *rpc.Request) (wire.Message, error) {
	var q wire.BucketStatReq
	if err := q.Decode(req.Meta); err != nil {
		return nil, err
	}
	b := s.c.Owner.Bucket(q.Bucket)
	if b == nil {
		return nil, wire.E("compute.stat", wire.KindMoved, fmt.Sprint(q.Bucket), nil)
	}
	st := b.Stat()
	return &st, nil
}
