package logfs

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/crakefs/crake/compute/internal/store"
	"github.com/crakefs/crake/wire"
)

// FS holds the files of one bucket's database, for one ownership. It implements vfs.FS. Safe for concurrent use.
//
// What it does that a local filesystem does not: Link gives vfs.ErrUnsupported (Pebble then copies); directories exist
// in memory and by the files in them; a file that was closed without Sync exists after a crash only if it is small; a
// removed file may be there again after a crash.
type FS struct {
	b   *store.Bucket
	log *slog.Logger

	ctx    context.Context // ends with Close or when the bucket is deposed: repeated writes give up
	cancel context.CancelFunc

	mu      sync.Mutex
	files   map[string]*node // guarded by mu
	dirs    map[string]bool  // guarded by mu
	locks   map[string]bool  // guarded by mu
	pretend bool             // set before use: see PretendAfterLoss
	lost    atomic.Pointer[error]
	number  uint64 // guarded by mu: the last number given out
	windows int    // guarded by mu: filled by Prefetch, at most MaxWindows
}

var _ vfs.FS = (*FS)(nil)

func newFS(b *store.Bucket) *FS {
	fs := &FS{
		b: b, log: slog.Default().With("bucket", b.ID(), "epoch", b.Epoch()),
		files: map[string]*node{}, dirs: map[string]bool{"": true}, locks: map[string]bool{},
	}
	fs.ctx, fs.cancel = context.WithCancel(context.Background())
	return fs
}

// Close makes all writes fail and gives memory back. Close Pebble before, unless it is to be given up.
func (fs *FS) Close() {
	fs.cancel()
	fs.lose(wire.Errorf("logfs", wire.KindShutdown, "", "closed"))
	fs.mu.Lock()
	nodes := make([]*node, 0, len(fs.files))
	for _, n := range fs.files {
		nodes = append(nodes, n)
	}
	fs.mu.Unlock()
	for _, n := range nodes {
		n.write.Lock() // who writes sends from the memory that goes; it has been told to stop
		n.drop()
		n.write.Unlock()
	}
}

// Err tells why a write was given up (the bucket has a newer owner, the FS was closed, a log cannot go on), or nil. What
// was written since is on no drive: nothing may be acknowledged any more.
func (fs *FS) Err() error {
	if p := fs.lost.Load(); p != nil {
		return *p
	}
	return nil
}

// PretendAfterLoss makes every write that follows a loss (see Err) report success and go nowhere. Pebble cannot live with
// a failed write of its WAL: it panics, in one place (the rotation of the WAL) with its mutex unlocked under a deferred
// unlock, which no recover can stop, and takes the process with all its other buckets along. The caller promises to look
// at Err after every commit and before it lets anybody know of it. To be called right after Open.
func (fs *FS) PretendAfterLoss() { fs.pretend = true }

// lose notes the first loss.
func (fs *FS) lose(err error) {
	fs.lost.CompareAndSwap(nil, &err)
}

// outcome is what a write reports.
func (fs *FS) outcome(err error) error {
	if err == nil {
		return nil
	}
	if k := wire.KindOf(err); fs.ctx.Err() != nil || k == wire.KindStaleEpoch || k == wire.KindShutdown {
		fs.lose(err)
	}
	if fs.pretends() {
		return nil
	}
	return err
}

// gone says that a write is not to be tried any more, and what it reports.
func (fs *FS) gone() (bool, error) {
	err := fs.Err()
	if err == nil {
		return false, nil
	}
	if fs.pretend {
		return true, nil
	}
	return true, err
}

// pretends says that writes go nowhere.
func (fs *FS) pretends() bool { return fs.pretend && fs.Err() != nil }

// clean gives a name its one form: no slash at either end; "" is the root.
func clean(name string) string {
	return strings.Trim(path.Clean("/"+name), "/")
}

func pathError(op, name string, err error) error {
	return &os.PathError{Op: op, Path: name, Err: err}
}

// isLog says of which kind a file of that name is.
func isLog(name string) bool {
	base := path.Base(name)
	return strings.HasSuffix(base, ".log") || strings.HasPrefix(base, "MANIFEST-")
}

// nextNumber gives a number that is higher than every one that any description, log or table seen at Open has.
func (fs *FS) nextNumber() uint64 {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.number++
	return fs.number
}

func (fs *FS) find(name string) *node {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.files[clean(name)]
}

// Create implements vfs.FS. A log exists durably when it returns.
func (fs *FS) Create(name string, _ vfs.DiskWriteCategory) (vfs.File, error) {
	name = clean(name)
	if name == "" || len(name) > MaxNameBytes {
		return nil, pathError("create", name, os.ErrInvalid)
	}
	fs.mu.Lock()
	if fs.dirs[name] {
		fs.mu.Unlock()
		return nil, pathError("create", name, os.ErrExist)
	}
	old := fs.files[name]
	delete(fs.files, name)
	fs.mu.Unlock()
	if old != nil {
		old.remove()
	}
	n := newNode(fs, name)
	if n.kind == fileLog && !fs.pretends() {
		if err := fs.outcome(n.publish(name)); err != nil {
			return nil, pathError("create", name, err)
		}
	}
	h := n.open(true)
	fs.mu.Lock()
	fs.files[name] = n
	fs.mu.Unlock()
	return h, nil
}

// Link implements vfs.FS: it is not supported.
func (fs *FS) Link(oldname, newname string) error { return vfs.ErrUnsupported }

// Open implements vfs.FS. vfs.SequentialReadsOption turns reading ahead on.
func (fs *FS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	if fs.isDir(name) {
		return fs.OpenDir(name)
	}
	if fs.pretends() { // a file that went nowhere would look corrupt
		return nil, pathError("open", name, fs.Err())
	}
	n := fs.find(name)
	if n == nil {
		return nil, pathError("open", name, os.ErrNotExist)
	}
	if err := n.load(); err != nil {
		return nil, pathError("open", name, err)
	}
	h := n.open(false)
	for _, o := range opts {
		h.sequential = h.sequential || o == vfs.SequentialReadsOption
	}
	return h, nil
}

// OpenReadWrite implements vfs.FS, for files of at most MaxRewriteBytes that are no logs.
func (fs *FS) OpenReadWrite(name string, category vfs.DiskWriteCategory, _ ...vfs.OpenOption) (vfs.File, error) {
	if isLog(name) {
		return nil, pathError("open", name, vfs.ErrUnsupported)
	}
	n := fs.find(name)
	if n == nil {
		f, err := fs.Create(name, category)
		if err != nil {
			return nil, err
		}
		h := f.(*handle)
		h.random = true
		return h, nil
	}
	if err := n.load(); err != nil {
		return nil, pathError("open", name, err)
	}
	if err := n.makeRewritable(); err != nil {
		return nil, pathError("open", name, err)
	}
	h := n.open(true)
	h.random = true
	return h, nil
}

func (fs *FS) isDir(name string) bool {
	name = clean(name)
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.hasDir(name)
}

// hasDir says that a directory was made or has a file in it. fs.mu is held.
func (fs *FS) hasDir(name string) bool {
	if name == "" || fs.dirs[name] {
		return true
	}
	for f := range fs.files {
		if strings.HasPrefix(f, name+"/") {
			return true
		}
	}
	return false
}

// OpenDir implements vfs.FS.
func (fs *FS) OpenDir(name string) (vfs.File, error) {
	if !fs.isDir(name) {
		return nil, pathError("open", name, os.ErrNotExist)
	}
	return &dirHandle{fs: fs, name: clean(name)}, nil
}

