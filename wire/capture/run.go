package capture

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	askMagic   = "CRAKETAP"
	askVersion = 1
	askBytes   = 16
)

// drain writes what a sink gathers to w until ctx ends or the sink's capture does; then, what is left.
func (t *Tap) drain(ctx context.Context, s *sink, w io.Writer) error {
	if err := t.attach(s); err != nil {
		return err
	}
	defer t.detach(s)
	var spare []byte
	for {
		select {
		case <-s.wake:
		case <-ctx.Done():
			s.stop("the process ends")
		}
		b, more := s.take(spare)
		if _, err := w.Write(b); err != nil {
			return err
		}
		if !more {
			return nil
		}
		spare = b
	}
}

// File captures to a new file, which replaces one that is there, until ctx ends or the file is 256 MiB long.
func (t *Tap) File(ctx context.Context, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(t.drain(ctx, t.newSink(0, maxFileBytes), f), f.Close())
}

// SocketPath gives the path of the socket at which a process that listens at a "unix:" address can be looked at; "" for other addresses.
func SocketPath(listen string) string {
	path, ok := strings.CutPrefix(listen, "unix:")
	if !ok {
		return ""
	}
	return strings.TrimSuffix(path, filepath.Ext(path)) + ".tap"
}

// Serve lets people look at a unix socket until ctx ends. The path must be short enough for one. An error says that it could not
// listen; it is no reason to end the process.
func (t *Tap) Serve(ctx context.Context, path string, log *slog.Logger) error {
	if c, err := net.Dial("unix", path); err == nil {
		return errors.Join(fmt.Errorf("another process listens at %s", path), c.Close())
	} else if errors.Is(err, unix.ECONNREFUSED) {
		if err := os.Remove(path); err != nil { // of a run that was killed
			return err
		}
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false) // it may be a successor's by then
	mine, err := os.Lstat(path)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var wg sync.WaitGroup
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			if ctx.Err() == nil {
				log.Warn("nobody can look at the frames any more", "path", path, "err", err)
			}
			break
		}
		wg.Go(func() {
			defer c.Close()
			if err := t.serve(ctx, c); err != nil {
				log.Info("a capture ended", "err", err)
			}
		})
	}
	if fi, err := os.Lstat(path); err == nil && os.SameFile(fi, mine) {
		_ = os.Remove(path)
	}
	wg.Wait()
	return nil
}

// serve sends a capture to one who has connected.
func (t *Tap) serve(ctx context.Context, c *net.UnixConn) error {
	if err := trusted(c); err != nil {
		return err
	}
	_ = c.SetDeadline(time.Now().Add(askTimeout))
	ask := make([]byte, askBytes)
	if _, err := io.ReadFull(c, ask); err != nil {
		return fmt.Errorf("who connected did not say what it wants: %w", err)
	}
	le := binary.LittleEndian
	if string(ask[:8]) != askMagic || le.Uint32(ask[8:]) != askVersion {
		return fmt.Errorf("who connected speaks something else: %q", ask)
	}
	_ = c.SetDeadline(time.Time{})
	lctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var gone sync.WaitGroup
	gone.Go(func() {
		_, _ = c.Read(ask) // only the end can come
		cancel()
	})
	unblock := context.AfterFunc(lctx, func() { _ = c.SetDeadline(time.Now().Add(endTimeout)) })
	err := t.drain(lctx, t.newSink(int(le.Uint32(ask[12:])), 0), c)
	unblock()
	_ = c.Close()
	gone.Wait()
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return nil // it has seen enough
	}
	return err
}

// trusted refuses a peer of another user, root excepted.
func trusted(c *net.UnixConn) error {
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var cerr error
	if err := rc.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	switch {
	case cerr != nil:
		return cerr
	case cred.Uid != 0 && int(cred.Uid) != os.Geteuid():
		return fmt.Errorf("user %d may not look", cred.Uid)
	}
	return nil
}

// Look connects to the socket of a process and gives its capture as a stream, with so many bytes of each data section. Closing it
// ends the capture.
func Look(ctx context.Context, path string, dataBytes int) (io.ReadCloser, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	ask := append(make([]byte, 0, askBytes), askMagic...)
	ask = binary.LittleEndian.AppendUint32(ask, askVersion)
	ask = binary.LittleEndian.AppendUint32(ask, uint32(max(0, min(dataBytes, MaxDataBytes))))
	if _, err := c.Write(ask); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}
