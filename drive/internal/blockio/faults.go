package blockio

import (
	"sync"
	"time"

	"github.com/crakefs/crake/wire"
)

// FaultDevice decorates a device with what goes wrong in the field. For tests. The setters may be called at any time. It is never an
// Async device, also over one: whoever wants both puts the asynchrony on top.
type FaultDevice struct {
	Device

	mu         sync.Mutex
	readErr    func(off int64, n int) error
	writeErr   func(off int64, n int) error
	flushErr   error
	discardErr error
	delay      time.Duration
	rot        map[int64]byte // offset of a byte -> bits that flip when it is read
	bytesLeft  int64          // -1: unlimited
	beforeIO   func(op string, off int64, n int)
	flushCount int
	readCount  int
	writeCount int
}

// NewFaultDevice decorates d; at first it does nothing.
func NewFaultDevice(d Device) *FaultDevice {
	return &FaultDevice{Device: d, rot: map[int64]byte{}, bytesLeft: -1}
}

// FailReads makes a read fail when f gives an error for it; nil ends that.
func (d *FaultDevice) FailReads(f func(off int64, n int) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.readErr = f
}

// FailWrites makes a write fail, unwritten, when f gives an error for it; nil ends that.
func (d *FaultDevice) FailWrites(f func(off int64, n int) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.writeErr = f
}

// FailFlushes makes every flush fail with err; nil ends that.
func (d *FaultDevice) FailFlushes(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.flushErr = err
}

// FailDiscards makes every discard fail with err; nil ends that.
func (d *FaultDevice) FailDiscards(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.discardErr = err
}

// SetDelay adds latency to every IO.
func (d *FaultDevice) SetDelay(delay time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.delay = delay
}

// Rot makes the byte at off read with these bits flipped.
func (d *FaultDevice) Rot(off int64, bits byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rot[off] = bits
}

// SetBytesLeft makes writes fail with KindNoSpace after so many bytes, as a thin device does; -1 is unlimited.
func (d *FaultDevice) SetBytesLeft(n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.bytesLeft = n
}

// BeforeIO is called before every IO ("read", "write", "flush", "discard"), from its goroutine, with no lock held.
func (d *FaultDevice) BeforeIO(f func(op string, off int64, n int)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.beforeIO = f
}

// Counts gives the reads, writes and flushes so far.
func (d *FaultDevice) Counts() (reads, writes, flushes int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.readCount, d.writeCount, d.flushCount
}

func (d *FaultDevice) before(op string, off int64, n int) {
	d.mu.Lock()
	hook, delay := d.beforeIO, d.delay
	d.mu.Unlock()
	if hook != nil {
		hook(op, off, n)
	}
	if delay > 0 {
		time.Sleep(delay)
	}
}

// ReadAt implements Device.
func (d *FaultDevice) ReadAt(p []byte, off int64) error {
	d.before("read", off, len(p))
	d.mu.Lock()
	d.readCount++
	fail := d.readErr
	d.mu.Unlock()
	if fail != nil {
		if err := fail(off, len(p)); err != nil {
			return wire.E("device.read", wire.KindIO, "faulty", err)
		}
	}
	if err := d.Device.ReadAt(p, off); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for at, bits := range d.rot {
		if at >= off && at < off+int64(len(p)) {
			p[at-off] ^= bits
		}
	}
	return nil
}

func (d *FaultDevice) admit(off int64, n int) error {
	d.before("write", off, n)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.writeCount++
	if d.writeErr != nil {
		if err := d.writeErr(off, n); err != nil {
			return wire.E("device.write", wire.KindIO, "faulty", err)
		}
	}
	if d.bytesLeft >= 0 {
		if int64(n) > d.bytesLeft {
			return wire.E("device.write", wire.KindNoSpace, "faulty", errNoSpace)
		}
		d.bytesLeft -= int64(n)
	}
	return nil
}

// WriteAt implements Device.
func (d *FaultDevice) WriteAt(p []byte, off int64) error {
	if err := d.admit(off, len(p)); err != nil {
		return err
	}
	return d.Device.WriteAt(p, off)
}

// WriteVecAt implements Device.
func (d *FaultDevice) WriteVecAt(parts [][]byte, off int64) error {
	if err := d.admit(off, partsLen(parts)); err != nil {
		return err
	}
	return d.Device.WriteVecAt(parts, off)
}

// Flush implements Device.
func (d *FaultDevice) Flush() error {
	d.before("flush", 0, 0)
	d.mu.Lock()
	d.flushCount++
	err := d.flushErr
	d.mu.Unlock()
	if err != nil {
		return wire.E("device.flush", wire.KindIO, "faulty", err)
	}
	return d.Device.Flush()
}

// Discard implements Device.
func (d *FaultDevice) Discard(off, n int64) error {
	d.before("discard", off, int(n))
	d.mu.Lock()
	err := d.discardErr
	d.mu.Unlock()
	if err != nil {
		return wire.E("device.discard", wire.KindIO, "faulty", err)
	}
	return d.Device.Discard(off, n)
}
