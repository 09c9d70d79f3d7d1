package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/crakefs/crake/bench/internal/driveload"
	"github.com/crakefs/crake/bench/internal/pinned"
	"github.com/crakefs/crake/wire"
)

// benchCluster and benchDrive are what the drive is formatted as.
var benchCluster = wire.ClusterID{'d', 'r', 'i', 'v', 'e', 's', 'p', 'e', 'e', 'd'}

const benchDrive wire.DriveID = 1

// server is a process that answers, a drive or the echo, and the session with it.
type server struct {
	*driveload.Session
	proc *pinned.Process
	mgmt *driveload.Mgmt // of a drive; the echo has none
	addr string
	log  string // path
}

// startDrive formats the first half of a device and serves it as mgmt would start it.
func startDrive(ctx context.Context, cfg *config, d *device) (*server, error) {
	fctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	format := exec.CommandContext(fctx, cfg.bin, "drive", "format", d.path, "--cluster", benchCluster.String(),
		"--drive-id", fmt.Sprint(benchDrive), "--size", fmt.Sprint(d.half), "--force")
	if out, err := format.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("crake drive format: %w: %s", err, strings.TrimSpace(string(out)))
	}
	mgmt, err := driveload.StartMgmt(d.dir, benchCluster)
	if err != nil {
		return nil, err
	}
	addr := "unix:" + filepath.Join(d.dir, "drive.sock")
	cmd := exec.Command(cfg.bin, "drive", "--name", "drive0", "--proc", "2", "--cluster", benchCluster.String(), "--device", d.path,
		"--drive-id", fmt.Sprint(benchDrive), "--mgmt", mgmt.Addr, "--identity", mgmt.Drive, "--listen", addr)
	s, err := startServer(ctx, cfg, cmd, d.dir, driveload.Config{
		Addr: addr, Cluster: benchCluster, Drive: benchDrive, ReadBytes: cfg.size, WriteBytes: cfg.size, Identity: mgmt.Identity,
	})
	if err != nil {
		return nil, errors.Join(err, mgmt.Close())
	}
	s.mgmt = mgmt
	return s, nil
}

// startEcho starts this binary as the echo.
func startEcho(ctx context.Context, cfg *config, dir string) (*server, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	addr := "unix:" + filepath.Join(dir, "echo.sock")
	return startServer(ctx, cfg, exec.Command(exe, echoCommand, addr), dir, driveload.Config{
		Addr: addr, Cluster: benchCluster, Drive: benchDrive, ReadBytes: cfg.size, WriteBytes: cfg.size, Echo: true,
	})
}

// startServer starts a process on the drive's core and connects to it.
func startServer(ctx context.Context, cfg *config, cmd *exec.Cmd, dir string, lc driveload.Config) (*server, error) {
	s := &server{addr: lc.Addr, log: filepath.Join(dir, "log")}
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if s.proc, err = pinned.Start(cmd, cfg.cores.drive); err != nil {
		return nil, err
	}
	if err := s.connect(ctx, lc); err != nil {
		return nil, errors.Join(s.explain(err), s.proc.Kill())
	}
	return s, nil
}

// connect dials until the process answers, has ended, or is too late.
func (s *server) connect(ctx context.Context, lc driveload.Config) error {
	late := time.After(startTimeout)
	for {
		var err error
		if s.Session, err = driveload.Dial(ctx, lc); err == nil {
			return nil
		}
		select {
		case <-time.After(pollPause):
		case <-s.proc.Done():
			return fmt.Errorf("it ended at once: %w", errors.Join(s.proc.Err(), err))
		case <-late:
			return fmt.Errorf("it does not answer within %v: %w", startTimeout, err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// explain adds what the process said last, where that may say why.
func (s *server) explain(err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	text, _ := os.ReadFile(s.log)
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return fmt.Errorf("%w; the process's last words: %s", err, lines[len(lines)-1])
}

// end closes the session and ends the process in order; that must go well.
func (s *server) end() error {
	return errors.Join(s.Session.Close(), s.explain(s.proc.End(endPatience)), s.closeMgmt())
}

func (s *server) closeMgmt() error {
	if s.mgmt == nil {
		return nil
	}
	return s.mgmt.Close()
}

// kill is for after an error: nothing more is expected of the process.
func (s *server) kill() error {
	return errors.Join(s.Session.Close(), s.proc.Kill(), s.closeMgmt())
}
