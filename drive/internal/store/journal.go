package store

import (
	"sync"
	"sync/atomic"

	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/copies"
)

// journal is the index journal: a ring of batches. Operations submit records, and are called when they are written. One batch is
// under way at a time, and the next one takes all that waits by then. A batch says up to which one all operations are finished (its low
// water), so that replay need only distrust the puts of the batches after.
type journal struct {
	// Immutable.
	sb      *format.Superblock
	flusher *flusher
	full    chan struct{} // the ring is half full: a checkpoint is due

	bytes atomic.Uint64 // written, for the counters
	count atomic.Uint64 // batches

	// Of the batch under way; owned by who has set writing.
	buf   []byte // aligned
	write write
	head  format.Batch
	pos   int // block of the ring where it goes

	mu      sync.Mutex
	queue   []*ticket // submitted, in order
	writing bool      // a batch is under way
	batch   []*ticket // its tickets; owned by who has set writing
	spare   []*ticket // memory of batch
	waiting bool      // the next batch waits for room
	trimErr error     // why the last checkpoint failed; handed to who waits for room
	nonce   uint64
	next    uint64      // number of the next batch
	at      int         // block of the ring where it goes, if it fits
	prev    uint64      // checksum of the batch before
	low     uint64      // all operations of batches up to this are finished
	base    uint64      // checksum of the batch before the first of live
	live    liveBatches // from the last checkpoint on, in order; the last is next-1
}

// batchInfo is what is remembered of a batch until a checkpoint covers it.
type batchInfo struct {
	sum         uint64
	pos, blocks int
	outstanding int // operations that are not finished
}

// ticket is one group of records that becomes durable together. It may be used again once it has ended.
type ticket struct {
	// ended is called once, when the records are written (not flushed), or have failed; by whoever ends IO, or kicks, which it must not
	// block. Set before submit.
	ended func()

	bytes   []byte
	records int
	alone   bool // who submitted it was alone: a batch of it alone is made durable at once

	// Valid once it has ended.
	seq     uint64 // if err is nil
	err     error
	durable bool // no flush is needed
}

// waitedTicket is a ticket for a goroutine that waits.
type waitedTicket struct {
	ticket
	done chan struct{}
}

func newWaitedTicket() *waitedTicket {
	t := &waitedTicket{done: make(chan struct{})}
	t.ended = func() { close(t.done) }
	return t
}

// wait waits until the records are written (not flushed). Preconditions: after submit the store was kicked.
func (t *waitedTicket) wait() error {
	<-t.done
	return t.err
}

func newJournal(f *flusher, sb *format.Superblock) *journal {
	j := &journal{
		sb: sb, flusher: f, buf: blockio.AlignedBytes(format.MaxBatchBlocks * format.BlockSize), full: make(chan struct{}, 1),
	}
	j.write.ended = j.written
	return j
}

// submit queues records; it never blocks, and kick begins their batch. The order of submits is the order of replay. Whoever submits
// calls finish once he is done, if the ticket has no error.
//
// alone: the operation is alone, and its records are made durable with their write. Not otherwise: it would be acknowledged while the
// batch before it, which continues the chain, can still be lost.
//
// Preconditions: the records take at most format.MaxBatchBytes; alone is what Store.isAlone says, and Store.mu has been held since.
func (j *journal) submit(t *ticket, alone bool, recs ...format.Record) {
	t.records, t.alone, t.bytes = len(recs), alone, t.bytes[:0]
	t.seq, t.err, t.durable = 0, nil, false
	for i := range recs {
		t.bytes = recs[i].Append(t.bytes)
	}
	if len(t.bytes) > format.MaxBatchBytes {
		panic("drive: a group of records that fits no batch")
	}
	j.mu.Lock()
	j.queue = append(j.queue, t)
	j.mu.Unlock()
}

// finish says that the operation of a ticket is done: applied to the index, its data durable, or undone by a later
// record.
func (j *journal) finish(t *ticket) {
	j.mu.Lock()
	defer j.mu.Unlock()
	first := j.next - uint64(j.live.len())
	j.live.at(int(t.seq-first)).outstanding--
	for j.low+1 < j.next && (j.low+1 < first || j.live.at(int(j.low+1-first)).outstanding == 0) {
		j.low++
	}
}

// kick begins a batch of what waits, unless one is under way or there is no room for it. Its write begins with the device's next Kick.
// Preconditions: no lock of the store is held.
func (j *journal) kick() {
	for {
		j.mu.Lock()
		took, err := j.take()
		j.mu.Unlock()
		if !took {
			return
		}
		if err == nil {
			j.begin()
			return
		}
		j.tell(j.release(), false, err)
	}
}

// take makes what waits the batch under way: as many tickets as fit. An error is theirs. False: there is none to begin now; with no room
// in the ring, a checkpoint is called for, whose end kicks.
// Preconditions: mu is held.
func (j *journal) take() (took bool, err error) {
	if j.writing || len(j.queue) == 0 {
		return false, nil
	}
	h := format.Batch{Drive: j.sb.Drive, FormatID: j.sb.FormatID}
	n := 0
	for n < len(j.queue) && h.Bytes+len(j.queue[n].bytes) <= format.MaxBatchBytes {
		h.Bytes += len(j.queue[n].bytes)
		h.Records += j.queue[n].records
		n++
	}
	h.Blocks = format.BatchBlocks(h.Bytes)
	pos, ok := j.room(h.Blocks)
	if !ok || j.isDue() {
		select {
		case j.full <- struct{}{}:
		default:
		}
	}
	if j.waiting = !ok && j.trimErr == nil; j.waiting {
		return false, nil
	}
	j.writing = true
	j.batch = append(j.batch[:0], j.queue[:n]...)
	left := copy(j.queue, j.queue[n:])
	clear(j.queue[left:])
	j.queue = j.queue[:left]
	if !ok {
		err = wire.E("drive.journal", wire.KindIO, "", j.trimErr)
		j.trimErr = nil
		return true, err
	}
	h.Seq, h.Nonce, h.Prev, h.LowWater = j.next, j.nonce, j.prev, j.low
	j.head, j.pos = h, pos
	return true, nil
}

