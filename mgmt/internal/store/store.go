// Package store keeps the cluster's configuration in an embedded etcd: one member, no listener at all (everything that
// asks it is in this process), a small footprint.
package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/crakefs/crake/wire"
)

// Limits and settings of etcd, each with its reason.
const (
	// tick and election: alone, a member elects itself after one election time, and nobody can be slow.
	tickMs, electionMs = 10, 100
	// snapshotCount, catchUp: entries of Raft that are kept in memory; some hundred of a few KiB.
	snapshotCount, catchUp = 1000, 100
	// quotaBytes bounds the database: settings and 10,000 events are some MiB, and history is compacted.
	quotaBytes = 1 << 30
	// keepRevisions of history; nobody reads old ones.
	keepRevisions = "1000"
	// maxTxnOps and maxRequestBytes bound one change: a failover touches at most every bucket document, forming a cluster of
	// 20,000 drives every drive.
	maxTxnOps, maxRequestBytes = 64 << 10, 64 << 20
	// startTimeout bounds the wait for etcd to serve: replaying its log after a crash takes well under a second.
	startTimeout = 60 * time.Second
	// leaderTTL is the seconds for which a leader that is not heard keeps its place among several.
	leaderTTL = 10
)

// Keys. The number is the version of the layout.
const (
	prefix       = "/crake/1/"
	statePrefix  = prefix + "state/"
	eventPrefix  = prefix + "event/"
	leaderPrefix = prefix + "leader"
	memberName   = "mgmt1"
)

// Store is an open store. All methods are safe for concurrent use.
type Store struct {
	etcd    *embed.Etcd
	cl      *clientv3.Client
	session *concurrency.Session
	lead    *concurrency.Election
	close   func() error // closeOnce, once
}

// Open starts etcd on the data in dir. The caller holds a lock that keeps others out of it.
func Open(ctx context.Context, dir string, log *slog.Logger) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	c := embed.NewConfig()
	c.Name, c.Dir = memberName, dir
	// No sockets: a member that is alone needs no peers, and its only client is in this process. The URL is a name that
	// is never dialled; a second member would change it (etcd's member update) and listen.
	c.ListenPeerUrls, c.ListenClientUrls, c.AdvertiseClientUrls = nil, nil, nil
	self := url.URL{Scheme: "http", Host: "127.0.0.1:1"}
	c.AdvertisePeerUrls = []url.URL{self}
	c.InitialCluster = memberName + "=" + self.String()
	c.EnableGRPCGateway = false
	c.TickMs, c.ElectionMs = tickMs, electionMs
	c.SnapshotCount, c.SnapshotCatchUpEntries = snapshotCount, catchUp
	c.QuotaBackendBytes, c.MaxTxnOps, c.MaxRequestBytes = quotaBytes, maxTxnOps, maxRequestBytes
	c.AutoCompactionMode, c.AutoCompactionRetention = embed.CompactorModeRevision, keepRevisions
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(zapcore.NewCore(
		zapcore.NewConsoleEncoder(zap.NewProductionEncoderConfig()), zapcore.Lock(os.Stderr), zapcore.ErrorLevel)))
	e, err := embed.StartEtcd(c)
	if err != nil {
		return nil, fmt.Errorf("etcd in %s: %w", dir, err)
	}
	select {
	case <-e.Server.ReadyNotify():
	case err := <-e.Err():
		e.Close()
		return nil, fmt.Errorf("etcd in %s: %w", dir, err)
	case <-time.After(startTimeout):
		e.Close()
		return nil, fmt.Errorf("etcd in %s did not start in %v", dir, startTimeout)
	case <-ctx.Done():
		e.Close()
		return nil, ctx.Err()
	}
	log.Info("etcd serves", "dir", dir)
	s := &Store{etcd: e, cl: v3client.New(e.Server)}
	s.close = sync.OnceValue(s.closeOnce)
	return s, nil
}

// Close stops etcd, once. The leader's place is given up.
func (s *Store) Close() error { return s.close() }

func (s *Store) closeOnce() error {
	var err error
	if s.session != nil {
		err = s.session.Close()
	}
	err = errors.Join(err, s.cl.Close())
	if errors.Is(err, context.Canceled) {
		err = nil // how a client that was closed answers
	}
	s.etcd.Close()
	return err
}

// Failed is told when etcd has ended by itself.
func (s *Store) Failed() <-chan error { return s.etcd.Err() }

