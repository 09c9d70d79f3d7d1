package blockio

import (
	"errors"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/wire"
)

// Durable is a Device that can make one write durable by itself: as O_DSYNC does, but for each write. One that is alone is so
// cheaper than a write and then a Flush: one request instead of two, and where the device can write through its cache no flush of it.
// Measured on a virtio disk by fio with io_uring, 4 KiB, depth 1: 85 us and 16 us of processor time, instead of 117 and 22.
type Durable interface {
	Device
	// WriteDurable is WriteAt that is durable when it has returned. Nothing is said of earlier writes. After an error the write
	// may be there or not, and it may be a flush that has failed.
	WriteDurable(p []byte, off int64) error
}

var (
	_ Durable = (*ringDevice)(nil)
	_ Durable = (*preadDevice)(nil)
	_ Durable = (*CrashDevice)(nil)
	_ Durable = (*FaultDevice)(nil)
)

// WriteDurable implements Durable.
func (d *preadDevice) WriteDurable(p []byte, off int64) error {
	if err := checkRange("device.write", d.info.Path, off, len(p), d.size); err != nil {
		return err
	}
	if !isAligned(p) || !d.info.NeedsFlush {
		return errors.Join(d.WriteAt(p, off), d.Flush())
	}
	return d.write(p, off, unix.RWF_DSYNC)
}

// WriteDurable implements Durable: of all that is not durable, this write alone becomes so.
func (d *CrashDevice) WriteDurable(p []byte, off int64) error {
	if err := d.WriteAt(p, off); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.crashed { // meanwhile, so it may have been lost
		return errCrashed
	}
	copy(d.durable[off:], p)
	end := off + int64(len(p))
	// Older writes to the same place are below it and cannot come up again; of itself nothing is left to be lost.
	d.pending = slices.DeleteFunc(d.pending, func(w *pendingWrite) bool { return w.off >= off && w.off+int64(len(w.data)) <= end })
	for _, w := range d.pending {
		from, to := max(off, w.off), min(end, w.off+int64(len(w.data)))
		if from < to {
			w.data = slices.Clone(w.data) // Survive shares it
			copy(w.data[from-w.off:to-w.off], p[from-off:])
		}
	}
	return nil
}

// WriteDurable implements Durable: it counts, and fails, as a write and a flush. BeforeIO is called for both, with the write's place.
func (d *FaultDevice) WriteDurable(p []byte, off int64) error {
	if err := d.admit(off, len(p)); err != nil {
		return err
	}
	if err := d.beforeFlush(off, len(p)); err != nil {
		return err
	}
	if b, ok := d.Device.(Durable); ok {
		return b.WriteDurable(p, off)
	}
	return errors.Join(d.Device.WriteAt(p, off), d.Device.Flush())
}

// beforeFlush counts a flush and says whether it fails.
func (d *FaultDevice) beforeFlush(off int64, n int) error {
	d.before("flush", off, n)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.flushCount++
	if d.flushErr != nil {
		return wire.E("device.flush", wire.KindIO, "faulty", d.flushErr)
	}
	return nil
}
