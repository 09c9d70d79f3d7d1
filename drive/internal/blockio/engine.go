package blockio

import (
	"errors"
	"log/slog"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/drive/internal/uring"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/spin"
)

// Choice says by which engine a process does the IO of its devices.
type Choice string

// The choices.
const (
	// ChooseAuto, also the empty string: io_uring where it can be had and gains; Info().EngineReason says why not.
	ChooseAuto Choice = "auto"
	// ChooseIOUring: io_uring or an error.
	ChooseIOUring Choice = "io_uring"
	// ChoosePread: pread and pwrite.
	ChoosePread Choice = "pread"
)

// Validate says whether c is one of the choices. Errors: KindInvalid.
func (c Choice) Validate() error {
	switch c {
	case "", ChooseAuto, ChooseIOUring, ChoosePread:
		return nil
	}
	return wire.Errorf("device.engine", wire.KindInvalid, string(c), "no such IO engine; there are %s, %s and %s", ChooseAuto, ChooseIOUring, ChoosePread)
}

// Names of engines, in Info.Engine.
const (
	engineRing  = "io_uring"
	enginePread = "pread/pwrite"
)

// EngineConfig configures an Engine.
type EngineConfig struct {
	Choice Choice
	Arena  *wire.Arena   // where most IO lands; must outlive the engine. nil: none
	Spin   *spin.Spinner // is told of completions; nil: nobody
	Log    *slog.Logger  // nil: slog.Default()

	// For tests and measurements.
	setup     uring.Setup     // nil: the kernel's
	broken    func(err error) // nil: panic
	interrupt bool            // completions interrupt the thread that submitted
}

// Engine does the IO of the devices of a process, those that use io_uring by one ring. Its methods are safe for concurrent use.
type Engine struct {
	// Immutable.
	cfg    EngineConfig
	ring   *ring  // nil: none
	noRing string // why there is none; empty: pread was asked for
}

// NewEngine makes an engine and starts its goroutines; Close ends them. Errors: KindInvalid (no such choice), KindNotSupported
// (io_uring was asked for and cannot be had).
func NewEngine(cfg EngineConfig) (*Engine, error) {
	if err := cfg.Choice.Validate(); err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	e := &Engine{cfg: cfg}
	if cfg.Choice == ChoosePread {
		return e, nil
	}
	var err error
	if e.ring, err = newRing(cfg); err != nil {
		e.noRing = whyNoRing(err)
		if cfg.Choice == ChooseIOUring {
			return nil, wire.Errorf("device.engine", wire.KindNotSupported, "", "io_uring was asked for: %s: %w", e.noRing, err)
		}
	}
	return e, nil
}

// whyNoRing says in the words of an operator why there is no ring.
func whyNoRing(err error) string {
	switch {
	case errors.Is(err, unix.ENOSYS):
		return "the kernel has no io_uring, or too old a one (5.13 has all that is needed)"
	case errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES):
		return "the system forbids io_uring (sysctl kernel.io_uring_disabled, or a seccomp profile)"
	case errors.Is(err, unix.ENOMEM):
		return "no memory for a ring (before Linux 5.12: a limit of locked memory)"
	}
	return err.Error()
}

// Open opens a regular file or a block device for this process alone, with O_DIRECT where the filesystem allows it. The device is
// an Async one if its Info().Engine is "io_uring". Errors: KindNotFound, KindRefused (another process has it open, or it is neither
// file nor block device), KindOverLimit (too many devices), KindIO.
//
// A process that was killed may leave IO under way, which the kernel lets end after the process is gone, and only then the locks on
// its devices: so who opens next never meets writes of the one before. Open waits a little for that.
func (e *Engine) Open(path string) (Device, error) {
	f, err := openFile(path, busyWait)
	if err != nil {
		return nil, err
	}
	if why := e.whyPread(f); why != nil {
		f.info.Engine, f.info.EngineReason = enginePread, *why
		return &preadDevice{file: f}, nil
	}
	f.info.Engine = engineRing
	f.info.Fast = false // an IO of the ring is never a mere copy, even to memory
	d, err := newRingDevice(e.ring, f)
	if err != nil {
		return nil, errors.Join(err, f.close())
	}
	return d, nil
}

// whyPread tells why a device is not one for the ring; nil: it is.
//
// Memory-backed files have no non-blocking IO, so the kernel gives each request on them to a worker thread. Measured on tmpfs with
// 4 KiB: 950,000 a second by pread; by io_uring 170,000 at depth 1 and 425,000 at 32. Files of FUSE and its like: see uring.Ring.Submit. Who
// asks for io_uring by name gets it for both.
func (e *Engine) whyPread(f *file) *string {
	why := e.noRing
	if e.ring != nil {
		switch {
		case e.cfg.Choice == ChooseIOUring:
			return nil
		case f.info.Fast:
			why = "the file is in memory, where io_uring is slower"
		case f.inCall:
			why = "its filesystem may do IO inside of the call that submits it, so a device that hangs would hold up the process"
		default:
			return nil
		}
	}
	return &why
}

// Close ends the engine. Errors: KindInvalid: a device is still open.
func (e *Engine) Close() error {
	if e.ring == nil {
		return nil
	}
	return e.ring.close()
}

// OpenFile opens a device with pread and pwrite: for tools, and for what reads little. Errors as Engine.Open.
func OpenFile(path string) (Device, error) {
	e := Engine{cfg: EngineConfig{Choice: ChoosePread}}
	return e.Open(path)
}
