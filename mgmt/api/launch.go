package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// KeeperLock is the file whose lock is held as long as a keeper of mgmt runs for dir; the worker holds WorkerLock.
func KeeperLock(dir string) string { return filepath.Join(RunDir(dir), "keeper.lock") }

// WorkerLock is the file whose lock is held as long as a mgmt worker runs for dir.
func WorkerLock(dir string) string { return filepath.Join(RunDir(dir), "mgmt.lock") }

// Locked reports whether a living process holds the lock on a file. A file that is not there is not locked.
func Locked(path string) bool {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	lk := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lk); err != nil {
		return false
	}
	return lk.Type != unix.F_UNLCK
}

// Running reports whether mgmt (its keeper or its worker) runs for dir.
func Running(dir string) bool { return Locked(KeeperLock(dir)) || Locked(WorkerLock(dir)) }

// Launch starts "binary mgmt --dir dir" detached from this process, with its output appended to dir's mgmt log, and
// returns when its API answers. When it ends before, the error is its last words; nothing is left running then.
func Launch(ctx context.Context, binary, dir string) error {
	for _, d := range []string{RunDir(dir), LogDir(dir)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	log, err := os.OpenFile(LogPath(dir, "mgmt"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	start, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	cmd := exec.Command(binary, "mgmt", "--dir", dir)
	cmd.Dir = "/" // it must not keep the caller's folder busy
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // ends with mgmt, or with this short-lived tool
	c := Open(dir)
	defer c.Close()
	for {
		if err := c.Ping(ctx); err == nil {
			return nil
		}
		select {
		case err := <-ended:
			return fmt.Errorf("mgmt did not start: %s", lastWords(dir, start, err))
		case <-ctx.Done():
			return fmt.Errorf("mgmt did not answer in time, see %s", log.Name())
		case <-time.After(pollInterval):
		}
	}
}

// Ping asks whether mgmt answers at all.
func (c *Client) Ping(ctx context.Context) error { return c.do(ctx, "GET", "/ping", nil, nil) }

// lastWords gives the last line that was logged since offset start, or how the process ended.
func lastWords(dir string, start int64, ended error) string {
	if b, err := os.ReadFile(LogPath(dir, "mgmt")); err == nil && int64(len(b)) > start {
		lines := strings.Split(strings.TrimSpace(string(b[start:])), "\n")
		if l := strings.TrimSpace(lines[len(lines)-1]); l != "" {
			return l
		}
	}
	if ended == nil {
		return "it ended at once"
	}
	return ended.Error()
}

// StopAndWait stops the whole cluster of dir in order (frontends unmount, then computes, drives, mgmt) and returns when
// mgmt has ended. A cluster that does not run gives ErrNotRunning; a mount point in use an *Error with status 409, unless
// force is set: then it is detached under its users, who get errors from then on.
func StopAndWait(ctx context.Context, dir string, force bool) error {
	if !Running(dir) {
		return ErrNotRunning
	}
	c := Open(dir)
	defer c.Close()
	for asked := false; Running(dir); {
		// Asked again until it is under way, and again should mgmt die over it and come back.
		if st, err := c.Status(ctx); err == nil && (!asked || st.Health.State != HealthStopping) {
			_, err := c.Stop(ctx, force)
			if refused := (*Error)(nil); errors.As(err, &refused) {
				return err
			}
			asked = err == nil
		}
		if err := sleep(ctx); err != nil {
			return fmt.Errorf("the cluster did not stop in time, see %s: %w", LogPath(dir, "mgmt"), err)
		}
	}
	return nil
}

func sleep(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(pollInterval):
		return nil
	}
}