// Lead waits until the server of that name leads the cluster. Another run of the same server is known to be dead (the
// caller holds its lock), so a place that it left is taken over at once instead of after its time to live.
func (s *Store) Lead(ctx context.Context, server string) error {
	r, err := s.cl.Get(ctx, leaderPrefix+"/", clientv3.WithPrefix())
	if err != nil {
		return fmt.Errorf("election: %w", err)
	}
	for _, kv := range r.Kvs {
		if string(kv.Value) == server && kv.Lease != 0 {
			if _, err := s.cl.Revoke(ctx, clientv3.LeaseID(kv.Lease)); err != nil {
				return fmt.Errorf("election: %w", err)
			}
		}
	}
	if s.session, err = concurrency.NewSession(s.cl, concurrency.WithTTL(leaderTTL)); err != nil {
		return fmt.Errorf("election: %w", err)
	}
	s.lead = concurrency.NewElection(s.session, leaderPrefix)
	if err := s.lead.Campaign(ctx, server); err != nil {
		return fmt.Errorf("election: %w", err)
	}
	return nil
}

// Lost is closed when the leader's place was lost. Preconditions: Lead has returned nil.
func (s *Store) Lost() <-chan struct{} { return s.session.Done() }

// Load reads the documents of the state; none of them when no cluster has been formed.
func (s *Store) Load(ctx context.Context) (map[string][]byte, error) {
	r, err := s.cl.Get(ctx, statePrefix, clientv3.WithPrefix())
	if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	docs := make(map[string][]byte, len(r.Kvs))
	for _, kv := range r.Kvs {
		docs[strings.TrimPrefix(string(kv.Key), statePrefix)] = kv.Value
	}
	return docs, nil
}

// ErrNotLeader says that another leads now: nothing was written.
var ErrNotLeader = errors.New("not the leader any more")

// Save writes and deletes documents, all or nothing, durably, and only while this process leads.
func (s *Store) Save(ctx context.Context, put map[string][]byte, del []string) error {
	ops := make([]clientv3.Op, 0, len(put)+len(del))
	for k, v := range put {
		ops = append(ops, clientv3.OpPut(statePrefix+k, string(v)))
	}
	for _, k := range del {
		ops = append(ops, clientv3.OpDelete(statePrefix+k))
	}
	r, err := s.cl.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(s.lead.Key()), "=", s.lead.Rev())).Then(ops...).Commit()
	if err != nil {
		return fmt.Errorf("save: %w", err)
	}
	if !r.Succeeded {
		return ErrNotLeader
	}
	return nil
}

// StoredEvent is an event as it is stored.
type StoredEvent struct {
	ID       uint64 `json:"id"`
	Time     int64  `json:"time"` // nanoseconds since 1970
	Severity uint8  `json:"severity"`
	Type     string `json:"type"`
	Process  string `json:"process,omitempty"`
	Text     string `json:"text"`
}

// eventKey orders as the numbers do.
func eventKey(id uint64) string { return fmt.Sprintf("%s%020d", eventPrefix, id) }

// SaveEvents writes events and drops all up to the id upTo.
func (s *Store) SaveEvents(ctx context.Context, events []StoredEvent, upTo uint64) error {
	var ops []clientv3.Op
	for _, e := range events {
		b, err := json.Marshal(e)
		if err != nil {
			return err
		}
		ops = append(ops, clientv3.OpPut(eventKey(e.ID), string(b)))
	}
	if upTo > 0 {
		ops = append(ops, clientv3.OpDelete(eventPrefix, clientv3.WithRange(eventKey(upTo+1))))
	}
	if _, err := s.cl.Txn(ctx).Then(ops...).Commit(); err != nil {
		return fmt.Errorf("save events: %w", err)
	}
	return nil
}

// LoadEvents reads the stored events, oldest first.
func (s *Store) LoadEvents(ctx context.Context) ([]StoredEvent, error) {
	r, err := s.cl.Get(ctx, eventPrefix, clientv3.WithPrefix())
	if err != nil {
		return nil, fmt.Errorf("load events: %w", err)
	}
	out := make([]StoredEvent, 0, len(r.Kvs))
	for _, kv := range r.Kvs {
		var e StoredEvent
		num := strings.TrimPrefix(string(kv.Key), eventPrefix)
		id, err := strconv.ParseUint(num, 10, 64)
		if err == nil {
			err = json.Unmarshal(kv.Value, &e)
		}
		if err != nil || e.ID != id {
			return nil, wire.Errorf("mgmt.events", wire.KindCorrupt, string(kv.Key), "id %d: %w", e.ID, err)
		}
		out = append(out, e)
	}
	return out, nil
}
