package store

import (
	"context"

	"github.com/crakefs/crake/drive/internal/blockio"
	"github.com/crakefs/crake/drive/internal/format"
	"github.com/crakefs/crake/drive/internal/health"
	"github.com/crakefs/crake/drive/internal/sched"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/copies"
)

// watched tells a monitor of every IO of a goroutine that waits for it; those of an Async device that nobody waits for tell it
// themselves (see piece).
type watched struct {
	blockio.Device
	monitor *health.Monitor
}

func watch(dev blockio.Device, m *health.Monitor) blockio.Device {
	if m == nil {
		return dev
	}
	return &watched{Device: dev, monitor: m}
}

// ReadAt implements blockio.Device.
func (d *watched) ReadAt(p []byte, off int64) error {
	b := d.monitor.Begin()
	err := d.Device.ReadAt(p, off)
	d.monitor.End(b, health.Read, err)
	return err
}

// WriteAt implements blockio.Device.
func (d *watched) WriteAt(p []byte, off int64) error {
	b := d.monitor.Begin()
	err := d.Device.WriteAt(p, off)
	d.monitor.End(b, health.Write, err)
	return err
}

// WriteVecAt implements blockio.Device.
func (d *watched) WriteVecAt(parts [][]byte, off int64) error {
	b := d.monitor.Begin()
	err := d.Device.WriteVecAt(parts, off)
	d.monitor.End(b, health.Write, err)
	return err
}

// WriteDurable implements blockio.Durable, where the device does. It counts as a flush, which is most of its time.
func (d *watched) WriteDurable(p []byte, off int64) error {
	b := d.monitor.Begin()
	err := d.Device.(blockio.Durable).WriteDurable(p, off)
	d.monitor.End(b, health.Flush, err)
	return err
}

// Flush implements blockio.Device.
func (d *watched) Flush() error {
	b := d.monitor.Begin()
	err := d.Device.Flush()
	d.monitor.End(b, health.Flush, err)
	return err
}

// dataOffset gives where on the device a run of the data area starts.
func (s *Store) dataOffset(r format.Run) int64 {
	return s.sb.DataOff + int64(r.Start())*format.BlockSize
}

// turn waits for a turn to do IO; giveTurn must follow.
func (s *Store) turn(class sched.Class, flow uint64, bytes int) *sched.Turn {
	t, _ := s.gate.Wait(context.Background(), class, flow, bytes) // which never ends, so there is no error
	return t
}

// giveTurn ends a turn. What has waited for it and needs no goroutine begins.
func (s *Store) giveTurn(t *sched.Turn) {
	if s.gate.Done(t) > 0 {
		s.Kick()
	}
}

// Kick begins the IO that StartRead has queued.
func (s *Store) Kick() {
	if s.async != nil {
		s.async.Kick()
	}
}

// writeRuns writes data over runs of the same length, for an op. durable says that no sync is needed.
func (s *Store) writeRuns(o *op, runs []format.Run, data wire.Data) (durable bool, err error) {
	copies.Add(copies.Submitted, data.Len())
	if len(runs) == 1 && len(data) == 1 && len(data[0].B) <= maxIOBytes {
		t := s.turn(sched.WriteClass(o.origin.Priority), o.origin.Flow, len(data[0].B))
		defer s.giveTurn(t)
		return s.flusher.write(data[0].B, s.dataOffset(runs[0]), o.alone)
	}
	var parts [][]byte
	for _, sl := range data {
		parts = append(parts, sl.B)
	}
	for _, r := range runs {
		off := s.dataOffset(r)
		for left := r.Blocks() * format.BlockSize; left > 0; {
			n := min(left, maxIOBytes)
			var these [][]byte
			these, parts = splitParts(parts, n)
			if err := s.writeTurn(o, these, n, off); err != nil {
				return false, err
			}
			off += int64(n)
			left -= n
		}
	}
	return false, nil
}

// writeTurn writes parts of n bytes together when their turn has come.
func (s *Store) writeTurn(o *op, parts [][]byte, n int, off int64) error {
	t := s.turn(sched.WriteClass(o.origin.Priority), o.origin.Flow, n)
	defer s.giveTurn(t)
	return s.dev.WriteVecAt(parts, off)
}

// splitParts takes the first n bytes of parts.
func splitParts(parts [][]byte, n int) (first, rest [][]byte) {
	for n > 0 {
		if len(parts[0]) > n {
			first = append(first, parts[0][:n])
			rest = append([][]byte{parts[0][n:]}, parts[1:]...)
			return first, rest
		}
		first = append(first, parts[0])
		n -= len(parts[0])
		parts = parts[1:]
	}
	return first, parts
}

// readRun reads into p, which has the run's length, for the drive itself: recovery, Verify, scrub.
func (s *Store) readRun(r format.Run, p []byte) error {
	return s.readTurn(sched.Scrub, r, p)
}

func (s *Store) readTurn(class sched.Class, r format.Run, p []byte) error {
	t := s.turn(class, 0, len(p))
	defer s.giveTurn(t)
	return s.dev.ReadAt(p, s.dataOffset(r))
}

// writeBackground writes a page of a checkpoint. It has the share of a rebuild, so that a journal that fills at its full rate
// is emptied in time; and once somebody waits for room in the journal, that of those who wait.
func (s *Store) writeBackground(p []byte, off int64) error {
	class := sched.Rebuild
	if s.journal.isWaiting() {
		class = sched.ClientWrite
	}
	t := s.turn(class, 0, len(p))
	defer s.giveTurn(t)
	return s.dev.WriteAt(p, off)
}
