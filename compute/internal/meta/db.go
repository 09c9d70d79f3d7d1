package meta

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/crakefs/crake/wire"
)

// formatMajor is Pebble's on-disk format, pinned so that a newer library does not write what the release before cannot
// read. It may only rise, one release after the readers know it. FORMAT.md records it.
const formatMajor = pebble.FormatTableFormatV6

// pebbleOptions are for many small databases in one process, whose files lie on drives behind a network.
func (b *Bucket) pebbleOptions() *pebble.Options {
	c := &b.cfg
	o := &pebble.Options{
		FS: c.FS, Cache: c.Cache, FileCache: c.FileCache,
		FormatMajorVersion: formatMajor,
		Merger:             counterMerger,
		// Starts at 256 KiB and doubles with every flush: an idle bucket costs that, a busy one flushes 4 MiB tables.
		MemTableSize:                uint64(c.MemTableBytes),
		MemTableStopWritesThreshold: memTables,
		// The LSM is small (4 MiB flushes) and reads are point reads: few sublevels keep a read to few tables.
		L0CompactionThreshold: l0Compact,
		L0StopWritesThreshold: l0Stop,
		LBaseMaxBytes:         lBaseBytes,
		MaxOpenFiles:          maxOpenFiles,
		MaxManifestFileSize:   1 << 20,
		// Tables are never loaded only to count them: the buckets of a process open together after a failover.
		DisableTableStats: true,
		Logger:            &dbLogger{b: b, log: b.log},
		EventListener: &pebble.EventListener{
			BackgroundError: func(err error) { b.log.Warn("bucket database: background error", slog.Any("err", err)) },
			DataCorruption: func(i pebble.DataCorruptionInfo) {
				b.log.Error("bucket database: corruption", slog.String("info", i.String()))
			},
		},
	}
	// Sampled compactions would move whole levels because they were read.
	o.Experimental.ReadSamplingMultiplier = -1
	// Compression: the cheapest. Inode records and keys shrink to about half, and every byte saved is written k+m/k times
	// to drives; checksums, the bulk of extents, do not shrink, so more CPU would buy nothing.
	o.ApplyCompressionSettings(func() pebble.DBCompressionSettings { return pebble.DBCompressionFastest })
	for i := range o.Levels {
		// Every look-up of a name that is not there, and of an inode in a deep level, is a Get.
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	return o
}

// dbLogger passes Pebble's messages on. Pebble ends the process when it cannot write its manifest or log, which is what
// happens to the loser of a fencing; here it ends the bucket.
type dbLogger struct {
	b   *Bucket
	log *slog.Logger
}

func (l *dbLogger) Infof(format string, args ...any) {
	l.log.Debug("bucket database", slog.String("info", fmt.Sprintf(format, args...)))
}

func (l *dbLogger) Errorf(format string, args ...any) {
	l.log.Warn("bucket database", slog.String("info", fmt.Sprintf(format, args...)))
}

// Fatalf must not return. In a goroutine of a request it panics to Bucket.guard; in one of Pebble's own it ends that
// goroutine: its deferred calls unlock what it had locked, and the bucket refuses all further work.
func (l *dbLogger) Fatalf(format string, args ...any) {
	err := fmt.Errorf("database: "+format, args...)
	l.b.fail(err)
	pcs := make([]uintptr, 64)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(1, pcs)])
	for {
		f, more := frames.Next()
		if strings.HasSuffix(f.Function, "meta.(*Bucket).guard") {
			panic(dbFatal{err})
		}
		if !more {
			break
		}
	}
	runtime.Goexit()
}

type dbFatal struct{ err error }

// guard runs f, which calls the database, and turns a fatal error of it into an error.
func (b *Bucket) guard(f func() error) (err error) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case dbFatal:
			err = r.err
		default:
			panic(r)
		}
	}()
	return f()
}

// get reads a value. found is false when there is none. The value is valid until closer.Close.
func (b *Bucket) get(k key) (v []byte, closer io.Closer, found bool, err error) {
	v, closer, err = b.db.Get(k)
	if err == nil {
		return v, closer, true, nil
	}
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil, false, nil
	}
	return nil, nil, false, b.dbError(err)
}

// dbError gives an error of the database its kind.
func (b *Bucket) dbError(err error) error {
	if pebble.IsCorruptionError(err) {
		return wire.E("meta.db", wire.KindCorrupt, b.id(), err)
	}
	return wire.E("meta.db", wire.KindUnavailable, b.id(), err)
}

// scan calls f for every record with the prefix, from key from on (nil: from the first), until it returns false.
// k and v are valid during the call only.
func (b *Bucket) scan(prefix, from key, f func(k, v []byte) (bool, error)) error {
	lower := prefix
	if from != nil {
		lower = from
	}
	it, err := b.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: prefix.after()})
	if err != nil {
		return b.dbError(err)
	}
	defer func() { _ = it.Close() }()
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			return b.dbError(err)
		}
		if more, err := f(it.Key(), v); err != nil || !more {
			return err
		}
	}
	if err := it.Error(); err != nil {
		return b.dbError(err)
	}
	return nil
}

// counters are what a bucket holds, kept as sums of deltas in one record with Pebble's merge, so that commits side by
// side need no lock for them.
type counters struct {
	inodes, blocks, stripes, segments int64
}

func (c *counters) add(o counters) {
	c.inodes += o.inodes
	c.blocks += o.blocks
	c.stripes += o.stripes
	c.segments += o.segments
}

func (c *counters) append(b []byte) []byte {
	b = append(b, recordVersion)
	for _, v := range [...]int64{c.inodes, c.blocks, c.stripes, c.segments} {
		b = binary.AppendVarint(b, v)
	}
	return b
}

func decodeCounters(b []byte) (counters, error) {
	r := newReader(b)
	var c counters
	for _, p := range [...]*int64{&c.inodes, &c.blocks, &c.stripes, &c.segments} {
		if r.bad != "" {
			break
		}
		v, n := binary.Varint(r.b)
		if n <= 0 {
			r.fail("counter")
			break
		}
		*p, r.b = v, r.b[n:]
	}
	return c, r.done("counters")
}

// counterMerger adds counters; its name is on disk.
var counterMerger = &pebble.Merger{
	Name: "crake.counters.1",
	Merge: func(_, value []byte) (pebble.ValueMerger, error) {
		c, err := decodeCounters(value)
		if err != nil {
			return nil, err
		}
		return &counterMerge{c}, nil
	},
}

type counterMerge struct{ sum counters }

func (m *counterMerge) MergeNewer(value []byte) error { return m.MergeOlder(value) }

func (m *counterMerge) MergeOlder(value []byte) error {
	c, err := decodeCounters(value)
	m.sum.add(c)
	return err
}

func (m *counterMerge) Finish(bool) ([]byte, io.Closer, error) { return m.sum.append(nil), nil, nil }

// noSync commits in order with all others, but does not wait until it is durable.
var noSync = pebble.NoSync
