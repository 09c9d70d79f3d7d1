package logfs

import (
	"context"
	"io"
	"os"
	"path"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/crakefs/crake/wire"
)

// handle is an open file. Reads are safe for concurrent use; Write, WriteAt, Sync and Close are not.
type handle struct {
	n          *node
	write      bool
	random     bool // of OpenReadWrite
	sequential bool // reads ahead

	mu     sync.Mutex
	pos    int64 // of Read
	closed bool
	// window is a part of the file in memory: of a log a whole segment, of a table what was read ahead. Held while it is
	// filled: concurrent readers of one handle want the same.
	window   []byte
	windowAt int64
	counted  bool // the window counts in FS.windows
}

var _ vfs.File = (*handle)(nil)

// Close implements vfs.File. A small file that was never synced is published; what a log has left is synced.
func (h *handle) Close() error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return os.ErrClosed
	}
	h.closed = true
	h.forget()
	h.mu.Unlock()
	var err error
	if h.write {
		err = h.n.fs.outcome(h.finish())
	}
	h.n.close()
	return err
}

// finish does at Close of a writer what cannot wait for a Sync that may not come.
func (h *handle) finish() error {
	n := h.n
	n.write.Lock()
	defer n.write.Unlock()
	n.mu.Lock()
	gone, published, size := n.removed, n.desc.at != nil, n.size()
	n.mu.Unlock()
	switch {
	case gone:
	case n.kind == fileLog:
		err := n.logSync()
		n.logSeal()
		return err
	case n.inMem, !published && size <= InlineBytes:
		return n.tableSync()
	}
	return nil
}

// Write implements vfs.File.
func (h *handle) Write(p []byte) (int, error) {
	if !h.write {
		return 0, os.ErrPermission
	}
	n := h.n
	n.write.Lock()
	defer n.write.Unlock()
	var err error
	switch {
	case n.kind == fileLog:
		err = n.logWrite(p)
	case n.inMem:
		h.mu.Lock()
		at := h.pos
		h.pos += int64(len(p))
		h.mu.Unlock()
		err = n.writeAt(p, at)
	default:
		err = n.tableWrite(p)
	}
	if err = n.fs.outcome(err); err != nil {
		return 0, err
	}
	return len(p), nil
}

