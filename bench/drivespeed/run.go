package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/crakefs/crake/bench/internal/driveload"
	"github.com/crakefs/crake/bench/internal/fio"
	"github.com/crakefs/crake/bench/internal/pinned"
	"github.com/crakefs/crake/wire/spin"
)

// runner is one run of the tool.
type runner struct {
	cfg      *config
	rep      *report
	spin     *spin.Spinner // of this process; nil: it does not spin
	progress io.Writer
}

// run measures everything: first what the wire alone can do, then each device. On each, fio and Crake take turns, job by job; the
// drive process is stopped while fio runs, so that it takes nothing from it. What was measured until an error is in the report.
func run(ctx context.Context, cfg *config, progress io.Writer) (rep *report, err error) {
	r := &runner{cfg: cfg, rep: newReport(cfg), progress: progress}
	sctx, cancel := context.WithCancel(ctx)
	var end func() error
	r.spin, end = pinned.Spinner(sctx, cfg.spin)
	defer func() {
		cancel()
		err = errors.Join(err, end())
	}()
	if err := r.wire(ctx); err != nil {
		return nil, fmt.Errorf("echo: %w", err)
	}
	for _, name := range cfg.devices {
		if err := r.device(ctx, name); err != nil {
			return r.rep, fmt.Errorf("%s: %w", name, err)
		}
	}
	return r.rep, nil
}

func (r *runner) say(format string, args ...any) { fmt.Fprintf(r.progress, format+"\n", args...) }

// wire measures the echo.
func (r *runner) wire(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "crake-drivespeed-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	return r.serve(func() (*server, error) { return r.startEcho(ctx, dir) }, func(s *server) error {
		for i := range r.cfg.runs {
			for _, j := range r.cfg.jobs {
				r.say("wire only, %s (%d of %d)", j.name(), i+1, r.cfg.runs)
				res, err := s.Run(ctx, r.load(j, s))
				if err != nil {
					return err
				}
				r.rep.addWire(j, crakeSample(res))
				if j.depth > 1 {
					continue
				}
				bare, err := driveload.RunBare(ctx, driveload.BarePath(s.addr), j.kind, r.cfg.duration())
				if err != nil {
					return err
				}
				r.rep.addBare(j, sample{PerSecond: bare})
			}
		}
		return nil
	})
}

// serve starts a server, works with it and ends it, in order if all went well.
func (r *runner) serve(start func() (*server, error), work func(*server) error) error {
	s, err := start()
	if err != nil {
		return err
	}
	if err := work(s); err != nil {
		return errors.Join(s.explain(err), s.kill())
	}
	return s.end()
}

// device measures one device.
func (r *runner) device(ctx context.Context, name string) (err error) {
	r.say("%s: writing a device of %d MiB", name, 4*r.cfg.size>>20)
	d, err := newDevice(r.cfg, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	return r.serve(func() (*server, error) { return r.startDrive(ctx, d) }, func(s *server) error {
		st, err := s.Stat(ctx)
		if err != nil {
			return err
		}
		d.engine, d.flushPolicy, d.flush = st.Engine, st.Flush, st.Flush == "fdatasync"
		d.data = (d.half - int64(st.SizeBytes)) &^ (1<<20 - 1) // a drive has its data at the end, and puts strips there in order
		r.rep.addDevice(d)
		r.say("%s: putting %d MiB of strips", name, r.cfg.size>>20)
		if err := s.Prepare(ctx); err != nil {
			return err
		}
		for i := range r.cfg.runs {
			for _, j := range r.cfg.jobs {
				r.say("%s, %s (%d of %d)", name, j.name(), i+1, r.cfg.runs)
				if err := r.turn(ctx, d, s, j); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// turn measures a job once with each.
func (r *runner) turn(ctx context.Context, d *device, s *server, j job) error {
	if err := s.proc.Pause(); err != nil {
		return err
	}
	for _, engine := range d.fioEngines() {
		sample, err := r.fio(ctx, d, j, engine)
		if err != nil {
			return err
		}
		r.rep.addFio(d, j, engine, sample)
	}
	if err := s.proc.Resume(); err != nil {
		return err
	}
	measure := func() error {
		res, err := s.Run(ctx, r.load(j, s))
		if err != nil {
			return err
		}
		r.rep.addCrake(d, j, crakeSample(res))
		strays, err := pinned.Strays(s.proc.PID(), r.cfg.cores.drive)
		r.rep.addStrays(d, strays)
		return err
	}
	if r.cfg.perf {
		return r.profile(ctx, d.name+" "+j.name(), s, measure)
	}
	return measure()
}

func (r *runner) load(j job, s *server) driveload.Job {
	duration := r.cfg.duration()
	return driveload.Job{
		Kind: j.kind, Depth: j.depth, Duration: duration, PID: s.proc.PID(),
		Warmup: min(time.Duration(float64(duration)*warmupShare), maxWarmup),
	}
}

// fioEngines gives the ways in which fio shall try: io_uring; on a tmpfs, whose IO io_uring leaves to kernel threads, also plain system
// calls, which are the faster there. Crake is held against the better one.
func (d *device) fioEngines() []fioEngine {
	if d.name == deviceRAM {
		return []fioEngine{ioUring, psync}
	}
	return []fioEngine{ioUring}
}

// fio measures a job with fio. Of its processor time that of a run with a single IO is subtracted: starting costs as much as 10,000 IOs.
func (r *runner) fio(ctx context.Context, d *device, j job, engine fioEngine) (sample, error) {
	f := j.fioJob(d, engine, r.cfg.duration())
	once := f
	once.MaxIOs = 1
	idle, err := fio.Run(ctx, r.cfg.cores.drive, once)
	if err != nil {
		return sample{}, err
	}
	res, err := fio.Run(ctx, r.cfg.cores.drive, f)
	if err != nil {
		return sample{}, err
	}
	return sample{
		PerSecond: res.IOPS, P50us: micros(res.P50), P99us: micros(res.P99),
		CPUus: max(0, micros(res.CPU-idle.CPU)) / float64(res.IOs), Busy: max(0, res.CPU-idle.CPU).Seconds() / r.cfg.seconds,
	}, nil
}

func crakeSample(res driveload.Result) sample {
	s := sample{
		PerSecond: float64(res.Ops) / res.Elapsed.Seconds(), P50us: micros(res.P50), P99us: micros(res.P99),
		Busy: res.CPU.Seconds() / res.Elapsed.Seconds(), LoadBusy: res.Load.Seconds() / res.Elapsed.Seconds(),
	}
	if res.Ops > 0 {
		s.CPUus = micros(res.CPU) / float64(res.Ops)
	}
	return s
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }
