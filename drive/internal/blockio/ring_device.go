package blockio

import (
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/copies"
)

// ringDevice is a file or block device whose IO a ring does. The synchronous methods start an IO and wait for it.
type ringDevice struct {
	*file       // immutable
	g     *ring // immutable
	place int32 // in the table of registered files; immutable

	busy    atomic.Int64  // IOs started whose Done has not returned
	closing atomic.Bool   // set under g.mu
	idle    chan struct{} // capacity 1: busy became 0 while closing
}

var _ Async = (*ringDevice)(nil)

// newRingDevice takes f over.
func newRingDevice(g *ring, f *file) (*ringDevice, error) {
	g.mu.Lock()
	place := -1
	for i, taken := range g.files {
		if !taken {
			place = i
			g.files[i] = true
			break
		}
	}
	g.mu.Unlock()
	if place < 0 {
		return nil, wire.Errorf("device.open", wire.KindOverLimit, f.info.Path, "more than %d devices in one process", maxDevices)
	}
	if err := g.r.UpdateFile(place, f.fd); err != nil {
		g.freePlace(place)
		return nil, wire.E("device.open", wire.KindIO, f.info.Path, err)
	}
	return &ringDevice{file: f, g: g, place: int32(place), idle: make(chan struct{}, 1)}, nil
}

func (g *ring) freePlace(i int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.files[i] = false
}

// Size implements Device.
func (d *ringDevice) Size() int64 { return d.size }

// Info implements Device.
func (d *ringDevice) Info() Info { return d.info }

// Start implements Async.
func (d *ringDevice) Start(io *IO) {
	io.prepare(d)
	d.g.start(io)
}

// Kick implements Async.
func (d *ringDevice) Kick() { d.g.kick() }

// Close implements Device. It refuses what comes from now on and waits for the IOs under way. The lock is dropped explicitly: the ring
// may hold the file a little longer than we do.
func (d *ringDevice) Close() error {
	d.g.mu.Lock()
	d.closing.Store(true)
	d.g.mu.Unlock()
	d.g.kick()
	for d.busy.Load() > 0 {
		<-d.idle
	}
	err := d.g.r.UpdateFile(int(d.place), -1)
	d.g.freePlace(int(d.place))
	if err != nil {
		err = wire.E("device.close", wire.KindIO, d.info.Path, err)
	}
	_ = unix.Flock(d.fd, unix.LOCK_UN)
	if cerr := d.close(); cerr != nil {
		return cerr
	}
	return err
}

// Discard implements Device; it has the engine's own thread for it.
func (d *ringDevice) Discard(off, n int64) error {
	done := make(chan error, 1)
	d.g.block <- func() { done <- d.discard(off, n) }
	return <-done
}

// ReadAt implements Device.
func (d *ringDevice) ReadAt(p []byte, off int64) error {
	if isAligned(p) {
		return d.do(IO{P: p, Off: off})
	}
	b := AlignedBytes(len(p)) // rare: data lives in aligned Bufs
	if err := d.do(IO{P: b, Off: off}); err != nil {
		return err
	}
	copies.Add(copies.Gather, copy(p, b))
	return nil
}

// WriteAt implements Device.
func (d *ringDevice) WriteAt(p []byte, off int64) error {
	return d.do(IO{Write: true, P: p, Off: off})
}

// WriteVecAt implements Device.
func (d *ringDevice) WriteVecAt(parts [][]byte, off int64) error {
	return d.do(IO{Write: true, Vec: parts, Off: off})
}

// WriteDurable implements Durable.
func (d *ringDevice) WriteDurable(p []byte, off int64) error {
	return d.do(IO{Write: true, Durable: true, P: p, Off: off})
}

// Flush implements Device.
func (d *ringDevice) Flush() error {
	if !d.info.NeedsFlush {
		return nil
	}
	return d.do(IO{Flush: true})
}

// do does an IO of which the first fields are set, and waits for it.
func (d *ringDevice) do(io IO) error {
	w := d.g.waiter()
	io.Done = w.io.Done
	w.io = io
	w.io.prepare(d)
	return d.g.wait(w)
}