// begin writes the batch that was taken.
func (j *journal) begin() {
	at := format.BatchHeaderBytes
	for _, t := range j.batch {
		at += copy(j.buf[at:], t.bytes)
	}
	copies.Add(copies.Meta, at)
	copies.Add(copies.Submitted, j.head.Blocks*format.BlockSize)
	j.head.Encode(j.buf)
	j.write.io.P = j.buf[:j.head.Blocks*format.BlockSize]
	j.write.io.Off = j.sb.JournalOff + int64(j.pos)*format.BlockSize
	j.write.start(j.flusher, len(j.batch) == 1 && j.batch[0].alone)
}

// written is the end of a batch's write. A batch that failed is not in the journal: the next one takes its number
// and place. If it reached the device after all and the next one does not, replay finds it: its puts are checked
// against their data, which may have been overwritten, and the rest may have had an effect, as its error said.
func (j *journal) written(durable bool, err error) {
	if err == nil {
		j.advance(&j.head, j.pos, len(j.batch))
	}
	seq := j.head.Seq // before release: from then on the head may be the next one's
	batch := j.release()
	for _, t := range batch {
		t.seq = seq
	}
	j.kick() // the next one, before anybody is told of this one
	j.tell(batch, durable, err)
	j.flusher.dev.Kick()
}

// release lets the next batch begin, and gives the tickets of the one that was under way, for tell.
func (j *journal) release() []*ticket {
	j.mu.Lock()
	defer j.mu.Unlock()
	batch := j.batch
	j.batch, j.spare = j.spare[:0], nil
	j.writing = false
	return batch
}

// tell tells tickets how it went.
func (j *journal) tell(batch []*ticket, durable bool, err error) {
	for _, t := range batch {
		t.err, t.durable = err, durable
		t.ended() // from here on it is another's
	}
	clear(batch)
	j.mu.Lock()
	defer j.mu.Unlock()
	j.spare = batch
}

// room finds where n blocks fit: at the head, or at the start of the ring. One block stays free between head and tail.
func (j *journal) room(n int) (int, bool) {
	ring := j.sb.JournalBlocks()
	if j.live.len() == 0 {
		if j.at+n <= ring {
			return j.at, true
		}
		return 0, true
	}
	tail := j.live.at(0).pos
	switch {
	case j.at > tail && j.at+n <= ring:
		return j.at, true
	case j.at > tail:
		return 0, n < tail
	}
	return j.at, j.at+n < tail
}

// usedBlocks gives the blocks from the tail to the head.
func (j *journal) usedBlocks() int {
	if j.live.len() == 0 {
		return 0
	}
	used := j.at - j.live.at(0).pos
	if used < 0 {
		used += j.sb.JournalBlocks()
	}
	return used
}

// isDue says that a checkpoint should be taken: the ring is half full. Preconditions: mu is held.
func (j *journal) isDue() bool { return j.usedBlocks() > j.sb.JournalBlocks()/2 }

// due says whether a checkpoint would help, when one is asked for.
func (j *journal) due() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.waiting || j.isDue()
}

// isWaiting says that a batch waits for a checkpoint to make room.
func (j *journal) isWaiting() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.waiting
}

// advance notes a batch that was written.
func (j *journal) advance(h *format.Batch, pos, outstanding int) {
	j.bytes.Add(uint64(h.Blocks) * format.BlockSize)
	j.count.Add(1)
	j.mu.Lock()
	defer j.mu.Unlock()
	j.live.push(batchInfo{sum: h.Sum, pos: pos, blocks: h.Blocks, outstanding: outstanding})
	j.next, j.prev, j.at = h.Seq+1, h.Sum, pos+h.Blocks
}

// startCheckpoint tells where the replay after a checkpoint that begins now has to start.
func (j *journal) startCheckpoint() (seq uint64, block int, prev uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	first := j.next - uint64(j.live.len())
	seq, block, prev = j.low+1, j.at, j.prev
	if seq < j.next {
		block = j.live.at(int(seq - first)).pos
		prev = j.base
		if seq > first {
			prev = j.live.at(int(seq - first - 1)).sum
		}
	}
	return seq, block, prev
}

// trim forgets the batches before seq, which a durable checkpoint covers. A batch that has waited for room begins with the next kick.
func (j *journal) trim(seq uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	first := j.next - uint64(j.live.len())
	if n := int(seq - first); n > 0 {
		j.base = j.live.at(n - 1).sum
		j.live.drop(n)
	}
	j.trimErr = nil
}

// trimFailed tells who waits for room that none will come: with the next kick.
func (j *journal) trimFailed(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.trimErr = err
}

// dirty says that there are batches that no checkpoint covers.
func (j *journal) dirty() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.live.len() > 0
}