// WriteAt implements vfs.File, for files of OpenReadWrite.
func (h *handle) WriteAt(p []byte, off int64) (int, error) {
	if !h.random {
		return 0, vfs.ErrUnsupported
	}
	if err := h.n.makeRewritable(); err != nil {
		return 0, err
	}
	h.n.write.Lock()
	defer h.n.write.Unlock()
	if err := h.n.writeAt(p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Sync implements vfs.File: what was written is durable on m+1 drives, or as a stripe, when it returns nil.
func (h *handle) Sync() error {
	if !h.write {
		return nil
	}
	n := h.n
	n.write.Lock()
	defer n.write.Unlock()
	n.mu.Lock()
	gone := n.removed
	n.mu.Unlock()
	switch {
	case gone:
		return nil
	case n.kind == fileLog:
		return n.fs.outcome(n.logSync())
	}
	return n.fs.outcome(n.tableSync())
}

// SyncData implements vfs.File: it is Sync.
func (h *handle) SyncData() error { return h.Sync() }

// SyncTo implements vfs.File: logs are synced, tables go to the drives by themselves.
func (h *handle) SyncTo(int64) (bool, error) {
	if h.n.kind == fileLog {
		return true, h.Sync()
	}
	return false, nil
}

// Preallocate implements vfs.File: nothing is to be done.
func (h *handle) Preallocate(int64, int64) error { return nil }

// Fd implements vfs.File: there is none.
func (h *handle) Fd() uintptr { return vfs.InvalidFd }

// Stat implements vfs.File.
func (h *handle) Stat() (vfs.FileInfo, error) { return h.n.info(), nil }

// Read implements vfs.File.
func (h *handle) Read(p []byte) (int, error) {
	h.mu.Lock()
	at := h.pos
	h.mu.Unlock()
	n, err := h.ReadAt(p, at)
	h.mu.Lock()
	h.pos = at + int64(n)
	h.mu.Unlock()
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

// ReadAt implements vfs.File.
func (h *handle) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, os.ErrInvalid
	}
	n := h.n
	if n.fs.pretends() {
		return 0, n.fs.Err()
	}
	n.mu.Lock()
	size := n.size()
	n.mu.Unlock()
	if off >= size {
		return 0, h.end(size, len(p) == 0)
	}
	want := p
	if int64(len(p)) > size-off {
		want = p[:size-off]
	}
	ctx, cancel := context.WithTimeout(n.fs.ctx, 30*time.Second)
	defer cancel()
	got := 0
	var err error
	if n.kind == fileLog {
		got, err = h.readLog(ctx, want, off)
	} else if err = h.readAhead(ctx, want, off); err == nil {
		got = len(want)
	}
	if err == nil && len(want) < len(p) {
		err = h.end(size, false)
	}
	return got, err
}

// end gives what a read past the end answers: io.EOF, or why the log cannot be read further.
func (h *handle) end(_ int64, nothing bool) error {
	if nothing {
		return nil
	}
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	if h.n.damage != nil {
		return h.n.damage
	}
	return io.EOF
}

// readLog reads from a log, a whole segment at a time.
func (h *handle) readLog(ctx context.Context, p []byte, off int64) (int, error) {
	got := 0
	for got < len(p) {
		at := off + int64(got)
		ref, _, ok := h.n.segmentAt(at)
		if !ok { // not on drives yet
			n := h.n
			n.mu.Lock()
			from := at - n.saved()
			c := 0
			if from >= 0 && from < int64(n.bufLen) {
				c = copy(p[got:], n.buf.Bytes()[wire.BlockSize+from:wire.BlockSize+int64(n.bufLen)])
			}
			n.mu.Unlock()
			if got += c; c == 0 {
				return got, io.EOF
			}
			continue
		}
		h.mu.Lock()
		if h.window == nil || at < h.windowAt || at >= h.windowAt+int64(len(h.window)) {
			if err := h.fillSegment(ctx, ref); err != nil {
				h.mu.Unlock()
				return got, err
			}
		}
		got += copy(p[got:], h.window[at-h.windowAt:])
		h.mu.Unlock()
	}
	return got, nil
}

// fillSegment makes a segment the window. h.mu is held.
func (h *handle) fillSegment(ctx context.Context, ref segRef) error {
	fs := h.n.fs
	until := time.Now().Add(ReadPatience)
	for {
		s := fs.readSegment(ctx, ref.id, ref.replicas)
		if s.start == ref.start && int64(len(s.payload)) >= ref.end-ref.start {
			h.window, h.windowAt = s.payload[:ref.end-ref.start], ref.start
			return nil
		}
		if s.err == nil {
			s.err = wire.Errorf("log.read", wire.KindCorrupt, ref.id.String(), "%d bytes from %d, want %d to %d",
				len(s.payload), s.start, ref.start, ref.end)
		}
		if k := wire.KindOf(s.err); !k.Retryable() || time.Now().After(until) || ctx.Err() != nil {
			return s.err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// readAhead reads from a table: from the window, which a sequential reader fills ahead.
func (h *handle) readAhead(ctx context.Context, p []byte, off int64) error {
	if h.write || len(p) > ReadAheadBytes {
		return h.n.readTable(ctx, p, off)
	}
	h.mu.Lock()
	if h.inWindow(off, len(p)) {
		copy(p, h.window[off-h.windowAt:])
		if off+int64(len(p)) == h.windowAt+int64(len(h.window)) {
			h.forget() // read to its end
		}
		h.mu.Unlock()
		return nil
	}
	if !h.sequential {
		h.mu.Unlock()
		return h.n.readTable(ctx, p, off)
	}
	defer h.mu.Unlock()
	if err := h.fill(ctx, off, ReadAheadBytes); err != nil {
		return err
	}
	copy(p, h.window[off-h.windowAt:])
	return nil
}

func (h *handle) inWindow(off int64, n int) bool {
	return h.window != nil && off >= h.windowAt && off+int64(n) <= h.windowAt+int64(len(h.window))
}

// fill reads a window of at most n bytes. h.mu is held.
func (h *handle) fill(ctx context.Context, off int64, n int) error {
	h.n.mu.Lock()
	size := h.n.size()
	h.n.mu.Unlock()
	w := make([]byte, min(int64(n), size-off))
	if err := h.n.readTable(ctx, w, off); err != nil {
		return err
	}
	h.window, h.windowAt = w, off
	return nil
}

// forget drops the window. h.mu is held.
func (h *handle) forget() {
	h.window = nil
	if h.counted {
		h.counted = false
		fs := h.n.fs
		fs.mu.Lock()
		fs.windows--
		fs.mu.Unlock()
	}
}

// Prefetch implements vfs.File: it reads a part of a table into memory, if few such parts are there.
func (h *handle) Prefetch(offset, length int64) error {
	n := h.n
	if h.write || h.sequential || n.kind != fileTable || offset < 0 || length <= 0 {
		return nil
	}
	n.mu.Lock()
	size := n.size()
	n.mu.Unlock()
	if offset >= size {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	length = min(length, ReadAheadBytes, size-offset)
	if h.closed || h.inWindow(offset, int(length)) {
		return nil
	}
	if !h.counted {
		n.fs.mu.Lock()
		free := n.fs.windows < MaxWindows
		if free {
			n.fs.windows++
			h.counted = true
		}
		n.fs.mu.Unlock()
		if !free {
			return nil
		}
	}
	ctx, cancel := context.WithTimeout(n.fs.ctx, 30*time.Second)
	defer cancel()
	if err := h.fill(ctx, offset, int(length)); err != nil {
		h.forget()
		return err
	}
	return nil
}

// dirHandle is an open directory.
type dirHandle struct {
	fs   *FS
	name string
}

var _ vfs.File = (*dirHandle)(nil)

// Sync implements vfs.File: names are durable when what made them returned.
func (d *dirHandle) Sync() error {
	return d.fs.outcome(d.fs.Err())
}

// Close implements vfs.File.
func (d *dirHandle) Close() error { return nil }

// Stat implements vfs.File.
func (d *dirHandle) Stat() (vfs.FileInfo, error) {
	return &fileInfo{name: path.Base("/" + d.name), dir: true}, nil
}

// SyncData implements vfs.File.
func (d *dirHandle) SyncData() error { return d.Sync() }

// SyncTo implements vfs.File.
func (d *dirHandle) SyncTo(int64) (bool, error) { return false, nil }

// Preallocate implements vfs.File.
func (d *dirHandle) Preallocate(int64, int64) error { return nil }

// Prefetch implements vfs.File.
func (d *dirHandle) Prefetch(int64, int64) error { return nil }

// Fd implements vfs.File.
func (d *dirHandle) Fd() uintptr { return vfs.InvalidFd }

// Read implements vfs.File: not for directories.
func (d *dirHandle) Read([]byte) (int, error) { return 0, vfs.ErrUnsupported }

// ReadAt implements vfs.File: not for directories.
func (d *dirHandle) ReadAt([]byte, int64) (int, error) { return 0, vfs.ErrUnsupported }

// Write implements vfs.File: not for directories.
func (d *dirHandle) Write([]byte) (int, error) { return 0, vfs.ErrUnsupported }

// WriteAt implements vfs.File: not for directories.
func (d *dirHandle) WriteAt([]byte, int64) (int, error) { return 0, vfs.ErrUnsupported }