// Remove implements vfs.FS.
func (fs *FS) Remove(name string) error {
	name = clean(name)
	fs.mu.Lock()
	n := fs.files[name]
	delete(fs.files, name)
	isDir := n == nil && fs.dirs[name]
	empty := true
	if isDir {
		delete(fs.dirs, name)
		if empty = !fs.hasDir(name); !empty {
			fs.dirs[name] = true
		}
	}
	fs.mu.Unlock()
	switch {
	case n != nil:
		n.remove()
	case !isDir:
		return pathError("remove", name, os.ErrNotExist)
	case !empty:
		return pathError("remove", name, os.ErrExist)
	}
	return nil
}

// RemoveAll implements vfs.FS.
func (fs *FS) RemoveAll(name string) error {
	name = clean(name)
	under := func(f string) bool { return name == "" || f == name || strings.HasPrefix(f, name+"/") }
	var gone []*node
	fs.mu.Lock()
	for f, n := range fs.files {
		if under(f) {
			gone = append(gone, n)
			delete(fs.files, f)
		}
	}
	for d := range fs.dirs {
		if d != "" && under(d) {
			delete(fs.dirs, d)
		}
	}
	fs.mu.Unlock()
	for _, n := range gone {
		n.remove()
	}
	return nil
}

// Rename implements vfs.FS, for files. It is durable when it returns. After a crash in it either name is there, and
// never both.
func (fs *FS) Rename(oldname, newname string) error {
	oldname, newname = clean(oldname), clean(newname)
	n := fs.find(oldname)
	if n == nil || newname == "" || len(newname) > MaxNameBytes {
		return pathError("rename", oldname, os.ErrNotExist)
	}
	if oldname == newname {
		return nil
	}
	if isLog(newname) != (n.kind == fileLog) {
		return pathError("rename", oldname, vfs.ErrUnsupported)
	}
	if err := n.load(); err != nil {
		return pathError("rename", oldname, err)
	}
	n.write.Lock()
	defer n.write.Unlock()
	if err := fs.outcome(n.publish(newname)); err != nil {
		return pathError("rename", oldname, err)
	}
	fs.mu.Lock()
	replaced := fs.files[newname]
	fs.files[newname] = n
	if fs.files[oldname] == n {
		delete(fs.files, oldname)
	}
	fs.mu.Unlock()
	if replaced != nil && replaced != n {
		replaced.remove()
	}
	return nil
}

// ReuseForWrite implements vfs.FS: it removes the old file and creates a new one.
func (fs *FS) ReuseForWrite(oldname, newname string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if err := fs.Remove(oldname); err != nil {
		return nil, err
	}
	return fs.Create(newname, category)
}

// MkdirAll implements vfs.FS. Directories are not durable, which no reader can tell from their being empty.
func (fs *FS) MkdirAll(dir string, _ os.FileMode) error {
	dir = clean(dir)
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for d := dir; d != "" && d != "."; d = path.Dir(d) {
		if fs.files[d] != nil {
			return pathError("mkdir", dir, os.ErrExist)
		}
		fs.dirs[d] = true
	}
	return nil
}

type lock struct {
	fs   *FS
	name string
}

func (l *lock) Close() error {
	l.fs.mu.Lock()
	defer l.fs.mu.Unlock()
	delete(l.fs.locks, l.name)
	return nil
}

// Lock implements vfs.FS within this process: the bucket's epoch keeps all others out.
func (fs *FS) Lock(name string) (io.Closer, error) {
	name = clean(name)
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.locks[name] {
		return nil, pathError("lock", name, os.ErrExist)
	}
	fs.locks[name] = true
	return &lock{fs: fs, name: name}, nil
}

// List implements vfs.FS.
func (fs *FS) List(dir string) ([]string, error) {
	dir = clean(dir)
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if !fs.hasDir(dir) {
		return nil, pathError("list", dir, os.ErrNotExist)
	}
	prefix := dir + "/"
	if dir == "" {
		prefix = ""
	}
	seen := map[string]bool{}
	note := func(name string) {
		if rest, ok := strings.CutPrefix(name, prefix); ok && rest != "" {
			rest, _, _ = strings.Cut(rest, "/")
			seen[rest] = true
		}
	}
	for f := range fs.files {
		note(f)
	}
	for d := range fs.dirs {
		note(d)
	}
	names := make([]string, 0, len(seen))
	for name := range seen {
		names = append(names, name)
	}
	sort.Strings(names)
	return names, nil
}

// Stat implements vfs.FS.
func (fs *FS) Stat(name string) (vfs.FileInfo, error) {
	if n := fs.find(name); n != nil {
		return n.info(), nil
	}
	if fs.isDir(name) {
		return &fileInfo{name: path.Base("/" + clean(name)), dir: true}, nil
	}
	return nil, pathError("stat", name, os.ErrNotExist)
}

// PathBase implements vfs.FS.
func (fs *FS) PathBase(p string) string { return path.Base(p) }

// PathJoin implements vfs.FS.
func (fs *FS) PathJoin(elem ...string) string { return path.Join(elem...) }

// PathDir implements vfs.FS.
func (fs *FS) PathDir(p string) string { return path.Dir(p) }

// Unwrap implements vfs.FS: nothing lies below.
func (fs *FS) Unwrap() vfs.FS { return nil }

// GetDiskUsage implements vfs.FS: what data can take, in the whole cluster.
func (fs *FS) GetDiskUsage(string) (vfs.DiskUsage, error) {
	sp, err := fs.b.Store().Space(fs.ctx)
	if err != nil {
		return vfs.DiskUsage{}, err
	}
	return vfs.DiskUsage{AvailBytes: sp.FreeBytes, TotalBytes: sp.TotalBytes, UsedBytes: sp.TotalBytes - min(sp.TotalBytes, sp.FreeBytes)}, nil
}

// retry calls f until it succeeds, the bucket is deposed, the FS is closed, or the error is one that stays. It is for
// writes: Pebble cannot go on after a failed one, and drives come back.
func (fs *FS) retry(what string, f func() error) error {
	var delay time.Duration
	for try := 0; ; try++ {
		err := f()
		if err == nil {
			if try > 2 {
				fs.log.Info("database write succeeded at last", "what", what, "tries", try+1)
			}
			return nil
		}
		switch wire.KindOf(err) {
		case wire.KindStaleEpoch, wire.KindShutdown, wire.KindInvalid, wire.KindTooBig, wire.KindExists:
			return err
		}
		if fs.ctx.Err() != nil {
			return wire.E("logfs.write", wire.KindShutdown, what, err)
		}
		if try == 2 {
			fs.log.Warn("database write keeps failing, trying on", "what", what, "error", err)
		}
		if try > 0 { // the first repetition goes at once: to other drives
			delay = min(max(2*delay, 2*time.Millisecond), MaxRetryDelay)
		}
		select {
		case <-time.After(delay):
		case <-fs.ctx.Done():
		case <-fs.b.Deposed():
		}
	}
}

type fileInfo struct {
	name    string
	size    int64
	modTime time.Time
	dir     bool
}

// Name implements os.FileInfo.
func (i *fileInfo) Name() string { return i.name }

// Size implements os.FileInfo.
func (i *fileInfo) Size() int64 { return i.size }

// Mode implements os.FileInfo.
func (i *fileInfo) Mode() os.FileMode {
	if i.dir {
		return os.ModeDir | 0o755
	}
	return 0o644
}

// ModTime implements os.FileInfo.
func (i *fileInfo) ModTime() time.Time { return i.modTime }

// IsDir implements os.FileInfo.
func (i *fileInfo) IsDir() bool { return i.dir }

// Sys implements os.FileInfo.
func (i *fileInfo) Sys() any { return nil }

// DeviceID implements vfs.FileInfo: there is no device.
func (i *fileInfo) DeviceID() vfs.DeviceID { return vfs.DeviceID{} }
