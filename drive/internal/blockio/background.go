package blockio

import "sync"

// background makes an Async device of one whose methods block: goroutines do its IO.
type background struct {
	Device // immutable

	mu     sync.Mutex
	queued []*IO // started, not kicked
}

// Background gives dev itself, if it is an Async device. Else it gives one that does what was started by goroutines: one for each IO, or,
// where an IO is a copy in memory, one for all that a Kick begins, one after the other. How many there are is bounded by who starts IO.
// Its other methods, Close too, are those of dev: no IO may be under way at Close.
func Background(dev Device) Async {
	if a, ok := dev.(Async); ok {
		return a
	}
	return &background{Device: dev}
}

// Start implements Async.
func (d *background) Start(io *IO) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.queued = append(d.queued, io)
}

// Kick implements Async.
func (d *background) Kick() {
	d.mu.Lock()
	queued := d.queued
	d.queued = nil
	d.mu.Unlock()
	if len(queued) == 0 {
		return
	}
	if d.Info().Fast {
		go d.do(queued)
		return
	}
	for i := range queued {
		go d.do(queued[i : i+1])
	}
}

func (d *background) do(ios []*IO) {
	for _, io := range ios {
		io.Done(io, Do(d.Device, io))
	}
}

// Do does an IO by the methods of dev that block, and does not call Done. A durable write is plain where dev has no other.
func Do(dev Device, io *IO) error {
	switch {
	case io.Flush:
		return dev.Flush()
	case !io.Write:
		return dev.ReadAt(io.P, io.Off)
	case io.Vec != nil:
		return dev.WriteVecAt(io.Vec, io.Off)
	}
	if d, ok := dev.(Durable); ok && io.Durable {
		return d.WriteDurable(io.P, io.Off)
	}
	return dev.WriteAt(io.P, io.Off)
}
