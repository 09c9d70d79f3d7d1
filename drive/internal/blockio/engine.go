package blockio

import (
	"log/slog"

	"github.com/crakefs/crake/wire"
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
	Arena  *wire.Arena  // where most IO lands; must outlive the engine. nil: none
	Log    *slog.Logger // nil: slog.Default()
}

// Engine does the IO of the devices of a process. Its methods are safe for concurrent use.
type Engine struct {
	// Immutable.
	cfg    EngineConfig
	noRing string // why there is no ring
}

// NewEngine makes an engine; Close ends it. Errors: KindInvalid (no such choice), KindNotSupported (io_uring was asked for and
// cannot be had).
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
	e.noRing = "not built yet"
	if cfg.Choice == ChooseIOUring {
		return nil, wire.Errorf("device.engine", wire.KindNotSupported, "", "io_uring cannot be had: %s", e.noRing)
	}
	return e, nil
}

// Open opens a regular file or a block device for this process alone, with O_DIRECT where the filesystem allows it. The device is
// an Async one if its Info().Engine is "io_uring". Errors: KindNotFound, KindRefused (another process has it open, or it is neither
// file nor block device), KindIO.
func (e *Engine) Open(path string) (Device, error) {
	f, err := openFile(path)
	if err != nil {
		return nil, err
	}
	f.info.Engine, f.info.EngineReason = enginePread, e.noRing
	return &preadDevice{file: f}, nil
}

// Close ends the engine. Preconditions: all its devices are closed.
func (e *Engine) Close() error { return nil }

// OpenFile opens a device with pread and pwrite: for tools, and for what reads little. Errors as Engine.Open.
func OpenFile(path string) (Device, error) {
	e := Engine{cfg: EngineConfig{Choice: ChoosePread}}
	return e.Open(path)
}
