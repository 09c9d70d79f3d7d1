package rpc

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crakefs/crake/wire"
)

// idBook notes which requests of one connection a side was given.
type idBook struct {
	mu    sync.Mutex
	seen  map[uint64]bool
	twice []uint64
}

func (b *idBook) note(id uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.seen[id] {
		b.twice = append(b.twice, id)
	}
	b.seen[id] = true
}

// Claim: a million small requests (over a socket; fewer elsewhere) from many callers, some cancelled at random moments, all end, each worked on
// at most once and answered with its own answer, and nothing stays on either side's books; by handlers, and by Start.
func TestMany(t *testing.T) {
	for _, how := range []string{"handler", "taken"} {
		t.Run(how, func(t *testing.T) {
			eachTransport(t, func(t *testing.T, w *world) {
				total := 100_000
				switch {
				case raceEnabled || testing.Short():
					total = 10_000
				case t.Name() == "TestMany/taken/unix":
					total = 1_000_000
				}
				book := &idBook{seen: map[uint64]bool{}}
				k := &taker{how: "mixed"}
				w.server.Handler = func(ctx context.Context, r *Request) (wire.Message, wire.Data, error) {
					book.note(r.Header.ID)
					return echo(ctx, r)
				}
				if how == "taken" {
					w.server.Start, w.server.Kick = func(ctx context.Context, r *Request) bool {
						id := r.Header.ID
						if !k.start(ctx, r) {
							return false // the handler notes it
						}
						book.note(id)
						return true
					}, k.kick
				}
				w.serve()
				c := w.dial()
				answered, cancelled := w.askMany(c, total)
				w.booksEmpty(c)
				book.mu.Lock()
				defer book.mu.Unlock()
				c.mu.Lock()
				ids := c.nextID
				c.mu.Unlock()
				if len(book.twice) > 0 || len(book.seen) < answered || uint64(len(book.seen)) > ids || answered+cancelled != total {
					t.Errorf("%d answered, %d cancelled of %d; %d ids were given out, %d arrived, %v twice", answered, cancelled, total, ids, len(book.seen), book.twice)
				}
				for id := range book.seen {
					if id == 0 || id > ids {
						t.Fatalf("request %d was never asked", id)
					}
				}
			})
		})
	}
}

// askMany asks mEcho from many callers, each for a number of its own, and cancels one in 50 at a random moment.
func (w *world) askMany(c *Conn, total int) (answered, cancelled int) {
	const callers = 64
	var done, given atomic.Int64
	var wg sync.WaitGroup
	for g := range callers {
		wg.Go(func() {
			for i := g; i < total; i += callers {
				ctx, cancel := context.Background(), context.CancelFunc(func() {})
				if i/callers%50 == 0 {
					ctx, cancel = context.WithCancel(ctx)
					time.AfterFunc(time.Duration(i%7)*20*time.Microsecond, cancel)
				}
				var resp wire.AppendResp
				want := uint64(g)<<32 | uint64(i)
				err := c.Do(ctx, &Call{Method: mEcho, Req: &wire.AppendResp{Len: want}, Resp: &resp})
				cancel()
				switch {
				case errors.Is(err, wire.KindInterrupted):
					given.Add(1)
				case err != nil || resp.Len != want:
					w.t.Error(resp.Len, want, err)
					return
				default:
					done.Add(1)
				}
			}
		})
	}
	wg.Wait()
	return int(done.Load()), int(given.Load())
}
