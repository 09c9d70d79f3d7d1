package drive

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/drive/internal/health"
	"github.com/crakefs/crake/drive/internal/index"
	"github.com/crakefs/crake/drive/internal/server"
	"github.com/crakefs/crake/drive/internal/store"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/identity"
	"github.com/crakefs/crake/wire/member"
	"github.com/crakefs/crake/wire/route"
	"github.com/crakefs/crake/wire/rpc"
)

// process is one run of a drive process.
type process struct {
	// Immutable after start.
	cfg    Config
	log    *slog.Logger
	arena  *wire.Arena
	engine *blockio.Engine
	stores []*store.Store
	health []*health.Monitor // of the device of the store of the same index
	router *route.Router     // to mgmt; keeps the map, which tells who is on this server
	addrs  []string          // where we listen
	member *member.Member
}

// Run serves the devices until ctx ends (nil), mgmt says that a newer run of the process exists (KindStaleSession or KindRefused),
// or a device failed such that only a restart helps (KindIO). It returns when everything that it started has ended.
// Errors at the start: KindInvalid (config), what blockio.NewEngine, Engine.Open and store.Open say, and what rpc.Listen says.
func Run(ctx context.Context, cfg Config) (err error) {
	if verr := cfg.Validate(); verr != nil {
		return wire.E("drive.run", wire.KindInvalid, cfg.Name, verr)
	}
	p := &process{cfg: cfg, log: cfg.Log}
	if p.log == nil {
		p.log = slog.Default()
	}
	id, err := identity.LoadIf(cfg.Identity)
	if err != nil {
		return err
	}
	if p.cfg.Arena == 0 {
		p.cfg.Arena = defaultArenaBytes
	}
	if p.arena, err = wire.NewArena(int(p.cfg.Arena)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.arena.Close()) }()
	if p.engine, err = blockio.NewEngine(blockio.EngineConfig{Choice: blockio.Choice(p.cfg.Engine), Arena: p.arena, Log: p.log}); err != nil {
		return err
	}
	p.router = route.New(route.Config{Self: p.self(), Mgmt: p.cfg.Mgmt, Wire: p.cfg.Wire, Identity: id, TLS: p.cfg.Encrypt, Arena: p.arena,
		Net: p.cfg.Net, Log: p.log, Capture: p.cfg.Capture})
	defer p.router.Close()
	p.member = p.newMember()
	defer func() { err = errors.Join(err, p.closeDevices(), p.engine.Close()) }()
	for _, d := range cfg.Devices {
		if err := p.open(d); err != nil {
			p.openFailed(d, err)
			return err
		}
	}
	p.spread()
	debug.FreeOSMemory() // what reading checkpoints and journals took: 16 MiB and more that an idle drive would keep
	return p.serve(ctx)
}

// spread lets other goroutines run while some block in preads and pwrites, where that is how IO is done. The runtime takes a
// processor away from a blocking call only after 20 microseconds to 10 milliseconds, so with the one processor of a pinned
// process, IO would hardly overlap: measured on a disk, 8 Puts of 128 KiB at once took 245 us each with one, 69 us with four. On
// tmpfs, where nothing blocks, it would only cost switches.
func (p *process) spread() {
	for _, s := range p.stores {
		if _, async := s.Device().(blockio.Async); !async && !s.Device().Info().Fast && runtime.GOMAXPROCS(0) < ioProcessors {
			runtime.GOMAXPROCS(ioProcessors)
		}
	}
}

// closeDevices closes the devices of all stores.
func (p *process) closeDevices() error {
	var errs []error
	for _, s := range p.stores {
		errs = append(errs, s.Device().Close())
	}
	return errors.Join(errs...)
}

// open opens and recovers a device.
func (p *process) open(d Device) error {
	dev, err := p.engine.Open(d.Path)
	if err != nil {
		return err
	}
	began := time.Now()
	monitor := health.New(nil)
	s, err := store.Open(dev, store.Config{
		Cluster: p.cfg.Cluster, Drive: d.ID, Arena: p.arena, Log: p.log, VerifyRate: p.cfg.VerifyRate,
		ScrubRate: p.cfg.ScrubRate, NoDiscard: p.cfg.NoDiscard, OnEvent: p.member.Event, Health: monitor,
	})
	if err != nil {
		return errors.Join(err, dev.Close())
	}
	p.stores, p.health = append(p.stores, s), append(p.health, monitor)
	st, info := s.Stat(), dev.Info()
	p.log.Info("drive is open", "drive", d.ID, "path", d.Path, "took", time.Since(began), "strips", st.Strips,
		"freeBytes", st.FreeBytes, "sizeBytes", st.SizeBytes, "engine", info.Engine, "engineReason", info.EngineReason,
		"flush", info.Flush, "direct", info.Direct, "directReason", info.DirectReason, "discard", info.Discard, "discardReason", info.DiscardReason,
		"indexBytesWhenFull", index.MemoryBytesWhenFull(s.Superblock().DataBlocks()))
	return nil
}

// serve listens, registers and answers until ctx ends or something fails.
func (p *process) serve(ctx context.Context) error {
	h := server.New(p.stores)
	l, err := p.router.Listen(p.cfg.Listen, rpc.Options{Handler: h.Handle, Start: h.Start, Kick: h.Kick, MaxHandlers: maxHandlers})
	if err != nil {
		return err
	}
	p.addrs = l.Addrs()

	// The stores end after the server, so that their last checkpoint finds no mutation under way; mgmt hears the goodbye last.
	storeCtx, stopStores := context.WithCancel(context.Background())
	defer stopStores()
	var stores sync.WaitGroup
	storeErrs := make([]error, len(p.stores))
	for i, s := range p.stores {
		stores.Go(func() { storeErrs[i] = s.Run(storeCtx) })
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var tasks sync.WaitGroup
	task := func(f func(context.Context) error) {
		tasks.Go(func() {
			if err := f(ctx); err != nil {
				stop(err)
			}
		})
	}
	task(l.Serve)
	task(p.live)
	task(p.router.Run)
	task(p.member.SendEvents)
	task(p.watchDevices)
	task(p.trim)
	tasks.Wait()
	stopStores()
	stores.Wait()
	p.member.Goodbye(context.Background())
	errs := storeErrs
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		errs = append([]error{cause}, errs...)
	}
	return errors.Join(errs...)
}

// trim gives memory back that a burst has left.
func (p *process) trim(ctx context.Context) error {
	t := time.NewTicker(trimEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			p.arena.Trim()
		case <-ctx.Done():
			return nil
		}
	}
}
