//go:build crake_copies

package copies

import (
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
)

// On says that this binary counts.
const On = true

var counters [placeCount]atomic.Int64

// Add counts n bytes at a place.
func Add(p Place, n int) { counters[p].Add(int64(n)) }

// Count gives what was counted at a place since the process began.
func Count(p Place) int64 { return counters[p].Load() }

// Watch writes the counters to the log whenever the process gets SIGUSR1; stop ends that.
func Watch(log *slog.Logger) (stop func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1)
	var wg sync.WaitGroup
	wg.Go(func() {
		for range signals {
			args := make([]any, 0, 2*placeCount)
			for _, p := range Places() {
				args = append(args, p.String(), Count(p))
			}
			log.Info(Message, args...)
		}
	})
	return func() {
		signal.Stop(signals)
		close(signals)
		wg.Wait()
	}
}
