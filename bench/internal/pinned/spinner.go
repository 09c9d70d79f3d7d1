package pinned

import (
	"context"

	"github.com/crakefs/crake/wire/spin"
)

// Spinner starts a spinner for this process, which has its core to itself, where one is wanted; else it gives nil. end waits until it has ended
// with ctx.
func Spinner(ctx context.Context, wanted bool) (s *spin.Spinner, end func() error) {
	if !wanted {
		return nil, func() error { return nil }
	}
	s = spin.New()
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	return s, func() error { return <-done }
}
