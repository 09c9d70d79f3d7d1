package drive

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/drive/internal/health"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/rpc"
)

// A device that fails is known in three ways: the store's monitor sees what its IOs do (internal/health), watchDevices sees
// that it has gone from its place or become shorter, and a store that takes no writes any more ends the process. The first
// two are told by heartbeats (DriveStatResp.Fault) while the process goes on serving what it can. The end of a process, and an
// opening that fails, are told by reportTrouble: one such may be mended by a restart, and mgmt counts them.

// tickHealth lets time pass for the monitors.
func (p *process) tickHealth() {
	for _, m := range p.health {
		m.Tick()
	}
}

// deviceFailed says why the process must end, or nil: a store takes no writes, and only another opening finds out what its
// device holds. Mgmt has been told when it returns, if it answers.
func (p *process) deviceFailed(ctx context.Context) error {
	for _, s := range p.stores {
		err := s.Failed()
		if err == nil {
			continue
		}
		info := s.Device().Info()
		if st := s.Stat(); st.Fault != "" {
			// The last word, so that the drive is failed and its process not started again.
			if herr := p.member.Heartbeat(ctx); herr != nil {
				p.log.Warn("mgmt did not hear of a fault", "drive", st.Drive, "fault", st.Fault, "err", herr)
			}
		}
		p.reportTrouble(ctx, s.Drive(), err)
		return wire.Errorf("drive.run", wire.KindIO, info.Path, "the device failed; a restart finds out what it holds: %w", err)
	}
	return nil
}

// openFailed tells mgmt that a device cannot be opened, and why. The process has not begun to speak with mgmt yet.
func (p *process) openFailed(d Device, err error) {
	p.reportTrouble(context.Background(), d.ID, fmt.Errorf("it cannot be opened: %w", err))
}

// reportTrouble tells mgmt that this run ends because of a device. It tries once: if mgmt does not answer, the next run will
// have the same to say.
func (p *process) reportTrouble(ctx context.Context, id wire.DriveID, cause error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), troubleTimeout)
	defer cancel()
	req := &wire.DriveTroubleReq{Proc: p.cfg.Proc, PID: uint32(os.Getpid()), Drive: id, Text: cause.Error()}
	if err := p.router.Mgmt(ctx, &rpc.Call{Method: wire.MDriveTrouble, Req: req, Resp: &wire.Empty{}}); err != nil {
		p.log.Warn("mgmt did not take a report of trouble", "drive", id, "trouble", cause, "err", err)
	}
}

// watchDevices looks each second whether the devices are where and what they were, until ctx ends. It has a goroutine of its own
// because a look at a path may hang when its filesystem does.
func (p *process) watchDevices(ctx context.Context) error {
	var all []*place
	for i, s := range p.stores {
		at, err := newPlace(s.Device().Info().Path)
		if err != nil {
			return err
		}
		at.monitor = p.health[i]
		all = append(all, at)
	}
	t := time.NewTicker(placeEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
		for _, at := range all {
			if why := at.look(); why != "" {
				at.monitor.Fail(why)
			}
		}
	}
}

// place is where a device was found when it was opened.
type place struct {
	path    string
	was     os.FileInfo
	bytes   int64
	missing int // looks in a row that did not find it
	monitor *health.Monitor
}

// newPlace remembers what lies at a path.
func newPlace(path string) (*place, error) {
	was, err := os.Stat(path)
	if err != nil {
		return nil, wire.E("drive.watch", wire.KindIO, path, err)
	}
	return &place{path: path, was: was, bytes: sizeOf(was)}, nil
}

// look says what has become of the device, "" if it is as it was, or nobody can tell.
func (a *place) look() string {
	now, err := os.Stat(a.path)
	switch {
	case errors.Is(err, os.ErrNotExist), err == nil && !a.same(now):
		// The open descriptor works on, perhaps. But the next start would not find it, so it is time to act now. A name may be
		// away for a moment, though, as when somebody swaps two.
		if a.missing++; a.missing >= placeMisses {
			return fmt.Sprintf("the device is gone from %s: %s", a.path, whatIsThere(err))
		}
		return ""
	case err != nil:
		return ""
	}
	a.missing = 0
	if bytes := sizeOf(now); bytes >= 0 && bytes < a.bytes {
		return fmt.Sprintf("the device %s has become shorter: %d bytes, it had %d", a.path, bytes, a.bytes)
	}
	return ""
}

func whatIsThere(err error) string {
	if err != nil {
		return "nothing is there"
	}
	return "something else is there"
}

// same reports whether it is the file, or a name of the block device, that was opened.
func (a *place) same(now os.FileInfo) bool {
	x, xok := a.was.Sys().(*syscall.Stat_t)
	y, yok := now.Sys().(*syscall.Stat_t)
	if xok && yok && isBlock(a.was) && isBlock(now) {
		return x.Rdev == y.Rdev
	}
	return os.SameFile(a.was, now)
}

func isBlock(fi os.FileInfo) bool {
	return fi.Mode()&os.ModeDevice != 0 && fi.Mode()&os.ModeCharDevice == 0
}

// sizeOf gives the bytes of a file or block device; -1 when nobody can tell.
func sizeOf(fi os.FileInfo) int64 {
	if !isBlock(fi) {
		return fi.Size()
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return -1
	}
	dir := fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	b, err := os.ReadFile(filepath.Join(dir, "size"))
	if errors.Is(err, os.ErrNotExist) {
		return 0 // the kernel has no such device any more, though its node is there
	}
	sectors, perr := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil || perr != nil {
		return -1
	}
	return sectors * 512
}
