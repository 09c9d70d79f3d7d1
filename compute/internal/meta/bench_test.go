package meta

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/crakefs/crake/wire"
	"golang.org/x/sys/unix"
)

// BenchmarkCreate creates empty files in one directory, by several clients at once; the log is memory.
func BenchmarkCreate(b *testing.B) {
	for _, parallel := range []int{1, 16} {
		b.Run(fmt.Sprint(parallel), func(b *testing.B) {
			r := newRig(b, 1, rigOptions{plainFS: true})
			root := r.makeRoot()
			bucket := r.bucket(0)
			ctx := ctxT(b)
			var n atomic.Uint64
			b.SetParallelism(parallel)
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					i := n.Add(1)
					op := wire.OpID{Session: r.session, Seq: i, Acked: max(i, 1000) - 1000}
					_, err := bucket.Create(ctx, &wire.CreateReq{Op: op, Parent: root, Name: fmt.Sprintf("file%08d", i),
						Mode: unix.S_IFREG | 0644, Excl: true, Open: false, Want: wire.LeaseWrite})
					if err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

func BenchmarkLookup(b *testing.B) {
	r := newRig(b, 1, rigOptions{plainFS: true})
	root := r.makeRoot()
	const files = 20000
	for i := range files {
		if _, err := r.tryCreate(r.opAcked(), root, fmt.Sprint(i), unix.S_IFREG); err != nil {
			b.Fatal(err)
		}
	}
	bucket := r.bucket(0)
	ctx := ctxT(b)
	var n atomic.Uint64
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			_, err := bucket.Lookup(ctx, &wire.LookupReq{Session: r.session, Parent: root, Name: fmt.Sprint(n.Add(1) * 7919 % files)})
			if err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// BenchmarkMkdir makes directories, each by a transaction of two buckets.
func BenchmarkMkdir(b *testing.B) {
	r := newRig(b, 2, rigOptions{plainFS: true})
	root := r.makeRoot()
	bucket := r.bucket(root.Bucket())
	var n atomic.Uint64
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			i := n.Add(1)
			op := wire.OpID{Session: r.session, Seq: i, Acked: max(i, 1000) - 1000}
			_, err := bucket.Create(ctxT(b), &wire.CreateReq{Op: op, Parent: root, Name: fmt.Sprint(i), Mode: unix.S_IFDIR | 0755})
			if err != nil {
				b.Error(err)
				return
			}
		}
	})
}
