// Package store writes: stripes, mirrored strips and mirrored segments of a bucket, on drives of healthy placement
// groups; and fences, lists, deletes and counts space. Reading is package strip, which frontends share.
//
// One Store serves a process; a Bucket of it is one ownership (bucket and epoch). Nothing here is kept across restarts.
//
// A stripe: encode parity, place (place.go), Put all strips at once, send what fails to other drives, answer when all
// k+m are durable (put.go). Small data: callers queue; while one append is under way the next batch collects; a batch is
// one record on m+1 drives (append.go, segment.go). A failed append ends the segment: what was acked stays where it is,
// the batch goes to a new segment on healthy drives.
//
// Rules:
//
//   - Mirrored segments, and strips that say what exists (class file), lie in m+1 distinct failure domains or are not
//     acknowledged. The fence relies on it: an owner that was replaced cannot find m+1 domains that the new one has not
//     fenced. Only stripes may share a domain (twice at most), which their Location tells (Degraded).
//   - A strip that a failed write may have left behind is deleted later, after the failed request can no longer land.
//   - A drive that answers "stale epoch" deposes the Bucket: all its writes fail from then on, and Deposed is closed.
//
// Goroutines: Run (space.go polls drives, delete.go deletes) is started by the owner of the Store; a Bucket has at most
// one appending goroutine while there is something to append; requests to drives run in short-lived ones that the
// writer waits for. Locks: Store.mu, Bucket.mu and deleter.mu are leaves: none is held while another is taken, nor
// during IO.
//
// Reading order: store.go, bucket.go, place.go, put.go, segment.go, append.go, delete.go, space.go.
//
// How it fails, and the test: drives down in any combination (TestStripeEveryLoss), drives failing during concurrent
// appends (TestAppendFailures), a newer owner (TestDeposed), full drives (TestNoSpace), hung drives (TestHungDrive); all of the
// arena held by those who want parity (TestParityOfAFullArena). The memory of a request that failed is not written to: storetest holds on to it
// and looks, in every test.
package store
