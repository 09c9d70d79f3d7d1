package route

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/crakefs/crake/wire/rpc"
)

// Listener accepts connections at all addresses of a process.
type Listener struct {
	all []*rpc.Listener
}

// Listen begins to listen at each address. Of o the caller sets what it does with requests (Handler, Start, Kick, MaxHandlers); who we
// are and how we speak is the Router's. On an error nothing listens.
func (r *Router) Listen(addrs []string, o rpc.Options) (*Listener, error) {
	own := r.options()
	own.Handler, own.Start, own.Kick, own.MaxHandlers = o.Handler, o.Start, o.Kick, o.MaxHandlers
	l := &Listener{}
	for _, a := range addrs {
		one, err := rpc.Listen(a, own)
		if err != nil {
			return nil, errors.Join(err, l.Close())
		}
		l.all = append(l.all, one)
	}
	r.mu.Lock()
	r.listeners = append(r.listeners, l.all...)
	r.mu.Unlock()
	return l, nil
}

// Addrs gives the addresses, in the order in which they were asked for, with real ports.
func (l *Listener) Addrs() []string {
	out := make([]string, len(l.all))
	for i, one := range l.all {
		out[i] = one.Addr()
	}
	return out
}

// Serve accepts and answers at all addresses until ctx ends (nil) or one of them fails; then all end. It returns when all handlers have.
func (l *Listener) Serve(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	errs := make([]error, len(l.all))
	var wg sync.WaitGroup
	for i, one := range l.all {
		wg.Go(func() {
			errs[i] = one.Serve(ctx)
			stop()
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Close ends a listener that is not served.
func (l *Listener) Close() error {
	var errs []error
	for _, one := range l.all {
		errs = append(errs, one.Close())
	}
	return errors.Join(errs...)
}

// Conns gives the connections of this process that are up, those that it made and those that it was asked for.
func (r *Router) Conns() []*rpc.Conn {
	r.mu.Lock()
	listeners := slices.Clone(r.listeners)
	r.mu.Unlock()
	out := r.pool.Conns()
	for _, l := range listeners {
		out = append(out, l.Conns()...)
	}
	return out
}
