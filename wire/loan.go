package wire

import (
	"sync"
	"sync/atomic"
)

// Loans makes the loans that one connection has from its peer. Safe for concurrent use.
type Loans struct {
	// immutable
	debug    bool
	returned func(id uint64, bytes int)

	mu    sync.Mutex
	spare ring[Loan]
}

// NewLoans makes it. returned is called when all of a loan's data is released, by whoever does that: so it must not block, and take
// leaf locks only. a, the arena of this process, only says whether mistakes are to be found (ArenaDebug).
func NewLoans(a *Arena, returned func(id uint64, bytes int)) *Loans {
	return &Loans{debug: a.debug, returned: returned}
}

// Loan is the data of one frame that lies in memory of another process. Its Bufs are as any others, but read only: writing to them
// is a fault. When all are released, and, of a request, it is answered, it is over.
type Loan struct {
	// immutable while it is out
	of    *Loans
	id    uint64
	bytes int
	bufs  []Buf // their memory is used again with the loan
	data  Data

	left atomic.Int32 // Bufs that are not released, and one for a request that is not answered
}

// Begin starts a loan of this many parts. Preconditions: Add follows for each, then Data, before anything else.
func (p *Loans) Begin(id uint64, parts int, request bool) *Loan {
	p.mu.Lock()
	l := p.spare.get()
	p.mu.Unlock()
	if l == nil {
		l = &Loan{of: p}
	}
	if cap(l.bufs) < parts {
		l.bufs, l.data = make([]Buf, 0, parts), make(Data, 0, parts)
	}
	l.id, l.bytes, l.bufs, l.data = id, 0, l.bufs[:0], l.data[:0]
	left := parts
	if request {
		left++
	}
	l.left.Store(int32(left))
	return l
}

// Add adds n bytes at off of f. Preconditions: they lie within it.
func (l *Loan) Add(f *Foreign, off, n int) {
	f.Retain()
	l.bufs = l.bufs[:len(l.bufs)+1]
	b := &l.bufs[len(l.bufs)-1]
	b.loan, b.foreign, b.b = l, f, f.mem[off:off+n:off+n]
	b.made.Store(false)
	b.refs.Store(1)
	if l.of.debug {
		b.from = callers()
	}
	l.data = append(l.data, Slice{Buf: b, B: b.b})
	l.bytes += n
}

// Data gives the data; whoever has it releases it.
func (l *Loan) Data() Data { return l.data }

// Answered says that the request is answered. true: its data is back already, so the loan is over, and the answer can say so. To be
// called once for the loan of a request.
func (l *Loan) Answered() bool {
	if l.left.Add(-1) > 0 {
		return false
	}
	l.end()
	return true
}

// release notes that one Buf is released.
func (l *Loan) release(b *Buf) {
	if l.of.debug {
		b.freed = callers()
	}
	if l.left.Add(-1) > 0 {
		return
	}
	l.of.returned(l.id, l.bytes)
	l.end()
}

// end lets the memory go. Preconditions: nobody has any of it.
func (l *Loan) end() {
	for i := range l.bufs {
		l.bufs[i].foreign.Release()
	}
	p := l.of
	if p.debug || cap(l.bufs) > maxSpareParts {
		return
	}
	p.mu.Lock()
	p.spare.put(l)
	p.mu.Unlock()
}
