package store

import "slices"

// liveChunk is how many batches liveBatches allocates at a time: 160 KiB.
const liveChunk = 4096

// liveBatches is the list of the batches that no checkpoint covers: a queue of up to 262,144 (a ring of 1 GiB in single blocks), in
// chunks, so that neither growing nor trimming it copies megabytes while the journal's lock is held. As one slice it did for 7
// ms, and reads waited behind whoever finished an operation.
type liveBatches struct {
	chunks [][]batchInfo // each of liveChunk, but the last, which may have less
	skip   int           // of the first chunk, those that are gone
}

// len gives the number of batches.
func (l *liveBatches) len() int {
	if len(l.chunks) == 0 {
		return 0
	}
	return (len(l.chunks)-1)*liveChunk + len(l.chunks[len(l.chunks)-1]) - l.skip
}

// at gives the i-th; valid until it is dropped. Preconditions: 0 <= i < len.
func (l *liveBatches) at(i int) *batchInfo {
	i += l.skip
	return &l.chunks[i/liveChunk][i%liveChunk]
}

// push adds one at the end.
func (l *liveBatches) push(b batchInfo) {
	if n := len(l.chunks); n == 0 || len(l.chunks[n-1]) == liveChunk {
		l.chunks = append(l.chunks, make([]batchInfo, 0, liveChunk))
	}
	last := &l.chunks[len(l.chunks)-1]
	*last = append(*last, b)
}

// drop forgets the first n. Preconditions: n <= len.
func (l *liveBatches) drop(n int) {
	l.skip += n
	whole := l.skip / liveChunk
	if l.len() == 0 {
		*l = liveBatches{}
		return
	}
	l.chunks = slices.Delete(l.chunks, 0, whole) // clears what it leaves, so the memory is given back
	l.skip -= whole * liveChunk
}
