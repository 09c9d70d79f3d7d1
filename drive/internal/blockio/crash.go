package blockio

import (
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/crakefs/crake/wire"
)

// sectorBytes is what a crash tears a write at: a device writes a sector wholly or not at all.
const sectorBytes = 512

// CrashDevice is a device in memory for tests. It knows which writes a flush has made durable; Crash gives the bytes
// that could be found after a power cut: everything durable, and of the rest any subset, torn at sectors, in any order.
//
// With CrashAfter it stops working at a chosen IO, as a killed process or a cut device does.
type CrashDevice struct {
	volatile bool // has a cache: needs flushes

	mu      sync.Mutex
	cur     []byte // what reads see
	durable []byte // what survives for sure
	pending []*pendingWrite
	ios     int // writes and flushes so far
	crashAt int // the IO at which it stops; 0 is never
	crashed bool
	// underWay is the write that was cut by the crash, the last of pending; nil when there is none.
	underWay *pendingWrite
}

// pendingWrite is a write that no flush has covered.
type pendingWrite struct {
	off  int64
	data []byte
}

// NewCrashDevice makes a device with these bytes (taken over). A volatile device needs flushes; of the other kind only
// a write that is under way may be torn.
func NewCrashDevice(image []byte, volatile bool) *CrashDevice {
	return &CrashDevice{volatile: volatile, cur: image, durable: slices.Clone(image)}
}

// CrashAfter makes the n-th write or flush from now, and everything after it, fail. 0 means never.
func (d *CrashDevice) CrashAfter(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.crashAt = 0
	if n > 0 {
		d.crashAt = d.ios + n
	}
}

// IOs counts writes and flushes.
func (d *CrashDevice) IOs() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ios
}

// Crashed says that the device has stopped.
func (d *CrashDevice) Crashed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.crashed
}

// Kill stops the device now.
func (d *CrashDevice) Kill() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.crashed = true
}

// Image gives a copy of what reads see: the state after the process alone was killed.
func (d *CrashDevice) Image() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.cur)
}

// Survive gives the device as it goes on when the process alone was killed: nothing is lost, but what was not flushed can
// still be lost by a later crash. A write that was under way has reached it or not.
func (d *CrashDevice) Survive(rng *rand.Rand) *CrashDevice {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.crashed = true
	n := &CrashDevice{volatile: d.volatile, cur: slices.Clone(d.cur), durable: slices.Clone(d.durable), pending: slices.Clone(d.pending)}
	if w := d.underWay; w != nil {
		if rng.IntN(2) == 0 {
			copy(n.cur[w.off:], w.data)
		} else {
			n.pending = n.pending[:len(n.pending)-1] // the crashing write is the last one
		}
	}
	return n
}

// Crash gives a possible content after a power cut, chosen by rng.
func (d *CrashDevice) Crash(rng *rand.Rand) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	img := slices.Clone(d.durable)
	pending := slices.Clone(d.pending)
	rng.Shuffle(len(pending), func(i, j int) { pending[i], pending[j] = pending[j], pending[i] })
	loseEvery := rng.IntN(4) // 0: lose none but what is torn, to reach deep states too
	for _, w := range pending {
		switch choice := rng.IntN(4); {
		case choice < loseEvery-1: // lost
		case choice == 3: // torn: at sectors, or in pieces so large that some structures in it are whole
			grain := sectorBytes << (3 * rng.IntN(2))
			for s := 0; s < len(w.data); s += grain {
				if rng.IntN(2) == 0 {
					copy(img[w.off+int64(s):], w.data[s:s+grain])
				}
			}
		default:
			copy(img[w.off:], w.data)
		}
	}
	return img
}

var errCrashed = wire.Errorf("device", wire.KindIO, "", "the test device has crashed")

// step counts an IO and reports a crash. Preconditions: mu is held.
func (d *CrashDevice) step() bool {
	d.ios++
	if d.crashAt != 0 && d.ios >= d.crashAt {
		d.crashed = true
	}
	return d.crashed
}

// ReadAt implements Device.
func (d *CrashDevice) ReadAt(p []byte, off int64) error {
	if err := checkRange("device.read", "crash device", off, len(p), d.Size()); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.crashed {
		return errCrashed
	}
	copy(p, d.cur[off:])
	return nil
}

// WriteAt implements Device.
func (d *CrashDevice) WriteAt(p []byte, off int64) error {
	if err := checkRange("device.write", "crash device", off, len(p), d.Size()); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.crashed {
		return errCrashed
	}
	w := &pendingWrite{off: off, data: slices.Clone(p)}
	d.pending = append(d.pending, w)
	if d.step() {
		d.underWay = w
		return errCrashed // it may have reached the device
	}
	copy(d.cur[off:], p)
	if !d.volatile {
		copy(d.durable[off:], p)
		d.pending = d.pending[:len(d.pending)-1]
	}
	return nil
}

// WriteVecAt implements Device.
func (d *CrashDevice) WriteVecAt(parts [][]byte, off int64) error {
	return d.WriteAt(slices.Concat(parts...), off)
}

// Flush implements Device.
func (d *CrashDevice) Flush() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.crashed || d.step() {
		return errCrashed
	}
	for _, w := range d.pending {
		copy(d.durable[w.off:], w.data)
	}
	d.pending = nil
	return nil
}

// Discard implements Device. The bytes become noise: no test passes because it finds zeros, or what was there before. Until a
// flush a crash loses, tears and reorders it as it does writes, so that the old bytes are found again too.
func (d *CrashDevice) Discard(off, n int64) error {
	if err := checkDiscard("crash device", off, n, d.Size()); err != nil {
		return err
	}
	d.mu.Lock()
	seed := uint64(d.ios)
	d.mu.Unlock()
	noise := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(off >> 12)})
	_, _ = rng.Read(noise) // never fails
	return d.WriteAt(noise, off)
}

// Size implements Device.
func (d *CrashDevice) Size() int64 { return int64(len(d.durable)) }

// Info implements Device.
func (d *CrashDevice) Info() Info {
	i := Info{
		Path: "crash device", Engine: "memory", EngineReason: "a test", Flush: flushThrough, NeedsFlush: d.volatile, FUA: true, Direct: true,
		Discard: discardNoise,
	}
	if d.volatile {
		i.Flush = flushSync
	}
	return i
}

// Close implements Device.
func (d *CrashDevice) Close() error { return nil }
