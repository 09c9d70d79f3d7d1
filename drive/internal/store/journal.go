package store

import (
	"sync"
	"sync/atomic"

	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/copies"
)

// journal is the index journal: a ring of batches. Operations submit records and wait; one goroutine (run) writes all
// that wait as one batch. A batch says up to which one all operations are finished (its low water), so that replay
// need only distrust the puts of the batches after.
type journal struct {
	dev     blockio.Device
	sb      *format.Superblock
	flusher *flusher

	buf   []byte        // aligned; the batch that is being written; owned by run
	wake  chan struct{} // something was submitted
	full  chan struct{} // the ring is half full: a checkpoint is due
	bytes atomic.Uint64 // written, for the counters
	count atomic.Uint64 // batches

	mu      sync.Mutex
	queue   []*ticket // submitted, in order
	closing bool
	space   *sync.Cond // on mu: the ring was trimmed, or trimErr set
	waiting bool       // a batch waits for room
	trimErr error      // why the last checkpoint failed; handed to who waits for room
	nonce   uint64
	next    uint64      // number of the next batch
	head    int         // block of the ring where it goes, if it fits
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

// ticket is one group of records that becomes durable together.
type ticket struct {
	bytes   []byte
	records int
	alone   bool // who submitted it was alone: a batch of it alone is made durable at once
	done    chan struct{}
	seq     uint64 // valid after done, if err is nil
	err     error  // valid after done
	durable bool   // valid after done: no flush is needed
}

// wait waits until the records are written (not flushed).
func (t *ticket) wait() error {
	<-t.done
	return t.err
}

func newJournal(dev blockio.Device, sb *format.Superblock) *journal {
	j := &journal{
		dev: dev, sb: sb, buf: blockio.AlignedBytes(format.MaxBatchBlocks * format.BlockSize),
		wake: make(chan struct{}, 1), full: make(chan struct{}, 1),
	}
	j.space = sync.NewCond(&j.mu)
	return j
}

// submit queues records; it never blocks. The order of submits is the order of replay. Whoever submits calls finish
// once he is done, if the wait brought no error.
// Preconditions: the records take at most format.MaxBatchBytes.
func (j *journal) submit(recs ...format.Record) *ticket { return j.submitAs(false, recs) }

// submitOne is submit of one record, which, if the operation is alone, is made durable with its write. Not otherwise: it would
// be acknowledged while the batch before it, which continues the chain, can still be lost.
// Preconditions: o.alone is what isAlone says, and Store.mu has been held since.
func (j *journal) submitOne(o *op, rec format.Record) *ticket {
	return j.submitAs(o.alone, []format.Record{rec})
}

func (j *journal) submitAs(alone bool, recs []format.Record) *ticket {
	t := &ticket{records: len(recs), alone: alone, done: make(chan struct{})}
	size := 0
	for i := range recs {
		size += recs[i].Bytes()
	}
	if size > format.MaxBatchBytes {
		panic("drive: a group of records that fits no batch")
	}
	t.bytes = make([]byte, 0, size)
	for i := range recs {
		t.bytes = recs[i].Append(t.bytes)
	}
	j.mu.Lock()
	j.queue = append(j.queue, t)
	j.mu.Unlock()
	select {
	case j.wake <- struct{}{}:
	default:
	}
	return t
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

// run writes batches until close was called and the queue is empty.
func (j *journal) run() {
	for range j.wake {
		for {
			tickets, closing := j.cut()
			if len(tickets) == 0 {
				if closing {
					return
				}
				break
			}
			j.write(tickets)
		}
	}
}

// close makes run end once all that was submitted is written.
func (j *journal) close() {
	j.mu.Lock()
	j.closing = true
	j.mu.Unlock()
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// cut takes the tickets of the next batch from the queue: as many as fit.
func (j *journal) cut() (tickets []*ticket, closing bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	size, n := 0, 0
	for n < len(j.queue) && size+len(j.queue[n].bytes) <= format.MaxBatchBytes {
		size += len(j.queue[n].bytes)
		n++
	}
	tickets = j.queue[:n:n]
	j.queue = j.queue[n:]
	return tickets, j.closing
}

// write writes one batch and tells its tickets. A batch that fails is not in the journal: the next one takes its number
// and place. If it reached the device after all and the next one does not, replay finds it: its puts are checked
// against their data, which may have been overwritten, and the rest may have had an effect, as its error said.
func (j *journal) write(tickets []*ticket) {
	h := format.Batch{Drive: j.sb.Drive, FormatID: j.sb.FormatID}
	at := format.BatchHeaderBytes
	for _, t := range tickets {
		at += copy(j.buf[at:], t.bytes)
		h.Records += t.records
	}
	copies.Add(copies.Meta, at)
	h.Bytes = at - format.BatchHeaderBytes
	h.Blocks = format.BatchBlocks(h.Bytes)
	pos, err := j.place(&h)
	durable := false
	if err == nil {
		h.Encode(j.buf)
		copies.Add(copies.Submitted, h.Blocks*format.BlockSize)
		alone := len(tickets) == 1 && tickets[0].alone
		durable, err = j.flusher.write(j.buf[:h.Blocks*format.BlockSize], j.sb.JournalOff+int64(pos)*format.BlockSize, alone)
	}
	if err == nil {
		j.advance(&h, pos, len(tickets))
	}
	for _, t := range tickets {
		t.seq, t.err, t.durable = h.Seq, err, durable
		close(t.done)
	}
}

// place finds room for a batch, waiting for a checkpoint if need be, and fills in its number.
func (j *journal) place(h *format.Batch) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for {
		pos, ok := j.room(h.Blocks)
		if !ok || j.isDue() {
			select {
			case j.full <- struct{}{}:
			default:
			}
		}
		if ok {
			h.Seq, h.Nonce, h.Prev, h.LowWater = j.next, j.nonce, j.prev, j.low
			return pos, nil
		}
		if err := j.trimErr; err != nil {
			j.trimErr = nil
			return 0, wire.E("drive.journal", wire.KindIO, "", err)
		}
		j.waiting = true
		j.space.Wait()
		j.waiting = false
	}
}

// room finds where n blocks fit: at the head, or at the start of the ring. One block stays free between head and tail.
func (j *journal) room(n int) (int, bool) {
	ring := j.sb.JournalBlocks()
	if j.live.len() == 0 {
		if j.head+n <= ring {
			return j.head, true
		}
		return 0, true
	}
	tail := j.live.at(0).pos
	switch {
	case j.head > tail && j.head+n <= ring:
		return j.head, true
	case j.head > tail:
		return 0, n < tail
	}
	return j.head, j.head+n < tail
}

// usedBlocks gives the blocks from the tail to the head.
func (j *journal) usedBlocks() int {
	if j.live.len() == 0 {
		return 0
	}
	used := j.head - j.live.at(0).pos
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
	j.next, j.prev, j.head = h.Seq+1, h.Sum, pos+h.Blocks
}

// startCheckpoint tells where the replay after a checkpoint that begins now has to start.
func (j *journal) startCheckpoint() (seq uint64, block int, prev uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	first := j.next - uint64(j.live.len())
	seq, block, prev = j.low+1, j.head, j.prev
	if seq < j.next {
		block = j.live.at(int(seq - first)).pos
		prev = j.base
		if seq > first {
			prev = j.live.at(int(seq - first - 1)).sum
		}
	}
	return seq, block, prev
}

// trim forgets the batches before seq, which a durable checkpoint covers.
func (j *journal) trim(seq uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	first := j.next - uint64(j.live.len())
	if n := int(seq - first); n > 0 {
		j.base = j.live.at(n - 1).sum
		j.live.drop(n)
	}
	j.trimErr = nil
	j.space.Broadcast()
}

// trimFailed tells who waits for room that none will come.
func (j *journal) trimFailed(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.trimErr = err
	j.space.Broadcast()
}

// dirty says that there are batches that no checkpoint covers.
func (j *journal) dirty() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.live.len() > 0
}
